"""The search for modes and its parts: descents, the mixture of sizes, minima and their masses."""

from __future__ import annotations

import math
import re

import pytest
import torch
from scipy.stats import chi2, kstest, multivariate_t, norm, poisson
from torch import Tensor

import poe
from poe.smc.basins import missed, poisson_below, radius
from poe.smc.descent import descend
from poe.smc.flat import Flat
from poe.smc.mode_search import search
from poe.smc.scales import Profile, Scales
from poe.smc.unexplained import unexplained
from tests.poe.targets import Raw

LOG_2PI = math.log(2 * math.pi)


def normals(means: Tensor, sds: list[float], weights: list[float]) -> poe.Energy:
    """Σ_k w_k N(μ_k, s_k² I), normalised."""
    d, sd = means.shape[1], torch.tensor(sds)

    def energy(x: Tensor) -> Tensor:
        squares = (x.unsqueeze(-2) - means.to(x)).square().sum(-1) / (2 * sd.to(x).square())
        logs = torch.tensor(weights).log().to(x) - squares - d * sd.to(x).log() - d / 2 * LOG_2PI
        return -logs.logsumexp(-1)

    return Raw(energy, d=d, proper=True, name="normals")


def test_descents_reach_the_minimum_of_rosenbrocks_valley() -> None:
    flat = Flat(Raw(lambda x: (1 - x[..., 0]) ** 2 + 100 * (x[..., 1] - x[..., 0] ** 2) ** 2))
    x = 2 * torch.randn(64, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    ended = descend(flat.value_and_grad, x, torch.ones(64).double(), iterations=200)
    assert ended.arrived.double().mean() > 0.9
    # those that stopped on the floor of the valley are polished, or descend on, afterwards
    assert float((ended.energy[ended.arrived] < 0.1).double().mean()) > 0.5


def test_a_wall_ends_a_descent_and_is_no_minimum() -> None:
    flat = Flat(Raw(lambda x: torch.where(x[..., 0] < 0, math.inf, x.sum(-1)), d=1))
    ended = descend(flat.value_and_grad, torch.ones(4, 1).double(), torch.ones(4).double())
    assert not bool(ended.arrived.any())


@pytest.mark.parametrize("d", [1, 3])
def test_components_are_student_t_of_their_sizes(d: int) -> None:
    generator = torch.Generator().manual_seed(d)
    root = torch.eye(d).double() + 0.3 * torch.ones(d, d).double().tril(-1)
    profiles = (Profile(2.0, 3.0),)
    one = Scales(
        torch.zeros(1, 1), torch.ones(1, d), root[None], torch.Size([d]), torch.zeros(1), profiles
    )
    x = 3 * torch.randn(50, d, dtype=torch.float64, generator=generator)
    law = multivariate_t(torch.ones(d).numpy(), 4 * (root @ root.T).numpy(), df=3)
    assert torch.allclose(one.log_prob(x), torch.as_tensor(law.logpdf(x.numpy())).reshape(50))
    drawn = one.sample(4000, generator=generator).double()
    other = torch.as_tensor(law.rvs(4000, random_state=d)).reshape(4000, d)
    size = one.distances(drawn).squeeze(1), one.distances(other).squeeze(1)
    assert kstest(size[0].numpy(), size[1].numpy()).pvalue > 1e-4
    narrow = one.distances(drawn / 1.2).squeeze(1)  # a negative control: other draws are seen
    assert kstest(narrow.numpy(), size[1].numpy()).pvalue < 1e-4


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_hessian_is_that_of_the_formula(dtype: torch.dtype) -> None:
    matrix = torch.tensor([[2.0, 0.5], [0.5, 1.0]], dtype=dtype)
    target = Raw(lambda x: (x @ matrix.to(x) * x).sum(-1) / 2)
    found = Flat(target).hessian(torch.ones(2).double(), torch.ones(2).double())
    assert torch.allclose(found, matrix.double(), atol=1e-5)


def test_all_modes_are_found_with_their_masses() -> None:
    """Modes whose sizes differ by 5 and which lie up to 20 of the widest apart."""
    means = torch.tensor([[0.0, 0, 0], [20, 0, 0], [0, -9, 3]])
    weights = [0.5, 0.3, 0.2]
    target = normals(means, [1.0, 0.5, 0.2], weights)
    found = search(target, [], torch.Generator().manual_seed(0))
    assert found.record.minima == found.record.counted == 3 and found.record.starts >= 4096
    for basin in found.basins:
        which = int((basin.minimum.x - means).norm(dim=1).argmin())
        # of a normal, .999 lie in the region
        assert abs(math.exp(basin.log_mass) - 0.999 * weights[which]) < 5 * basin.error + 0.01
    assert found.start is not None and abs(found.start.log_mean) < 0.05


def test_draws_that_lack_a_mode_are_told_of_it() -> None:
    means, weights = torch.tensor([[0.0, 0], [8, 8]]), [0.7, 0.3]
    found = search(normals(means, [1.0, 1.0], weights), [], torch.Generator().manual_seed(1))
    generator = torch.Generator().manual_seed(2)
    which = torch.multinomial(torch.tensor(weights), 400, True, generator=generator)
    whole = means[which] + torch.randn(400, 2, generator=generator)
    assert found.judged(whole, 400.0, 0.0).missed == ()
    (reason,) = found.judged(whole[which == 0], 280.0, 0.0).missed
    assert "a mode at (8, 8)" in reason
    share = float(re.search(r"with ([.\d]+) of the mass", reason)[1])  # less three standard errors
    assert 0.2 < share <= 0.31


def test_points_lower_than_the_minima_explain_lie_in_the_other_mode() -> None:
    means = torch.tensor([[0.0, 0, 0], [6, 0, 0]])
    flat = Flat(normals(means, [1.0, 0.2], [0.5, 0.5]))
    flat.measured(torch.zeros(1, 3).double())
    first = search(normals(means[:1], [1.0], [1.0]), [], torch.Generator().manual_seed(0))
    known = [basin.minimum for basin in first.basins]
    x = unexplained(flat, known, 100_000, 16, torch.Generator().manual_seed(0))
    lower = x[(x - means[1]).norm(dim=1) < 2.5]
    assert len(lower) > 0.5 * len(x) > 0


def test_the_region_and_the_poisson_test_have_their_probabilities() -> None:
    for d in (1, 4, 30):
        assert abs(float(chi2.cdf(radius(d), d)) - 0.999) < 3e-4
    assert math.isclose(poisson_below(3, 7.5), float(poisson.cdf(3, 7.5)), rel_tol=1e-9)
    assert missed([], torch.zeros(5, 2), 5.0, 0.0, "") == ()
    assert norm.isf(0.001) == pytest.approx(3.0902, abs=1e-4)
