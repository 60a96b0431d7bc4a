"""What a call that ends early returns: the draws that are there, or else the points that its phases
have reached."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from poe.algebra.energy import first_tensor
from poe.diagnostics.draws import Draws
from poe.diagnostics.raw import Raw
from poe.mcmc.progress import Stopped
from poe.sampling.job import Job, Phase
from poe.smc.discrete import visible
from poe.smc.resampling import systematic

ENDS = (KeyboardInterrupt, Stopped)  # what ends a call early


def so_far(job: Job, end: BaseException) -> Raw:
    """The latest points of the phases before any draws, resampled where they have weights; no
    draws where there are none of finite energy."""
    if job.checkpoint is not None:
        job.checkpoint.freeze()
    job.progress.end(end)
    kept = job.progress.points
    if kept is None:
        return nothing(job, "no method", job.progress.reason("there are no points yet"))
    z, logs = kept
    generator = job.streams(Phase.CHAIN_STARTS)[0]
    x = job.space.x(visible(job.energy, z[_chosen(len(z), logs, job.draws, generator)]))
    with torch.no_grad():
        energy = job.energy(x)
    x, energy = x[energy.isfinite()], energy[energy.isfinite()]
    if not len(x):
        return nothing(job, "no method", job.progress.reason("no point of finite energy yet"))
    note = job.progress.reason(
        f"these are {len(x)} points that a phase before the draws reached, and they do not follow "
        "the target yet"
    )
    return Raw(
        x.unsqueeze(0),
        energy.unsqueeze(0),
        job.draws,
        method="no method: a phase before the draws",
        exact=False,
        partial=True,
        reasons=(note,),
        counts={"energies": job.progress.spent + len(x)},
    )


def _chosen(count: int, logs: Tensor | None, draws: int, generator: torch.Generator) -> Tensor:
    """Which of so many points are returned: as many as there are draws, by their weights."""
    uniform = torch.rand(1, 2, generator=generator, dtype=torch.float64, device=generator.device)
    if logs is None or not bool((logs > -math.inf).any()):
        return torch.randperm(count, generator=generator, device=generator.device)[:draws]
    return systematic(logs.to(generator.device).unsqueeze(0), uniform, draws)[0]


def nothing(job: Job, words: str, note: str = "there are no draws") -> Raw:
    """No draws at all, and why."""
    like: Any = first_tensor(job.energy)
    empty = like.new_empty(job.chains or max(1, job.shards), 0, *job.energy.event_shape)
    energy, partial = empty.new_empty(len(empty), 0), bool(job.progress.why)
    return Raw(empty, energy, 0, method=words, partial=partial, reasons=(note,))


def judged(raw: Raw, job: Job, judge: Callable[[Raw], Draws]) -> Draws:
    """`judge(raw)`; without what it looks into where that is ended early."""
    try:
        return judge(raw)
    except ENDS as end:
        job.progress.end(end)
        note = job.progress.reason("these draws were not checked to the end")
        left = replace(raw, stein=False, partial=True, reasons=(note, *raw.reasons))
        return Draws.of(left, job.structure)


def better(result: Draws, earlier: Draws | None) -> Draws:
    """Of draws that an end of the call has cut short, and those of a method before, which could
    not be trusted, the ones with more effective draws, marked as partial."""
    if earlier is None or not earlier.diagnostics.ess_bulk > result.diagnostics.ess_bulk:
        return result
    first = result.reasons[0]
    return replace(earlier, partial=True, warnings=(first, *earlier.warnings))
