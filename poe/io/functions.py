"""The functions that an expression may call, with their arguments checked: text may come from
anyone."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from poe import algebra
from poe.algebra.checks import energies_of
from poe.algebra.contrast import contrast
from poe.algebra.energy import Energy, Estimate
from poe.algebra.mixture import mixture
from poe.algebra.product import product
from poe.algebra.pullback import pullback

MAX_EVENT = 10**7  # numbers of one event


def is_number(value: Any) -> bool:
    """Whether a value is a number, which a bool is not here."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def kind(value: Any) -> str:
    """What a value is, for messages."""
    if is_number(value):
        return f"the number {value:g}" if abs(value) < 1e300 else "a number"
    return "nothing" if value is None else f"a {type(value).__name__.lower()}"


def _on(energy: Energy, index: Any, event_shape: Any) -> Energy:
    (energy,) = energies_of([energy], "on")
    return algebra.on(energy, index, _checked(event_shape))


def _pullback(energy: Energy, function: Any, event_shape: Any = None) -> Energy:
    shape = None if event_shape is None else _checked(event_shape)
    return pullback(energy, function, shape)


def _shift(energy: Energy, offset: float, *, log_z: Any = None) -> Energy:
    if not (log_z is None or isinstance(log_z, Estimate)):
        raise TypeError(f"log_z is an Estimate(value, standard_error), not {kind(log_z)}")
    return algebra.shift(energy, offset, log_z=log_z)


def _checked(event_shape: Any) -> torch.Size:
    """An event shape whose tensors fit into memory."""
    listed = isinstance(event_shape, list | tuple)
    if not listed or not all(isinstance(size, int) and size >= 0 for size in event_shape):
        raise TypeError("an event shape is a tuple of sizes such as (2,) or (8, 8)")
    n = math.prod(event_shape)
    if n > MAX_EVENT:
        raise ValueError(f"an event of {n:,} numbers is too large; at most {MAX_EVENT:,} are read")
    return torch.Size(event_shape)


def _power(value: float | torch.Tensor) -> nn.Parameter:
    return nn.Parameter(value.detach() if isinstance(value, torch.Tensor) else _tensor(value))


def _tensor(value: float) -> torch.Tensor:
    if not (is_number(value) and abs(value) <= torch.finfo(torch.get_default_dtype()).max):
        raise ValueError(
            "a tensor of an expression holds one number that its precision can hold, not "
            f"{kind(value)}"
        )
    return torch.tensor(float(value))


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "product": product,
    "mixture": mixture,
    "contrast": contrast,
    "combine": algebra.combine,
    "conjunction": algebra.conjunction,
    "on": _on,
    "fill": algebra.fill,
    "pullback": _pullback,
    "shift": _shift,
    "Estimate": Estimate,
    "Parameter": _power,
    "tensor": _tensor,
}
