"""Expressions from text: the algebra's operators are the reference, and random text must never
surprise."""

from __future__ import annotations

import math
import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.distributions import constraints

import poe
from poe.algebra.energy import Density, Energy, Estimate
from poe.io.expression import parse
from poe.io.syntax import MAX_LENGTH, ExpressionError


class Gaussian(Density):
    """N(mean, 1) on R^2."""

    def __init__(self, mean: float, name: str | None = None, shape=(2,)):
        super().__init__(shape, name=name)
        self.mean = mean

    def log_prob(self, x):
        return torch.distributions.Normal(self.mean, 1.0).log_prob(x).sum(-1)

    def sample(self, n, *, generator=None):
        shape = (n,) if isinstance(n, int) else tuple(n)
        return self.mean + torch.randn((*shape, *self.event_shape), generator=generator)


a, b, c = (Gaussian(mean, name) for mean, name in ((-1.0, "a"), (0.5, "b"), (2.0, "c")))
even = Gaussian(0.1, "digits.even")
double = nn.Linear(2, 2)
NAMES = {"a": a, "b": b, "c": c, "digits.even": even, "f": double}
X = torch.randn(5, 2, generator=torch.Generator().manual_seed(1))


CASES = {
    "a": lambda: a,
    "  a & b ": lambda: a & b,
    "a\n  & b\t| c": lambda: a & b | c,
    "digits.even & b - c": lambda: even & b - c,
    "(a & b) ** (1/3)": lambda: (a & b) ** (1 / 3),
    "~a & b ** -2": lambda: ~a & b**-2,
    "a ** -2": lambda: a**-2,
    "a / b & c ** 2.5e-1": lambda: a / b & c**0.25,
    "a ** (2 * 3 - 1 + 2 ** 2)": lambda: a**9,
    "a @ f & b": lambda: a @ double & b,
    "poe.mixture([a, b], weights=[1, 3])": lambda: poe.mixture([a, b], weights=[1, 3]),
    "mixture([a, b])": lambda: a | b,
    "product([a, b], powers=0.5)": lambda: poe.product([a, b], powers=0.5),
    "poe.product([a, b], [1, -1])": lambda: a / b,
    "contrast(a, b, strength=2)": lambda: poe.contrast(a, b, strength=2.0),
    "poe.combine([a, b, c], prior=digits.even)": lambda: poe.combine([a, b, c], prior=even),
    "poe.on(a, [0, 2], (3,))": lambda: poe.on(a, [0, 2], (3,)),
    "poe.pullback(a, f, (2,))": lambda: poe.pullback(a, double, (2,)),
    "poe.shift(a, -0.5, log_z=Estimate(0.5, 0.01))": lambda: poe.shift(
        a, -0.5, log_z=Estimate(0.5, 0.01)
    ),
    "a ** Parameter(tensor(0.25)) & b": lambda: a ** nn.Parameter(torch.tensor(0.25)) & b,
}


@pytest.mark.parametrize("text", CASES)
def test_text_means_what_python_means(text):
    expected, read = CASES[text](), parse(text, NAMES)
    assert type(read) is type(expected)
    assert str(read) == str(expected)
    x = torch.randn(5, *expected.event_shape)
    assert torch.equal(read(x), expected(x))
    assert read.log_z == expected.log_z


def test_names_stand_for_the_same_experts():
    assert parse("a & a", NAMES).energies[0] is a
    assert len(parse("a & b & a", NAMES).energies) == 2
    assert parse("digits.even", NAMES) is even


def test_a_parameter_power_is_learnable():
    read = parse("a ** Parameter(tensor(0.25))", NAMES)
    assert [p.item() for p in read.parameters()] == [0.25]
    assert all(isinstance(p, nn.Parameter) and p.requires_grad for p in read.parameters())


def leaf():
    return st.sampled_from(range(4)).map(lambda i: [a, b, c, even][i])


def grow(children):
    powers = st.sampled_from([-1.0, 0.5, 1 / 3, 2.0, 0.7123456789])
    pair = st.tuples(children, children)
    return st.one_of(
        pair.map(lambda p: p[0] & p[1]),
        pair.map(lambda p: p[0] | p[1]),
        pair.map(lambda p: p[0] - p[1]),
        pair.map(lambda p: p[0] / p[1]),
        st.tuples(children, powers).map(lambda p: p[0] ** p[1]),
        children.map(lambda e: e @ double),
        pair.map(lambda p: poe.contrast(*p, strength=0.3)),
        st.tuples(children, powers).map(lambda p: poe.shift(*p)),
    )


