"""Mixtures: weights, draws and what is known of their mass."""

from __future__ import annotations

import math

import pytest
import torch

import poe
from experts import Normal
from poe.algebra.capabilities import Samples
from poe.algebra.mixture import Mixture
from tests.poe.algebra.cases import F64, LINE, Level, a, b, c, raw


def test_the_gradient_of_a_mixture_keeps_its_digits_beside_a_steep_part() -> None:
    steep, wide = (
        Normal(torch.tensor(0.0, dtype=F64), 1e-4),
        Normal(torch.tensor(0.0, dtype=F64), 1.0),
    )
    x = torch.tensor([3.3, -2.0, 1e-4, 5.1e-4, 1e-3], dtype=F64, requires_grad=True)
    for energy in (
        steep | wide,
        wide | steep,
        poe.mixture([steep, wide, steep], weights=[1, 2, 3]),
    ):
        (expected,) = torch.autograd.grad(energy(x).sum(), x)
        torch.testing.assert_close(energy.value_and_grad(x)[1], expected, rtol=1e-12, atol=0)
    assert float((steep | wide).score(x)[0]) == pytest.approx(-3.3, rel=1e-14)


def test_mixtures_weigh_what_they_know() -> None:
    weighted = poe.mixture([a, b], weights=[1, 3])
    expected = -torch.logaddexp(-a(LINE) + math.log(0.25), -b(LINE) + math.log(0.75))
    torch.testing.assert_close(weighted(LINE), expected)
    assert weighted.log_z == (0.0, 0.0)
    assert (a | b).log_z is not None
    assert (a | b).log_z.value == pytest.approx(math.log(2))  # type: ignore[union-attr]
    assert poe.mixture([a, poe.shift(b, 5.0)], weights=[0.5, 0.5]).log_z == (0.0, 0.0)
    shifted = poe.shift(b, 5.0)
    torch.testing.assert_close(poe.mixture([a, shifted], weights=[1, 3])(LINE), expected)
    assert str((a | b) | c) == "a | b | c"
    assert isinstance(a | b | c, Mixture)
    assert len((a | (b | c)).parts) == 3
    assert str(weighted) == "poe.mixture([a, b], weights=[0.25, 0.75])"
    with pytest.raises(ValueError, match="poe.normalize\\(raw\\)"):
        poe.mixture([a, raw], weights=[0.5, 0.5])
    for weights in ([0, 0], [-1, 2], [1, math.nan], [math.inf, 1]):
        with pytest.raises(ValueError, match="finite, not negative, and not all 0"):
            poe.mixture([a, b], weights=weights)
    with pytest.raises(ValueError, match="2 energies need as many weights, not 1"):
        poe.mixture([a, b], weights=[1])


def test_mixtures_draw_from_their_parts(generator: torch.Generator) -> None:
    left, right = Normal(-10.0, 1.0), Normal(10.0, 1.0)
    heavy = left | poe.shift(right, -math.log(3))
    assert heavy.can(Samples)
    x = heavy.sample(4000, generator=generator)  # type: ignore[operator]
    assert float((x > 0).double().mean()) == pytest.approx(0.75, abs=5 * math.sqrt(0.1875 / 4000))
    assert heavy.sample((2, 3), generator=generator).shape == (2, 3)  # type: ignore[operator]
    assert heavy.sample(0).shape == (0,)  # type: ignore[operator]
    assert not (a | raw).can(Samples)
    with pytest.raises(TypeError, match="use poe.sample"):
        (a | raw).sample(3)  # type: ignore[attr-defined]


def test_errors_of_log_z_propagate() -> None:
    rough = poe.shift(raw, 0.0, log_z=poe.Estimate(0.0, 0.1))
    mixed = (a | rough).log_z
    assert mixed is not None
    assert mixed.value == pytest.approx(math.log(2))
    assert mixed.standard_error == pytest.approx(0.05)
    moved = poe.shift(rough, 2.0).log_z
    assert moved == (-2.0, 0.1)


def test_a_part_that_stands_twice_errs_twice_the_same_way() -> None:
    part = poe.shift(Level(), 0.0, log_z=poe.Estimate(0.0, 0.1))
    other = poe.shift(Level(), 0.0, log_z=poe.Estimate(0.0, 0.1))
    for both in (part | part, poe.mixture([part, part], weights=[1, 1])):
        assert both.log_z is not None and both.log_z.standard_error == pytest.approx(0.1)
    assert (part | other).log_z.standard_error == pytest.approx(0.1 / 2**0.5)  # type: ignore[union-attr]
