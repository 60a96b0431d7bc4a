"""An energy together with points at which it was evaluated already."""

from __future__ import annotations

from torch import Tensor

from poe.algebra.energy import Energy


class Known(Energy):
    """The same energy, whose value (*batch) in nats and gradient (*batch, *event) at the points x
    are not computed again: for a kernel that starts there. The points must not be changed in
    place."""

    def __init__(self, energy: Energy, x: Tensor, value: Tensor, gradient: Tensor) -> None:
        super().__init__(energy.event_shape)
        self.energy, self._known = energy, (x, value, gradient)

    def forward(self, x: Tensor) -> Tensor:  # (*batch, *event) -> (*batch)
        return self.energy(x)

    def _value_and_grad(self, x: Tensor) -> tuple[Tensor, Tensor]:
        known, value, gradient = self._known
        return (value, gradient) if x.is_set_to(known) else self.energy.value_and_grad(x)
