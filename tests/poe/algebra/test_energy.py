"""The laws of the algebra on random expressions, against a second evaluator written from the table
of the design.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any, ClassVar, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch import distributions as td
from torch.distributions import constraints

import poe
from experts import Beta, Categorical, Distribution, Function, Gamma, Normal, Poisson
from poe.algebra import support as sets
from poe.algebra.capabilities import Samples
from poe.algebra.contrast import Contrast
from poe.algebra.energy import Energy
from poe.algebra.mixture import Mixture
from poe.algebra.product import Product
from poe.algebra.pullback import Pullback

F64 = torch.float64
INF = math.inf


def squash(x: Tensor) -> Tensor:
    """A map of the plane onto itself."""
    return 0.5 * x + 0.2 * x.flip(-1).sin()


def bowl(x: Tensor) -> Tensor:
    """A raw energy with two wells, whose log Z nobody knows."""
    return (x.square() - 1).square().sum(-1) - 0.5 * x[..., 0]


COVARIANCE = torch.tensor([[1.0, 0.6], [0.6, 2.0]], dtype=F64)
ZERO = torch.zeros(2, dtype=F64)
LEAVES: dict[str, Energy] = {
    "thin": Normal(torch.tensor([0.5, -1.0], dtype=F64), 0.8, name="thin"),
    "wide": Normal(ZERO, covariance=COVARIANCE, name="wide"),
    "laplace": Distribution(td.Laplace(ZERO, 1.0), name="laplace"),
    "square": Distribution(td.Uniform(ZERO - 1, ZERO + 2), name="square"),
    "gamma": Gamma(torch.tensor([2.0, 3.0], dtype=F64), 1.0, name="gamma"),
    "bowl": Function(bowl, (2,), name="bowl"),
}
SPEC: dict[str, Callable[[Tensor], Tensor]] = {
    "thin": lambda x: -td.Normal(torch.tensor([0.5, -1.0], dtype=F64), 0.8).log_prob(x).sum(-1),
    "wide": lambda x: -td.MultivariateNormal(ZERO, COVARIANCE).log_prob(x),
    "laplace": lambda x: -td.Laplace(ZERO, 1.0).log_prob(x).sum(-1),
    "square": lambda x: x.new_full(x.shape[:-1], 2 * math.log(3.0)).where(
        ((x >= -1) & (x <= 2)).all(-1), INF
    ),
    "gamma": lambda x: torch.where(
        (x > 0).all(-1),
        -td.Gamma(torch.tensor([2.0, 3.0], dtype=F64), 1.0).log_prob(x.clamp_min(1e-9)).sum(-1),
        INF,
    ),
    "bowl": bowl,
}
NAMES = {**LEAVES, "squash": squash, "poe": poe, "Parameter": nn.Parameter, "tensor": torch.tensor}
POINTS = torch.cat(
    [
        torch.randn(24, 2, dtype=F64, generator=torch.Generator().manual_seed(0)) * 1.5,
        torch.tensor([[-3.0, 0.5], [9.0, 9.0], [0.0, -0.5], [-1.0, 1.5]], dtype=F64),
    ]
)  # inside and outside the supports, and on their borders


class Pair(NamedTuple):
    """An expression and what it should mean."""

    energy: Energy
    spec: Callable[[Tensor], Tensor]


def weigh(power: float, energy: Tensor) -> Tensor:
    return torch.where(energy == INF, INF, power * energy)


def contrast_spec(a: Tensor, b: Tensor, strength: float = 1.0) -> Tensor:
    gap = torch.where(a == INF, 0, a) - b
    return torch.where(a == INF, INF, a + strength * torch.logaddexp(gap, torch.zeros_like(gap)))


def binary(sign: str, a: Pair, b: Pair) -> Pair:
    e, f, p, q = a.energy, b.energy, a.spec, b.spec
    match sign:
        case "&":
            return Pair(e & f, lambda x: weigh(1, p(x)) + q(x))
        case "|":
            return Pair(e | f, lambda x: -torch.logaddexp(-p(x), -q(x)))
        case "/":
            return Pair(e / f, lambda x: weigh(1, p(x)) + weigh(-1, q(x)))
        case "-":
            return Pair(e - f, lambda x: contrast_spec(p(x), q(x)))
        case _:
            return Pair(poe.contrast(e, f, strength=0.5), lambda x: contrast_spec(p(x), q(x), 0.5))


def unary(a: Pair, power: float) -> Pair:
    if power == -1:
        return Pair(~a.energy, lambda x: weigh(-1, a.spec(x)))
    return Pair(a.energy**power, lambda x: weigh(power, a.spec(x)))


def maps(a: Pair) -> Pair:
    return Pair(a.energy @ squash, lambda x: a.spec(squash(x)))


LEAF = st.sampled_from(sorted(LEAVES)).map(lambda name: Pair(LEAVES[name], SPEC[name]))


def grow(children: st.SearchStrategy[Pair]) -> st.SearchStrategy[Pair]:
    return st.one_of(
        st.builds(binary, st.sampled_from("&|/-c"), children, children),
        st.builds(unary, children, st.sampled_from([-1, 0, 0.5, 2, 1 / 3])),
        st.builds(maps, children),
    )


def depth(levels: int) -> st.SearchStrategy[Pair]:
    return LEAF if levels == 0 else st.one_of(depth(levels - 1), grow(depth(levels - 1)))


EXPRESSIONS = depth(4)
SMALL = depth(2)


def same(a: Tensor, b: Tensor) -> None:
    scale = float(torch.where(b.isfinite(), b, 0).abs().max())
    torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-9 * (1 + scale))


# ---------------------------------------------------------------- laws on random expressions


@given(EXPRESSIONS)
@settings(max_examples=150)
def test_an_expression_means_what_the_table_says(pair: Pair) -> None:
    energy = pair.energy(POINTS)
    assert not bool(energy.isnan().any())
    same(energy, pair.spec(POINTS))
    outside = ~sets.contains(pair.energy.support, POINTS)
    assert bool((energy[outside] == INF).all())


@given(EXPRESSIONS)
@settings(max_examples=100)
def test_text_pastes_back(pair: Pair) -> None:
    text = str(pair.energy)
    for again in (eval(text, dict(NAMES)), poe_parse(text, poe.names(pair.energy))):
        assert str(again) == text
        assert torch.equal(again(POINTS), pair.energy(POINTS))
    stripped = _one_pair_of_parentheses_less(text)
    for shorter in stripped:
        try:
            other = eval(shorter, dict(NAMES))
        except (TypeError, SyntaxError):
            continue
        assert not isinstance(other, Energy) or str(other) != text


def poe_parse(text: str, names: dict[str, Any]) -> Energy:
    from poe.io.expression import parse

    return parse(text, names)


def _one_pair_of_parentheses_less(text: str) -> list[str]:
    """The text without each grouping pair of parentheses in turn; those of calls stay."""
    found, stack = [], []
    for i, sign in enumerate(text):
        if sign == "(":
            stack.append(i)
        elif sign == ")":
            start = stack.pop()
            called = start > 0 and (text[start - 1].isalnum() or text[start - 1] == "_")
            if not called:
                found.append(text[:start] + text[start + 1 : i] + text[i + 1 :])
    return found


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


# ---------------------------------------------------------------- products

a, b, c = (
    Normal(torch.tensor([m], dtype=F64), 1.0 + m**2, name=n)
    for m, n in ((0.0, "a"), (1.0, "b"), (-2.0, "c"))
)
raw = Function(lambda x: x.abs().sum(-1) ** 3, (1,), name="raw")
unit = Beta(torch.tensor([2.0], dtype=F64), 2.0, name="unit")
LINE = torch.linspace(-4, 4, 33, dtype=F64).reshape(-1, 1)


class Token:
    """Lives as long as the graph that holds it."""


class Sine(torch.autograd.Function):
    """sin x, whose node in a graph holds a token."""

    alive: ClassVar[weakref.WeakSet[Token]] = weakref.WeakSet()

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        ctx.token = Token()
        Sine.alive.add(ctx.token)
        return x.sin()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient * ctx.saved_tensors[0].cos()


class Counting(Energy):
    """Counts its evaluations, and the graphs of its kind that are alive at once."""

    most = 0

    def __init__(self) -> None:
        super().__init__((1,))
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:  # (*batch, 1) -> (*batch)
        self.calls += 1
        y = Sine.apply(x[..., 0])
        Counting.most = max(Counting.most, len(Sine.alive))
        return y.square()


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


# ---------------------------------------------------------------- is it proper


def cauchy(loc: float = 0.0) -> Energy:
    return Distribution(td.Cauchy(loc, 1.0))


class Plateau(Energy):
    """E = 0 on all of R."""

    flat = True

    def __init__(self) -> None:
        super().__init__(())

    def forward(self, x: Tensor) -> Tensor:
        return 0 * x


n1, n2 = Normal(0.0, 1.0), Normal(0.0, 2.0)
half = Beta(0.5, 1.0)
flat = Function(lambda x: 0 * x, (), name="flat")
coin = Distribution(td.Bernoulli(torch.tensor(0.5)), name="coin")
plane = Normal(ZERO, covariance=COVARIANCE, name="plane")
shares = Distribution(td.Dirichlet(torch.ones(2, dtype=F64)), name="shares")
PROPER: list[tuple[Callable[[], Energy], bool | None]] = [
    (lambda: n1 / n2, True),
    (lambda: n2 / n1, False),
    (lambda: ~n1, False),
    (lambda: n1**0, False),
    (lambda: cauchy() ** 0, False),
    (lambda: n1**0.1 & n1**0.2 / n1**0.3, False),
    (lambda: ~cauchy(), False),
    (lambda: ~(cauchy() & cauchy(1.0)), False),
    (lambda: cauchy() ** 0.5, None),
    (lambda: cauchy() ** 1.5, True),
    (lambda: cauchy() ** 0.5 & n1, True),
    (lambda: cauchy() / n1, None),
    (lambda: half**2, False),
    (lambda: half**1.5, True),
    (lambda: Distribution(td.Beta(0.5, 1.0)) ** 2, None),
    (lambda: Distribution(td.Beta(0.5, 1.0)) ** 0.9, True),
    (lambda: Distribution(td.Beta(0.5, 1.0)) & Beta(2.0, 3.0), True),
    (lambda: Distribution(td.Beta(0.5, 1.0)) & half, None),
    (lambda: flat, None),
    (lambda: ~flat, None),
    (lambda: flat & n1, None),
    (lambda: Distribution(td.Uniform(0.0, 1.0)) ** 7, True),
    (lambda: ~Distribution(td.Uniform(0.0, 1.0)), True),  # 1 on [0, 1]
    (
        lambda: (
            Distribution(td.Beta(0.5, 1.0)) & Beta(2.0, 3.0) / Distribution(td.Uniform(0.0, 1.0))
        ),
        True,
    ),
    (
        lambda: Distribution(td.Beta(0.5, 1.0)) & half / Distribution(td.Uniform(0.0, 1.0)),
        None,
    ),  # ∫ 1 / x
    (lambda: half**2 / Distribution(td.Uniform(0.0, 1.0)), None),  # again
    (lambda: n1 / Beta(1.0, 1.0), True),
    (lambda: n1 / Beta(2.0, 1.0), None),  # ∫ 1 / x
    (lambda: n1 / n2 / Distribution(td.Uniform(0.0, 1.0)), True),
    (
        lambda: cauchy() / n1 / Distribution(td.Uniform(torch.tensor(0.0), 1.0)),
        None,
    ),  # only a bounded support saves it
    (lambda: n1 / poe.shift(Distribution(td.Independent(td.Uniform(0.0, 1.0), 0)), 3.0), True),
    (lambda: ~Plateau(), False),  # 1 on all of R
    (lambda: n1 / Plateau(), True),
    (lambda: n1**-1 / Plateau(), False),
    (lambda: Distribution(td.Uniform(0.0, 1.0)) & Distribution(td.Uniform(2.0, 3.0)), False),
    (lambda: (Distribution(td.Uniform(0.0, 1.0)) & Distribution(td.Uniform(2.0, 3.0))) | n1, True),
    (
        lambda: (
            (Distribution(td.Uniform(0.0, 1.0)) | Distribution(td.Uniform(2.0, 3.0)))
            & Distribution(td.Uniform(4.0, 5.0))
        ),
        False,
    ),
    (lambda: n1 - n2, True),
    (lambda: n1 - flat, True),
    (lambda: flat - n1, None),
    (lambda: n1 | n2, True),
    (lambda: n1 | flat, None),
    (lambda: n1 | ~n1, False),
    (lambda: n1 @ torch.tanh, None),
    (lambda: Poisson(1.0) ** 2, True),
    (lambda: Poisson(1.0) & Normal(0.0, 1.0), True),
    (lambda: Poisson(1.0) ** 0.5 & cauchy() ** 0.5, None),
    (lambda: ~Categorical(torch.zeros(3)), True),
    (lambda: poe.shift(n1, 3.0), True),
    (lambda: n1 ** nn.Parameter(torch.tensor(1.0)), None),
]


@pytest.mark.parametrize(("make", "proper"), PROPER)
def test_proper(make: Callable[[], Energy], proper: bool | None) -> None:
    assert make().proper is proper


def at(energy: Energy, *index: int) -> Energy:
    return poe.on(energy, index, (3,))


lap, wide = Distribution(td.Laplace(0.0, 1.0)), Distribution(td.Laplace(0.0, 2.0))
sheet = Distribution(td.Laplace(ZERO, 1.0), name="sheet")
TILED: list[tuple[Callable[[], Energy], bool | None]] = [
    (lambda: at(sheet, 0, 1) & at(lap, 2), True),  # ∫∫∫ = 1
    (lambda: at(sheet, 0, 1) & at(lap, 2) & at(sheet, 2, 1), True),  # a bounded factor more
    (lambda: at(sheet, 2, 1) ** 2 & at(lap, 0) & at(wide, 1) ** 0.5, True),
    (lambda: at(sheet, 0, 1), False),  # the third coordinate is free
    (
        lambda: at(sheet, 0, 1) & at(sheet, 2, 1),
        None,
    ),  # ∫ m_a(x_1) m_b(x_1): the marginals may be unbounded
    (lambda: at(half, 0) & at(lap, 1) & at(lap, 2), True),  # unbounded, and a tile
    (lambda: at(half, 0) & at(half, 0) & at(lap, 1) & at(lap, 2), None),  # ∫ 1 / x
    (lambda: at(half, 0) ** 2 & at(lap, 1) & at(lap, 2), None),
    (lambda: at(lap, 0) & at(lap, 1) & at(lap, 2) / at(wide, 2), None),
    (lambda: at(lap, 0) ** 0.5 & at(lap, 1) & at(lap, 2), None),
    (lambda: at(plane, 0, 1) & at(plane, 2, 1), True),  # Normals have a closed form
    (lambda: at(n1, 0) & at(n1, 1) & at(n1, 2) / at(n2, 2), True),
    (lambda: at(n1, 0) & at(n1, 1) & at(n2, 2) / at(n1, 2), False),
    (lambda: at(n1, 0) & at(n1, 1), False),
    (lambda: at(Poisson(1.0), 0) & at(Poisson(1.0), 1) & at(Poisson(2.0), 2), True),
    (lambda: at(Poisson(1.0), 0) & at(lap, 1) & at(lap, 2), None),  # neither a sum nor an integral
]


@pytest.mark.parametrize(("make", "proper"), TILED)
def test_factors_on_parts_that_tile_the_event_are_proper(
    make: Callable[[], Energy], proper: bool | None
) -> None:
    assert make().proper is proper


def test_negative_powers_on_a_support_of_unknown_volume_are_unknown() -> None:
    class Disc(constraints.Constraint):
        event_dim = 1

        def check(self, value: Tensor) -> Tensor:
            return value.square().sum(-1) <= 1

    inside = Function(lambda x: x.square().sum(-1), (2,), support=Disc(), proper=True, bounded=True)
    assert (~inside).proper is None
    assert inside(torch.tensor([[0.5, 0.5], [2.0, 0.0]])).tolist() == [0.5, INF]


def test_bounded() -> None:
    assert (n1 & n2).bounded is True
    assert (n1 / n2).bounded is True
    assert (~n1).bounded is None
    assert (n1 & half).bounded is not True
    assert (n1 | half).bounded is not True
    assert (n1 - half).bounded is True
    assert (n1 @ torch.sin).bounded is True


# ---------------------------------------------------------------- combine, on, fill, pullback,
# shift


def test_combine_counts_the_prior_once() -> None:
    prior = Normal(torch.zeros(1, dtype=F64), 3.0)
    likelihoods = [Normal(torch.tensor([m], dtype=F64), 1.0) for m in (0.5, 1.0, 2.0)]
    posteriors = [poe.simplify(prior & likelihood) for likelihood in likelihoods]
    combined = poe.combine(posteriors, prior=prior)
    whole = prior & poe.product(likelihoods)
    gap = combined(LINE) - whole(LINE)
    torch.testing.assert_close(gap, gap[0].expand_as(gap), rtol=1e-9, atol=1e-9)
    assert combined.proper is True
    assert str(poe.combine([a, b, c], prior=prior)) == "a & b & c / normal ** 2"
    assert str(poe.combine([a], prior=prior)) == "a"


def test_a_flat_prior_is_divided_out() -> None:
    box = td.Uniform(ZERO, ZERO + 1)
    inside = [Distribution(td.Beta(ZERO + 2, ZERO + k)) for k in (2, 3)]  # bounded, on the box
    rough = [Distribution(td.Beta(ZERO + 0.5, ZERO + k)) for k in (2, 3)]  # like 1 / sqrt(x) at 0
    split = poe.on(Distribution(td.Uniform(0.0, 1.0)), [0], (2,)) & poe.on(
        Distribution(td.Uniform(0.0, 1.0)), [1], (2,)
    )
    for prior in (Distribution(box), Distribution(td.Independent(box, 1)), split):
        assert prior.flat is True
        both = poe.combine(inside, prior=prior)
        assert both.proper is True and both.bounded is True
        assert poe.combine([rough[0], inside[0]], prior=prior).proper is True
        assert poe.combine(rough, prior=prior).proper is None  # ∫ 1 / x is infinite
    assert (
        poe.combine(inside, prior=Distribution(td.Beta(ZERO + 2, ZERO + 1))).proper is None
    )  # x / x², were they other
    assert (inside[0] | inside[0]).flat is None and Distribution(
        td.Dirichlet(ZERO + 1)
    ).flat is True


def test_combine_checks_supports() -> None:
    positive = Gamma(torch.ones(1, dtype=F64), 1.0, name="prior")
    with pytest.raises(ValueError, match="a posterior lives where its prior does; restrict it"):
        poe.combine([a, b], prior=positive)
    with pytest.raises(ValueError, match="poe.on\\(energy, index, event_shape\\)"):
        poe.combine([a, b], prior=Normal(torch.zeros(2), 1.0))
    assert poe.combine([unit, unit], prior=Beta(torch.ones(1, dtype=F64), 1.0)).proper is not False


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


def test_shift_is_the_same_density_with_another_constant() -> None:
    moved = poe.shift(a, 2.0)
    torch.testing.assert_close(moved(LINE), a(LINE) + 2)
    assert moved.log_z == (-2.0, 0.0)
    assert poe.shift(moved, -2.0) is a
    assert str(moved) == "poe.shift(a, 2.0)"
    assert moved.can(Samples)
    with pytest.raises(ValueError, match="finite number of nats"):
        poe.shift(a, INF)


def test_contrast_is_below_what_is_wanted_and_proper() -> None:
    energy = poe.contrast(a, raw, strength=2.0)
    assert isinstance(energy, Contrast)
    assert bool((energy(LINE) >= a(LINE)).all())
    assert energy.proper is True
    assert str(energy) == "poe.contrast(a, raw, strength=2)"
    assert torch.equal(poe.contrast(a, raw, strength=0)(LINE), a(LINE))
    for strength in (-1, math.nan, INF, True, "1"):
        with pytest.raises(ValueError, match="finite number >= 0"):
            poe.contrast(a, b, strength=strength)  # type: ignore[arg-type]


# ---------------------------------------------------------------- printing and facts


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: a & b - c, "a & b - c"),
        (lambda: (a & b) - c, "(a & b) - c"),
        (lambda: a - (b - c), "a - (b - c)"),
        (lambda: a - b - c, "a - b - c"),
        (lambda: (a | b) & c, "(a | b) & c"),
        (lambda: a | b & c, "a | b & c"),
        (lambda: ~(a | b), "~(a | b)"),
        (lambda: ~a & b, "~a & b"),
        (lambda: b / a / c, "b / a / c"),
        (lambda: b / (a & c), "b / a / c"),
        (lambda: b / a**2, "b / a ** 2"),
        (lambda: (a - b) ** 2, "(a - b) ** 2"),
        (lambda: (a & b) ** 0.5, "a ** 0.5 & b ** 0.5"),
        (lambda: (a & b) ** (1 / 3), "(a & b) ** (1/3)"),
        (lambda: a**0.1 & b ** (2 / 3), "a ** 0.1 & b ** (2/3)"),
        (lambda: a**-2, "a ** -2"),
        (lambda: (a & b) @ squash, "(a & b) @ squash"),
        (lambda: a @ squash / b, "a @ squash / b"),
        (lambda: (a @ squash) ** 2, "(a @ squash) ** 2"),
        (lambda: a**2 @ squash, "a ** 2 @ squash"),
        (lambda: a / (b @ squash), "a / (b @ squash)"),
    ],
)
def test_printing_uses_the_fewest_parentheses(make: Callable[[], Energy], text: str) -> None:
    energy = make()
    assert str(energy) == text
    again = eval(text, {"a": a, "b": b, "c": c, "squash": squash})
    assert torch.equal(again(LINE), energy(LINE))


def test_unnamed_experts_are_told_apart() -> None:
    energy = Normal(0.0, 1.0) & Normal(1.0, 1.0) | Gamma(1.0, 1.0)
    assert str(energy) == "normal & normal_2 | gamma"
    assert list(poe.names(energy)) == ["normal", "normal_2", "gamma"]
    twice = Normal(0.0, 1.0, name="x") | Normal(1.0, 1.0, name="x")
    assert str(twice) == "x | x_2"


def test_a_named_part_prints_as_its_name() -> None:
    both = a & b
    both.name = "both"
    assert str(both | c) == "both | c"
    assert str(both) == "a & b"
    with pytest.raises(ValueError, match="dotted Python name such as 'digits.even'"):
        both.name = "a b"
    with pytest.raises(ValueError, match="cannot stand in an expression"):
        both.name = "lambda"


def test_repr_says_where_a_balance_rests_on_unknown_constants() -> None:
    for energy, sign in ((a | raw, "|"), (a - raw, "-"), (b & (a | raw), "|")):
        assert f"`{sign}` rests on raw energies: log Z unknown for raw; poe.normalize" in repr(
            energy
        )
    assert "rests on" not in repr(a | b)


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("make", "error", "hint"),
    [
        (lambda: a + b, TypeError, "write `a & b` for the product"),
        (lambda: 2 + a, TypeError, "`a \\| b` for the mixture"),
        (lambda: sum([a, b]), TypeError, "write `a & b` for the product"),
        (lambda: 2 * a, TypeError, "^2 \\* a .* `a \\*\\* 2` to weigh an energy"),
        (
            lambda: (a & b) * 0.5,
            TypeError,
            "^\\(a & b\\) \\* 0.5 .* `\\(a & b\\) \\*\\* 0.5` to weigh an energy",
        ),
        (lambda: a * b, TypeError, "poe.mixture\\(\\[a, b\\], weights="),
        (lambda: a and b, TypeError, "Python's `and`, `or`, `not` and `if` do not compose"),
        (lambda: a or b, TypeError, "`a \\| b` for a mixture"),
        (lambda: not a, TypeError, "`~a` for 1/p_a"),
        (lambda: -a, TypeError, "write `~a` for 1/p_a"),
        (lambda: a ^ b, TypeError, "`\\(a - b\\) \\| \\(b - a\\)`"),
        (lambda: a & 3, TypeError, "right side is a int: did you mean poe.as_energy"),
        (lambda: a / 2, TypeError, "did you mean a \\*\\* 0.5\\?"),
        (lambda: 3 - a, TypeError, "both sides of `-` must be energies"),
        (lambda: a**b, TypeError, "a power is a number or an nn.Parameter"),
        (lambda: a ** "2", TypeError, "\\(a\\) \\*\\* '2': a power is a number"),
        (lambda: a ** [1, 2], TypeError, "\\(a\\) \\*\\* \\[1, 2\\]: a power is a number"),  # type: ignore[operator]
        (
            lambda: a ** torch.tensor([1.0, 2.0]),
            TypeError,
            "tensor\\(\\[1., 2.\\]\\): a power is a number",
        ),
        (
            lambda: a ** torch.tensor(2.0, requires_grad=True),
            TypeError,
            "learned is an nn.Parameter",
        ),
        (
            lambda: a ** nn.Parameter(torch.ones(2)),
            ValueError,
            "Parameter of shape \\(2,\\): a power is one number",
        ),
        (
            lambda: poe.product([a, b], nn.Parameter(torch.ones(2))),
            ValueError,
            "Parameter of shape \\(2,\\)",
        ),
        (
            lambda: a ** nn.Parameter(torch.tensor(2), requires_grad=False),
            TypeError,
            "nn.Parameter\\(torch.tensor\\(2.0\\)\\)",
        ),
        (lambda: a ** Fraction(1, 2) // 2, TypeError, "// 2 means nothing"),
        (lambda: 2 / a, TypeError, "2 / a: .*write `~a` for 1/p_a"),
        (lambda: 2**a, TypeError, "2 \\*\\* a: a power stands on the right"),
        (lambda: 1 & a, TypeError, "1 & a: both sides of `&`"),
        (lambda: 2 | a, TypeError, "2 \\| a: both sides of `\\|`"),
        (lambda: a % b, TypeError, "a % b means nothing"),
        (lambda: +a, TypeError, "write `a` alone"),
        (lambda: squash @ a, TypeError, "write `a @ f`"),
        (lambda: poe.product(a, b), TypeError, "write poe.product\\(\\[a, b\\]\\)"),  # type: ignore[arg-type]
        (lambda: poe.product([a], b), TypeError, "write poe.product\\(\\[a, b\\]\\)"),  # type: ignore[arg-type]
        (lambda: poe.mixture(a, b), TypeError, "write poe.mixture\\(\\[a, b\\]\\)"),  # type: ignore[arg-type]
        (lambda: poe.combine(a, prior=b), TypeError, "write poe.combine\\(\\[a\\], prior=...\\)"),  # type: ignore[arg-type]
        (
            lambda: poe.on(a, [0.5], (2,)),
            TypeError,
            "positions are whole numbers, not torch.float32",
        ),  # type: ignore[list-item]
        (lambda: poe.on(a, torch.tensor([True]), (2,)), TypeError, "gives those of a mask"),
        (lambda: poe.on(a, [0], 3), TypeError, "write \\(3,\\)"),  # type: ignore[arg-type]
        (lambda: poe.pullback(a, squash, 3), TypeError, "write \\(3,\\)"),  # type: ignore[arg-type]
        (lambda: Function(bowl, 2), TypeError, "write \\(2,\\)"),  # type: ignore[arg-type]
        (
            lambda: coin | n1,
            ValueError,
            "coin on .* has sums over points, and .* has integrals over volume",
        ),
        (
            lambda: n1 | coin,
            ValueError,
            "has integrals over volume, and coin on .* has sums over points",
        ),
        (lambda: poe.mixture([coin, n1], weights=[1, 1]), ValueError, "densities of one measure"),
        (lambda: n1 - coin, ValueError, "`-` compares densities of one measure"),
        (
            lambda: shares | LEAVES["thin"],
            ValueError,
            "shares on .* has integrals over the simplex, and thin on",
        ),
        (
            lambda: shares & LEAVES["gamma"] | LEAVES["thin"],
            ValueError,
            "integrals over the simplex",
        ),
        (lambda: a**True, TypeError, "a power is a number"),
        (lambda: a**INF, ValueError, "must be finite"),
        (lambda: a**math.nan, ValueError, "must be finite"),
        (
            lambda: a & Normal(ZERO, 1.0, name="plane"),
            ValueError,
            "event shape \\(1,\\) and plane has \\(2,\\)",
        ),
        (lambda: a | Normal(ZERO, 1.0), ValueError, "poe.on\\(energy, index, event_shape\\)"),
        (lambda: poe.product([]), ValueError, "at least one energy"),
        (
            lambda: poe.product([a, b], powers=[1.0]),
            ValueError,
            "2 energies need as many powers, not 1",
        ),
        (
            lambda: poe.product([a, torch.tensor(1.0)]),
            TypeError,
            "poe.as_energy\\(model\\) wraps a model",
        ),
        (lambda: poe.pullback(a, 3), TypeError, "takes a function of x"),  # type: ignore[arg-type]
        (
            lambda: a(torch.zeros(5)),
            ValueError,
            "x has shape \\(5,\\), but a takes \\(\\*batch, \\*event\\) with event shape \\(1,\\)",
        ),
        (lambda: a(1.0), TypeError, "torch.as_tensor\\(x\\) makes one"),
        (
            lambda: a.value_and_grad(torch.zeros(1, dtype=torch.long)),
            TypeError,
            "x.float\\(\\) gives points",
        ),
        (lambda: (a & b).given({}), TypeError, "no expert in a & b takes a context"),
        (lambda: Counting().config(), TypeError, "give it a method config\\(\\)"),
    ],
)
def test_refusals_say_what_to_type(
    make: Callable[[], Any], error: type[Exception], hint: str
) -> None:
    with pytest.raises(error, match=hint):
        make()


def test_an_expert_that_returns_the_wrong_shape_is_named() -> None:
    class Wrong(Energy):
        def forward(self, x: Tensor) -> Tensor:
            return x

    with pytest.raises(ValueError, match="wrong returned shape \\(4, 1\\).*here \\(4,\\)"):
        Wrong((1,))(torch.zeros(4, 1))


# ---------------------------------------------------------------- bindings


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


def test_an_expert_that_is_used_twice_is_one_module() -> None:
    energy = (a & raw) | (a - b)
    keys = [key for key in energy.state_dict() if key.endswith("loc")]
    assert len(keys) == 3  # a twice, b once, each at its place in the tree
    assert len(poe.leaves(energy)) == 3
    assert energy.dtype == F64
    assert len({id(buffer) for buffer in energy.buffers()}) == len(list(energy.buffers()))


# ---------------------------------------------------------------- what errors and texts say


class Linear(Energy):
    """A network in single precision."""

    def __init__(self) -> None:
        super().__init__((2,), name="net")
        self.layer = nn.Linear(2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x).squeeze(-1)


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


def test_functions_of_torch_print_as_they_are_typed() -> None:
    a = Normal(torch.zeros(2), 1.0, name="a")
    assert str(a @ torch.tanh) == "a @ torch.tanh"
    assert eval(str(a @ torch.tanh), {"a": a, "torch": torch}).function is torch.tanh
    assert poe.parse("a @ torch.tanh", poe.names(a @ torch.tanh)).function is torch.tanh  # type: ignore[attr-defined]
    assert str(a @ torch.nn.functional.softplus) == "a @ softplus"
    assert str(a @ Linear().layer.forward) == "a @ forward"
    assert "torch.sigmoid(x) in interval" in repr(
        (Beta(torch.ones(2), 1.0) @ torch.sigmoid).support
    )


def test_a_normalised_energy_prints_as_what_is_typed() -> None:
    a = Normal(torch.zeros(2), 1.0, name="a")
    energy = poe.normalize(a & a, log_z=poe.Estimate(1.25, 0.1))
    again = eval(str(energy), {"a": a, "poe": poe})
    assert str(again) == str(energy) and again.log_z == energy.log_z == (0.0, 0.1)


def test_the_plan_of_what_cannot_be_drawn_is_none() -> None:
    a = Normal(torch.zeros(2), 1.0, name="a")
    assert "plan         none: ~a is improper" in repr(~a)
    low, high = (
        Distribution(td.Uniform(ZERO + k, ZERO + k + 1), name=name)
        for k, name in ((0, "low"), (5, "high"))
    )
    assert "plan         none: nothing can be drawn from low & high" in repr(low & high)
    assert "plan         exact" in repr(a)


class Level(Energy):
    """N(0, 1 + σ²) in the plane, without its constant."""

    sigma_range = (0.01, 3.0)

    def __init__(self, sigma: float = 0.0) -> None:
        super().__init__((2,), name="level")
        self.sigma = sigma

    def forward(self, x: Tensor) -> Tensor:
        return x.square().sum(-1) / (2 * (1 + self.sigma**2))

    def at(self, sigma: float) -> Energy:
        return self if sigma == self.sigma else Level(sigma)


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


def test_a_part_that_stands_twice_errs_twice_the_same_way() -> None:
    part = poe.shift(Level(), 0.0, log_z=poe.Estimate(0.0, 0.1))
    other = poe.shift(Level(), 0.0, log_z=poe.Estimate(0.0, 0.1))
    for both in (part | part, poe.mixture([part, part], weights=[1, 1])):
        assert both.log_z is not None and both.log_z.standard_error == pytest.approx(0.1)
    assert (part | other).log_z.standard_error == pytest.approx(0.1 / 2**0.5)  # type: ignore[union-attr]


def test_learnable_powers_have_gradients_beside_points_of_no_density() -> None:
    cut = Function(lambda x: torch.where(x[..., 0] > 0, INF, x[..., 0].square()), (1,))
    power = nn.Parameter(torch.tensor(2.0))
    energy = (cut**power)(torch.tensor([[1.0], [-0.5]]))
    assert energy[0] == INF
    energy[1].backward()
    assert power.grad == 0.25


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


def test_hints_can_be_typed() -> None:
    a, b = Normal(torch.zeros(2), 1.0, name="a"), Normal(torch.zeros(2), 1.0, name="b")
    for act, said in [
        (lambda: (a & b) / 2, r"did you mean \(a & b\) \*\* 0.5"),
        (lambda: poe.conjunction(a, b), r"poe.conjunction\(a, \[b\]\)"),
        (lambda: (a | b) * 2, r"\(a \| b\) \* 2"),
    ]:
        with pytest.raises(TypeError, match=said):
            act()
    with pytest.raises(ValueError, match=r"prior & \(a \| ~a\)"):
        poe.sample(a | ~a)
    for act in (
        poe.plan,
        poe.log_z,
        poe.simplify,
        poe.normalize,
        lambda e: poe.on(e, [0], (1,)),
        lambda e: poe.save(e, "x"),
    ):
        with pytest.raises(TypeError, match="takes energies, not int"):
            act(3)  # type: ignore[operator]


def test_nan_of_a_module_is_a_failure_and_not_the_end_of_a_domain() -> None:
    class Broken(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.where(x > 0.3, math.nan, x)

    target = Normal(0.0, 1.0) & Normal(0.0, 2.0) @ Broken()
    assert target(torch.tensor(1.0)).isnan() and target(torch.tensor(0.0)).isfinite()
    draws = poe.sample(target, 200, seed=0)
    assert not draws.trusted and any("an expert fails there" in reason for reason in draws.reasons)
