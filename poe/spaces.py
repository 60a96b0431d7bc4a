"""Small discrete spaces, point by point."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from poe import support as sets
from poe.capabilities import Enumerates
from poe.energy import Energy

MOST_STATES = 1 << 16  # discrete spaces up to this many points are enumerated


def enumerable(energy: Energy) -> int | None:
    """How many points a discrete support has, where that is known and small enough."""
    box = energy.support
    if not sets.is_discrete(box) or not isinstance(box, sets.Box) or not box.is_bounded:
        return None
    bits = ((box.high - box.low) / box.step + 1).double().log2().sum().item()
    return round(2**bits) if bits <= math.log2(MOST_STATES) else None


def points(energy: Energy) -> Tensor:
    """Every point of a small discrete box, (states, *event), in the type that the energy takes: binary experts work on floats,
    categorical ones on whole numbers."""
    if energy.can(Enumerates):
        return energy.enumerate()  # type: ignore[operator]
    box = energy.support
    assert isinstance(box, sets.Box)
    low, high = box.low.flatten(), box.high.flatten()
    if not len(low):
        return energy._like().new_zeros(1, *energy.event_shape)
    axes = [torch.arange(int(a), int(b) + 1, box.step) for a, b in zip(low, high, strict=True)]
    grid = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).reshape(-1, *energy.event_shape).to(energy.device)
    with torch.no_grad():
        try:
            energy(grid[:1])
        except (TypeError, RuntimeError):
            return grid.to(energy.dtype)
    return grid
