"""Draws with what the search for modes says of them."""

from __future__ import annotations

from poe.diagnostics.draws import Draws
from poe.diagnostics.search import NO_SEARCH, UNSEARCHED
from poe.sampling.job import Job


def searched(draws: Draws, job: Job) -> Draws:
    """The draws with the record of the search, whose cost is added to theirs, and a reason for each
    mode that they lack; without a search, with the condition of trust that no mode lies
    elsewhere."""
    if job.structure.discrete or job.structure.noised or not len(draws):
        return draws
    found = job.space.found
    if found is None:
        return draws.warned(UNSEARCHED, given=NO_SEARCH)
    z = job.space.z(draws.x).flatten(1)
    size = min(draws.diagnostics.ess_bulk, float(len(draws)))
    log_z = None if draws.log_z is None else draws.log_z.value
    names = "" if job.space.unconstrained is None else " (in unconstrained coordinates)"
    return draws.with_search(found.judged(z, size, log_z, names))
