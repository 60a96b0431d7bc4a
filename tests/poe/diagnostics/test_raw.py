from __future__ import annotations

import math
from dataclasses import replace

import torch

import poe
from poe.diagnostics.raw import Branch, Cost, Raw, evidence_of, interleaved
from poe.spaces.structure import Structure
from tests.poe.targets import Gauss

TARGET = Gauss(0.0, name="a")


def raw(chains: int = 4, draws: int = 100, **options) -> Raw:
    x = TARGET.sample((chains, draws), generator=torch.Generator().manual_seed(0))
    return Raw(x, TARGET(x), chains * draws, **options)


def test_particles_of_populations_are_all_judged_and_evenly_kept() -> None:
    particles = replace(raw(16, 64, populations=True, counts={"weight_ess": 1e4}), draws=160)
    assert particles.kept.tolist() == torch.linspace(0, 63, 10).round().long().tolist()
    assert len(particles.first) == 160
    d = evidence_of(particles, Structure.of(TARGET))
    assert d.ess_bulk == d.ess_tail == 160  # no more than are kept
    assert d.weight_ess == 160 and d.mcse >= 160**-0.5
    whole = replace(particles, populations=False, draws=1024)
    assert evidence_of(whole, Structure.of(TARGET)).ess_bulk > 500


def test_no_ess_exceeds_the_draws_that_are_handed_out() -> None:
    two = raw(counts={"weight_ess": 1e4})
    for given in (two, replace(two, draws=11), raw(draws=0)):
        draws = poe.Draws.of(given, Structure.of(TARGET))
        d = draws.diagnostics
        assert max(d.ess_bulk, d.ess_tail) <= len(draws)
        assert len(draws) == 0 or d.weight_ess == len(draws)


def test_the_stein_test_counts_its_scores() -> None:
    d = evidence_of(raw(stein=True, counts={"gradients": 7.0}), Structure.of(TARGET))
    assert d.gradients == 7 + 400 and d.stein_pvalue > 0.01


def test_draws_go_round_the_chains() -> None:
    chains = torch.arange(6).reshape(2, 3, 1)
    assert interleaved(chains, 4).flatten().tolist() == [0, 3, 1, 4]


def test_exact_draws_that_are_not_finite_are_never_trusted() -> None:
    structure = Structure.of(TARGET)
    good = poe.Draws.of(raw(independent=True), structure, "the plan")
    assert good.trusted and good.verdict == "TRUSTED: 400 independent draws"
    assert (good.plan, good.expression, good.target) == ("the plan", "a", TARGET)
    bad = raw(independent=True)
    bad.energy[0, 0] = math.nan
    draws = poe.Draws.of(bad, structure)
    assert not draws.trusted and draws.verdict.startswith("NOT TRUSTED: 1 draws are not finite")


def test_log_z_that_is_known_to_be_another_is_a_reason() -> None:
    structure = Structure.of(TARGET)
    near = poe.Draws.of(raw(log_z=poe.Estimate(0.02, 0.01)), structure)
    assert near.trusted and near.log_z == poe.Estimate(0.0)
    far = poe.Draws.of(raw(log_z=poe.Estimate(0.2, 0.01)), structure)
    assert "log Z is known to be 0 (exact), and these draws make it 0.2 ± 0.01" in far.verdict


def test_the_cost_of_earlier_methods_is_added_after_judgement() -> None:
    counts = {"gradients": 100.0, "divergent": 1}
    draws = poe.Draws.of(raw(counts=counts, earlier=Cost(1e6, 5.0, 2.0)), Structure.of(TARGET))
    d = draws.diagnostics
    assert (d.gradients, d.energies, d.seconds) == (1e6 + 100, 5.0, 2.0)
    assert "1 divergent proposals" in draws.warnings[0]  # 1 of 100, not of a million


def test_a_mixture_has_the_weakest_evidence_of_its_branches() -> None:
    one, other = (evidence_of(raw(), Structure.of(TARGET)) for _ in range(2))
    weak = replace(other, rhat=1.04, ess_bulk=30.0, ess_tail=60.0)
    branches = (
        Branch(0.75, one, (), {}),
        Branch(0.25, weak, ("few", "given"), {"given": "it holds"}),
    )
    draws = poe.Draws.of(raw(branches=branches), Structure.of(TARGET))
    d = draws.diagnostics
    assert d.rhat == 1.04 and d.ess_bulk == 120 and d.ess_tail == 240
    assert draws.warnings == ("few", "given") and draws.reasons == ("few",)
    assert draws.conditions == {"given": "it holds"}
    broken = raw(branches=branches)
    broken.energy[0, 0] = math.inf
    assert any("not finite" in w for w in poe.Draws.of(broken, Structure.of(TARGET)).reasons)
