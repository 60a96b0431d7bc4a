"""The mass near each minimum, by a small importance run, and whether draws have it.

Near a minimum m with covariance L Lᵀ is R = {x : |L⁻¹(x - m)|² <= χ²_d(.999)}. With draws of a
mixture q = (N + t_8)/2 at m the mass M in R is the mean of exp(-E) 1_R / q. A minimum counts where
Pareto k of these weights is at most .7: in trained densities of many dimensions minima lie far
below the typical set, and their curvature says nothing of any mass. Of n independent draws of a
density of log Z = z, R has n·M/exp(z) on average; so low a count that its Poisson probability is
below 1 %, over all minima, says that mass was missed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from poe.diagnostics.weights import pareto_k, weight_ess
from poe.smc.flat import Flat
from poe.smc.minima import Minimum, distances
from poe.smc.scales import Profile, Scales

QUANTILE = 3.0902  # of the standard normal, .999: of the mass of a normal that its region has
MAX_PARETO_K = 0.7
RUN = 256  # draws for each minimum
MISSED_LEVEL = 0.01  # of the test over all minima
ERRORS = 3.0  # standard errors by which a mass is taken to be smaller
_PROFILES = Profile(1.0, math.inf), Profile(1.05, 8.0)


class Basin(NamedTuple):
    """A minimum whose mass is confirmed: log of the mass in its region and the standard error."""

    minimum: Minimum
    log_mass: float
    error: float


def radius(d: int) -> float:
    """χ²_d(.999), to 3 %: d (1 - 2/(9d) + 3.0902 (2/(9d))^(1/2))³ (Wilson and Hilferty 1931)."""
    return d * (1 - 2 / (9 * d) + QUANTILE * math.sqrt(2 / (9 * d))) ** 3


def poisson_below(count: int, mean: float) -> float:
    """The probability of at most `count` events where `mean` are expected: Q(count + 1, mean), the
    regularised incomplete gamma function."""
    pair = torch.tensor([count + 1.0, mean], dtype=torch.float64)
    return float(torch.special.gammaincc(pair[0], pair[1]))


def confirmed(
    flat: Flat, minima: Sequence[Minimum], generator: torch.Generator, run: int = RUN
) -> list[Basin]:
    """The minima whose mass an importance run confirms."""
    found, reach = [], radius(flat.d)
    for minimum in minima:
        weights = torch.zeros(1, 2, dtype=torch.float64)
        where = torch.Size(flat.event)
        near = Scales(weights, minimum.x[None], minimum.root[None], where, flat.like, _PROFILES)
        points = near.sample(run, generator=generator)
        x = points.reshape(run, flat.d).double()
        inside = distances(minimum, x) <= reach
        logs = torch.where(inside, -flat(x) - near.log_prob(points), -math.inf)
        logs = torch.where(logs.isnan(), -math.inf, logs)
        if not pareto_k(logs) <= MAX_PARETO_K:
            continue
        mass = float(logs.logsumexp(0)) - math.log(run)
        error = math.sqrt(max(1 / float(weight_ess(logs)) - 1 / run, 0.0))
        found.append(Basin(minimum, mass, error))
    return found


def missed(
    basins: Sequence[Basin], x: Tensor, size: float, log_z: float, names: str
) -> tuple[str, ...]:
    # x (n, d)
    """Reasons not to trust draws of this effective number, whose density has this log Z: basins
    that they lack. `names` says where the point is, of the space of x."""
    if not basins or not len(x):
        return ()
    reach, found = radius(x.shape[1]), []
    log_z = max([log_z, *(basin.log_mass for basin in basins)])
    for basin in basins:
        share = math.exp(basin.log_mass - log_z) * max(0.0, 1 - ERRORS * basin.error)
        seen = float((distances(basin.minimum, x) <= reach).double().mean())
        if poisson_below(math.floor(seen * size), share * size) < MISSED_LEVEL / len(basins):
            found.append(
                f"the search found a mode at {_shown(basin.minimum.x)}{names} with {share:.2g} of "
                f"the mass, where {seen:.2g} of these draws are; try another seed=, or init= "
                "points in each mode"
            )
    return tuple(found)


def _shown(x: Tensor) -> str:
    values = [f"{value:.3g}" for value in x[:6].tolist()]
    return f"({', '.join(values)}{', ...' if len(x) > 6 else ''})"
