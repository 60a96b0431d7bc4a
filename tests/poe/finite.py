"""Transition matrices on small discrete spaces: targets, and what a matrix and simulated rows must
satisfy."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from functools import singledispatch
from typing import Any

import torch
from torch import Tensor

import poe
from experts import RBM, Bernoulli, Categorical, Ising, Potts
from poe.algebra.support import Box
from poe.kernels import DiscreteLangevin, Flip, Gibbs, GibbsWithGradients
from poe.kernels.discrete import SiteNoise, at, neighbourhood
from poe.spaces import points
from poe.spaces.conditionals import Conditionals
from poe.spaces.sites import sites_of

F64 = torch.float64


class Table(poe.Energy):
    """Any energies over {0, ..., k_1 - 1} x {0, ..., k_2 - 1} x ..., looked up; +inf excludes a
    state. Whole numbers."""

    table: Tensor

    def __init__(self, table: Tensor) -> None:
        counts = torch.tensor(table.shape, dtype=F64)
        super().__init__(
            (table.ndim,),
            support=Box(torch.zeros_like(counts), counts - 1, integer=True),
            name="table",
        )
        self.register_buffer("table", table)

    def forward(self, x: Tensor) -> Tensor:  # (*batch, sites) -> (*batch)
        return self.table[x.long().unbind(-1)]


class Bits(poe.Energy):
    """A cubic function of d bits or spins: not linear in any of them once they are taken for real
    numbers."""

    cubic: Tensor
    slope: Tensor

    def __init__(self, d: int, *, spins: bool = False, seed: int = 0) -> None:
        low = torch.full((d,), -1.0 if spins else 0.0)
        super().__init__(
            (d,), support=Box(low, torch.ones(d), integer=True, step=2 if spins else 1), name="bits"
        )
        g = torch.Generator().manual_seed(seed)
        self.register_buffer(
            "cubic", (0.15 if spins else 0.5) * torch.randn(d, d, d, generator=g, dtype=F64)
        )
        self.register_buffer(
            "slope", (0.3 if spins else 1.0) * torch.randn(d, generator=g, dtype=F64)
        )

    def forward(self, x: Tensor) -> Tensor:  # (*batch, d) -> (*batch)
        return torch.einsum(
            "ijk,...i,...j,...k->...", self.cubic.to(x), x, x, x
        ) + x @ self.slope.to(x)


def law(energy: poe.Energy) -> tuple[Tensor, Tensor]:
    """The states with mass, (states, *event), and their probabilities, by enumeration in
    float64."""
    x = points(energy)
    logs = -energy(x).double()
    return x[logs > -math.inf], logs[logs > -math.inf].softmax(0)


def index_of(x: Tensor, states: Tensor) -> Tensor:  # (n, *event), (states, *event) -> (n)
    """Which state each point is."""
    found = (x.reshape(len(x), 1, -1) == states.reshape(1, len(states), -1)).all(-1)
    assert bool((found.sum(1) == 1).all())
    return found.long().argmax(1)


def stationarity(p: Tensor, matrix: Tensor) -> float:
    """The largest error of π P = π and of the rows' sums."""
    return float(torch.maximum((p @ matrix - p).abs().max(), (matrix.sum(1) - 1).abs().max()))


def imbalance(p: Tensor, matrix: Tensor) -> float:
    """The largest error of detailed balance."""
    flow = p.unsqueeze(-1) * matrix
    return float((flow - flow.T).abs().max())


def worst_row(
    kernel: Any, energy: poe.Energy, states: Tensor, matrix: Tensor, n: int = 20_000, seed: int = 0
) -> float:
    """The largest distance, in standard errors, between the matrix and the frequencies of one step
    from each state, n times."""
    x = states.repeat_interleave(n, 0)
    state = kernel.init(energy, x)
    state, _ = kernel.step(energy, state, kernel.noise(state, torch.Generator().manual_seed(seed)))
    moves = torch.arange(len(states)).repeat_interleave(n) * len(states) + index_of(state.x, states)
    seen = torch.bincount(moves, minlength=len(states) ** 2).reshape(len(states), -1).double() / n
    assert bool((seen[matrix == 0] == 0).all()), "a move of probability 0 was seen"
    return float(((seen - matrix).abs() / ((matrix * (1 - matrix) + 1 / n) / n).sqrt()).max())


def product_of(rows: Sequence[Tensor]) -> Tensor:
    """The product of transition matrices, the first one applied first."""
    total = rows[0]
    for row in rows[1:]:
        total = total @ row
    return total


