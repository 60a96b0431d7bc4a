"""a but not b: `-`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from poe.algebra import evaluation
from poe.algebra.checks import energies_of, one_measure, right_side
from poe.algebra.energy import Energy
from poe.algebra.operators import BUILDERS


class Contrast(Energy):
    """a but not b: E = E_a + s·softplus(E_a - E_b), density p_a (p_a / (p_a + p_b))^s <= p_a. Built
    by `-` and `contrast`.

    `a - b - c` is one node: E_a is the energy of `a - b` there, and so on for each of `unwanted`,
    from the left, with its strength.
    """

    def __init__(
        self, wanted: Energy, unwanted: Sequence[Energy], strengths: Sequence[float]
    ) -> None:
        super().__init__(wanted.event_shape, support=wanted.support)
        self.wanted, self.unwanted = wanted, nn.ModuleList(unwanted)
        self.strengths = tuple(strengths)

    @property
    def parts(self) -> tuple[Energy, ...]:
        return self.wanted, *self.unwanted  # type: ignore[return-value]

    def rebuild(self, parts: Sequence[Energy]) -> Energy:
        whole = parts[0]
        for part, strength in zip(parts[1:], self.strengths, strict=True):
            whole = contrast(whole, part, strength)
        return whole

    def forward(self, x: Tensor) -> Tensor:  # (*batch, *event) -> (*batch)
        energy, *unwanted = evaluation.together(self.parts, x, self._groups, self._evaluate)
        for other, strength in zip(unwanted, self.strengths, strict=True):
            energy = contrasted(energy, other, strength)[0]
        return energy

    def _value_and_grad(self, x: Tensor) -> tuple[Tensor, Tensor]:
        known = evaluation.together_with_gradients(self.parts, x, self._groups, self._differentiate)
        energy, gradient = next(known)
        for strength, (other, slope) in zip(self.strengths, known, strict=True):
            energy, pull = contrasted(energy, other, strength)
            pull = pull.reshape(pull.shape + (1,) * len(self._event_shape))
            gradient = gradient + torch.where(pull == 0, 0, pull * (gradient - slope))
        return energy, gradient

    def _evaluate(self, part: Energy, x: Tensor) -> Tensor:
        """The support of the wanted part is that of the whole; others may have another one."""
        return evaluation.inner(part, x) if part is self.wanted else evaluation.masked(part, x)

    def _differentiate(self, part: Energy, x: Tensor) -> tuple[Tensor, Tensor]:
        if part is self.wanted:
            return evaluation.inner_with_gradient(part, x)
        return evaluation.masked_with_gradient(part, x)

    @cached_property
    def _groups(self) -> tuple[evaluation.Group, ...]:
        return evaluation.sharing(self.parts)


def contrasted(wanted: Tensor, unwanted: Tensor, strength: float) -> tuple[Tensor, Tensor]:
    """E_a + s·softplus(E_a - E_b), and its slope in E_a less 1, s·sigmoid(E_a - E_b). The second
    term is 0 where it decides nothing: p_a = 0, strength 0, or both densities infinite. No inf -
    inf arises."""
    void = (wanted == math.inf) | ((wanted == -math.inf) & (unwanted == -math.inf))
    if strength == 0:
        void = torch.ones_like(void)
    gap = torch.where(void, 0, wanted) - torch.where(void, 0, unwanted)
    energy = wanted + torch.where(void, 0, strength * softplus(gap, threshold=40))
    return energy, torch.where(void, 0, strength * gap.sigmoid())


def contrast(a: Energy, b: Energy, strength: float = 1.0) -> Energy:
    """a but not b: E_a + strength·softplus(E_a - E_b), strength >= 0; `a - b` is strength 1."""
    a, b = energies_of([a, b], "contrast")
    one_measure([a, b], "-")
    is_number = isinstance(strength, int | float) and not isinstance(strength, bool)
    if not is_number or not 0 <= strength < math.inf:
        raise ValueError(f"the strength of a contrast is a finite number >= 0, got {strength!r}")
    if isinstance(a, Contrast) and a.name is None:
        return Contrast(a.wanted, [*a.parts[1:], b], [*a.strengths, float(strength)])
    return Contrast(a, [b], [float(strength)])


BUILDERS["-"] = lambda a, b: contrast(a, right_side(b, a, "-"))
