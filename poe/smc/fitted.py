"""Starts fitted to particles: a mixture of Gaussians, in the noise of a triangular map where that
is closer."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from poe.algebra.energy import Energy
from poe.smc.gaussians import Gaussians
from poe.smc.starts import WEIGHED_DRAWS, Start, weigh
from poe.smc.triangular import Triangular, scales_first
from poe.spaces.transport import Transported

MAX_PARETO_K = 0.5  # of the weights of a fitted start, for it to do without moves
MIN_ESS_SHARE = 1 / 10  # of its weighed draws, for the same
MIN_MAP_GAIN = 0.05  # nats per particle held out, for a map to be worth its cost


class Fitted(NamedTuple):
    """A start that was fitted to particles, weighed against the end: the target, or the target in
    the noise of a map."""

    start: Start
    end: Energy
    score: float  # mean log density of particles held out, in nats

    @property
    def good(self) -> bool:
        """Whether its weighed draws need no moves."""
        near = self.start.ess >= len(self.start.x) * MIN_ESS_SHARE
        return near and self.start.pareto_k <= MAX_PARETO_K

    def to_x(self, z: Tensor) -> Tensor:
        """Points of the target from points of the end."""
        return self.end.to_x(z) if isinstance(self.end, Transported) else z


def fitted(x: Tensor, target: Energy, generator: torch.Generator) -> Fitted | None:
    """The start that particles (n, *event) of the target give: a mixture of Gaussians where its
    weights are good, else the one in the noise of the triangular map, of several orders of the
    coordinates, that gives particles held out the highest density. None where no mixture can be
    fitted, as for too few particles."""
    plain = _weighed(x, target, None, _held_out(x, None, generator), generator)
    if plain is None or plain.good:
        return plain
    d = x[0].numel()
    orders = {
        tuple(order.tolist())
        for order in (torch.arange(d), torch.arange(d).flip(0), scales_first(x))
    }
    scores = {order: _held_out(x, order, generator) for order in sorted(orders)}
    best = max(scores, key=lambda order: scores[order])
    if scores[best] <= plain.score + MIN_MAP_GAIN:
        return plain
    mapped = _weighed(x, target, best, scores[best], generator)
    return plain if mapped is None else mapped


def _held_out(x: Tensor, order: tuple[int, ...] | None, generator: torch.Generator) -> float:
    """The mean log density that a fit to three of four particles gives the rest; -inf without
    one."""
    held, log_det = x[::4], 0.0
    most = x[torch.arange(len(x), device=x.device) % 4 > 0]
    if order is not None:
        map = Triangular.fitted(most, order=torch.tensor(order))
        if map is None:
            return -torch.inf
        most, (held, log_det) = map.to_noise(most)[0], map.to_noise(held)
    mixture = Gaussians.fitted(most, generator)
    if mixture is None:
        return -torch.inf
    return float((mixture.log_prob(held) + log_det).mean())


def _weighed(
    x: Tensor,
    target: Energy,
    order: tuple[int, ...] | None,
    score: float,
    generator: torch.Generator,
) -> Fitted | None:
    """The fit to all particles, and its weighed draws; None where it cannot be made."""
    end = target
    if order is not None:
        map = Triangular.fitted(x, order=torch.tensor(order))
        if map is None:
            return None
        x, end = map.to_noise(x)[0], Transported(target, map)
    mixture = Gaussians.fitted(x, generator)
    if mixture is None:
        return None
    return Fitted(weigh(mixture, end, generator, WEIGHED_DRAWS), end, score)
