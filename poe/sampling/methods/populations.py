"""What methods of independent populations of weighted particles share."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from poe.algebra.energy import Energy, Estimate
from poe.diagnostics.raw import Raw
from poe.diagnostics.weights import pareto_smoothed, weight_ess
from poe.sampling.estimation import total
from poe.sampling.job import Job, Phase
from poe.smc.noise_path import EXPENSIVE_POPULATIONS, MAX_EXPENSIVE_PARTICLES, expensive
from poe.smc.resampling import estimate, morton_order, systematic
from poe.smc.starts import WEIGHED_DRAWS, Start, weigh
from poe.spaces.path import take

POPULATIONS = 16  # independent ones, unless `chains` says otherwise
MIN_PARTICLES = 1024  # over all populations
MAX_WEIGHED = 64 * WEIGHED_DRAWS  # draws of a start that importance resampling may take
OVERSAMPLING = 4  # effective draws that are weighed for each one that is kept


def sizes(job: Job) -> tuple[int, int]:
    """(populations, particles of each)."""
    groups, least = POPULATIONS, MIN_PARTICLES
    if expensive(job.energy):
        groups, least = EXPENSIVE_POPULATIONS, min(MAX_EXPENSIVE_PARTICLES, 4 * max(job.draws, 16))
    populations = job.chains or max(groups, job.shards)
    return populations, max(-(-least // populations), -(-job.draws // populations))


def split(populations: int, shards: int) -> list[int]:
    """How many populations each shard has."""
    return [len(part) for part in torch.arange(populations).tensor_split(shards)]


def population(
    job: Job, x: Tensor, start: Estimate | None, ratio: Estimate, **counts: float
) -> Raw:
    # x (population, particle, *event)
    """Particles of independent populations, with log Z from that of their start and log(Z /
    Z_start)."""
    with torch.no_grad():
        energy = job.energy(x)
    return Raw(
        x,
        energy,
        job.draws,
        total(ratio, start),
        exact=False,
        populations=True,
        stein=bool(counts.get("gradients")) and not job.structure.discrete,
        counts=counts,
    )


def resampled(
    job: Job,
    start: Start,
    target: Energy,
    to_x: Callable[[Tensor], Tensor],
    *,
    started: float,
    gradients: float = 0.0,
    energies: float = 0.0,
) -> Raw:
    """Draws of a start near to the target, in whatever variables (`to_x` gives points of the
    event), resampled along a curve through them and then shuffled: so each part of space gets its
    share of the draws, but for rounding. The weighed draws of the start are used again, for at most
    half of all: it was chosen for the weights of those, and fresh ones show what they have missed.
    """
    share = start.ess / len(start.x)
    populations, _ = sizes(job)
    wanted = math.ceil(OVERSAMPLING * job.draws / share)
    each = max(WEIGHED_DRAWS, min(MAX_WEIGHED, wanted)) // populations + 1
    known = min(each // 2, len(start.x) // populations)  # of each population
    fresh, used = each - known, populations * known
    job.progress.spend(populations * fresh)
    x, logs, failed, hidden = [], [], start.failed, start.hidden
    streams = job.streams(Phase.POPULATIONS)
    for size, generator in zip(split(populations, job.shards), streams, strict=True):
        weighed = weigh(start.density, target, generator, size * fresh)
        x.append(weighed.x.unflatten(0, (size, fresh)))
        logs.append(weighed.log_weights.unflatten(0, (size, fresh)))
        failed, hidden = failed + weighed.failed, max(hidden, weighed.hidden)
    before = start.x[:used].to(x[0]).unflatten(0, (populations, known))
    raw = torch.cat(
        [start.log_weights[:used].unflatten(0, (populations, known)), torch.cat(logs)], 1
    )
    return selected(
        job,
        torch.cat([before, torch.cat(x)], 1),
        raw,
        to_x,
        start.log_z,
        nonfinite=failed,
        nonfinite_share=hidden,
        energies=job.weighing + energies + populations * fresh,
        gradients=gradients,
        seconds=time.perf_counter() - started,
    )


def selected(
    job: Job,
    points: Tensor,
    raw: Tensor,
    to_x: Callable[[Tensor], Tensor],
    log_z: Estimate | None,
    *,
    energies: float,
    **counts: float,
) -> Raw:
    # (populations, n, *variables), (populations, n)
    """Weighed points, resampled in each population by their smoothed weights, along a curve through
    them, and then shuffled. `log_z` is that of the density that they were drawn from."""
    populations, wide = len(raw), sizes(job)[1]
    smooth, k = pareto_smoothed(raw.flatten())
    smooth = smooth.reshape(raw.shape)
    generator, *_ = job.streams(Phase.TUNING)
    options: dict[str, Any] = {"generator": generator, "dtype": torch.float64, "device": raw.device}
    uniform = torch.rand(populations, 2, **options)
    path = morton_order(points, points.ndim - 2)
    order = path.gather(1, systematic(smooth.gather(1, path), uniform, wide))
    order = order.gather(1, torch.rand(order.shape, **options).argsort(1))
    return population(
        job,
        to_x(take(points, order)),
        log_z,
        estimate(raw.flatten()),
        pareto_k=k,
        energies=energies + order.numel(),
        # of one weight that outweighs a whole population the sum over populations shows nothing
        weight_ess=min(float(weight_ess(smooth).sum()), float(weight_ess(raw.flatten()))),
        ancestors=distinct(order),
        **counts,
    )


def distinct(order: Tensor) -> int:  # (populations, particles)
    """Particles that have descendants, over all populations."""
    changes = order.sort(1).values.diff(dim=1) != 0
    return len(order) + int(changes.sum())
