"""The arithmetic of products: one factor with its power, and sums of energies and of powers that
stay right at infinity and under rounding."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from poe.algebra.energy import Energy


class Term(NamedTuple):
    """One factor of a product: p ** (coefficient · parameter)."""

    energy: Energy
    coefficient: float
    parameter: nn.Parameter | None = None

    @property
    def power(self) -> float:
        return (
            self.coefficient if self.parameter is None else self.coefficient * self.parameter.item()
        )

    def weigh(self, energy: Tensor) -> Tensor:
        """power · E, and +inf where E is, whatever the sign."""
        if self.parameter is None and self.coefficient == 1:
            return energy
        if self.parameter is None and self.coefficient > 0:
            return energy * self.coefficient
        void = energy == math.inf  # no inf meets a power, whose gradient it would spoil
        power = (
            self.coefficient
            if self.parameter is None
            else self.coefficient * self.parameter.reshape(())
        )
        return torch.where(void, math.inf, torch.where(void, 0, energy) * power)

    def scaled(self, factor: float) -> Term:
        coefficient = self.coefficient * factor
        if not math.isfinite(coefficient) or (coefficient == 0 and self.coefficient and factor):
            raise ValueError(
                f"(({self.energy}) ** {self.coefficient:g}) ** {factor:g}: these powers multiply "
                "to more, or less, than a number holds"
            )
        return self._replace(coefficient=coefficient)


def add(a: Tensor, b: Tensor) -> Tensor:
    """a + b of energies, where +inf wins over -inf: a density that is 0 stays 0, whatever
    multiplies it."""
    clash = ((a == math.inf) & (b == -math.inf)) | ((a == -math.inf) & (b == math.inf))
    return torch.where(clash, math.inf, a + b)


def summed(coefficients: Sequence[float]) -> float:
    """The sum, and the round number that was meant where rounding alone separates them: 0.1 + 0.2 -
    0.3 is 0."""
    try:
        total = math.fsum(coefficients)
    except OverflowError as error:
        raise ValueError(
            f"powers {', '.join(f'{c:g}' for c in coefficients)} of one energy add to more than a "
            "number holds"
        ) from error
    if len(coefficients) == 1 or not math.isfinite(total):
        return total
    slack = 4 * len(coefficients) * math.ulp(math.fsum(map(abs, coefficients)))
    meant = (float(round(total)), float(f"{total:.12g}"))
    return next((value for value in meant if abs(value - total) <= slack), total)
