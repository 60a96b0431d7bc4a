"""Discrete targets with several phases, each with its exact log Z and exact probabilities of
events: by sums over magnetisations, transfer matrices, or sums over one layer, in float64.

A `Case` is black-box energies where nothing else is said: an `Energy` with a `forward`, so that no
method is told of its structure.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.distributions import constraints

import poe
from experts import RBM, Ising
from poe.algebra.support import Box

F64 = torch.float64


@dataclass(frozen=True)
class Case:
    """A target, its log Z, events as a function (n, *event) -> (n, events), and their
    probabilities."""

    name: str
    energy: poe.Energy
    log_z: float
    events: Callable[[Tensor], Tensor]
    shares: Tensor


class Black(poe.Energy):
    """An energy of bits, spins or colours from a function, which is all that is known of it."""

    def __init__(self, function: Callable[[Tensor], Tensor], n: int, kind: str = "bits") -> None:
        if kind == "bits":
            support = constraints.boolean
        elif kind == "spins":
            support = Box(torch.full((n,), -1.0), torch.ones(n), integer=True, step=2)
        else:
            support = Box(torch.zeros(n), torch.full((n,), float(kind) - 1), integer=True)
        super().__init__((n,), support=support, name="black")
        self.function, self.kind = function, kind

    def spins(self, x: Tensor) -> Tensor:
        return 2 * x - 1 if self.kind == "bits" else x

    def forward(self, x: Tensor) -> Tensor:  # (*batch, n) -> (*batch)
        return self.function(self.spins(x))


def spins_of(case: Case, x: Tensor) -> Tensor:
    """Draws as ±1."""
    return torch.where(x > 0, 1.0, -1.0).double()


def curie_weiss(n: int = 64, beta: float = 1.2, field: float = 0.0, kind: str = "bits") -> Case:
    """E = -β (Σ s)² / (2n) - h Σ s. Exact by the sum over the number of spins up."""
    up = torch.arange(n + 1, dtype=F64)
    total = 2 * up - n
    count = math.lgamma(n + 1) - (up + 1).lgamma() - (n - up + 1).lgamma()
    logs = count + beta * total**2 / (2 * n) + field * total
    law = logs.softmax(0)
    edges = [0.0, 0.25 * n, -0.25 * n, 0.6 * n, -0.6 * n]
    shares = torch.stack([law[total > edge].sum() for edge in edges])

    def events(x: Tensor) -> Tensor:
        m = torch.where(x > 0, 1.0, -1.0).double().flatten(1).sum(1)
        return torch.stack([(m > edge).double() for edge in edges], 1)

    energy = Black(lambda s: -beta * s.sum(-1) ** 2 / (2 * n) - field * s.sum(-1), n, kind)
    name = f"curie-weiss n={n} beta={beta} h={field} {kind}"
    return Case(name, energy, float(logs.logsumexp(0)), events, shares)


def potts_transition(q: int) -> float:
    """β at the first-order transition of E = -β Σ_c N_c² / (2n) (Wu 1982, Rev. Mod. Phys. 54)."""
    return 2 * (q - 1) * math.log(q - 1) / (q - 2)


def mean_field_potts(n: int = 64, q: int = 3, beta: float | None = None) -> Case:
    """E = -β Σ_c N_c² / (2n) over n sites of q colours, N_c the number of each. Exact by the sum
    over these numbers. Events: each colour has the majority (halfway between (q - 1)/q of an
    ordered phase and 1/q), and none has."""
    beta = potts_transition(q) if beta is None else beta
    counts = torch.tensor(
        [c for c in itertools.product(range(n + 1), repeat=q - 1) if sum(c) <= n], dtype=F64
    )
    counts = torch.cat([counts, n - counts.sum(1, keepdim=True)], 1)
    logs = math.lgamma(n + 1) - (counts + 1).lgamma().sum(1)
    logs = logs + beta * counts.square().sum(1) / (2 * n)
    law, most = logs.softmax(0), n * ((q - 1) / q + 1 / q) / 2

    def of_counts(counts: Tensor) -> Tensor:
        ordered = (counts > most).double()
        return torch.cat([ordered, 1 - ordered.sum(1, keepdim=True)], 1)

    def events(x: Tensor) -> Tensor:
        return of_counts(torch.nn.functional.one_hot(x.long(), q).sum(1).double())

    def energy(x: Tensor) -> Tensor:
        numbers = torch.stack([(x == c).sum(-1) for c in range(q)], -1).to(
            torch.get_default_dtype()
        )
        return -beta * numbers.square().sum(-1) / (2 * n)

    shares = law @ of_counts(counts)
    name = f"potts n={n} q={q} beta={beta:.3f}"
    return Case(name, Black(energy, n, str(q)), float(logs.logsumexp(0)), events, shares)


def strong_rbm(
    n: int = 40,
    hidden: int = 30,
    amplitude: float = 3.0,
    scale: float = 0.1,
    seed: int = 0,
    pattern: str = "ones",
    share: float = 0.5,
) -> Case:
    """An RBM of small weights N(0, scale²), of whose hidden units one has weights ±`amplitude` to
    all visible ones (all +, or random signs) and such a bias that it is on with probability
    `share`.

    Reference: given that unit, the others are weak; both parts of Z by importance sampling of 2^19
    draws of independent sites that match its marginals to first order; the error is below 1e-3.
    """
    g = torch.Generator().manual_seed(1000 + seed)
    weights = scale * torch.randn(n, hidden, generator=g, dtype=F64)
    sign = torch.ones(n, dtype=F64)
    if pattern != "ones":
        sign = (torch.rand(n, generator=g, dtype=F64) < 0.5).double() * 2 - 1
    weights[:, 0] = amplitude * sign
    parts, means = [], []
    for on in (0.0, 1.0):
        odds = on * weights[:, 0] + weights[:, 1:].sum(1) / 2
        v = (torch.rand(1 << 19, n, generator=g, dtype=F64) < odds.sigmoid()).double()
        log_q = v @ odds - torch.nn.functional.softplus(odds).sum()
        inputs = v @ weights[:, 1:]
        log_w = on * (v @ weights[:, 0]) + torch.nn.functional.softplus(inputs).sum(1) - log_q
        parts.append(float(log_w.logsumexp(0)) - math.log(len(log_w)))
        means.append(log_w.softmax(0) @ v)
    bias = torch.zeros(hidden, dtype=F64)
    bias[0] = parts[0] - parts[1] + math.log(share / (1 - share))
    log_z = parts[0] - math.log1p(-share)

    def events(x: Tensor) -> Tensor:
        v = x.double().flatten(1)
        on = (v @ weights[:, 0] + bias[0]).sigmoid()  # probability of the unit given v
        return torch.cat([on.unsqueeze(1), v], 1)

    shares = torch.cat(
        [torch.tensor([share], dtype=F64), (1 - share) * means[0] + share * means[1]]
    )
    rbm = RBM(weights.float(), 0.0, bias.float())
    name = f"rbm {n}x{hidden} amplitude={amplitude} scale={scale} {pattern} share={share} #{seed}"
    return Case(name, rbm, log_z, events, shares)


def spin_glass(
    rows: int = 8, width: int = 4, beta: float = 2.0, seed: int = 0, kind: str = "ising"
) -> Case:
    """±J bonds on a grid of `rows` x `width`, periodic along both axes: E = -β Σ J s s. Exact by
    transfer matrix between rows; the events are s_0 = s_i for each i, from the log Z with s_0 = 1
    and its derivatives by fields."""
    g = torch.Generator().manual_seed(2000 + seed)
    across = torch.where(torch.rand(rows, width, generator=g) < 0.5, -1.0, 1.0).double()
    down = torch.where(torch.rand(rows, width, generator=g) < 0.5, -1.0, 1.0).double()
    states = torch.tensor(list(itertools.product([-1.0, 1.0], repeat=width)), dtype=F64)

    def log_z(fields: Tensor, pinned: bool) -> Tensor:
        product, logs = torch.eye(len(states), dtype=F64), torch.zeros((), dtype=F64)
        for r in range(rows):
            own = beta * (states * states.roll(-1, 1)) @ across[r] + states @ fields[r]
            if pinned and r == 0:
                own = own.masked_fill(states[:, 0] < 0, -math.inf)
            step = (own[:, None] + beta * (states * down[r]) @ states.T).exp()
            product = product @ step
            size = product.max()
            product, logs = product / size, logs + size.log()
        return product.diagonal().sum().log() + logs

    zero = torch.zeros(rows, width, dtype=F64, requires_grad=True)
    (mean,) = torch.autograd.grad(log_z(zero, True), zero)
    shares = (1 + mean.flatten()[1:]) / 2

    def events(x: Tensor) -> Tensor:
        s = torch.where(x > 0, 1.0, -1.0).flatten(1)
        return torch.cat([(s[:, :1] > 0).double(), (s[:, :1] == s[:, 1:]).double()], 1)

    shares = torch.cat([torch.tensor([0.5], dtype=F64), shares])
    name = f"spin glass {rows}x{width} beta={beta} {kind} #{seed}"
    exact = float(log_z(zero, False).detach())
    if kind == "ising":
        bonds = torch.cat([down.flatten(), across.flatten()])  # in the order of the grid's edges
        return Case(name, Ising((rows, width), beta * bonds), exact, events, shares)

    def energy(s: Tensor) -> Tensor:
        s = s.unflatten(-1, (rows, width))
        bonds = across.to(s) * s * s.roll(-1, -1) + down.to(s) * s * s.roll(-1, -2)
        return -beta * bonds.sum((-1, -2))

    return Case(name, Black(energy, rows * width, kind), exact, events, shares)


def hopfield(
    n: int = 64, patterns: int = 3, beta: float = 1.5, seed: int = 0, kind: str = "spins"
) -> Case:
    """E = -β Σ_μ (ξ^μ · s)² / (2n) with random patterns. Exact by the sum over the numbers of
    spins up among the sites of each class (ξ^1 ξ^μ)_μ, by the symmetry s -> ξ^1 s. Events: the
    overlap with each pattern, and its sign, is the largest."""
    g = torch.Generator().manual_seed(3000 + seed)
    xi = torch.where(torch.rand(patterns, n, generator=g) < 0.5, -1.0, 1.0).double()
    classes, number = (xi[0] * xi[1:]).unique(dim=1, return_counts=True)  # (patterns - 1, k), (k)
    sides = [torch.arange(int(c) + 1, dtype=F64) for c in number]
    up = torch.stack([grid.flatten() for grid in torch.meshgrid(*sides, indexing="ij")], 1)
    total, size = 2 * up - number, number.double()
    signs = torch.cat([torch.ones(1, len(number), dtype=F64), classes])
    overlap = total @ signs.T  # (states, patterns)
    count = (size + 1).lgamma() - (up + 1).lgamma() - (size - up + 1).lgamma()
    logs = count.sum(1) + beta * overlap.square().sum(1) / (2 * n)

    def of_overlaps(m: Tensor) -> Tensor:
        both = torch.cat([m, -m], 1)
        first = (both == both.max(1, keepdim=True).values).double()
        return first / first.sum(1, keepdim=True)

    def events(x: Tensor) -> Tensor:
        return of_overlaps(torch.where(x > 0, 1.0, -1.0).double().flatten(1) @ xi.T)

    energy = Black(lambda s: -beta * (s @ xi.T.to(s)).square().sum(-1) / (2 * n), n, kind)
    name = f"hopfield n={n} patterns={patterns} beta={beta} {kind} #{seed}"
    shares = logs.softmax(0) @ of_overlaps(overlap)
    return Case(name, energy, float(logs.logsumexp(0)), events, shares)


def planted(n: int = 50, count: int = 5, seed: int = 0, strength: float = 2.0) -> Case:
    """A black-box mixture of `count` products of independent bits around random patterns, of
    log-odds ±`strength` and weights .05 to .9: log Z = 0. Events: which part most likely drew x;
    their probabilities from 2^20 exact draws."""
    g = torch.Generator().manual_seed(4000 + seed)
    weights = 0.05 + 0.85 * torch.rand(count, generator=g, dtype=F64)
    weights = weights / weights.sum()
    odds = strength * torch.where(torch.rand(count, n, generator=g) < 0.5, -1.0, 1.0).double()
    zero = torch.nn.functional.logsigmoid(-odds).sum(1) + weights.log()

    def parts(x: Tensor) -> Tensor:
        return x @ odds.T.to(x) + zero.to(x)

    def events(x: Tensor) -> Tensor:
        return parts(x.double().flatten(1)).softmax(1)

    energy = Black(lambda s: -parts((s + 1) / 2).logsumexp(-1), n)
    return Case(
        f"planted n={n} parts={count} strength={strength} #{seed}", energy, 0.0, events, weights
    )


# functions that build the targets that must be right, and more of the same kinds in other sizes,
# units and strengths
REQUIRED: list[partial[Case]] = [
    partial(curie_weiss, 64, 1.2),
    partial(curie_weiss, 64, 1.5),
    partial(mean_field_potts, 64, 3),
    partial(strong_rbm),
    *(partial(spin_glass, seed=k) for k in range(5)),
    partial(hopfield),
]
FAMILY: list[partial[Case]] = [
    partial(curie_weiss, 32, 1.3, kind="spins"),
    partial(curie_weiss, 128, 1.2),
    partial(curie_weiss, 100, 1.5, field=0.01, kind="spins"),
    partial(curie_weiss, 64, 2.0),
    partial(mean_field_potts, 48, 4),
    partial(mean_field_potts, 120, 3),
    partial(mean_field_potts, 60, 5),
    partial(strong_rbm, scale=0.25, seed=1),
    partial(strong_rbm, 24, 20, 4.0, pattern="random", share=0.3, seed=2),
    partial(strong_rbm, 60, 30, 2.0, pattern="random", share=0.7, seed=3),
    *(partial(spin_glass, seed=10 + k, kind="bits") for k in range(2)),
    partial(spin_glass, 6, 6, 2.0, seed=20),
    partial(spin_glass, 8, 4, 1.0, seed=21, kind="spins"),
    partial(spin_glass, 8, 8, 1.5, seed=22),
    partial(hopfield, 48, 3, 1.8, seed=1, kind="bits"),
    partial(hopfield, 100, 3, 1.3, seed=2),
    partial(hopfield, 64, 2, 2.5, seed=3),
    partial(planted),
    partial(planted, 80, 8, seed=1),
    partial(planted, 40, 3, seed=2, strength=4.0),
]
