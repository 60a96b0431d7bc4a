"""Adaptation: step size, length of trajectories and preconditioner from the pooled chains. Pure
values; warm-up only, frozen afterwards."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from poe.algebra.energy import Energy
from poe.kernels.base import Kernel
from poe.kernels.state import Feedback, State, Trajectory

MAX_DENSE_DIM = 128  # dimensions up to which the preconditioner may be dense


class DualAveraging(NamedTuple):
    """Nesterov's dual averaging of log h, elementwise over rungs:

        H̄ ← (1 - 1/(t + 10)) H̄ + (target - acceptance)/(t + 10),    log h = μ - sqrt(t)/0.05 · H̄,
        log h̄ ← t^-0.75 log h + (1 - t^-0.75) log h̄,                 μ = log h_start + log 2.

    Reference: Hoffman and Gelman 2014, JMLR 15, section 3.2 (their constants t0 = 10, γ = 0.05, κ =
    0.75).
    """

    log_step: Tensor
    log_average: Tensor
    error: Tensor
    centre: Tensor
    count: int

    @classmethod
    def start(cls, step: Tensor) -> DualAveraging:
        log = step.log()
        return cls(log, log, torch.zeros_like(log), log + math.log(2), 0)

    def update(self, acceptance: Tensor, target: float) -> DualAveraging:
        t = self.count + 1
        rate = 1 / (t + 10)
        error = (1 - rate) * self.error + rate * (target - acceptance)
        log_step = self.centre - math.sqrt(t) / 0.05 * error
        weight = t**-0.75
        return DualAveraging(
            log_step, weight * log_step + (1 - weight) * self.log_average, error, self.centre, t
        )


class Ascent(NamedTuple):
    """Ascent of log T by Adam without momentum, along slopes s of what the length T of trajectories
    should maximise:

        q ← 0.95 q + 0.05 s²,    log T ← log T + 0.025 s / sqrt(q / (1 - 0.95^t)),    log T̄ ←
        t^-0.75 log T + (1 - t^-0.75) log T̄.

    Reference: Hoffman, Radul and Sountsov 2021, AISTATS, section 3.
    """

    log_length: float
    log_average: float
    square: float = 0.0
    count: int = 0

    @classmethod
    def start(cls, length: float) -> Ascent:
        return cls(math.log(length), math.log(length))

    def update(self, slope: float, shortest: float, longest: float) -> Ascent:
        """One step, kept between two lengths; a slope that is 0 or not finite, where no chain
        moved, is ignored."""
        if not math.isfinite(slope) or slope == 0:
            return self
        t = self.count + 1
        square = 0.95 * self.square + 0.05 * slope**2
        log_length = self.log_length + 0.025 * slope / math.sqrt(square / (1 - 0.95**t))
        log_length = min(max(log_length, math.log(shortest)), math.log(longest))
        weight = t**-0.75
        return Ascent(log_length, weight * log_length + (1 - weight) * self.log_average, square, t)


class Moments(NamedTuple):
    """Pooled mean and scatter matrix over the chains (axis 0) of every step, by Chan's pairwise
    update: (*b, d), (*b, d, d)."""

    count: int
    mean: Tensor
    scatter: Tensor

    @classmethod
    def empty(cls, like: Tensor, dense: bool) -> Moments:  # (chains, *b, d)
        shape = like.shape[1:]
        return cls(0, like.new_zeros(shape), like.new_zeros(shape + shape[-1:] if dense else shape))

    def update(self, x: Tensor) -> Moments:  # (chains, *b, d)
        new = self.count + len(x)
        mean = x.mean(0)
        centred, gap = x - mean, mean - self.mean
        weight = self.count * len(x) / new
        if self.scatter.ndim > self.mean.ndim:
            inner = torch.einsum("c...i,c...j->...ij", centred, centred)
            outer = weight * gap.unsqueeze(-1) * gap.unsqueeze(-2)
        else:
            inner, outer = centred.square().sum(0), weight * gap.square()
        return Moments(new, self.mean + gap * (len(x) / new), self.scatter + inner + outer)

    def root(self) -> tuple[Tensor | None, bool]:
        """(L, dense): the Cholesky factor of the covariance shrunk to its diagonal, n/(n + d + 5)
        of it kept, or the standard deviations where few draws stand behind each dimension; None
        where some coordinate has not moved."""
        d = self.mean.shape[-1]
        if self.count < 4:
            return None, False
        covariance = self.scatter / (self.count - 1)
        dense = covariance.ndim > self.mean.ndim
        variance = covariance.diagonal(dim1=-2, dim2=-1) if dense else covariance
        if not bool((variance.isfinite() & (variance > 0)).all()):
            return None, False
        if not dense or self.count < 10 * d:
            return variance.sqrt(), False
        keep = self.count / (self.count + d + 5)
        factor, failed = torch.linalg.cholesky_ex(
            keep * covariance + (1 - keep) * torch.diag_embed(variance)
        )
        return (variance.sqrt(), False) if bool(failed.any()) else (factor, True)


@dataclass(frozen=True)
class Adaptation:
    """The state of warm-up: the kernel in use and what has been learned. `update` returns the next
    value.

    Warm-up of W steps: the step size moves in every one; from 15 % to 60 % the moments of the
    chains are gathered in windows that double, and at the end of each the preconditioner is
    replaced and the step size search starts anew. So does the length of
    trajectories, where the kernel learns one: it begins at one step, and after each new
    preconditioner where it is best for a normal; in step t of warm-up no trajectory is longer than
    t + 4 steps.
    """

    kernel: Kernel
    steps: int
    averaging: DualAveraging
    moments: Moments | None
    window_ends: tuple[int, ...]
    at: int = 0
    ascent: Ascent | None = None

    @classmethod
    def start(
        cls,
        kernel: Kernel,
        energy: Energy,
        states: Sequence[Any],
        steps: int,
        generators: Sequence[torch.Generator],
    ) -> Adaptation:
        rungs = kernel.walkers(states[0]).energy.shape[1:]
        known = kernel.step_size
        learned = isinstance(known, Tensor) and known.shape == rungs and kernel.scale is not None
        step = (
            known
            if learned and isinstance(known, Tensor)
            else initial_step_size(kernel, energy, states, generators)
        )
        ends, end, width, last = [], int(0.15 * steps), max(10, int(0.1 * steps)), int(0.6 * steps)
        while steps >= 40 and end + width <= last:
            end, width = end + width, 2 * width
            end = last if end + width > last else end
            ends.append(end)
        kernel = kernel.tuned(step, kernel.scale, kernel.dense)
        ascent = Ascent.start(float(step)) if kernel.learns_length and step.ndim == 0 else None
        kernel = kernel if ascent is None else kernel.lengthened(float(step))
        return cls(kernel, steps, DualAveraging.start(step), None, tuple(ends), ascent=ascent)

    def update(self, states: Sequence[Any], feedbacks: Sequence[Feedback]) -> Adaptation:
        """After one step of all shards: their states and feedbacks, in block order."""
        signal = torch.cat([feedback.signal for feedback in feedbacks])
        walkers = [self.kernel.walkers(state) for state in states]
        target = self.kernel.target(dimensions(walkers[0]))
        assert target is not None
        averaging = self.averaging.update(self.kernel.statistic(signal.mean(0)), target)
        ascent = self._lengthened(averaging, signal, feedbacks)
        at, moments, scale = self.at + 1, self.moments, (self.kernel.scale, self.kernel.dense)
        if self.window_ends and 0.15 * self.steps <= at <= self.window_ends[-1]:
            moments = _gather(moments, walkers)
        if at in self.window_ends and moments is not None:
            root, dense = moments.root()
            moments = None
            if root is not None:
                d, scale = root.shape[-1], (root, dense)
                guess = torch.full_like(averaging.log_step, self.kernel.guess(d))
                averaging = DualAveraging.start(guess)
                ascent = None if ascent is None else Ascent.start(self.kernel.guess_length(d))
        last = at == self.steps
        step = averaging.log_average if last else averaging.log_step
        kernel = self.kernel.tuned(step.exp(), *scale)
        if ascent is not None:
            kernel = kernel.lengthened(math.exp(ascent.log_average if last else ascent.log_length))
        return replace(
            self, kernel=kernel, averaging=averaging, moments=moments, at=at, ascent=ascent
        )

    def _lengthened(
        self, averaging: DualAveraging, signal: Tensor, feedbacks: Sequence[Feedback]
    ) -> Ascent | None:
        """The ascent after one step of it, where the length of trajectories is learned."""
        flown = [feedback.trajectory for feedback in feedbacks if feedback.trajectory is not None]
        if self.ascent is None or not flown:
            return self.ascent
        trajectory = Trajectory(*(torch.cat(parts) for parts in zip(*flown, strict=True)))
        step = float(averaging.log_step.exp())
        slope = float(self.kernel.slope(trajectory, signal))
        return self.ascent.update(slope, step, (self.at + 4) * step)


@dataclass(frozen=True)
class JointAdaptation:
    """Adaptation of a kernel made of others: each part learns from its own feedbacks. Without parts
    there is nothing to learn."""

    kernel: Kernel
    parts: tuple[Adaptation | JointAdaptation, ...] = ()

    def update(self, states: Sequence[Any], feedbacks: Sequence[Feedback]) -> JointAdaptation:
        if not self.parts:
            return self
        parts = tuple(
            part.update(states, [feedback.parts[i] for feedback in feedbacks])
            for i, part in enumerate(self.parts)
        )
        return JointAdaptation(self.kernel.rebuilt(tuple(part.kernel for part in parts)), parts)


def adaptation_of(
    kernel: Kernel,
    energy: Energy,
    states: Sequence[Any],
    steps: int,
    generators: Sequence[torch.Generator],
) -> Adaptation | JointAdaptation:
    """The adaptation of a kernel, from the states of all shards, over `steps` of warm-up."""
    if kernel.parts:
        parts = tuple(
            adaptation_of(part, energy, states, steps, generators) for part in kernel.parts
        )
        return JointAdaptation(kernel.rebuilt(tuple(part.kernel for part in parts)), parts)
    if kernel.target(dimensions(kernel.walkers(states[0]))) is None:
        return JointAdaptation(kernel)
    return Adaptation.start(kernel, energy, states, steps, generators)


def initial_step_size(
    kernel: Kernel,
    energy: Energy,
    states: Sequence[Any],
    generators: Sequence[torch.Generator],
    most: int = 40,
) -> Tensor:
    """A step size of the right order for each rung, (*rungs): doubled or halved from 1 until the
    mean acceptance over all chains crosses one half. The trial steps are thrown away. Reference:
    Hoffman and Gelman 2014, algorithm 4."""
    walkers = kernel.walkers(states[0])
    like = walkers.energy
    step = torch.ones(like.shape[1:], dtype=like.dtype, device=like.device)
    direction = torch.zeros_like(step)
    for _ in range(most):
        trial = kernel.tuned(step, kernel.scale, kernel.dense)
        feedbacks = [
            trial.learn(energy, s, trial.noise(s, g))[2]
            for s, g in zip(states, generators, strict=True)
        ]
        up = kernel.statistic(torch.cat([feedback.signal for feedback in feedbacks]).mean(0)) > 0.5
        new = torch.where(up, 1.0, -1.0).to(step)
        moving = (direction == 0) | (new == direction)
        if not bool(moving.any()):
            break
        # 2: found
        direction = torch.where(direction == 0, new, torch.where(moving, direction, 2.0))
        step = torch.where(moving, step * 2.0**new, step)
    return step


def dimensions(walkers: State) -> int:
    """Numbers in an event."""
    return math.prod(walkers.x.shape[walkers.energy.ndim :])


def _gather(moments: Moments | None, walkers: Sequence[State]) -> Moments:
    """The moments with the positions of all shards added, in block order."""
    for walker in walkers:
        x = (
            walker.x.flatten(walker.energy.ndim)
            if walker.x.ndim > walker.energy.ndim
            else walker.x.unsqueeze(-1)
        )
        x = x.to(walker.energy.dtype)
        moments = (
            Moments.empty(x, dense=x.shape[-1] <= MAX_DENSE_DIM) if moments is None else moments
        )
        moments = moments.update(x)
    assert moments is not None
    return moments
