"""Expressions as text, and what is refused with the text to type instead."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from torch import distributions as td
from torch import nn

import poe
from experts import Beta, Distribution, Function, Gamma, Normal
from poe.algebra.energy import Energy
from tests.poe.algebra.cases import (
    EXPRESSIONS,
    F64,
    INF,
    LEAVES,
    LINE,
    NAMES,
    POINTS,
    ZERO,
    Counting,
    Linear,
    Pair,
    a,
    b,
    bowl,
    c,
    n1,
    raw,
    squash,
)


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


coin = Distribution(td.Bernoulli(torch.tensor(0.5)), name="coin")


shares = Distribution(td.Dirichlet(torch.ones(2, dtype=F64)), name="shares")


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
        (lambda: a & 3, TypeError, "right side is of type int: did you mean poe.as_energy"),
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
