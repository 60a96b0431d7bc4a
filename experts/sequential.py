"""What autoregressive densities over finitely many values have in common: log p(x) = Σₜ log
p(x[order[t]] | x[order[:t]]), in nats.

The capability is `poe.algebra.capabilities.Sequential`: `order` lists positions of the flattened
event, and `next_logits(prefix)`, prefix (*batch, t), gives the normalised log-probabilities
(*batch, levels) of the values at the next one.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Sequence

import torch
from torch import Generator, Tensor
from torch.distributions import constraints
from torch.nn import functional as F

from experts.locked import Locked
from experts.masked import check_prefix, checked_order
from poe.algebra.energy import Density
from poe.spaces.sites import pick, vectors


class Autoregressive(Locked, Density):
    """A density over events of `levels` values a position; a subclass gives its conditionals.

    It stays in eval mode whatever a parent does, so that dropout never makes the energy random;
    `training_mode` lifts that.

    Arguments:
        event_shape: shape of one x.
        levels: how many values a position takes, 0, ..., levels - 1; at least 2.
        order: the positions of the flattened event in the order in which they are generated; by
            default 0, 1, ..., n - 1.

    Raises ValueError where `levels` is below 2 or `order` is not a permutation of the positions.
    """

    order: Tensor

    def __init__(
        self,
        event_shape: Sequence[int],
        levels: int,
        *,
        order: Sequence[int] | None = None,
        name: str | None = None,
    ) -> None:
        if levels < 2:
            raise ValueError(f"a position takes two or more values, not {levels}")
        super().__init__(
            event_shape, support=constraints.integer_interval(0, levels - 1), name=name
        )
        self.levels = levels
        places = torch.tensor(checked_order(order, event_shape), dtype=torch.long)
        self.register_buffer("order", places, persistent=False)

    @abstractmethod
    def _conditionals(self, prefix: Tensor, start: int) -> Tensor:
        # (*batch, t) -> (*batch, t + 1 - start, levels)
        """Normalised log-probabilities of positions order[start], ..., order[t], each given all
        values of the prefix before it."""

    def log_prob(self, x: Tensor) -> Tensor:  # (*batch, *event) -> (*batch)
        """log p(x) in nats. Of floats between 0 and 1: Σ (1 - xᵢ) log p(0) + xᵢ log p(1), so that
        it has a gradient."""
        values = self._values(x)
        logs = self._conditionals(values[..., :-1], 0)
        if values.is_floating_point():
            return torch.lerp(logs[..., 0], logs[..., 1], values.to(logs)).sum(-1)
        return logs.gather(-1, values.unsqueeze(-1)).squeeze(-1).sum(-1)

    def _values(self, x: Tensor) -> Tensor:  # (*batch, *event) -> (*batch, n)
        """The values in the order in which they are generated: floats where there are two levels,
        else whole numbers."""
        flat = vectors(x, len(self.event_shape))[..., self.order]
        return flat.to(self.dtype) if self.levels == 2 else flat.long()

    @torch.no_grad()
    def sample(self, n: int | tuple[int, ...], *, generator: Generator | None = None) -> Tensor:
        """n independent draws, (n, *event), by one pass a position."""
        batch = (n,) if isinstance(n, int) else tuple(n)
        rows, size = math.prod(batch), len(self.order)
        values = torch.zeros(rows, size, dtype=self._point_dtype, device=self.device)
        for t in range(size):
            uniform = torch.rand(
                rows, 1, dtype=torch.float64, device=self.device, generator=generator
            )
            chosen = pick(self.next_logits(values[:, :t]).unsqueeze(-2), uniform)
            values[:, t] = chosen.squeeze(-1).to(values)
        return values[:, self.order.argsort()].reshape(*batch, *self.event_shape)

    @property
    def _point_dtype(self) -> torch.dtype:
        return self.dtype if self.levels == 2 else torch.long

    def next_logits(self, prefix: Tensor) -> Tensor:  # (*batch, t) -> (*batch, levels)
        """Normalised log-probabilities of the values at order[t], given those at order[0], ...,
        order[t-1].

        Raises ValueError where no position is left.
        """
        check_prefix(prefix, len(self.order))
        return self._conditionals(prefix, prefix.shape[-1]).squeeze(-2)


def two_or_more(out: Tensor, levels: int) -> Tensor:  # (..., 1 or levels) -> (..., levels)
    """Log-probabilities from the log-odds of 1 where there are two levels, else from logits."""
    if levels == 2:
        return torch.cat([F.logsigmoid(-out), F.logsigmoid(out)], -1)
    return out.log_softmax(-1)


def next_step(model: Callable[[Tensor], Tensor], prefix: Tensor, bos: int, levels: int) -> Tensor:
    # (*batch, t) -> (*batch, t + 1, levels)
    """What a model of tokens (n, t) -> logits (n, t, levels) says of each position up to the one
    after the prefix.

    Raises ValueError where it returns another shape.
    """
    rows = prefix.long().reshape(math.prod(prefix.shape[:-1]), prefix.shape[-1])
    tokens = F.pad(rows, (1, 0), value=bos)
    if not len(tokens):
        return torch.zeros(*prefix.shape[:-1], tokens.shape[-1], levels, device=prefix.device)
    logits = model(tokens)
    if logits.shape != (*tokens.shape, levels):
        raise ValueError(
            f"a causal model maps tokens of shape {tuple(tokens.shape)} to logits of shape "
            f"{(*tokens.shape, levels)}, one for each of {levels} values at each step; this one "
            f"returned {tuple(logits.shape)}. To drop logits of tokens that never occur, write "
            f"lambda tokens: model(tokens)[..., :{levels}]"
        )
    return logits.reshape(*prefix.shape[:-1], *logits.shape[-2:])


def log_probabilities(logits: Tensor) -> Tensor:  # (..., K) -> (..., K)
    """Normalised over the last axis, in float32 at least."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)
