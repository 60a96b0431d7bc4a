"""Mixtures of normals and Student-t densities of several sizes around common centres: what a search
for modes proposes, and refits to weighed draws.

    q(x) = Σ_k Σ_j w_kj t_{ν_j}(x; μ_k, c_j² L_k L_kᵀ),    t_∞ the normal,

    log t_ν(x; μ, c² L Lᵀ) = log Γ((ν + d)/2) - log Γ(ν/2) - d/2 log(ν π) - log det L - d log c
                             - (ν + d)/2 log(1 + |L⁻¹(x - μ)|² / (ν c²)).

References: Cappé, Douc, Guillin, Marin and Robert 2008, Statistics and Computing 18 (mixtures
refitted to weighed draws); Hesterberg 1995, Technometrics 37 (defensive mixtures).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from poe.algebra.energy import Density
from poe.diagnostics.weights import weight_ess


class Profile(NamedTuple):
    """The size of a component in units of its shape, its degrees of freedom, and its least share of
    all draws: wide components are kept, whatever weighed draws say."""

    scale: float
    freedom: float
    least: float = 0.0


PROFILES = (
    Profile(1.0, math.inf),
    Profile(1.1, 8.0, 0.02),
    Profile(1.6, 4.0, 0.03),
    Profile(3.0, 4.0, 0.02),
    Profile(8.0, 3.0),
    Profile(25.0, 3.0),
    Profile(100.0, 3.0),
    Profile(1000.0, 3.0),
)


class Tails(NamedTuple):
    """A product of Student-t densities of single coordinates, the share of all draws that it has:
    what bounds the weights of a target whose coordinates have heavy tails of their own, which no
    multivariate t does."""

    mean: Tensor  # (d)
    scale: Tensor  # (d)
    freedom: float
    share: float = 0.2

    def log_prob(self, x: Tensor) -> Tensor:  # (n, d) -> (n)
        """Σ_i log t_ν(x_i; μ_i, s_i²)."""
        squares = ((x - self.mean) / self.scale).square()
        profile = Profile(1.0, self.freedom)
        return (_radial(squares, 1, profile) - self.scale.log()).sum(1)


class Scales(Density):
    """The mixture, over an event; its own parameters are in double precision.

    Arguments:
        log_weights: (shapes, profiles), normalised here.
        means: (shapes, d).
        roots: (shapes, d, d), lower triangular factors of the covariances of size 1.
    """

    log_weights: Tensor
    means: Tensor
    roots: Tensor
    inverse: Tensor

    def __init__(
        self,
        log_weights: Tensor,
        means: Tensor,
        roots: Tensor,
        event_shape: torch.Size,
        like: Tensor,
        profiles: tuple[Profile, ...] = PROFILES,
        tails: Tails | None = None,
    ) -> None:
        super().__init__(event_shape)
        self.profiles, self.tails, self._dtype = profiles, tails, like.dtype
        flat = log_weights.double().flatten()
        self.register_buffer("log_weights", flat.log_softmax(0).reshape(log_weights.shape))
        self.register_buffer("means", means.double())
        self.register_buffer("roots", roots.double())
        eye = torch.eye(roots.shape[-1]).to(self.roots)
        inverse = torch.linalg.solve_triangular(self.roots, eye.expand_as(self.roots), upper=False)
        self.register_buffer("inverse", inverse)

    @property
    def bounded(self) -> bool:
        return True

    @property
    def d(self) -> int:
        """Numbers of a flat event."""
        return self.means.shape[1]

    def distances(self, x: Tensor) -> Tensor:  # (n, d) -> (n, shapes)
        """|L_k⁻¹(x - μ_k)|²."""
        found = [
            ((x - mean) @ root.T).square().sum(1)
            for mean, root in zip(self.means, self.inverse, strict=True)
        ]
        return torch.stack(found, 1)

    def components(self, distances: Tensor) -> Tensor:
        # (n, shapes) -> (n, shapes, profiles)
        """log t_ν_j of each, without its weight."""
        volume = self.roots.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        found = [_radial(distances, self.d, profile) for profile in self.profiles]
        return torch.stack(found, -1) - volume.unsqueeze(-1)

    def logs(self, x: Tensor, distances: Tensor) -> tuple[Tensor, Tensor]:
        # (n, d), (n, shapes) -> (n, shapes, profiles), (n)
        """log of each weighed component, and of the density."""
        each = self.components(distances) + self.log_weights
        total = each.flatten(1).logsumexp(1)
        if self.tails is None:
            return each, total
        share = self.tails.share
        own = self.tails.log_prob(x) + math.log(share)
        return each + math.log1p(-share), torch.logaddexp(total + math.log1p(-share), own)

    def log_prob(self, x: Tensor) -> Tensor:  # (*batch, *event) -> (*batch)
        batch = x.shape[: x.ndim - len(self.event_shape)]
        flat = x.reshape(-1, self.d).double()
        return self.logs(flat, self.distances(flat))[1].reshape(batch)

    def sample(
        self, n: int | tuple[int, ...], *, generator: torch.Generator | None = None
    ) -> Tensor:
        shape = (n,) if isinstance(n, int) else tuple(n)
        total, count = math.prod(shape), len(self.profiles)
        weights = self.log_weights.flatten().exp()
        which = torch.multinomial(weights, max(total, 1), True, generator=generator)[:total]
        z = self._normal(total, self.d, generator=generator)
        freedom = z.new_tensor([profile.freedom for profile in self.profiles])[which % count]
        size = z.new_tensor([profile.scale for profile in self.profiles])[which % count]
        z = z * (size * _inverse_root_chi(freedom, generator)).unsqueeze(1)
        shapes, x = which // count, torch.empty_like(z)
        for k in shapes.unique().tolist():
            here = shapes == k
            x[here] = z[here] @ self.roots[k].T + self.means[k]
        if self.tails is not None:
            uniform = torch.rand(total, generator=generator, dtype=z.dtype, device=z.device)
            own = self._normal(total, self.d, generator=generator)
            freedom = torch.full_like(own, self.tails.freedom)
            own = self.tails.mean + self.tails.scale * own * _inverse_root_chi(freedom, generator)
            x = torch.where((uniform < self.tails.share).unsqueeze(1), own, x)
        return x.reshape(*shape, *self.event_shape).to(self._dtype)

    def _normal(self, *shape: int, generator: torch.Generator | None) -> Tensor:
        options = {"dtype": torch.float64, "device": self.means.device}
        return torch.randn(*shape, generator=generator, **options)

    def with_profiles(self, weights: Tensor, profiles: tuple[Profile, ...]) -> Scales:
        # (shapes, profiles)
        """The same shapes with other profiles and weights."""
        event, like = self.event_shape, self._like
        return Scales(weights.log(), self.means, self.roots, event, like, profiles, self.tails)

    @property
    def _like(self) -> Tensor:
        return torch.empty(0, dtype=self._dtype, device=self.means.device)

    def refitted(self, x: Tensor, log_weights: Tensor) -> Scales:
        # (n, d), (n) -> the mixture
        """One step of expectation maximisation on weighed draws: weights of all components, and the
        centre and covariance of each shape. A shape moves as far as its effective draws n allow:
        its covariance is n / (n + d (d + 1) / 2) that of its draws, else its own, times a common
        factor."""
        w = (log_weights - log_weights.logsumexp(0)).exp()
        distances = self.distances(x)
        each, density = self.logs(x, distances)
        share = (each - density[:, None, None]).exp() * w[:, None, None]
        total = share.sum(0)
        means, roots = self.means.clone(), self.roots.clone()
        factors = torch.stack([_pull(distances, self.d, p) for p in self.profiles], -1)
        for k in range(len(means)):
            own = share[:, k].sum(1)
            size = float(weight_ess(own.clamp(min=1e-300).log()))
            if size < 4:
                continue
            pull = (share[:, k] * factors[:, k]).sum(1)
            keep = size / (size + 10)
            mean = (pull @ x) / pull.sum()
            means[k] = keep * mean + (1 - keep) * self.means[k]
            z = (x - mean) @ self.inverse[k].T
            scatter = (z * (pull / own.sum()).unsqueeze(1)).T @ z
            common = float(scatter.diagonal().mean())
            part = size / (size + self.d * (self.d + 1) / 2)
            eye = torch.eye(self.d).to(z)
            mixed = part * scatter + (1 - part) * common * eye
            mixed = keep * mixed + (1 - keep) * eye
            factor, failed = torch.linalg.cholesky_ex(mixed)
            if not failed:
                roots[k] = self.roots[k] @ factor
        weights = _kept(total, self.profiles).log()
        return Scales(
            weights, means, roots, self.event_shape, self._like, self.profiles, self.tails
        )

    def joined(self, means: Tensor, roots: Tensor, log_weights: Tensor) -> Scales:
        """With more shapes, of these total log weights (k), their draws spread over the profiles as
        those of `starting_weights`."""
        new = log_weights.unsqueeze(1) + starting_weights(self.profiles).log().to(log_weights)
        return Scales(
            torch.cat([self.log_weights, new.to(self.log_weights)]),
            torch.cat([self.means, means.to(self.means)]),
            torch.cat([self.roots, roots.to(self.roots)]),
            self.event_shape,
            self._like,
            self.profiles,
            self.tails,
        )


def starting_weights(profiles: tuple[Profile, ...] = PROFILES) -> Tensor:  # -> (profiles)
    """Half of the draws of the size of the shape, the others spread over all sizes."""
    weights = torch.full((len(profiles),), 0.3 / max(1, len(profiles) - 3), dtype=torch.float64)
    weights[:3] = torch.tensor([0.5, 0.15, 0.05], dtype=torch.float64)[: len(profiles)]
    return weights / weights.sum()


def _inverse_root_chi(freedom: Tensor, generator: torch.Generator | None) -> Tensor:
    """sqrt(ν / χ²_ν) for each, 1 where ν is infinite."""
    finite = freedom.isfinite()
    known = torch.where(finite, freedom, 1.0)
    chi = 2 * torch._standard_gamma(known / 2, generator=generator)
    return torch.where(finite, (known / chi).sqrt(), 1.0)


def _kept(weights: Tensor, profiles: tuple[Profile, ...]) -> Tensor:  # (shapes, profiles)
    """Weights that leave each profile its least share, spread over shapes as they are."""
    of_shapes = weights.sum(1, keepdim=True) / weights.sum()
    least = weights.new_tensor([profile.least for profile in profiles])
    floor = of_shapes.clamp(min=0.01 / len(weights)) * least
    return (weights / weights.sum()) * (1 - least.sum()) + floor + 1e-12


def _radial(distances: Tensor, d: int, profile: Profile) -> Tensor:
    """log t_ν as a function of |L⁻¹(x - μ)|², without log det L."""
    scale, freedom, _ = profile
    if math.isinf(freedom):
        return -d / 2 * math.log(2 * math.pi) - d * math.log(scale) - distances / (2 * scale**2)
    top = math.lgamma((freedom + d) / 2) - math.lgamma(freedom / 2)
    constant = top - d / 2 * math.log(freedom * math.pi) - d * math.log(scale)
    return constant - (freedom + d) / 2 * torch.log1p(distances / (freedom * scale**2))


def _pull(distances: Tensor, d: int, profile: Profile) -> Tensor:
    """(ν + d) / (ν + |L⁻¹(x - μ)|² / c²) / c²: the precision of a draw of a Student-t as a normal
    of its own size, in units of the shape."""
    scale, freedom, _ = profile
    if math.isinf(freedom):
        return torch.full_like(distances, 1 / scale**2)
    return (freedom + d) / (freedom + distances / scale**2) / scale**2
