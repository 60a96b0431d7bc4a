"""The same density with another constant."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import poe
from experts import Normal
from poe.algebra.capabilities import Samples
from poe.algebra.energy import Energy
from tests.poe.algebra.cases import INF, LINE, Level, a


def test_shift_is_the_same_density_with_another_constant() -> None:
    moved = poe.shift(a, 2.0)
    torch.testing.assert_close(moved(LINE), a(LINE) + 2)
    assert moved.log_z == (-2.0, 0.0)
    assert poe.shift(moved, -2.0) is a
    assert str(moved) == "poe.shift(a, 2.0)"
    assert moved.can(Samples)
    with pytest.raises(ValueError, match="finite number of nats"):
        poe.shift(a, INF)


def test_a_stated_log_z_is_not_that_of_another_level() -> None:
    level = poe.shift(Level(), math.log(2 * math.pi), log_z=poe.Estimate(0.0, 0.001))
    assert level.at(0.0) is level and level.at(3.0).log_z is None
    other = Normal(torch.zeros(2), 1.0)
    mixed = poe.mixture([level, other], weights=[1, 3])
    assert mixed.at(0.0).log_z == poe.Estimate(0.0, 0.00025)
    x = torch.randn(20, 2)
    raw = -torch.stack(
        [math.log(0.25) - Level(3.0)(x) - math.log(2 * math.pi), math.log(0.75) - other(x)]
    ).logsumexp(0)
    assert mixed.at(3.0).log_z is None and torch.allclose(mixed.at(3.0)(x), raw)
    for sigma in (-1.0, math.nan, math.inf, "x"):
        with pytest.raises(ValueError, match="finite number of at least 0"):
            other.at(sigma)  # type: ignore[arg-type]


def test_a_stated_log_z_is_not_that_of_another_context() -> None:
    class Given(Energy):
        def __init__(self, scale: float = 1.0) -> None:
            super().__init__((1,))
            self.scale = scale

        takes_context = True

        def forward(self, x: Tensor) -> Tensor:
            return (x / self.scale).square().sum(-1) / 2

        def given(self, context: float) -> Energy:
            return Given(context)

    known = poe.normalize(Given(), log_z=poe.Estimate(0.5 * math.log(2 * math.pi)))
    assert known.log_z == poe.Estimate(0.0) and known.given(10.0).log_z is None
    with pytest.raises(ValueError, match="poe.normalize"):
        poe.mixture([known, Normal(torch.zeros(1), 1.0)], weights=[1, 1]).given(10.0)
