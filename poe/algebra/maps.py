"""Maps on the right of `@`: a part of an event, known values filled in; and the support that a map
pulls back."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Transform, biject_to
from torch.distributions.transforms import identity_transform

from poe.algebra import support as sets
from poe.algebra.support import shape_of
from poe.algebra.text import function_name


class Select(nn.Module):
    """x -> x.flatten()[index], shaped as the part's event: the map of `on`."""

    index: Tensor

    def __init__(
        self, index: Sequence[int] | Tensor, event_shape: Sequence[int], part_shape: Sequence[int]
    ) -> None:
        super().__init__()
        self.event_shape, self.part_shape = shape_of(event_shape), shape_of(part_shape)
        size = self.event_shape.numel()
        positions = torch.as_tensor(index).flatten()
        if positions.numel() and (
            positions.is_floating_point() or positions.is_complex() or positions.dtype == torch.bool
        ):
            raise TypeError(
                f"positions are whole numbers, not {positions.dtype}: mask.flatten().nonzero() "
                "gives those of a mask"
            )
        positions = positions.long()
        if len(positions) != self.part_shape.numel():
            raise ValueError(
                f"{len(positions)} positions cannot fill an event of shape {tuple(part_shape)}"
            )
        outside = bool((positions < -size).any() or (positions >= size).any())
        if outside or len((positions % size).unique()) != len(positions):
            raise ValueError(
                f"positions {positions.tolist()} must be distinct and lie in an event of {size} "
                "numbers"
            )
        self.register_buffer("index", positions % size, persistent=False)

    def forward(self, x: Tensor) -> Tensor:  # (*batch, *event) -> (*batch, *part)
        batch = x.shape[: x.ndim - len(self.event_shape)]
        selected = x.reshape((*batch, self.event_shape.numel()))[..., self.index]
        return selected.reshape(batch + self.part_shape)

    def preimage(self, support: sets.Constraint) -> sets.Constraint | None:
        """The box of all x whose selected part lies in the box `support`."""
        if not isinstance(support, sets.Box) or support.integer:
            return None
        high = torch.full((self.event_shape.numel(),), math.inf, dtype=torch.float64)
        low = -high
        low[self.index] = support.low.flatten().to(low)
        high[self.index] = support.high.flatten().to(high)
        return sets.Box(low.reshape(self.event_shape), high.reshape(self.event_shape))


class Fill(nn.Module):
    """(*batch, free) -> (*batch, *event): the free numbers in reading order where the mask is
    False, known values elsewhere."""

    x_known: Tensor
    mask: Tensor
    free: Tensor

    def __init__(self, x_known: Tensor, mask: Tensor, *, name: str | None = None) -> None:
        super().__init__()
        x_known, mask = torch.as_tensor(x_known), torch.as_tensor(mask)
        if mask.dtype != torch.bool or mask.shape != x_known.shape:
            raise ValueError(
                f"fill takes a boolean mask of the shape of x_known, {tuple(x_known.shape)}, True "
                f"where x is known; got {mask.dtype} of shape {tuple(mask.shape)}"
            )
        self.name = name
        self.event_shape = torch.Size([int((~mask).sum())])
        self.register_buffer("x_known", x_known.detach().clone())
        self.register_buffer("mask", mask.detach().clone())
        self.register_buffer("free", (~mask).flatten().nonzero().squeeze(-1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:  # (*batch, free) -> (*batch, *event)
        batch = x.shape[:-1]
        known = torch.where(self.mask, self.x_known, 0).to(x).flatten()
        whole = known.expand((*batch, self.mask.numel())).index_copy(-1, self.free, x)
        return whole.reshape(batch + self.mask.shape)

    def preimage(self, support: sets.Constraint) -> sets.Constraint | None:
        """The box of the free coordinates, empty where a known value lies outside the box
        `support`."""
        if not isinstance(support, sets.Box):
            return None
        low, high = support.low.flatten()[self.free], support.high.flatten()[self.free]
        known = self.x_known
        inside = (known >= support.low.to(known)) & (known <= support.high.to(known))
        if not bool((inside | ~self.mask).all()):
            low, high = torch.full_like(low, math.inf), torch.full_like(high, -math.inf)
        return sets.Box(low, high, integer=support.integer, step=support.step)


class Preimage(sets.Constraint):
    """The points that a function maps into a support."""

    def __init__(
        self, support: sets.Constraint, function: Callable[[Tensor], Tensor], event_dim: int
    ) -> None:
        self.target, self.function = support, function
        self.event_dim = event_dim  # type: ignore[assignment]
        self.is_discrete = sets.is_discrete(support)  # type: ignore[assignment]

    def check(self, value: Tensor) -> Tensor:
        with torch.no_grad():
            return sets.contains(self.target, self.function(value))

    def __repr__(self) -> str:
        return f"{{x: {function_name(self.function)}(x) in {self.target!r}}}"


@biject_to.register(Preimage)
def _moved_as_it_is(support: Preimage) -> Transform:
    """Points of a preimage move in R^n, where its outside is rejected; one without volume would
    never be met."""
    if sets.measure(support.target) != sets.VOLUME:
        raise NotImplementedError(f"{support!r} has no volume")
    return identity_transform


def preimage(
    support: sets.Constraint, function: Callable, event_shape: Sequence[int]
) -> sets.Constraint:
    """The points of this shape that a function maps into a support; a box where that is known."""
    if sets.is_real(support):
        return sets.real(event_shape)
    known = function.preimage(support) if isinstance(function, (Select, Fill)) else None
    return Preimage(support, function, len(tuple(event_shape))) if known is None else known


def stated_shape(function: Any) -> torch.Size | None:
    """The event shape that a function has as an attribute."""
    shape = getattr(function, "event_shape", None)
    return None if shape is None else torch.Size(shape)


def fill(x_known: Tensor, mask: Tensor) -> Fill:
    """A map for `energy @ fill(x_known, mask)`: clamps x to `x_known` where `mask` is True, and
    leaves the rest free."""
    return Fill(x_known, mask)
