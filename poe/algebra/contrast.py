"""a but not b: `-`."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import softplus

from poe.algebra import support as sets
from poe.algebra.checks import energies_of, one_measure, right_side
from poe.algebra.energy import Energy, together, together_with_gradients
from poe.algebra.operators import BUILDERS
from poe.algebra.text import ATOM, MINUS, child, number, wrap


class Contrast(Energy):
    """a but not b: E = E_a + s·softplus(E_a - E_b), density p_a (p_a / (p_a + p_b))^s <= p_a. Built
    by `-` and `contrast`."""

    def __init__(self, wanted: Energy, unwanted: Energy, strength: float) -> None:
        super().__init__(wanted.event_shape, support=wanted.support)
        self.wanted, self.unwanted, self.strength = wanted, unwanted, strength

    @property
    def parts(self) -> tuple[Energy, ...]:
        return self.wanted, self.unwanted

    @property
    def weighs(self) -> str:
        return "-"

    @property
    def roles(self) -> list[str]:
        return [
            "wanted",
            "unwanted" if self.strength == 1 else f"unwanted, strength {self.strength:g}",
        ]

    def rebuild(self, parts: Sequence[Energy]) -> Energy:
        return contrast(parts[0], parts[1], self.strength)

    def forward(self, x: Tensor) -> Tensor:  # (*batch, *event) -> (*batch)
        wanted, unwanted = together(self.parts, x)
        void, gap = self._gap(wanted, unwanted)
        return wanted + torch.where(void, 0, self.strength * softplus(gap, threshold=40))

    def _gap(self, wanted: Tensor, unwanted: Tensor) -> tuple[Tensor, Tensor]:
        """E_a - E_b, and where it decides nothing: p_a = 0, strength 0, or both densities infinite.
        No inf - inf arises."""
        void = (wanted == math.inf) | ((wanted == -math.inf) & (unwanted == -math.inf))
        if self.strength == 0:
            void = torch.ones_like(void)
        return void, torch.where(void, 0, wanted) - torch.where(void, 0, unwanted)

    def _value_and_grad(self, x: Tensor) -> tuple[Tensor, Tensor]:
        (wanted, slope_a), (unwanted, slope_b) = together_with_gradients(self.parts, x)
        void, gap = self._gap(wanted, unwanted)
        energy = wanted + torch.where(void, 0, self.strength * softplus(gap, threshold=40))
        pull = torch.where(void, 0, self.strength * gap.sigmoid()).reshape(
            gap.shape + (1,) * len(self.event_shape)
        )
        return energy, slope_a + torch.where(pull == 0, 0, pull * (slope_a - slope_b))

    @property
    def proper(self) -> bool | None:
        return (
            False if sets.is_empty(self.support) else True if self.wanted.proper else super().proper
        )

    @property
    def bounded(self) -> bool | None:
        return True if self.wanted.bounded else super().bounded

    def _format(self, label: dict[int, str]) -> tuple[str, int]:
        wanted, unwanted = child(self.wanted, label), child(self.unwanted, label)
        if self.strength == 1:
            return f"{wrap(wanted, MINUS)} - {wrap(unwanted, MINUS + 1)}", MINUS
        return f"poe.contrast({wanted[0]}, {unwanted[0]}, strength={number(self.strength)})", ATOM


def contrast(a: Energy, b: Energy, strength: float = 1.0) -> Energy:
    """a but not b: E_a + strength·softplus(E_a - E_b), strength >= 0; `a - b` is strength 1."""
    a, b = energies_of([a, b], "contrast")
    one_measure([a, b], "-")
    if (
        isinstance(strength, bool)
        or not isinstance(strength, (int, float))
        or not 0 <= strength < math.inf
    ):
        raise ValueError(f"the strength of a contrast is a finite number >= 0, got {strength!r}")
    return Contrast(a, b, float(strength))


BUILDERS["-"] = lambda a, b: contrast(a, right_side(b, a, "-"))
