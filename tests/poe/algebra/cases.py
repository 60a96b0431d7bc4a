"""Experts, expressions and points that several tests of the algebra use."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import torch
from hypothesis import strategies as st
from torch import Tensor, nn
from torch import distributions as td

import poe
from experts import Beta, Distribution, Function, Gamma, Normal
from poe.algebra.energy import Energy

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


n1, n2 = Normal(0.0, 1.0), Normal(0.0, 2.0)


plane = Normal(ZERO, covariance=COVARIANCE, name="plane")


lap, wide = Distribution(td.Laplace(0.0, 1.0)), Distribution(td.Laplace(0.0, 2.0))


class Linear(Energy):
    """A network in single precision."""

    def __init__(self) -> None:
        super().__init__((2,), name="net")
        self.layer = nn.Linear(2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x).squeeze(-1)


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