@given(st.recursive(leaf(), grow, max_leaves=8))
def test_what_prints_reads_back(e):
    read = parse(str(e), poe.names(e))
    assert str(read) == str(e)
    torch.testing.assert_close(read(X), e(X))


def test_a_fill_reads_back():
    e = a @ poe.fill(torch.tensor([1.0, 0.0]), torch.tensor([True, False]))
    read = parse(str(e), poe.names(e))
    x = torch.randn(4, 1)
    assert torch.equal(read(x), e(x))
    known = {"a": a, "x": torch.tensor([1.0, 0.0]), "mask": torch.tensor([True, False])}
    assert torch.equal(parse("a @ poe.fill(x, mask)", known)(x), e(x))


# ---- refusals


def refusal(text, names=NAMES):
    with pytest.raises(ExpressionError) as caught:
        parse(text, names)
    *message, _, caret = str(caught.value).split("\n")
    return "\n".join(message), len(caret) - 5


@pytest.mark.parametrize(
    ("text", "helpful", "column"),
    [
        ("a & & b", "invalid syntax", 4),
        ("a & (b", "never closed", 4),
        ("a + b", "write `a & b` for the product", 2),
        ("a & (b + c)", "write `a & b` for the product", 7),
        ("2 * a", "`a ** 2`", 2),
        ("a and b", "`a & b` for a product", 0),
        ("not a", "`~a`", 0),
        ("-a", "`~a`", 0),
        ("a ^ b", "either but not both", 2),
        ("a & evn", "unknown name 'evn'", 4),
        ("digits.evn", "did you mean 'digits.even'?", 0),
        ("a ** b", "a power is a number", 2),
        ("a ** 1e999", "numbers must be finite", 5),
        ("a ** (1/0)", "division by zero", 7),
        ("a ** (-2) ** 0.5", "real and finite", 10),
        ("a ** 9 ** 9 ** 9", "", None),
        ("a & 2", "right side is of type int", 2),
        ("2 & 3", "combines energies, not numbers", 2),
        ("2", "is the number 2, not an energy", 0),
        ("f", "not an energy", 0),
        ("~2", "cannot be applied to the number 2", 0),
        ("[a, b]", "is a list, not an energy", 0),
        ("a & [b]", "a list is allowed only as", 4),
        ("a # b", "a comment", 2),
        ("a < b", "`a < b` is not allowed here", 0),
        ("a[0]", "`a[0]` is not allowed here", 0),
        ("'a'", "is not allowed here", 0),
        ("lambda: a", "is not allowed here", 0),
        ("a if b else c", "is not allowed here", 0),
        ("(a & b).mean", "attribute of a value", 0),
        ("a.mean", "unknown name 'a.mean'", 0),
        ("a.__class__.__mro__", "unknown name", 0),
        ("__import__('os').system('true')", "cannot be called here", 0),
        ("exec('1')", "exec cannot be called here", 0),
        ("f(a)", "f cannot be called here", 0),
        ("poe.mixtur([a, b])", "did you mean 'mixture'?", 0),
        ("product", "product is a function here", 0),
        ("poe.product(*[a])", "is not allowed here", 12),
        ("poe.product([a], **b)", "given once", 19),
        ("poe.product([a], colour=2)", "unexpected keyword argument 'colour'", 0),
        ("poe.mixture([a, ~b], weights=[1, 1])", "poe.normalize", 0),
        ("a @ b", "takes a function", 2),
        ("a & poe.on(b, [0, 1], (3,))", "event shape", 2),
        ("poe.on(a, [0, 1], (2000, 2000, 2000))", "8,000,000,000 numbers", 0),
        ("poe.pullback(a, f, (2000000000,))", "2,000,000,000 numbers", 0),
        ("é & a", "unknown name 'é'", 0),
        ("a & é + b", "unknown name 'é'", 4),
    ],
)
def test_refusals_say_what_and_where(text, helpful, column):
    message, place = refusal(text)
    assert helpful in message
    assert column is None or place == column


