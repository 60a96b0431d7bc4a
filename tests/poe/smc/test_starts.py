from __future__ import annotations

import math

import pytest
import torch
from scipy import integrate
from scipy.stats import dirichlet

import poe
from experts import Dirichlet, Normal
from poe.algebra.mixture import Mixture
from poe.smc.starts import all_weighed, nearest, weigh
from poe.spaces.structure import candidates
from tests.poe.targets import Gauss, Raw


def test_weights_of_a_start_are_importance_weights() -> None:
    start = weigh(Gauss(0.0, 1.0), Gauss(0.5, 0.8), torch.Generator().manual_seed(0), n=20_000)
    weights = start.log_weights.exp()
    assert abs(weights.mean() - 1) < 4.5 * weights.std() / math.sqrt(20_000)
    assert start.failed == 0 and 0 < start.ess < 20_000


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
    start = nearest(all_weighed([NEAR, WIDE], target, torch.Generator().manual_seed(0)))
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
    assert draws.trusted and math.isnan(draws.diagnostics.stein_pvalue)
    assert bool((draws.x <= 0.5).all())
