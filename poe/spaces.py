"""Small discrete spaces, point by point."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from poe.capabilities import Enumerates
from poe.energy import Energy
from poe.sites import box_of

MOST_STATES = 1 << 16  # discrete spaces up to this many points are enumerated


def enumerable(energy: Energy) -> int | None:
    """How many points the integer box has in which a discrete support lies, where that is known and small enough."""
    box = box_of(energy)
    if box is None:
        return None
    bits = ((box.high - box.low) / box.step + 1).double().log2().sum().item()
    return round(2**bits) if bits <= math.log2(MOST_STATES) else None


def points(energy: Energy) -> Tensor:
    """Every point of the small box in which a discrete support lies, (states, *event), in the type that the energy takes: binary
    experts work on floats, categorical ones on whole numbers."""
    if energy.can(Enumerates):
        return energy.enumerate()  # type: ignore[operator]
    box = box_of(energy)
    assert box is not None
    low, high = box.low.flatten(), box.high.flatten()
    if not len(low):
        return energy._like().new_zeros(1, *energy.event_shape)
    axes = [torch.arange(int(a), int(b) + 1, box.step) for a, b in zip(low, high, strict=True)]
    grid = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).reshape(-1, *energy.event_shape).to(energy.device)
    binary = bool((box.high - box.low == box.step).all())
    first, second = (grid.to(energy.dtype), grid) if binary else (grid, grid.to(energy.dtype))
    with torch.no_grad():
        try:
            energy(first[:1])
        except (TypeError, RuntimeError, IndexError):
            return second
    return first
