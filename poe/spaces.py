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
    return _typed(energy, torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).reshape(-1, *energy.event_shape))


def anywhere(energy: Energy, n: int, generator: torch.Generator) -> Tensor:
    """n points (n, *event) of the box in which a discrete support lies, each site drawn evenly from its values."""
    box = box_of(energy)
    assert box is not None
    uniform = torch.rand(n, *energy.event_shape, generator=generator, device=generator.device).cpu().double()
    places = (uniform * ((box.high - box.low) / box.step + 1).cpu().double()).floor()
    return _typed(energy, (box.low.cpu().double() + box.step * places).long())


def _typed(energy: Energy, whole: Tensor) -> Tensor:  # (n, *event) -> (n, *event)
    """Points in the type that the energy takes: binary ones as floats, others as whole numbers, unless the energy fails on these."""
    box, whole = box_of(energy), whole.to(energy.device)
    assert box is not None
    binary = bool((box.high - box.low == box.step).all())
    first, second = (whole.to(energy.dtype), whole) if binary else (whole, whole.to(energy.dtype))
    with torch.no_grad():
        try:
            energy(first[:1])
        except (TypeError, RuntimeError, IndexError):
            return second
    return first
