"""The same density with another constant."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from poe.algebra.capabilities import Samples
from poe.algebra.checks import energies_of
from poe.algebra.energy import Energy, Estimate
from poe.algebra.evaluation import inner, inner_with_gradient


class Shifted(Energy):
    """The same density with another constant: E + offset. Built by `shift` and by `normalize`.

    `log_z` is that of the energy less the offset, or what is stated: `normalize` states 0 with the
    standard error of its estimate.
    """

    def __init__(self, energy: Energy, offset: float, log_z: Estimate | None) -> None:
        super().__init__(energy.event_shape, support=energy.support)
        self.energy, self.offset, self.stated = energy, offset, log_z

    @property
    def parts(self) -> tuple[Energy, ...]:
        return (self.energy,)

    def rebuild(self, parts: Sequence[Energy]) -> Energy:
        return shift(parts[0], self.offset, log_z=self.stated)

    def given(self, context: Any) -> Energy:
        """The part with this context, shifted likewise: what was stated of log Z was not said of
        that."""
        return shift(self.energy.given(context), self.offset)

    def at(self, sigma: float) -> Energy:
        """The part at this noise level, shifted likewise; what was stated of log Z holds where that
        is the same energy."""
        part = self.energy.at(sigma)
        return self if part is self.energy else shift(part, self.offset)

    def forward(self, x: Tensor) -> Tensor:  # (*batch, *event) -> (*batch)
        return inner(self.energy, x) + self.offset

    def _value_and_grad(self, x: Tensor) -> tuple[Tensor, Tensor]:
        energy, gradient = inner_with_gradient(self.energy, x)
        return energy + self.offset, gradient

    def can(self, capability: type) -> bool:
        return self.energy.can(Samples) if capability is Samples else super().can(capability)

    def sample(
        self, n: int | tuple[int, ...], *, generator: torch.Generator | None = None
    ) -> Tensor:
        """Exact draws of the energy that was shifted. Raises TypeError where it has none."""
        if not self.can(Samples):
            raise TypeError(f"{self.energy} has no exact draws; use poe.sample")
        return self.energy.sample(n, generator=generator)  # type: ignore[operator]


def unshifted(energy: Energy) -> Energy:
    """The energy below all shifts."""
    while isinstance(energy, Shifted):
        energy = energy.energy
    return energy


def shift(energy: Energy, offset: float, *, log_z: Estimate | None = None) -> Energy:
    """E + offset: the same density with another constant. `log_z` states that of the result where
    it is known from elsewhere."""
    (energy,) = energies_of([energy], "shift")
    if not math.isfinite(offset):
        raise ValueError(f"an energy can be shifted by a finite number of nats only, got {offset}")
    if isinstance(energy, Shifted) and log_z is None:
        total = energy.offset + float(offset)
        if energy.stated is None:
            return shift(energy.energy, total)
        return Shifted(
            energy.energy,
            total,
            Estimate(energy.stated.value - offset, energy.stated.standard_error),
        )
    if log_z is not None:
        log_z = Estimate(float(log_z[0]), float(log_z[1]))
    return energy if offset == 0 and log_z is None else Shifted(energy, float(offset), log_z)
