"""A factor on f(x): `@`, and `on` for a part of an event."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn

from poe.algebra.checks import energies_of
from poe.algebra.energy import Energy
from poe.algebra.evaluation import masked, masked_with_gradient
from poe.algebra.maps import Select, preimage, stated_shape
from poe.algebra.operators import BUILDERS
from poe.algebra.support import shape_of
from poe.algebra.text import function_name


class Pullback(Energy):
    """A factor on f(x): E(x) = E_a(f(x)), with no Jacobian. Built by `@`, `pullback` and `on`."""

    def __init__(
        self, energy: Energy, function: Callable[[Tensor], Tensor], event_shape: Sequence[int]
    ) -> None:
        super().__init__(event_shape, support=preimage(energy.support, function, event_shape))
        self.energy, self.function = energy, function

    @property
    def parts(self) -> tuple[Energy, ...]:
        return (self.energy,)

    def rebuild(self, parts: Sequence[Energy]) -> Energy:
        return pullback(parts[0], self.function, self.event_shape)

    @property
    def vocabulary(self) -> Any:
        return None  # that of the part is about f(x)

    def forward(self, x: Tensor) -> Tensor:  # (*batch, *event) -> (*batch)
        y, outside = self._image(x)
        return torch.where(outside, math.inf, masked(self.energy, y))

    def _image(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """f(x), and where a plain function is NaN: x lies outside its domain, and 0 stands for
        f(x). A module has no such domain: its NaN is a failure, and stays for the report to
        count."""
        y = self.function(x)
        if isinstance(self.function, nn.Module) or not y.is_floating_point():
            batch = x.shape[: x.ndim - len(self._event_shape)]
            return y, torch.zeros(batch, dtype=torch.bool, device=x.device)
        outside = y.isnan()
        axes = len(self.energy.event_shape)
        each = outside.flatten(y.ndim - axes).any(-1) if axes else outside
        return torch.where(outside, 0, y), each

    def _seen_by_parts(self, x: Tensor) -> Tensor:
        return self._image(x)[0]

    def _value_and_grad(self, x: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            y, outside = self._image(x)
        energy, slope = masked_with_gradient(self.energy, y.detach())
        if not y.requires_grad:
            raise TypeError(
                f"{function_name(self.function)} in {self} does not depend on x through torch "
                "operations"
            )
        (gradient,) = torch.autograd.grad(y, x, slope, materialize_grads=True)
        return torch.where(outside, math.inf, energy), gradient


def pullback(
    energy: Energy, function: Callable[[Tensor], Tensor], event_shape: Sequence[int] | None = None
) -> Energy:
    """The factor exp(-E(f(x))) on f(x): no Jacobian. The event shape is the stated one, else f's,
    else that of the energy."""
    if isinstance(function, Energy) or not callable(function):
        raise TypeError(
            f"`@` takes a function of x on its right, not {function}; for a product of energies "
            "write `a & b`"
        )
    (energy,) = energies_of([energy], "pullback")
    shape = shape_of(event_shape) if event_shape is not None else stated_shape(function)
    return Pullback(energy, function, energy.event_shape if shape is None else shape)


def on(energy: Energy, index: Sequence[int] | Tensor, event_shape: Sequence[int]) -> Energy:
    """A factor on part of a larger event: E(x[index]), x flattened, the selected values taking the
    energy's event shape."""
    (energy,) = energies_of([energy], "on")
    return pullback(energy, Select(index, event_shape, energy.event_shape), event_shape)


def is_on(energy: Energy) -> TypeGuard[Pullback]:
    """Whether `on` made it."""
    return isinstance(energy, Pullback) and isinstance(energy.function, Select)


BUILDERS["@"] = pullback
