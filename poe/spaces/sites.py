"""The sites of a discrete event: the values of each, and how they are read, set and redrawn."""

from __future__ import annotations

import weakref
from functools import singledispatch

import torch
from torch import Tensor

from poe.algebra import support as sets
from poe.algebra.capabilities import Watched, as_a
from poe.algebra.energy import Energy
from poe.spaces.path import PathEnergy


class Sites:
    """The values that each of n sites may take, from a finite integer box: low, low + step, ...,
    `counts` of them (n); `max_count` is the largest of these."""

    def __init__(self, box: sets.Box) -> None:
        self.low, self.step = box.low.flatten(), box.step
        self.counts = ((box.high - box.low) / box.step + 1).floor().long().flatten()
        self.max_count = int(self.counts.max()) if len(self.counts) else 0
        self.binary = bool((self.counts == 2).all())
        self.base = (
            float(self.low[0]) if len(self.low) and bool((self.low == self.low[0]).all()) else None
        )

    def values(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """All values (n, max_count) in the dtype of `like`, and which of them belong to their
        site."""
        place = torch.arange(self.max_count, device=like.device)
        low = self.low.to(like.device).unsqueeze(-1)
        return (low + self.step * place).to(like.dtype), self.mask(like.device)

    def mask(self, device: torch.device) -> Tensor:  # -> (n, max_count)
        """True for the indices below the count of each site."""
        counts = self.counts.to(device).unsqueeze(-1)
        return torch.arange(self.max_count, device=device) < counts

    def places(self, x: Tensor, event: int) -> Tensor:  # (*batch, *event) -> (*batch, n)
        """The index of each site's value among its values, from 0."""
        low = self.low.to(x.device) if self.base is None else self.base
        return ((vectors(x, event) - low) / self.step).round().long()

    def put(self, x: Tensor, sites: Tensor, places: Tensor, event: int) -> Tensor:
        # (*batch, *event), (k), (*batch, k) -> (*batch, *event)
        """x with some sites set to the values at these indices."""
        value = places.to(x.dtype)
        if self.step != 1:
            value = value * self.step
        if self.base != 0:
            value = value + (
                self.low.to(x.device)[sites].to(x.dtype) if self.base is None else int(self.base)
            )
        return vectors(x, event).scatter(-1, sites.expand(value.shape), value).reshape(x.shape)

    def redraw(
        self, x: Tensor, sites: Tensor, logits: Tensor, uniforms: Tensor, event: int
    ) -> Tensor:
        # (*batch, *event), (k), (*batch, k) or (*batch, k, values), (*batch, k) -> (*batch, *event)
        """x with some sites drawn from their conditionals by inversion: the upper of two values
        where u < 1/(1 + e^-ℓ), ℓ its log-odds; else the first value whose cumulative probability
        exceeds u, from log weights."""
        places = (
            toss(logits, uniforms, x.dtype)
            if logits.ndim == uniforms.ndim
            else pick(logits, uniforms)
        )
        return self.put(x, sites, places, event)


def sites_of(energy: Energy) -> Sites:
    """The sites of an energy. Raises ValueError where no finite number of values is known."""
    box = box_of(energy)
    if box is None:
        raise ValueError(
            f"{energy} is on {energy.support!r}: moves between values need a finite number of "
            "whole values per coordinate"
        )
    if box not in _sites:
        _sites[box] = Sites(box)
    return _sites[box]


_sites: weakref.WeakKeyDictionary[sets.Box, Sites] = weakref.WeakKeyDictionary()


def box_of(energy: Energy) -> sets.Box | None:
    """The finite integer box that contains the support, where one is known."""
    return _box(unwatched(energy))


@singledispatch
def _box(energy: Energy) -> sets.Box | None:
    """The box of an energy, by default the coarsest one that its support states."""
    support = energy.support
    parts = support.parts if isinstance(support, sets.Intersection) else [support]
    found = [
        part for part in parts if isinstance(part, sets.Box) and part.integer and part.is_bounded
    ]
    return min(found, key=lambda box: -box.step, default=None)


@_box.register
def _(energy: PathEnergy) -> sets.Box | None:
    box = box_of(energy.path.end)
    return box_of(energy.path.start) if box is None else box


def unwatched(energy: Energy) -> Energy:
    """The energy without those that only watch it."""
    while (watcher := as_a(energy, Watched)) is not None:
        energy = watcher.watched
    return energy


def toss(logits: Tensor, uniforms: Tensor, dtype: torch.dtype) -> Tensor:
    # (*batch, k), (*batch, k) -> (*batch, k)
    """1 where u < 1/(1 + e^-ℓ), else 0, written directly in the given dtype: a conversion from bool
    takes longer than all else here."""
    return torch.lt(
        uniforms,
        logits.sigmoid(),
        out=torch.empty(uniforms.shape, dtype=dtype, device=uniforms.device),
    )


def pick(logits: Tensor, uniforms: Tensor) -> Tensor:
    # (*batch, k, values), (*batch, k) -> (*batch, k)
    """Indices drawn with probabilities softmax(ℓ), by inversion; a value of weight 0 is never
    drawn."""
    cumulative = logits.softmax(-1).double().cumsum(-1)
    return (
        (uniforms.double().unsqueeze(-1) * cumulative[..., -1:] >= cumulative)
        .sum(-1)
        .clamp(max=logits.shape[-1] - 1)
    )


def vectors(x: Tensor, event: int) -> Tensor:  # (*batch, *event) -> (*batch, n)
    """Events of `event` axes as vectors."""
    return x.unsqueeze(-1) if event == 0 else x.flatten(x.ndim - event)
