"""Small discrete spaces, point by point."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from poe.algebra.capabilities import Enumerates, as_a
from poe.algebra.energy import Energy, first_tensor
from poe.spaces.sites import box_of, sites_of

MAX_STATES = 1 << 20  # points of the largest discrete space that is enumerated
CHUNK_SIZE = 1 << 15  # points whose energies are computed at a time


def enumerable(energy: Energy) -> int | None:
    """The number of points of the integer box that contains a discrete support; None where it is
    unknown or above `MAX_STATES`."""
    box = box_of(energy)
    if box is None:
        return None
    bits = ((box.high - box.low) / box.step + 1).double().log2().sum().item()
    return round(2**bits) if bits <= math.log2(MAX_STATES) else None


def points(energy: Energy, index: Tensor | None = None) -> Tensor:  # (k) -> (k, *event)
    """Points of the small box that contains a discrete support, in the dtype that the energy takes:
    binary experts take floats, categorical ones whole numbers. All points by default, else those of
    these indices, the last site varying fastest."""
    listed = as_a(energy, Enumerates)
    if listed is not None:
        states = listed.enumerate()
        return states if index is None else states[index.to(states.device)]
    sites = sites_of(energy)
    index = torch.arange(enumerable(energy) or 0) if index is None else index.cpu()
    if not len(sites.counts):
        return first_tensor(energy).new_zeros(len(index), *energy.event_shape)
    counts = sites.counts.cpu()
    weight = counts.flip(0).cumprod(0).flip(0) // counts
    digits = index.unsqueeze(-1) // weight % counts
    whole = sites.low.cpu().long() + sites.step * digits
    return _typed(energy, whole.reshape(-1, *energy.event_shape))


def energies(energy: Energy) -> Tensor:  # -> (states)
    """The energy of every point, in the order of `points`, in double precision and in nats; +inf
    outside the support.

    Raises ValueError where an expert is NaN or -inf, or no point has finite energy.
    """
    listed = as_a(energy, Enumerates)
    states = None if listed is None else listed.enumerate()
    count = enumerable(energy) if states is None else len(states)
    assert count is not None
    found = []
    with torch.no_grad():
        for numbers in torch.arange(count).split(CHUNK_SIZE):
            found.append(
                energy(
                    points(energy, numbers) if states is None else states[numbers.to(states.device)]
                ).double()
            )
    values = torch.cat(found)
    if bool(values.isnan().any()):
        raise ValueError(
            f"{energy} is NaN at {int(values.isnan().sum())} of {count} points: an expert fails "
            "there"
        )
    if bool((values == -math.inf).any()):
        raise ValueError(
            f"{energy} has energy -inf, an unbounded density, at "
            f"{int((values == -math.inf).sum())} of {count} points"
        )
    if not bool((values < math.inf).any()):
        raise ValueError(f"{energy} has energy +inf at every point: nothing can be drawn")
    return values


def point_dtype(energy: Energy) -> torch.dtype:
    """The dtype of the points that the energy takes."""
    box = box_of(energy)
    assert box is not None
    return _typed(energy, box.low.unsqueeze(0).long()).dtype


def uniform_points(energy: Energy, n: int, generator: torch.Generator) -> Tensor:
    """n points (n, *event) of the box that contains a discrete support, each site uniform over its
    values."""
    box = box_of(energy)
    assert box is not None
    uniform = (
        torch.rand(n, *energy.event_shape, generator=generator, device=generator.device)
        .cpu()
        .double()
    )
    places = (uniform * ((box.high - box.low) / box.step + 1).cpu().double()).floor()
    return _typed(energy, (box.low.cpu().double() + box.step * places).long())


def _typed(energy: Energy, whole: Tensor) -> Tensor:  # (n, *event) -> (n, *event)
    """Points in the dtype that the energy takes: binary ones as floats, others as whole numbers,
    unless the energy fails on these."""
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
