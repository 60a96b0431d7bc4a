from __future__ import annotations

import math
from dataclasses import replace

import torch

import poe
from poe.diagnostics.evidence import Diagnostics, diagnose
from poe.diagnostics.verdict import log_z_reasons, reasons, target_warnings, verdict
from poe.spaces.structure import Structure
from tests.poe.targets import Gauss, Raw


def test_bad_evidence_is_put_into_words() -> None:
    chains = torch.randn(4, 50, 2) + 5 * torch.arange(4).reshape(4, 1, 1)
    chains[3, :, :] = 0.5
    counts = {
        "divergent": 3,
        "nonfinite": 2,
        "acceptance": 0.05,
        "swaps": 0.01,
        "stein_pvalue": 0.0005,
    }
    evidence = diagnose(chains, torch.randn(4, 50), 1, **counts)
    found = reasons(evidence, 200)
    assert found[0].startswith("chains disagree") and all("; try " in reason for reason in found)
    said = " ".join(found)
    for part in (
        "chains disagree",
        "3 divergent",
        "2 proposals had a non-finite",
        "acceptance 0.05 is low",
        "few independent draws",
        "1 chains never moved",
        "Stein test, p = 0.0005",
        "hardly swap (0.010)",
    ):
        assert part in said
    assert reasons(replace(evidence, independent=True), 200) == []
    broken = diagnose(chains, torch.full((4, 50), math.nan), 1)
    assert "200 draws are not finite" in reasons(replace(broken, independent=True), 200)[0]
    heavy = Diagnostics(1.0, 1.0, 500.0, 500.0, 0, weight_ess=500.0, pareto_k=0.9)
    assert "Pareto k 0.90" in reasons(heavy, 1000)[0]
    good = Diagnostics(1.0, 1.0, 500.0, 500.0, 0, stein_pvalue=0.002, pareto_k=0.9)
    assert reasons(good, 1000) == []


def test_a_verdict_starts_with_whether_to_trust() -> None:
    good = Diagnostics(1.01, 1.02, 500.0, 400.0, 0)
    assert verdict(100, (), {}, good) == "TRUSTED: ESS 400, R-hat 1.020"
    given = {"note": "the target has finite mass", "other": "the target has finite mass"}
    assert verdict(100, (), given, good).startswith("TRUSTED if the target has finite mass: ESS")
    assert verdict(100, ("one", "two"), given, good) == "NOT TRUSTED: one (and 1 more, above)"
    assert verdict(0, (), {}, good).startswith("NOT TRUSTED: there are no draws")
    independent = replace(good, independent=True, stein_pvalue=0.3)
    assert (
        verdict(1000, (), {}, independent) == "TRUSTED: 1,000 independent draws, Stein test p 0.3"
    )


def test_few_draws_cannot_tell() -> None:
    population = Diagnostics(1.24, 1.0, 213.0, 300.0, 0, ancestors=300.0, chance=1.3)
    (reason,) = reasons(population, 1000)
    assert reason.startswith("too few draws to tell: R-hat 1.240 > 1.05, and populations of ESS")
    (reason,) = reasons(replace(population, chance=1.2), 1000)  # more than chance shows
    assert reason.startswith("chains disagree: R-hat 1.240")
    assert reasons(replace(population, rhat=1.04), 1000) == []
    for rhat in (1.0, 1.5):
        (reason,) = reasons(Diagnostics(rhat, 1.0, 40.0, 40.0, 0), 40)
        assert reason.startswith("too few draws to tell") and "try poe.sample(..., 1000)" in reason
    assert reasons(Diagnostics(1.0, 1.0, 40.0, 40.0, 0, weight_ess=40.0), 40) == []  # particles


def test_a_handful_of_rejected_proposals_is_no_reason() -> None:
    good = Diagnostics(1.0, 1.0, 500.0, 500.0, 0, nonfinite=5, nonfinite_share=5e-6)
    assert reasons(good, 1000) == []
    (reason,) = reasons(replace(good, nonfinite=5_000, nonfinite_share=0.05), 1000)
    assert reason.startswith("5,000 proposals had a non-finite energy or gradient (5 %)")
    assert len(reasons(replace(good, nonfinite_share=math.nan), 1000)) == 1  # it is unknown where


def test_log_z_is_compared_within_its_errors() -> None:
    known = poe.Estimate(1.0, 0.3)
    assert log_z_reasons(known, poe.Estimate(2.9, 0.4)) == []  # 5 x 0.5
    (reason,) = log_z_reasons(known, poe.Estimate(3.6, 0.4))
    assert "log Z is known to be 1 ± 0.3" in reason and "; try" in reason
    assert log_z_reasons(None, known) == log_z_reasons(known, None) == []


def test_conditions_follow_from_the_target() -> None:
    a, raw = Gauss(0.0, name="a"), Raw(Gauss(1.0), name="raw", proper=None)
    assert target_warnings(Structure.of(a & a), None) == {}
    found = target_warnings(Structure.of(a | raw), None)
    assert list(found.values()) == [
        "raw energies are to be weighed as they stand",
        "the target has finite mass",
    ]
    assert any("it is unknown whether a | raw has finite mass" in note for note in found)
