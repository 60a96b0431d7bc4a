"""Layers of nflows: the flows that `experts.Flow` builds from plain arguments, and what is known of
the layers of others."""

from __future__ import annotations

from typing import Any

import torch
from nflows.distributions.normal import StandardNormal
from nflows.flows.base import Flow as Nflow
from nflows.nn.nets.resnet import ResidualNet
from nflows.transforms.autoregressive import MaskedAffineAutoregressiveTransform
from nflows.transforms.base import CompositeTransform, InverseTransform, Transform
from nflows.transforms.coupling import (
    AdditiveCouplingTransform,
    AffineCouplingTransform,
    PiecewiseRationalQuadraticCouplingTransform,
)
from nflows.transforms.linear import Linear, NaiveLinear
from nflows.transforms.normalization import ActNorm, BatchNorm
from nflows.transforms.permutations import Permutation
from nflows.transforms.standard import PointwiseAffineTransform
from torch import Tensor, nn
from torch.nn import functional as F

KINDS = ("realnvp", "rq-coupling", "maf")
MAX_LOG_SCALE = 1.5  # bound on |log scale| of one affine coupling


def build(
    features: int,
    *,
    kind: str,
    layers: int = 6,
    hidden: int = 96,
    blocks: int = 1,
    bins: int = 6,
    tail_bound: float = 4.0,
    dropout: float = 0.0,
    mixing: str = "linear",
    context: int = 0,
    seed: int = 0,
) -> Nflow:
    """An nflows flow on R^features with a standard normal base.

    Arguments:
        kind: "realnvp", "rq-coupling" or "maf".
        layers: how many couplings; before each one the features are mixed.
        hidden, blocks: width and residual blocks of the network in each layer; dropout acts inside
            the blocks.
        bins, tail_bound: of the splines; outside [-tail_bound, tail_bound] they are the identity.
        mixing: "linear", a learnable matrix that starts as a permutation, or "permutation", a fixed
            one.
        context: number of values that condition the flow.
        seed: of the permutations; the weights are initialised from torch's global generator.
    """
    if kind not in KINDS:
        raise ValueError(f"no kind of flow is named {kind!r}; choose one of {', '.join(KINDS)}")
    if mixing not in ("linear", "permutation"):
        raise ValueError(f'mixing must be "linear" or "permutation", not {mixing!r}')
    if features < 2 and kind != "maf":
        raise ValueError(
            f"a coupling splits its features, and one is not enough; kind={kind!r} needs 2, "
            "kind='maf' takes 1"
        )

    options: dict[str, Any] = {
        "context_features": context or None,
        "num_blocks": blocks,
        "activation": F.silu,
        "dropout_probability": dropout,
    }

    def network(inputs: int, outputs: int) -> nn.Module:
        return ResidualNet(inputs, outputs, hidden, **options)

    def layer() -> Transform:
        if kind == "maf":
            return MaskedAffineAutoregressiveTransform(features, hidden, **options)
        mask = torch.arange(features) % 2 * 2 - 1  # nflows transforms where the mask is positive
        if kind == "realnvp":
            return BoundedAffineCoupling(mask, network)
        return PiecewiseRationalQuadraticCouplingTransform(
            mask, network, num_bins=bins, tails="linear", tail_bound=tail_bound
        )

    generator = torch.Generator().manual_seed(seed)
    transforms: list[Transform] = [Mixing(torch.eye(features))] if mixing == "linear" else []
    for index in range(layers):
        if index:
            order = torch.randperm(features, generator=generator)
            matrix = torch.eye(features)[order]
            transforms.append(Mixing(matrix) if mixing == "linear" else Permutation(order))
        transforms.append(layer())
    return Nflow(CompositeTransform(transforms), StandardNormal([features]))


class Mixing(Transform):
    """y = W (x - shift) with a dense learnable W; log|det| = log|det W|, the inverse by a linear
    solve."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight.clone())
        self.shift = nn.Parameter(torch.zeros(len(weight)))

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return (inputs - self.shift) @ self.weight.T, self._log_det().expand(len(inputs))

    def inverse(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        solved = torch.linalg.solve(self.weight, inputs.T).T
        return solved + self.shift, -self._log_det().expand(len(inputs))

    def _log_det(self) -> Tensor:
        return torch.linalg.slogdet(self.weight).logabsdet

    @torch.no_grad()
    def standardise(self, x: Tensor) -> None:  # (n, features)
        """Start from W = W diag(1 / std) and shift = mean of the data."""
        self.shift.copy_(x.mean(0))
        self.weight.mul_(1 / x.std(0))


class BoundedAffineCoupling(AffineCouplingTransform):
    """y₂ = s(y₁) y₂ + t(y₁) with log s = 1.5 tanh(u / 1.5), so that the density is bounded."""

    def _scale_and_shift(self, transform_params: Tensor) -> tuple[Tensor, Tensor]:
        shift, raw = transform_params.split(self.num_transform_features, 1)
        return torch.exp(MAX_LOG_SCALE * torch.tanh(raw / MAX_LOG_SCALE)), shift


class _NaiveLinear(NaiveLinear):
    """nflows' NaiveLinear inverts through torch.solve, which is gone."""

    def inverse_no_cache(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        outputs = torch.linalg.solve(self._weight, (inputs - self.bias).T).T
        return outputs, -self.logabsdet() * outputs.new_ones(len(outputs))


def bounds_volume(transform: nn.Module) -> bool:
    """Whether |det ∇T| and its inverse are known to be bounded."""
    if isinstance(transform, CompositeTransform):
        return all(map(bounds_volume, transform._transforms))
    if isinstance(transform, InverseTransform):
        return bounds_volume(transform._transform)
    if type(transform) is AffineCouplingTransform:
        # its scale is sigmoid(u + 2) + 0.001, unless it is given an activation
        own = "scale_activation" not in vars(transform)
        return own and transform.unconditional_transform is None
    if type(transform) in (AdditiveCouplingTransform, BoundedAffineCoupling):
        return transform.unconditional_transform is None
    return isinstance(
        transform, (Mixing, Linear, Permutation, PointwiseAffineTransform, ActNorm, BatchNorm)
    )


def context_layer(flow: Nflow) -> str | None:
    """The first layer of nflows' networks that is there only for a context; they leave it out
    silently where none is given."""
    names = (name for name, _ in flow.named_modules())
    return next((name for name in names if name.rsplit(".", 1)[-1] == "context_layer"), None)


def mend(flow: Nflow) -> None:
    """Switches off the caches of linear layers, and gives `NaiveLinear` an inverse again."""
    for module in flow.modules():
        if isinstance(module, Linear):
            module.cache.invalidate()
            module.use_cache(False)
        if type(module) is NaiveLinear:
            module.__class__ = _NaiveLinear
