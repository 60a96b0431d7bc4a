"""Normal densities: diagonal or with a full covariance."""

from __future__ import annotations

import math
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.distributions import constraints

from experts.families import parameters as param
from experts.families.base import ExponentialFamily, Natural, Tensors
from poe.registry import register
from poe.spaces.sites import vectors


@register("normal")
class Normal(ExponentialFamily):
    """N(loc, scale²) coordinate by coordinate, or N(loc, covariance) over the flattened event.

    Energy: ½ Σ((x - loc)/scale)² + Σ log scale + n/2 log 2π; with L Lᵀ = covariance, ½ |L⁻¹(x -
        loc)|² + log|L| + n/2 log 2π.

    Arguments:
        loc: mean (units of x), of the event's shape or broadcast to it.
        scale: standard deviations (units of x).
        covariance: (n, n), in units of x squared; its Cholesky factor `scale_tril` is what is
            stored and learned.

    >>> Normal(torch.zeros(2), 1.0).sample(3).shape
    torch.Size([3, 2])
    """

    scale: Tensor
    loc: Tensor
    scale_tril: Tensor

    def __init__(
        self,
        loc: Any = 0.0,
        scale: Any = None,
        *,
        covariance: Any = None,
        scale_tril: Any = None,
        learnable: bool = False,
        name: str | None = None,
    ) -> None:
        given = [value is not None for value in (scale, covariance, scale_tril)]
        if sum(given) != 1:
            raise TypeError(
                "a Normal takes one of scale=, covariance= and scale_tril=: Normal(loc, scale) is "
                "the diagonal one"
            )
        if scale is not None:
            values = param.parameters(loc=loc, scale=scale)
            meaning = "a standard deviation must be positive"
            param.require_positive("scale", values["scale"], meaning)
            shape = param.common_shape(values)
        else:
            if isinstance(covariance, nn.Parameter):
                raise TypeError(
                    "a covariance is learned through its Cholesky factor: "
                    "scale_tril=nn.Parameter(L), or learnable=True"
                )
            square = covariance if scale_tril is None else scale_tril
            values = param.tensors(loc=loc, scale_tril=square)
            if scale_tril is None:
                values["scale_tril"] = param.cholesky_of(values["scale_tril"])
            shape = param.fit_covariance(values)
        super().__init__(
            param.expanded(values, shape),
            support=constraints.real,
            event_shape=shape,
            learnable=learnable,
            name=name,
        )

    @property
    def full(self) -> bool:
        """Whether the coordinates are correlated through a full covariance."""
        return "scale_tril" in self._keys

    @property
    def covariance(self) -> Tensor:
        """Covariance of the flattened event, (n, n), in units of x squared."""
        if self.full:
            return self.scale_tril.tril() @ self.scale_tril.tril().mT
        return self.scale.expand(self.event_shape).flatten().square().diag()

    def moments(self) -> tuple[Tensor, Tensor]:
        """Mean (n) and covariance (n, n) of the flattened event."""
        return self.loc.expand(self.event_shape).flatten(), self.covariance

    def log_prob(self, x: Tensor) -> Tensor:  # (*batch, *event) -> (*batch)
        batch = x.shape[: x.ndim - len(self.event_shape)]
        return -self._from_residual(self._whiten(x)).reshape(batch)

    def _value_and_grad(self, x: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            z = self._whiten(x)
            if not self.full:
                return self._from_residual(z), z / self.scale
            pull = torch.linalg.solve_triangular(self.scale_tril.to(z.dtype).mT, z.mT, upper=True)
            batch = x.shape[: x.ndim - len(self.event_shape)]
            return self._from_residual(z).reshape(batch), pull.mT.reshape(x.shape)

    def _whiten(self, x: Tensor) -> Tensor:
        """(x - loc)/scale, (*batch, *event); L⁻¹(x - loc), (batch, n), where the covariance is
        full."""
        if not self.full:
            return (x - self.loc) / self.scale
        batch = x.shape[: x.ndim - len(self.event_shape)]
        residual = (x - self.loc).reshape(batch.numel(), self.event_shape.numel())
        tril = self.scale_tril.to(residual.dtype)
        return torch.linalg.solve_triangular(tril, residual.mT, upper=False).mT

    def _from_residual(self, z: Tensor) -> Tensor:
        half_log_2pi = 0.5 * math.log(2 * math.pi) * self.event_shape.numel()
        if not self.full:
            log_scale = self.scale.log().expand(self.event_shape).sum()
            return 0.5 * self._sum(z.square()) + (log_scale + half_log_2pi)
        return 0.5 * z.square().sum(-1) + (self.scale_tril.diagonal().log().sum() + half_log_2pi)

    @property
    def natural(self) -> Natural:
        half_log_2pi = 0.5 * math.log(2 * math.pi) * self.event_shape.numel()
        if not self.full:
            loc, precision = self.exact("loc"), self.exact("scale") ** -2
            partition = (0.5 * loc.square() * precision - 0.5 * precision.log()).sum()
            return Natural(
                (precision * loc, precision),
                lambda x: (x.double(), -0.5 * x.double().square()),
                partition + half_log_2pi,
                self._no_base,
            )
        loc, tril = self.exact("loc").flatten(), self.scale_tril.detach().double().tril()
        precision = torch.cholesky_inverse(tril)
        z = torch.linalg.solve_triangular(tril, loc.unsqueeze(-1), upper=False)
        partition = 0.5 * z.square().sum() + tril.diagonal().log().sum() + half_log_2pi
        return Natural(
            (precision @ loc, precision), self._square_statistics, partition, self._no_base
        )

    def _square_statistics(self, x: Tensor) -> tuple[Tensor, Tensor]:
        flat = vectors(x.double(), len(self.event_shape))
        return flat, -0.5 * flat.unsqueeze(-1) * flat.unsqueeze(-2)

    @classmethod
    def from_natural(cls, parameters: Tensors, rounding: Tensors | None = None) -> Self | None:
        linear, precision = parameters
        slack = torch.zeros_like(precision) if rounding is None else rounding[1]
        if precision.shape == linear.shape:
            clear = param.in_domain("a Normal", [precision], [slack])
            return cls(linear / precision, precision.rsqrt()) if clear else None
        eigenvalues = torch.linalg.eigvalsh(precision)
        error = param.ROUNDING * len(eigenvalues) * eigenvalues.abs().max()
        slack = (error + slack.abs().sum(-1).max()).expand_as(eigenvalues)
        if not param.in_domain("a Normal", [eigenvalues], [slack]):
            return None
        factor = torch.linalg.cholesky(precision)
        covariance = torch.cholesky_inverse(factor)
        mean = torch.cholesky_solve(linear.unsqueeze(-1), factor).squeeze(-1)
        return cls(mean, covariance=(covariance + covariance.mT) / 2)

    def _draw(self, shape: tuple[int, ...], generator: torch.Generator | None) -> Tensor:
        size = (*shape, *self.event_shape)
        noise = torch.randn(size, dtype=torch.float64, device=self.device, generator=generator)
        if not self.full:
            return self.exact("loc") + self.exact("scale") * noise
        flat = noise.reshape(*shape, self.event_shape.numel()) @ self.scale_tril.double().tril().mT
        return self.exact("loc") + flat.reshape(noise.shape)

    @classmethod
    def _blank(cls, key: str, shape: tuple[int, ...]) -> Tensor:
        return torch.eye(*shape) if key == "scale_tril" else super()._blank(key, shape)

    def about(self, origin: Tensor, *, full: bool) -> Normal:
        """This density of x - origin, in float64; with a full covariance where asked for."""
        loc = self.exact("loc") - origin
        if self.full:
            return Normal(loc, scale_tril=self.scale_tril.detach().double())
        scale = self.exact("scale")
        return Normal(loc, scale_tril=scale.flatten().diag()) if full else Normal(loc, scale)
