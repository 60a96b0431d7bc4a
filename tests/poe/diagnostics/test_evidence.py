from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats import norm

import poe
from poe.diagnostics.evidence import (
    Diagnostics,
    diagnose,
    ess,
    judge,
    pareto_k,
    rhat,
    standard_errors,
    weight_ess,
)
from tests.poe.targets import Gauss


def test_a_stuck_chain_has_no_effective_draws() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(4, 500, 1))
    free = ess(x, "bulk")[0]
    x[0] = 1.3
    assert ess(x, "bulk")[0] < free * 0.8
    x[:] = 1.3
    assert ess(x, "bulk")[0] == 0


def test_chains_that_stand_still_apart_have_infinite_rhat() -> None:
    x = np.broadcast_to(np.arange(4.0)[:, None, None], (4, 10, 1))
    assert rhat(x)[0] == np.inf
    apart = np.random.default_rng(0).normal(size=(4, 100, 1)) + 3 * np.arange(4)[:, None, None]
    assert rhat(apart)[0] > 1.5
    assert math.isnan(rhat(apart[:1])[0])


def autoregression(phi: float, chains: int, draws: int, d: int = 1) -> np.ndarray:
    """Stationary chains with law N(0, 1) and lag-one correlation phi, (chains, draws, d)."""
    x = np.random.default_rng(1).normal(size=(chains, draws, d))
    for t in range(1, draws):
        x[:, t] = phi * x[:, t - 1] + math.sqrt(1 - phi**2) * x[:, t]
    return x


def test_ess_of_an_autoregression_is_that_of_theory() -> None:
    phi, n = 0.9, 20_000
    theory = 4 * n * (1 - phi) / (1 + phi)
    x = autoregression(phi, 4, n)
    assert 0.8 < ess(x, "bulk")[0] / theory < 1.25
    error = standard_errors(torch.from_numpy(3 * x), 1)
    assert (
        error.shape == (1,) and 0.89 < float(error) / (3 / math.sqrt(theory)) < 1.12
    )  # the square root of the above
    assert math.isclose(
        diagnose(torch.from_numpy(3 * x), torch.zeros(4, n), 1).mcse * 3 * x.std(),
        float(error),
        rel_tol=1e-3,
    )


@pytest.mark.parametrize(("phi", "draws"), [(0.0, 1), (0.0, 2), (0.7, 3), (0.5, 7)])
def test_ess_of_short_chains_is_that_of_theory(phi: float, draws: int) -> None:
    chains = 6000 // draws
    theory = (
        chains * draws / (1 + 2 * sum((1 - k / draws) * phi**k for k in range(1, draws)))
    )  # from the variance of the mean
    assert 0.85 < ess(autoregression(phi, chains, draws), "mean")[0] / theory < 1.15


@pytest.mark.parametrize("memory", [0.0, 0.3, 0.7, 0.95])
def test_nested_rhat_is_that_of_theory_for_chains_that_remember_where_they_were(
    memory: float,
) -> None:
    chains, draws, rng = 8000, 4, np.random.default_rng(2)
    place = math.sqrt(memory) * rng.normal(size=(chains, 1, 1))
    x = place + math.sqrt(1 - memory) * rng.normal(
        size=(chains, draws, 1)
    )  # any two draws of a chain have correlation `memory`
    # between the means of k equal parts of N(0, 1) lies this variance; W counts the halves of a
    # superchain with n - 1
    eighths, sixteenths = (
        memory**2 * np.mean((k * np.diff(norm.pdf(norm.ppf(np.linspace(0, 1, k + 1))))) ** 2)
        for k in (8, 16)
    )
    theory = math.sqrt(1 + 8 / 7 * eighths / (1 - sixteenths + 2 * (sixteenths - eighths)))
    assert abs(rhat(x)[0] / theory - 1) < 0.02
    assert diagnose(torch.from_numpy(x), torch.zeros(chains, draws), 1).nested


def test_many_short_chains_are_told_to_agree_or_not_where_random_groups_see_nothing() -> None:
    from arviz_stats.base import array_stats

    rng = np.random.default_rng(3)
    free = rng.normal(size=(500, 2, 40))
    assert rhat(free).max() < 1.05
    stuck = rng.normal(size=(500, 1, 1)) + 0.01 * rng.normal(size=(500, 4, 1))
    assert rhat(stuck)[0] > 1.5
    at_random = array_stats.rhat_nested(
        stuck[..., 0], superchain_ids=np.arange(500) % 10
    )  # the control
    assert at_random < 1.05
    modes = np.where(rng.random((500, 1, 1)) < 0.1, -5, 5) + rng.normal(size=(500, 3, 1))
    assert rhat(modes)[0] > 1.2