@pytest.mark.parametrize(
    ("text", "helpful"),
    [
        ("", "empty"),
        ("   ", "empty"),
        ("a & " * MAX_LENGTH, "at most"),
        ("(" * 5000 + "a" + ")" * 5000, "."),
        ("~" * 50000 + "a", "."),
        ("- " * 30000 + "2", "."),
        ("~" * 100 + "a", "too deep"),
        ("a - " * 700 + "a", "too deep"),
        ("a & " * 20000 + "a", "too deep"),
        ("a" + ".b" * 40000, "."),
        ("a ** " * 5000 + "2", "."),
        ("[" * 150 + "]" * 150, "too deep"),
        ("9" * 5000, "."),
        ("a ** 1" + "0" * 400, "numbers must be finite"),
        ("poe.shift(a, 1" + "0" * 400 + ")", "numbers must be finite"),
        ("a ** (10 ** 200 * 10 ** 200)", "real and finite"),
        ("(a ** 1e200) ** 1e200", "these powers multiply to more"),
        ("a \0 b", "."),
        ("\ud800", "."),
    ],
)
def test_size_depth_and_odd_characters(text, helpful):
    with pytest.raises(ExpressionError, match=helpful):
        parse(text, NAMES)


def test_only_text_is_parsed():
    with pytest.raises(ExpressionError, match="is text, not"):
        parse(3, NAMES)  # type: ignore[arg-type]


def test_long_flat_expressions_are_fine():
    many = {f"e{i}": Gaussian(i / 100, f"e{i}") for i in range(150)}
    assert len(parse(" & ".join(many), many).energies) == 150
    assert len(parse(" | ".join(many), many).energies) == 150


def test_the_caret_stays_under_the_place_in_long_text():
    text = "a & " * 40 + "evn" + " & b" * 40
    with pytest.raises(ExpressionError) as caught:
        parse(text, NAMES)
    _, shown, caret = str(caught.value).split("\n")
    assert shown[caret.index("^") :].startswith("evn")


WORDS = """
a b c f digits.even digits zz poe.product poe.mixture( contrast( on( fill( pullback( shift( combine( Estimate(
Parameter( tensor( powers= weights= strength= log_z= prior= & | ** / ~ - @ + * ^ % // << and or not is in == (
) [ ] { } , : . = := 1 2 0.5 1e400 -1 0 1j True None lambda if else for await yield 'x' " f'{a}' # ; $ ? ! `
... \\ é 𝐚 ﬁ __class__ __import__('os') 2000000000
"""  # noqa: E501
PIECES = [*WORDS.split(), " ", "\n", "\t", "\0", "\ud800"]


_NUMBERS = """
0 1 2 -1 0.5 (1/3) -2 7 1e-300 1e300 1e308*10 -0.0 2**0.5 (1-1) 1000000 True None (-2)**0.5 0**-1
"""
NUMBERS = _NUMBERS.split()
INDICES = [
    "[0, 1]",
    "[0]",
    "[1, 2]",
    "[0, 0]",
    "[-1, 0]",
    "[5]",
    "[]",
    "[0.5, 1]",
    "x",
    "mask",
    "a",
]
SHAPES = [
    "(3,)",
    "(2,)",
    "(2, 2)",
    "3",
    "(0,)",
    "(-1,)",
    "(2.5,)",
    "()",
    "[4]",
    "(1000, 1000)",
    "None",
    "(True, 2)",
]


def sentence(rng: random.Random, names: list[str], depth: int) -> str:
    """Text that the grammar of expressions allows, whatever the algebra says to it."""
    if depth <= 0 or rng.random() < 0.2:
        return rng.choice(names)

    def inner() -> str:
        return sentence(rng, names, depth - 1)

    def number() -> str:
        return rng.choice(NUMBERS)

    def some(thing) -> str:
        return f"[{', '.join(thing() for _ in range(rng.randrange(1, 4)))}]"

    if rng.random() < 0.5:
        text = f"{inner()} {rng.choice('&|-/')} {inner()}"
        return f"({text})" if rng.random() < 0.5 else text
    return rng.choice(
        [
            f"({inner()}) ** {number()}",
            f"~{inner()}",
            f"({inner()}) @ {rng.choice(['f', 'poe.fill(x, mask)', 'poe.fill(mask, x)', 'x', 'a'])}",  # noqa: E501
            f"poe.mixture({some(inner)})",
            f"mixture({some(inner)}, weights={some(number)})",
            f"poe.product({some(inner)}, powers={rng.choice([number(), some(number)])})",
            f"poe.contrast({inner()}, {inner()}, strength={number()})",
            f"poe.combine({some(inner)}, prior={inner()})",
            f"poe.on({inner()}, {rng.choice(INDICES)}, {rng.choice(SHAPES)})",
            f"poe.pullback({inner()}, {rng.choice(['f', 'x'])}, {rng.choice(SHAPES)})",
            f"poe.shift({inner()}, {number()})",
            f"shift({inner()}, {number()}, "
            f"log_z={rng.choice([f'Estimate({number()}, {number()})', number(), some(number)])})",
            f"({inner()}) ** "
            f"Parameter({rng.choice([f'tensor({number()})', number(), 'x', 'mask', 'a'])})",
            f"({inner()}) ** {rng.choice(['tensor(2)', 'Estimate(1, 2)', 'x', inner()])}",
            f"normalize({rng.choice(['a', 'a | b', 'bits', 'f'])})",
        ]
    )


