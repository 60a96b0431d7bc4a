"""Pairwise models on graphs and grids: spins (Ising) and colours (Potts).

Log Z is exact for a torus of Ising spins with one positive coupling an axis and no field (Kaufman),
for strips of a grid by transfer matrix (up to `experts.boltzmann.lattice.MAX_UPDATES`: a torus to
10 x 10, an open or half-open grid to width 16 or so), and for a million states of any graph by
enumeration. Blocks for Gibbs are the colours of a proper colouring: a checkerboard on grids.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import constraints

from experts.boltzmann.lattice import Strip, torus_log_z
from experts.boltzmann.machine import shared_dtype
from experts.boltzmann.pairs import PairModel
from experts.families import Bernoulli, Categorical
from poe.algebra import support as sets
from poe.algebra.closed_forms import Factor, closed_form
from poe.algebra.shifted import shift
from poe.registry import register


@register("ising")
class Ising(PairModel):
    """E(x) = -Σ_e J_e s_a s_b - Σ_i h_i s_i over edges e = (a, b), with spins s = x in {-1, 1}; or,
    with `bits`, s = 2x - 1 of bits x in {0, 1}: the same density in other units. In nats, so that J
    and h contain the inverse temperature.

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
        low, high = torch.tensor([0.0 if bits else -1.0, 1.0], dtype=torch.float64)
        super().__init__(
            couplings,
            fields,
            event_shape=event_shape,
            support=sets.Box(
                low.expand(tuple(event_shape)), high, integer=True, step=1 if bits else 2
            ),
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
            every = torch.arange(s.shape[-1], device=s.device)
            local = self._everywhere(s) if self.is_grid else self._local(s, every)
            energy = -0.5 * (s * (local + self._fields)).sum(-1)
            return energy, (-2 * local if self.bits else -local).reshape(x.shape)

    def site_logits(self, x: Tensor, sites: Tensor) -> Tensor:
        # (*batch, *event), (k) -> (*batch, k)
        """Log-odds 2 (h_i + Σ_j J_ij s_j) of the upper value of each site."""
        return 2 * self._local(self._spins(x), sites)

    @property
    def _fields(self) -> Tensor:
        return self.fields.expand(self.event_shape).reshape(-1)

    def _spins(self, x: Tensor) -> Tensor:  # (*batch, *event) -> (*batch, n)
        s = self._floats(self._flat(x))
        return 2 * s - 1 if self.bits else s

    def _local(self, s: Tensor, sites: Tensor) -> Tensor:  # (*batch, n), (k) -> (*batch, k)
        """h_i + Σ_j J_ij s_j: of a grid at all sites at once, unless few are needed."""
        if self.is_grid and 8 * len(sites) > s.shape[-1]:
            return self._everywhere(s).index_select(-1, sites)
        adjacent, bond, couplings = self._around(sites)
        local = self._fields[sites].to(s.dtype).expand(*s.shape[:-1], -1)
        for others, edges in zip(adjacent, bond, strict=True):
            local = torch.addcmul(local, couplings[edges].to(s.dtype), s.index_select(-1, others))
        return local

    def _everywhere(self, s: Tensor) -> Tensor:  # (*batch, n) -> (*batch, n)
        grid = s.reshape(s.shape[:-1] + self.event_shape)
        local = self.fields.to(s.dtype).expand(grid.shape).clone()
        for axis, couplings in self._axis_couplings():
            to = self._pairs(local, axis, couplings)
            for (here, there, strength), (first, second, _) in zip(
                to, self._pairs(grid, axis, couplings), strict=True
            ):
                here.addcmul_(strength.to(s.dtype), second)
                there.addcmul_(strength.to(s.dtype), first)
        return local.reshape(s.shape)

    def _weights(self) -> tuple[Tensor, Tensor]:
        s = torch.tensor([-1.0, 1.0], dtype=torch.float64)
        return self._fields.detach().double().cpu().unsqueeze(-1) * s, torch.outer(s, s)

    def _torus(self, strip: Strip) -> float | None:
        down, right = strip.down.flatten(), strip.right.flatten()
        even = bool(
            (strip.sites == 0).all() and (down == down[0]).all() and (right == right[0]).all()
        )
        rows, columns = strip.down.shape
        return torus_log_z(rows, columns, down[0].item(), right[0].item()) if even else None


@register("potts")
class Potts(PairModel):
    """E(x) = -Σ_e J_e [x_a = x_b] - Σ_i h_i[x_i] over edges e = (a, b), x in {0, ..., q - 1}, whole
    numbers (torch.long). In nats.

    Arguments:
        event_shape: shape of one x.
        values: q, at least 2.
        couplings, edges, periodic: as in `PairModel`; J > 0 makes neighbours alike.
        fields: h, (*event, q) or broadcast to it.
        learnable: makes couplings and fields `nn.Parameter`s.
    """

    _point_dtype: torch.dtype = torch.long

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
        super().__init__(
            couplings,
            fields,
            event_shape=event_shape,
            support=constraints.integer_interval(0, values - 1),
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

    def site_logits(self, x: Tensor, sites: Tensor) -> Tensor:
        # (*batch, *event), (k) -> (*batch, k, q)
        """Log weights h_i[v] + Σ_j J_ij [x_j = v] of each value of each site."""
        flat, (adjacent, bond, couplings) = self._flat(x).long(), self._around(sites)
        logits = self._fields[sites].expand(*flat.shape[:-1], -1, -1).clone()
        for others, edges in zip(adjacent, bond, strict=True):
            weight = couplings[edges].expand(*flat.shape[:-1], -1)
            logits = logits.scatter_add(
                -1, flat.index_select(-1, others).unsqueeze(-1), weight.unsqueeze(-1)
            )
        return logits

    @property
    def _fields(self) -> Tensor:  # (n, q)
        return self.fields.expand(*self.event_shape, self.values).reshape(-1, self.values)

    def _weights(self) -> tuple[Tensor, Tensor]:
        return self._fields.detach().double().cpu(), torch.eye(self.values, dtype=torch.float64)


# ---- closed forms: couplings and fields add up


def _rule(
    kind: type[PairModel],
    fields_of: Callable[[Any, Any], tuple[Tensor, Tensor] | None],
    factors: Sequence[Factor],
) -> Any:
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
    """The arguments of Σ powers · (couplings, fields) of pair models on one event, edges joined
    where the graphs differ."""
    models = [energy for energy, _ in factors]
    first = models[0]
    kept = {k: v for k, v in first._structure.items() if k not in ("edges", "periodic")}
    if any(model._structure[key] != value for model in models for key, value in kept.items()):
        return None
    dtype = shared_dtype(factors)
    couplings = [power * model.edge_couplings.detach().double() for model, power in factors]
    fields = torch.stack([power * model._fields.detach().double() for model, power in factors])
    fields = fields.sum(0)
    graph = {key: first._structure[key] for key in ("edges", "periodic")}
    if all(model._structure[key] == value for model in models for key, value in graph.items()):
        total = torch.stack(couplings).sum(0)
        kept |= graph
    else:
        every = torch.cat([model.edges.sort(-1).values for model in models])
        edges, place = every.unique(dim=0, return_inverse=True)
        zeros = torch.zeros(len(edges), dtype=torch.float64, device=edges.device)
        total = zeros.index_add(0, place, torch.cat(couplings))
        kept["edges"] = edges
    shape = (*first.event_shape, *fields.shape[1:])
    return {**kept, "couplings": total.to(dtype), "fields": fields.reshape(shape).to(dtype)}


def _bernoulli_fields(energy: Bernoulli, model: Ising) -> tuple[Tensor, Tensor] | None:
    """logit·x = logit·(s + 1)/2 of bits: h = logit/2, and softplus(logit) - logit/2 is left."""
    if not model.bits:
        return None
    logits = energy.exact("logits")
    return logits / 2, nn.functional.softplus(logits, threshold=40) - logits / 2


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
