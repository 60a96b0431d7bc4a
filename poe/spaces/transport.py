"""Energies in other variables: the reals in place of a constrained support, or the noise of a
transport, with the log-determinant."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Transform

from poe.algebra.capabilities import Samples, as_a
from poe.algebra.energy import Energy, Estimate
from poe.algebra.support import Constraint
from poe.spaces import reals


def reals_of(energy: Energy) -> Transform:
    """The bijection T from R^m onto the support of an energy, or onto a larger set, in whose
    variables it is drawn.

    Raises ValueError where none is known, as for a simplex that is part of an event.
    """
    try:
        return reals.from_reals(energy.support)
    except NotImplementedError as error:
        raise ValueError(f"{energy} {unmapped(energy.support)}") from error


def unmapped(support: Constraint) -> str:
    """The error message for an energy onto whose support no map is known."""
    return (
        f"cannot be drawn: no map from R^n onto its support {support!r} is known. A box has one, "
        "and a simplex that is the whole event: poe.sample such a part by itself, or write it over "
        "unconstrained numbers"
    )


class ChangeOfVariables(Energy):
    """E(z) = E_x(T(z)) - log|det dT/dz|: the law of an energy over z, x = T(z)."""

    def __init__(self, energy: Energy, event_shape: torch.Size) -> None:
        super().__init__(event_shape)
        self.energy = energy

    @abstractmethod
    def image(self, z: Tensor) -> tuple[Tensor, Tensor]:
        # (*batch, *variables) -> (*batch, *event), (*batch)
        """x = T(z) and log|det dT/dz|."""

    def forward(self, z: Tensor) -> Tensor:  # (*batch, *variables) -> (*batch)
        x, log_det = self.image(z)
        return self.energy(x) - log_det

    def _value_and_grad(self, z: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            z = z.detach().requires_grad_()
            x, log_det = self.image(z)
        energy, slope = self.energy.value_and_grad(x.detach())
        outputs, slopes = [x, log_det], [slope, -torch.ones_like(log_det)]
        if not log_det.requires_grad:  # constant: a map that preserves volume
            outputs, slopes = outputs[:1], slopes[:1]
        (gradient,) = torch.autograd.grad(outputs, z, slopes, materialize_grads=True)
        return energy - log_det.detach(), gradient

    @property
    def log_z(self) -> Estimate | None:
        return self.energy.log_z

    @property
    def proper(self) -> bool | None:
        return self.energy.proper


class Unconstrained(ChangeOfVariables):
    """An energy over z in R^m, T a bijection of `torch.distributions` onto its support.

    A simplex of k parts has m = k - 1 and densities with respect to its first k - 1 coordinates, as
    torch's Dirichlet.
    """

    def __init__(self, energy: Energy, transform: Transform | None = None) -> None:
        transform = reals_of(energy) if transform is None else transform
        super().__init__(energy, transform.inverse_shape(energy.event_shape))
        self.transform: Any = transform  # torch types what a transform returns as optional

    def image(self, z: Tensor) -> tuple[Tensor, Tensor]:
        x, batch = self.transform(z), z.ndim - len(self.event_shape)
        log_det = self.transform.log_abs_det_jacobian(z, x)
        return x, log_det if log_det.ndim == batch else log_det.flatten(batch).sum(-1)

    def at(self, sigma: float) -> Energy:
        return self.around(self.energy.at(sigma))

    def around(self, energy: Energy) -> Unconstrained:
        """Another energy over the same variables z."""
        return Unconstrained(energy, self.transform)

    def can(self, capability: type) -> bool:
        return self.energy.can(Samples) if capability is Samples else super().can(capability)

    def sample(
        self, n: int | tuple[int, ...], *, generator: torch.Generator | None = None
    ) -> Tensor:
        """Exact draws of z, where the energy draws x."""
        source = as_a(self.energy, Samples)
        assert source is not None
        return self.to_z(source.sample(n, generator=generator))

    def to_x(self, z: Tensor) -> Tensor:
        """x = T(z)."""
        return self.transform(z)

    def to_z(self, x: Tensor) -> Tensor:
        """z with T(z) = x."""
        return self.transform.inv(x)


class Transported(ChangeOfVariables):
    """An energy over the noise z of a map with the methods of the capability Transport: a flow, or
    a map fitted to particles (`poe.smc.triangular`)."""

    def __init__(self, energy: Energy, map: Any) -> None:
        super().__init__(energy, energy.event_shape)
        self.map = map

    def image(self, z: Tensor) -> tuple[Tensor, Tensor]:
        return self.map.from_noise(z)

    def to_x(self, z: Tensor) -> Tensor:
        """x = T(z)."""
        with torch.no_grad():
            return self.map.from_noise(z)[0]

    def to_z(self, x: Tensor) -> Tensor:
        """z with T(z) = x."""
        with torch.no_grad():
            return self.map.to_noise(x)[0]
