"""Markov chains of one kernel, tuned in warm-up."""

from __future__ import annotations

import math
from dataclasses import replace

from poe.diagnostics.comparison import Seen
from poe.diagnostics.raw import Raw
from poe.diagnostics.verdict import RHAT_LIMIT
from poe.sampling.job import Job, Method, MethodNotApplicable
from poe.sampling.methods.runs import MAX_GAP, PILOT_DRAWS, WARMUP, Runs

MIN_ANCESTORS = 2  # distinct ones of the particles of a population: below, all descend from one


def draw(job: Job) -> Raw:
    """Chains from annealed particles where there are any, else from starts of importance resampling
    or from `init`.

    Unless forced, raises MethodNotApplicable where the chains disagree, or are slow: R-hat does not
    see a mode that no chain has had the time to find, unless some start there. What chains that
    disagree have seen goes along: later draws are compared with it.
    """
    work = Runs(job)
    pilot, gap = work.pilot(work.kernel, work.starts(), WARMUP, "chains")
    if pilot.partial:
        return work.finish(pilot)
    # discrete chains start from values drawn evenly for each site
    most = MAX_GAP if job.structure.discrete else PILOT_DRAWS // 4 + 1
    if not job.forced and job.annealed is None and gap >= most:
        disagree = work.evidence(pilot).rhat > RHAT_LIMIT
        raise MethodNotApplicable(
            f"chains are slow: about {gap} steps between independent draws",
            seen=Seen(work.x(pilot.x), pilot.energy) if disagree else None,
            gradients=work.gradients,
        )
    trace = work.run(pilot, gap, "chains")
    if trace.partial:
        return work.finish(trace)
    d = work.evidence(trace)
    worst = 0.0 if math.isnan(d.rhat) else max(d.rhat, d.rhat_energy)
    if not job.forced and worst > RHAT_LIMIT:
        seen = Seen(work.x(trace.x), trace.energy)
        why = f"chains disagreed (R-hat {worst:.2f})"
        raise MethodNotApplicable(why, seen=seen, gradients=work.gradients)
    raw = work.finish(trace)
    return replace(raw, reasons=(*raw.reasons, *_of_ancestors(job)))


def _of_ancestors(job: Job) -> list[str]:
    """A reason where chains continue from particles with few ancestors at the start of annealing:
    chains do not connect modes, and R-hat sees only those that they start in."""
    annealed = job.annealed
    ancestors = math.nan if annealed is None else annealed.counts.get("ancestors", math.nan)
    if annealed is None or not ancestors < MIN_ANCESTORS * len(annealed.x):
        return []
    return [
        f"chains continue from particles of {len(annealed.x)} populations with {ancestors:.0f} "
        'ancestors: modes that those missed are missed; try poe.sample(..., method="annealed", '
        "thin=4)"
    ]


CHAINS = Method("chains", "chains", draw, moves=True)
