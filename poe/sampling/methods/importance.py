"""Importance resampling from a factor that draws samples, or from what a search for modes fitted.

Reference: Vehtari, Simpson, Gelman, Yao and Gabry 2024, JMLR 25.
"""

from __future__ import annotations

import math
import time
from dataclasses import replace

from poe.algebra.energy import Energy, Estimate
from poe.diagnostics.raw import Raw
from poe.diagnostics.verdict import PARETO_LIMIT, fails
from poe.diagnostics.weights import pareto_k
from poe.sampling import estimation
from poe.sampling.estimation import Estimation, total, warn
from poe.sampling.job import Job, Method, MethodNotApplicable
from poe.sampling.methods.populations import resampled
from poe.smc.resampling import estimate
from poe.smc.starts import Start, weigh

MAX_PARETO_K = 0.5  # beyond it importance weights are not resampled
MIN_ESS_SHARE = 1 / 50  # of the weighed draws, for them to be resampled
FOUND_WORDS = "importance resampling of a mixture fitted to the modes that a search found"
MIN_LOG_Z_SHARE = 1 / 10  # the same for an estimate of log Z


def draw(job: Job) -> Raw:
    """Draws of a samplable part, resampled with Pareto-smoothed weights exp(E_start - E_target), in
    independent populations.

    `OVERSAMPLING` times as many effective draws are weighed as are asked for. Unless forced, raises
    MethodNotApplicable where Pareto k of the weights is above `MAX_PARETO_K` or their effective
    share below `MIN_ESS_SHARE`.
    """
    started = time.perf_counter()
    start = job.start
    if start is None:
        raise MethodNotApplicable("no part draws samples where the target has its mass")
    share = start.ess / len(start.x)
    if not job.forced and (start.pareto_k > MAX_PARETO_K or share < MIN_ESS_SHARE):
        raise MethodNotApplicable(
            f"the weights of {start.density} are too uneven: Pareto k {start.pareto_k:.2f}, ESS "
            f"{100 * share:.1f} %",
            energies=job.weighing,
        )
    raw = resampled(job, start, job.target, job.space.x, started=started)
    found = job.space.found
    if found is None or start is not found.start:
        return raw
    k = raw.counts["pareto_k"]
    if not job.forced and k > MAX_PARETO_K:  # more draws show what a fit to few has missed
        raise MethodNotApplicable(
            f"the weights of a mixture fitted to the modes are too uneven: Pareto k {k:.2f}",
            energies=raw.counts["energies"],
        )
    return replace(raw, method=FOUND_WORDS, stein=not job.structure.discrete)


def log_z(job: Estimation) -> Estimate | None:
    """log Z from the weights of draws of a start."""
    if job.start is None:
        if not job.forced:
            return None
        raise ValueError(
            f"importance sampling of {job.energy} needs a proposal= that draws: none of its parts "
            "does"
        )
    generator = job.streams[estimation.EstimatePhase.TUNING]
    job.progress.spend(job.particles)
    full = weigh(job.start.density, job.target, generator, job.particles)
    enough = full.pareto_k <= MAX_PARETO_K and full.ess >= job.particles * MIN_LOG_Z_SHARE
    return from_weights(job.energy, full) if job.forced or enough else None


def from_weights(energy: Energy, start: Start) -> Estimate | None:
    """log Z from weighed draws."""
    logs, n = start.log_weights, len(start.log_weights)
    if fails(start.failed, start.hidden):
        raise ValueError(f"{start.failed} of {n} particles have energy NaN; an expert fails there")
    if not bool((logs > -math.inf).any()):
        raise ValueError(
            f"no draw of {start.density} has finite energy under {energy}: give a proposal= whose "
            "draws do"
        )
    if (k := pareto_k(logs)) > PARETO_LIMIT:
        warn(
            f"log Z of {energy} rests on few particles (Pareto k {k:.2f} > {PARETO_LIMIT}): its "
            "standard error is too small"
        )
    return total(estimate(logs), start.log_z)


IMPORTANCE = Method(
    "importance",
    "importance resampling of a part that draws samples",
    draw,
    lambda structure: (
        None
        if structure.starts
        else "has no part that draws samples, so there is nothing to resample by importance"
    ),
    log_z,
)
