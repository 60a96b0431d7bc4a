"""Starts fitted to particles: a mixture of Gaussians, in the noise of a triangular map where that
is closer, refitted to its own weighed draws until those are good.

Reference: Cornuet, Marin, Mira and Robert 2012, Scand. J. Statist. 39(4) (adaptive multiple
importance sampling: all draws of all rounds, weighed by the mean of the densities that drew them).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from poe.algebra.energy import Energy
from poe.smc.gaussians import Gaussians
from poe.smc.starts import WEIGHED_DRAWS, Start, weigh
from poe.smc.triangular import Triangular, links, scales_first
from poe.spaces.transport import Transported

MAX_PARETO_K = 0.5  # of the weights of a fitted start, for it to do without moves
MIN_ESS_SHARE = 1 / 10  # of its weighed draws, for the same
EVEN_PARETO_K = (
    0.2  # of the weights, for scales that follow a coordinate to be expressed by the map
)
MIN_MAP_GAIN = 0.05  # nats per particle held out, for a map to be worth its cost
# squared correlation of a coordinate with the log size of another, above which a map is tried
# although weights are good: all particles may have lost the narrow end alike
MAX_LINK = 0.05
MAX_BENT_DIMENSIONS = 12  # of maps whose log scales bend: many terms fit noise
MAX_REFITS = 5  # to weighed draws
MIN_REFIT_ESS = 10.0  # effective draws for each dimension, for another refit
MIN_GAIN = 0.02  # nats of log Z by which a refit that finds more mass calls for another


class Fitted(NamedTuple):
    """A start that was fitted to particles, weighed against the end: the target, or the target in
    the noise of a map."""

    start: Start
    end: Energy
    refits: int = 0
    linked: bool = False  # whether scales follow a coordinate: particles may have lost a narrow end
    order: tuple[int, ...] | None = None  # of the coordinates in the map

    @property
    def even(self) -> bool:
        """Whether the weights are so even that particles in a lost narrow end would be seen."""
        return self.start.pareto_k <= EVEN_PARETO_K and self.good

    @property
    def good(self) -> bool:
        """Whether its weighed draws need no moves."""
        return self.start.pareto_k <= MAX_PARETO_K and self.start.share >= MIN_ESS_SHARE

    def to_x(self, z: Tensor) -> Tensor:
        """Points of the target from points of the end."""
        return self.end.to_x(z) if isinstance(self.end, Transported) else z

    def log_prob(self, x: Tensor) -> Tensor:  # (n, *event) -> (n)
        """The density of the start over points of the target."""
        with torch.no_grad():
            if not isinstance(self.end, Transported):
                return -self.start.density(x).double()
            z, log_det = self.end.map.to_noise(x)
            return (log_det - self.start.density(z)).double()


def fitted(
    x: Tensor, target: Energy, generator: torch.Generator, before: Fitted | None = None
) -> Fitted | None:
    """The start that particles (n, *event) of the target give: a mixture of Gaussians where its
    weights are good, else the one in the noise of the triangular map, of several orders of the
    coordinates, that gives particles held out the highest density; refitted to weighed draws until
    the weights are good and its log Z rises no more. None where no mixture can be fitted, as for
    too few particles. The order is that of the fit `before`, where that was linked."""
    if before is not None and before.linked and before.order is not None:
        mapped = _weighed(_Points(x), target, before.order, generator)
        if mapped is not None:
            return _refitted(mapped, target, before.order, generator)._replace(linked=True)
    linked = float(links(x).max()) > MAX_LINK
    plain = _weighed(_Points(x), target, None, generator)
    if plain is None or (plain.good and not linked):
        return plain
    order = _best_order(x, generator)
    if order is not None:
        plain = _weighed(_Points(x), target, order, generator) or plain
    return _refitted(plain, target, order, generator)._replace(linked=linked)


class _Points(NamedTuple):
    """Points (n, *event) with log weights (n), None where all count the same."""

    x: Tensor
    logs: Tensor | None = None


def _best_order(x: Tensor, generator: torch.Generator) -> tuple[int, ...] | None:
    """The order of the coordinates whose map gives particles held out the highest density; None
    where that is hardly above the one without a map."""
    d = x[0].numel()
    orders = torch.arange(d), torch.arange(d).flip(0), scales_first(x)
    known = sorted({tuple(order.tolist()) for order in orders})
    scores = {order: _held_out(x, order, generator) for order in known}
    best = max(known, key=lambda order: scores[order])
    return best if scores[best] > _held_out(x, None, generator) + MIN_MAP_GAIN else None


def _refitted(
    best: Fitted, target: Energy, order: tuple[int, ...] | None, generator: torch.Generator
) -> Fitted:
    """The fit to the draws of the one before, and those of all before it, until the weights are
    good and the estimate of log Z has risen by less than `MIN_GAIN`."""
    known, x = [best], best.to_x(best.start.x)
    energy = -best.start.log_weights - best.log_prob(x)
    gained = False
    for number in range(1, MAX_REFITS + 1):
        if best.good and number > 1 and not gained:
            break
        logs = -energy - torch.stack([fit.log_prob(x) for fit in known]).logsumexp(0)
        logs = logs + math.log(len(known))
        logs = torch.where(logs.isnan(), -math.inf, logs)
        # truncated weights (Ionides 2008), so that a fit does not shrink onto one draw
        logs = logs.clamp(max=float(logs.logsumexp(0)) - math.log(len(logs)) / 2)
        new = _weighed(_Points(x, logs), target, order, generator)
        if new is None:
            break
        drawn = new.to_x(new.start.x)
        energy = torch.cat([energy, -new.start.log_weights - new.log_prob(drawn)])
        x, known = torch.cat([x, drawn]), [*known, new]
        gained = new.start.log_mean > best.start.log_mean + MIN_GAIN
        if gained or new.start.pareto_k < best.start.pareto_k or new.good:
            best = new._replace(refits=number)
    return best


def _held_out(x: Tensor, order: tuple[int, ...] | None, generator: torch.Generator) -> float:
    """The mean log density that a fit to three of four particles gives the rest; -inf without
    one."""
    held, log_det = x[::4], 0.0
    most = x[torch.arange(len(x), device=x.device) % 4 > 0]
    if order is not None:
        map = Triangular.fitted(most, order=torch.tensor(order), bent=_bent(x))
        if map is None:
            return -math.inf
        most, (held, log_det) = map.to_noise(most)[0], map.to_noise(held)
    mixture = Gaussians.fitted(most, generator)
    if mixture is None:
        return -math.inf
    return float((mixture.log_prob(held) + log_det).mean())


def _weighed(
    points: _Points, target: Energy, order: tuple[int, ...] | None, generator: torch.Generator
) -> Fitted | None:
    """The fit to all particles, and its weighed draws; None where it cannot be made."""
    (x, logs), end, axis = points, target, None
    if order is not None:
        map = Triangular.fitted(x, order=torch.tensor(order), log_weights=logs, bent=_bent(x))
        if map is None:
            return None
        z, end = map.to_noise(x)[0], Transported(target, map)
        finite = z.flatten(1).isfinite().all(1) if z.ndim > 1 else z.isfinite()
        axis = int(scales_first(x)[0])
        x, logs = z[finite], None if logs is None else logs[finite]
    mixture = Gaussians.fitted(x, generator, logs, axis=axis)
    if mixture is None:
        return None
    return Fitted(weigh(mixture, end, generator, WEIGHED_DRAWS), end, order=order)


def _bent(x: Tensor) -> bool:
    """Whether log scales of a map fitted to particles may bend."""
    return x[0].numel() <= MAX_BENT_DIMENSIONS
