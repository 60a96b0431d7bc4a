"""A mixture of Gaussians fitted to particles, as a start close to the target."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from poe.algebra.energy import Density

COMPONENTS = (1, 2, 4, 8, 16, 32, 64)  # that are tried
MAX_DIMENSIONS = 40
VARIANCE_INFLATION = 1.3  # of each component, so that weights stay bounded in the tails
# weight of a defensive component with the mean of all particles and four times their covariance
DEFENSIVE_WEIGHT = 0.1


class Gaussians(Density):
    """Σ_k w_k N(μ_k, L_k L_kᵀ) over an event, fitted by `fitted`."""

    log_weights: Tensor
    means: Tensor
    roots: Tensor

    def __init__(
        self, weights: Tensor, means: Tensor, roots: Tensor, event_shape: torch.Size
    ) -> None:
        super().__init__(event_shape)
        self.register_buffer("log_weights", weights.log())
        self.register_buffer("means", means)
        self.register_buffer("roots", roots)

    @property
    def bounded(self) -> bool:
        return True

    def log_prob(self, x: Tensor) -> Tensor:  # (*batch, *event) -> (*batch)
        flat = x.reshape(*x.shape[: x.ndim - len(self.event_shape)], -1)
        return (self.log_weights + _normal(flat, self.means, self.roots)).logsumexp(-1)

    def sample(
        self, n: int | tuple[int, ...], *, generator: torch.Generator | None = None
    ) -> Tensor:
        shape = (n,) if isinstance(n, int) else tuple(n)
        total = math.prod(shape)
        which = torch.multinomial(
            self.log_weights.exp(), max(total, 1), replacement=True, generator=generator
        )[:total]
        noise = torch.randn(
            total,
            self.means.shape[1],
            generator=generator,
            dtype=self.means.dtype,
            device=self.means.device,
        )
        x = self.means[which] + torch.einsum("nij,nj->ni", self.roots[which], noise)
        return x.reshape(*shape, *self.event_shape)

    @classmethod
    def fitted(cls, x: Tensor, generator: torch.Generator) -> Gaussians | None:
        """By expectation maximisation on x (n, *event), with the number of components whose fit to
        one half gives the other the highest density; then inflated, and mixed with a defensive
        component. None above `MAX_DIMENSIONS` dimensions, or for too few points."""
        flat, d = x.flatten(1) if x.ndim > 1 else x.unsqueeze(1), math.prod(x.shape[1:])
        if d > MAX_DIMENSIONS or len(flat) < 20 * (d + 1):
            return None
        flat = flat.double()[torch.randperm(len(flat), generator=generator, device=flat.device)]
        best = _components(flat[::2], flat[1::2], generator)
        weights, means, roots = maximised(flat, best, generator)
        spread, failed = torch.linalg.cholesky_ex(
            flat.T.cov().reshape(d, d) + 1e-12 * torch.eye(d).to(flat)
        )
        if failed:
            return None
        weights = torch.cat(
            [weights * (1 - DEFENSIVE_WEIGHT), weights.new_tensor([DEFENSIVE_WEIGHT])]
        )
        means = torch.cat([means, flat.mean(0, keepdim=True)])
        roots = torch.cat([roots * math.sqrt(VARIANCE_INFLATION), 2 * spread.unsqueeze(0)])
        return cls(weights.to(x), means.to(x), roots.to(x), x.shape[1:])


def _components(train: Tensor, held: Tensor, generator: torch.Generator) -> int:
    """The number of components whose fit to `train` (n, d) gives `held` the highest density."""
    best, top = COMPONENTS[0], -math.inf
    for count in COMPONENTS:
        if len(train) < 5 * count * (train.shape[1] + 1) ** 0.5:
            break
        weights, means, roots = maximised(train, count, generator)
        score = float((weights.log() + _normal(held, means, roots)).logsumexp(-1).mean())
        if score > top:
            best, top = count, score
        elif count >= 4 * best:
            break
    return best


def _normal(x: Tensor, means: Tensor, roots: Tensor) -> Tensor:
    # (*batch, d), (k, d), (k, d, d) -> (*batch, k)
    """log N(x; μ_k, L_k L_kᵀ)."""
    inverse = torch.linalg.solve_triangular(
        roots, torch.eye(roots.shape[-1]).to(roots).expand_as(roots), upper=False
    )
    z = torch.einsum("kij,...j->...ki", inverse, x) - torch.einsum("kij,kj->ki", inverse, means)
    scale = roots.diagonal(dim1=-2, dim2=-1).log().sum(-1) + roots.shape[-1] / 2 * math.log(
        2 * math.pi
    )
    return -0.5 * z.square().sum(-1) - scale


def maximised(
    x: Tensor, count: int, generator: torch.Generator, rounds: int = 60
) -> tuple[Tensor, Tensor, Tensor]:
    """(weights, means, Cholesky factors) after EM from centres chosen far apart (k-means++: each
    next one ∝ squared distance).

    Covariances are shrunk towards their diagonals, with the weight of d + 1 points; components of
    fewer than d + 2 points are dropped.
    """
    n, d = x.shape
    scale = x.std(0).clamp(min=1e-12)
    share = _nearest_centre(x, count, scale, generator)
    floor = torch.diag((scale * 1e-4).square())
    last = -math.inf
    for _ in range(rounds):
        share = share[
            :, share.sum(0) >= min(d + 2, n)
        ]  # smaller ones would shrink onto their points
        share = share / share.sum(1, keepdim=True).clamp(min=1e-300)
        mass = share.sum(0)
        weights = mass / mass.sum()
        means = (share.T @ x) / mass.unsqueeze(1)
        scatter = torch.einsum("nk,ni,nj->kij", share, x, x) - mass[
            :, None, None
        ] * means.unsqueeze(2) * means.unsqueeze(1)
        own = torch.diag_embed(
            (scatter / mass[:, None, None]).diagonal(dim1=-2, dim2=-1).clamp(min=0)
        )
        covariance = (scatter + (d + 1) * own) / (mass + d + 1)[:, None, None] + floor
        roots, failed = torch.linalg.cholesky_ex((covariance + covariance.mT) / 2)
        roots = torch.where(failed[:, None, None] > 0, (own + floor).sqrt(), roots)
        logs = weights.log() + _normal(x, means, roots)
        score = float(logs.logsumexp(-1).mean())
        share = logs.softmax(-1)
        if score - last < 1e-4:
            break
        last = score
    return weights, means, roots


def _nearest_centre(
    x: Tensor, count: int, scale: Tensor, generator: torch.Generator
) -> Tensor:  # (n, d) -> (n, count)
    """One-hot: the nearest of `count` centres of k-means++ to each point, in units of `scale`."""
    centres = x[torch.randint(len(x), (1,), generator=generator, device=x.device)]
    for _ in range(count - 1):
        distance = torch.cdist(x / scale, centres / scale).square().amin(1) + 1e-30
        centres = torch.cat([centres, x[torch.multinomial(distance, 1, generator=generator)]])
    nearest = torch.cdist(x / scale, centres / scale).argmin(1)
    return torch.nn.functional.one_hot(nearest, count).to(x)
