"""Reverse diffusion of a composition, with weights and Metropolis moves that make it exact.

E_k is the target at noise σ_k, σ_0 > σ_1 > ... , and s_k its own spread of noise, 1 / 2s² nats per
squared unit of x (`spread`: a product of two noised densities has s = σ/√2). From a particle x of
level k - 1, with gradient g = ∇E_{k-1}(x) and δ = s²_{k-1} - s²_k,

    x' = x - δ g + √v ξ,     v = s_k² δ / s²_{k-1},     ξ ~ N(0, 1):

exact where x was x₀ + noise with a single x₀, which is then x - s²_{k-1} g (Tweedie's formula).
Noise put back on x' would have led to x with density N(x; x', δ), so that on pairs (x, x') the
weight

    log w = E_{k-1}(x) - E_k(x') + log N(x; x', δ) - log N(x'; x - δ g, v)

turns what was drawn into the law exp(-E_k(x')) / Z_k of x', whatever the levels are, and has mean
Z_k / Z_{k-1}. A product of noised densities is not the noised product, and its score leads to
neither: the weights correct that, and Metropolis moves at each level separate resampled particles.
Where δ is not positive, particles stay and log w = E_{k-1}(x) - E_k(x).

In many dimensions the energies of a network can be too inaccurate for these weights. An expert that
states so (`poe.algebra.capabilities.Guided`) gives the gradients that particles follow and the
change of log p along a step; draws are then of the densities behind the scores, and the report
says it.

References: Del Moral, Doucet and Jasra 2006, J. R. Statist. Soc. B 68(3) (weights on pairs, section
3.3); Ho, Jain and Abbeel 2020, NeurIPS (v); Wu, Trippe, Naesseth, Blei and Cunningham 2023,
NeurIPS, and Du et al. 2023, ICML (particles and MCMC for compositions).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from poe.kernels import Kernel
from poe.smc.noise_path import NoisePath
from poe.smc.resampling import resampled
from poe.smc.schedule import Schedule
from poe.spaces.known import Known
from poe.spaces.noise import noise_range
from poe.spaces.path import take

# share of effective particles below which they are resampled where they follow scores, whose errors
# cancel on the way; half elsewhere
RESAMPLE_THRESHOLD = 0.1


class Particles(NamedTuple):
    """Particles at a level: positions, energies in nats, gradients; and what the guidance of the
    path keeps of an evaluation, (*batch, ...) each, empty without one and after moves."""

    x: Tensor
    energy: Tensor
    gradient: Tensor
    memory: tuple[Tensor, ...] = ()

    @classmethod
    def at(cls, level: Any, x: Tensor) -> Particles:
        """Evaluated at these points."""
        energy, gradient, *memory = level.evaluate(x)
        return cls(x, energy, gradient, tuple(memory))

    def taken(self, order: Tensor) -> Particles:  # (populations, n)
        """Those of each population in this order."""
        x, energy, gradient, memory = self
        parts = (take(part, order) for part in (x, energy, gradient, *memory))
        x, energy, gradient, *kept = parts
        return Particles(x, energy, gradient, tuple(kept))

    def picked(self, order: Tensor) -> Particles:  # (n): places among the particles (n, *event)
        """Those of one population in this order."""
        x, energy, gradient, memory = self
        return Particles(
            x[order], energy[order], gradient[order], tuple(part[order] for part in memory)
        )


class Step(NamedTuple):
    """A step down to a level of noise (units of x; 0 is the target), and how often which kernel
    moves particles there."""

    sigma: float
    kernel: Kernel
    moves: int


@dataclass(frozen=True)
class ReverseDiffusion:
    """How particles go down levels of noise: by a schedule from a normal to the noisiest level,
    then by `steps`. `oversampling` times as many start as arrive, for the first `oversampled_steps`
    steps."""

    path: NoisePath
    approach: Schedule
    steps: tuple[Step, ...]
    oversampling: int = 1
    oversampled_steps: int = 0

    @property
    def levels(self) -> tuple[Any, ...]:
        return (*self.approach.levels, *self.steps)

    @property
    def sigmas(self) -> list[float]:
        """The levels of noise, in units of x, the highest first."""
        return [max(noise_range(self.path.end)), *(step.sigma for step in self.steps)]

    @property
    def gradients(self) -> int:
        """Gradients of the target for one particle that arrives."""
        again = self.path.guidance is not None  # moves lose what it keeps
        each = [
            1
            + round(step.moves * step.kernel.gradients_per_step)
            + (again and step.moves > 0 and step is not self.steps[-1])
            for step in self.steps
        ]
        return (
            self.approach.gradients * self.oversampling
            + sum(each)
            + (self.oversampling - 1) * sum(each[: self.oversampled_steps])
        )

    @property
    def energies(self) -> int:
        return 0

    @property
    def work(self) -> int:
        """Moves and levels of one particle that starts, whatever they cost."""
        return self.approach.work + sum(step.moves for step in self.steps) + len(self.steps)

    def refined(self, times: int) -> ReverseDiffusion:
        """The same with each step cut into `times`, all moved by the kernel of its end."""
        steps, oversampled = [], 0
        for index, (before, step) in enumerate(zip(self.sigmas, self.steps, strict=False)):
            if step.sigma > 0:
                between = (before * (step.sigma / before) ** (i / times) for i in range(1, times))
                steps += [step._replace(sigma=sigma) for sigma in between]
            steps.append(step)
            oversampled = len(steps) if index < self.oversampled_steps else oversampled
        return replace(
            self,
            approach=self.approach.refined(times),
            steps=tuple(steps),
            oversampled_steps=oversampled,
        )

    def propagate(self, x: Tensor, generator: torch.Generator, resample: bool, bar: Any) -> tuple:
        """Populations (r, n, *event) to the target, as the fields of `Population`; of each, n /
        `oversampling` arrive if they are resampled."""
        begun = self.approach.propagate(x, generator, resample, bar)
        x, _, logs, log_ratio, ancestors, acceptance, nonfinite, divergent, _ = begun
        # the approach has counted the log weights, and the steps count them again
        log_ratio = log_ratio - logs.logsumexp(1) + math.log(x.shape[1])
        log_ratio = log_ratio - self.path.mass
        sigmas, arriving, infos = self.sigmas, x.shape[1] // self.oversampling, []
        particles = Particles.at(self.path.level(sigmas[0])[0], x)
        for index, (sigma, step) in enumerate(zip(sigmas, self.steps, strict=False)):
            particles, increment = step_down(self.path, particles, sigma, step.sigma, generator)
            nonfinite += int(increment.isnan().sum())
            logs = logs + torch.where(increment.isnan(), -math.inf, increment)
            if resample:
                order, logs, increase = resampled(
                    logs,
                    generator,
                    always=index == len(self.steps) - 1,
                    threshold=RESAMPLE_THRESHOLD if self.path.follows_scores else 0.5,
                    count=arriving if index == self.oversampled_steps - 1 else None,
                )
                particles, log_ratio = particles.taken(order), log_ratio + increase
                ancestors = ancestors.gather(1, order)
            particles, seen = moved(self.path, particles, step, generator)
            infos += seen
            bar.update()
        log_ratio = log_ratio + logs.logsumexp(1) - math.log(logs.shape[1])
        accepted = [acceptance, *(info.acceptance.mean().item() for info in infos)]
        nonfinite += sum(int(info.nonfinite.sum()) for info in infos)
        divergent += sum(int(info.divergent.sum()) for info in infos)
        last = [info.nonfinite.double().mean().item() for info in seen]
        share = sum(last) / max(len(last), 1)
        counts = sum(accepted) / len(accepted), nonfinite, divergent, share
        return particles.x, particles.energy, logs, log_ratio, ancestors, *counts

    def back(self, x: Tensor, generator: torch.Generator) -> Tensor:  # (n, *event) -> (n)
        """log weights of draws of the target on the way back to the start; exp of them has mean
        Z_0 / Z."""
        logs = torch.zeros(len(x), dtype=torch.float64, device=x.device)
        particles = Particles.at(self.path.level(self.steps[-1].sigma)[0], x)
        for step, higher in zip(self.steps[::-1], self.sigmas[-2::-1], strict=True):
            if step is not self.steps[-1]:
                particles, _ = moved(self.path, particles, step, generator)
            noise = torch.randn(x.shape, generator=generator, dtype=x.dtype, device=x.device)
            scale = math.sqrt(max(_variance(self.path, higher, step.sigma), 0))
            raised = Particles.at(self.path.level(higher)[0], particles.x + scale * noise)
            logs = logs - _log_weight(self.path, raised, particles, higher, step.sigma)
            particles = raised
        return logs + self.approach.back(particles.x, generator) + self.path.mass


def step_down(
    path: NoisePath, particles: Particles, sigma: float, to: float, generator: torch.Generator
) -> tuple[Particles, Tensor]:
    """Particles of the level σ at a lower one, and their log weights in nats, NaN where the energy
    fails there."""
    (_, above), (lower, below) = path.level(sigma), path.level(to)
    drop, x = _variance(path, sigma, to), particles.x
    if drop > 0:
        assert above is not None and below is not None
        noise = torch.randn(x.shape, generator=generator, dtype=x.dtype, device=x.device)
        x = x - drop * particles.gradient + below * math.sqrt(drop) / above * noise
    low = Particles.at(lower, x)
    return low, _log_weight(path, particles, low, sigma, to)


def moved(
    path: NoisePath, particles: Particles, step: Step, generator: torch.Generator
) -> tuple[Particles, list[Any]]:
    """The particles after the moves of a step at its level, and what the moves report."""
    if not step.moves:
        return particles, []
    level, kernel = path.level(step.sigma)[0], step.kernel
    known = Known(level.energy, particles.x, particles.energy, particles.gradient)
    state, infos = kernel.init(known, particles.x), []
    for _ in range(step.moves):
        state, info = kernel.step(level.energy, state, kernel.noise(state, generator))
        infos.append(info)
    end = kernel.walkers(state)
    if end.gradient.shape != end.x.shape:  # the kernel needs none
        return Particles.at(level, end.x), infos
    return Particles(end.x, end.energy, end.gradient), infos


def _variance(path: NoisePath, sigma: float, to: float) -> float:
    """δ, in units of x²; 0 where particles stay."""
    above, below = path.level(sigma)[1], path.level(to)[1]
    return 0.0 if above is None or below is None else above**2 - below**2


def _log_weight(
    path: NoisePath, high: Particles, low: Particles, sigma: float, to: float
) -> Tensor:  # -> (*batch)
    """log w of pairs (x, x'), of the levels σ and `to`; NaN where the energy fails at x'."""
    (upper, _), (lower, _) = path.level(sigma), path.level(to)
    drop = _variance(path, sigma, to)
    if path.guidance is not None:  # moves lose what it keeps
        high = high if high.memory else Particles.at(upper, high.x)
        low = low if low.memory else Particles.at(lower, low.x)
    logs = upper.unnoised_log_weight(lower, high, low)
    if logs is None and drop > 0:
        change = upper.log_density_change(lower, high, low)
        logs = _with_reversal(change, path, high, low, sigma, to)
    elif logs is None:
        logs = high.energy.double() - low.energy.double()
    failed = low.energy.isnan() | low.gradient.flatten(low.energy.ndim).isnan().any(-1)
    return torch.where(failed, math.nan, torch.where(low.energy == math.inf, -math.inf, logs))


def _with_reversal(
    change: Tensor, path: NoisePath, high: Particles, low: Particles, sigma: float, to: float
) -> Tensor:  # (*batch) -> (*batch)
    """change + log N(x; x', δ) - log N(x'; x - δ g, v)."""
    above, below, drop = path.level(sigma)[1], path.level(to)[1], _variance(path, sigma, to)
    assert above is not None and below is not None
    event = high.energy.ndim
    away, ahead = high.x - low.x, low.x - high.x + drop * high.gradient
    squares = [part.double().square().flatten(event).sum(-1) for part in (away, ahead)]
    d, variance = high.x.shape[event:].numel(), (below / above) ** 2 * drop
    return (
        change - squares[0] / (2 * drop) + squares[1] / (2 * variance) + d * math.log(below / above)
    )
