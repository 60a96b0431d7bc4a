"""Schedules of annealing: the levels of a path, and how a population of particles moves along
them.

With E_β the path's energies and U = E_0 - E_1 on the geometric path, particles propagate weights

    log w ← log w + (β_k - β_{k-1}) U(x_{k-1}),     x_k drawn from a kernel that leaves p_{β_k}
    invariant,

and where the effective size of a population's weights falls below half of its particles, it is
resampled and log Z grows by the log of its mean weight. Without resampling this is annealed
importance sampling. On the scale of Z the estimate is unbiased whatever the moves, as long as
levels and kernels do not depend on the particles: so `poe.smc.tuning` tunes them with one
population, and independent populations (`poe.smc.population`) use them frozen.

References: Neal 2001, Statistics and Computing 11 (annealed importance sampling); Del Moral, Doucet
and Jasra 2006, J. R. Statist. Soc. B 68(3) (sequential Monte Carlo samplers).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from poe.kernels import Kernel
from poe.smc.resampling import resampled
from poe.spaces.path import Geometric, Pair, Path, take


class Level(NamedTuple):
    """One level of a schedule: the inverse temperature on a segment of the path, and the kernel and
    number of moves of particles there."""

    beta: float
    kernel: Kernel
    moves: int
    segment: int = 0


@dataclass(frozen=True)
class Schedule:
    """The levels of a path: of rising inverse temperature on each segment, the last of them at
    1."""

    path: Path
    levels: tuple[Level, ...]
    oversampling: ClassVar[int] = 1  # particles at the start for each one at the end

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
        """Times that weights are computed from the energies of both ends."""
        return len(self.path.segments) + len(self.levels)

    @property
    def work(self) -> int:
        """Moves and levels, whatever their cost."""
        return self.evaluations + sum(level.moves for level in self.levels)

    @property
    def steps(self) -> list[tuple[float, Level]]:
        """Each level with the inverse temperature before it."""
        before = [(0, 0.0), *((level.segment, level.beta) for level in self.levels)]
        return [
            (beta if s == level.segment else 0.0, level)
            for (s, beta), level in zip(before, self.levels, strict=False)
        ]

    def refined(self, times: int) -> Schedule:
        """The schedule with each step of β divided into `times`, all with the kernel of its end."""
        levels = []
        for beta, level in self.steps:
            levels += [
                level._replace(beta=beta + (level.beta - beta) * (i + 1) / times)
                for i in range(times - 1)
            ] + [level]
        return Schedule(self.path, tuple(levels))

    def propagate(self, x: Tensor, generator: torch.Generator, resample: bool, bar: Any) -> tuple:
        """Populations (r, n, *event) of the start through all levels, as the fields of
        `Population`."""
        (populations, n), segment, pair = x.shape[:2], None, None
        logs = torch.zeros(populations, n, dtype=torch.float64, device=x.device)
        ancestors = torch.arange(n, device=x.device).expand(populations, n)
        log_ratio, counts = logs[:, 0], []
        for index, (beta, level) in enumerate(self.steps):
            before, segment = segment, self.path.segments[level.segment]
            if pair is None:
                pair = segment.pair(x)
            elif segment is not before:
                pair = segment.next_pair(x, pair)
            logs = logs + (level.beta - beta) * pair.drop()
            if resample:
                last = index == len(self.levels) - 1
                order, logs, increment = resampled(logs, generator, always=last)
                log_ratio, ancestors = log_ratio + increment, ancestors.gather(1, order)
                x, pair = take(x, order), pair.permuted(order)
            x, moves = _moved(segment, level, x, pair, generator)
            counts += moves
            pair = segment.pair(x)
            bar.update()
        assert pair is not None
        totals = torch.stack(counts).double()
        last = totals[-self.levels[-1].moves :, 1].mean().item() / logs.numel()
        log_ratio = log_ratio + logs.logsumexp(1) - math.log(n)
        acceptance, errors = totals[:, 0].mean().item(), totals[:, 1:].sum(0).tolist()
        return x, pair.end, logs, log_ratio, ancestors, acceptance, *errors, last

    def back(self, x: Tensor, generator: torch.Generator) -> Tensor:  # (n, *event) -> (n)
        """log weights of exact draws of the target moved back to the start: exp of them has mean
        Z_0/Z, so that minus their mean bounds log(Z/Z_0) from above. The kernels of the levels move
        the particles, in reverse order. Reference: Grosse, Ghahramani and Adams 2015,
        arXiv:1511.02543 (bidirectional Monte Carlo)."""
        logs = torch.zeros(len(x), dtype=torch.float64, device=x.device)
        segment, pair = self.path.segments[-1], self.path.segments[-1].pair(x)
        for k, (beta, level) in reversed(list(enumerate(self.steps))):
            if segment is not self.path.segments[level.segment]:
                segment = self.path.segments[level.segment]
                pair = segment.pair(x)
            if k < len(self.levels) - 1:
                x, _ = _moved(segment, level, x, pair, generator)
                pair = segment.pair(x)
            logs = logs - (level.beta - beta) * pair.drop()
        return logs


def _moved(
    segment: Geometric, level: Level, x: Tensor, pair: Pair, generator: torch.Generator
) -> tuple[Tensor, list[Tensor]]:
    # (*batch, *event) -> (*batch, *event)
    """Particles after the moves of a level, and of each move the mean acceptance and the numbers of
    proposals that are not finite and that diverge, (3)."""
    beta = torch.tensor(level.beta, dtype=pair.end.dtype, device=x.device)
    here, counts = segment.level(beta), []
    state = level.kernel.init(here.known(x, pair), x)
    for _ in range(level.moves):
        kernel = jittered(level.kernel, state.energy, generator)
        state, info = kernel.step(here, state, level.kernel.noise(state, generator))
        errors = info.nonfinite.sum(), info.divergent.sum()
        counts.append(torch.stack([info.acceptance.mean(), *errors]))
    return level.kernel.walkers(state).x, counts


STEP_SIZE_DECADES = 1.5  # powers of ten over which the step sizes of particles are spread


def jittered(kernel: Kernel, like: Tensor, generator: torch.Generator) -> Kernel:
    """The kernel with a step size of its own for each particle, 10^(-`STEP_SIZE_DECADES`·u) of the
    tuned one, u uniform: drawn independently of the particle's position, it leaves every law
    invariant that the kernel does, and narrow regions are entered by small steps."""
    step = kernel.step_size
    if step is None:
        return kernel
    uniform = torch.rand(like.shape, generator=generator, dtype=like.dtype, device=like.device)
    own = torch.as_tensor(step).to(like) * 10 ** (-STEP_SIZE_DECADES * uniform)
    return kernel.tuned(own, kernel.scale, kernel.dense)
