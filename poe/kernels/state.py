"""Values that kernels take and return: the state of a batch of chains, the noise of a step, its
information, and feedback for adaptation."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class State(NamedTuple):
    """Positions (*batch, *event), energies (*batch) in nats, gradients (*batch, *event); for
    kernels that need no gradient the last is empty, of shape (0,)."""

    x: Tensor
    energy: Tensor
    gradient: Tensor


class Info(NamedTuple):
    """Information on a step, each of shape (*batch): acceptance probability in [0, 1], whether the
    proposal was accepted, whether its energy or gradient was not finite (it is then rejected),
    whether its energy rose by more than 1000 nats."""

    acceptance: Tensor
    accepted: Tensor
    nonfinite: Tensor
    divergent: Tensor


class Noise(NamedTuple):
    """Standard normal numbers (*batch, *event) and uniform ones (*batch): all randomness of one
    step."""

    normal: Tensor
    uniform: Tensor


class Trajectory(NamedTuple):
    """Starts and ends of trajectories, (chains, *event); the whitened velocities at the end,
    (chains, d); and their durations, (chains), in units of whitened x over velocity."""

    start: Tensor
    end: Tensor
    velocity: Tensor
    time: Tensor


class Feedback(NamedTuple):
    """What adaptation learns from one step: a number for each walker (*batch), whose mean over the
    chains goes to `Kernel.statistic`; the trajectories, for a kernel that learns their length; and
    the feedback of the kernel's parts."""

    signal: Tensor
    trajectory: Trajectory | None = None
    parts: tuple[Feedback, ...] = ()
