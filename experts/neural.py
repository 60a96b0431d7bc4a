"""Neural energies: networks whose scalar output is E(x), in nats, with Z unknown.

A bare network need not have a finite Z. Both energies here therefore tilt a base density q:

    E(x) = -log q(x) + f(x),    |f| <= limit,

so that exp(-limit) <= Z <= exp(limit): proper and bounded by construction, with the tail of the
base, |x|². The network learns only how the data differ from the base (where noise-contrastive
estimation with q as its noise starts; Arbel, Zhou & Gretton, Generalized energy based models,
2021). With `base=None` and `limit=None`, E is the bare network.

`base` is "normal" for one Gaussian, or an integer K for a mixture of K Gaussians with full
covariances; `fit_base` sets it from a mixture that was fitted elsewhere. Its parameters are
buffers, which training does not change.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from poe.algebra.energy import Density, Energy
from poe.registry import register

HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)
ACTIVATIONS: dict[str, type[nn.Module]] = {
    "silu": nn.SiLU,
    "elu": nn.ELU,
    "softplus": nn.Softplus,
    "tanh": nn.Tanh,
}


class GaussianBase(nn.Module):
    """-log q(x) of a mixture of K Gaussians over R^n, q = Σₖ wₖ N(x; mₖ, (Lₖᵀ Lₖ)⁻¹), L lower
    triangular.

    Starts as the standard normal, K times.
    """

    mean: Tensor
    whiten: Tensor
    log_weight: Tensor

    def __init__(self, n: int, components: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(components, n))
        self.register_buffer("whiten", torch.eye(n).repeat(components, 1, 1))
        self.register_buffer("log_weight", torch.full((components,), -math.log(components)))

    def forward(self, x: Tensor) -> Tensor:  # (*batch, n) -> (*batch)
        return -self.log_components(x).logsumexp(-1)

    def log_components(self, x: Tensor) -> Tensor:  # (*batch, n) -> (*batch, K)
        flat = x.reshape(-1, x.shape[-1])
        k, n = self.mean.shape
        rows = (self.whiten @ self.mean[..., None]).reshape(-1)  # one product for all components
        z = torch.addmm(-rows, flat, self.whiten.reshape(k * n, n).T).reshape(-1, k, n)
        log_det = self.whiten.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        log_q = self.log_weight + log_det - n * HALF_LOG_2PI - 0.5 * (z * z).sum(-1)
        return log_q.reshape(*x.shape[:-1], k)

    @torch.no_grad()
    def set(self, weights: Tensor, means: Tensor, covariances: Tensor) -> None:
        """The mixture with these weights (K), means (K, n) and covariances (K, n, n)."""
        if means.shape != self.mean.shape or covariances.shape != self.whiten.shape:
            raise ValueError(
                f"the base has means of shape {tuple(self.mean.shape)}, not {tuple(means.shape)}, "
                f"and covariances of shape {tuple(self.whiten.shape)}, not "
                f"{tuple(covariances.shape)}"
            )
        self.mean.copy_(means)
        lower = torch.linalg.cholesky(covariances.double())
        self.whiten.copy_(
            torch.linalg.solve_triangular(lower, torch.eye(lower.shape[-1]).to(lower), upper=False)
        )
        self.log_weight.copy_(torch.log(weights / weights.sum()))

    @torch.no_grad()
    def sample(self, n: int, *, generator: torch.Generator | None = None) -> Tensor:
        """n draws of q, (n, features)."""
        kinds = torch.multinomial(self.log_weight.exp(), n, replacement=True, generator=generator)
        noise = torch.randn(
            n,
            self.mean.shape[1],
            dtype=self.mean.dtype,
            device=self.mean.device,
            generator=generator,
        )
        x = torch.empty_like(noise)
        for k in range(len(self.mean)):
            rows = kinds == k
            x[rows] = (
                self.mean[k]
                + torch.linalg.solve_triangular(self.whiten[k], noise[rows].T, upper=False).T
            )
        return x


class NeuralEnergy(Energy):
    """E(x) = -log q(x) + limit tanh(net((x - loc) / scale) / limit) + offset; a subclass states its
    network.

    `offset` is a learnable constant: noise-contrastive estimation moves it to where Z is 1, but
    log_z stays unknown until it is estimated (`poe.normalize`).
    """

    loc: Tensor
    scale: Tensor

    def __init__(
        self,
        event_shape: Sequence[int],
        *,
        base: str | int | None,
        limit: float | None,
        activation: str,
        name: str | None,
        **architecture: Any,
    ) -> None:
        super().__init__(event_shape, name=name)
        if base is not None and base != "normal" and not (isinstance(base, int) and base > 0):
            raise ValueError(f'base must be None, "normal" or a number of Gaussians, not {base!r}')
        if limit is not None and limit <= 0:
            raise ValueError(f"limit bounds |f| in nats and must be positive, not {limit}")
        if activation not in ACTIVATIONS:
            raise ValueError(
                f"no activation is named {activation!r}; choose one of {', '.join(ACTIVATIONS)}"
            )
        self._config = {
            "event_shape": list(event_shape),
            "base": base,
            "limit": limit,
            "activation": activation,
            **architecture,
        }
        n = math.prod(event_shape)
        self.limit = limit
        self.base = None if base is None else GaussianBase(n, base if isinstance(base, int) else 1)
        self.register_buffer("loc", torch.zeros(n))
        self.register_buffer("scale", torch.ones(n))
        self.offset = nn.Parameter(torch.zeros(()))
        self.net = self.network(ACTIVATIONS[activation], **architecture)

    @abstractmethod
    def network(self, activation: type[nn.Module], **architecture: Any) -> nn.Module:
        """The network, (*rows, features) -> (*rows, 1)."""

    def forward(self, x: Tensor) -> Tensor:  # (*batch, *event) -> (*batch)
        flat = x.reshape(-1, len(self.loc))
        energy = self.net((flat - self.loc) / self.scale).squeeze(-1)
        if self.limit is not None:
            energy = self.limit * torch.tanh(energy / self.limit)
        if self.base is not None:
            energy = energy + self.base(flat)
        return (energy + self.offset).reshape(x.shape[: x.ndim - len(self.event_shape)])

    @property
    def proper(self) -> bool | None:
        """True with a base and a limit: exp(-limit) <= Z exp(offset) <= exp(limit)."""
        return True if self.base is not None and self.limit is not None else super().proper

    @property
    def bounded(self) -> bool | None:
        """True with a limit: -log q and f are bounded below."""
        return True if self.limit is not None else super().bounded

    def config(self) -> dict[str, Any]:
        return self._config

    @torch.no_grad()
    def standardise(self, x: Tensor, *, least: float = 0.0) -> None:  # (n, *event)
        """Sets what the network sees to (x - mean) / std of these data, std at least `least`."""
        flat = x.reshape(len(x), -1)
        self.loc.copy_(flat.mean(0))
        self.scale.copy_(flat.std(0).clamp(min=least))

    @torch.no_grad()
    def fit_base(self, weights: Tensor, means: Tensor, covariances: Tensor) -> None:
        """Sets the base to this mixture of Gaussians over the flattened event. Raises ValueError
        where shapes differ."""
        if self.base is None:
            raise ValueError(f'{self} has no base to fit: build it with base="normal" or base=K')
        self.base.set(weights, means, covariances)

    def proposal(self) -> Energy | None:
        """The base as a density of its own, from which importance sampling estimates log Z; None
        without a base."""
        return None if self.base is None else BaseDensity(self.base, self.event_shape)


class BaseDensity(Density):
    """The mixture of Gaussians that a neural energy tilts."""

    def __init__(self, base: GaussianBase, event_shape: Sequence[int]) -> None:
        super().__init__(event_shape)
        self.base = base

    def log_prob(self, x: Tensor) -> Tensor:  # (*batch, *event) -> (*batch)
        return -self.base(x.reshape(*x.shape[: x.ndim - len(self.event_shape)], -1))

    def sample(
        self, n: int | tuple[int, ...], *, generator: torch.Generator | None = None
    ) -> Tensor:
        shape = torch.Size([n] if isinstance(n, int) else n)
        return self.base.sample(shape.numel(), generator=generator).reshape(
            shape + self.event_shape
        )


@register("neural")
class MLPEnergy(NeuralEnergy):
    """A multilayer perceptron on the flattened event, over a Gaussian base by default.

    Arguments:
        event_shape: shape of one x.
        hidden: widths of the hidden layers.
        base: "normal", a number of Gaussians, or None.
        limit: bound on |f| in nats, or None.
        activation: "silu", "elu", "softplus" or "tanh": smooth, as Langevin needs gradients.
    """

    def __init__(
        self,
        event_shape: Sequence[int],
        *,
        hidden: Sequence[int] = (128, 128),
        base: str | int | None = "normal",
        limit: float | None = 40.0,
        activation: str = "silu",
        name: str | None = None,
    ) -> None:
        super().__init__(
            event_shape,
            base=base,
            limit=limit,
            activation=activation,
            name=name,
            hidden=list(hidden),
        )

    def network(self, activation: type[nn.Module], **architecture: Any) -> nn.Module:
        widths = [len(self.loc), *architecture["hidden"]]
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise(widths):
            layers += [nn.Linear(inputs, outputs), activation()]
        return nn.Sequential(*layers, nn.Linear(widths[-1], 1))


@register("conv-energy")
class ConvEnergy(NeuralEnergy):
    """A convolutional network on images, event shape (height, width) or (channels, height, width),
    over a Gaussian base.

    A 3x3 convolution, then one of stride 2 for each further entry of `channels`, a hidden layer,
    the energy.

    Arguments: as of `MLPEnergy`, with `channels` of the convolutions and `hidden` units of the last
    layer. Raises ValueError for an event of another rank, or too small for its strides.
    """

    def __init__(
        self,
        event_shape: Sequence[int],
        *,
        channels: Sequence[int] = (16, 32),
        hidden: int = 64,
        base: str | int | None = "normal",
        limit: float | None = 40.0,
        activation: str = "silu",
        name: str | None = None,
    ) -> None:
        shape = tuple(event_shape)
        if len(shape) not in (2, 3) or min(shape[-2:]) % 2 ** (len(channels) - 1):
            raise ValueError(
                f"events of shape {shape} do not fit {len(channels)} convolutions: give (height, "
                "width) or (channels, height, width) with sides divisible by "
                f"{2 ** (len(channels) - 1)}"
            )
        super().__init__(
            event_shape,
            base=base,
            limit=limit,
            activation=activation,
            name=name,
            channels=list(channels),
            hidden=hidden,
        )

    def network(self, activation: type[nn.Module], **architecture: Any) -> nn.Module:
        height, width = self.event_shape[-2:]
        planes = [math.prod(self.event_shape[:-2]), *architecture["channels"]]
        layers: list[nn.Module] = [nn.Unflatten(-1, (planes[0], height, width))]
        for depth, (inputs, outputs) in enumerate(pairwise(planes)):
            kernel, stride = (4, 2) if depth else (3, 1)
            layers += [nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=1), activation()]
        shrink = 2 ** (len(planes) - 2)
        features = planes[-1] * (height // shrink) * (width // shrink)
        layers += [nn.Flatten(), nn.Linear(features, architecture["hidden"]), activation()]
        return nn.Sequential(*layers, nn.Linear(architecture["hidden"], 1))
