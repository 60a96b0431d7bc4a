"""The number of steps of a trajectory, one for all chains of a batch from one jittered length; and
the criterion for its length."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from poe.kernels.moves import draw, flat
from poe.kernels.state import Trajectory

NORMAL_LENGTH = (
    1.9283  # the length at unit frequency that `chees_slope` leads to for a standard normal
)


class TrajectoryNoise(NamedTuple):
    """Standard normal numbers (*batch, *event) for the velocities, uniform ones (*batch) for the
    decisions, and one uniform number () for the length that all chains of the batch share."""

    normal: Tensor
    uniform: Tensor
    jitter: Tensor


def draw_jittered(
    state: Any, generator: torch.Generator | None, steps: int | None = None
) -> TrajectoryNoise:
    """The noise of one trajectory, or of `steps`, along a leading axis."""
    shape = () if steps is None else (steps,)
    like = state.energy
    return TrajectoryNoise(
        *draw(state, generator, steps),
        torch.rand(shape, generator=generator, dtype=like.dtype, device=like.device),
    )


def step_count(jitter: Tensor, longest: float, most: int) -> int:
    """⌈u·longest⌉ steps, u in [0, 1), at least 1 and at most `most`; `longest` is the longest
    trajectory in steps."""
    return min(max(math.ceil(float(jitter) * longest), 1), most)


def mean_step_count(longest: float, most: int) -> float:
    """The mean of `step_count`: Σ_k P(n > k), P(⌈u·r⌉ > k) = 1 - k/r for k < r."""
    whole = min(math.floor(longest), most - 1)
    return 1 + whole - whole * (whole + 1) / (2 * longest)


def chees_slope(
    trajectory: Trajectory, acceptance: Tensor, scale: Tensor | None, dense: bool
) -> Tensor:
    """The derivative of ChEES over the root of the length, by the logarithm of the length and up to
    a positive factor; see `Hamiltonian` for the formula. Trajectories of acceptance probability 0
    have no weight, even where they are not finite."""
    some = acceptance > 0
    weight = acceptance.reshape(acceptance.shape + (1,) * (trajectory.start.ndim - 1))
    end = torch.where(weight > 0, trajectory.end, 0)
    start = whitened(trajectory.start - trajectory.start.mean(0), scale, dense)
    end = whitened(end - (weight * end).sum(0) / weight.sum(), scale, dense)
    change = end.square().sum(-1) - start.square().sum(-1)
    along = torch.where(some, (end * trajectory.velocity).sum(-1), 0)
    return (
        acceptance * (trajectory.time * change * along - change.square() / 8)
    ).sum() / acceptance.sum()


def whitened(v: Tensor, scale: Tensor | None, dense: bool) -> Tensor:
    # (chains, *event) -> (chains, d)
    """L⁻¹ v."""
    v = flat(v, v.ndim - 1)
    if scale is None:
        return v
    scale = scale.to(v)
    return torch.linalg.solve_triangular(scale, v.T, upper=False).T if dense else v / scale
