"""Populations of particles that are annealed along a path, from the nearest start to the target."""

from __future__ import annotations

import time
import warnings
from dataclasses import replace

from torch import Tensor

from poe.algebra.energy import Estimate
from poe.diagnostics.raw import Raw, evidence_of
from poe.diagnostics.verdict import fails, reasons
from poe.sampling import estimation
from poe.sampling.estimation import POPULATIONS, Estimation, checked, total, warn
from poe.sampling.job import Job, Method, MethodNotApplicable, Phase
from poe.sampling.methods.importance import MAX_PARETO_K, from_weights
from poe.sampling.methods.populations import (
    OVERSAMPLING,
    population,
    resampled,
    selected,
    sizes,
    split,
)
from poe.smc.discrete import visible
from poe.smc.narrow_start import narrow_start
from poe.smc.noise_path import NoisePath
from poe.smc.population import anneal
from poe.smc.resampling import estimate
from poe.smc.search import find_schedule, from_fitted
from poe.smc.starts import sampler, weigh
from poe.smc.tuning import StalledError, TunedSchedule

AIS_REFINEMENT = 4  # levels of annealed importance sampling for each of sequential Monte Carlo
NARROW_COST = 50_000  # gradients of a start that reaches into the narrow end
NARROW_WORDS = "importance resampling of a start that reaches into the narrow end"
FITTED_WORDS = "importance resampling of a start that was fitted to annealed particles"
SCORE_WORDS = (
    "annealed particles that follow scores (log Z: of the densities behind those, as far as they "
    "agree)"
)


def draw(job: Job) -> Raw:
    """Populations along the path, by a schedule that a pilot tuned. Raises MethodNotApplicable
    where no path was found."""
    started = time.perf_counter()
    populations, wide = sizes(job)
    if job.lacking is not None:
        reaching = _from_narrow_end(job, started)
        if reaching is not None:
            return reaching
        if job.annealed is not None:
            raise MethodNotApplicable("no start was found that reaches into the narrow end")
    try:
        tuned = find_schedule(
            job.target,
            None if job.start is None else job.start.density,
            job.streams(Phase.TUNING)[0],
            kernel=job.kernel,
            progress=job.progress,
            checkpoint=job.checkpoint,
        )
    except StalledError as stalled:
        raise MethodNotApplicable(str(stalled)) from stalled
    fitted = _from_fitted(job, tuned, started)
    if fitted is not None:
        return fitted
    tuned = from_fitted(
        job.target,
        tuned,
        job.streams(Phase.FITTED_START)[0],
        kernel=job.kernel,
        progress=job.progress,
        checkpoint=job.checkpoint,
    )
    path = tuned.schedule.path
    moved = anneal(
        tuned.schedule,
        sampler(path.start, job.target),
        split(populations, job.shards),
        wide * job.thin,
        job.streams(Phase.POPULATIONS),
        progress=job.progress,
        checkpoint=job.checkpoint,
    )
    particles = moved.energy.numel()
    raw = population(
        job,
        job.space.x(visible(job.energy, tuned.to_x(moved.x[:, job.thin - 1 :: job.thin]))),
        path.start.log_z,
        estimate(moved.log_ratio),
        acceptance=moved.acceptance,
        nonfinite=moved.nonfinite,
        nonfinite_share=moved.nonfinite_share,
        divergent=moved.divergent,
        ancestors=moved.distinct,
        gradients=tuned.gradients + particles * tuned.schedule.gradients,
        energies=job.weighing + particles * (1 + tuned.schedule.energies) + tuned.energies,
        seconds=time.perf_counter() - started,
    )
    if isinstance(path, NoisePath) and path.guidance is not None:
        raw = replace(raw, method=SCORE_WORDS)
    if not moved.partial:
        return raw
    note = job.progress.reason(f"{len(moved.x)} of {populations} populations are complete")
    return replace(raw, partial=True, reasons=(note,))


