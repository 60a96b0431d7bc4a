"""Replica exchange from the start to the target."""

from __future__ import annotations

import math
from typing import Any

import torch

from poe.diagnostics.raw import Raw
from poe.kernels import Langevin, Tempered
from poe.kernels.tempered import linear_betas
from poe.sampling.job import Job, Method
from poe.sampling.methods.runs import Runs

FIRST_RUNGS = 8  # of the ladder before it is respaced
MIN_RUNGS, MAX_RUNGS = 4, 24
LADDER_DRAWS, LADDER_WARMUP = 20, 40  # of each run that respaces the ladder
WARMUP = 60  # steps of the ladder in use


def draw(job: Job) -> Raw:
    """Replica exchange on a ladder that is tuned and respaced in warm-up, until its rejection rates
    are even."""
    work = Runs(job)
    x = work.starts()
    chosen: Any = work.kernel
    if isinstance(chosen, Tempered):
        kernel = chosen
    else:
        plain = chosen.plain or job.structure.discrete
        ladder = linear_betas(FIRST_RUNGS)
        kernel = Tempered(work.bottom(x), ladder, chosen if plain else Langevin())
    walkers: Any = x
    for _ in range(2):
        pilot = work.steps(kernel, walkers, LADDER_DRAWS, "ladder", warmup=LADDER_WARMUP)
        if pilot.partial:
            return work.finish(pilot)
        rejection = 1 - torch.stack([state.swapped for state in pilot.states]).mean(0)
        wanted = math.ceil(1.3 * float(rejection.sum())) + 2
        rungs = int(min(MAX_RUNGS, max(MIN_RUNGS, wanted)))
        old, kernel = pilot.kernel.betas, pilot.kernel.respaced(rejection, rungs)  # type: ignore[attr-defined]
        nearest = (old.unsqueeze(0) - kernel.betas.unsqueeze(1)).abs().argmin(1)
        nearest[1:] = nearest[1:].clamp(min=1)  # draws of the start may lie where the target fails
        walkers = torch.cat([state.rungs.x for state in pilot.states])[:, nearest]
    pilot, gap = work.pilot(kernel, walkers, WARMUP, "replica exchange")
    return work.finish(pilot if pilot.partial else work.run(pilot, gap, "replica exchange"))


TEMPERED = Method("tempered", "replica exchange", draw, moves=True)
