"""Posteriors that were combined, as their own draws show them."""

from __future__ import annotations

import math
from functools import singledispatch
from typing import NamedTuple

import torch
from torch import Tensor

from poe.algebra.capabilities import Moments, Samples, as_a
from poe.algebra.combining import part_on, places
from poe.algebra.energy import Energy, first_tensor
from poe.algebra.mixture import mixture
from poe.algebra.product import Product
from poe.algebra.pullback import Pullback, is_on, on
from poe.algebra.shifted import Shifted
from poe.algebra.simplification import simplify
from poe.diagnostics.verdict import PARETO_LIMIT
from poe.diagnostics.weights import pareto_k
from poe.smc.starts import all_weighed, nearest, weigh
from poe.spaces.structure import candidates

DRAWS = 10_000  # of each posterior
MIN_ESS = 400  # effective draws, where they are weighed ones
MIN_WEIGHED = 1_000  # draws of a posterior that are weighed to the result; 2 DRAWS for all of them
MAX_TAIL_K = 0.6  # Pareto k of the tails of draws; from 1/2 on there is no covariance
BULK = 0.99  # probability of the region of highest density


class Posterior(NamedTuple):
    """A posterior that draws: itself; the positions of the event that it is about, in order; its
    own draws there (n, positions), their effective number and the energy that few of them exceed;
    its mean and covariance, exact or those of the draws; and log weights of its first draws against
    the whole, where it is about the whole event."""

    energy: Energy
    index: Tensor
    x: Tensor
    size: float
    edge: float
    mean: Tensor
    covariance: Tensor
    log_weights: Tensor | None
    exact: bool


class OwnDraws(NamedTuple):
    """Draws (n, numbers), their effective number, and the exact mean and covariance where they are
    known."""

    x: Tensor
    size: float
    moments: tuple[Tensor, Tensor] | None


def posterior_of(
    posterior: Energy, energy: Energy, generator: torch.Generator, parts: int
) -> Posterior | None:
    """What the own draws of one of so many `parts` show; None where it has none, or no
    variance."""
    index = sorted(places(posterior))
    inner, like = part_on(posterior, index), first_tensor(energy)
    with torch.no_grad():
        own = _own_draws(inner, generator)
        if own is None:
            return None
        values = inner(own.x.to(like).reshape(-1, *inner.event_shape)).double()
        if bool(values.isnan().all()):
            return None
        edge, logs = float(values[~values.isnan()].quantile(BULK)), None
        if len(index) == energy.event_shape.numel():
            weighed = own.x[: max(MIN_WEIGHED, 2 * DRAWS // parts)].to(like)
            x = weighed.reshape(-1, *energy.event_shape)
            logs = (posterior(x) - energy(x)).double().cpu()
            logs = torch.where(logs.isnan(), -math.inf, logs)
    mean, covariance = (own.x.mean(0), own.x.T.cov()) if own.moments is None else own.moments
    covariance = covariance.double().cpu().reshape(len(index), -1)
    if not bool(covariance.isfinite().all()) or (own.moments is None and _heavy_tailed(own.x)):
        return None
    return Posterior(
        posterior,
        torch.tensor(index),
        own.x,
        own.size,
        edge,
        mean.double().cpu(),
        covariance,
        logs,
        own.moments is not None,
    )


def _heavy_tailed(x: Tensor) -> bool:  # (n, numbers)
    off = (x - x.median(0).values).abs()
    return pareto_k((off / off.median(0).values.clamp(min=1e-300)).amax(1).log()) > MAX_TAIL_K


def _own_draws(inner: Energy, generator: torch.Generator) -> OwnDraws | None:
    """Draws of a posterior: exact, or weighed ones where they can be had cheaply, of an ensemble
    from the mixture of its copies."""
    if is_on(inner) and len(places(inner)) == inner.event_shape.numel():
        # the same numbers in another order
        own, order = _own_draws(inner.energy, generator), inner.function.index.cpu().argsort()
        if own is None:
            return None
        moments = None
        if own.moments is not None:
            mean, covariance = own.moments
            square = covariance.reshape(len(order), -1)
            moments = mean[order], square[order][:, order]
        return OwnDraws(own.x[:, order], own.size, moments)
    closed = simplify(inner)
    exact, known = as_a(closed, Samples), as_a(closed, Moments)
    if exact is not None:
        x = flattened(exact.sample(DRAWS, generator=generator))
        return OwnDraws(x, DRAWS, None if known is None else known.moments())
    members = copies(inner)
    drawn = bool(members) and all(e.can(Samples) and e.log_z is not None for e in members)
    starts = [mixture(members, [1.0] * len(members))] if drawn else candidates(inner)
    start = nearest(all_weighed(starts, inner, generator))
    if start is None or 4 * DRAWS * start.ess < MIN_ESS * len(start.x):  # more would not do
        return None
    start = weigh(start.density, inner, generator, 4 * DRAWS)
    if not start.pareto_k <= PARETO_LIMIT or start.ess < MIN_ESS:
        return None
    chosen = start.log_weights.softmax(0).multinomial(DRAWS, replacement=True, generator=generator)
    return OwnDraws(flattened(start.x[chosen]), min(start.ess, DRAWS), None)


def flattened(x: Tensor) -> Tensor:  # (n, *event) -> (n, numbers)
    """Events as vectors, in double precision on the CPU."""
    return (x.flatten(1) if x.ndim > 1 else x.unsqueeze(1)).double().cpu()


@singledispatch
def copies(posterior: Energy, *, cut: bool = False) -> list[Energy]:
    """The members of a geometric ensemble Π p_k^(1/n), also on part of an event, shifted, or, where
    that is asked for, `cut` by flat factors; none of other energies."""
    return []


@copies.register
def _(posterior: Pullback, *, cut: bool = False) -> list[Energy]:
    if not is_on(posterior):
        return []
    index, shape = posterior.function.index, posterior.event_shape
    return [on(copy, index, shape) for copy in copies(posterior.energy, cut=cut)]


@copies.register
def _(posterior: Shifted, *, cut: bool = False) -> list[Energy]:
    return copies(posterior.energy, cut=cut)


@copies.register
def _(posterior: Product, *, cut: bool = False) -> list[Energy]:
    terms = [term for term in posterior.terms if not (cut and term.energy.flat)]
    alike = all(abs(term.power - 1 / len(terms)) < 1e-6 for term in terms)
    return [term.energy for term in terms] if alike and len(terms) > 1 else []