def _from_narrow_end(job: Job, started: float) -> Raw | None:
    """Draws of a start that reaches into the narrow end, where those of a method before lack mass
    there; None where none can be fitted, or its weights are too uneven."""
    assert job.lacking is not None and job.lacking.narrow_end is not None
    job.progress.spend(NARROW_COST)
    z, generator = job.space.z(job.lacking.x), job.streams(Phase.FITTED_START)[0]
    found = narrow_start(job.target, z, job.lacking.narrow_end, generator)
    if found is None or found.start.pareto_k > MAX_PARETO_K:
        return None
    start, populations = found.start, sizes(job)[0]
    each = len(start.x) // populations
    raw = selected(
        job,
        start.x[: populations * each].unflatten(0, (populations, each)),
        start.log_weights[: populations * each].unflatten(0, (populations, each)),
        job.space.x,
        start.log_z,
        nonfinite=start.failed,
        energies=found.energies,
        gradients=found.gradients,
        seconds=time.perf_counter() - started,
    )
    return replace(raw, method=NARROW_WORDS)


def _from_fitted(job: Job, tuned: TunedSchedule, started: float) -> Raw | None:
    """Draws of a start that was fitted to the target, without moves; None where there is none, or
    more draws meet a mode that it misses."""
    fitted = tuned.fitted
    if fitted is None:
        return None

    def to_x(z: Tensor) -> Tensor:
        return job.space.x(fitted.to_x(z))

    spent = {"gradients": tuned.gradients, "energies": tuned.energies}
    raw = resampled(job, fitted.start, fitted.end, to_x, started=started, **spent)
    d = evidence_of(raw, job.structure)
    if raw.counts["weight_ess"] <= OVERSAMPLING / 2 * job.draws or reasons(d, job.draws):
        return None
    return replace(raw, method=FITTED_WORDS, evidence=d)


def log_z(job: Estimation, *, resample: bool = True) -> Estimate | None:
    """log Z from annealed populations or, where the method was not named, from the weights of a
    start that was fitted to the target."""
    energy, generators = job.energy, job.streams
    run = find_schedule(
        job.target,
        None if job.start is None else job.start.density,
        generators[estimation.EstimatePhase.TUNING],
        progress=job.progress,
    )
    if not job.forced and run.fitted is not None:
        stream = generators[estimation.EstimatePhase.POPULATIONS]
        job.progress.spend(8 * job.particles)
        near = weigh(run.fitted.start.density, run.fitted.end, stream, 8 * job.particles)
        if run.fitted._replace(start=near).good and not fails(near.failed, near.hidden):
            return from_weights(energy, near)
    tuning = generators[estimation.EstimatePhase.TUNING]
    run = from_fitted(job.target, run, tuning, progress=job.progress)
    path, schedule = run.schedule.path, run.schedule
    if not resample:  # weights spread with each level
        schedule = schedule.refined(AIS_REFINEMENT)
    found = anneal(
        schedule,
        sampler(path.start, job.target),
        [POPULATIONS],
        job.each,
        [generators[estimation.EstimatePhase.POPULATIONS]],
        resample=resample,
        progress=job.progress,
    )
    if fails(found.nonfinite, found.nonfinite_share):
        raise ValueError(
            f"{energy} was NaN or had a NaN gradient at {found.nonfinite} points; an expert "
            "fails there"
        )
    if found.partial:
        note = job.progress.reason(f"{len(found.x)} of {POPULATIONS} populations are complete")
        warnings.warn(note, estimation.EstimateWarning, stacklevel=2)
    result = checked(energy, estimate(found.log_ratio))
    few = resample and found.distinct < 2 * POPULATIONS
    if few and result.standard_error < estimation.MAX_STANDARD_ERROR:
        warn(
            f"log Z of {energy} rests on populations whose particles all descend from one: its "
            "standard error is too small"
        )
    return total(result, path.start.log_z)


def ais(job: Estimation) -> Estimate | None:
    """log Z by annealed importance sampling: without resampling, on more levels."""
    return log_z(job, resample=False)


ANNEALED = Method(
    "annealed",
    "annealed particles (sequential Monte Carlo)",
    draw,
    log_z=log_z,
    moves=True,
)
