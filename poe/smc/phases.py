"""The phases of a discrete target that a search found, and what draws lack of them."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from poe.algebra.energy import Estimate
from poe.diagnostics.search import ModeSearch
from poe.diagnostics.weights import pareto_k
from poe.smc.products import Products
from poe.smc.starts import Start

MAX_PARETO_K, MAX_ERROR = 0.7, 0.05  # of a basin whose mass counts: of its weights and its share
MAX_SHARE_GAP, ERRORS, MAX_LOG_Z_GAP = 0.02, 4.0, 0.05  # between the search and draws; nats
OVERLAP = 0.05  # of two components, relative to the smaller, at which they are one basin


class Basin(NamedTuple):
    """A set of components that overlap: its share of the mass with its standard error, Pareto k of
    the weights of its draws, and the draw of lowest energy, (*event)."""

    share: float
    error: float
    pareto_k: float
    lowest: Tensor

    @property
    def counted(self) -> bool:
        """Whether importance weights confirm its mass."""
        return self.pareto_k <= MAX_PARETO_K and self.error < MAX_ERROR


@dataclass(frozen=True)
class Phases:
    """What a search found.

    Attributes:
        start: a mixture near to the target, with weighed draws.
        fitted: its components without the wide ones.
        labels: the basin of each of these.
        basins: their masses.
        minima: distinct ends of the descents, (m, *event), of the lowest energy first.
        record: the counts.
    """

    start: Start
    fitted: Products
    labels: Tensor
    basins: tuple[Basin, ...]
    minima: Tensor
    record: ModeSearch

    def judged(self, x: Tensor, size: float, log_z: Estimate | None) -> ModeSearch:
        """The record with what draws x (n, *event), of this effective number, lack: basins whose
        confirmed share differs from that of the draws by more than `MAX_SHARE_GAP` and `ERRORS`
        standard errors, and mass that the search found beyond the log Z of the draws."""
        found = by_basin(self.fitted.responsibilities(x), self.labels)
        lacking = []
        for basin, near in zip(self.basins, found.T, strict=True):
            share, spread = float(near.mean()), float(near.std())
            error = math.hypot(basin.error, spread / math.sqrt(max(size, 1.0)))
            off = abs(share - basin.share) - MAX_SHARE_GAP
            if basin.counted and off > ERRORS * error:
                lacking.append(
                    f"a basin around {shown(basin.lowest)} has {100 * basin.share:.3g} % of the "
                    f"mass and {100 * share:.3g} % of the draws; try "
                    'poe.sample(..., method="importance") or method="annealed"'
                )
        if log_z is not None and self.start.pareto_k <= MAX_PARETO_K:
            ess, n = self.start.ess, len(self.start.x)
            error = math.hypot(log_z.standard_error, math.sqrt(max(1 / ess - 1 / n, 0.0)))
            level = self.start.log_mean
            if log_z.value < level - MAX_LOG_Z_GAP - ERRORS * error:
                lacking.append(
                    f"log Z of the draws is {log_z}, and the search found mass for "
                    f"{level:.6g}: modes have been missed; try another method="
                )
        return replace(self.record, missed=tuple(lacking))


def shown(x: Tensor) -> str:
    """A point in few characters: the values of its first sites."""
    flat = x.flatten().tolist()
    values = ", ".join(f"{v:g}" for v in flat[:12])
    return f"({values}{', ...' if len(flat) > 12 else ''})"


def labels_of(fitted: Products, places: Tensor) -> Tensor:  # (N, n) -> (K)
    """The basin of each component, counted from 0: components that share more than `OVERLAP` of the
    smaller one's points are in one."""
    near = fitted.of_components(places).double().softmax(1)
    mass, shared = near.sum(0), near.T @ near
    least = torch.minimum(mass.unsqueeze(0), mass.unsqueeze(1)).clamp(min=1e-9)
    linked = (shared / least > OVERLAP) | torch.eye(len(mass), dtype=torch.bool)
    label = torch.arange(len(mass))
    for _ in range(len(mass)):  # each takes the least label among its neighbours
        label = torch.where(linked, label.unsqueeze(0), len(mass)).amin(1)
    return label.unique(return_inverse=True)[1]


def by_basin(near: Tensor, labels: Tensor) -> Tensor:  # (n, K), (K) -> (n, basins)
    """The probability of each basin from those of its components."""
    return near.new_zeros(len(near), int(labels.max()) + 1).index_add(1, labels, near)


def weighed_basins(start: Start, fitted: Products, labels: Tensor) -> tuple[Basin, ...]:
    """The basins with the mass that importance weights give them."""
    near, found = by_basin(fitted.responsibilities(start.x), labels), []
    weights = start.log_weights.softmax(0)
    level = (start.density(start.x) - start.log_weights).double()  # the energy of the target
    for own in near.T:
        share = float(weights @ own)
        error = float((weights.square() * (own - share).square()).sum().sqrt())
        k = pareto_k(start.log_weights + own.log())
        lowest = start.x[torch.where(own > 0.5, level, math.inf).argmin()]
        found.append(Basin(share, error, k, lowest))
    return tuple(found)
