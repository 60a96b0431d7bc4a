"""Graphs of pairwise models, and what is known exactly about sums over them.

A model of n sites with q values each has log weights Σ_e J_e P[x_a, x_b] + Σ_i φ_i[x_i], e = (a, b)
an edge, P a q x q table. All sums here are in float64.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

MAX_UPDATES = 1 << 27  # entries of the transfer table that are worked out in all: about a second
MAX_RANGE = 600.0  # nats of one row's effect on the next: below it nothing that counts underflows


def grid_edges(shape: Sequence[int], periodic: Sequence[bool]) -> tuple[Tensor, Tensor]:
    """Edges (m, 2) between sites of a grid, numbered in reading order, and the axis (m) that each
    runs along.

    Axis by axis, then site by site: each site with its successor. The last site of a periodic axis
    of length L goes with the first one, so that sites of an axis with L = 2 share two edges; an
    axis with L = 1 has none.
    """
    at = torch.arange(math.prod(shape)).reshape(tuple(shape))
    edges, axes = [torch.empty(0, 2, dtype=torch.long)], [torch.empty(0, dtype=torch.long)]
    for axis, (length, closed) in enumerate(zip(shape, periodic, strict=True)):
        if length > 1:
            pairs = torch.stack([at, at.roll(-1, axis)], -1)
            pairs = pairs if closed else pairs.narrow(axis, 0, length - 1)
            edges.append(pairs.reshape(-1, 2))
            axes.append(torch.full((len(edges[-1]),), axis))
    return torch.cat(edges), torch.cat(axes)


def grid_colours(shape: Sequence[int], periodic: Sequence[bool]) -> Tensor:
    """Colours (n) of the sites, no edge inside one: a checkerboard, or three colours where a
    periodic axis has odd length."""
    total, colours = torch.zeros(tuple(shape), dtype=torch.long), 2
    for axis, (length, closed) in enumerate(zip(shape, periodic, strict=True)):
        own = torch.arange(length) % 2
        if closed and length % 2 and length > 1:
            own[-1], colours = 2, 3
        total = total + own.reshape([-1 if k == axis else 1 for k in range(len(shape))])
    return (total % colours).flatten()


def greedy_colours(n: int, edges: Tensor) -> Tensor:
    """Colours (n) of the sites of any graph, the sites with most neighbours first, each the least
    colour that is free."""
    adjacent: list[list[int]] = [[] for _ in range(n)]
    for a, b in edges.tolist():
        adjacent[a].append(b)
        adjacent[b].append(a)
    colours = [-1] * n
    for site in sorted(range(n), key=lambda i: -len(adjacent[i])):
        taken = {colours[other] for other in adjacent[site]}
        colours[site] = next(c for c in range(n) if c not in taken)
    return torch.tensor(colours, dtype=torch.long)


def neighbours(n: int, edges: Tensor) -> tuple[Tensor, Tensor]:
    """Tables (degree, n) of each site's neighbours and of the edges to them; unused places hold
    site 0 and edge number m."""
    m = len(edges)
    ends, others = edges.T.reshape(-1), edges.flip(1).T.reshape(-1)
    order = ends.argsort(stable=True)
    counts = torch.bincount(ends, minlength=n)
    place = torch.arange(2 * m) - (counts.cumsum(0) - counts)[ends[order]]
    adjacent = torch.zeros(int(counts.max()) if m else 0, n, dtype=torch.long)
    bond = torch.full_like(adjacent, m)
    adjacent[place, ends[order]] = others[order]
    bond[place, ends[order]] = (torch.arange(2 * m) % max(m, 1))[order]
    return adjacent, bond


class Strip(NamedTuple):
    """A grid of rows and columns: log weights φ of the values of each site (rows, columns, q),
    couplings to the next row and to the next column (rows, columns), from the last to the first,
    and 0 where there is no edge; and the table P (q, q), symmetric."""

    sites: Tensor
    down: Tensor
    right: Tensor
    pair: Tensor

    @property
    def closed(self) -> bool:
        """Whether the last row is coupled to the first one."""
        return bool((self.down[-1] != 0).any())

    @property
    def updates(self) -> float:
        """Entries of the table that `log_z` works out."""
        rows, columns, q = self.sites.shape
        states = columns * (2 if self.closed else 1)
        return float(q**states) * rows * (columns + 1) if states < 500 else math.inf

    def transposed(self) -> Strip:
        """The same grid with rows and columns exchanged."""
        return Strip(self.sites.transpose(0, 1), self.right.T, self.down.T, self.pair)

    def log_z(self) -> float | None:
        """log of the sum over all states, by transfer matrix; None where float64 may underflow.

        A table holds the weight of all rows so far for each state of the last one (and of the first
        one, where rows close). A row is added site by site, each site of the row above being summed
        out against the one below it:

            T'[..., k, ...] = Σ_l exp(J P[l, k]) T[..., l, ...],      then  T' ← T' · exp(φ and
            edges within the row).

        Reference: Kramers and Wannier 1941, Phys. Rev. 60; site by site, Binder 1972, Physica 62.
        """
        spread = float(self.pair.max() - self.pair.min())
        closing = self.down[-1].abs().sum() if self.closed else self.down.new_zeros(())
        if float(self.down.abs().sum(1).max() + closing) * spread > MAX_RANGE:
            return None
        rows = len(self.sites)
        first = self._row(0)
        scale = first.max()
        table = (first - scale).exp()
        # (states of the first row or 1, states of the last row)
        table = table.diag() if self.closed else table.unsqueeze(0)
        for row in range(1, rows):
            table, lost = self._descend(table, row - 1)
            own = self._row(row)
            table = table * (own - own.max()).exp()
            top = table.max()
            table, scale = table / top, scale + lost + own.max() + top.log()
        if self.closed:
            table, lost = self._descend(table, rows - 1)
            return float(scale + lost + table.diagonal().sum().log())
        return float(scale + table.sum().log())

    def _row(self, row: int) -> Tensor:
        """Log weights of the states of one row (q^columns), its own edges included."""
        columns, q = self.sites.shape[1:]
        total = torch.zeros((q,) * columns, dtype=torch.float64)
        for c in range(columns):
            total = total + self.sites[row, c].reshape([q if k == c else 1 for k in range(columns)])
            if columns > 1:
                ends = sorted([c, (c + 1) % columns])
                table = self.right[row, c] * self.pair
                total = total + table.reshape([q if k in ends else 1 for k in range(columns)])
        return total.flatten()

    def _descend(self, table: Tensor, row: int) -> tuple[Tensor, Tensor]:
        """The table with the sites of `row` summed out against those below them, scaled down by so
        many nats."""
        columns, q = self.sites.shape[1:]
        logs = self.down[row, :, None, None] * self.pair
        tops = logs.amax((1, 2))
        weights = (logs - tops[:, None, None]).exp()
        shape = table.shape
        for c in range(columns):
            old = table.reshape(-1, q, q ** (columns - c - 1))
            table = (
                torch.einsum("lk,alb->akb", weights[c], old) if q > 3 else _mixed(old, weights[c])
            )
        return table.reshape(shape), tops.sum()


def _mixed(old: Tensor, weights: Tensor) -> Tensor:
    """Σ_l weights[l, k] old[a, l, b], value by value: quicker than a product of such narrow
    matrices."""
    new = torch.empty_like(old)
    for k in range(len(weights)):
        torch.mul(old[:, 0], weights[0, k], out=new[:, k])
        for other in range(1, len(weights)):
            new[:, k].add_(old[:, other] * weights[other, k])
    return new


def torus_log_z(rows: int, columns: int, down: float, right: float) -> float | None:
    """log Z of the Ising model on a torus without fields, with positive couplings K between rows
    and K' within them. With C the number of columns, cosh γ_l = cosh 2K' coth 2K - cos(πl/C) sinh
    2K' / sinh 2K and γ_l >= 0, but γ_0 = 2K' + log tanh K:

        Z = ½ (2 sinh 2K)^(RC/2) [Π 2cosh(Rγ_o/2) + Π 2sinh(Rγ_o/2) + Π 2cosh(Rγ_e/2) + Π
        2sinh(Rγ_e/2)],

    o = 1, 3, ..., 2C - 1 and e = 0, 2, ..., 2C - 2. Reference: Kaufman 1949, Phys. Rev. 76.
    """
    if not (down > 0 and right > 0) or max(down, right) > MAX_RANGE / 4 or min(rows, columns) < 2:
        return None
    k, kk = torch.tensor([2 * down, 2 * right], dtype=torch.float64)
    angle = torch.arange(2 * columns, dtype=torch.float64) * math.pi / columns
    cosh = kk.cosh() / k.tanh() - angle.cos() * kk.sinh() / k.sinh()
    gamma = (cosh.clamp(min=1)).acosh()
    gamma[0] = kk + (k / 2).tanh().log()
    half = rows * gamma / 2
    grown = half.abs()
    log_cosh = grown + (-2 * grown).exp().log1p()  # log 2 cosh
    log_sinh = grown + (-(-2 * grown).expm1()).log()  # log |2 sinh|
    logs = torch.stack([part[start::2].sum() for start in (1, 0) for part in (log_cosh, log_sinh)])
    signs = torch.tensor([1.0, 1.0, 1.0, 1.0 if gamma[0] >= 0 else -1.0], dtype=torch.float64)
    top = logs.max()
    total = top + ((logs - top).exp() * signs).sum().log()
    log_sinh_k = k + (-(-2 * k).expm1()).log()  # log 2 sinh 2K
    return float(total + rows * columns / 2 * log_sinh_k - math.log(2))
