from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from scipy.stats import ttest_1samp
from torch import Tensor

import poe
from poe.mcmc.run import streams
from poe.smc.population import anneal
from poe.smc.resampling import estimate
from poe.smc.tuning import tune
from poe.spaces.noise import noise_levels
from poe.spaces.path import StandardNormal, Stepped
from tests.poe.targets import Gauss, Raw


class Blurred(poe.Energy):
    """Normals of standard deviation sd at points of the plane, seen through noise: N(m, sd² + σ²)
    exactly, equal weights."""

    sigma_range = (0.02, 8.0)

    def __init__(
        self,
        means: Tensor,
        sd: float,
        sigma: float = 0.0,
        offset: float = 0.0,
        name: str | None = None,
    ) -> None:
        super().__init__((2,), name=name)
        self.means, self.sd, self.sigma, self.offset = means, sd, sigma, offset

    @property
    def proper(self) -> bool:
        return True

    @property
    def bounded(self) -> bool:
        return True

    def at(self, sigma: float) -> Blurred:
        return Blurred(self.means, self.sd, sigma, self.offset * (1 + 50 * sigma))

    def forward(self, x: Tensor) -> Tensor:  # (*batch, 2) -> (*batch)
        variance = self.sd**2 + self.sigma**2
        squares = (x.unsqueeze(-2) - self.means).square().sum(-1)
        return (
            self.offset
            + math.log(len(self.means) * 2 * math.pi * variance)
            - (-squares / (2 * variance)).logsumexp(-1)
        )


def ring(offset: float = 0.0) -> Blurred:
    angle = torch.arange(8) * (math.pi / 4)
    return Blurred(torch.stack([angle.cos(), angle.sin()], -1) * 5, 0.3, offset=offset)


def cross() -> Blurred:
    """Near four of the eight modes of the ring, at different distances."""
    return Blurred(torch.tensor([[5.5, 0.0], [0.0, 5.0], [-4.0, 0.0], [0.0, -5.2]]), 0.5)


def quadrature(energy: poe.Energy) -> tuple[float, Tensor]:
    """log Z and the shares of the four quadrants around the axes, by a fine grid."""
    axis = torch.linspace(-9, 9, 2401, dtype=torch.float64)
    x = torch.cartesian_prod(axis, axis)
    logs = -energy(x)
    total = logs.logsumexp(0)
    place = torch.atan2(x[:, 1], x[:, 0]).div(math.pi / 2).round().long() % 4
    shares = torch.stack([(logs[place == k] - total).logsumexp(0).exp() for k in range(4)])
    return float(total) + 2 * math.log(float(axis[1] - axis[0])), shares


def test_levels_of_noise_fall_to_the_target() -> None:
    target = ring() & cross()
    levels = noise_levels(target)
    assert levels is not None
    sigmas = [level.parts[0].sigma for level in levels]
    assert sigmas[0] == 8.0 and sigmas[-2] == pytest.approx(0.02) and sigmas[-1] == 0
    assert all(a > b for a, b in pairwise(sigmas))
    x = torch.randn(7, 2)
    assert torch.equal(levels[-1](x), target(x))
    assert noise_levels(Gauss(0.0)) is None
    assert (
        noise_levels(ring() & Raw(lambda x: x.sum(-1), proper=None)) is None
    )  # it is unknown whether a level is proper


def test_ranges_of_noise_that_do_not_meet_are_refused() -> None:
    narrow = cross()
    narrow.sigma_range = (10.0, 20.0)
    with pytest.raises(ValueError, match="no range in common"):
        noise_levels(ring() & narrow)


@pytest.mark.parametrize("offset", [pytest.param(0.0, marks=pytest.mark.slow), 3.0])
def test_weights_along_levels_of_noise_give_the_product_and_its_log_z(offset: float) -> None:
    """An offset that changes with the level is no part of the answer: the last level's counts."""
    target = ring(offset) & cross()
    log_z, shares = quadrature(target)
    draws = poe.sample(target, 4000, method="annealed", seed=1)
    assert "noise" in draws.plan
    assert (
        draws.log_z is not None
        and abs(draws.log_z.value - log_z) < 4 * draws.log_z.standard_error + 1e-9
    )
    assert draws.log_z.standard_error < 0.1
    assert draws.trusted
    place = (
        torch.atan2(draws.chains[..., 1], draws.chains[..., 0]).div(math.pi / 2).round().long() % 4
    )
    found = torch.stack(
        [(place == k).double().mean(1) for k in range(4)], 1
    )  # (populations, 4): populations are independent
    pvalues = ttest_1samp(found.numpy(), shares.numpy()).pvalue
    assert min(pvalues) > 0.001 / 4, (found.mean(0), shares)
    assert abs(poe.log_z(target, seed=2).value - log_z) < 0.05


def test_steps_of_a_path_carry_unbiased_weights() -> None:
    """E[Z estimate] = Z over three segments with few levels and hardly any moves; the way back
    bounds it from above."""
    start = StandardNormal(torch.zeros(2), 3 * torch.ones(2))
    middle, end = Gauss(1.0, 1.5), Raw(lambda x: (x - 2).square().sum(-1), name="end")  # Z = π
    path = Stepped.through([start, middle, Gauss(2.0, 1.0), end])
    generators = streams(0, 3, torch.device("cpu"))
    schedule = tune(path, start.sample(512, generator=generators[0]), generators[0]).schedule
    assert {level.segment for level in schedule.levels} == {0, 1, 2}
    assert schedule.steps[0][0] == 0 and all(
        before < level.beta for before, level in schedule.steps
    )
    few = type(schedule)(path, tuple(level._replace(moves=1) for level in schedule.levels))
    moved = anneal(few, lambda n, g: start.sample(n, generator=g), [256], 32, [generators[1]])
    found = estimate(moved.log_ratio)
    assert abs(found.value - math.log(math.pi)) < 5 * found.standard_error
    fine = schedule.refined(3)
    assert len(fine.levels) == 3 * len(schedule.levels)
    exact = 2 + torch.randn(2000, 2, generator=generators[2]) / math.sqrt(2)
    back = -fine.back(exact, generators[2])
    assert float(back.mean()) > math.log(math.pi) - 5 * float(back.std()) / math.sqrt(len(back))
    ratios = back.neg().exp()  # mean Z_0 / Z
    assert abs(float(ratios.mean()) - 1 / math.pi) < 5 * float(ratios.std()) / math.sqrt(
        len(ratios)
    )
