"""Independent populations of particles over a frozen schedule, for draws and for log Z."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from poe.io.records import Codec
from poe.mcmc import parallel
from poe.mcmc.checkpoint import Checkpoint, stage
from poe.mcmc.progress import Progress, Stopped
from poe.smc.schedule import Schedule

BATCH_SIZE = 4096  # particles that move as one batch


class Population(NamedTuple):
    """Particles after the last level, (populations, particles, ...): positions, energies of the
    target in nats, log weights in nats (0 after resampling), the log of each population's estimate
    of Z/Z_0 (populations), the index of each one's ancestor at the start, the mean acceptance,
    counts of errors, the share of the proposals of the last level that were not finite, and whether
    the run was interrupted."""

    x: Tensor
    energy: Tensor
    log_weights: Tensor
    log_ratio: Tensor
    ancestors: Tensor
    acceptance: float
    nonfinite: int
    divergent: int
    nonfinite_share: float = 0.0
    partial: bool = False

    @property
    def distinct(self) -> int:
        """Particles of the start that have descendants, over all populations."""
        return sum(len(row.unique()) for row in self.ancestors)


def anneal(
    schedule: Schedule,
    start: Callable[[int, torch.Generator], Tensor],
    sizes: Sequence[int],
    particles: int,
    generators: Sequence[torch.Generator],
    *,
    resample: bool = True,
    progress: Progress | bool | None = False,
    checkpoint: Checkpoint | None = None,
) -> Population:
    """Independent populations over a frozen schedule: `sizes[s]` of them in shard s, each with
    `particles` particles at the end.

    `start(n, generator)` draws n particles of the start of the path. Populations move in batches of
    about `BATCH_SIZE` particles; each process moves those of its own shards. `checkpoint` saves
    every batch as a stage. Where `progress` allows no further batch, or a single process is
    interrupted (Ctrl-C), the populations that are finished are returned, marked partial; where
    there are none, the error is raised.
    """
    progress = Progress.of(progress)
    starting = particles * schedule.oversampling if resample else particles
    at_once = max(1, BATCH_SIZE // starting)
    rounds = -(-max(sizes) // at_once)

    def batch(shard: int, done: int) -> tuple | None:
        """The next populations of a shard; None where all are done."""
        count = min(at_once, sizes[shard] - done)
        if count <= 0:
            return None
        x = start(count * starting, generators[shard])
        return schedule.propagate(
            x.unflatten(0, (count, starting)), generators[shard], resample, bar
        )

    def batches(done: int) -> list[tuple | None]:
        """The next populations of every shard."""
        codec = Codec(device=generators[0].device)
        moving = sum(max(0, min(at_once, size - done)) for size in sizes)
        progress.spend(moving * particles * (1 + schedule.gradients + schedule.energies))

        def all_shards() -> list[tuple | None]:
            return parallel.spread(lambda shard: batch(shard, done), generators, codec)

        return stage(checkpoint, all_shards, generators=generators)

    finished: list[list[tuple | None]] = []
    total = rounds * len(parallel.share(len(sizes))) * len(schedule.levels)
    partial = False
    with progress.bar("annealing", total) as bar:
        try:
            for done in range(0, rounds * at_once, at_once):
                finished.append(batches(done))
        except (KeyboardInterrupt, Stopped) as end:
            if checkpoint is not None:
                checkpoint.freeze()
            progress.end(end, nothing=not finished)
            partial = True
    return _population([part for shard in zip(*finished, strict=True) for part in shard], partial)


def _population(batches: Sequence[tuple | None], partial: bool) -> Population:
    """The population of batches (`Schedule.propagate`); None stands for an empty one."""
    parts = [part for part in batches if part is not None]
    columns = list(zip(*parts, strict=True))[:5]
    counts = torch.tensor([part[5:] for part in parts], dtype=torch.float64)
    nonfinite, divergent = counts[:, 1:3].sum(0).long().tolist()
    acceptance, _, _, share = counts.mean(0).tolist()
    x, energy, logs, log_ratio, ancestors = map(torch.cat, columns)
    figures = acceptance, nonfinite, divergent, share
    return Population(x, energy, logs, log_ratio, ancestors, *figures, partial)
