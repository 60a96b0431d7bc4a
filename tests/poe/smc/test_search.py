from __future__ import annotations

import math

import pytest
import torch

import poe
from poe.mcmc.run import streams
from poe.smc.population import anneal
from poe.smc.resampling import estimate
from poe.smc.search import find_schedule
from poe.spaces.path import StandardNormal
from poe.spaces.transport import Transported, Unconstrained
from tests.poe.targets import Gauss, Raw

CPU = torch.device("cpu")


class Shear(Gauss):
    """A flow by hand: x = (z0, z1 + z0²), z standard normal."""

    def __init__(self) -> None:
        super().__init__(0.0)

    def log_prob(self, x):
        return super().log_prob(self.to_noise(x)[0])

    def sample(self, n, *, generator=None):
        return self.from_noise(super().sample(n, generator=generator))[0]

    def to_noise(self, x):
        return torch.stack([x[..., 0], x[..., 1] - x[..., 0] ** 2], -1), torch.zeros_like(x[..., 0])

    def from_noise(self, z):
        return torch.stack([z[..., 0], z[..., 1] + z[..., 0] ** 2], -1), torch.zeros_like(z[..., 0])


def grid(x: torch.Tensor) -> torch.Tensor:  # (*batch, 2) -> (*batch)
    """Nine normals of variance 0.3 at {-5, 0, 5}², equal weights: log Z is 0."""
    centres = torch.cartesian_prod(torch.tensor([-5.0, 0.0, 5.0]), torch.tensor([-5.0, 0.0, 5.0]))
    return math.log(9 * 2 * math.pi * 0.3) - (
        -(x.unsqueeze(-2) - centres).square().sum(-1) / 0.6
    ).logsumexp(-1)


def funnel(x: torch.Tensor) -> torch.Tensor:  # (*batch, 5) -> (*batch)
    """x0 ~ N(0, 2²), the others N(0, exp(x0)): log Z is 0."""
    first, rest = x[..., 0], x[..., 1:]
    spread = (
        (rest.square() * (-first).exp().unsqueeze(-1)).sum(-1) / 2
        + 2 * first
        + 2 * math.log(2 * math.pi)
    )
    return first.square() / 8 + math.log(2 * math.sqrt(2 * math.pi)) + spread


@pytest.mark.parametrize(
    ("function", "d", "map"),
    [pytest.param(grid, 2, False, marks=pytest.mark.slow), (funnel, 5, True)],
)
def test_a_target_of_which_nothing_is_known_is_reached(function, d: int, map: bool) -> None:
    target = Raw(function, d=d)
    z = []
    for seed in range(3):
        generators = streams(seed, 2, CPU)
        tuned = find_schedule(target, None, generators[0])
        path = tuned.schedule.path
        assert isinstance(path.end, Transported) is map
        moved = anneal(
            tuned.schedule,
            lambda n, g, s=path.start: s.sample(n, generator=g),
            [16],
            256,
            [generators[1]],
        )
        ratio = estimate(moved.log_ratio)
        z.append(abs(ratio.value) / max(ratio.standard_error, 0.02))
    assert (
        max(z) < 6
    )  # of student's t on 15 degrees of freedom: 3 values beyond 6 have probability 7e-5


def test_chains_and_particles_move_in_the_noise_of_a_flow() -> None:
    flow, tilt = Shear(), Raw(lambda x: -0.5 * x[..., 0] + 0.1 * x[..., 1], proper=True)
    # in z: N(0, 1) tilted by 0.5 z0 - 0.1 (z1 + z0²), so z0 ~ N(0.5/1.2, 1/1.2) and z1 ~ N(-0.1, 1)
    truth = 0.5 / 1.2, -0.1 + 1 / 1.2 + (0.5 / 1.2) ** 2
    for method in ("chains", "annealed", "tempered"):
        draws = poe.sample(flow & tilt, 2000, method=method, seed=0)
        error = draws.mcse()
        for i in (0, 1):
            assert abs(draws.x[:, i].mean() - truth[i]) < 4.5 * error[i], method
    tuned = find_schedule(flow & tilt, flow, streams(0, 1, CPU)[0])
    assert isinstance(tuned.schedule.path.start, StandardNormal) and isinstance(
        tuned.schedule.path.end, Transported
    )


def test_unconstrained_space_and_fitted_maps_compose() -> None:
    class Gamma(poe.Energy):
        proper = True

        def __init__(self) -> None:
            super().__init__((2,), support=torch.distributions.constraints.positive)

        def forward(self, x):
            return (x - 2 * x.log()).sum(-1)

    draws = poe.sample(Gamma(), 2000, seed=0)
    assert draws.method.startswith("annealed") and (draws.x > 0).all()
    assert abs(draws.x.mean() - 3) < 4.5 * float(draws.mcse().max())
    assert (
        draws.log_z is not None
        and abs(draws.log_z.value - 2 * math.lgamma(3)) < 5 * draws.log_z.standard_error
    )
    assert isinstance(Unconstrained(Gamma()), poe.Energy)
