"""A look into the narrow end of a target: do draws lack the neck of a funnel?

A neck is lost by all chains and populations alike, so neither R-hat nor a Stein test sees it. Here
the scale of moves follows the curvature, and chains start at the narrow end itself:

1. E[g_i²] = E[∂²E/∂x_i²], g the gradient (by parts), also given any other coordinate. So where
   log g_i² grows with x_k over the draws, curvature i grows along k: by rank correlations of both.
2. u = ±x_k, or a combination of coordinates, grows with curvature; R = {u > q} holds `SHARE` of
   the draws. From the draws in R start chains whose moves have the right size in a neck of any
   depth (`poe.smc.local_moves`), by a reversible kernel.
3. If the draws follow the target, then start s and end e of a chain are exchangeable, (s, e) ~
   (e, s); and so they are given that both lie in R. For an edge that depends on the pooled values
   of u only, a chain that crosses it does so outwards or inwards with probability 1/2 each: a sign
   test, P(Bin(k, 1/2) ≥ outwards) of k crossings, exact for independent draws. The edges are those
   with 8, 12, 18, 27, ... pooled values beyond; the smallest p-value is multiplied by the number of
   edges, directions and looks (Bonferroni). Draws that lack the neck have only chains outwards.

Copies of one draw run as one chain of that weight; of weights w the crossings count as (Σw)²/Σw²,
and where the ESS is smaller than the number of distinct draws, as so much fewer.

References: Besag and Clifford 1989, Biometrika 76(4) (exact tests from exchangeable chains); Neal
2003, Annals of Statistics 31(3) (the funnel).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from poe.algebra.energy import Energy
from poe.diagnostics.narrow_end import NarrowEnd
from poe.smc.local_moves import PILOT_STEPS, LocalMoves, fitted

MIN_DRAWS = 50  # distinct ones, below which nothing can be told
MAX_DRAWS = 1000  # distinct ones that are looked at
SCREENED = 256  # draws whose gradients show along which coordinate curvature grows
SHARE, FITTED_SHARE = 0.2, 0.4  # of the draws: where chains start, and where their steps are fitted
LOOKS = 60, 180  # steps of the chains until the first look, and from there to the second
DOUBT = 0.1  # p-value above which there is no second look
MAX_DIRECTIONS, MAX_VARIABLES = 4, 8  # that are looked along, and that steps depend on
MIN_GAIN = 1.5  # share of variance explained by a combination of coordinates over that by the best
MIN_STARTS = 24  # chains, without which there is no look
MIN_BEYOND = 8  # pooled values beyond the outermost edge
MAX_RESOLUTION = 0.1  # nats: rounding of the energy, above which moves cannot be accepted rightly


def narrow_end(
    target: Energy,
    x: Tensor,
    generator: torch.Generator,
    *,
    ess: float | None = None,
    max_gradients: int = 50_000,
) -> NarrowEnd | None:
    # x (n, *event), in the unconstrained space of the target
    """Looks whether draws of a target lack mass where its curvature is largest.

    Arguments:
        x: draws, (n, *event), in any order; copies are allowed.
        ess: effective number of the draws, where it is known and smaller than their number.
        max_gradients: an upper limit. 5,000 show that a neck with 15 % of the mass is missing,
            10,000 one with 6 %.

    Returns: the record; None where nothing can be told: fewer than `MIN_DRAWS` distinct draws of
        finite energy, energies rounded to more than `MAX_RESOLUTION` nats, or too few gradients.
    """
    look = _Look.of(target, x, generator, ess)
    found = None if look is None else look.directions()
    if look is None or found is None:
        return None
    records = []
    count = min(found.shape[1], MAX_DIRECTIONS)
    for number in range(count):
        left = (max_gradients - look.moves.gradients) / (count - number)
        records.append(look.along(found, number, int(left)))
        if records[-1] is not None and records[-1].fires:
            break
    judged = [record for record in records if record is not None]
    if count and not judged:
        return None
    best = min(judged, key=lambda record: record.pvalue, default=NarrowEnd(1.0))
    return replace(best, gradients=look.moves.gradients)


class Crossing(NamedTuple):
    """The edge that tells most: the p-value over all edges, its place, and how many chains crossed
    it outwards and inwards."""

    pvalue: float
    edge: float
    outwards: int
    inwards: int


@dataclass
class _Look:
    """Distinct draws (n, d) with their weights (n), and the share of them that is independent."""

    moves: LocalMoves
    x: Tensor
    weights: Tensor
    share: float

    @classmethod
    def of(
        cls, target: Energy, x: Tensor, generator: torch.Generator, ess: float | None
    ) -> _Look | None:
        """None where there are too few draws."""
        if x.numel() == 0:
            return None
        flat = x.detach().reshape(len(x), -1).double()
        points, copies = flat[flat.isfinite().all(1)].unique(dim=0, return_counts=True)
        if len(points) < MIN_DRAWS:
            return None
        share = min(1.0, ess / len(points)) if ess is not None else 1.0
        chosen = torch.randperm(len(points), generator=generator, device=x.device)[:MAX_DRAWS]
        return cls(LocalMoves(target, generator), points[chosen], copies[chosen].double(), share)

    def directions(self) -> Tensor | None:
        """Directions along which curvature grows (d, k); None where nothing can be told."""
        chains, _ = self.moves.finite(self.x[:SCREENED])
        size = chains.energy.abs().median() if len(chains.x) else math.inf
        rounding = float(size * torch.finfo(self.moves.target.dtype).eps)
        if len(chains.x) < MIN_DRAWS or not rounding <= MAX_RESOLUTION:
            return None
        return growing(chains.x, chains.gradient, self.share)

    def along(self, directions: Tensor, number: int, budget: int) -> NarrowEnd | None:
        """The look along one of the directions; None where the budget is too small."""
        spent, direction = self.moves.gradients, directions[:, number]
        u, k = self.x @ direction, int((direction * self.x.std(0)).abs().argmax())
        order = u.argsort(descending=True)
        mass = self.weights[order].cumsum(0) / self.weights.sum()
        near = order[mass <= FITTED_SHARE][: max(budget // 5, MIN_DRAWS)]
        chains, good = self.moves.finite(self.x[near])
        steps = fitted(chains, directions, self.x.var(0))
        most = (budget - len(near)) // (LOOKS[0] + PILOT_STEPS // 4 + 1)
        inner = (mass[: len(near)][good] <= SHARE).nonzero().flatten()[:most]
        if len(inner) < MIN_STARTS:
            return None
        chains, starts = chains.taken(inner), near[good][inner]
        steps = self.moves.tuned(chains, steps)
        made, accepted, record = 0, 0.0, None
        for length in LOOKS:
            affordable = self.moves.gradients - spent + length * len(starts) <= budget
            if record is not None and (record.pvalue > DOUBT or record.fires or not affordable):
                break
            for _ in range(length):
                chains, moved = self.moves.move(chains, steps)
                made, accepted = made + 1, accepted + float(moved.double().mean())
            end = chains.x @ direction
            cross = crossing(u[starts], end, self.weights[starts], self.share)
            record = NarrowEnd(
                min(1.0, cross.pvalue * len(LOOKS) * min(directions.shape[1], MAX_DIRECTIONS)),
                coordinate=k,
                sign=1 if direction[k] > 0 else -1,
                combined=int((direction != 0).sum()) > 1,
                direction=direction,
                chains=len(starts),
                outwards=cross.outwards,
                inwards=cross.inwards,
                edge=cross.edge,
                beyond=self.moves.event(chains.x[end > cross.edge]),
                acceptance=accepted / made,
            )
        return record


def growing(x: Tensor, gradient: Tensor, share: float = 1.0) -> Tensor:
    # (n, d), (n, d) -> (d, k)
    """Directions along which curvature grows, of n draws of which a share is independent.

    First a combination of coordinates, the regression of log Σ_i g_i² var(x_i) on x, where it
    explains `MIN_GAIN` times as much as the best coordinate. Then coordinates ±x_k, the strongest
    first, by forward selection with partial rank correlations of g_i² (and of the mean of their
    ranks) with the x_k, k ≠ i; above √(2 log 10d²) / √n for one of the d² pairs, by chance one time
    in about fifty.
    """
    n, d = x.shape
    least = math.sqrt(2 * math.log(10 * d**2) / (n * share))
    features, y = ranks(x), ranks(gradient.square())
    y = torch.cat([y, ranks(y.mean(1, keepdim=True))], 1)
    found, chosen = combination(x, gradient, share), []
    for direction in found:
        y, features = without(ranks((x @ direction)[:, None]), y, features)
    while len(chosen) < min(MAX_VARIABLES, d):
        z = normed(y).T @ normed(features)
        if d > 1:
            z[:d].fill_diagonal_(0.0)
        score = torch.where(z.abs().amax(0) > least, z.square().sum(0), 0.0)
        score[chosen] = 0.0
        k = int(score.argmax())
        if not score[k] > 0:
            break
        chosen.append(k)
        unit = x.new_zeros(d)
        unit[k] = 1 if (z[:, k] * z[:, k].abs()).sum() > 0 else -1
        found.append(unit)
        y, features = without(features[:, k : k + 1], y, features)
    return torch.stack(found, 1) if found else x.new_zeros(d, 0)


def combination(x: Tensor, gradient: Tensor, share: float) -> list[Tensor]:
    """The combination of coordinates that explains how curvature grows, or none."""
    n, d = x.shape
    scale = x.std(0).clamp(min=1e-300)
    if d == 1 or d > n * share / 4:
        return []
    y = normed(ranks((gradient * scale).square().sum(1, keepdim=True)))
    features = (x - x.mean(0)) / scale
    weights = torch.linalg.lstsq(features, y, driver="gelsd").solution
    explained = float((features @ weights).square().sum())
    adjusted = 1 - (1 - explained) * (n * share - 1) / (n * share - d - 1)
    best = float((normed(features).T @ y).square().max())
    if adjusted < MIN_GAIN * best or adjusted * n * share < 2 * d + 10:
        return []
    direction = weights[:, 0] / scale
    return [direction / (direction * scale).norm()]


def without(base: Tensor, *others: Tensor) -> list[Tensor]:
    # (n, 1), (n, k) ... -> (n, k) ...
    """What a regression on the first leaves of each of the others."""
    base = normed(base)
    return [other - base @ (base.T @ other) for other in others]


def ranks(v: Tensor) -> Tensor:  # (n, k) -> (n, k)
    """Ranks along the first axis, of mean 0."""
    return v.argsort(0).argsort(0).double() - (len(v) - 1) / 2


def normed(v: Tensor) -> Tensor:  # (n, k) -> (n, k)
    """Columns of length 1; those without spread are 0."""
    length = v.norm(dim=0)
    return torch.where(length > 1e-9 * len(v), v / length, 0.0)


def crossing(start: Tensor, end: Tensor, weights: Tensor, share: float = 1.0) -> Crossing:
    # (m), (m), (m)
    """The sign test of chains that cross an edge, over all edges. The starts are all draws in R =
    {u > least start}, and this one."""
    kept = (start > start.min()) & (end > start.min())
    start, end, weights = start[kept], end[kept], weights[kept]
    pool = torch.cat([start, end]).sort(descending=True).values
    beyond, best, edges = MIN_BEYOND, Crossing(1.0, float("nan"), 0, 0), 0
    while beyond < len(start):
        edge = pool[beyond]
        outwards, inwards = (end > edge) & (start <= edge), (start > edge) & (end <= edge)
        p = sign_test(weights[outwards], weights[inwards], share)
        if p < best.pvalue or edges == 0:
            best = Crossing(p, float(edge), int(outwards.sum()), int(inwards.sum()))
        beyond, edges = int(1.5 * beyond), edges + 1
    return best._replace(pvalue=min(1.0, best.pvalue * max(edges, 1)))


def sign_test(outwards: Tensor, inwards: Tensor, share: float) -> float:
    """P(Bin(k, 1/2) ≥ outwards) of k crossings with weights, of which a share is independent."""
    out, total = float(outwards.sum()), float(outwards.sum() + inwards.sum())
    if total == 0:
        return 1.0
    square = float(outwards.square().sum() + inwards.square().sum())
    effective = share * total**2 / square
    up = math.floor(effective * out / total + 1e-9)
    k = up + math.ceil(effective * (1 - out / total) - 1e-9)
    return sum(math.comb(k, i) for i in range(up, k + 1)) / 2**k
