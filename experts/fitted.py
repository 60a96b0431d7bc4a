"""Densities for samples: a normalizing flow in whitened, unconstrained coordinates.
`poe.fit_density` trains them.

    u = T⁻¹(x),   v = L⁻¹ (u - m),   log p(x) = log q(v) - log det L + log|det du/dx|

T maps R^n onto the stated box: low + e^u, high - e^u or low + (high - low)/(1 + e^-u) where ends
are finite. m and L are the mean and the Cholesky factor of the covariance of u over the samples; q
is a flow of splines, in one dimension a mixture of Gaussians.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Generator, Tensor

from experts.flow import Flow
from experts.mixture_made import MixtureMADE
from poe.algebra import support as sets
from poe.algebra.capabilities import Transport
from poe.algebra.energy import Density
from poe.registry import register
from poe.spaces import reals

COMPONENTS = 8  # of the mixture in one dimension
DEFAULTS = {"kind": "rq-coupling", "layers": 5, "hidden": 64}


@register("fitted")
class Fitted(Density):
    """A density over a box, of a flow in whitened, unconstrained coordinates.

    Arguments:
        event_shape: shape of one x.
        low, high: ends of the box, nested lists of the event's shape or numbers; None for no end,
            inside the lists too.
        architecture: of the flow, as `experts.Flow` takes it; by default five spline couplings of
            width 64.
    """

    mean: Tensor
    root: Tensor

    def __init__(
        self,
        event_shape: Sequence[int],
        *,
        low: Any = None,
        high: Any = None,
        name: str | None = None,
        **architecture: Any,
    ) -> None:
        shape = torch.Size(event_shape)
        ends = _ends(low, -math.inf, shape), _ends(high, math.inf, shape)
        super().__init__(shape, support=sets.box(*ends), name=name)
        n = shape.numel()
        self._config = {"event_shape": list(shape), "low": low, "high": high, **architecture}
        if n == 1:
            self.base: Any = MixtureMADE((1,), components=COMPONENTS, base=True)
        else:
            self.base = Flow(event_shape=(n,), **{**DEFAULTS, **architecture})
        self.register_buffer("mean", torch.zeros(n))
        self.register_buffer("root", torch.eye(n))
        self._box: Any = reals.from_reals(self.support)
        self.fit: Any = None  # how well it fits its samples, from poe.fit_density; not in files

    def whiten(self, x: Tensor, weights: Tensor | None = None) -> None:  # (n, *event), (n)
        """Sets m and L to the mean and the Cholesky factor of the covariance of u over weighted
        points."""
        u = self.unconstrained(x).double()
        w = torch.ones(len(u), dtype=torch.float64) if weights is None else weights.double()
        w = w / w.sum()
        mean = w @ u
        centred = u - mean
        spread = (w @ centred.square()).sqrt()
        standard = centred / spread  # without units
        correlation = (standard * w.unsqueeze(1)).T @ standard
        correlation = correlation + 1e-12 * torch.eye(len(mean)).to(correlation)
        self.mean.copy_(mean)
        self.root.copy_(spread.unsqueeze(1) * torch.linalg.cholesky(correlation))

    def mix(self, weights: Tensor, means: Tensor, variances: Tensor) -> None:
        """Sets q, in one dimension, to a mixture of at most `COMPONENTS` Gaussians (k each) of v;
        the other components are standard normals of weight 1e-4."""
        unused = COMPONENTS - len(weights)
        weights = torch.cat([weights / weights.sum(), torch.full((unused,), 1e-4).to(weights)])
        means = torch.cat([means, torch.zeros(unused).to(means)])
        variances = torch.cat([variances, torch.ones(unused).to(variances)])
        self.base.fit_base(weights, means.unsqueeze(1), variances[:, None, None])

    def unconstrained(self, x: Tensor) -> Tensor:  # (*batch, *event) -> (*batch, n)
        """u = T⁻¹(x), flattened."""
        return self._vector(self._box.inv(x))

    def log_prob(self, x: Tensor) -> Tensor:  # (*batch, *event) -> (*batch)
        """log p(x) in nats."""
        v, log_det = self.to_base(x)
        return self.base.log_prob(v) + log_det

    @torch.no_grad()
    def sample(self, n: int | tuple[int, ...], *, generator: Generator | None = None) -> Tensor:
        """n independent draws, (n, *event)."""
        return self.from_base(self.base.sample(n, generator=generator))[0]

    def to_noise(self, x: Tensor) -> tuple[Tensor, Tensor]:
        # (*batch, *event) -> (*batch, *event), (*batch)
        """z = T(x) and log|det dz/dx|."""
        v, inner = self.to_base(x)
        z, outer = self.base.to_noise(v)
        return z.reshape(x.shape), inner + outer

    def from_noise(self, z: Tensor) -> tuple[Tensor, Tensor]:
        # (*batch, *event) -> (*batch, *event), (*batch)
        """x of noise z and log|det dx/dz|."""
        v, inner = self.base.from_noise(self._vector(z))
        x, outer = self.from_base(v)
        return x, inner + outer

    def can(self, capability: type) -> bool:
        known = capability is not Transport or isinstance(self.base, Flow)
        return known and super().can(capability)

    def config(self) -> dict[str, Any]:
        return self._config

    def _vector(self, x: Tensor) -> Tensor:
        return x.reshape(*x.shape[: x.ndim - len(self.event_shape)], len(self.mean))

    def to_base(self, x: Tensor) -> tuple[Tensor, Tensor]:
        # (*batch, *event) -> (*batch, n), (*batch)
        """v, the coordinates of q, and log|det dv/dx|."""
        u = self._box.inv(x)
        centred = (self._vector(u) - self.mean).unsqueeze(-1)
        v = torch.linalg.solve_triangular(self.root, centred, upper=False).squeeze(-1)
        return v, -self._log_det(u, x) - self.root.diagonal().log().sum()

    def from_base(self, v: Tensor) -> tuple[Tensor, Tensor]:
        # (*batch, n) -> (*batch, *event), (*batch)
        """x and log|det dx/dv|."""
        u = (v @ self.root.T + self.mean).reshape(*v.shape[:-1], *self.event_shape)
        x = self._box(u)
        return x, self._log_det(u, x) + self.root.diagonal().log().sum()

    def _log_det(self, u: Tensor, x: Tensor) -> Tensor:
        log_det = self._box.log_abs_det_jacobian(u, x)
        batch = u.ndim - len(self.event_shape)
        return log_det if log_det.ndim == batch else log_det.flatten(batch).sum(-1)


def _ends(values: Any, end: float, shape: torch.Size) -> Tensor:
    """A tensor of ends, infinite where an end is None."""

    def filled(value: Any) -> Any:
        if isinstance(value, list | tuple):
            return [filled(v) for v in value]
        return end if value is None else float(value)

    return torch.as_tensor(filled(values), dtype=torch.float64).expand(shape).clone()
