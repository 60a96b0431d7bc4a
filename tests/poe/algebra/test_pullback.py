"""Factors on f(x), on part of an event, and with values filled in."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

import poe
from experts import Beta, Normal
from poe.algebra.pullback import Pullback
from tests.poe.algebra.cases import F64, INF, ZERO, a, n1, squash, unit


def test_on_places_factors_on_parts() -> None:
    x = torch.randn(5, 2, 2, dtype=F64)
    pair = Normal(torch.tensor([0.0, 1.0], dtype=F64), 1.0, name="pair")
    energy = poe.on(pair, [3, 0], (2, 2)) & poe.on(a, [-2], (2, 2))
    expected = pair(torch.stack([x[:, 1, 1], x[:, 0, 0]], -1)) + a(x[:, 1, 0].unsqueeze(-1))
    torch.testing.assert_close(energy(x), expected)
    _, gradient = energy.value_and_grad(x)
    assert bool((gradient[:, 0, 1] == 0).all())
    assert str(energy) == "poe.on(pair, [3, 0], (2, 2)) & poe.on(a, [2], (2, 2))"
    squared = poe.on(unit, [1], (2,))
    assert squared(torch.tensor([[9.0, 0.5], [0.5, 9.0]], dtype=F64)).isfinite().tolist() == [
        True,
        False,
    ]
    for index in ([0, 0], [0, 7], [0]):
        with pytest.raises(ValueError, match="distinct|cannot fill"):
            poe.on(pair, index, (2, 2))


def test_fill_clamps_what_is_known() -> None:
    full = Normal(torch.tensor([[0.0, 1.0], [2.0, 3.0]], dtype=F64), 1.0, name="full")
    known = torch.tensor([[5.0, math.nan], [math.nan, 7.0]], dtype=F64)
    mask = torch.tensor([[True, False], [False, True]])
    energy = full @ poe.fill(known, mask)
    assert energy.event_shape == (2,)
    assert str(energy) == "full @ fill"
    y = torch.tensor([[0.3, 0.4]], dtype=F64)
    torch.testing.assert_close(energy(y), full(torch.tensor([[[5.0, 0.3], [0.4, 7.0]]], dtype=F64)))
    torch.testing.assert_close(
        energy.value_and_grad(y)[1], y - torch.tensor([[1.0, 2.0]], dtype=F64)
    )
    box = Beta(torch.full((2,), 2.0, dtype=F64), 2.0)
    assert (
        box @ poe.fill(torch.tensor([0.5, 0.0]), torch.tensor([True, False]))
    ).support.is_bounded  # type: ignore[attr-defined]
    assert (box @ poe.fill(torch.tensor([1.5, 0.0]), torch.tensor([True, False]))).proper is False
    with pytest.raises(ValueError, match="boolean mask of the shape of x_known"):
        poe.fill(known, mask[0])


def test_pullback_takes_its_shape_from_where_it_is_stated() -> None:
    class Decoder(nn.Module):
        event_shape = (1,)

        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(1, 2, dtype=F64)

        def forward(self, z: Tensor) -> Tensor:
            return self.layer(z)

    plane = Normal(ZERO, 1.0, name="plane")
    energy = plane @ Decoder()
    assert isinstance(energy, Pullback)
    assert energy.event_shape == (1,)
    assert len(list(energy.parameters())) == 2
    assert poe.pullback(plane, lambda z: z.expand(*z.shape[:-1], 2), (1,)).event_shape == (1,)
    assert (plane @ squash).event_shape == (2,)
    with pytest.raises(TypeError, match="for a product of energies write `a & b`"):
        plane @ plane
    with pytest.raises(TypeError, match="takes a function"):
        plane @ 3  # type: ignore[operator]


def test_what_a_map_sends_nowhere_has_no_density() -> None:
    on_log = n1 @ torch.log
    x = torch.tensor([-0.5, 2.0], dtype=F64)
    energy, gradient = on_log.value_and_grad(x)
    assert torch.equal(on_log(x), energy) and energy[0] == INF and gradient[0] == 0
    assert torch.allclose(energy[1], n1(x[1].log())) and torch.allclose(
        gradient[1], x[1].log() / x[1]
    )


@pytest.mark.parametrize("shape", [(0,), (), (2, 0), (3, 4)])
def test_factors_on_parts_take_any_batch(shape: tuple[int, ...]) -> None:
    assert poe.on(n1, [1], (2,))(torch.zeros(*shape, 2, dtype=F64)).shape == shape
    filled = Normal(torch.zeros(2), 1.0) @ poe.fill(torch.zeros(2), torch.tensor([True, False]))
    assert filled(torch.zeros(*shape, 1)).shape == shape


def test_nan_of_a_module_is_a_failure_and_not_the_end_of_a_domain() -> None:
    class Broken(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.where(x > 0.3, math.nan, x)

    target = Normal(0.0, 1.0) & Normal(0.0, 2.0) @ Broken()
    assert target(torch.tensor(1.0)).isnan() and target(torch.tensor(0.0)).isfinite()
    draws = poe.sample(target, 200, seed=0)
    assert not draws.trusted and any("an expert fails there" in reason for reason in draws.reasons)
