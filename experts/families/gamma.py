"""Exponential and gamma densities over [0, ∞)."""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import Tensor
from torch.distributions import constraints

from experts.families import parameters as param
from experts.families.base import ExponentialFamily, Natural, Tensors
from poe.registry import register


@register("exponential")
class Exponential(ExponentialFamily):
    """Energy rate·x - log rate on [0, ∞), coordinate by coordinate; rate in 1/units of x."""

    rate: Tensor

    def __init__(
        self, rate: Any = 1.0, *, learnable: bool = False, name: str | None = None
    ) -> None:
        values = param.positive("Exponential(rate) takes positive numbers", rate=rate)
        super().__init__(values, support=constraints.nonnegative, learnable=learnable, name=name)

    def log_prob(self, x: Tensor) -> Tensor:  # (*batch, *event) -> (*batch)
        return self._sum(self.rate.log() - self.rate * x)

    @property
    def natural(self) -> Natural:
        rate = self.exact("rate")
        return Natural((-rate,), lambda x: (x.double(),), -rate.log().sum(), self._no_base)

    @classmethod
    def from_natural(cls, parameters: Tensors, rounding: Tensors | None = None) -> Self | None:
        rate = -parameters[0]
        return cls(rate) if param.in_domain("an Exponential", [rate], rounding) else None

    def _draw(self, shape: tuple[int, ...], generator: torch.Generator | None) -> Tensor:
        rate = self.exact("rate")
        unit = rate.new_empty((*shape, *self.event_shape)).exponential_(generator=generator)
        return unit / rate


@register("gamma")
class Gamma(ExponentialFamily):
    """Energy rate·x - (a - 1) log x + log Γ(a) - a log rate on [0, ∞), a the concentration, rate in
    1/units of x.
    """

    concentration: Tensor
    rate: Tensor

    def __init__(
        self,
        concentration: Any = 1.0,
        rate: Any = 1.0,
        *,
        learnable: bool = False,
        name: str | None = None,
    ) -> None:
        meaning = "Gamma(concentration, rate) takes positive numbers"
        values = param.positive(meaning, concentration=concentration, rate=rate)
        super().__init__(values, support=constraints.nonnegative, learnable=learnable, name=name)

    def log_prob(self, x: Tensor) -> Tensor:  # (*batch, *event) -> (*batch)
        a = self.concentration
        logs = param.times_log(a - 1, x) - self.rate * x
        return self._sum(logs + a * self.rate.log() - a.lgamma())

    @property
    def bounded(self) -> bool | None:
        return bool((self.concentration >= 1).all())

    @property
    def natural(self) -> Natural:
        a, rate = self.exact("concentration"), self.exact("rate")
        partition = (a.lgamma() - a * rate.log()).sum()
        return Natural(
            (a - 1, -rate), lambda x: (x.double().log(), x.double()), partition, self._no_base
        )

    @classmethod
    def from_natural(cls, parameters: Tensors, rounding: Tensors | None = None) -> Self | None:
        a, rate = parameters[0] + 1, -parameters[1]
        return cls(a, rate) if param.in_domain("a Gamma", [a, rate], rounding) else None

    def _draw(self, shape: tuple[int, ...], generator: torch.Generator | None) -> Tensor:
        unit = param.log_gamma_draws(self.exact("concentration"), shape, generator).exp()
        return (unit / self.exact("rate")).clamp_min(torch.finfo(self.dtype).tiny)
