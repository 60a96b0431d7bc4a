"""Draws of one method against chains that were run before it and disagreed: what those spent time
in must be there."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

SLICES = 10  # of equal chain time along a direction
MAX_DIRECTIONS = 4  # the coordinate of the largest differences, and combinations of coordinates
LEVEL = 0.01  # probability that draws which lack nothing show an empty slice
SHOWN = 4  # coordinates of a point in a message


class Seen(NamedTuple):
    """What chains that disagreed visited: points (chain, draw, *event), and their energies (chain,
    draw) in nats."""

    x: Tensor
    energy: Tensor


def unvisited(
    seen: Seen, x: Tensor, size: float, log_z: float | None = None, *, discrete: bool = False
) -> list[str]:
    # x (n, *event)
    """Why draws x of effective number `size` are not to be trusted: a region that held a tenth of
    the chains' time, where these draws have none. One of a fifth is always seen.

    The chains' time is cut into `SLICES` of equal time along `MAX_DIRECTIONS`: the coordinate in
    which the means of chains differ most, in units of the spread within chains, and the principal
    components of these means. Chains that disagree do not know shares, so only an empty slice
    counts: of draws that had a share s there, none lies there with probability exp(-s size), which
    must be below `LEVEL` over the number of slices.

    Chains stay in traps of negligible mass too. Where log Z is known, a slice is passed over whose
    points stand for less than one draw: log mass is at most about -e + h, e the mean energy of its
    points and h the largest entropy that goes with their covariance S, d/2 (1 + log 2π) + ½ log det
    S, or, discrete, with the marginal law of each coordinate.
    """
    chains, draws = seen.x.shape[:2]
    points = seen.x.reshape(chains, draws, -1).double().cpu()
    later, energy = x.reshape(len(x), -1).double().cpu(), seen.energy.double().cpu().flatten()
    good = bool(points.isfinite().all()) and bool(later.isfinite().all())
    if not good or chains < 2 or not len(later):
        return []
    flat, found = points.flatten(0, 1), []
    for direction in _directions(points):
        along, there = flat @ direction, later @ direction
        for inside, empty in _slices(along, there):
            share = float(inside.double().mean())
            surprising = share * size >= math.log(SLICES * MAX_DIRECTIONS / LEVEL)
            held = flat[inside], energy[inside]
            if empty and surprising and _has_mass(*held, size, log_z, discrete):
                found.append((share, flat[inside].median(0).values))
    if not found:
        return []
    share, centre = max(found, key=lambda pair: pair[0])
    place = ", ".join(f"{number:.3g}" for number in centre[:SHOWN].tolist())
    place += ", ..." if len(centre) > SHOWN else ""
    return [
        f"chains spent {100 * share:.0f} % of their time near x = ({place}), where these draws "
        'have none: mass may be missing; try poe.sample(..., method="tempered") or more draws='
    ]


def _directions(points: Tensor) -> list[Tensor]:  # (chain, draw, d) -> (d) each
    """The coordinate in which the means of chains differ most, and the principal components of the
    means, in units of the spread within chains."""
    within = points.var(1).mean(0).sqrt()
    usable = within > 0 if bool((within > 0).any()) else within == 0
    scale = torch.where(usable & (within > 0), within, 1)
    means = torch.where(usable, points.mean(1) / scale, 0)
    means = means - means.mean(0)
    widest = torch.zeros_like(scale)
    widest[means.square().sum(0).argmax()] = 1
    components = torch.linalg.svd(means, full_matrices=False).Vh[: MAX_DIRECTIONS - 1]
    return [widest, *(component / scale for component in components)]


def _slices(along: Tensor, there: Tensor) -> list[tuple[Tensor, bool]]:  # (m), (n)
    """Slices of equal chain time: which of the chains' points lie in each, and whether no draw
    does. Where there are few values, each that holds as much time is a slice."""
    values, counts = along.unique(return_counts=True)
    if len(values) <= SLICES:
        often = values[counts * SLICES >= len(along)]
        return [(along == value, not bool((there == value).any())) for value in often]
    levels = torch.linspace(0, 1, SLICES + 1, dtype=along.dtype)
    edges = along.quantile(levels, interpolation="nearest").unique()
    found = []
    for low, high in pairwise(edges):
        top = high == edges[-1]
        inside = (along >= low) & ((along <= high) if top else (along < high))
        lies = (there >= low) & ((there <= high) if top else (there < high))
        found.append((inside, not bool(lies.any())))
    return found


def _has_mass(x: Tensor, energy: Tensor, size: float, log_z: float | None, discrete: bool) -> bool:
    """Whether the points of a slice stand for one of so many draws at least."""
    entropy = _marginal_entropy(x) if discrete else _normal_entropy(x)
    if log_z is None or entropy is None:
        return True
    return entropy - float(energy.mean()) - log_z >= -math.log(max(size, 1.0))


def _normal_entropy(x: Tensor) -> float | None:  # (m, d) -> nats
    """That of a normal with the covariance of these points; None where they are too few."""
    d = x.shape[1]
    if len(x) <= 2 * d:
        return None
    log_det = float(torch.linalg.slogdet(x.T.cov().reshape(d, d)).logabsdet)
    return d / 2 * (1 + math.log(2 * math.pi)) + log_det / 2


def _marginal_entropy(x: Tensor) -> float:  # (m, d) -> nats
    """The sum of the entropies of the coordinates."""
    shares = torch.stack([(x == value).double().mean(0) for value in x.unique()])
    return float(-torch.special.xlogy(shares, shares).sum())
