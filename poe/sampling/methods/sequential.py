"""Particles that follow the order of the autoregressive factors (`poe.smc.sequential`)."""

from __future__ import annotations

import math
import time

import torch

from poe.algebra.energy import Estimate
from poe.diagnostics.raw import Raw
from poe.diagnostics.weights import weight_ess
from poe.io.records import Codec
from poe.mcmc import parallel
from poe.mcmc.checkpoint import stage
from poe.sampling import estimation
from poe.sampling.estimation import POPULATIONS, Estimation, checked
from poe.sampling.job import Job, Method, MethodNotApplicable, Phase
from poe.sampling.methods.populations import distinct, population, sizes, split
from poe.smc.resampling import estimate, systematic
from poe.smc.sequential import Particles, ordered_product, propagate, should_twist
from poe.spaces.path import take

MIN_PARTICLES = 256  # of a population


def draw(job: Job) -> Raw:
    """Independent populations along the order, of which the draws are resampled. Raises
    MethodNotApplicable where no particle has weight."""
    started = time.perf_counter()
    order_of = ordered_product(job.energy)
    assert order_of is not None
    populations, wide = sizes(job)
    particles, generators = max(2 * wide, MIN_PARTICLES), job.streams(Phase.POPULATIONS)
    twisted = should_twist(order_of, job.streams(Phase.TUNING)[0])
    each = split(populations, job.shards)

    def shard(i: int) -> Particles:
        return propagate(order_of, each[i], particles, generators[i], twisted=twisted)

    def all_shards() -> list[Particles]:
        return parallel.spread(shard, generators, Codec(Particles, device=generators[0].device))

    parts = stage(job.checkpoint, all_shards, Particles, generators=generators)
    x, logs, log_ratio, failed = (torch.cat(column) for column in zip(*parts, strict=True))
    if not bool((logs > -math.inf).any()):
        particles = logs.numel()
        raise MethodNotApplicable(f"none of {particles} particles has weight", energies=particles)
    (generator, *_) = job.streams(Phase.TUNING)
    uniform = torch.rand(
        populations, 2, generator=generator, dtype=torch.float64, device=logs.device
    )
    order = systematic(logs, uniform, wide)
    return population(
        job,
        take(x, order),
        Estimate(0.0),
        estimate(log_ratio),
        nonfinite=int(failed.sum()),
        nonfinite_share=float(failed.sum()) / logs.numel(),
        energies=logs.numel() * (order_of.evaluations + 1) + order.numel(),
        weight_ess=float(weight_ess(logs).sum()),
        ancestors=distinct(order),
        seconds=time.perf_counter() - started,
    )


def log_z(job: Estimation) -> Estimate | None:
    """log Z from the weights of independent populations along the order."""
    order_of = ordered_product(job.energy)
    assert order_of is not None
    twisted = should_twist(order_of, job.streams[estimation.EstimatePhase.START])
    generator = job.streams[estimation.EstimatePhase.TUNING]
    moved = propagate(order_of, POPULATIONS, job.each, generator, twisted=twisted)
    return checked(job.energy, estimate(moved.log_ratio))


SEQUENTIAL = Method(
    "sequential",
    "sequential Monte Carlo along the order of the autoregressive factors",
    draw,
    lambda structure: (
        None
        if structure.autoregressive
        else "has no autoregressive factor over discrete values: there is no order to follow"
    ),
    log_z,
)
