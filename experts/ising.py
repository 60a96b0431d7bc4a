"""Pairwise models on graphs and grids: Ising spins and Potts colours.

Log Z is exact for a torus of Ising spins with one positive coupling an axis and no field (Kaufman), for strips of a grid by
transfer matrix (`experts.lattice.MOST_UPDATES`: a torus to 10 x 10, an open or half-open grid to width 16 or so), and for a million
states of any graph by enumeration. Blocks for Gibbs are the colours of a proper colouring: a checkerboard on grids.
"""

from __future__ import annotations

import functools
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from experts import parameters as param
from experts.discrete import Machine, shared_dtype
from experts.exponential import Bernoulli, Categorical
from experts.lattice import (
    MOST_UPDATES,
    Strip,
    greedy_colours,
    grid_colours,
    grid_edges,
    neighbours,
    torus_log_z,
)
from poe import support as sets
from poe.energy import shift
from poe.registry import register
from poe.rules import closed_form

Factor = tuple[Any, float]
MOST_TABLES = 16  # sets of sites whose neighbours are remembered


class PairModel(Machine):
    """Sites on a graph, each with fields of its own, coupled along edges; a subclass says how.

    Arguments:
        couplings: one for all edges; on a grid, one for each axis; or one for each edge, in the order of `edges`.
        edges: (m, 2) pairs of sites, numbered in reading order. None: a grid over the event's axes, neighbours along each of them.
        periodic: of a grid, whether an axis closes, for all or for each; an axis of length 2 then has two edges between its sites.
    """

    couplings: Tensor
    fields: Tensor
    edges: Tensor
    _near: Tensor
    _bond: Tensor

    def __init__(
        self,
        couplings: Any,
        fields: Any,
        *,
        support: sets.Box,
        values: int,
        edges: Any,
        periodic: bool | Sequence[bool],
        structure: dict[str, Any],
        learnable: bool,
        name: str | None,
    ) -> None:
        shape, n = support.event_shape, support.event_shape.numel()
        closed = (periodic,) * len(shape) if isinstance(periodic, bool) else tuple(map(bool, periodic))
        if len(closed) != len(shape):
            raise ValueError(f"periodic takes one truth value, or one for each of {len(shape)} axes, not {len(closed)}")
        if edges is None:
            pairs, axes = grid_edges(shape, closed)
            colours = grid_colours(shape, closed)
        else:
            pairs, axes = _checked(edges, n), None
            colours = greedy_colours(n, pairs)
        numbers = param.tensors(couplings=couplings, fields=fields)
        _check_couplings(numbers["couplings"], len(pairs), 0 if axes is None else len(shape))
        wanted = (*shape, values) if values else tuple(shape)
        if param.common_shape({"fields": numbers["fields"], "event": torch.empty(wanted, device="meta")}) != torch.Size(wanted):
            raise ValueError(f"fields of shape {tuple(numbers['fields'].shape)} do not fit {wanted}")
        numbers = {"couplings": numbers["couplings"], **param.expanded({"fields": numbers["fields"]}, wanted)}
        blocks = [(colours == k).nonzero().squeeze(-1) for k in range(int(colours.max()) + 1)] if n else []
        structure = {
            "event_shape": list(shape),
            "edges": None if edges is None else pairs.tolist(),
            "periodic": list(closed),
            **structure,
        }
        super().__init__(numbers, structure, support=support, blocks=blocks, learnable=learnable, name=name)
        near, bond = neighbours(n, pairs)
        for key, table in (("edges", pairs), ("_near", near), ("_bond", bond)):
            self.register_buffer(key, table, persistent=False)
        self._ragged = bool((bond == len(pairs)).any())
        self._tables: dict[int, tuple[Tensor, Tensor, Tensor]] = {}
        self._lengths = () if axes is None else tuple(int((axes == k).sum()) for k in range(len(shape)))
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
        """Of a grid, each axis along which there are edges, counted from the last, and the couplings of the sites that have a successor
        along it, in the shape of these sites."""
        shape, found = self.event_shape, []
        each = self.couplings.shape == (len(self.edges),)
        for axis, count in enumerate(self._lengths):
            if not count:
                continue
            sites = [*shape[:axis], shape[axis] - (not self.periodic[axis]), *shape[axis + 1 :]]
            if each:
                piece = self.couplings.narrow(0, sum(self._lengths[:axis]), count).reshape(sites)
            else:
                piece = (self.couplings[axis] if self.couplings.numel() > 1 else self.couplings).expand(sites)
            found.append((axis - len(shape), piece))
        return found

    def _pairs(self, s: Tensor, axis: int, couplings: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Of a grid, neighbours along an axis as pairs of slices of s, with their couplings: inside, and from the last to the first."""
        last = s.shape[axis] - 1
        pairs = [(s.narrow(axis, 0, last), s.narrow(axis, 1, last), couplings.narrow(axis, 0, last))]
        if self.periodic[axis]:
            pairs.append((s.narrow(axis, last, 1), s.narrow(axis, 0, 1), couplings.narrow(axis, last, 1)))
        return pairs

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
        """Neighbours (degree, k) of some sites, the edges to them, and couplings by edge; one more, 0, for places that are empty."""
        known = self._tables.get(id(sites))
        if known is None or known[0] is not sites:
            if len(self._tables) >= MOST_TABLES:
                self._tables.clear()
            known = self._tables[id(sites)] = sites, self._near[:, sites], self._bond[:, sites]
        _, near, bond = known
        couplings = self.edge_couplings
        return near, bond, torch.cat([couplings, couplings.new_zeros(1)]) if self._ragged else couplings

    @abstractmethod
    def _weights(self) -> tuple[Tensor, Tensor]:
        """Log weights φ (n, q) of each site's values, and the table P (q, q) that couplings multiply, in float64."""

    def _sum(self, patient: bool) -> float | None:
        fields, pair = self._weights()
        if self.is_grid and 0 < sum(length > 1 for length in self.event_shape) <= 2:
            strip = self._strip(fields, pair)
            torus = self._torus(strip)
            if torus is not None:
                return torus
            best = min(strip, strip.turned(), key=lambda s: s.updates)
            if best.updates <= MOST_UPDATES and (value := best.log_z()) is not None:
                return value
        return self._enumerated()

    def _strip(self, fields: Tensor, pair: Tensor) -> Strip:
        """A grid whose axes longer than 1 are rows and columns."""
        rows, columns = ([length for length in self.event_shape if length > 1] + [1])[:2]
        tables = [torch.zeros(rows, columns, dtype=torch.float64) for _ in range(2)]
        for table, sites, (_, piece) in zip(tables, [(-1, columns), (rows, -1)], self._axis_couplings(), strict=False):
            piece = piece.detach().double().cpu().reshape(sites)
            table[: piece.shape[0], : piece.shape[1]] = piece
        return Strip(fields.reshape(rows, columns, -1), tables[0], tables[1], pair)

    def _torus(self, strip: Strip) -> float | None:
        """log Z by a closed formula; None where there is none."""
        return None


def _checked(edges: Any, n: int) -> Tensor:
    pairs = torch.as_tensor(edges, dtype=torch.long).reshape(-1, 2).detach().clone()
    if len(pairs) and (int(pairs.min()) < 0 or int(pairs.max()) >= n):
        raise ValueError(f"edges join sites 0 to {n - 1}, got {pairs.min().item()} to {pairs.max().item()}")
    if bool((pairs[:, 0] == pairs[:, 1]).any()):
        raise ValueError("an edge joins two different sites: what one site does by itself is its field")
    return pairs


def _check_couplings(couplings: Tensor, m: int, dims: int) -> None:
    if couplings.shape not in ((), (1,), (m,), (dims or m,)):
        axis = f", or {dims}, one an axis" if dims else ""
        raise ValueError(f"couplings of shape {tuple(couplings.shape)} do not fit {m} edges: give one, or {m}{axis}")


@register("ising")
class Ising(PairModel):
    """E(x) = -Σ_e J_e s_a s_b - Σ_i h_i s_i over edges e = (a, b), with spins s = x in {-1, 1}; or, with `bits`, s = 2x - 1 of
    bits x in {0, 1}: the same density in other units. In nats, so that J and h contain the inverse temperature.

    Arguments:
        event_shape: shape of one x.
        couplings, edges, periodic: as in `PairModel`; J > 0 aligns the spins.
        fields: h, (*event) or broadcast to it; h > 0 favours the upper value.
        bits: whether x takes the values 0 and 1.
        learnable: makes couplings and fields `nn.Parameter`s.

    >>> Ising((4, 4), 0.44068679350977147).log_z
    Estimate(value=15.52191..., standard_error=0.0)
    """

    def __init__(
        self,
        event_shape: Sequence[int],
        couplings: Any = 0.0,
        fields: Any = 0.0,
        *,
        edges: Any = None,
        periodic: bool | Sequence[bool] = True,
        bits: bool = False,
        learnable: bool = False,
        name: str | None = None,
    ) -> None:
        low, high = (torch.full(tuple(event_shape), end, dtype=torch.float64) for end in (0.0 if bits else -1.0, 1.0))
        super().__init__(
            couplings,
            fields,
            support=sets.Box(low, high, integer=True, step=1 if bits else 2),
            values=0,
            edges=edges,
            periodic=periodic,
            structure={"bits": bits},
            learnable=learnable,
            name=name,
        )
        self.bits = bits

    def forward(self, x: Tensor) -> Tensor:  # (*batch, *event) -> (*batch)
        s = self._spins(x)
        own = s @ self._fields.to(s.dtype)
        if not self.is_grid:
            pairs = s.index_select(-1, self.edges[:, 0]) * s.index_select(-1, self.edges[:, 1])
            return -own - pairs @ self.edge_couplings.to(s.dtype)
        grid = s.reshape(s.shape[:-1] + self.event_shape)
        for axis, couplings in self._axis_couplings():
            for first, second, strength in self._pairs(grid, axis, couplings):
                own = own + (first * second * strength.to(s.dtype)).flatten(s.ndim - 1).sum(-1)
        return -own

    def _value_and_grad(self, x: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            s = self._spins(x)
            local = self._everywhere(s) if self.is_grid else self._local(s, torch.arange(s.shape[-1], device=s.device))
            energy = -0.5 * (s * (local + self._fields)).sum(-1)
            return energy, (-2 * local if self.bits else -local).reshape(x.shape)

    def site_logits(self, x: Tensor, sites: Tensor) -> Tensor:  # (*batch, *event), (k) -> (*batch, k)
        """Log-odds 2 (h_i + Σ_j J_ij s_j) of the upper value of each site."""
        return 2 * self._local(self._spins(x), sites)

    @property
    def _fields(self) -> Tensor:
        return self.fields.expand(self.event_shape).reshape(-1)

    def _spins(self, x: Tensor) -> Tensor:  # (*batch, *event) -> (*batch, n)
        s = self._flat(x)
        s = s if s.is_floating_point() else s.to(self.dtype)
        return 2 * s - 1 if self.bits else s

    def _local(self, s: Tensor, sites: Tensor) -> Tensor:  # (*batch, n), (k) -> (*batch, k)
        """h_i + Σ_j J_ij s_j: of a grid at all sites at once, unless few are asked for."""
        if self.is_grid and 8 * len(sites) > s.shape[-1]:
            return self._everywhere(s).index_select(-1, sites)
        near, bond, couplings = self._around(sites)
        local = self._fields[sites].to(s.dtype).expand(*s.shape[:-1], -1)
        for others, edges in zip(near, bond, strict=True):
            local = torch.addcmul(local, couplings[edges].to(s.dtype), s.index_select(-1, others))
        return local

    def _everywhere(self, s: Tensor) -> Tensor:  # (*batch, n) -> (*batch, n)
        grid = s.reshape(s.shape[:-1] + self.event_shape)
        local = self.fields.to(s.dtype).expand(grid.shape).clone()
        for axis, couplings in self._axis_couplings():
            to = self._pairs(local, axis, couplings)
            for (here, there, strength), (first, second, _) in zip(to, self._pairs(grid, axis, couplings), strict=True):
                here.addcmul_(strength.to(s.dtype), second)
                there.addcmul_(strength.to(s.dtype), first)
        return local.reshape(s.shape)

    def _weights(self) -> tuple[Tensor, Tensor]:
        s = torch.tensor([-1.0, 1.0], dtype=torch.float64)
        return self._fields.detach().double().cpu().unsqueeze(-1) * s, torch.outer(s, s)

    def _torus(self, strip: Strip) -> float | None:
        down, right = strip.down.flatten(), strip.right.flatten()
        even = bool((strip.sites == 0).all() and (down == down[0]).all() and (right == right[0]).all())
        rows, columns = strip.down.shape
        return torus_log_z(rows, columns, down[0].item(), right[0].item()) if even else None


@register("potts")
class Potts(PairModel):
    """E(x) = -Σ_e J_e [x_a = x_b] - Σ_i h_i[x_i] over edges e = (a, b), x in {0, ..., q - 1}, whole numbers (torch.long). In nats.

    Arguments:
        event_shape: shape of one x.
        values: q, at least 2.
        couplings, edges, periodic: as in `PairModel`; J > 0 makes neighbours alike.
        fields: h, (*event, q) or broadcast to it.
        learnable: makes couplings and fields `nn.Parameter`s.
    """

    def __init__(
        self,
        event_shape: Sequence[int],
        values: int,
        couplings: Any = 0.0,
        fields: Any = 0.0,
        *,
        edges: Any = None,
        periodic: bool | Sequence[bool] = True,
        learnable: bool = False,
        name: str | None = None,
    ) -> None:
        if values < 2:
            raise ValueError(f"a Potts site takes two or more values, not {values}")
        low = torch.zeros(tuple(event_shape), dtype=torch.float64)
        super().__init__(
            couplings,
            fields,
            support=sets.Box(low, low + values - 1, integer=True),
            values=values,
            edges=edges,
            periodic=periodic,
            structure={"values": values},
            learnable=learnable,
            name=name,
        )

    @property
    def values(self) -> int:
        """How many values a site takes."""
        return self._wide

    def forward(self, x: Tensor) -> Tensor:  # (*batch, *event) -> (*batch)
        sites = self._flat(x).long()
        same = (sites[..., self.edges[:, 0]] == sites[..., self.edges[:, 1]]).to(self.dtype)
        own = self._fields.expand(*sites.shape, -1).gather(-1, sites.unsqueeze(-1)).squeeze(-1)
        return -(same @ self.edge_couplings) - own.sum(-1)

    def site_logits(self, x: Tensor, sites: Tensor) -> Tensor:  # (*batch, *event), (k) -> (*batch, k, q)
        """Log weights h_i[v] + Σ_j J_ij [x_j = v] of each value of each site."""
        flat, (near, bond, couplings) = self._flat(x).long(), self._around(sites)
        logits = self._fields[sites].expand(*flat.shape[:-1], -1, -1).clone()
        for others, edges in zip(near, bond, strict=True):
            weight = couplings[edges].expand(*flat.shape[:-1], -1)
            logits = logits.scatter_add(-1, flat.index_select(-1, others).unsqueeze(-1), weight.unsqueeze(-1))
        return logits

    @property
    def _fields(self) -> Tensor:  # (n, q)
        return self.fields.expand(*self.event_shape, self.values).reshape(-1, self.values)

    @property
    def _point_dtype(self) -> torch.dtype:
        return torch.long

    def _weights(self) -> tuple[Tensor, Tensor]:
        return self._fields.detach().double().cpu(), torch.eye(self.values, dtype=torch.float64)


# ---------------------------------------------------------------- closed forms: couplings and fields add up


def _rule(kind: type[PairModel], fields_of: Callable[[Any, Any], tuple[Tensor, Tensor] | None], factors: Sequence[Factor]) -> Any:
    """One pair model for the product of several, and of factors that are fields and a constant."""
    models = [(energy, power) for energy, power in factors if isinstance(energy, kind)]
    merged, offset = _merged(models) if models else None, 0.0
    if merged is None:
        return None
    dtype = merged["couplings"].dtype
    for energy, power in factors:
        if isinstance(energy, kind):
            continue
        found = fields_of(energy, models[0][0])
        if found is None:
            return None
        merged["fields"] = merged["fields"].double() + power * found[0]
        offset += power * float(found[1].sum())
        dtype = torch.promote_types(dtype, energy.dtype)
    make: Any = kind
    return shift(make(**merged).to(models[0][0].device, dtype), offset)


def _merged(factors: Sequence[Factor]) -> dict[str, Any] | None:
    """The arguments of Σ powers · (couplings, fields) of pair models on one event, edges joined where the graphs differ."""
    models = [energy for energy, _ in factors]
    first = models[0]
    kept = {key: value for key, value in first._structure.items() if key not in ("edges", "periodic")}
    if any(model._structure[key] != value for model in models for key, value in kept.items()):
        return None
    dtype = shared_dtype(factors)
    couplings = [power * model.edge_couplings.detach().double() for model, power in factors]
    fields = torch.stack([power * model._fields.detach().double() for model, power in factors]).sum(0)
    if all(m._structure["edges"] == first._structure["edges"] and m.periodic == first.periodic for m in models):
        total = torch.stack(couplings).sum(0)
        kept |= {"edges": first._structure["edges"], "periodic": first.periodic}
    else:
        edges, place = torch.cat([m.edges.sort(-1).values for m in models]).unique(dim=0, return_inverse=True)
        total = torch.zeros_like(edges[:, 0], dtype=torch.float64).index_add(0, place, torch.cat(couplings))
        kept["edges"] = edges
    shape = (*first.event_shape, *fields.shape[1:])
    return {**kept, "couplings": total.to(dtype), "fields": fields.reshape(shape).to(dtype)}


def _bernoulli_fields(energy: Bernoulli, model: Ising) -> tuple[Tensor, Tensor] | None:
    """logit·x = logit·(s + 1)/2 of bits: h = logit/2, and softplus(logit) - logit/2 is left."""
    logits = energy._exact("logits")
    return (logits / 2, nn.functional.softplus(logits, threshold=40) - logits / 2) if model.bits else None


def _categorical_fields(energy: Categorical, model: Potts) -> tuple[Tensor, Tensor] | None:
    """h = logits, and logsumexp(logits) is left."""
    logits = energy.logits.detach().double()
    if logits.shape[-1] != model.values or not bool(logits.isfinite().all()):
        return None
    return logits, logits.logsumexp(-1)


closed_form(Ising)(functools.partial(_rule, Ising, _bernoulli_fields))
closed_form(Ising, Bernoulli)(functools.partial(_rule, Ising, _bernoulli_fields))
closed_form(Potts)(functools.partial(_rule, Potts, _categorical_fields))
closed_form(Potts, Categorical)(functools.partial(_rule, Potts, _categorical_fields))
