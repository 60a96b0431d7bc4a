"""Products: flat, merged, with powers that learn."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import poe
from experts import Beta, Function, Normal
from poe.algebra.product import Product
from tests.poe.algebra.cases import F64, INF, LINE, NAMES, Counting, a, b, c, n1, raw, unit


def test_products_are_flat_merged_and_evaluated_once() -> None:
    one = Counting()
    assert isinstance(one & one, Product)
    assert (one & one).powers == (2.0,)  # type: ignore[attr-defined]
    (one & one & one)(LINE)
    assert one.calls == 1
    assert ((a & b) & (c & a)).parts == (a, b, c)
    assert str((a & b) ** 2 & a) == "a ** 3 & b ** 2"
    assert a**1 is a
    assert poe.product([a]) is a
    assert (a**2) ** 0.5 is a
    assert str(poe.product([a, b, c], powers=1 / 3)) == "(a & b & c) ** (1/3)"


def test_a_product_holds_the_graph_of_one_expert_at_a_time() -> None:
    Counting.most = 0
    factors = [Counting() for _ in range(6)]
    energy = poe.product(factors)
    energy.value_and_grad(LINE)
    assert Counting.most == 1
    assert all(factor.calls == 1 for factor in factors)
    Counting.most = 0
    poe.mixture(factors).value_and_grad(LINE)
    assert Counting.most == 1
    energy(LINE.clone().requires_grad_())  # forward keeps the graphs, for training
    assert Counting.most == 6


def test_cancelling_keeps_the_support() -> None:
    assert a & b & ~b is a
    assert (unit & a) / a is unit
    kept = a & unit / unit
    assert kept is not a
    assert bool((kept(LINE)[(LINE < 0).flatten()] == INF).all())
    inside = ((LINE >= 0) & (LINE <= 1)).flatten()
    assert torch.equal(kept(LINE)[inside], a(LINE)[inside])
    assert str(kept) == "a & unit ** 0"
    whole = unit / unit
    assert whole(torch.tensor([[0.5], [2.0]], dtype=F64)).tolist() == [0.0, INF]
    assert whole.proper is True


def test_zero_over_zero_is_zero_and_zero_wins_over_infinity() -> None:
    tall, low = Beta(torch.tensor(0.5), 1.0), Beta(torch.tensor(2.0), 1.0)
    ends = torch.tensor([0.0, 1.0])
    for energy in (
        tall & low,
        low & tall,
        tall - low,
        low - tall,
        tall | low,
        ~tall,
        tall / low,
        tall - tall,
    ):
        value, gradient = energy.value_and_grad(ends)
        assert not bool(value.isnan().any()), str(energy)
        assert not bool(energy(ends).isnan().any()), str(energy)
        assert not bool(gradient.isnan().any()), str(energy)
    assert (tall & low)(ends)[0] == INF
    assert (tall / low)(ends)[0] == INF


def test_learnable_powers_learn_and_stay_their_own_terms() -> None:
    power = nn.Parameter(torch.tensor(2.0))
    energy = a**power & a & raw
    assert isinstance(energy, Product)
    assert energy.powers == (2.0, 1.0, 1.0)
    assert list(energy.parameters()) == [power]
    optimiser = torch.optim.SGD(energy.parameters(), lr=0.05)
    before = energy(LINE).mean().item()
    for _ in range(3):
        optimiser.zero_grad()
        energy(LINE).mean().backward()
        optimiser.step()
    assert energy(LINE).mean().item() < before
    assert power.item() < 2
    assert energy.value_and_grad(LINE)[0].requires_grad is False
    assert ((a & b) ** power).powers == pytest.approx((power.item(),) * 2)  # type: ignore[attr-defined]
    assert (~(a**power)).powers == (-power.item(),)  # type: ignore[attr-defined]
    assert (a**power & a**power).powers == (2 * power.item(),)  # type: ignore[attr-defined]
    assert (a**power).log_z is None
    torch.testing.assert_close((b / a**power)(LINE), b(LINE) - power.detach() * a(LINE))
    text = str(energy)
    torch.testing.assert_close(eval(text, {"a": a, "raw": raw, **NAMES})(LINE), energy(LINE))


def test_powers_that_cancel_but_for_rounding_cancel() -> None:
    unity = a**0.1
    for _ in range(9):
        unity = unity & a**0.1
    assert unity is a
    assert poe.product([a] * 10, 0.1) is a
    assert a ** (1 / 3) & a ** (1 / 3) & a ** (1 / 3) is a
    assert (a**0.1 & a**0.2 / a**0.3).powers == (0.0,)  # type: ignore[attr-defined]
    assert ((a**0.1) ** 3 / a**0.3).powers == (0.0,)  # type: ignore[attr-defined]
    assert (a**0.1 & a**0.2).powers == (0.3,)  # type: ignore[attr-defined]
    # what is more than rounding stays
    assert (a**1e-20 & a**1e-20).powers == (2e-20,)  # type: ignore[attr-defined]
    assert (a ** (1 + 1e-13) / a).powers == pytest.approx((1e-13,), rel=1e-2)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "power", [np.float32(0.5), np.int64(2), Fraction(1, 2), torch.tensor(0.5), torch.tensor(2)]
)
def test_any_real_number_is_a_power(power: Any) -> None:
    for energy in (a**power, poe.product([a], power), poe.product([a], [power])):
        assert energy.powers == (float(power),)  # type: ignore[attr-defined]
    torch.testing.assert_close((a**power)(LINE), float(power) * a(LINE))
    assert poe.product([a, b], torch.tensor([2.0, 3.0])).powers == (2.0, 3.0)  # type: ignore[attr-defined]


def test_a_learnable_power_of_zero_stays_learnable() -> None:
    power = nn.Parameter(torch.tensor([0.0]))
    nested = (a & b).rebuild([b**power, a])
    assert [term.parameter is power for term in nested.terms] == [True, False]  # type: ignore[attr-defined]
    torch.testing.assert_close(nested(LINE), a(LINE))
    assert nested(LINE[0]).shape == ()
    nested(LINE).sum().backward()
    torch.testing.assert_close(power.grad, b(LINE).sum().float().reshape(1))


def test_a_power_of_zero_has_a_gradient_of_zero() -> None:
    x = torch.tensor([[0.5], [2.0], [INF]], dtype=F64, requires_grad=True)
    for energy, expected in ((a**0, [0.0, 0.0, 0.0]), (unit**0, [0.0, INF, INF])):
        value = energy(x)
        assert value.tolist() == expected
        (gradient,) = torch.autograd.grad(value.sum(), x)
        assert gradient.tolist() == [[0.0]] * 3
    assert (n1**0)(x.squeeze(-1)).tolist() == [0.0, 0.0, 0.0]


def test_log_z_follows_a_change_through_data() -> None:
    mean = nn.Parameter(torch.tensor([0.0], dtype=F64))
    moved = Normal(torch.zeros(1, dtype=F64), 1.0)
    energy = moved & a
    before = float(energy.log_z)  # type: ignore[arg-type]
    buffer = next(
        t
        for t in [*moved.parameters(), *moved.buffers()]
        if t.shape == mean.shape and not bool(t.any())
    )
    buffer.data.fill_(3.0)
    fresh = float((moved & a).log_z)  # type: ignore[arg-type]
    assert abs(fresh - before) > 0.1
    assert float(energy.log_z) == fresh  # type: ignore[arg-type]


def test_learnable_powers_have_gradients_beside_points_of_no_density() -> None:
    cut = Function(lambda x: torch.where(x[..., 0] > 0, INF, x[..., 0].square()), (1,))
    power = nn.Parameter(torch.tensor(2.0))
    energy = (cut**power)(torch.tensor([[1.0], [-0.5]]))
    assert energy[0] == INF
    energy[1].backward()
    assert power.grad == 0.25