def junk(rng: random.Random, names: list[str]) -> str:
    """Random text: pieces of expressions, any characters, valid cases damaged, or sentences of the
    grammar."""
    kind, size = rng.random(), rng.randrange(1, 14)
    if kind < 0.2:
        return "".join(rng.choice(PIECES) + rng.choice(["", " "]) for _ in range(size))
    if kind < 0.3:
        return "".join(
            chr(rng.choice([rng.randrange(128), rng.randrange(0x3000)])) for _ in range(size)
        )
    text = list(rng.choice(list(CASES)) if kind < 0.5 else sentence(rng, names, rng.randrange(5)))
    for _ in range(rng.randrange(3) if kind < 0.65 else 0):
        text[rng.randrange(len(text))] = rng.choice(PIECES)
    return "".join(text)


class Cut(Energy):
    """A flat energy on a box of R^2, or any other event."""

    def forward(self, x):
        return x.new_zeros(x.shape[: x.ndim - len(self.event_shape)])


class Bits(Cut):
    """All patterns of two bits, evenly likely."""

    @property
    def log_z(self):
        return Estimate(2 * math.log(2))


ODD = NAMES | {
    "low": Cut((2,), support=constraints.interval(0.0, 1.0), name="low"),
    "high": Cut((2,), support=constraints.interval(2.0, 3.0), name="high"),
    "one": Cut((), name="one"),
    "simplex": Cut((2,), support=constraints.simplex, name="simplex"),
    "bits": Bits((2,), support=constraints.independent(constraints.boolean, 1), name="bits"),
    "x": torch.tensor([1.0, 0.0]),
    "mask": torch.tensor([True, False]),
    "three": 3,
    "word": "a",
}


def check_refusal(error: ExpressionError, text: str) -> None:
    lines = str(error).split("\n")
    if error.column is None:
        assert len(lines) == 1 and any(
            word in lines[0] for word in ("empty", "too deep", "cannot read")
        ), text
    else:
        assert lines[-1].strip() == "^" and 0 <= error.column <= len(text), text


def check_random_text(seed: int, count: int) -> None:
    """Each text gives an energy that prints, states its facts and reads back as it prints, or an
    ExpressionError with a place."""
    rng, energies = random.Random(seed), 0
    for _ in range(count):
        text = junk(rng, list(ODD))
        try:
            energy = parse(text, ODD)
        except ExpressionError as error:
            check_refusal(error, text)
            continue
        energies += 1
        assert energy.proper in (True, False, None) and (
            energy.log_z is None or math.isfinite(energy.log_z.value)
        ), text
        assert str(parse(str(energy), poe.names(energy))) == str(energy), text
    assert count / 10 < energies < count * 9 / 10  # both happen, so that the test says something


def test_random_text_gives_an_energy_or_an_expression_error():
    check_random_text(seed=0, count=1000)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 5))
def test_much_random_text_gives_an_energy_or_an_expression_error(seed):
    check_random_text(seed, count=10_000)


def test_a_file_of_the_same_name_hides_no_error(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "out").mkdir()
    with pytest.raises(ExpressionError, match="unknown name 'out'; known: digits.even"):
        parse("out")
    assert parse("digits.even & digits.loops").event_shape == (8, 8)


@pytest.mark.parametrize(
    ("text", "column"),
    [
        ("  a & & b", 6),
        ("a &\n  evn", 6),
        ("évn & a", 0),
        ("  a # b", 4),
        ("a & (b + c)", 7),
        ("", None),
        ("~" * 100 + "a", 61),
    ],
)
def test_columns_count_characters_of_the_text(text, column):
    with pytest.raises(ExpressionError) as caught:
        parse(text, NAMES)
    assert caught.value.column == column
