"""Sites on a graph that are coupled in pairs: what Ising and Potts models have in common."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from experts.boltzmann.lattice import (
    MAX_UPDATES,
    Strip,
    greedy_colours,
    grid_colours,
    grid_edges,
    neighbours,
)
from experts.boltzmann.machine import Machine
from experts.families import parameters as param
from poe.algebra import support as sets

MAX_TABLES = 16  # sets of sites whose neighbours are kept


class PairModel(Machine):
    """Sites on a graph, each with fields of its own, coupled along edges; a subclass says how.

    Arguments:
        couplings: one for all edges; on a grid, one for each axis; or one for each edge, in the
            order of `edges`.
        edges: (m, 2) pairs of sites, numbered in reading order. None: a grid over the event's axes,
            neighbours along each of them.
        periodic: of a grid, whether an axis closes, for all or for each; an axis of length 2 then
            has two edges between its sites.
    """

    couplings: Tensor
    fields: Tensor
    edges: Tensor
    _adjacent: Tensor
    _bond: Tensor

    def __init__(
        self,
        couplings: Any,
        fields: Any,
        *,
        event_shape: Sequence[int],
        support: sets.Constraint,
        values: int,
        edges: Any,
        periodic: bool | Sequence[bool],
        structure: dict[str, Any],
        learnable: bool,
        name: str | None,
    ) -> None:
        shape = torch.Size(event_shape)
        n = shape.numel()
        each = (periodic,) * len(shape) if isinstance(periodic, bool) else periodic
        closed = tuple(map(bool, each))
        if len(closed) != len(shape):
            raise ValueError(
                f"periodic must be one truth value, or one for each of {len(shape)} axes, not "
                f"{len(closed)}"
            )
        if edges is None:
            pairs, axes = grid_edges(shape, closed)
            colours = grid_colours(shape, closed)
        else:
            pairs, axes = _checked(edges, n), None
            colours = greedy_colours(n, pairs)
        numbers = param.tensors(couplings=couplings, fields=fields)
        _check_couplings(numbers["couplings"], len(pairs), 0 if axes is None else len(shape))
        wanted, fields = (*shape, values) if values else tuple(shape), numbers["fields"]
        event = torch.empty(wanted, device="meta")
        if param.common_shape({"fields": fields, "event": event}) != torch.Size(wanted):
            raise ValueError(f"fields of shape {tuple(fields.shape)} do not fit {wanted}")
        numbers |= param.expanded({"fields": fields}, wanted)
        count = int(colours.max()) + 1 if n else 0
        blocks = [(colours == k).nonzero().squeeze(-1) for k in range(count)]
        structure = {
            "event_shape": list(shape),
            "edges": None if edges is None else pairs.tolist(),
            "periodic": list(closed),
            **structure,
        }
        super().__init__(
            numbers,
            structure,
            event_shape=shape,
            support=support,
            blocks=blocks,
            learnable=learnable,
            name=name,
        )
        adjacent, bond = neighbours(n, pairs)
        for key, table in (("edges", pairs), ("_adjacent", adjacent), ("_bond", bond)):
            self.register_buffer(key, table.to(self.device), persistent=False)
        self._ragged = bool((bond == len(pairs)).any())
        self._tables: dict[int, tuple[Tensor, Tensor, Tensor]] = {}
        dims = 0 if axes is None else len(shape)
        self._lengths = tuple(int((axes == k).sum()) for k in range(dims))
        self._wide = values

    @property
    def periodic(self) -> tuple[bool, ...]:
        """Whether each axis of a grid closes."""
        return tuple(self._structure["periodic"])

    @property
    def is_grid(self) -> bool:
        """Whether the edges are those of a grid over the event's axes."""
        return self._structure["edges"] is None

    @property
    def edge_couplings(self) -> Tensor:
        """The coupling of each edge, (m)."""
        if self.couplings.numel() > 1 and self.couplings.shape != (len(self.edges),):
            return self.couplings.repeat_interleave(torch.tensor(self._lengths, device=self.device))
        return self.couplings.expand(len(self.edges))

    def _axis_couplings(self) -> list[tuple[int, Tensor]]:
        """Of a grid, each axis along which there are edges, counted from the last, and the
        couplings of the sites that have a successor along it, in the shape of these sites."""
        shape, found = self.event_shape, []
        each = self.couplings.shape == (len(self.edges),)
        for axis, count in enumerate(self._lengths):
            if not count:
                continue
            sites = [*shape[:axis], shape[axis] - (not self.periodic[axis]), *shape[axis + 1 :]]
            if each:
                piece = self.couplings.narrow(0, sum(self._lengths[:axis]), count).reshape(sites)
            elif self.couplings.numel() > 1:
                piece = self.couplings[axis].expand(sites)
            else:
                piece = self.couplings.expand(sites)
            found.append((axis - len(shape), piece))
        return found

    def _pairs(
        self, s: Tensor, axis: int, couplings: Tensor
    ) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Of a grid, neighbours along an axis as pairs of slices of s, with their couplings:
        inside, and from the last to the first."""
        last = s.shape[axis] - 1
        places = [(0, 1, last), (last, 0, 1)] if self.periodic[axis] else [(0, 1, last)]
        return [
            (s.narrow(axis, a, n), s.narrow(axis, b, n), couplings.narrow(axis, a, n))
            for a, b, n in places
        ]

    @abstractmethod
    def site_logits(self, x: Tensor, sites: Tensor) -> Tensor:
        # (*batch, *event), (k) -> (*batch, k) or (*batch, k, q)
        """Log-odds or log weights of these sites, each given all others, in nats."""

    def sample_block(self, x: Tensor, block: int, uniforms: Tensor) -> Tensor:
        # (*batch, *event), (*batch, len(block)) -> (*batch, *event)
        """x with the sites of one colour redrawn from their exact conditionals."""
        with torch.no_grad():
            return self._redrawn(x, block, self.site_logits(x, self.blocks[block]), uniforms)

    def _around(self, sites: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Neighbours (degree, k) of some sites, the edges to them, and couplings by edge; one more,
        0, for places that are empty."""
        known = self._tables.get(id(sites))
        if known is None or known[0] is not sites:
            if len(self._tables) >= MAX_TABLES:
                self._tables.clear()
            known = self._tables[id(sites)] = sites, self._adjacent[:, sites], self._bond[:, sites]
        _, adjacent, bond = known
        couplings = self.edge_couplings
        if self._ragged:
            couplings = torch.cat([couplings, couplings.new_zeros(1)])
        return adjacent, bond, couplings

    @abstractmethod
    def _weights(self) -> tuple[Tensor, Tensor]:
        """Log weights φ (n, q) of each site's values, and the table P (q, q) that couplings
        multiply, in float64."""

    def _sum(self, patient: bool) -> float | None:
        fields, pair = self._weights()
        if self.is_grid and 0 < sum(length > 1 for length in self.event_shape) <= 2:
            strip = self._strip(fields, pair)
            torus = self._torus(strip)
            if torus is not None:
                return torus
            best = min(strip, strip.transposed(), key=lambda s: s.updates)
            if best.updates <= MAX_UPDATES and (value := best.log_z()) is not None:
                return value
        return self._enumerated()

    def _strip(self, fields: Tensor, pair: Tensor) -> Strip:
        """A grid whose axes longer than 1 are rows and columns."""
        rows, columns = ([length for length in self.event_shape if length > 1] + [1])[:2]
        tables = [torch.zeros(rows, columns, dtype=torch.float64) for _ in range(2)]
        sizes = [(-1, columns), (rows, -1)]
        for table, sites, (_, piece) in zip(tables, sizes, self._axis_couplings(), strict=False):
            piece = piece.detach().double().cpu().reshape(sites)
            table[: piece.shape[0], : piece.shape[1]] = piece
        return Strip(fields.reshape(rows, columns, -1), tables[0], tables[1], pair)

    def _torus(self, strip: Strip) -> float | None:
        """log Z by a closed formula; None where there is no such formula."""
        return None


def _checked(edges: Any, n: int) -> Tensor:
    pairs = torch.as_tensor(edges, dtype=torch.long).reshape(-1, 2).detach().clone()
    if len(pairs) and (int(pairs.min()) < 0 or int(pairs.max()) >= n):
        raise ValueError(
            f"edges join sites 0 to {n - 1}, got {pairs.min().item()} to {pairs.max().item()}"
        )
    if bool((pairs[:, 0] == pairs[:, 1]).any()):
        raise ValueError(
            "an edge must join two different sites; the energy of one site is given by fields="
        )
    return pairs


def _check_couplings(couplings: Tensor, m: int, dims: int) -> None:
    if couplings.shape not in ((), (1,), (m,), (dims or m,)):
        axis = f", or {dims}, one an axis" if dims else ""
        raise ValueError(
            f"couplings of shape {tuple(couplings.shape)} do not fit {m} edges: give one, or "
            f"{m}{axis}"
        )
