"""How parts are evaluated, and which of them is named where that fails."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import constraints

import poe
from experts import Function, Normal
from poe.algebra.energy import Energy
from tests.poe.algebra.cases import F64, LINE, ZERO, Linear, a, b, raw, squash


def test_a_fault_of_an_expert_is_not_hidden() -> None:
    faulty = Function(lambda x: x.sum(-1) * math.nan, (1,), name="faulty")
    for energy in (
        faulty & a,
        faulty | a,
        a | faulty,
        faulty - a,
        a - faulty,
        ~faulty,
        faulty**2 / a,
        faulty @ (lambda x: x),
    ):
        assert bool(energy(LINE).isnan().all()), str(energy)
        value, _ = energy.value_and_grad(LINE)
        assert bool(value.isnan().all()), str(energy)


def test_an_expert_that_returns_the_wrong_shape_is_named() -> None:
    class Wrong(Energy):
        def forward(self, x: Tensor) -> Tensor:
            return x

    with pytest.raises(ValueError, match="wrong returned shape \\(4, 1\\).*here \\(4,\\)"):
        Wrong((1,))(torch.zeros(4, 1))


def test_an_expert_that_is_used_twice_is_one_module() -> None:
    energy = (a & raw) | (a - b)
    keys = [key for key in energy.state_dict() if key.endswith("loc")]
    assert len(keys) == 3  # a twice, b once, each at its place in the tree
    assert len(poe.leaves(energy)) == 3
    assert energy.dtype == F64
    assert len({id(buffer) for buffer in energy.buffers()}) == len(list(energy.buffers()))


@pytest.mark.parametrize(
    "make", [Linear, lambda: Linear() & Normal(ZERO, 1.0), lambda: Linear() @ squash]
)
def test_another_precision_is_named(make: Callable[[], Energy]) -> None:
    energy, x = make(), torch.zeros(3, 2, dtype=F64)
    for call in (energy, energy.value_and_grad, energy.score):
        with pytest.raises(
            TypeError,
            match=r"net works in torch.float32, x is torch.float64: x.to\(torch.float32\), or .to",
        ):
            call(x)
    assert energy(x.float()).shape == (3,) and energy.to(F64)(x).shape == (3,)


def test_another_failure_stays_what_it_is() -> None:
    class Broken(Linear):
        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x[..., :1])

    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        Broken()(torch.zeros(3, 2))


class Wrong(poe.Energy):
    """A mistake in a forward: it sums over the batch too, or keeps an axis."""

    def __init__(self, shape: tuple[int, ...], support: Any = None) -> None:
        super().__init__((2,), name="wrong", support=support)
        self.shape = shape

    def forward(self, x: Tensor) -> Tensor:
        energy = x.square().sum(-1)
        return energy.sum() if self.shape == () else energy[..., None]


@pytest.mark.parametrize("shape", [(), (1,)])
@pytest.mark.parametrize("support", [None, constraints.independent(constraints.positive, 1)])
@pytest.mark.parametrize(
    "compose",
    [
        lambda s, a: s**2,
        lambda s, a: s & a,
        lambda s, a: a / s,
        lambda s, a: s | a,
        lambda s, a: a | s,
        lambda s, a: s - a,
        lambda s, a: a - s,
        lambda s, a: a & s @ torch.exp,
        lambda s, a: s @ torch.exp,
    ],
)
def test_a_part_of_another_shape_is_not_broadcast(compose: Any, shape: Any, support: Any) -> None:
    e = compose(Wrong(shape, support), Normal(torch.zeros(2), torch.ones(2)))
    x = torch.rand(5, 2)
    for of in (e, e.value_and_grad):
        with pytest.raises(ValueError, match="the energy wrong returned shape"):
            of(x)
