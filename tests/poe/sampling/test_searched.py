"""What the search for modes and the look into the narrow end say of draws, end to end."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.stats import binom, f, norm
from torch import Tensor

import poe
from tests.poe.targets import Raw

LOG_2PI = math.log(2 * math.pi)


def broad_and_narrow(d: int, distance: float, sd: float) -> poe.Energy:
    """N(0, I)/2 + N(distance away, sd² I)/2, normalised."""
    centre = distance * torch.ones(d) / math.sqrt(d)

    def energy(x: Tensor) -> Tensor:
        broad = -x.square().sum(-1) / 2
        narrow = -(x - centre).square().sum(-1) / (2 * sd**2) - d * math.log(sd)
        return -torch.logaddexp(broad, narrow) + d / 2 * LOG_2PI + math.log(2)

    return Raw(energy, d=d, proper=True, name="pair")


@pytest.mark.parametrize(("d", "distance", "sd"), [(4, 5.0, 0.2), (2, 3.0, 0.03), (5, 0.0, 0.1)])
def test_a_narrow_mode_beside_a_broad_one_has_its_half(d, distance, sd) -> None:
    draws = poe.sample(broad_and_narrow(d, distance, sd), 1000, seed=0)
    centre = distance * torch.ones(d) / math.sqrt(d)
    # half of the mass is the narrow mode's, of which a ball of 5 sd √d has all but 1e-9
    reach = 5 * sd * math.sqrt(d)
    inside = int(((draws.x - centre).norm(dim=1) < reach).sum())
    broad = float(torch.randn(200_000, d).sub(centre).norm(dim=1).lt(reach).double().mean())
    share = 0.5 + 0.5 * broad
    assert draws.trusted and draws.search is not None and not draws.search.missed
    size = draws.diagnostics.ess_bulk
    assert abs(inside / 1000 - share) < norm.isf(5e-5) * math.sqrt(share * (1 - share) / size)
    assert draws.log_z is not None
    assert abs(draws.log_z.value) < 4.5 * draws.log_z.standard_error + 1e-3


def test_the_verdict_states_the_search_or_its_absence() -> None:
    target = broad_and_narrow(2, 3.0, 0.3)
    draws = poe.sample(target, 400, seed=0)
    assert draws.search is not None and draws.search.starts >= 128
    assert f"{draws.search.starts:,} starts ended in 2 minima" in draws.verdict
    named = poe.sample(target, 400, seed=0, method="annealed")
    assert named.search is None and "no mode lies elsewhere" in named.conditions.values()


def test_tails_of_a_student_t_have_their_share() -> None:
    """t with 2 degrees of freedom in 5 dimensions; |x|² / 5 has the law F(5, 2)."""
    law = lambda x: 3.5 * torch.log1p(x.square().sum(-1) / 2)  # noqa: E731
    draws = poe.sample(Raw(law, d=5, proper=True, name="t"), 1000, seed=0)
    for radius in (10.0, 30.0):
        share = f.sf(radius**2 / 5, 5, 2)
        beyond = int((draws.x.norm(dim=1) > radius).sum())
        low, high = binom.interval(1 - 1e-4, int(draws.diagnostics.ess_bulk), share)
        assert low <= beyond * draws.diagnostics.ess_bulk / 1000 <= high + 1


def test_an_error_of_an_expert_is_not_taken_for_a_missing_gradient() -> None:
    def picky(x: Tensor) -> Tensor:
        if x.numel() > 64:
            raise TypeError("too many points for me")
        return x.square().sum(-1) / 2

    with pytest.raises(TypeError, match="too many points for me"):
        poe.sample(Raw(picky, proper=True, name="picky"), 100, seed=0)
