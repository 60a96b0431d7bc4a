"""Draws with what the search for modes, and a look into the narrow end, say of them."""

from __future__ import annotations

import math

from torch import Tensor

from poe.diagnostics.draws import Draws
from poe.diagnostics.search import NO_SEARCH, UNSEARCHED
from poe.sampling.branching import unmet
from poe.sampling.job import Job, Phase
from poe.smc.narrow_end import narrow_end
from poe.smc.phases import Phases

# gradients of a look into the narrow end: the operations that they may take, and their limits
LOOK_OPERATIONS, MIN_LOOK, MAX_LOOK = 5e8, 6_000, 50_000
GROWN = 2.33  # standard errors: 1 %, one-sided


def searched(draws: Draws, job: Job, *, drawn_apart: bool = False) -> Draws:
    """The draws with the record of the search, whose cost is added to theirs, and a reason for each
    mode that they lack; and with the look into the narrow end, where there is no reason yet.
    Without a search, with the condition of trust that no mode lies elsewhere. Branches that were
    `drawn_apart` have searches of their own, and exact draws need none."""
    exact = draws.diagnostics.independent or drawn_apart
    if exact or job.structure.noised or not len(draws):
        return draws
    found = job.space.found
    if found is None:
        return draws.warned(UNSEARCHED, given=NO_SEARCH)
    size = min(draws.diagnostics.ess_bulk, float(len(draws)))
    if isinstance(found, Phases):
        return draws.with_search(found.judged(draws.x, size, draws.log_z))
    z = job.space.z(draws.x)
    log_z = None if draws.log_z is None else draws.log_z.value
    names = "" if job.space.unconstrained is None else " (in unconstrained coordinates)"
    draws = draws.with_search(found.judged(z.reshape(len(z), -1), size, log_z, names))
    draws = unmet(draws, job) if draws.trusted else draws
    if not draws.trusted:
        return draws
    if (doubt := _still_lacking(draws, z, size, job)) is not None:
        return draws.warned(doubt)
    most = int(min(MAX_LOOK, max(MIN_LOOK, LOOK_OPERATIONS / found.operations)))
    generator = job.space.phase(Phase.NARROW_END)
    job.progress.spend(most)
    look = narrow_end(job.target, z, generator, ess=size, max_gradients=most)
    job.progress.spent -= most - (0 if look is None else look.gradients)
    return draws if look is None else draws.with_narrow_end(look, job.target.event_shape)


def _still_lacking(draws: Draws, z: Tensor, size: float, job: Job) -> str | None:
    """A reason where an earlier look found that mass is missing beyond an edge, and these draws,
    points z (n, *event) of effective number `size`, have no more there: the share beyond must have
    grown by `GROWN` standard errors."""
    earlier = job.lacking
    if earlier is None or earlier.narrow_end is None or earlier.narrow_end.direction is None:
        return None
    look, direction = earlier.narrow_end, earlier.narrow_end.direction.double().cpu()
    known = job.space.z(earlier.x)
    shares = [
        float((x.reshape(len(x), -1).double().cpu() @ direction > look.edge).double().mean())
        for x in (known, z)
    ]
    sizes = min(earlier.diagnostics.ess_bulk, float(len(known))), max(size, 1.0)
    variance = sum(s * (1 - s) / n for s, n in zip(shares, sizes, strict=True))
    if shares[1] - shares[0] > GROWN * math.sqrt(variance):
        return None
    where = look.where(job.target.event_shape)
    return (
        f"an earlier look found that mass is missing at the narrow end, {where}, beyond an edge "
        f"where {shares[0]:.2g} of those draws were, and {shares[1]:.2g} of these are; try the "
        "non-centred form, x = location + scale * z with z in place of x"
    )
