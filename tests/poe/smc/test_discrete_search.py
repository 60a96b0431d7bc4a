"""The search for phases of discrete targets, against exact sums and the lack of a phase."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from poe.algebra.energy import Energy, Estimate
from poe.smc.discrete_search import search
from poe.smc.phases import Phases
from poe.smc.products import Products, fit, uniform
from poe.spaces import points
from tests.poe.discrete_targets import Case, curie_weiss, mean_field_potts, spin_glass, strong_rbm
from tests.poe.finite import Table

F64 = torch.float64


def made(case: Case, seed: int = 0) -> Phases:
    return search(case.energy, [], torch.Generator().manual_seed(seed))


def mixture(like: Energy, count: int = 3, seed: int = 0) -> Products:
    g = torch.Generator().manual_seed(seed)
    n, values = len(uniform(like).log_rates[0]), uniform(like).log_rates.shape[2]
    rates = torch.randn(count, n, values, generator=g, dtype=F64) + uniform(like).log_rates
    return Products(like, torch.randn(count, generator=g, dtype=F64), rates)


@pytest.fixture
def table() -> Table:
    """Sites of three, two and four values."""
    return Table(torch.randn(3, 2, 4, generator=torch.Generator().manual_seed(0), dtype=F64))


def test_a_mixture_sums_to_one_and_states_its_conditionals(table: Table) -> None:
    energy = mixture(table)
    x = points(table)
    logs = energy.log_prob(x).double()
    assert logs.exp().sum().item() == pytest.approx(1, abs=1e-5)
    for site, count in enumerate((3, 2, 4)):
        found = energy.site_logits(x, torch.tensor([site]))[:, 0].log_softmax(-1)[:, :count]
        each = []
        for value in range(count):
            other = x.clone()
            other[:, site] = value
            each.append(energy.log_prob(other))
        assert torch.allclose(found, torch.stack(each, 1).log_softmax(1), atol=1e-4)


def test_draws_of_a_mixture_follow_its_probabilities(table: Table) -> None:
    energy, n = mixture(table), 40_000
    x = energy.sample(n, generator=torch.Generator().manual_seed(1))
    states = points(table)
    law = energy.log_prob(states).double().exp()
    counts = (x.unsqueeze(1) == states).all(-1).sum(0).double()
    statistic = ((counts - n * law).square() / (n * law)).sum().item()
    assert statistic < len(law) + 4.5 * math.sqrt(2 * len(law))  # chi squared, 23 degrees


def test_a_fit_finds_a_mixture_from_its_draws() -> None:
    like = curie_weiss(12, 1.0).energy
    logs = torch.zeros(2, 12, 2, dtype=F64)
    logs[0, :, 1], logs[1, :, 1] = 2.0, -2.0
    truth = Products(like, torch.tensor([0.7, 0.3], dtype=F64).log(), logs)
    x = truth.sample(4000, generator=torch.Generator().manual_seed(0))
    places = truth.places(x)
    start = torch.nn.functional.one_hot(places[:, 0], 2)
    found = fit(like, places, torch.ones(len(x)), start)
    weights = found.log_weights.exp().sort().values
    assert weights.tolist() == pytest.approx([0.3, 0.7], abs=4.5 * math.sqrt(0.21 / 4000))


CASES = [
    lambda: curie_weiss(48, 1.3),
    lambda: mean_field_potts(40, 3),
    lambda: strong_rbm(),
    lambda: spin_glass(seed=3),
]


@pytest.mark.parametrize("make", CASES, ids=["curie-weiss", "potts", "rbm", "spin-glass"])
def test_weights_of_the_mixture_know_log_z_and_the_shares(make) -> None:
    case = make()
    found = made(case)
    start = found.start
    assert start.ess > 200
    error = math.sqrt(1 / start.ess - 1 / len(start.x))
    logs = start.log_weights
    assert abs(float(logs.logsumexp(0)) - math.log(len(logs)) - case.log_z) < 4.5 * error
    shares = logs.softmax(0) @ case.events(start.x)
    spread = (case.shares * (1 - case.shares) / start.ess).sqrt()
    assert bool(((shares - case.shares).abs() < 4.5 * spread + 1e-3).all())
    assert sum(basin.share for basin in found.basins) == pytest.approx(1, abs=1e-6)


def test_an_ordered_phase_that_no_descent_meets_is_found_by_its_hidden_unit() -> None:
    case = strong_rbm(24, 20, 4.0, pattern="random", share=0.5, seed=2)
    found = made(case)
    on = (found.start.log_weights.softmax(0) @ case.events(found.start.x))[0]
    assert abs(float(on) - 0.5) < 4.5 * math.sqrt(0.25 / found.start.ess)


def test_draws_that_lack_a_phase_are_not_trusted_and_exact_ones_are() -> None:
    case = strong_rbm()
    found = made(case)
    x, weights = found.start.x, found.start.log_weights.softmax(0)
    index = weights.multinomial(1000, True, generator=torch.Generator().manual_seed(0))
    exact = x[index]
    size = min(1000.0, found.start.ess)
    assert found.judged(exact, size, Estimate(case.log_z, 0.01)).missed == ()
    lacking = exact[case.events(exact)[:, 0] < 0.5]
    reasons = found.judged(lacking, float(len(lacking)), Estimate(case.log_z - math.log(2), 0.01))
    assert len(reasons.missed) >= 2 and "% of the mass" in reasons.missed[0]
    assert "log Z" in reasons.missed[-1]


def test_the_same_stream_finds_the_same() -> None:
    case = spin_glass(seed=1)
    one, two = made(case, 3), made(case, 3)
    assert torch.equal(one.start.log_weights, two.start.log_weights)
    assert one.record == two.record


def test_descents_end_where_no_change_of_one_site_lowers_the_energy() -> None:
    case = spin_glass(seed=2, kind="bits")
    minima: Tensor = made(case).minima
    level = case.energy(minima)
    for site in range(32):
        other = minima.clone()
        other[:, site] = 1 - other[:, site]
        assert bool((case.energy(other) >= level - 1e-4).all())
