from __future__ import annotations

import math

import pytest
import torch
from scipy import integrate
from scipy.stats import dirichlet

import poe
from experts import Dirichlet, Normal
from poe.algebra.mixture import Mixture
from poe.mcmc.run import streams
from poe.smc.population import anneal
from poe.smc.resampling import estimate
from poe.smc.search import find_schedule
from poe.smc.starts import nearest, weigh
from poe.spaces.path import StandardNormal
from poe.spaces.structure import candidates
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


def test_parts_that_draw_are_found_wherever_they_stand() -> None:
    a, b, c = Gauss(0.0, name="a"), Gauss(1.0, name="b"), Raw(lambda x: x.sum(-1))
    assert candidates(a & b & c) == [a, b]
    assert candidates((a - c) & ~b) == [a]
    assert candidates(c) == []


def test_weights_of_a_start_are_importance_weights() -> None:
    start = weigh(Gauss(0.0, 1.0), Gauss(0.5, 0.8), torch.Generator().manual_seed(0), n=20_000)
    weights = start.log_weights.exp()
    assert abs(weights.mean() - 1) < 4.5 * weights.std() / math.sqrt(20_000)
    assert start.failed == 0 and 0 < start.ess < 20_000


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


SHARP = poe.as_energy(
    torch.distributions.Laplace(torch.tensor([0.0]), torch.tensor([1.0])), name="sharp"
)
NEAR, FAR = (
    Normal(torch.tensor([0.0]), 1.0, name="near"),
    Normal(torch.tensor([5.0]), 0.3, name="far"),
)
WIDE = Normal(torch.tensor([0.0]), 10.0, name="wide")
SUMS = {  # whose parts have no log Z of their own, and lie apart
    "two products": (NEAR & SHARP) | (FAR & SHARP),
    "a product and a density": (NEAR & SHARP) | FAR,
    "within a product": ((NEAR & SHARP) | (FAR & SHARP)) & WIDE,
    "to a power": ((NEAR & SHARP) | (FAR & SHARP)) ** 0.9,
    "wanted": poe.contrast((NEAR & SHARP) | (FAR & SHARP), Normal(torch.tensor([1.0]), 1.0), 3.0),
}


@pytest.mark.filterwarnings("ignore::poe.ImproperWarning")  # nobody knows of the power
@pytest.mark.parametrize("name", SUMS)
def test_a_sum_starts_from_each_of_its_parts(name: str) -> None:
    """Against quadrature; family-wise level 1e-3 over ten z-tests. The start nearest to one part
    alone would miss up to 99 % of Z."""
    target = SUMS[name]
    x = torch.linspace(-30, 30, 600_001).unsqueeze(-1)
    logs = -target(x).double()
    log_z, mean = (
        float(logs.logsumexp(0)) + math.log(60 / 600_000),
        float(logs.softmax(0) @ x[:, 0].double()),
    )
    found = poe.log_z(target, seed=0)
    assert abs(found.value - log_z) < 4.1 * found.standard_error and found.standard_error < 0.05
    draws = poe.sample(target, 4000, seed=1)
    assert draws.trusted and abs(float(draws.x.mean()) - mean) < 4.1 * float(
        draws.x.std()
    ) / math.sqrt(draws.diagnostics.ess_bulk)


def test_a_sum_of_which_one_part_does_not_draw_has_no_start() -> None:
    raw = Raw(lambda x: (x**4).sum(-1), d=1, name="raw")
    assert candidates(NEAR | raw) == [] and candidates((NEAR | raw) & WIDE) == [WIDE]
    (both,) = candidates((NEAR & raw) | (FAR & raw))
    assert isinstance(both, Mixture) and both.parts == (NEAR, FAR)


def test_a_start_that_misses_what_another_has_met_does_not_count() -> None:
    """The narrow one has even weights on the mode that it knows."""
    target = poe.mixture([NEAR, FAR], weights=[0.5, 0.5])
    start = nearest([NEAR, WIDE], target, torch.Generator().manual_seed(0))
    alone = weigh(NEAR, target, torch.Generator().manual_seed(0))
    assert start is not None and start.density is WIDE and alone.ess > start.ess


def test_a_start_may_draw_outside_a_part_of_the_support() -> None:
    """A Dirichlet whose shares are at most a half each: ∫∫ 8 p(x, y) over x, y <= 1/2 <= x + y."""
    shares = Dirichlet(torch.tensor([2.0, 3.0, 4.0]))
    box = poe.as_energy(torch.distributions.Uniform(torch.zeros(3), torch.full((3,), 0.5)))
    exact, _ = integrate.dblquad(
        lambda y, x: 8 * dirichlet([2, 3, 4]).pdf([x, y, 1 - x - y]), 0, 0.5, lambda x: 0.5 - x, 0.5
    )
    found = poe.log_z(shares & box, seed=0)
    assert abs(found.value - math.log(exact)) < 4 * found.standard_error
    draws = poe.sample(shares & box, 500, seed=0)
    assert (
        draws.trusted
        and draws.diagnostics.gradients == 0
        and math.isnan(draws.diagnostics.stein_pvalue)
    )
    assert bool((draws.x <= 0.5).all())
