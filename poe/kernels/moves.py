"""Parts of kernels: preconditioning, noise, evaluation, Langevin moves, and the acceptance of each
chain."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from poe.algebra.energy import Energy
from poe.kernels.state import Info, Noise, State

DIVERGENT = 1000.0  # nats: a proposal whose energy rises by more is counted as divergent


def per_event(values: Tensor, event: int) -> Tensor:
    # (*batch) -> (*batch, 1, ..., 1)
    """Values of the batch, ready to broadcast over `event` event axes."""
    return values.reshape(values.shape + (1,) * event)


def flat(v: Tensor, event: int) -> Tensor:
    # (*batch, *event) -> (*batch, d)
    """Events as vectors."""
    return v.unsqueeze(-1) if event == 0 else v.flatten(v.ndim - event)


def scaled(v: Tensor, scale: Tensor | None, dense: bool, event: int) -> Tensor:
    # (*batch, *event) -> (*batch, *event)
    """L v."""
    if scale is None:
        return v
    w, scale = flat(v, event), scale.to(v)
    w = torch.einsum("...ij,...j->...i", scale, w) if dense else scale * w
    return w.reshape(v.shape)


def transposed(v: Tensor, scale: Tensor | None, dense: bool, event: int) -> Tensor:
    # (*batch, *event) -> (*batch, *event)
    """Lᵀ v."""
    if scale is None or not dense:
        return scaled(v, scale, dense, event)
    return torch.einsum("...ji,...j->...i", scale.to(v), flat(v, event)).reshape(v.shape)


def steps_of(
    step_size: float | Tensor | None,
    state: Any,
    name: str,
    units: str = "x",
    dtype: torch.dtype | None = None,
) -> Tensor:
    """The step size of each walker, (*batch), in the dtype of x unless another is given."""
    if step_size is None:
        raise ValueError(
            f"{name}(step_size=None) is tuned by poe.sample; to step by hand give a step size in "
            f"units of {units}"
        )
    return torch.as_tensor(
        step_size, dtype=state.x.dtype if dtype is None else dtype, device=state.x.device
    ).expand(state.energy.shape)


def check_positive(value: float | Tensor | None, what: str, units: str = "x") -> None:
    """Raises ValueError for a number that cannot be a step size or length."""
    if isinstance(value, (int, float)) and not 0 < value < math.inf:
        raise ValueError(f"the {what} must be a positive number in units of {units}, got {value}")


def langevin_move(
    gradient: Tensor, normal: Tensor, h: Tensor, scale: Tensor | None, dense: bool
) -> Tensor:
    # gradient, normal (*batch, *event), h (*batch) -> (*batch, *event)
    """-h M ∇E + sqrt(2h) L ξ, the move of a Langevin step."""
    event = normal.ndim - h.ndim
    root = per_event(h.sqrt(), event)
    pull = transposed(gradient, scale, dense, event)
    return scaled(math.sqrt(2) * root * normal - root * root * pull, scale, dense, event)


def langevin_densities(
    gradient: Tensor, ahead: Tensor, normal: Tensor, h: Tensor, scale: Tensor | None, dense: bool
) -> tuple[Tensor, Tensor]:
    # gradient, ahead, normal (*batch, *event), h (*batch) -> (*batch), (*batch)
    """½|ξ|² and ½|ξ - sqrt(h/2) Lᵀ(∇E(x) + ∇E(x'))|²: minus the logarithms of the densities of a
    Langevin move and of its reverse, up to the same constant; `ahead` is ∇E(x')."""
    event = normal.ndim - h.ndim
    root = per_event(h.sqrt(), event)
    pulls = transposed(gradient, scale, dense, event) + transposed(ahead, scale, dense, event)
    back = normal - root / math.sqrt(2) * pulls
    return flat(normal, event).square().sum(-1) / 2, flat(back, event).square().sum(-1) / 2


def draw(state: Any, generator: torch.Generator | None, steps: int | None = None) -> Noise:
    """The noise of one step, or of `steps`, along a leading axis."""

    def numbers(sampler: Callable[..., Tensor], like: Tensor) -> Tensor:
        shape = like.shape if steps is None else (steps, *like.shape)
        return sampler(shape, generator=generator, dtype=like.dtype, device=like.device)

    return Noise(numbers(torch.randn, state.x), numbers(torch.rand, state.energy))


def evaluate(energy: Energy, x: Tensor, gradient: bool) -> State:
    """The state at x, (*batch, *event)."""
    if gradient:
        return State(x, *energy.value_and_grad(x))
    with torch.no_grad():
        return State(x, energy(x), x.new_empty(0))


def has_gradient(state: State) -> bool:
    """Whether the state was evaluated with its gradient."""
    return state.gradient.shape == state.x.shape


def decide(
    state: State,
    proposed: State,
    log_ratio: Tensor | None,
    uniform: Tensor,
    rise: Tensor | None = None,
) -> tuple[State, Info]:
    """Each chain, independent of the others, accepts its proposal with probability min(1,
    exp(log_ratio)), (*batch); every finite one where `log_ratio` is None. A proposal with a
    non-finite energy, gradient or ratio is rejected. `rise` is the energy error, in nats, that can
    make it divergent.
    """
    event = state.x.ndim - state.energy.ndim
    finite = proposed.energy.isfinite()
    if has_gradient(state):
        finite = finite & flat(proposed.gradient, event).isfinite().all(-1)
    if log_ratio is None:
        acceptance, accepted = finite.to(state.energy), finite
    else:
        finite = finite & ~log_ratio.isnan()
        acceptance = torch.where(finite, log_ratio.clamp(max=0).exp(), 0)
        accepted = finite & (uniform < acceptance)
    taken = per_event(accepted, event)
    moved = State(
        torch.where(taken, proposed.x, state.x),
        torch.where(accepted, proposed.energy, state.energy),
        torch.where(taken, proposed.gradient, state.gradient)
        if has_gradient(state)
        else state.gradient,
    )
    # +inf is the energy outside the support: rejected, and not a divergence
    nonfinite = ~finite & (proposed.energy != math.inf)
    divergent = torch.zeros_like(finite) if rise is None else finite & (rise > DIVERGENT)
    return moved, Info(acceptance, accepted, nonfinite, divergent)


def close(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are equal up to √ε, absolute and relative."""
    tolerance = math.sqrt(torch.finfo(b.dtype).eps)
    return torch.allclose(a, b, rtol=tolerance, atol=tolerance, equal_nan=True)
