"""Paths of energies from one that draws exactly to the target."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from poe.algebra.energy import Density, Energy
from poe.spaces.known import Known


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
        """U = E_0 - E_1 in double precision, the increment of the log weights; -inf where the end
        has no mass or is NaN."""
        drop = self.start.double() - self.end.double()
        return torch.where(drop.isnan(), -torch.inf, drop)

    def permuted(self, order: Tensor) -> Pair:
        """With axis 1 (the rungs) reordered by `order` (chains, rungs)."""
        return Pair(*(take(part, order) for part in self))


def mix(beta: Tensor, start: Tensor, end: Tensor) -> Tensor:
    """(1 - beta)·start + beta·end; an end of weight 0 is ignored even where it is infinite."""
    a = torch.where(beta == 1, 0, (1 - beta) * torch.where(beta == 1, 0, start))
    return a + torch.where(beta == 0, 0, beta * torch.where(beta == 0, 0, end))


def take(values: Tensor, order: Tensor) -> Tensor:
    # (chains, rungs, ...), (chains, n) -> (chains, n, ...)
    """The values at these indices of axis 1, for each chain its own."""
    index = order.reshape(order.shape + (1,) * (values.ndim - 2)).expand(
        *order.shape, *values.shape[2:]
    )
    return values.gather(1, index)


@dataclass(frozen=True)
class Geometric:
    """p_β ∝ p_0^(1-β) p_1^β: energies E_β = (1 - β) E_0 + β E_1, from a start that draws exactly
    (β = 0) to the end (β = 1)."""

    start: Energy
    end: Energy
    gradients: bool = True  # whether `pair` computes them; they are (*batch, 0) otherwise

    @property
    def segments(self) -> tuple[Geometric, ...]:
        """The path itself, as one segment."""
        return (self,)

    def pair(self, x: Tensor) -> Pair:  # (*batch, *event)
        """Energies and gradients of both ends at x."""
        return Pair(*self._evaluated(self.start, x), *self._evaluated(self.end, x))

    def next_pair(self, x: Tensor, before: Pair) -> Pair:
        """`pair` at x, from that of the segment before, whose end is the start of this one."""
        return Pair(before.end, before.end_gradient, *self._evaluated(self.end, x))

    def _evaluated(self, energy: Energy, x: Tensor) -> tuple[Tensor, Tensor]:
        """Energy and gradient at x, the latter empty without `gradients`."""
        if self.gradients:
            return energy.value_and_grad(x)
        with torch.no_grad():
            value = energy(x)
        return value, value.new_empty(*value.shape, 0)

    def level(self, beta: Tensor) -> PathEnergy:
        """The energy at β."""
        return PathEnergy(self, beta)


@dataclass(frozen=True)
class Stepped:
    """Geometric paths in sequence, each from the end of the one before. Weights between segments
    are exp(E_prev(x) - E_next(x)), so that the energies between the two ends affect how well
    particles move, and not their law."""

    segments: tuple[Geometric, ...]

    @classmethod
    def through(cls, energies: Sequence[Energy]) -> Stepped:
        """From the first energy, which draws exactly, to the last."""
        return cls(tuple(Geometric(a, b) for a, b in pairwise(energies)))

    @property
    def start(self) -> Energy:
        """The first energy."""
        return self.segments[0].start

    @property
    def end(self) -> Energy:
        """The target."""
        return self.segments[-1].end


Path = Geometric | Stepped


class PathEnergy(Energy):
    """The energy of a path at fixed inverse temperatures: a tensor over the trailing batch axes, so
    that all rungs of a ladder are one batch."""

    def __init__(self, path: Geometric, beta: Tensor) -> None:
        super().__init__(path.end.event_shape)
        self.path, self.beta = path, beta

    def forward(self, x: Tensor) -> Tensor:  # (*batch, *event) -> (*batch)
        return mix(self.beta, self.path.start(x), self.path.end(x))

    def _value_and_grad(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if not getattr(self.path, "gradients", True):
            return super()._value_and_grad(x)
        return self.path.pair(x).at(self.beta, len(self.event_shape))

    def known(self, x: Tensor, pair: Pair) -> Energy:
        """The same energy for a kernel that starts at points x, whose `pair` is known."""
        if not self.path.gradients:
            return self
        return Known(self, x, *pair.at(self.beta, len(self.event_shape)))


class StandardNormal(Density):
    """N(loc, diag(scale²)) over an event: the start of annealing where no factor draws samples."""

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
