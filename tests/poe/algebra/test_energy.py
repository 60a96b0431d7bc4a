"""The laws of the algebra on random expressions, against a second evaluator written from the table
of the design.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from torch import Tensor
from torch import distributions as td

import poe
from experts import Distribution, Function, Gamma, Normal
from poe.algebra import support as sets
from poe.algebra.energy import Energy
from poe.algebra.product import Product
from tests.poe.algebra.cases import (
    COVARIANCE,
    EXPRESSIONS,
    F64,
    INF,
    LINE,
    NAMES,
    POINTS,
    ZERO,
    Pair,
    a,
    b,
    bowl,
    contrast_spec,
    depth,
    squash,
)

SMALL = depth(2)


def same(a: Tensor, b: Tensor) -> None:
    scale = float(torch.where(b.isfinite(), b, 0).abs().max())
    torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-9 * (1 + scale))


@given(EXPRESSIONS)
@settings(max_examples=150)
def test_an_expression_means_what_the_table_says(pair: Pair) -> None:
    energy = pair.energy(POINTS)
    assert not bool(energy.isnan().any())
    same(energy, pair.spec(POINTS))
    outside = ~sets.contains(pair.energy.support, POINTS)
    assert bool((energy[outside] == INF).all())


@given(EXPRESSIONS)
@settings(max_examples=80)
def test_value_and_grad_is_autograd_and_finite_differences(pair: Pair) -> None:
    energy, gradient = pair.energy.value_and_grad(POINTS)
    assert not bool(energy.isnan().any() or gradient.isnan().any())
    same(energy, pair.energy(POINTS).detach())
    assert bool((gradient[energy == INF] == 0).all())
    inside = POINTS[:24][energy[:24] < INF]
    x = inside.clone().requires_grad_()
    value = pair.energy(x)
    if value.requires_grad and len(inside):
        (reference,) = torch.autograd.grad(value.sum(), x, materialize_grads=True)
        same(gradient[:24][energy[:24] < INF], reference)
    step = 1e-6 * torch.tensor([0.6, 0.8], dtype=F64)
    ends = pair.spec(inside + step), pair.spec(inside - step)
    slope = (ends[0] - ends[1]) / 2e-6
    along = gradient[:24][energy[:24] < INF] @ torch.tensor([0.6, 0.8], dtype=F64)
    tolerance = 1e-5 * (1 + pair.spec(inside).abs() + along.abs())
    assert bool(((slope - along).abs() <= tolerance).all())
    same(pair.energy.score(POINTS), -gradient)


@given(EXPRESSIONS)
@settings(max_examples=60)
def test_simplify_keeps_the_energy_and_its_constant(pair: Pair) -> None:
    closed = poe.simplify(pair.energy)
    same(closed(POINTS), pair.spec(POINTS))
    if pair.energy.log_z is not None:
        assert closed.log_z is not None
        assert closed.log_z.value == pytest.approx(pair.energy.log_z.value, rel=1e-9, abs=1e-9)
        assert pair.energy.proper is True
        assert math.isfinite(pair.energy.log_z.value)
    if pair.energy.proper is not None:
        assert closed.proper in (pair.energy.proper, None)
    assert closed.event_shape == pair.energy.event_shape


GRID = torch.cartesian_prod(*[torch.linspace(-12, 12, 481, dtype=F64)] * 2)


@given(EXPRESSIONS.filter(lambda pair: pair.energy.log_z is not None))
@settings(max_examples=25)
def test_known_log_z_is_the_integral(pair: Pair) -> None:
    known = pair.energy.log_z
    assert known is not None
    tall, edge = pair.energy(GRID), GRID.abs().amax(-1) > 11
    mass = torch.logsumexp(-tall, 0) + 2 * math.log(24 / 480)
    lost = torch.logsumexp(-tall[edge], 0)
    if float(lost - mass) < -12:  # the box holds nearly all of it; borders of supports cost a cell
        assert float(mass) == pytest.approx(known.value, abs=0.06)


@given(SMALL, SMALL, SMALL)
@settings(max_examples=60)
def test_laws_of_the_algebra(a: Pair, b: Pair, c: Pair) -> None:
    e, f, g = a.energy, b.energy, c.energy
    x = POINTS
    same((e & f)(x), (f & e)(x))
    same((e | f)(x), (f | e)(x))
    same(((e & f) & g)(x), (e & (f & g))(x))
    same(((e | f) | g)(x), (e | (f | g))(x))
    same(((e & f) ** 2)(x), (e**2 & f**2)(x))
    same(((e | f) & g)(x), ((e & g) | (f & g))(x))  # distributivity, at the level of energies
    same((e / f)(x), (e & ~f)(x))
    same((e**2)(x), (e & e)(x))
    same((e**0.5 & e**0.5)(x), e(x))
    same((e - f)(x), contrast_spec(e(x), f(x)))
    assert ~~e is e or (isinstance(e, Product) and str(~~e) == str(e))
    assert all(
        not isinstance(part, Product)
        for part in (e & f & g).parts
        if isinstance(e & f & g, Product)
    )


@given(EXPRESSIONS)
@settings(max_examples=40)
def test_whole_expressions_move_and_load(pair: Pair) -> None:
    energy = eval(str(pair.energy), {**NAMES, **_copies()})
    before = energy(POINTS)
    energy.load_state_dict(energy.state_dict())
    assert torch.equal(energy(POINTS), before)
    energy.to(torch.float32)
    assert energy(POINTS.float()).dtype == torch.float32
    assert energy.at(0.5) is energy or torch.equal(
        energy.at(0.5)(POINTS.float()), energy(POINTS.float())
    )
    text = repr(energy.to(F64))
    for fact in ("event_shape", "support", "log_z", "proper", "parameters", "plan"):
        assert f"\n  {fact}" in text


def _copies() -> dict[str, Energy]:
    return {
        "thin": Normal(torch.tensor([0.5, -1.0], dtype=F64), 0.8, name="thin"),
        "wide": Normal(ZERO, covariance=COVARIANCE, name="wide"),
        "laplace": Distribution(td.Laplace(ZERO, 1.0), name="laplace"),
        "square": Distribution(td.Uniform(ZERO - 1, ZERO + 2), name="square"),
        "gamma": Gamma(torch.tensor([2.0, 3.0], dtype=F64), 1.0, name="gamma"),
        "bowl": Function(bowl, (2,), name="bowl"),
    }


class Conditioned(Energy):
    """Takes a context: a mean."""

    takes_context = True

    def __init__(self) -> None:
        super().__init__((1,))

    def forward(self, x: Tensor) -> Tensor:  # (*batch, 1) -> (*batch)
        raise RuntimeError("bind a context first")

    def given(self, context: Any) -> Energy:
        return Function(lambda x: 0.5 * (x - context).square().sum(-1), (1,), name="bound")


class Noisy(Energy):
    """Has noise levels: a Gaussian of variance 1 + sigma²."""

    sigma_range = (0.0, 10.0)

    def __init__(self, sigma: float = 0.0) -> None:
        super().__init__((1,))
        self.sigma = sigma

    def forward(self, x: Tensor) -> Tensor:  # (*batch, 1) -> (*batch)
        return 0.5 * x.square().sum(-1) / (1 + self.sigma**2)

    def at(self, sigma: float) -> Energy:
        return Noisy(sigma)


def compositions(leaf: Energy) -> Sequence[Energy]:
    return (leaf & a, (leaf | a) ** 2, a - leaf, ~leaf, leaf @ squash, poe.shift(leaf, 1.0) & b)


def test_contexts_are_bound_inside_expressions() -> None:
    for energy, reference in zip(
        compositions(Conditioned()),
        compositions(Function(lambda x: 0.5 * (x - 2.0).square().sum(-1), (1,))),
        strict=True,
    ):
        torch.testing.assert_close(energy.given(2.0)(LINE), reference(LINE))


def test_noise_levels_reach_every_part() -> None:
    for energy, reference in zip(compositions(Noisy()), compositions(Noisy(3.0)), strict=True):
        torch.testing.assert_close(energy.at(3.0)(LINE), reference(LINE))
        torch.testing.assert_close(energy.at(0)(LINE), energy(LINE))
    assert a.at(2.0) is a
