"""Paths: sequences of energies from one that is easy to draw from to the one that is wanted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from poe.algebra.energy import Density, Energy


class Pair(NamedTuple):
    """Energies (*batch) in nats and gradients (*batch, *event) of both ends of a path at the same
    points."""

    start: Tensor
    start_gradient: Tensor
    end: Tensor
    end_gradient: Tensor

    def at(self, beta: Tensor, event: int) -> tuple[Tensor, Tensor]:
        """Energy and gradient at inverse temperatures beta, broadcast over trailing batch axes."""
        wide = beta.reshape(beta.shape + (1,) * event)
        return mix(beta, self.start, self.end), mix(wide, self.start_gradient, self.end_gradient)

    def drop(self) -> Tensor:
        """U = E_0 - E_1 in double precision, what log weights grow by; -inf where the end has no
        mass or fails."""
        drop = self.start.double() - self.end.double()
        return torch.where(drop.isnan(), -torch.inf, drop)

    def permuted(self, order: Tensor) -> Pair:
        """With axis 1 (the rungs) reordered by `order` (chains, rungs)."""
        return Pair(*(take(part, order) for part in self))


def mix(beta: Tensor, start: Tensor, end: Tensor) -> Tensor:
    """(1 - beta)·start + beta·end, where an end that has weight 0 does not count even if
    infinite."""
    a = torch.where(beta == 1, 0, (1 - beta) * torch.where(beta == 1, 0, start))
    return a + torch.where(beta == 0, 0, beta * torch.where(beta == 0, 0, end))


def take(values: Tensor, order: Tensor) -> Tensor:
    # (chains, rungs, ...), (chains, n) -> (chains, n, ...)
    """The values at these places of axis 1, for each chain its own."""
    index = order.reshape(order.shape + (1,) * (values.ndim - 2)).expand(
        *order.shape, *values.shape[2:]
    )
    return values.gather(1, index)


@dataclass(frozen=True)
class Geometric:
    """p_β ∝ p_0^(1-β) p_1^β: energies E_β = (1 - β) E_0 + β E_1, from a start that draws exactly (β
    = 0) to the end (β = 1)."""

    start: Energy
    end: Energy
    gradients: bool = True  # whether `pair` has them, (*batch, 0) otherwise

    @property
    def segments(self) -> tuple[Geometric, ...]:
        """The path itself, in one piece."""
        return (self,)

    def pair(self, x: Tensor) -> Pair:  # (*batch, *event)
        return Pair(*self._known(self.start, x), *self._known(self.end, x))

    def beyond(self, x: Tensor, before: Pair) -> Pair:
        """`pair` where the segment before this one has ended: its end is the start of this one."""
        return Pair(before.end, before.end_gradient, *self._known(self.end, x))

    def _known(self, energy: Energy, x: Tensor) -> tuple[Tensor, Tensor]:
        if self.gradients:
            return energy.value_and_grad(x)
        with torch.no_grad():
            value = energy(x)
        return value, value.new_empty(*value.shape, 0)

    def level(self, beta: Tensor, x: Tensor | None = None, pair: Pair | None = None) -> Level:
        """The energy at β; `pair` of the points x where they are known already, so that a kernel
        starts there for nothing."""
        return Level(self, beta, x, pair)


@dataclass(frozen=True)
class Stepped:
    """Geometric paths one after the other, each from where the last one ends. Weights of the way
    are exp(E_prev(x) - E_next(x)), so that what is between the two ends decides how well particles
    move, and not what they stand for."""

    segments: tuple[Geometric, ...]

    @classmethod
    def through(cls, energies: Sequence[Energy]) -> Stepped:
        """From the first energy, which draws exactly, to the last."""
        return cls(tuple(Geometric(a, b) for a, b in pairwise(energies)))

    @property
    def start(self) -> Energy:
        return self.segments[0].start

    @property
    def end(self) -> Energy:
        return self.segments[-1].end


Path = Geometric | Stepped


class Level(Energy):
    """The path's energy at fixed inverse temperatures: a tensor over the trailing batch axes, so
    that a whole ladder is one batch."""

    def __init__(
        self, path: Geometric, beta: Tensor, x: Tensor | None = None, pair: Pair | None = None
    ) -> None:
        super().__init__(path.end.event_shape)
        self.path, self.beta = path, beta
        self._known = x, pair

    @property
    def known(self) -> tuple[Tensor, Pair]:
        """Points whose pair is known, and that pair."""
        x, pair = self._known
        if x is None or pair is None:
            raise ValueError("no pair was given with this level")
        return x, pair

    def forward(self, x: Tensor) -> Tensor:  # (*batch, *event) -> (*batch)
        return mix(self.beta, self.path.start(x), self.path.end(x))

    def _value_and_grad(self, x: Tensor) -> tuple[Tensor, Tensor]:
        known, pair = self._known
        if not getattr(self.path, "gradients", True):
            return super()._value_and_grad(x)
        if (
            pair is None
            or known is None
            or known.data_ptr() != x.data_ptr()
            or known.shape != x.shape
        ):  # never written in place
            pair = self.path.pair(x)
        return pair.at(self.beta, len(self.event_shape))


class StandardNormal(Density):
    """N(loc, diag(scale²)) over an event: where annealing starts when no factor draws samples."""

    loc: Tensor
    scale: Tensor

    def __init__(self, loc: Tensor, scale: Tensor) -> None:
        super().__init__(loc.shape)
        self.register_buffer("loc", loc.detach().clone())
        self.register_buffer("scale", scale.detach().clone())

    @property
    def bounded(self) -> bool:
        return True

    def log_prob(self, x: Tensor) -> Tensor:  # (*batch, *event) -> (*batch)
        normal = torch.distributions.Normal(self.loc, self.scale, validate_args=False)
        return torch.distributions.Independent(normal, self.loc.ndim, validate_args=False).log_prob(
            x
        )

    def sample(
        self, n: int | tuple[int, ...], *, generator: torch.Generator | None = None
    ) -> Tensor:
        shape = (n,) if isinstance(n, int) else tuple(n)
        noise = torch.randn(
            *shape,
            *self.loc.shape,
            generator=generator,
            dtype=self.loc.dtype,
            device=self.loc.device,
        )
        return self.loc + self.scale * noise