def t(*shape: int, seed: int = 0) -> Tensor:
    """Standard normal numbers."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def excluding() -> poe.Energy:
    """27 states, seven of them excluded, among them all but one neighbour of some."""
    table = t(3, 3, 3, seed=1)
    for place in [(0, 0, 0), (0, 1, 2), (1, 1, 1), (2, 0, 1), (2, 2, 2), (1, 0, 2), (0, 2, 2)]:
        table[place] = math.inf
    return Table(table)


CHAIN = [(0, 1), (1, 2)]
SPACES: dict[str, Callable[[], poe.Energy]] = {
    "bits": lambda: Bits(4),
    "spins": lambda: Bits(3, spins=True),
    "ising": lambda: Ising((2, 2), 0.4, t(2, 2)),
    "rbm": lambda: RBM(2 * t(4, 3), t(4), t(3)),
    "a product": lambda: (
        Ising((3,), 0.5, t(3), bits=True) ** 0.7 & RBM(t(3, 2)) & Bernoulli(logits=t(3))
    ),
    "potts": lambda: Potts((3,), 3, t(3), t(3, 3)),
    "unequal ranges": lambda: Table(t(2, 3, 4)),
    "excluded categories": lambda: (
        Categorical(
            logits=torch.tensor(
                [[0.3, -math.inf, 1.0], [-1.0, 0.2, 0.1], [0.5, 0.1, -math.inf]], dtype=F64
            )
        )
        & Potts((3,), 3, 0.8, t(3, 3), edges=CHAIN)
    ),
    "excluded states": excluding,
    "a mixture": lambda: Potts((3,), 3, 0.8) | Categorical(logits=t(3, 3)),
}


@singledispatch
def proposals(kernel: Any, energy: poe.Energy, states: Tensor) -> tuple[Tensor, Tensor]:
    """(q, noise) of every pair of states: the kernel's own probability of proposing the second from
    the first, and uniform numbers for which it does so, (states, states, ...)."""
    raise NotImplementedError(type(kernel).__name__)


@proposals.register
def _(kernel: DiscreteLangevin, energy: poe.Energy, states: Tensor) -> tuple[Tensor, Tensor]:
    n, sites = len(states), sites_of(energy)
    place = sites.places(states, len(energy.event_shape)).expand(n, n, -1)
    log_q = kernel.log_proposal(neighbourhood(energy, kernel.init(energy, states), sites), sites)
    below = log_q.exp().cumsum(-1) - log_q.exp()
    chosen = at(log_q.unsqueeze(1).expand(n, n, -1, -1), place).exp()
    return chosen.prod(-1), at(below.unsqueeze(1).expand(n, n, -1, -1), place) + 0.5 * chosen


@proposals.register
def _(kernel: GibbsWithGradients, energy: poe.Energy, states: Tensor) -> tuple[Tensor, Tensor]:
    n, sites = len(states), sites_of(energy)
    place = sites.places(states, len(energy.event_shape))
    log_q = kernel.log_proposal(neighbourhood(energy, kernel.init(energy, states), sites))
    q, noise = torch.zeros(n, n, dtype=F64), torch.zeros(n, n, 1, dtype=F64)
    for i, j in itertools.product(range(n), repeat=2):
        changed = (place[i] != place[j]).nonzero().flatten()
        if len(changed) == 1:
            k = int(changed * sites.max_count + place[j, changed])
            q[i, j] = log_q[i, k].exp()
            noise[i, j] = log_q[i, :k].exp().sum() + 0.5 * q[i, j]
    return q, noise


@proposals.register
def _(kernel: Flip, energy: poe.Energy, states: Tensor) -> tuple[Tensor, Tensor]:
    n, sites = len(states), sites_of(energy)
    place, counts = sites.places(states, len(energy.event_shape)), sites.counts.tolist()
    q, noise = torch.zeros(n, n, dtype=F64), torch.zeros(n, n, kernel.count, 2, dtype=F64)
    index = {tuple(p): i for i, p in enumerate(place.tolist())}
    jumps = [(site, jump) for site, count in enumerate(counts) for jump in range(count - 1)]
    for i, path in itertools.product(range(n), itertools.product(jumps, repeat=kernel.count)):
        end = place[i].clone()
        for site, jump in path:
            end[site] = (end[site] + jump + 1) % counts[site]
        j = index.get(tuple(end.tolist()))
        if j is not None:  # else it leaves the states with mass
            q[i, j] += math.prod(1 / len(counts) / (counts[site] - 1) for site, _ in path)
            noise[i, j] = torch.tensor(
                [[(s + 0.5) / len(counts), (v + 0.5) / (counts[s] - 1)] for s, v in path]
            )
    return q, noise


def transition_matrix(kernel: Any, energy: poe.Energy, states: Tensor) -> Tensor:
    """The transition matrix of a discrete kernel. Metropolis: each pair is proposed by noise that
    leads there, and the step itself says how likely it is taken. Gibbs: the product of its blocks,
    averaged over all orders of a random scan."""
    if isinstance(kernel, Gibbs):
        blocks = block_matrices(energy, states)
        orders = itertools.permutations(blocks) if kernel.scan == "random" else [blocks]
        return torch.stack([product_of(order) for order in orders]).mean(0)
    n = len(states)
    q, noise = proposals(kernel, energy, states)
    start = kernel.init(energy, states.repeat_interleave(n, 0))
    moved, info = kernel.step(
        energy, start, SiteNoise(noise.flatten(0, 1), torch.zeros(n * n, dtype=F64))
    )
    there = index_of(moved.x, states).reshape(n, n)
    taken = (q > 0) & info.accepted.reshape(n, n)
    assert bool((there == torch.arange(n))[taken].all())  # it went where it was sent
    matrix = q * info.acceptance.reshape(n, n)
    matrix.fill_diagonal_(0)
    return matrix + (1 - matrix.sum(1)).diag()


def block_matrices(energy: poe.Energy, states: Tensor) -> list[Tensor]:
    """One transition matrix a block, from the conditionals that the kernel draws from."""
    known, n = Conditionals(energy), len(states)
    place = known.sites.places(states, len(energy.event_shape))
    found = []
    for block in known.blocks(torch.device("cpu")):
        logits = known.logits(states, block)
        if logits.ndim == 2:
            logits = torch.stack([torch.zeros_like(logits), logits], -1)
        chosen = logits.softmax(-1).unsqueeze(1).expand(n, n, -1, -1)
        probability = (
            chosen.gather(-1, place[:, block].expand(n, n, -1).unsqueeze(-1)).squeeze(-1).prod(-1)
        )
        rest = torch.tensor(
            [i for i in range(place.shape[1]) if i not in block.tolist()], dtype=torch.long
        )
        same = (place[:, rest].unsqueeze(1) == place[:, rest]).all(-1)
        found.append(torch.where(same, probability, 0))
    return found
