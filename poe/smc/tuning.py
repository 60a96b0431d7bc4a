"""Tuning of a schedule: its levels, kernels and numbers of moves, found with one population.

Reference: Zhou, Johansen and Aston 2016, J. Comput. Graph. Statist. 25(3) (levels chosen by ESS).
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from poe.diagnostics.weights import weight_ess
from poe.kernels import Kernel, Langevin
from poe.kernels.adapt import MAX_DENSE_DIM, Moments, initial_step_size
from poe.mcmc.progress import Progress
from poe.registry import PoeError
from poe.smc.resampling import correlation, systematic
from poe.smc.schedule import Level, Schedule, jittered
from poe.spaces.path import Geometric, Pair, Path, PathEnergy
from poe.spaces.transport import Transported

MIN_ESS_SHARE = 0.7  # effective share of the particles after the step from one level to the next
MAX_CORRELATION = 0.6  # of the energies before and after the moves of a level
FINAL_CORRELATION = 0.25  # the same at the last level
MIN_MOVES, MAX_MOVES = 2, 16  # of a level; the last may have twice as many
MAX_LEVELS = 250
# ancestors below which a fit would follow survivors: of 64 independent ones, none lies in a mode
# that holds a tenth of the mass with probability 1e-3
MIN_ANCESTORS = 64
LOG_Z_ERRORS = 3.0  # standard errors of Z on both sides of an interval


class TunedSchedule(NamedTuple):
    """A schedule, the particles (n, *event) that it was tuned with, their estimate of log(Z/Z_0),
    consistent only, and the evaluations that it took.

    `ancestors` are the particles of the start that have descendants; None where these were not
    followed. With n_a descendants each, the standard error of Z over Z is √(Σ_a (n_a/n)²): the
    estimator of Lee and Whiteley 2018, Biometrika 105(3), without its correction of order 1/n a
    level, so that it is an upper bound. `fitted` is a start that was fitted to particles, near
    enough to the target that its weighed draws need no moves.
    """

    schedule: Any  # a Schedule, or a `poe.smc.diffusion.ReverseDiffusion`
    x: Tensor
    log_ratio: float
    gradients: float
    energies: float = 0.0
    ancestors: int | None = None
    relative_error: float = math.inf
    fitted: Any = None  # a `poe.smc.fitted.Fitted`

    @property
    def interval(self) -> tuple[float, float]:
        """log(Z/Z_0), minus and plus `LOG_Z_ERRORS` standard errors of Z."""
        error = LOG_Z_ERRORS * self.relative_error
        low = math.log1p(-error) if error < 1 else -math.inf
        return self.log_ratio + low, self.log_ratio + math.log1p(error)

    @property
    def collapsed(self) -> bool:
        """Whether the particles descend from so few that nothing should be fitted to them."""
        return self.ancestors is not None and self.ancestors < MIN_ANCESTORS

    def to_x(self, z: Tensor | None = None) -> Tensor:
        """Points of the target from points of the path, which may run in the noise of a map; its
        own particles by default."""
        z, end = self.x if z is None else z, self.schedule.path.end
        return end.to_x(z) if isinstance(end, Transported) else z


class StalledError(PoeError, ValueError):
    """No schedule of at most `MAX_LEVELS` levels connects the start with the target."""


def tune(
    path: Path,
    x: Tensor,
    generator: torch.Generator,
    *,
    kernel: Kernel | None = None,
    max_correlation: float = MAX_CORRELATION,
    max_moves: int = MAX_MOVES,
    progress: Progress | bool | None = False,
) -> TunedSchedule:
    # x (n, *event): exact draws of the start
    """Levels, kernels and numbers of moves, found with one population that is resampled at each
    level.

    The next β keeps an effective share of `MIN_ESS_SHARE` of the particles (bisection on cached
    energies). At each level the preconditioner is the pooled covariance of the particles, the step
    size follows its acceptance, and moves go on, at most `max_moves` of them, until the correlation
    of the energies with those before the moves is at most `max_correlation`. Raises ValueError
    where no particle has finite energy, and StalledError.
    """
    kernel = Langevin() if kernel is None else kernel
    log_ratio, levels, pair = 0.0, [], None
    ancestors = torch.arange(len(x), device=x.device)
    form = "{desc}: {percentage:3.0f}%"
    segments = path.segments
    progress = Progress.of(progress)
    with progress.bar("tuning", len(segments), bar_format=form) as bar:
        for index, segment in enumerate(segments):
            beta, pair = 0.0, segment.pair(x) if pair is None else segment.next_pair(x, pair)
            while beta < 1:
                _check(path, segment, pair, len(levels))
                new = _next_beta(pair.drop(), beta)
                increment, order = _resampled((new - beta) * pair.drop(), generator)
                bar.update(new - beta)
                x, pair, beta = x[order], Pair(*(part[order] for part in pair)), new
                ancestors = ancestors[order]
                last = beta == 1 and index == len(segments) - 1
                limits = (
                    (min(max_correlation, FINAL_CORRELATION), 2 * max_moves)
                    if last
                    else (max_correlation, max_moves)
                )
                at = torch.tensor(beta, dtype=pair.end.dtype, device=x.device)
                here = segment.level(at)
                kernel, x, moves = _settled(
                    kernel, here, x, pair, generator, not levels, limits, progress
                )
                progress.keep(path.end.to_x(x) if isinstance(path.end, Transported) else x)
                pair, log_ratio = segment.pair(x), log_ratio + increment
                levels.append(Level(beta, kernel, moves, index))
    schedule, n = Schedule(path, tuple(levels)), float(len(x))
    descendants = ancestors.bincount().double()
    return TunedSchedule(
        schedule,
        x,
        log_ratio,
        n * schedule.gradients,
        n * schedule.energies,
        int(descendants.count_nonzero()),
        float((descendants / n).norm()),
    )


def _check(path: Path, segment: Geometric, pair: Pair, levels: int) -> None:
    """Raises where no particle has weight, or the schedule has too many levels."""
    if not bool((pair.drop() > -math.inf).any()):
        raise ValueError(f"no draw of {segment.start} has finite energy under {segment.end}")
    if levels == MAX_LEVELS:
        raise StalledError(
            f"more than {MAX_LEVELS} levels from {path.start} to {path.end}; give a nearer start"
        )


def _next_beta(drop: Tensor, beta: float) -> float:
    """The β' at which the weights exp((β' - β) U) of the particles that have any have an effective
    share of `MIN_ESS_SHARE`, by bisection; at most 1."""
    alive = drop[drop > -math.inf]

    def share(new: float) -> float:
        return float(weight_ess((new - beta) * alive)) / len(alive)

    low, high = beta, 1.0
    if share(high) >= MIN_ESS_SHARE:
        return 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if share(middle) >= MIN_ESS_SHARE else (low, middle)
    return high


def _resampled(log_weights: Tensor, generator: torch.Generator) -> tuple[float, Tensor]:
    # (n) -> (), (n)
    """The log of the mean weight, and the indices of the particles that are kept."""
    logs = log_weights.unsqueeze(0)
    uniform = torch.rand(1, 2, generator=generator, device=logs.device, dtype=torch.float64)
    return float(logs.logsumexp(1)) - math.log(logs.shape[1]), systematic(logs, uniform)[0]


def _settled(
    kernel: Kernel,
    here: PathEnergy,
    x: Tensor,
    pair: Pair,
    generator: torch.Generator,
    first: bool,
    limits: tuple[float, int],
    progress: Progress,
) -> tuple[Kernel, Tensor, int]:
    """Moves the particles at a level, and tunes the kernel meanwhile, until the correlation of the
    energies with those before, and the number of moves, reach their limits: (kernel, x, moves).
    Raises `Stopped` where `progress` allows no further move."""
    root, tunes = (None, False), kernel.target_acceptance is not None
    if x.is_floating_point() and here.path.gradients:
        flat = x.flatten(1) if x.ndim > 1 else x.unsqueeze(1)
        root = Moments.empty(flat, dense=flat.shape[1] <= MAX_DENSE_DIM).update(flat).root()
        step = 1.0 if kernel.step_size is None else kernel.step_size
        kernel = kernel.tuned(torch.as_tensor(step).to(x), *root)
    state = kernel.init(here.known(x, pair), x)
    if first and tunes:
        kernel = kernel.tuned(initial_step_size(kernel, here, [state], [generator]), *root)
    before, moves, correlated = kernel.walkers(state).energy, 0, 1.0
    cost = len(x) * (kernel.gradients_per_step if here.path.gradients else 1)
    while moves < MIN_MOVES or (moves < limits[1] and correlated > limits[0]):
        progress.spend(cost)
        mover = jittered(kernel, state.energy, generator)
        state, info = mover.step(here, state, kernel.noise(state, generator))
        moves += 1
        if tunes:
            assert kernel.step_size is not None and kernel.target_acceptance is not None
            error = info.acceptance.mean() - kernel.target_acceptance
            step = torch.as_tensor(kernel.step_size).to(state.energy)
            kernel = kernel.tuned(step * (2 * error / math.sqrt(moves)).exp(), *root)
        correlated = correlation(before, kernel.walkers(state).energy)
    return kernel, kernel.walkers(state).x, moves
