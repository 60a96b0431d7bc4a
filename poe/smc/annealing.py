"""Annealed particles: one loop carries a population along a path of energies, for draws and for log
Z.

With E_β the path's energies and U = E_0 - E_1 on the geometric path, particles carry weights

    log w ← log w + (β_k - β_{k-1}) U(x_{k-1}),     x_k drawn from a kernel that leaves p_{β_k}
    invariant,

and where the effective size of a population's weights falls below half of it, it is resampled and
log Z grows by the log of its mean weight. Without resampling this is annealed importance sampling.
On the scale of Z the estimate is unbiased whatever the moves, as
long as levels and kernels do not depend on the particles: so a pilot tunes them, and independent
populations use them frozen.

References: Neal 2001, Statistics and Computing 11 (annealed importance sampling); Del Moral, Doucet
and Jasra 2006, J. R. Statist. Soc. B 68(3) (sequential Monte Carlo samplers); Zhou, Johansen and
Aston 2016, J. Comput. Graph. Statist. 25(3) (levels chosen by ESS).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor
from tqdm.auto import tqdm

from poe.diagnostics.weights import weight_ess
from poe.io.records import Codec
from poe.kernels import Kernel, Langevin
from poe.kernels.adapt import MAX_DENSE_DIM, Moments, initial_step_size
from poe.mcmc import parallel
from poe.mcmc.checkpoint import Checkpoint
from poe.registry import PoeError
from poe.smc.resampling import correlation, resampled, systematic
from poe.spaces.path import Pair, Path, PathEnergy, take
from poe.spaces.transport import Transported

KEEP = 0.7  # of the effective particles, from one level to the next
FORGET, SETTLE = (
    0.6,
    0.25,
)  # correlation of the energy before and after the moves of a level, and of the last
FEWEST, MOST = 2, 16  # moves of a level; the last may have twice as many
MOST_LEVELS = 250
SPREAD = 1.5  # powers of ten over which the step sizes of the particles are spread
BATCH = 4096  # particles that move as one batch


class Level(NamedTuple):
    """One step of a schedule: the inverse temperature on a segment of the path, and how often which
    kernel moves particles there."""

    beta: float
    kernel: Kernel
    moves: int
    segment: int = 0


@dataclass(frozen=True)
class Schedule:
    """Where and how a population moves: levels of rising inverse temperature on each segment of the
    path, the last of them at 1."""

    path: Path
    levels: tuple[Level, ...]
    crowd: ClassVar[int] = 1  # particles that set out for each one that arrives

    @property
    def gradients(self) -> int:
        """Gradients of the target for one particle."""
        moves = sum(round(level.moves * level.kernel.gradients_per_step) for level in self.levels)
        return moves + (self.evaluations if self.path.segments[0].gradients else 0)

    @property
    def energies(self) -> int:
        """Energies of the target without a gradient, for one particle."""
        return (
            0
            if self.path.segments[0].gradients
            else self.evaluations + sum(level.moves for level in self.levels)
        )

    @property
    def evaluations(self) -> int:
        """Levels whose weights are worked out from both ends."""
        return len(self.path.segments) + len(self.levels)

    @property
    def work(self) -> int:
        """Moves and levels, whatever they cost."""
        return self.evaluations + sum(level.moves for level in self.levels)

    @property
    def steps(self) -> list[tuple[float, Level]]:
        """Each level after the inverse temperature that it is reached from."""
        before = [(0, 0.0), *((level.segment, level.beta) for level in self.levels)]
        return [
            (beta if s == level.segment else 0.0, level)
            for (s, beta), level in zip(before, self.levels, strict=False)
        ]

    def refined(self, times: int) -> Schedule:
        """The schedule with each step of β cut into `times`, all moved by the kernel of its end."""
        levels = []
        for beta, level in self.steps:
            levels += [
                level._replace(beta=beta + (level.beta - beta) * (i + 1) / times)
                for i in range(times - 1)
            ] + [level]
        return Schedule(self.path, tuple(levels))

    def carry(self, x: Tensor, generator: torch.Generator, resample: bool, bar: Any) -> tuple:
        """Populations (r, n, *event) of the start through all levels, as the fields of
        `Population`."""
        (populations, n), segment, pair = x.shape[:2], None, None
        logs = torch.zeros(populations, n, dtype=torch.float64, device=x.device)
        ancestors = torch.arange(n, device=x.device).expand(populations, n)
        log_ratio, counts = logs[:, 0], []
        for index, (beta, level) in enumerate(self.steps):
            if segment is not self.path.segments[level.segment]:
                segment = self.path.segments[level.segment]
                pair = segment.pair(x) if pair is None else segment.next_pair(x, pair)
            assert segment is not None and pair is not None
            logs = logs + (level.beta - beta) * pair.drop()
            if resample:
                order, logs, gained = resampled(
                    logs, generator, always=index == len(self.levels) - 1
                )
                log_ratio, ancestors = log_ratio + gained, ancestors.gather(1, order)
                x, pair = take(x, order), pair.permuted(order)
            here = segment.level(
                torch.tensor(level.beta, dtype=pair.end.dtype, device=x.device), x, pair
            )
            state = level.kernel.init(here, x)
            for _ in range(level.moves):
                kernel = _jittered(level.kernel, state.energy, generator)
                state, info = kernel.step(here, state, level.kernel.noise(state, generator))
                counts.append(
                    torch.stack(
                        [info.acceptance.mean(), info.nonfinite.sum(), info.divergent.sum()]
                    )
                )
            x = level.kernel.walkers(state).x
            pair = segment.pair(x)
            bar.update()
        totals = torch.stack(counts).double()
        assert pair is not None
        log_ratio = log_ratio + logs.logsumexp(1) - math.log(n)
        return (
            x,
            pair.end,
            logs,
            log_ratio,
            ancestors,
            totals[:, 0].mean().item(),
            *totals[:, 1:].sum(0).tolist(),
        )

    def back(self, x: Tensor, generator: torch.Generator) -> Tensor:  # (n, *event) -> (n)
        """log weights of exact draws of the target carried back to the start: exp of them has mean
        Z_0/Z, so that minus their mean bounds log(Z/Z_0) from above. The levels' own kernels move
        the particles, in the opposite order. Reference: Grosse, Ghahramani and Adams 2015,
        arXiv:1511.02543 (bidirectional Monte Carlo)."""
        logs = torch.zeros(len(x), dtype=torch.float64, device=x.device)
        segment, pair = None, None
        for k, (beta, level) in reversed(list(enumerate(self.steps))):
            if segment is not self.path.segments[level.segment]:
                segment = self.path.segments[level.segment]
                pair = segment.pair(x)
            assert segment is not None and pair is not None
            if k < len(self.levels) - 1:
                here = segment.level(
                    torch.tensor(level.beta, dtype=pair.end.dtype, device=x.device), x, pair
                )
                state = level.kernel.init(here, x)
                for _ in range(level.moves):
                    kernel = _jittered(level.kernel, state.energy, generator)
                    state, _ = kernel.step(here, state, level.kernel.noise(state, generator))
                x = level.kernel.walkers(state).x
                pair = segment.pair(x)
            logs = logs - (level.beta - beta) * pair.drop()
        return logs


class Population(NamedTuple):
    """Particles after the last level, (populations, particles, ...): positions, energies of the
    target in nats, log weights in nats (0 after resampling), log of each population's estimate of
    Z/Z_0 (populations), which particle of the start each descends from, counts, and whether the run
    was interrupted."""

    x: Tensor
    energy: Tensor
    log_weights: Tensor
    log_ratio: Tensor
    ancestors: Tensor
    acceptance: float
    nonfinite: int
    divergent: int
    partial: bool = False

    @property
    def distinct(self) -> int:
        """Particles of the start that have descendants, over all populations."""
        return sum(len(row.unique()) for row in self.ancestors)


class Pilot(NamedTuple):
    """What the tuning run found: a schedule, its particles (n, *event), its own log(Z/Z_0),
    consistent only, and what it took."""

    schedule: Any  # a Schedule, or a `poe.smc.diffusion.ReverseDiffusion`
    x: Tensor
    log_ratio: float
    gradients: float
    energies: float = 0.0

    def to_x(self, z: Tensor | None = None) -> Tensor:
        """Points of the target from points of the path, which may run in the noise of a map; its
        own particles by default."""
        z, end = self.x if z is None else z, self.schedule.path.end
        return end.to_x(z) if isinstance(end, Transported) else z


class StalledError(PoeError, ValueError):
    """No schedule of at most `MOST_LEVELS` levels connects the start with the target."""


def tune(
    path: Path,
    x: Tensor,
    generator: torch.Generator,
    *,
    kernel: Kernel | None = None,
    forget: float = FORGET,
    most: int = MOST,
    progress: bool = False,
) -> Pilot:
    # x (n, *event): exact draws of the start
    """Levels, kernels and numbers of moves, found on the way with one population that is resampled
    at each level.

    The next β keeps `KEEP` of the effective particles (bisection on cached energies). At each level
    the preconditioner is the pooled covariance of the particles, the step size follows its
    acceptance, and moves go on, `most` of them at the most, until the energy has forgotten where it
    was, up to a correlation of `forget`. Raises ValueError where no particle has finite energy, and
    StalledError.
    """
    kernel = Langevin() if kernel is None else kernel
    log_ratio, levels, pair = 0.0, [], None
    bar = tqdm(
        total=len(path.segments),
        desc="annealing pilot",
        disable=not progress,
        leave=False,
        bar_format="{desc}: {percentage:3.0f}%",
    )
    with bar:
        for index, segment in enumerate(path.segments):
            beta, pair = 0.0, segment.pair(x) if pair is None else segment.next_pair(x, pair)
            while beta < 1:
                drop = pair.drop()
                if not bool((drop > -math.inf).any()):
                    raise ValueError(
                        f"no draw of {segment.start} has finite energy under {segment.end}"
                    )
                if len(levels) == MOST_LEVELS:
                    raise StalledError(
                        f"more than {MOST_LEVELS} levels from {path.start} to {path.end}; give a "
                        "nearer start"
                    )
                new = _next(drop, beta)
                logs = ((new - beta) * drop).unsqueeze(0)
                log_ratio += float(logs.logsumexp(1)) - math.log(len(x))
                bar.update(new - beta)
                order = systematic(
                    logs,
                    torch.rand(1, 2, generator=generator, device=x.device, dtype=torch.float64),
                )[0]
                x, pair, beta = x[order], Pair(*(part[order] for part in pair)), new
                here = segment.level(
                    torch.tensor(beta, dtype=pair.end.dtype, device=x.device), x, pair
                )
                last = beta == 1 and index == len(path.segments) - 1
                until = (min(forget, SETTLE), 2 * most) if last else (forget, most)
                level, x, pair = _settle(
                    kernel, here, beta, generator, first=not levels, until=until
                )
                kernel = level.kernel
                levels.append(level._replace(segment=index))
    schedule = Schedule(path, tuple(levels))
    return Pilot(
        schedule,
        x,
        log_ratio,
        float(len(x) * schedule.gradients),
        float(len(x) * schedule.energies),
    )


def anneal(
    schedule: Schedule,
    start: Callable[[int, torch.Generator], Tensor],
    sizes: Sequence[int],
    particles: int,
    generators: Sequence[torch.Generator],
    *,
    resample: bool = True,
    progress: bool = False,
    checkpoint: Checkpoint | None = None,
) -> Population:
    """Independent populations over a frozen schedule: `sizes[s]` of them in shard s, each with
    `particles` particles at the end.

    `start(n, generator)` draws n particles of the start of the path. Populations move in batches of
    about `BATCH` particles; of several processes each moves those of its own shards. `checkpoint`
    takes every batch as a stage. An interrupt (Ctrl-C) of a lone process, after the first batch,
    returns the populations that are there, marked partial.
    """
    setting_out = particles * schedule.crowd if resample else particles
    at_once = max(1, BATCH // setting_out)
    rounds = -(-max(sizes) // at_once)

    def batch(shard: int, done: int) -> tuple | None:
        count = min(at_once, sizes[shard] - done)
        if count <= 0:
            return None
        x = start(count * setting_out, generators[shard])
        return schedule.carry(
            x.unflatten(0, (count, setting_out)), generators[shard], resample, bar
        )

    finished: list[list[tuple | None]] = []
    own, partial = len(parallel.share(len(sizes))), False
    hidden = not progress or parallel.rank() > 0
    with tqdm(
        total=rounds * own * len(schedule.levels), desc="annealing", disable=hidden, leave=False
    ) as bar:
        try:
            for done in range(0, rounds * at_once, at_once):

                def all_shards(done: int = done) -> list[tuple | None]:
                    return parallel.spread(
                        lambda shard: batch(shard, done),
                        generators,
                        Codec(device=generators[0].device),
                    )

                stage = (
                    all_shards()
                    if checkpoint is None
                    else checkpoint.stage(all_shards, generators=generators)
                )
                finished.append(stage)
        except KeyboardInterrupt:
            if checkpoint is not None:
                checkpoint.freeze()
            if not finished or parallel.size() > 1:
                raise
            partial = True
    parts = [part for shard in zip(*finished, strict=True) for part in shard if part is not None]
    x, energy, logs, log_ratio, ancestors = (
        torch.cat(column) for column in list(zip(*parts, strict=True))[:5]
    )
    counts = torch.tensor([part[5:] for part in parts], dtype=torch.float64)
    acceptance, (nonfinite, divergent) = (
        counts[:, 0].mean().item(),
        counts[:, 1:].sum(0).long().tolist(),
    )
    return Population(
        x, energy, logs, log_ratio, ancestors, acceptance, nonfinite, divergent, partial
    )


def _next(drop: Tensor, beta: float) -> float:
    """The β at which weights exp((β' - β) U) of the particles that have any leave `KEEP` of them
    effective, by bisection; at most 1."""
    alive = drop[drop > -math.inf]

    def size(new: float) -> float:
        logs = (new - beta) * alive
        return float(weight_ess(logs)) / len(alive)

    low, high = beta, 1.0
    if size(high) >= KEEP:
        return 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if size(middle) >= KEEP else (low, middle)
    return high


def _settle(
    kernel: Kernel,
    here: PathEnergy,
    beta: float,
    generator: torch.Generator,
    *,
    first: bool,
    until: tuple[float, int],
) -> tuple[Level, Tensor, Pair]:
    """The kernel for this level, tuned while it moves the particles until the energy has forgotten
    its value: (level, x, pair)."""
    x, root = here.x, (None, False)
    tunes = kernel.target_acceptance is not None
    if x.is_floating_point() and here.path.gradients:
        flat = x.flatten(1) if x.ndim > 1 else x.unsqueeze(1)
        root = Moments.empty(flat, dense=flat.shape[1] <= MAX_DENSE_DIM).update(flat).root()
        kernel = kernel.tuned(
            torch.as_tensor(1.0 if kernel.step_size is None else kernel.step_size).to(x), *root
        )
    state = kernel.init(here, x)
    if first and tunes:
        kernel = kernel.tuned(initial_step_size(kernel, here, [state], [generator]), *root)
    before, moves, held = kernel.walkers(state).energy, 0, 1.0
    while moves < FEWEST or (moves < until[1] and held > until[0]):
        state, info = _jittered(kernel, state.energy, generator).step(
            here, state, kernel.noise(state, generator)
        )
        moves += 1
        if tunes:
            assert kernel.step_size is not None and kernel.target_acceptance is not None
            error = info.acceptance.mean() - kernel.target_acceptance
            kernel = kernel.tuned(
                torch.as_tensor(kernel.step_size).to(state.energy)
                * (2 * error / math.sqrt(moves)).exp(),
                *root,
            )
        held = correlation(before, kernel.walkers(state).energy)
    x = kernel.walkers(state).x
    return Level(beta, kernel, moves), x, here.path.pair(x)


def _jittered(kernel: Kernel, like: Tensor, generator: torch.Generator) -> Kernel:
    """The kernel with a step size of its own for each particle, 10^(-`SPREAD`·u) of the tuned one,
    u uniform: drawn apart from where the particle is, it leaves every law invariant that the kernel
    does, and narrow places are entered by small steps."""
    step = kernel.step_size
    if step is None:  # nothing to spread
        return kernel
    uniform = torch.rand(like.shape, generator=generator, dtype=like.dtype, device=like.device)
    return kernel.tuned(
        torch.as_tensor(step).to(like) * 10 ** (-SPREAD * uniform), kernel.scale, kernel.dense
    )
