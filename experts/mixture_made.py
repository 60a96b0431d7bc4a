"""An autoregressive density over R^n: a masked network corrects the conditionals of a mixture of
Gaussians, in nats.

`next_logits(prefix)`, prefix (*batch, t), is (*batch, 3, K): log-weights (normalised), means and
scales of the mixture of Gaussians that the next position follows. A method that follows the
order depends on this form only, not on the expert.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from experts.masked import MaskedLinear, check_prefix, checked_order, hidden_layers, run_hidden
from experts.neural import GaussianBase
from poe.algebra.energy import Density
from poe.registry import register

HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)


@register("mixture-made")
class MixtureMADE(Density):
    """p(x) = Πᵢ Σₖ wᵢₖ N(xᵢ; mᵢₖ, sᵢₖ²), w, m and s being functions of the earlier positions.

    One masked network (`experts.masked`) gives all conditionals in one pass (Germain et al., MADE,
    2015; mixture conditionals as in Uria, Murray & Larochelle, RNADE, 2013); drawing takes n.

    With `base`, the network corrects a mixture of `components` Gaussians with full covariances
    Cₖ = Lₖ Lₖᵀ, whose own conditionals along the order are known: with z = Lₖ⁻¹(x - mₖ),

        xᵢ | x₍<ᵢ₎ ~ N(xᵢ - Lᵢᵢ zᵢ, Lᵢᵢ²) in component k, of weight ∝ wₖ Πⱼ₍<ᵢ₎ N(zⱼ; 0, 1) / Lⱼⱼ.

    The network adds to these log-weights, to the means in units of Lᵢᵢ, and to the scales before
    their softplus. It starts at 0, so that `fit_base` makes the expert the mixture itself.

    Arguments:
        event_shape: shape of one x; coordinates are counted in row-major order.
        components: Gaussians in each conditional.
        base: whether the network corrects a mixture of Gaussians.
        hidden, layers: width and number of hidden layers; those after the first are residual.
        min_scale: lower bound of every s, in units of x. It bounds the density; data dequantised by
            Gaussian noise of scale σ have conditionals that are no narrower than σ.
        order: the positions in the order in which they are generated; by default 0, 1, ..., n-1.
        dropout: of hidden units, in training mode.

    Raises ValueError where `order` is not a permutation of the positions.
    """

    bounded: bool | None = True  # no conditional density exceeds 1 / (min_scale √(2π))
    order: Tensor

    def __init__(
        self,
        event_shape: Sequence[int],
        *,
        components: int = 5,
        hidden: int = 128,
        layers: int = 2,
        min_scale: float = 1e-3,
        order: Sequence[int] | None = None,
        dropout: float = 0.0,
        base: bool = False,
        name: str | None = None,
    ) -> None:
        super().__init__(event_shape, name=name)
        n = math.prod(event_shape)
        order = checked_order(order, event_shape)
        if min_scale <= 0:
            raise ValueError(f"min_scale must be positive, not {min_scale}: scale 0 has no density")
        self._config = {
            "event_shape": list(event_shape),
            "components": components,
            "hidden": hidden,
            "layers": layers,
            "min_scale": min_scale,
            "order": order,
            "dropout": dropout,
            "base": base,
        }
        self.components, self.min_scale = components, min_scale
        self.register_buffer("order", torch.tensor(order, dtype=torch.long), persistent=False)
        position = torch.tensor(order).argsort() + 1  # when each position is generated, from 1
        degree, self.first, self.inner = hidden_layers(position, hidden, layers)
        self.last = MaskedLinear(position.repeat_interleave(3 * components)[:, None] > degree)
        self.dropout = nn.Dropout(dropout)
        self.base = _Conditionals(n, components) if base else None
        start = torch.zeros(3 * n * components) if base else _start(n, components).flatten()
        with torch.no_grad():
            self.last.weight.mul_(0.0 if base else 0.3)
            self.last.bias.copy_(start)

    def log_prob(self, x: Tensor) -> Tensor:  # (*batch, *event) -> (*batch)
        """log p(x) in nats."""
        flat = x.reshape(*x.shape[: x.ndim - len(self.event_shape)], len(self.order))
        log_weight, mean, scale = self._conditionals(flat)
        z = (flat[..., None] - mean) / scale
        return (log_weight - 0.5 * z * z - scale.log() - HALF_LOG_2PI).logsumexp(-1).sum(-1)

    @torch.no_grad()
    def sample(self, n: int | tuple[int, ...], *, generator: Generator | None = None) -> Tensor:
        """n independent draws, (n, *event), by one pass a position."""
        batch = (n,) if isinstance(n, int) else tuple(n)
        rows, like = math.prod(batch), self._like()
        options: Any = {"dtype": like.dtype, "device": like.device, "generator": generator}
        prefix = like.new_empty(rows, 0)
        for _ in range(len(self.order)):
            log_weight, mean, scale = self.next_logits(prefix).unbind(-2)
            uniform, normal = torch.rand(rows, 1, **options), torch.randn(rows, 1, **options)
            below = (log_weight.exp().cumsum(-1) < uniform).sum(-1, keepdim=True)
            chosen = below.clamp(max=self.components - 1)
            value = mean.gather(-1, chosen) + scale.gather(-1, chosen) * normal
            prefix = torch.cat([prefix, value], -1)
        return prefix[:, self.order.argsort()].reshape(*batch, *self.event_shape)

    def next_logits(self, prefix: Tensor) -> Tensor:  # (*batch, t) -> (*batch, 3, components)
        """Log-weights (normalised), means and scales of the mixture that position order[t] follows,
        given the values at order[0], ..., order[t-1]. Raises ValueError where no position is left.
        """
        t, n = prefix.shape[-1], len(self.order)
        check_prefix(prefix, n)
        x = prefix.new_zeros(*prefix.shape[:-1], n)
        x[..., self.order[:t]] = prefix
        return torch.stack(self._conditionals(x, int(self.order[t])), -2)

    def config(self) -> dict[str, Any]:
        return self._config

    def _conditionals(
        self, x: Tensor, position: int | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Log-weights, means and scales of events x (*batch, n): (*batch, n, components) each; of
        one position, (*batch, components)."""
        k = 3 * self.components
        rows = slice(None) if position is None else slice(position * k, (position + 1) * k)
        out = self.last(run_hidden(x, self.first, self.inner, self.dropout), rows)
        shape = (len(self.order),) if position is None else ()
        weight, mean, scale = out.reshape(*out.shape[:-1], *shape, 3, self.components).unbind(-2)
        if self.base is not None:
            at = self.order.argsort() if position is None else self.order.argsort()[position]
            parts = self.base.conditionals(x[..., self.order])
            weight_0, mean_0, scale_0 = (part[..., at, :] for part in parts)
            free = (scale_0 - self.min_scale).clamp(min=1e-3 * self.min_scale)
            weight, mean = weight_0 + weight, mean_0 + scale_0 * mean
            scale = free + torch.log(-torch.expm1(-free)) + scale
        return weight.log_softmax(-1), mean, self.min_scale + F.softplus(scale)

    @torch.no_grad()
    def fit_base(self, weights: Tensor, means: Tensor, covariances: Tensor) -> None:
        """Sets the base to the mixture of these weights (K), means (K, n) and covariances (K, n,
        n), x flattened in row-major order.

        Raises ValueError where the expert has no base, or a base of another shape. A conditional
        narrower than `min_scale` is widened to it.
        """
        k, n = self.components, len(self.order)
        if self.base is None or means.shape != (k, n) or covariances.shape != (k, n, n):
            raise ValueError(
                f"fit_base takes means of shape {(k, n)} and covariances of shape {(k, n, n)} and "
                f"needs base=True; got {tuple(means.shape)} and {tuple(covariances.shape)}, "
                f"base={self.base is not None}"
            )
        self.base.set(weights, means[:, self.order], covariances[:, self.order][:, :, self.order])


class _Conditionals(GaussianBase):
    """A mixture of Gaussians along the order of its coordinates."""

    def conditionals(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        # (*batch, n) -> (*batch, n, K), thrice
        """Log-weights (up to a constant), means and scales of each conditional."""
        diagonal = self.whiten.diagonal(dim1=-2, dim2=-1)  # (K, n)
        centred = x.unsqueeze(-2) - self.mean  # (*batch, K, n)
        earlier = torch.einsum("kij,...kj->...ki", self.whiten.tril(-1), centred)
        z = earlier + diagonal * centred
        terms = diagonal.log() - 0.5 * z * z
        # plus what the earlier coordinates say about the component
        log_weight = self.log_weight[:, None] + F.pad(terms.cumsum(-1)[..., :-1], (1, 0))
        mean = self.mean - earlier / diagonal
        return log_weight.mT, mean.mT, (1 / diagonal).expand(z.shape).mT


def _start(n: int, components: int) -> Tensor:
    """Biases of untrained outputs: equal weights, means spread over [-1, 1], scales of 0.2."""
    start = torch.zeros(n, 3, components)
    start[:, 1] = torch.linspace(-1, 1, components)
    start[:, 2] = -1.5
    return start
