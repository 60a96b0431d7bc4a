"""Mixtures of products of independent sites: densities that draw, near to a discrete target with
several phases."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from poe.algebra.energy import Density, Energy, first_tensor
from poe.spaces.points import point_dtype
from poe.spaces.sites import pick, sites_of

PSEUDO_COUNT = 0.5  # of points, over the values of a site of a component, in a fit
MIN_COUNT = 4.0  # effective points of a component; those with fewer are left out of a fit
FIT_STEPS = 25  # of expectation maximisation
CHUNK_NUMBERS = 1 << 24  # numbers of points and components that are held at once


class Products(Density):
    """p(x) = Σ_k w_k Π_i p_ki(x_i) over the sites of a discrete event, from log weights (K) and log
    rates (K, n, values), -inf beyond the values of a site."""

    log_weights: Tensor
    log_rates: Tensor

    def __init__(self, like: Energy, log_weights: Tensor, log_rates: Tensor) -> None:
        super().__init__(like.event_shape, support=like.support)
        self.sites, self._type, dtype = sites_of(like), point_dtype(like), first_tensor(like)
        self.register_buffer("log_weights", log_weights.log_softmax(-1).to(dtype))
        self.register_buffer("log_rates", log_rates.log_softmax(-1).to(dtype))
        n = torch.arange(log_rates.shape[1], device=self.log_rates.device)
        self._blocks = tuple(n.split(1)) if len(log_weights) > 1 else (n,)

    @property
    def bounded(self) -> bool:
        return True

    @property
    def blocks(self) -> tuple[Tensor, ...]:
        """Single sites, which the component couples; of one component all of them."""
        return self._blocks

    def places(self, x: Tensor) -> Tensor:  # (*batch, *event) -> (*batch, n)
        """The index of each site's value."""
        return self.sites.places(x, len(self.event_shape))

    def of_components(self, places: Tensor) -> Tensor:  # (*batch, n) -> (*batch, K)
        """log w_k Π_i p_ki(x_i), in the precision of the rates."""
        found = one_hot(places, self.log_rates) @ self.log_rates.clamp(min=-1e4).flatten(1).T
        return found + self.log_weights

    def log_prob(self, x: Tensor) -> Tensor:  # (*batch, *event) -> (*batch)
        places = self.places(x)
        size = max(1, CHUNK_NUMBERS // max(1, self.log_rates.shape[1:].numel()))
        flat = places.reshape(-1, places.shape[-1])
        found = [self.of_components(some).logsumexp(-1) for some in flat.split(size)]
        return torch.cat(found).reshape(places.shape[:-1]) if found else flat.new_zeros(0)

    def responsibilities(self, x: Tensor) -> Tensor:  # (n, *event) -> (n, K)
        """The probability of each component given x."""
        return self.of_components(self.places(x)).double().softmax(-1)

    def sample(
        self, n: int | tuple[int, ...], *, generator: torch.Generator | None = None
    ) -> Tensor:
        shape, device = (n,) if isinstance(n, int) else tuple(n), self.log_rates.device
        total = math.prod(shape)
        uniform = torch.rand(total, 1 + len(self.log_rates[0]), generator=generator, device=device)
        which = pick(self.log_weights.expand(total, 1, -1), uniform[:, :1]).squeeze(-1)
        places = [
            pick(self.log_rates[k], u)
            for k, u in zip(which.split(CHUNK), uniform[:, 1:].split(CHUNK), strict=True)
        ]
        x = torch.zeros(total, *self.event_shape, dtype=self._type, device=device)
        at = torch.arange(self.log_rates.shape[1], device=device)
        x = self.sites.put(x, at, torch.cat(places), len(self.event_shape)) if total else x
        return x.reshape(*shape, *self.event_shape)

    def site_logits(self, x: Tensor, sites: Tensor) -> Tensor:
        # (*batch, *event), (k) -> (*batch, k) or (*batch, k, values)
        """Log-odds of the upper value, or log weights of the values, given all other sites."""
        places = self.places(x)
        parts, rates = (
            self.of_components(places),
            self.log_rates[:, sites].clamp(min=-1e4),
        )  # (K, k, v)
        at = places[..., sites]
        own = torch.stack(
            [rates[:, j].T[at[..., j]] for j in range(len(sites))], -2
        )  # (*batch, k, K)
        others = parts.unsqueeze(-2) - own
        logits = (others.unsqueeze(-2) + rates.permute(1, 2, 0)).logsumexp(-1)
        logits = logits.masked_fill(self.log_rates[0, sites].isinf(), -math.inf)
        return logits[..., 1] - logits[..., 0] if self.sites.binary else logits

    def mixed(self, *others: tuple[float, Products]) -> Products:
        """This mixture with others beside it, each of a share of the whole."""
        rest = 1 - sum(share for share, _ in others)
        parts = [(rest, self), *others]
        logs = torch.cat([part.log_weights + math.log(share) for share, part in parts])
        return Products(self, logs, torch.cat([part.log_rates for _, part in parts]))

    def flattened(self, power: float) -> Products:
        """Each component with its rates to a power."""
        return Products(self, self.log_weights, power * self.log_rates)

    def even(self) -> Products:
        """The same components with equal weights."""
        return Products(self, torch.zeros_like(self.log_weights), self.log_rates)


CHUNK = 1 << 14  # points whose sites are drawn at once


def one_hot(places: Tensor, rates: Tensor) -> Tensor:  # (*batch, n) -> (*batch, n * values)
    """One number for each value of each site, in the dtype of the rates (K, n, values)."""
    values = rates.shape[-1]
    found = torch.zeros(*places.shape, values, dtype=rates.dtype, device=places.device)
    return found.scatter_(-1, places.unsqueeze(-1), 1).flatten(-2)


def uniform(like: Energy) -> Products:
    """One component: each site uniform over its values."""
    logs = sites_of(like).mask(like.device).double().log()
    return Products(like, logs.new_zeros(1), logs.unsqueeze(0))


def fit(
    like: Energy, places: Tensor, weights: Tensor, start: Tensor
) -> Products:  # places (N, n), weights (N), start (N, K) responsibilities
    """The mixture of largest likelihood near to responsibilities, by expectation maximisation with
    `PSEUDO_COUNT` points more for each site of a component. The weights sum to an effective number
    of points.

    Reference: Dempster, Laird and Rubin 1977, J. R. Statist. Soc. B 39(1).
    """
    mask = sites_of(like).mask(places.device)
    rates = mask.double().unsqueeze(0)
    hot, near = one_hot(places, rates.float()), start.to(torch.float32)
    weight = weights.float().unsqueeze(1)
    logs = table = torch.empty(0)
    for _ in range(FIT_STEPS):
        held = near * weight
        count = held.sum(0)
        kept = count > min(MIN_COUNT, float(count.max()) / 2)
        held, count = held[:, kept], count[kept]
        sums = (held.T @ hot).double().unflatten(1, mask.shape) + PSEUDO_COUNT * rates / rates.sum(
            -1, keepdim=True
        )
        table = (sums.log() - sums.sum(-1, keepdim=True).log()).masked_fill(~mask, -math.inf)
        logs = (count.double() / count.sum()).log()
        parts = hot @ table.clamp(min=-1e4).float().flatten(1).T + logs.float()
        near = parts.softmax(1)
    return Products(like, logs, table)
