"""The one run loop: warm-up with adaptation, then draws with everything frozen.

Chains run in `shards` fixed blocks, each with its own random stream and its own batch; what is
pooled is summed in block order. The draws therefore depend only on the seed and the number of
shards. Several processes may share the shards (`poe.mcmc.parallel`), and a run may be one stage of
a checkpoint (`poe.mcmc.checkpoint`): neither changes a draw.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from poe.algebra.checks import whole_number
from poe.algebra.energy import Energy
from poe.io.container import StorageError
from poe.io.records import Codec
from poe.kernels.adapt import Adaptation, JointAdaptation, adaptation_of
from poe.kernels.base import Kernel
from poe.mcmc import parallel
from poe.mcmc.checkpoint import Checkpoint
from poe.mcmc.compiled import BLOCK, compiled
from poe.mcmc.progress import Progress, Stopped
from poe.mcmc.shard import Counted, Saved, Shard


class Counts(NamedTuple):
    """Sums over the steps of all chains."""

    acceptance: float  # mean over chains and steps, of the target's own rung
    nonfinite: int
    nonfinite_share: float  # of the proposals after warm-up
    divergent: int
    # of the target, over all chains, warm-up and the search for a first step size included
    gradients: float
    energies: float  # of the target without its gradient, likewise
    seconds: float


@dataclass(frozen=True)
class Trace:
    """The result of a run: positions (chains, draws, *event), their energies in nats (chains,
    draws), the frozen kernel, the last states in block order, and whether it was interrupted."""

    x: Tensor
    energy: Tensor
    kernel: Kernel
    states: tuple[Any, ...]
    counts: Counts
    partial: bool = False


def streams(seed: int, shards: int, device: torch.device) -> list[torch.Generator]:
    """One random stream per shard, all from one seed, an integer of at least 0."""
    children = np.random.SeedSequence(whole_number("seed", seed, 0)).spawn(shards)
    numbers = [int(child.generate_state(1, np.uint64)[0] >> np.uint64(1)) for child in children]
    return [torch.Generator(device).manual_seed(number) for number in numbers]


def branch(seed: int, index: int) -> int:
    """A seed for a part of a job, whose streams differ from those of all other parts and seeds."""
    return int(
        np.random.SeedSequence(seed, spawn_key=(index, 0)).generate_state(1, np.uint64)[0]
        >> np.uint64(1)
    )


def run(
    kernel: Kernel,
    energy: Energy,
    x: Tensor | Sequence[Any],
    *,
    draws: int,
    warmup: int = 0,
    thin: int = 1,
    generators: Sequence[torch.Generator],
    progress: Progress | bool | None = False,
    label: str = "chains",
    compile: bool = False,
    checkpoint: Checkpoint | None = None,
) -> Trace:
    """Runs chains from `x` (chains, *event), or from the states of an earlier run, and keeps every
    `thin`-th state after warm-up.

    With `warmup` the step size and preconditioner are adapted for that many steps and then frozen.
    `compile` runs the steps after warm-up in compiled blocks. `checkpoint` stores the run as its
    next stage. Each of several processes steps its own shards, and all return the same. Where
    `progress` allows no more evaluations, or a single process is interrupted (Ctrl-C), the draws so
    far are returned, marked partial: before the first kept state, the points where chains are.

    Raises:
        ValueError: a chain starts at an energy that is not finite.
        StorageError: the checkpoint is of another run.
    """
    progress, partial = Progress.of(progress), False
    course = _Course(kernel, energy, x, generators, draws, thin, progress)
    saved = None if checkpoint is None else checkpoint.resume(course.codec)
    try:
        if saved is not None:
            course.restore(saved, warmup)
        elif warmup:
            course.learn(adaptation_of(kernel, course.search, course.states, warmup, generators))
            progress.spend(course.search.gradients + course.search.energies)
        with progress.bar(label, warmup + draws * thin, initial=course.steps) as bar:
            _advance(course, warmup, warmup + draws * thin, bar, compile, checkpoint)
    except (KeyboardInterrupt, Stopped) as end:
        if checkpoint is not None:
            checkpoint.freeze()
        progress.end(end)
        partial = True
    stage = course.stage()
    for generator, shard in zip(generators, stage.shards, strict=True):
        generator.set_state(shard.stream)
    if checkpoint is not None:
        checkpoint.save(stage, course.codec, write=checkpoint.due())
    return _trace(stage, partial)


def _advance(
    course: _Course,
    warmup: int,
    total: int,
    bar: Any,
    compile: bool,
    checkpoint: Checkpoint | None,
) -> None:
    """Steps the chains until `total` steps are done, those of warm-up included."""
    while course.steps < total:
        done = (
            course.warm_up()
            if course.steps < warmup
            else course.draw(total - course.steps, compile)
        )
        bar.update(done)
        if checkpoint is not None and checkpoint.due():
            checkpoint.save(course.stage(), course.codec)


class _Stage(NamedTuple):
    """The progress of a run: steps, warm-up included; the kernel in use and its adaptation; the
    shards; evaluations of the target in the search for an initial step size; seconds."""

    steps: int
    kernel: Kernel
    adaptation: Adaptation | JointAdaptation | None
    shards: list[Saved]
    search: tuple[float, float]
    seconds: float


class _Course:
    """A run in progress: what all processes know, and the shards of this one."""

    def __init__(
        self,
        kernel: Kernel,
        energy: Energy,
        x: Tensor | Sequence[Any],
        generators: Sequence[torch.Generator],
        draws: int,
        thin: int,
        progress: Progress,
    ) -> None:
        self.kernel, self.energy, self.count = kernel, energy, len(generators)
        self.progress = progress
        own = parallel.share(self.count)
        self.shards = [Shard(energy, generators[i], draws, thin) for i in own]
        if isinstance(x, Tensor):
            progress.spend(len(x))
            parts = x.tensor_split(self.count)
            states = [
                kernel.init(shard.target, parts[i])
                for i, shard in zip(own, self.shards, strict=True)
            ]
            self.codec = Codec(kernel, states, _Stage, device=x.device)
            self.states = parallel.gather(states, self.count, self.codec)
            _check_start(kernel, energy, self.states)
        else:
            self.states = list(x)
            self.codec = Codec(kernel, self.states, _Stage, device=energy.device)
        for i, shard in zip(own, self.shards, strict=True):
            shard.start(kernel, self.states[i])
        self.adaptation: Adaptation | JointAdaptation | None = None
        self.search, self.steps, self.began = Counted(energy), 0, time.perf_counter()
        self.compiled: Any = None

    @property
    def cost(self) -> float:
        """Evaluations of one step of all chains, on average."""
        chains = sum(self.kernel.position(state)[1].numel() for state in self.states)
        return chains * (self.kernel.gradients_per_step if self.kernel.needs_gradient else 1.0)

    def warm_up(self) -> int:
        """One step of all shards, from which adaptation learns; returns 1."""
        assert self.adaptation is not None
        self.progress.spend(self.cost)
        own = [shard.learn(self.kernel) for shard in self.shards]
        states, feedbacks = zip(*parallel.gather(own, self.count, self.codec), strict=True)
        self.steps += 1
        self.learn(self.adaptation.update(states, feedbacks))
        return 1

    def learn(self, adaptation: Adaptation | JointAdaptation) -> None:
        """Takes over what adaptation has learned."""
        self.adaptation, self.kernel = adaptation, adaptation.kernel

    def draw(self, left: int, compile: bool) -> int:
        """A compiled block of steps where that many are left, else one step; returns how many."""
        block = BLOCK if compile and self.kernel.compiles and left >= BLOCK else 1
        if block > 1 and self.compiled is None:
            self.compiled = compiled(self.kernel, self.energy)
        self.progress.spend(block * self.cost)
        for shard in self.shards:
            if block > 1:
                shard.block(self.kernel, self.compiled)
            else:
                shard.step(self.kernel)
        self.steps += block
        return block

    def stage(self) -> _Stage:
        """The progress of all shards."""
        shards = parallel.gather([shard.saved() for shard in self.shards], self.count, self.codec)
        search = (self.search.gradients, self.search.energies)
        return _Stage(
            self.steps,
            self.kernel,
            self.adaptation,
            shards,
            search,
            time.perf_counter() - self.began,
        )

    def restore(self, stage: _Stage, warmup: int) -> None:
        """Continues from a stage."""
        self.steps, self.kernel, self.adaptation = stage.steps, stage.kernel, stage.adaptation
        self.search.gradients, self.search.energies = stage.search
        self.began -= stage.seconds
        for i, shard in zip(parallel.share(self.count), self.shards, strict=True):
            shard.restore(stage.shards[i], max(0, self.steps - warmup))
            _check_resumed(self.kernel, self.energy, shard.state)


def _trace(stage: _Stage, partial: bool) -> Trace:
    """What a run returns; after an interrupt, what every shard has, or else where its chains
    are."""
    shards = stage.shards
    least = min(len(shard.x) for shard in shards)
    kept = [(shard.x[:least], shard.energy[:least]) for shard in shards]
    if partial and not least:
        here = [stage.kernel.position(shard.state) for shard in shards]
        kept = [(x.unsqueeze(0), energy.unsqueeze(0)) for x, energy in here]
    x, energy = (_joined(list(column)) for column in zip(*kept, strict=True))
    acceptance, nonfinite, divergent, steps = (
        torch.stack([shard.sums for shard in shards]).sum(0).tolist()
    )
    gradients, energies = (
        sum(parts)
        for parts in zip(stage.search, *(shard.evaluations for shard in shards), strict=True)
    )
    mean = acceptance / steps if steps else math.nan
    share, evaluations = nonfinite / max(steps, 1), (gradients, energies)
    counts = Counts(mean, int(nonfinite), share, int(divergent), *evaluations, stage.seconds)
    return Trace(x, energy, stage.kernel, tuple(shard.state for shard in shards), counts, partial)


def _joined(kept: list[Tensor]) -> Tensor:  # (draws, chains, ...) each -> (chains, draws, ...)
    """The chains of all shards, one tensor."""
    whole = kept[0] if len(kept) == 1 else torch.cat(kept, 1)
    return whole.transpose(0, 1)


def _check_start(kernel: Kernel, energy: Energy, states: Sequence[Any]) -> None:
    """Raises ValueError where chains start at an energy that is not finite."""
    for state in states:
        walkers = kernel.walkers(state)
        bad = ~walkers.energy.isfinite()
        if bool(bad.any()):
            raise ValueError(
                f"{int(bad.sum())} of {bad.numel()} chains of {energy} start where the energy is "
                f"{walkers.energy[bad][0].item()}: give init= points with finite energy"
            )


def _check_resumed(kernel: Kernel, energy: Energy, state: Any) -> None:
    """Raises StorageError where the chains have other energies than they had: an expert may hold
    what the file does not show, such as a function."""
    if not kernel.agrees(energy, state):
        raise StorageError(
            f"the checkpoint is of another run: its chains have other energies under {energy}"
        )
