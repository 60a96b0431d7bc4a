"""Markov chains of one kernel, tuned in warm-up."""

from __future__ import annotations

import math

from poe.diagnostics.raw import Raw
from poe.diagnostics.verdict import RHAT_LIMIT
from poe.sampling.job import Job, Method, MethodNotApplicable
from poe.sampling.methods.runs import MAX_GAP, PILOT_DRAWS, WARMUP, Runs


def draw(job: Job) -> Raw:
    """Chains from annealed particles where there are any, else from starts of importance resampling
    or from `init`.

    Unless forced, raises MethodNotApplicable where the chains disagree, or are slow: R-hat does not
    see a mode that no chain has had the time to find, unless some start there.
    """
    work = Runs(job)
    pilot, gap = work.pilot(work.kernel, work.starts(), WARMUP, "chains")
    if pilot.partial:
        return work.finish(pilot)
    # discrete chains start from values drawn evenly for each site
    most = MAX_GAP if job.structure.discrete else PILOT_DRAWS // 4 + 1
    if not job.forced and job.annealed is None and gap >= most:
        raise MethodNotApplicable(
            f"chains are slow: about {gap} steps between independent draws",
            gradients=work.gradients,
        )
    trace = work.run(pilot, gap, "chains")
    if trace.partial:
        return work.finish(trace)
    d = work.evidence(trace)
    worst = 0.0 if math.isnan(d.rhat) else max(d.rhat, d.rhat_energy)
    if not job.forced and worst > RHAT_LIMIT:
        raise MethodNotApplicable(f"chains disagreed (R-hat {worst:.2f})", gradients=work.gradients)
    return work.finish(trace)


CHAINS = Method("chains", "chains", draw, moves=True)
