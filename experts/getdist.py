"""Chains that GetDist holds (`MCSamples`), as densities: `poe.fit_density` on their samples,
weights and hard ranges."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from poe.algebra.energy import Energy
from poe.registry import register
from poe.training.fitting import fit_density


@register("getdist")
def from_chain(samples: Any, *, parameters: Sequence[str] | None = None, **options: Any) -> Energy:
    """A density over some parameters of a chain, the others being integrated out; x holds them in
    the order given.

    Arguments:
        samples: `getdist.MCSamples`; remove its burn-in before, `samples.removeBurn(0.3)`.
        parameters: names in the chain; by default all that were sampled, derived ones left out.
        options: of `poe.fit_density`: copies, seed, architecture. Ranges that the chain states
            become the support.

    Raises ValueError for a name that the chain does not have; further as `poe.fit_density`.
    """
    known = [info.name for info in samples.paramNames.names if not info.isDerived]
    wanted = known if parameters is None else list(parameters)
    every = samples.paramNames.list()
    unknown = [name for name in wanted if name not in every]
    if unknown or not wanted:
        raise ValueError(
            f"the chain has the parameters {', '.join(every)}, not "
            f"{', '.join(unknown) or 'an empty choice'}"
        )
    columns = [every.index(name) for name in wanted]
    # None, which becomes NaN, where the chain states no end
    ends = (map(end, wanted) for end in (samples.ranges.getLower, samples.ranges.getUpper))
    low, high = (np.array([*end], dtype=float) for end in ends)
    support = None
    if not (np.isnan(low).all() and np.isnan(high).all()):
        support = np.where(np.isnan(low), -np.inf, low), np.where(np.isnan(high), np.inf, high)
    points = np.asarray(samples.samples)[:, columns]
    return fit_density(points, samples.weights, support=support, **options)
