from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import poe
from poe.diagnostics.narrow_end import NarrowEnd
from poe.smc.narrow_end import narrow_end
from poe.smc.narrow_start import MIN_ROUNDS, WEIGHED, narrow_start
from poe.smc.starts import weigh

F64 = torch.float64
LOG_2PI = math.log(2 * math.pi)


class Funnel(poe.Energy):
    """v ~ N(0, 9), x_i ~ N(0, e^v), i = 1 ... d - 1; log Z is 0 by default (Neal 2003)."""

    proper = bounded = True

    def __init__(self, d: int = 10, dtype: torch.dtype = F64, log_z: float = 0.0) -> None:
        super().__init__((d,))
        self.d, self.constant = d, math.log(3) + d / 2 * LOG_2PI - log_z
        self.register_buffer("like", torch.zeros(1, dtype=dtype))

    def forward(self, x: Tensor) -> Tensor:
        v, rest = x[..., 0], x[..., 1:].square().sum(-1)
        return v.square() / 18 + (self.d - 1) / 2 * v + rest * (-v).exp() / 2 + self.constant


def cut(n: int, d: int, above: float, generator: torch.Generator) -> Tensor:
    """Exact draws of those with v > above."""
    z = torch.randn(4 * n, d, generator=generator, dtype=F64)
    x = torch.cat([3 * z[:, :1], z[:, 1:] * (1.5 * z[:, :1]).exp()], 1)
    return x[x[:, 0] > above][:n]


@pytest.mark.parametrize("dtype", [F64, torch.float32])
def test_the_start_reaches_the_neck_that_the_draws_lack(dtype):
    generator, target = torch.Generator().manual_seed(0), Funnel(dtype=dtype)
    x = cut(1000, 10, -1.0, generator).to(dtype)  # 37 % of the mass is missing
    record = narrow_end(target, x, generator)
    assert record is not None and record.fires
    found = narrow_start(target, x, record, generator)
    assert found is not None and found.start.ess > 1000 and found.start.pareto_k < 0.7
    assert found.energies >= MIN_ROUNDS * WEIGHED
    logs, v = found.start.log_weights, found.start.x[:, 0].double()
    assert found.start.x.dtype == dtype
    error = 1 / math.sqrt(found.start.ess)
    assert abs(float(logs.logsumexp(0)) - math.log(len(logs))) < 4 * error  # log Z is 0
    for below, exact in ((-3.0, 0.15866), (-6.0, 0.02275), (3.0, 0.84134)):
        share = float(logs.softmax(0)[v < below].sum())
        assert abs(share - exact) < 4 * error * math.sqrt(exact)


def test_the_density_is_that_of_its_draws():
    generator, target = torch.Generator().manual_seed(1), Funnel(3)
    x = cut(1000, 3, -3.0, generator)
    record = NarrowEnd(0.0, 0, -1, direction=torch.tensor([-1.0, 0, 0], dtype=F64))
    found = narrow_start(target, x, record, generator)
    assert found is not None
    weighed = weigh(found.start.density, target, generator, 20_000)  # other draws, by other code
    error = 1 / math.sqrt(weighed.ess)
    assert abs(float(weighed.log_weights.logsumexp(0)) - math.log(20_000)) < 4 * error
    wrong = weigh(found.start.density, Funnel(3, log_z=0.2), generator, 20_000)
    assert abs(float(wrong.log_weights.logsumexp(0)) - math.log(20_000)) > 4 * error


def test_nothing_is_found_without_a_direction_or_in_many_dimensions():
    generator = torch.Generator().manual_seed(0)
    x = cut(100, 41, -3.0, generator)
    assert narrow_start(Funnel(41), x, NarrowEnd(1.0), generator) is None
    direction = torch.eye(41, dtype=F64)[0]
    assert narrow_start(Funnel(41), x, NarrowEnd(0.0, 0, direction=direction), generator) is None
