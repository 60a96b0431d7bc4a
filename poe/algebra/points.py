"""Points at which an energy is evaluated: their shape and precision, which of them lie in its
support, and which part is at fault where an evaluation fails."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from poe.algebra import support as sets


def batch_shape(energy: Any, x: Tensor) -> torch.Size:  # (*batch, *event) -> batch
    """The leading axes of x. Raises TypeError for what is not a tensor, and ValueError where the
    trailing axes are not the event shape."""
    event = energy.event_shape
    k = len(event)
    if not isinstance(x, Tensor):
        raise TypeError(
            f"the energy {energy} takes a torch tensor, not {type(x).__name__}; "
            "torch.as_tensor(x) makes one"
        )
    if x.ndim < k or x.shape[x.ndim - k :] != event:
        raise ValueError(
            f"x has shape {tuple(x.shape)}, but {energy} takes (*batch, *event) with event shape "
            f"{tuple(event)}"
        )
    return x.shape[: x.ndim - k]


def moved_inside(
    support: sets.Constraint, event_shape: torch.Size, x: Tensor
) -> tuple[Tensor, Tensor]:  # (*batch, *event) -> (*batch) bool, (*batch, *event)
    """Which points lie in a support, and x with the others replaced by a point of it, so that no
    NaN arises."""
    inside = sets.contains(support, x)
    anchor = sets.inside_point(support, x, event_shape)
    if anchor is None:
        return inside, x
    mask = inside.reshape(inside.shape + (1,) * len(event_shape))
    return inside, torch.where(mask, x, anchor)


def all_move_inside(support: sets.Constraint, event_shape: torch.Size) -> bool:
    """Whether `moved_inside` always gives points of the support, so that those who contain it need
    not look again."""
    if sets.is_real(support):
        return True
    anchor = sets.inside_point(support, torch.empty(()), event_shape)
    return anchor is not None and bool(sets.contains(support, anchor))


def wrong_shape(energy: Any, found: Tensor, x: Tensor) -> ValueError:
    """The error of an evaluation that does not give one number for each event."""
    return ValueError(
        f"the energy {energy} returned shape {tuple(found.shape)} for x of shape {tuple(x.shape)}: "
        f"forward must give one number for each event of shape {tuple(energy.event_shape)}, here "
        f"{tuple(batch_shape(energy, x))}"
    )


def at_fault(
    energy: Any, x: Tensor, error: Exception, evaluate: Callable[[Any, Tensor], Any]
) -> Exception:
    """Why an evaluation failed: the error of the first part that fails when it is evaluated alone,
    with all checks, else a precision of x that the energy does not have, else the error itself."""
    if isinstance(error, RecursionError):
        return error
    for part in energy.parts:
        try:
            evaluate(part, energy._seen_by_parts(x))
        except Exception as found:
            return found
    if isinstance(error, RuntimeError) and x.is_floating_point() and x.dtype != energy.dtype:
        wrong = TypeError(
            f"{energy} works in {energy.dtype}, x is {x.dtype}: x.to({energy.dtype}), or "
            f".to({x.dtype}) the energy ({error})"
        )
        wrong.__cause__ = error
        return wrong
    return error
