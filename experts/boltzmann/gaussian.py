"""Restricted Boltzmann machines with Gaussian visible units."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributions import constraints
from torch.nn.functional import linear, softplus

from experts.boltzmann.machine import Machine
from experts.boltzmann.restricted import Restricted
from experts.boltzmann.sums import MAX_UNITS, quadratic_log_z
from experts.families import parameters as param
from poe.registry import register


@register("gaussian-rbm")
class GaussianRBM(Restricted):
    """A restricted Boltzmann machine over real visible units: E(v) = Σ_i (v_i - b_i)²/(2σ_i²) - Σ_j
    softplus(c_j + (vᵀW)_j).

    A mixture of 2^H Gaussians with one covariance: v given h is N(b + σ² W h, σ²).

    Arguments:
        weights: W, (n, H), in nats per unit of v.
        loc, scale: b and σ (n), in units of v, or broadcast to it.
        hidden_bias: c (H), or broadcast to it.
        event_shape, learnable: as of `RBM`.

    Reference: Welling, Rosen-Zvi and Hinton 2005, Exponential family harmoniums.
    """

    proper: bool | None = True  # softplus grows linearly, the Gaussian decays faster
    bounded: bool | None = True
    loc: Tensor
    scale: Tensor

    def __init__(
        self,
        weights: Any,
        loc: Any = 0.0,
        scale: Any = 1.0,
        hidden_bias: Any = 0.0,
        *,
        event_shape: Sequence[int] | None = None,
        learnable: bool = False,
        name: str | None = None,
    ) -> None:
        super().__init__(
            weights,
            hidden_bias,
            loc=loc,
            scale=scale,
            event_shape=event_shape,
            support=constraints.real,
            learnable=learnable,
            name=name,
        )
        param.require_positive("scale", self.scale, "a standard deviation must be positive")

    def forward(self, x: Tensor) -> Tensor:  # (*batch, *event) -> (*batch)
        residual = (self._flat(x) - self.loc) / self.scale
        return 0.5 * residual.square().sum(-1) - softplus(self._inputs(x), threshold=40).sum(-1)

    def sample_block(self, x: Tensor, block: int, uniforms: Tensor) -> Tensor:
        # (*batch, *event), (*batch, H + n) -> (*batch, *event)
        """The visible units redrawn by way of the hidden ones: h given x, then v = b + σ² W h + σ
        Φ⁻¹(u). It leaves exp(-E) invariant. A uniform u stands for the middle of its interval,
        2^-24 wide in float32: |Φ⁻¹(u)| is at most 5.4 there."""
        first, second = self._split(uniforms)
        with torch.no_grad():
            mean = self.loc + self.scale.square() * linear(self.draw_hidden(x, first), self.weights)
            noise = torch.special.ndtri(second.double() + torch.finfo(second.dtype).eps / 4)
            return (mean + self.scale * noise.to(mean.dtype)).reshape(x.shape).to(x.dtype)

    def _sum(self, patient: bool) -> float | None:
        n, hidden = self.weights.shape
        if hidden > MAX_UNITS:
            return None
        weights, variance = self._exact("weights"), self._exact("scale").square().expand(n)
        inputs = self._exact("hidden_bias").expand(hidden) + self._exact("loc").expand(n) @ weights
        square = weights.T @ (variance.unsqueeze(-1) * weights)
        return quadratic_log_z(inputs, square) + 0.5 * float((2 * math.pi * variance).log().sum())

    @classmethod
    def _rebuilt(cls, values: dict[str, Tensor], structure: dict[str, Any]) -> Machine:
        with torch.no_grad():
            values["scale"].fill_(1)
        return super()._rebuilt(values, structure)
