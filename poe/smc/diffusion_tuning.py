"""Tuning of reverse diffusion: one population finds the levels of noise, the kernels and how many
particles start."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from poe.diagnostics.weights import weight_ess
from poe.kernels import Kernel, Langevin
from poe.mcmc.progress import Progress
from poe.smc.diffusion import (
    RESAMPLE_THRESHOLD,
    Particles,
    ReverseDiffusion,
    Step,
    moved,
    step_down,
)
from poe.smc.noise_path import CENTRE_POINTS, CENTRE_STEPS, NoisePath
from poe.smc.resampling import correlation, resampled
from poe.smc.tuning import FINAL_CORRELATION, MAX_LEVELS, StalledError, TunedSchedule, tune
from poe.spaces.noise import noise_range

PILOT_PARTICLES = 64
MAX_MOVES, MAX_LAST_MOVES = 2, 32  # Metropolis moves of a level, and of the target
MIN_STRIDE, MAX_STRIDE = 0.005, 0.2  # of log σ from one level to the next
MAX_GUIDED_STRIDE = 0.06  # where particles follow scores and no Metropolis moves correct a step
MIN_ESS_SHARE, GROW_ESS_SHARE = 0.8, 0.92  # below, a step is repeated; above, the next is longer
# where particles follow scores, more start, up to the first step after which at least this share of
# the effective particles stays effective
SETTLED_ESS_SHARE = 0.7
MAX_COST_FACTOR = 3  # gradients of a run in which more start, over those of one in which none do


@dataclass
class _Search:
    """One population on its way down, resampled at each level, and what it has found so far."""

    path: NoisePath
    particles: Particles
    kernel: Kernel
    sigma: float
    log_ratio: float
    generator: torch.Generator
    stride: float
    steps: list[Step] = field(default_factory=list)
    log_weights: Tensor | None = None
    survival: float = 1.0  # product of the shares of effective particles at each resampling
    shares: list[float] = field(default_factory=list)  # `survival` after each step

    def advance(self) -> None:
        """To the next level, as far as `MIN_ESS_SHARE` of the particles stay effective; where
        scores are followed, by `stride`."""
        guided = self.path.follows_scores
        while True:
            aim = self._aim()
            particles, weighed, share = self._tried(aim)
            repeats = not guided and aim > 0 and self.stride > MIN_STRIDE
            if not repeats or share >= MIN_ESS_SHARE:
                break
            self.stride = max(MIN_STRIDE, 0.6 * self.stride)
        if len(self.steps) == MAX_LEVELS:
            raise StalledError(f"more than {MAX_LEVELS} levels of noise to {self.path.end}")
        if share > GROW_ESS_SHARE:
            longest = MAX_GUIDED_STRIDE if guided else MAX_STRIDE
            self.stride = min(longest, 1.3 * self.stride)
        self.shares.append(self.survival * share)
        order, logs, increase = resampled(
            weighed, self.generator, always=aim == 0 or not guided, threshold=RESAMPLE_THRESHOLD
        )
        self.survival *= share if not logs.any() else 1.0
        self.log_ratio += float(increase)
        self.log_weights = logs
        step, self.particles = _tuned(
            self.path, aim, particles.picked(order[0]), self.kernel, self.generator
        )
        self.kernel, self.sigma = step.kernel, aim
        self.steps.append(step)

    def _aim(self) -> float:
        low, aim = min(noise_range(self.path.end)), self.sigma * math.exp(-self.stride)
        if self.sigma <= low:
            return 0.0
        return low if aim < low * math.exp(MIN_STRIDE) else aim

    def _tried(self, aim: float) -> tuple[Particles, Tensor, float]:
        """Particles at the level, their log weights (1, n), and the share that is effective."""
        particles, increment = step_down(self.path, self.particles, self.sigma, aim, self.generator)
        before = 0.0 if self.log_weights is None else self.log_weights
        weighed = before + torch.where(increment.isnan(), -math.inf, increment)
        weighed = weighed.reshape(1, -1)
        if not bool((weighed > -math.inf).any()):
            raise ValueError(f"no particle of {self.path.end} has finite energy at noise {aim:g}")
        return particles, weighed, float(weight_ess(weighed)) / weighed.shape[1]


def tune_diffusion(
    path: NoisePath,
    generator: torch.Generator,
    *,
    kernel: Kernel | None = None,
    progress: Progress | bool | None = False,
) -> TunedSchedule:
    """Tunes reverse diffusion with one population that is resampled at each level: steps of log σ
    that keep `MIN_ESS_SHARE` of the effective particles, and kernels whose step size follows their
    acceptance, in units of the spread of noise. Where scores are followed, steps have
    `MAX_GUIDED_STRIDE`, whatever they keep, as most errors of the weights cancel later; and for
    each particle that arrives so many start that as many are effective at the level from which on
    `SETTLED_ESS_SHARE` stay so, at `MAX_COST_FACTOR` times the cost at most.

    Raises StalledError where that takes more than `MAX_LEVELS` levels.
    """
    low, high = noise_range(path.end)
    x = path.start.sample(PILOT_PARTICLES, generator=generator)
    progress = Progress.of(progress)
    first = tune(path.approach, x, generator, kernel=kernel, max_moves=MAX_MOVES, progress=progress)
    mover = Langevin() if kernel is None else kernel
    step_size = mover.guess(x[0].numel()) if mover.step_size is None else mover.step_size
    search = _Search(
        path,
        Particles.at(path.level(high)[0], first.x),
        mover.tuned(step_size),
        high,
        first.log_ratio - path.mass,
        generator,
        MAX_GUIDED_STRIDE if path.follows_scores else MAX_STRIDE,
    )
    form = "{desc}: {percentage:3.0f}%"
    with progress.bar("tuning reverse diffusion", 1.0, bar_format=form) as bar:
        while search.sigma > 0:
            before = search.sigma
            progress.spend(PILOT_PARTICLES)
            search.advance()
            progress.keep(search.particles.x)
            bar.update(math.log(before / max(search.sigma, low)) / math.log(high / low))
    schedule = ReverseDiffusion(path, first.schedule, tuple(search.steps))
    spent = first.gradients + CENTRE_STEPS * CENTRE_POINTS
    spent += (schedule.gradients - first.schedule.gradients) * PILOT_PARTICLES
    if path.follows_scores:
        schedule = _oversampled(schedule, search.shares)
    return TunedSchedule(schedule, search.particles.x, search.log_ratio, float(spent))


def _oversampled(schedule: ReverseDiffusion, shares: list[float]) -> ReverseDiffusion:
    """The schedule with more particles at its start, by the shares of effective ones after each
    step."""
    last = next(i for i, share in enumerate(shares) if shares[-1] >= SETTLED_ESS_SHARE * share)
    twice = replace(schedule, oversampling=2, oversampled_steps=last + 1)
    extra = twice.gradients - schedule.gradients
    most = 1 + (MAX_COST_FACTOR - 1) * schedule.gradients // extra
    return replace(twice, oversampling=min(math.ceil(1 / shares[last]), most))


def _tuned(
    path: NoisePath,
    sigma: float,
    particles: Particles,
    kernel: Kernel,
    generator: torch.Generator,
) -> tuple[Step, Particles]:
    """The kernel for a level, its step size tuned while it moves the particles: at the target until
    the energy has forgotten its value. No moves where scores are followed."""
    level, wide = path.level(sigma)
    if not level.metropolis:
        return Step(sigma, kernel, 0), particles
    x = particles.x
    scale = kernel.scale
    if wide is not None:
        scale = torch.full((x[0].numel(),), wide, dtype=x.dtype, device=x.device)
    before, moves, most = particles.energy, 0, MAX_MOVES if sigma > 0 else MAX_LAST_MOVES
    while moves < MAX_MOVES or (
        moves < most and correlation(before, particles.energy) > FINAL_CORRELATION
    ):
        assert kernel.step_size is not None
        kernel = kernel.tuned(kernel.step_size, scale)
        particles, (info,) = moved(path, particles, Step(sigma, kernel, 1), generator)
        moves += 1
        if kernel.target_acceptance is not None:
            error = info.acceptance.mean() - kernel.target_acceptance
            step = torch.as_tensor(kernel.step_size).to(particles.energy)
            kernel = kernel.tuned(step * (2 * error / math.sqrt(moves)).exp(), scale)
    return Step(sigma, kernel, moves), particles
