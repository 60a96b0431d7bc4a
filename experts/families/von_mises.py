"""Von Mises densities over angles."""

from __future__ import annotations

import math
from typing import Any, Self

import torch
from torch import Tensor
from torch.distributions import constraints

from experts.families import parameters as param
from experts.families.base import ExponentialFamily, Natural, Tensors
from poe.registry import register


@register("von-mises")
class VonMises(ExponentialFamily):
    """Energy log(2π I₀(κ)) - κ cos(x - loc) on one period, [-π, π] radians; κ >= 0 is the
    concentration.

    Drawn by rejection from a wrapped Cauchy (Best & Fisher 1979).
    """

    loc: Tensor
    concentration: Tensor

    def __init__(
        self,
        loc: Any = 0.0,
        concentration: Any = 1.0,
        *,
        learnable: bool = False,
        name: str | None = None,
    ) -> None:
        values = param.parameters(loc=loc, concentration=concentration)
        if bool((values["concentration"] < 0).any()):
            raise ValueError(
                f"concentration = {param.first_bad(values['concentration'], lambda v: v < 0)}: "
                "VonMises(loc, concentration) takes a concentration of at least 0"
            )
        period = constraints.interval(-math.pi, math.pi)
        super().__init__(values, support=period, learnable=learnable, name=name)

    def log_prob(self, x: Tensor) -> Tensor:  # (*batch, *event) -> (*batch)
        kappa = self.concentration
        # κ(cos - 1) keeps its digits where κ is large: i0e(κ) = e^-κ I₀(κ)
        closeness = -2 * ((x - self.loc) / 2).sin().square()
        return self._sum(kappa * closeness - torch.special.i0e(kappa).log() - math.log(2 * math.pi))

    @property
    def natural(self) -> Natural:
        loc, kappa = self.exact("loc"), self.exact("concentration")
        partition = (kappa + torch.special.i0e(kappa).log() + math.log(2 * math.pi)).sum()
        return Natural(
            (kappa * loc.cos(), kappa * loc.sin()),
            lambda x: (x.double().cos(), x.double().sin()),
            partition,
            self._no_base,
        )

    @classmethod
    def from_natural(cls, parameters: Tensors, rounding: Tensors | None = None) -> Self | None:
        cosine, sine = parameters
        return cls(torch.atan2(sine, cosine), torch.hypot(cosine, sine))

    def _draw(self, shape: tuple[int, ...], generator: torch.Generator | None) -> Tensor:
        kappa = self.exact("concentration").expand((*shape, *self.event_shape))
        angle = param.von_mises_draws(kappa.flatten(), generator).reshape(kappa.shape)
        wrapped = torch.remainder(angle + self.exact("loc") + math.pi, 2 * math.pi) - math.pi
        return wrapped.clamp(-math.pi, math.pi)
