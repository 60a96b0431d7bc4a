from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats import norm

from poe.diagnostics.convergence import ess, rhat, standard_errors
from poe.diagnostics.evidence import diagnose


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


def test_huge_events_get_the_smallest_ess() -> None:
    x = torch.from_numpy(autoregression(0.9, 4, 400, 300))
    each = standard_errors(x[..., torch.linspace(0, 299, 256).long()], 1)
    spread = x.flatten(0, 1).std(0)
    worst = (each / spread[torch.linspace(0, 299, 256).long()]).max()
    assert torch.allclose(standard_errors(x, 1), worst * spread)


def test_spins_that_are_evenly_split_have_a_finite_rhat() -> None:
    """|x - median| is constant there, and its R-hat 0 / 0."""
    x = np.where(np.arange(64) % 2 == 0, 1.0, -1.0)
    rng = np.random.default_rng(0)
    values = np.stack([rng.permutation(x) for _ in range(16)])[..., None]
    assert rhat(values)[0] < 1.05
