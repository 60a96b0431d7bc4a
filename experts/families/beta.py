"""Beta densities over [0, 1] and Dirichlet densities over the simplex."""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import Tensor
from torch.distributions import constraints

from experts.families import parameters as param
from experts.families.base import ExponentialFamily, Natural, Tensors, sum_event
from poe.registry import register


@register("beta")
class Beta(ExponentialFamily):
    """Energy -(a - 1) log x - (b - 1) log(1 - x) + log B(a, b) on [0, 1], coordinate by
    coordinate."""

    a: Tensor
    b: Tensor

    def __init__(
        self, a: Any = 1.0, b: Any = 1.0, *, learnable: bool = False, name: str | None = None
    ) -> None:
        values = param.positive("Beta(a, b) takes positive numbers", a=a, b=b)
        super().__init__(values, support=constraints.unit_interval, learnable=learnable, name=name)

    def log_prob(self, x: Tensor) -> Tensor:  # (*batch, *event) -> (*batch)
        log_beta = self.a.lgamma() + self.b.lgamma() - (self.a + self.b).lgamma()
        logs = param.times_log(self.a - 1, x) + param.times_log(self.b - 1, 1 - x)
        return self._sum(logs - log_beta)

    @property
    def bounded(self) -> bool | None:
        return bool((self.a >= 1).all() and (self.b >= 1).all())

    @property
    def flat(self) -> bool | None:
        return bool((self.a == 1).all() and (self.b == 1).all())

    @property
    def natural(self) -> Natural:
        a, b = self.exact("a"), self.exact("b")
        partition = (a.lgamma() + b.lgamma() - (a + b).lgamma()).sum()
        return Natural(
            (a - 1, b - 1),
            lambda x: (x.double().log(), (-x.double()).log1p()),
            partition,
            self._no_base,
        )

    @classmethod
    def from_natural(cls, parameters: Tensors, rounding: Tensors | None = None) -> Self | None:
        a, b = parameters[0] + 1, parameters[1] + 1
        return cls(a, b) if param.in_domain("a Beta", [a, b], rounding) else None

    def _draw(self, shape: tuple[int, ...], generator: torch.Generator | None) -> Tensor:
        logs = [param.log_gamma_draws(self.exact(key), shape, generator) for key in ("a", "b")]
        limits = torch.finfo(self.dtype)
        return (logs[0] - logs[1]).sigmoid().clamp(limits.tiny, 1 - limits.eps)


@register("dirichlet")
class Dirichlet(ExponentialFamily):
    """Energy Σ log Γ(aᵢ) - log Γ(Σ aᵢ) - Σ (aᵢ - 1) log xᵢ on the simplex of the last axis, a the
    concentration.

    The measure is Lebesgue's on the first K - 1 coordinates. Earlier axes are independent.
    """

    concentration: Tensor

    def __init__(
        self, concentration: Any, *, learnable: bool = False, name: str | None = None
    ) -> None:
        meaning = "Dirichlet(concentration) takes positive numbers"
        values = param.positive(meaning, concentration=concentration)
        shape = param.common_shape(values)
        if not shape or shape[-1] < 2:
            raise ValueError(
                "a Dirichlet needs two or more categories on its last axis, its concentration has "
                f"shape {tuple(shape)}"
            )
        super().__init__(values, support=constraints.simplex, learnable=learnable, name=name)

    def log_prob(self, x: Tensor) -> Tensor:  # (*batch, *event) -> (*batch)
        a = self.concentration
        rows = param.times_log(a - 1, x).sum(-1) + a.sum(-1).lgamma() - a.lgamma().sum(-1)
        return sum_event(rows, len(self.event_shape) - 1)

    @property
    def bounded(self) -> bool | None:
        return bool((self.concentration >= 1).all())

    @property
    def flat(self) -> bool | None:
        return bool((self.concentration == 1).all())

    @property
    def natural(self) -> Natural:
        a = self.exact("concentration")
        partition = (a.lgamma().sum(-1) - a.sum(-1).lgamma()).sum()
        return Natural((a - 1,), lambda x: (x.double().log(),), partition, self._no_base)

    @classmethod
    def from_natural(cls, parameters: Tensors, rounding: Tensors | None = None) -> Self | None:
        concentration = parameters[0] + 1
        inside = param.in_domain("a Dirichlet", [concentration], rounding)
        return cls(concentration) if inside else None

    def _draw(self, shape: tuple[int, ...], generator: torch.Generator | None) -> Tensor:
        logs = param.log_gamma_draws(self.exact("concentration"), shape, generator)
        return logs.softmax(-1).clamp_min(torch.finfo(self.dtype).tiny)
