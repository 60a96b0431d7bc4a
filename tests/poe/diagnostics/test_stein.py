from __future__ import annotations

import math

import pytest
import torch
from scipy.stats import binom
from torch.distributions import constraints

import poe
from poe.diagnostics.stein import stein_kernel, stein_test
from tests.poe.targets import Gauss, Raw, Skewed

LOW, HIGH = binom.ppf(
    [0.0005, 0.9995], 200, 0.05
)  # rejections in 200 tests at 5 %: outside once in 1,000


class Gamma(poe.Density):
    """Gamma(shape, 1) on (0, inf)."""

    def __init__(self, shape: float) -> None:
        super().__init__((1,), support=constraints.positive)
        self.shape = shape

    def log_prob(self, x):
        return ((self.shape - 1) * x.log() - x - math.lgamma(self.shape)).sum(-1)

    def sample(self, n, *, generator=None):
        shape = (n,) if isinstance(n, int) else tuple(n)
        return torch._standard_gamma(torch.full((*shape, 1), self.shape), generator=generator)


def autoregression(
    rho: float, chains: int, draws: int, d: int, generator: torch.Generator
) -> torch.Tensor:
    """Stationary chains with law N(0, I) and lag-one correlation rho, (chains, draws, d)."""
    noise = torch.randn(draws, chains, d, generator=generator)
    path = [noise[0]]
    for step in noise[1:]:
        path.append(rho * path[-1] + math.sqrt(1 - rho**2) * step)
    return torch.stack(path, 1)


def rejections(energy: poe.Energy, make) -> int:
    """How many of 200 independent sets of draws are rejected at 5 %."""
    tests = (
        stein_test(energy, make(torch.Generator().manual_seed(i)), bootstrap=299, seed=i)
        for i in range(200)
    )
    return sum(test.pvalue <= 0.05 for test in tests)


def test_the_kernel_is_the_stein_operator_applied_to_both_sides() -> None:
    generator = torch.Generator().manual_seed(0)
    x, s = (torch.randn(5, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    h = stein_kernel(x, s)
    y, s = (x - x.mean(0)) / x.std(0), s * x.std(0)
    c2 = torch.pdist(y).square().median() / 9
    for i, j in [(0, 1), (3, 2), (4, 4)]:
        both = torch.cat([y[i], y[j]])
        k = lambda z: (c2 + (z[:3] - z[3:]).square().sum()).rsqrt()  # noqa: E731
        slope, curvature = (
            torch.autograd.functional.jacobian(k, both),
            torch.autograd.functional.hessian(k, both),
        )
        expected = (
            s[i] @ s[j] * k(both) + s[i] @ slope[3:] + s[j] @ slope[:3] + curvature[:3, 3:].trace()
        )
        assert torch.isclose(h[i, j], expected, rtol=1e-10)


@pytest.mark.parametrize(
    "target",
    [Gauss(1.0, 2.0, d=10), Skewed(), Gamma(1.5)],
    ids=lambda target: type(target).__name__,
)
def test_exact_draws_are_rejected_as_often_as_the_level_says(target: poe.Density) -> None:
    assert (
        LOW <= rejections(target, lambda generator: target.sample(150, generator=generator)) <= HIGH
    )


@pytest.mark.parametrize(("chains", "draws"), [(2, 100), (40, 5)])
def test_draws_that_depend_on_each_other_keep_the_level_as_chains_and_not_as_a_heap(
    chains: int, draws: int
) -> None:
    target, make = (
        Gauss(0.0, d=5),
        lambda generator: autoregression(0.5, chains, draws, 5, generator),
    )
    assert LOW <= rejections(target, make) <= HIGH
    assert rejections(target, lambda generator: make(generator).flatten(0, 1)) > HIGH


@pytest.mark.parametrize(
    "change",
    [lambda x: 1.3 * x, lambda x: 0.7 * x, lambda x: x + 0.3],
    ids=["wide", "narrow", "shifted"],
)
def test_wrong_scale_and_mean_are_seen(change) -> None:
    target = Gauss(0.0, d=4)
    draws = target.sample((20, 200), generator=torch.Generator().manual_seed(1))
    assert stein_test(target, change(draws)).pvalue < 0.001 < stein_test(target, draws).pvalue


def test_wrong_draws_on_a_constrained_support_are_seen_in_the_reals() -> None:
    draws = Gamma(2.0).sample(500, generator=torch.Generator().manual_seed(2))
    assert stein_test(Gamma(2.0), draws).pvalue > 0.01
    assert stein_test(Gamma(1.5), draws).pvalue < 0.001


def test_weights_of_distant_modes_are_not_seen() -> None:
    target = Gauss(-10.0) | Gauss(10.0)
    generator = torch.Generator().manual_seed(3)
    draws = torch.cat(
        [Gauss(-10.0).sample(50, generator=generator), Gauss(10.0).sample(450, generator=generator)]
    )
    assert stein_test(target, draws).pvalue > 0.001


def test_at_most_so_many_scores_are_spent() -> None:
    seen = []

    def counted(x: torch.Tensor) -> torch.Tensor:
        seen.append(len(x))
        return x.square().sum(-1) / 2

    for shape in [(10_000, 2), (8, 1000, 2), (2000, 3, 2)]:
        stein_test(Raw(counted), torch.randn(shape))
    assert len(seen) == 3 and max(seen) <= 500 and min(seen) > 490


def test_what_has_no_meaning_is_nan_and_what_has_no_score_is_refused() -> None:
    target = Gauss(0.0)
    outside = Gamma(2.0).sample(100)
    outside[3] = -1.0
    failing = Raw(lambda x: torch.where(x[..., 0] > 0, torch.nan, x.square().sum(-1)))
    for energy, x in [
        (target, torch.randn(0, 2)),
        (target, torch.randn(0, 5, 2)),
        (target, torch.randn(19, 2)),
        (target, torch.full((50, 2), 0.1)),
        (failing, torch.randn(50, 2)),
        (Gamma(2.0), outside),
    ]:
        assert all(map(math.isnan, stein_test(energy, x)))
    with pytest.raises(ValueError, match=r"x has shape \(50, 3\)"):
        stein_test(target, torch.randn(50, 3))
    with pytest.raises(ValueError, match="discrete space, where there is no score"):
        stein_test(poe.create("bernoulli", probs=[0.3]), torch.ones(50, 1))


def test_scalar_events_and_the_seed() -> None:
    class Scalar(poe.Energy):
        def forward(self, x):
            return x.square() / 2

    draws = torch.randn(4, 50, generator=torch.Generator().manual_seed(4))
    assert stein_test(Scalar(()), draws) == stein_test(Scalar(()), draws)
    assert stein_test(Scalar(()), draws).pvalue > 0.001 > stein_test(Scalar(()), 3 * draws).pvalue
