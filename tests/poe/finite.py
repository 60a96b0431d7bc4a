"""Transition matrices on small discrete spaces: targets, and what a matrix and simulated rows must
satisfy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

import poe
from poe.algebra.support import Box
from poe.spaces import points

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
