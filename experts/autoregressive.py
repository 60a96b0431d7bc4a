"""Autoregressive experts over finitely many values.

| expert     | one pass of                                                 | events               |
|------------|-------------------------------------------------------------|----------------------|
| `MADE`     | a masked network with residual layers                       | any shape, any order |
| `PixelCNN` | gated, masked convolutions in two stacks                    | pictures, row by row |
| `Causal`   | any model of next-step logits, such as a transformer       | sequences            |

Events of two levels are floats 0 and 1, those of more are whole numbers (torch.long).
`experts.language` has texts, `experts.mixture_made` the density over R^n.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from experts.masked import MaskedLinear, hidden_layers, run_hidden
from experts.sequential import Autoregressive, log_probabilities, next_step, two_or_more
from poe.registry import register
from poe.spaces.sites import vectors


@register("made")
class MADE(Autoregressive):
    """All conditionals by one masked network (Germain, Gregor, Murray & Larochelle, MADE, 2015; its
    masks stand in `experts.masked`). With x = 2 value - 1 of two levels, or one-hot values of more:

        h₁ = silu(W₁ x + b₁),  hₗ = hₗ₋₁ + silu(Wₗ hₗ₋₁ + bₗ),  out = V h + U x + c.

    Of two levels, out is the log-odds of 1; of more, the logits. Drawing takes n passes.

    Arguments:
        event_shape, levels, order: as in `Autoregressive`.
        hidden, layers: width and number of hidden layers.
        dropout: the probability with which each layer's units are dropped in training mode.
    """

    def __init__(
        self,
        event_shape: Sequence[int],
        *,
        levels: int = 2,
        hidden: int = 128,
        layers: int = 2,
        order: Sequence[int] | None = None,
        dropout: float = 0.0,
        name: str | None = None,
    ) -> None:
        super().__init__(event_shape, levels, order=order, name=name)
        n, wide = len(self.order), 1 if levels == 2 else levels
        self._architecture = {"hidden": hidden, "layers": layers, "dropout": dropout}
        # when each is generated; the network sees values in this order
        position = (torch.arange(n) + 1).repeat_interleave(wide)
        degree, self.first, self.inner = hidden_layers(position, hidden, layers)
        self.last = MaskedLinear(position[:, None] > degree)
        self.direct = MaskedLinear(position[:, None] > position)
        self.dropout = nn.Dropout(dropout)
        self.eval()

    def _conditionals(self, prefix: Tensor, start: int) -> Tensor:
        # (*batch, t) -> (*batch, t + 1 - start, levels)
        t, n, wide = prefix.shape[-1], len(self.order), 1 if self.levels == 2 else self.levels
        if self.levels == 2:
            x = 2 * prefix.to(self.dtype) - 1
        else:
            x = F.one_hot(prefix.long(), wide).to(self.dtype).flatten(-2)
        x = F.pad(x, (0, (n - t) * wide))
        h = run_hidden(x, self.first, self.inner, self.dropout)
        rows = slice(start * wide, (t + 1) * wide)
        out = self.last(h, rows) + self.direct(x, rows)
        return two_or_more(out.unflatten(-1, (-1, wide)), self.levels)

    def config(self) -> dict[str, Any]:
        facts = {"event_shape": list(self.event_shape), "levels": self.levels}
        return facts | {"order": self.order.tolist()} | self._architecture


@register("causal")
class Causal(Autoregressive):
    """A sequence model by its next-step logits.

    The model takes tokens (n, t), t >= 1, and returns logits (n, t, levels): those at step s are of
    the token after it, and depend on steps 0, ..., s alone. It is given `bos` and then the values
    of x in row-major order, so `bos` may be any of its tokens.

    Arguments:
        model: tokens -> logits; an `nn.Module` is put in eval mode and kept there.
        length: of a sequence; or the shape of an event that is read as one.
        levels: how many values a position takes. Two: x is float, 0. or 1.; more: whole numbers.
            Tokens are whole numbers always.
        bos: the token that stands before the first value.

    Raises ValueError where the model returns another shape. It holds code, so it cannot be saved.

    >>> fair = Causal(lambda tokens: torch.zeros(*tokens.shape, 2), 3, 2, bos=0)
    >>> round(fair.log_prob(torch.tensor([1.0, 0.0, 1.0])).exp().item(), 6)
    0.125
    """

    def __init__(
        self,
        model: Callable[[Tensor], Tensor],
        length: int | Sequence[int],
        levels: int,
        *,
        bos: int,
        name: str | None = None,
    ) -> None:
        if not callable(model):
            raise TypeError(
                "Causal takes a callable tokens (n, t) -> logits (n, t, levels), not "
                f"{type(model).__name__}"
            )
        super().__init__((length,) if isinstance(length, int) else length, levels, name=name)
        self.model, self.bos = model, bos
        self.eval()

    def _values(self, x: Tensor) -> Tensor:
        return vectors(x, len(self.event_shape)).long()

    def _conditionals(self, prefix: Tensor, start: int) -> Tensor:
        # (*batch, t) -> (*batch, t + 1 - start, levels)
        logits = next_step(self.model, prefix, self.bos, self.levels)
        return log_probabilities(logits[..., start:, :])

    def config(self) -> dict[str, Any]:
        raise TypeError(
            f"{self} wraps code, which a file cannot hold: derive a class from "
            "experts.sequential.Autoregressive with a method config(), and register it with "
            "@poe.register"
        )
