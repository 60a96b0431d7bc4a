from __future__ import annotations

import math

import torch

import poe
from poe.diagnostics.weights import hidden_share, pareto_k, pareto_smoothed, weight_ess
from tests.poe.targets import Gauss


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


def test_the_mass_at_failed_draws_is_that_beside_them() -> None:
    """Draws of t with 2 degrees of freedom for a normal target, in three dimensions: NaN beyond a
    plane hides the normal's mass there; far away it hides none, however many draws fail."""
    generator = torch.Generator().manual_seed(0)
    normal = torch.randn(20_000, 3, dtype=torch.float64, generator=generator)
    chi = torch.randn(20_000, 2, dtype=torch.float64, generator=generator).square().sum(1)
    x = normal / (chi / 2).sqrt().unsqueeze(1)
    square = x.square().sum(1)
    logs = -0.5 * square + 2.5 * (square / 2).log1p()
    for edge in (-1.0, 0.0, 1.0, 1.5):
        failed = x[:, 0] > edge
        hidden = hidden_share(x, torch.where(failed, -torch.inf, logs), failed)
        mass = 1 - float(torch.special.ndtr(torch.tensor(edge)))
        assert mass / 3 < hidden < 4 * mass
    far = x[:, 0].abs() > 6
    assert far.sum() > 100 and hidden_share(x, torch.where(far, -torch.inf, logs), far) < 1e-5
    assert hidden_share(x, logs, far & False) == 0.0
    assert hidden_share(x, torch.full_like(logs, -torch.inf), x[:, 0] < 1e9) == 1.0


def test_k_of_many_equal_weights_is_that_of_what_is_above_them() -> None:
    """Weights of discrete points have ties at the threshold of the tail: the fit is made to what
    is above, and smoothing gives no NaN."""
    g = torch.Generator().manual_seed(0)
    tail = torch.rand(100, generator=g, dtype=torch.float64).log().neg() * 0.3  # Pareto, k = .3
    logs = torch.cat([torch.zeros(4900, dtype=torch.float64), tail])
    smooth, k = pareto_smoothed(logs)
    assert bool(smooth.isfinite().all()) and abs(k - 0.3) < 0.35
    few = torch.cat([torch.zeros(4999, dtype=torch.float64), torch.tensor([1.0]).double()])
    assert pareto_k(few) == -math.inf
    one = torch.cat([torch.zeros(4999, dtype=torch.float64), torch.tensor([8.0]).double()])
    assert pareto_k(one) == math.inf  # 37 % of the weight