def test_ess_is_bounded_by_weights_and_ancestors() -> None:
    x, energy = torch.randn(16, 100, 2), torch.randn(16, 100)
    free = diagnose(x, energy, 1)
    assert free.ess_bulk > 800 and free.most == math.inf
    for counts, most in [
        ({"weight_ess": 50.0}, 50),
        ({"ancestors": 30}, 30),
        ({"weight_ess": 50.0, "ancestors": 30}, 30),
    ]:
        bounded = diagnose(x, energy, 1, **counts)
        assert bounded.ess_bulk == bounded.ess_tail == most
        assert math.isclose(bounded.mcse, 1 / math.sqrt(most))
        cure = (
            6400 if "weight_ess" in counts else "thin=4"
        )  # of annealed particles thin= is how many there are for each draw
        assert any(
            f"ESS {most} < 100; try poe.sample(..., {cure})" in reason
            for reason in judge(bounded, 1600, exact_draws=False)
        )
    assert diagnose(x, energy, 1, weight_ess=1e9).ess_bulk == free.ess_bulk


@pytest.mark.parametrize(
    ("x", "event_dim"),
    [
        (torch.randn(4, 0, 3), 1),
        (torch.randn(0, 4, 3), 1),
        (torch.randn(4, 5, 0), 1),
        (torch.randn(1, 1, 3), 1),
        (torch.randn(1, 200, 3), 1),
        (torch.randn(4, 1, 3), 1),
        (torch.randn(4, 3), 0),
        (torch.randn(4, 100), 0),
        (torch.randint(5, (4, 100, 3)), 1),
        (torch.rand(4, 100, 3) > 0.5, 1),
        (torch.randn(4, 20, 3, 20, 20), 3),
        (torch.full((4, 100, 2), torch.nan), 1),
        (torch.full((4, 100, 2), torch.inf), 1),
    ],
    ids=lambda value: f"{tuple(value.shape)}" if isinstance(value, torch.Tensor) else "",
)
@pytest.mark.parametrize("energy", [0.0, math.nan, math.inf, -math.inf])
def test_evidence_of_any_draws_is_a_number_or_nan(
    x: torch.Tensor, event_dim: int, energy: float
) -> None:
    chains, draws = x.shape[:2]
    evidence = diagnose(x, torch.full((chains, draws), energy), event_dim)
    assert all(isinstance(figure, (int, float)) for figure in evidence.asdict().values())
    usable = x.numel() > 0 and bool(x.double().isfinite().all()) and chains * draws >= 4
    assert usable or not evidence.ess_bulk > 0
    assert math.isnan(evidence.rhat) or (chains > 1 and draws >= 4 and not x.double().isnan().any())
    assert evidence.invalid == (
        chains * draws
        if x.numel() and (not x.double().isfinite().all() or energy > 0 or energy != energy)
        else 0
    )
    reasons = judge(evidence, chains * draws, exact_draws=False)
    even = energy == 0 and usable  # an even law may have any draws
    assert reasons or even or chains * draws == 0 or x.numel() == 0
    assert standard_errors(x, event_dim).shape == x.shape[2:]


def test_huge_events_get_the_smallest_ess() -> None:
    x = torch.from_numpy(autoregression(0.9, 4, 400, 300))
    each = standard_errors(x[..., torch.linspace(0, 299, 256).long()], 1)
    spread = x.flatten(0, 1).std(0)
    worst = (each / spread[torch.linspace(0, 299, 256).long()]).max()
    assert torch.allclose(standard_errors(x, 1), worst * spread)


def test_pareto_k_and_ess_of_weights_of_known_tail() -> None:
    u = torch.rand(20_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for k in (0.3, 0.9):
        assert abs(pareto_k(-k * u.log()) - k) < 0.15  # u ** -k has a Pareto tail of shape k
    assert pareto_k(torch.zeros(100)) == -math.inf
    assert (
        pareto_k(u.clamp(max=0.5).log()) == -math.inf
    )  # half of the weights are equal to the largest
    assert pareto_k(torch.full((100,), -math.inf)) == math.inf
    assert abs(weight_ess(torch.tensor([0.0, 0.0, -math.inf])) - 2) < 1e-9
    assert weight_ess(torch.full((3,), -math.inf)) == 0


def test_weights_that_tie_at_their_bound_have_no_tail() -> None:
    start = Gauss(-1.0, d=1) | Gauss(2.0, d=1)
    x = start.sample(4096, generator=torch.Generator().manual_seed(0))
    weights = start(x) - poe.contrast(start, Gauss(0.0, 0.1, d=1))(
        x
    )  # at most 0, and 0 to rounding far from the unwanted part
    assert weights.max() <= 1e-6 and int((weights > -1e-6).sum()) > 1000
    assert pareto_k(weights) == -math.inf


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
    reasons = judge(evidence, 200, exact_draws=False)
    assert reasons[0].startswith("chains disagree") and all(
        "; try " in reason for reason in reasons
    )
    said = " ".join(reasons)
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
    assert judge(evidence, 200, exact_draws=True) == []
    broken = diagnose(chains, torch.full((4, 50), math.nan), 1)
    assert "200 draws are not finite" in judge(broken, 200, exact_draws=True)[0]
    heavy = Diagnostics(1.0, 1.0, 500.0, 500.0, 0, weight_ess=500.0, pareto_k=0.9)
    assert "Pareto k 0.90" in judge(heavy, 1000, exact_draws=False)[0]
    good = Diagnostics(1.0, 1.0, 500.0, 500.0, 0, stein_pvalue=0.002, pareto_k=0.9)
    assert judge(good, 1000, exact_draws=False) == []
