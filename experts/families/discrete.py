"""Bernoulli, categorical and Poisson distributions."""

from __future__ import annotations

import math
from typing import Any, Self

import torch
from torch import Generator, Tensor, nn
from torch.distributions import constraints

from experts.families import parameters as param
from experts.families.base import ExponentialFamily, Natural, Tensors
from poe.algebra.closed_forms import Empty
from poe.registry import register


@register("bernoulli")
class Bernoulli(ExponentialFamily):
    """Energy log(1 + e^logit) - logit·x on {0., 1.}, coordinate by coordinate. Takes `probs`
    strictly inside (0, 1), or `logits`.
    """

    logits: Tensor

    def __init__(
        self,
        probs: Any = None,
        *,
        logits: Any = None,
        learnable: bool = False,
        name: str | None = None,
    ) -> None:
        value = param.logits_of("Bernoulli", probs, logits, lambda p: p.log() - (-p).log1p())
        if not bool(value.isfinite().all()):
            raise ValueError(
                "Bernoulli(probs) takes 0 < probs < 1; clamp a coordinate that is known with "
                "`energy @ poe.fill(...)`"
            )
        super().__init__(
            {"logits": value}, support=constraints.boolean, learnable=learnable, name=name
        )

    @property
    def probs(self) -> Tensor:
        """P(x = 1) of each coordinate."""
        return self.logits.sigmoid()

    @property
    def blocks(self) -> tuple[Tensor, ...]:
        """All coordinates at once: they are independent."""
        return (torch.arange(self.event_shape.numel(), device=self.device),)

    def site_logits(self, x: Tensor, sites: Tensor) -> Tensor:
        # (*batch, *event), (k) -> (*batch, k)
        """The logits of these coordinates, whatever the others are."""
        chosen = self.logits.expand(self.event_shape).reshape(-1)[sites]
        return chosen.expand(*x.shape[: x.ndim - len(self.event_shape)], -1)

    def log_prob(self, x: Tensor) -> Tensor:  # (*batch, *event) -> (*batch)
        return self._sum(x * self.logits - nn.functional.softplus(self.logits, threshold=40))

    @property
    def natural(self) -> Natural:
        logits = self.exact("logits")
        partition = nn.functional.softplus(logits, threshold=40).sum()
        return Natural((logits,), lambda x: (x.double(),), partition, self._no_base)

    @classmethod
    def from_natural(cls, parameters: Tensors, rounding: Tensors | None = None) -> Self | None:
        return cls(logits=parameters[0])

    def _draw(self, shape: tuple[int, ...], generator: Generator | None) -> Tensor:
        uniform = param.uniforms(self.exact("logits"), shape, generator)
        return (uniform < self.exact("logits").sigmoid()).double()


@register("categorical")
class Categorical(ExponentialFamily):
    """Energy logsumexp(logits) - logits[x] over x in {0, ..., K - 1}, whole numbers (torch.long).

    Arguments:
        logits, probs: (*event, K), one of the two, scaled to sum to 1 over the last axis; a logit
            of -inf excludes its category.
    """

    logits: Tensor

    def __init__(
        self,
        logits: Any = None,
        *,
        probs: Any = None,
        learnable: bool = False,
        name: str | None = None,
    ) -> None:
        value = param.logits_of("Categorical", probs, logits, torch.log)
        if value.ndim == 0 or value.shape[-1] == 0:
            raise ValueError(
                "a Categorical needs its categories on the last axis, its logits have shape "
                f"{tuple(value.shape)}"
            )
        if bool(
            value.isnan().any() or (value == math.inf).any() or (value == -math.inf).all(-1).any()
        ):
            raise ValueError(
                "a Categorical needs logits below +inf, and in every row one above -inf"
            )
        super().__init__(
            {"logits": value},
            support=constraints.integer_interval(0, value.shape[-1] - 1),
            event_shape=value.shape[:-1],
            learnable=learnable,
            name=name,
        )

    @property
    def probs(self) -> Tensor:
        """P(x = k), (*event, K)."""
        return self.logits.softmax(-1)

    @property
    def blocks(self) -> tuple[Tensor, ...]:
        """All coordinates at once: they are independent."""
        return (torch.arange(self.event_shape.numel(), device=self.device),)

    def site_logits(self, x: Tensor, sites: Tensor) -> Tensor:
        # (*batch, *event), (k) -> (*batch, k, K)
        """The logits of these coordinates, whatever the others are."""
        chosen = self.logits.reshape(-1, self.logits.shape[-1])[sites]
        return chosen.expand(*x.shape[: x.ndim - len(self.event_shape)], -1, -1)

    def log_prob(self, x: Tensor) -> Tensor:  # (*batch, *event) -> (*batch)
        logs = self.logits.log_softmax(-1).expand((*x.shape, -1))
        return self._sum(logs.gather(-1, x.long().unsqueeze(-1)).squeeze(-1))

    @property
    def natural(self) -> Natural:
        logits = self.logits.detach().double()
        return Natural((logits,), self._one_hot, logits.logsumexp(-1).sum(), self._no_base)

    def _one_hot(self, x: Tensor) -> tuple[Tensor]:
        return (nn.functional.one_hot(x.long(), self.logits.shape[-1]).double(),)

    @classmethod
    def from_natural(cls, parameters: Tensors, rounding: Tensors | None = None) -> Self | None:
        if bool((parameters[0] == -math.inf).all(-1).any()):
            raise Empty("no category of a Categorical is left")
        return cls(logits=parameters[0])

    def _draw(self, shape: tuple[int, ...], generator: Generator | None) -> Tensor:
        cumulative = self.logits.double().softmax(-1).cumsum(-1)
        uniform = param.uniforms(cumulative[..., 0], shape, generator) * cumulative[..., -1]
        return (uniform.unsqueeze(-1) >= cumulative).sum(-1)

    def sample(self, n: int | tuple[int, ...], *, generator: Generator | None = None) -> Tensor:
        """n independent draws, (n, *event), torch.long; n an int or a shape."""
        with torch.no_grad():
            return self._draw((n,) if isinstance(n, int) else tuple(n), generator)


@register("poisson")
class Poisson(ExponentialFamily):
    """Energy rate - x log rate + log x! over x in {0., 1., 2., ...}, coordinate by coordinate."""

    rate: Tensor

    def __init__(
        self, rate: Any = 1.0, *, learnable: bool = False, name: str | None = None
    ) -> None:
        values = param.positive("Poisson(rate) takes positive numbers", rate=rate)
        super().__init__(
            values, support=constraints.nonnegative_integer, learnable=learnable, name=name
        )

    def log_prob(self, x: Tensor) -> Tensor:  # (*batch, *event) -> (*batch)
        return self._sum(x * self.rate.log() - self.rate - (x + 1.0).lgamma())

    @property
    def natural(self) -> Natural:
        rate = self.exact("rate")
        return Natural(
            (rate.log(),),
            lambda x: (x.double(),),
            rate.sum(),
            lambda x: -self._sum((x.double() + 1).lgamma()),
        )

    @classmethod
    def from_natural(cls, parameters: Tensors, rounding: Tensors | None = None) -> Self | None:
        rate = parameters[0].exp()
        return cls(rate) if bool(((rate > 0) & rate.isfinite()).all()) else None

    def _draw(self, shape: tuple[int, ...], generator: Generator | None) -> Tensor:
        return torch.poisson(
            self.exact("rate").expand((*shape, *self.event_shape)), generator=generator
        )
