"""Masked networks (Germain, Gregor, Murray & Larochelle, MADE, 2015): hidden units carry degrees 1,
..., n - 1, and a weight is kept where the degree does not fall (inside) or rises (into the
outputs), so that each output depends only on earlier positions of the order."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class MaskedLinear(nn.Linear):
    """y = (W ⊙ mask) x + b, mask (outputs, inputs)."""

    mask: Tensor

    def __init__(self, mask: Tensor) -> None:
        super().__init__(mask.shape[1], mask.shape[0])
        self.register_buffer("mask", mask, persistent=False)

    def forward(self, x: Tensor, rows: slice = slice(None)) -> Tensor:
        # (*batch, inputs) -> (*batch, outputs[rows])
        return F.linear(x, torch.where(self.mask, self.weight, 0)[rows], self.bias[rows])


def hidden_layers(
    position: Tensor, hidden: int, layers: int
) -> tuple[Tensor, MaskedLinear, nn.ModuleList]:
    """Degrees of the hidden units, the first layer, of inputs at these positions (counted from 1),
    and the residual ones after it."""
    degree = torch.arange(hidden) * (int(position.max()) - 1) // hidden + 1
    first = MaskedLinear(degree[:, None] >= position)
    inner = nn.ModuleList(MaskedLinear(degree[:, None] >= degree) for _ in range(layers - 1))
    return degree, first, inner


def run_hidden(x: Tensor, first: nn.Module, inner: nn.ModuleList, dropout: nn.Module) -> Tensor:
    # (*batch, inputs) -> (*batch, hidden)
    """h₁ = silu(W₁ x + b₁), hₗ = hₗ₋₁ + silu(Wₗ hₗ₋₁ + bₗ)."""
    h = dropout(F.silu(first(x)))
    for layer in inner:
        h = h + dropout(F.silu(layer(h)))
    return h


def checked_order(order: Sequence[int] | None, event_shape: Sequence[int]) -> list[int]:
    """The positions of the flattened event in the order in which they are generated, by default 0,
    1, ..., n - 1. Raises ValueError where this is not a permutation of them."""
    n = torch.Size(event_shape).numel()
    found = list(range(n)) if order is None else [int(i) for i in order]
    if sorted(found) != list(range(n)):
        raise ValueError(
            f"order must list each of the {n} positions of events {tuple(event_shape)} once, not "
            f"{found}"
        )
    return found


def check_prefix(prefix: Tensor, n: int) -> None:
    """Raises ValueError where no position follows the prefix (*batch, t) of an event of n
    values."""
    t = prefix.shape[-1]
    if t >= n:
        raise ValueError(
            f"the prefix holds {t} values, and events of {n} values have no position after the last"
        )
