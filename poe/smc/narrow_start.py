"""A start that reaches into the narrow end: what follows where draws lack the neck of a funnel.

Chains with moves of the right size (`poe.smc.local_moves`) go into the neck from the draws that lie
nearest to it. Two maps are fitted, one to the draws and one to what the chains found, both with the
variable along which curvature grows first, so that the noise of the others no longer narrows
(non-centring by the map). The start is half of each: normals in the noise of a map, of which
`WIDE_WEIGHT` have the first variable's standard deviation times `WIDENING` (further along the neck
the map extrapolates log scales linearly). Weighed draws of it replace both sets, and the maps are
fitted again, until Pareto k is at most `GOOD_K` after at least two rounds.

References: Papaspiliopoulos, Roberts and Sköld 2007, Statistical Science 22(1) (non-centring);
Parno and Marzouk 2018, SIAM/ASA J. Uncertainty Quantification 6(2) (triangular maps); Cappé,
Douc, Guillin, Marin and Robert 2008, Statistics and Computing 18 (refits to weighted draws).
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from poe.algebra.energy import Density, Energy
from poe.diagnostics.narrow_end import NarrowEnd
from poe.diagnostics.weights import pareto_k, weight_ess
from poe.smc.gaussians import Gaussians
from poe.smc.local_moves import LocalMoves, fitted
from poe.smc.starts import Start
from poe.smc.triangular import MAX_DIMENSIONS, Triangular

WEIGHED = 16_384  # draws of the start in a round
FITTED, NARROW = 4096, 2048  # weighed draws to which the maps are fitted again
MAX_MIXED = 1024  # of them, to which normals in the noise are fitted
SHARE, FITTED_SHARE = 0.2, 0.4  # of the draws: where chains start, where their steps are fitted
NARROW_SHARE = 0.3  # of the draws, that lie where the second map is fitted
CHAINS, STEPS, WARM_UP, THIN = 200, 240, 60, 12
WIDENING, WIDE_WEIGHT = 2.0, 0.3
MIN_ROUNDS, MAX_ROUNDS = 2, 4
GOOD_K = 0.5  # Pareto k of a start that is not fitted again
MIN_ESS = 100  # effective weighed draws, without which there is no start


class Mapped(Density):
    """Equal parts of densities, each a mixture of normals in the noise of a map."""

    def __init__(self, maps: list[Triangular], noises: list[Gaussians]) -> None:
        super().__init__(noises[0].event_shape)
        self.maps, self.noises = nn.ModuleList(maps), nn.ModuleList(noises)

    def pairs(self) -> list[tuple[Triangular, Gaussians]]:
        """Each map with the mixture in its noise."""
        return cast(Any, list(zip(self.maps, self.noises, strict=True)))

    @property
    def bounded(self) -> bool:
        return True

    def log_prob(self, x: Tensor) -> Tensor:  # (*batch, *event) -> (*batch)
        logs = []
        for map, noise in self.pairs():
            z, log_det = map.to_noise(x)
            logs.append(noise.log_prob(z) + log_det)
        return torch.stack(logs).logsumexp(0) - math.log(len(logs))

    def sample(
        self, n: int | tuple[int, ...], *, generator: torch.Generator | None = None
    ) -> Tensor:
        """Draws, in an order without meaning."""
        shape = (n,) if isinstance(n, int) else tuple(n)
        pairs, total = self.pairs(), math.prod(shape)
        like = pairs[0][0].centre
        which = torch.randint(len(pairs), (total,), generator=generator, device=like.device)
        x = like.new_empty(total, *self.event_shape)
        for index, (map, noise) in enumerate(pairs):
            place = (which == index).nonzero().flatten()
            x[place] = map.from_noise(noise.sample(len(place), generator=generator))[0]
        return x.reshape(*shape, *self.event_shape)


class NarrowStart(NamedTuple):
    """A start with its weighed draws, and what it cost."""

    start: Start
    gradients: float
    energies: float


def narrow_start(
    target: Energy, x: Tensor, found: NarrowEnd, generator: torch.Generator
) -> NarrowStart | None:
    # x (n, *event), in the unconstrained space of the target
    """A density near to the target that reaches into the neck that a look has found, from draws
    that lack it; None above `MAX_DIMENSIONS`, or where no map or mixture can be fitted."""
    if found.direction is None or found.coordinate is None or x[0].numel() > MAX_DIMENSIONS:
        return None
    direction, first = found.direction, found.coordinate
    flat = x.detach().reshape(len(x), -1).double()
    flat = flat[flat.isfinite().all(1)]
    u = flat @ direction
    least = float(u.quantile(1 - NARROW_SHARE))
    moves = LocalMoves(target, generator)
    inner = _explored(moves, flat[u.argsort(descending=True)], direction)
    best, energies = None, 0.0
    for number in range(MAX_ROUNDS):
        density = _fitted([flat, inner], first, target.event_shape, generator)
        if density is None:
            break
        start = _weighed(density, target, generator)
        energies += WEIGHED
        if best is None or number < MIN_ROUNDS or start.ess > best.ess:
            best = start
        good = start.pareto_k <= GOOD_K and start.ess >= MIN_ESS
        if (good and number + 1 >= MIN_ROUNDS) or start.ess == 0:
            break
        weights = _truncated(start.log_weights)
        points = start.x.reshape(len(start.x), -1).double()
        within = torch.where(points @ direction > least, weights, 0.0)
        flat = points[torch.multinomial(weights, FITTED, True, generator=generator)]
        if float(within.sum()) > 0:
            inner = points[torch.multinomial(within, NARROW, True, generator=generator)]
    if best is None or best.ess < MIN_ESS:
        return None
    return NarrowStart(best, moves.gradients, energies)


def _weighed(density: Mapped, target: Energy, generator: torch.Generator) -> Start:
    """Draws of the density with their weights: its own at the draws in float64, as the maps can be
    so steep far out that rounding to float32 leaves the density of a point behind."""
    x = density.sample(WEIGHED, generator=generator)
    rounded = x.to(target.dtype)
    with torch.no_grad():
        logs = -target(rounded).double() - density.log_prob(x)
    failed = logs.isnan()
    logs = torch.where(failed, -math.inf, logs)
    return Start(density, rounded, logs, float(weight_ess(logs)), pareto_k(logs), int(failed.sum()))


def _truncated(log_weights: Tensor) -> Tensor:  # (n) -> (n)
    """Weights of at most √n times their mean (Ionides 2008, J. Comput. Graph. Stat. 17(2)), so that
    one does not hold them all; of sum 1."""
    n = len(log_weights)
    most = log_weights.logsumexp(0) - math.log(n) / 2
    return log_weights.clamp(max=float(most)).softmax(0)


def _explored(moves: LocalMoves, x: Tensor, direction: Tensor) -> Tensor:
    """Points of chains from the draws x (n, d), those nearest to the narrow end first."""
    near, _ = moves.finite(x[: max(1, int(FITTED_SHARE * len(x)))])
    steps = fitted(near, direction[:, None], x.var(0))
    count = min(CHAINS, max(1, int(SHARE * len(x))))
    chains = near.taken(torch.arange(min(count, len(near.x)), device=x.device))
    steps, visited = moves.tuned(chains, steps), []
    for number in range(STEPS):
        chains, _ = moves.move(chains, steps)
        if number >= WARM_UP and number % THIN == 0:
            visited.append(chains.x)
    return torch.cat(visited)


def _fitted(
    sets: list[Tensor], first: int, shape: torch.Size, generator: torch.Generator
) -> Mapped | None:
    """Equal parts of what is fitted to each set of points (n, d)."""
    maps, noises = [], []
    for points in sets:
        map = _map(points.reshape(len(points), *shape), first)
        if map is None:
            return None
        z = map.to_noise(points.reshape(len(points), *shape))[0].flatten(1)
        chosen = torch.randperm(len(z), generator=generator, device=z.device)[:MAX_MIXED]
        mixture = Gaussians.fitted(z[chosen], generator)
        if mixture is None:
            return None
        maps.append(map)
        noises.append(_widened(mixture, shape))
    return Mapped(maps, noises)


def _map(x: Tensor, first: int) -> Triangular | None:
    """The map, of both orders of the other coordinates, under which held out points are most
    likely."""
    d, best = x[0].numel(), None
    for backwards in (False, True):
        rest = [place for place in range(d) if place != first]
        order = torch.tensor([first, *(reversed(rest) if backwards else rest)])
        map = Triangular.fitted(x[::2], order=order)
        if map is None:
            return None
        z, log_det = map.to_noise(x[1::2])
        score = float((log_det - z.flatten(1).square().sum(1) / 2).median())
        if best is None or score > best[0]:
            best = score, order
    assert best is not None
    return Triangular.fitted(x, order=best[1])


def _widened(mixture: Gaussians, shape: torch.Size) -> Gaussians:
    """Its normals, each with a copy whose first variable has a larger spread; without the defensive
    component, whose draws far out are where the map extrapolates worst."""
    kept = mixture.freedom.isinf()
    means, roots, weights = mixture.means[kept], mixture.roots[kept], mixture.log_weights[kept]
    scale = torch.ones_like(means[0])
    scale[0] = WIDENING
    rows = scale[:, None] * roots
    wide, weights = torch.linalg.cholesky(rows @ rows.mT), weights.softmax(0)
    return Gaussians(
        torch.cat([(1 - WIDE_WEIGHT) * weights, WIDE_WEIGHT * weights]),
        means.repeat(2, 1),
        torch.cat([roots, wide]),
        shape,
    )
