"""How posteriors that were combined agree: tension, how far each is used outside its own draws, and
simpler answers beside the result.

Posteriors p_i of one parameter vector with the same prior π are multiplied, the prior counted once
(`poe.combine`). With means μ_i and covariances C_i of their own draws, and P that of the prior, the
difference of two posterior means has covariance

    V = C_i + C_j - C_i P⁻¹ C_j - C_j P⁻¹ C_i

under the hypothesis of common parameters (for Gaussians exactly; the last two terms vanish as the
prior widens, or is flat). The tension is that of Q = (μ_i - μ_j)ᵀ V⁻¹ (μ_i - μ_j), χ² with as many
degrees of freedom as V has directions, in sigmas of a normal: P(|z| > t) = P(χ² > Q). Angles count
as numbers on a line, cut where their support ends.

Where the product lies outside the bulk of an expert's own draws, it rests on tails that the expert
never saw. The bulk is its region of highest density that holds 99 % of its draws.

References: Raveri and Hu 2019, Phys. Rev. D 99 (tension by parameter differences); Scott et al.
2016, Int. J. Manag. Sci. Eng. Manag. 11(2) (consensus Monte Carlo).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from poe.algebra import support as sets
from poe.algebra.capabilities import Moments, Samples
from poe.algebra.combination import combined
from poe.algebra.combining import is_on, part_on, places
from poe.algebra.energy import Energy
from poe.algebra.mixture import mixture
from poe.algebra.product import Product
from poe.algebra.pullback import on
from poe.algebra.rules import simplify
from poe.algebra.shifted import Shifted
from poe.diagnostics.agreement import Agreement, Baseline
from poe.diagnostics.verdict import PARETO_LIMIT
from poe.diagnostics.weights import pareto_k
from poe.smc.starts import nearest, weigh
from poe.spaces.structure import candidates

DRAWS = 10_000  # of each posterior
ENOUGH = 400  # effective draws, at the least, where they are weighed ones
WEIGHED = 1_000  # at least so many of a posterior's draws are weighed to the result, and all of 2
MOST = 256  # numbers of an event whose means and covariances are compared
NULL = {
    torch.float32: 1e-10,
    torch.float64: 1e-13,
}  # share of the largest eigenvalue of a correlation matrix that is rounding
# Pareto k of the tails of draws from which on their covariance says nothing: from 1/2 on there is
# none
HEAVY = 0.6
BULK = 0.99
DOUBT = 4.0  # standard errors of a variance of draws below which what is left of it is in doubt


class _Part(NamedTuple):
    """A posterior that draws: itself, the positions of the event that it is about, in order, its
    own draws there (n, positions), how many they count for and the energy that few of them exceed,
    its mean and covariance, exact ones or theirs, and log weights that make the first of its draws
    such of the whole, where it is about the whole event."""

    energy: Energy
    index: Tensor
    x: Tensor
    size: float
    edge: float
    mean: Tensor
    covariance: Tensor
    log_weights: Tensor | None
    exact: bool


class _Own(NamedTuple):
    """Draws (n, numbers), how many they count for, and the mean and covariance where they are known
    without them."""

    x: Tensor
    size: float
    moments: tuple[Tensor, Tensor] | None


def agreement(energy: Energy, x: Tensor, generator: torch.Generator) -> Agreement | None:
    # (n, *event)
    """How the parts of a combined energy agree, beside its draws; None for an energy that
    `poe.combine` did not make."""
    known = combined(energy)
    if known is None or not len(x):
        return None
    names, n, posteriors = (
        tuple(map(str, known.posteriors)),
        energy.event_shape.numel(),
        known.posteriors,
    )
    if sets.is_discrete(energy.support):
        return Agreement(
            names, (), (math.nan,) * len(names), (math.nan,) * len(names), (), {}, unknown=names
        )
    parts = [_part(posterior, energy, generator, len(names)) for posterior in posteriors]
    priors = [
        (_part(prior, energy, generator, len(names)), count)
        for prior, count in known.priors
        if not prior.flat
    ]
    pairs, wide = [], None
    if n <= MOST:
        wide = _precision([(part, 1) for part, _ in priors], n)
        pairs = _tensions(parts, wide, all(part is not None and part.exact for part, _ in priors))
    told = {i for pair in pairs for i in pair[:2]}
    about = [places(posterior) for posterior in posteriors]
    shares = [
        any(about[i] & other for j, other in enumerate(about) if j != i) for i in range(len(about))
    ]
    return Agreement(
        names,
        tuple(pairs),
        tuple(math.nan if part is None else _outside(part, x) for part in parts),
        tuple(
            math.nan if part is None or part.log_weights is None else pareto_k(part.log_weights)
            for part in parts
        ),
        _ensemble(posteriors, x),
        _baselines(parts, priors, n) if n <= MOST and known.is_whole(energy) else {},
        bool(pairs) and wide is None,
        tuple(name for i, name in enumerate(names) if shares[i] and i not in told),
    )


def _part(
    posterior: Energy, energy: Energy, generator: torch.Generator, parts: int
) -> _Part | None:
    """What is known of one of so many parts from its own draws; None where it has none, or no
    variance."""
    index = sorted(places(posterior))
    inner, like = part_on(posterior, index), energy._like()
    with torch.no_grad():
        own = _own(inner, generator)
        if own is None:
            return None
        values = inner(own.x.to(like).reshape(-1, *inner.event_shape)).double()
        if bool(values.isnan().all()):
            return None
        edge, logs = float(values[~values.isnan()].quantile(BULK)), None
        if len(index) == energy.event_shape.numel():
            x = own.x[: max(WEIGHED, 2 * DRAWS // parts)].to(like).reshape(-1, *energy.event_shape)
            logs = (posterior(x) - energy(x)).double().cpu()
            logs = torch.where(logs.isnan(), -math.inf, logs)
    mean, covariance = (own.x.mean(0), own.x.T.cov()) if own.moments is None else own.moments
    covariance = covariance.double().cpu().reshape(len(index), -1)
    if not bool(covariance.isfinite().all()) or (own.moments is None and _is_heavy(own.x)):
        return None
    return _Part(
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


def _is_heavy(x: Tensor) -> bool:  # (n, numbers)
    off = (x - x.median(0).values).abs()
    return pareto_k((off / off.median(0).values.clamp(min=1e-300)).amax(1).log()) > HEAVY


def _own(inner: Energy, generator: torch.Generator) -> _Own | None:
    """Draws of a posterior: exact, or weighed ones where they can be had cheaply, of an ensemble
    from the mixture of its copies."""
    if (
        is_on(inner) and len(places(inner)) == inner.event_shape.numel()
    ):  # the same numbers in another order
        own, order = _own(inner.energy, generator), inner.function.index.cpu().argsort()
        if own is None:
            return None
        mean, covariance = own.moments or (None, None)
        moments = (
            None
            if mean is None or covariance is None
            else (mean[order], covariance.reshape(len(order), -1)[order][:, order])
        )
        return _Own(own.x[:, order], own.size, moments)
    closed = simplify(inner)
    if closed.can(Samples):
        x = closed.sample(DRAWS, generator=generator)  # type: ignore[operator]
        return _Own(_flat(x), DRAWS, closed.moments() if closed.can(Moments) else None)  # type: ignore[operator]
    copies = _copies(inner)
    drawn = bool(copies) and all(copy.can(Samples) and copy.log_z is not None for copy in copies)
    start = nearest(
        [mixture(copies, [1.0] * len(copies))] if drawn else candidates(inner), inner, generator
    )
    if start is None or 4 * DRAWS * start.ess < ENOUGH * len(start.x):  # not worth more evaluations
        return None
    start = weigh(start.density, inner, generator, 4 * DRAWS)
    if not start.pareto_k <= PARETO_LIMIT or start.ess < ENOUGH:
        return None
    chosen = start.log_weights.softmax(0).multinomial(DRAWS, replacement=True, generator=generator)
    return _Own(_flat(start.x[chosen]), min(start.ess, DRAWS), None)


def _flat(x: Tensor) -> Tensor:  # (n, *event) -> (n, numbers)
    return (x.flatten(1) if x.ndim > 1 else x.unsqueeze(1)).double().cpu()


def _precision(parts: Sequence[tuple[_Part | None, int]], n: int) -> Tensor | None:  # -> (n, n)
    """Σ of the inverse covariances, each as often as is said; None where one does not draw."""
    total = torch.zeros(n, n, dtype=torch.float64)
    for part, times in parts:
        if part is None:
            return None
        total[part.index.unsqueeze(1), part.index] += times * _inverse(part.covariance)
    return total


def _axes(matrix: Tensor, *, exact: bool = False) -> tuple[Tensor, Tensor]:
    # (n, n) -> (n, r), (r, n)
    """A and W with A Aᵀ the matrix and W A = 1, along the r directions in which it is more than
    rounding: all, but on a simplex."""
    scale = matrix.diagonal().clamp(min=0).sqrt()
    scale = torch.where(scale > 0, scale, 1)
    values, axes = torch.linalg.eigh(matrix / scale / scale.unsqueeze(1))
    null = NULL[
        torch.float64 if exact or torch.get_default_dtype() == torch.float64 else torch.float32
    ]
    there = values > null * values.max().clamp(min=0)
    axes, root = axes[:, there], values[there].sqrt()
    return scale.unsqueeze(1) * axes * root, axes.T / root.unsqueeze(1) / scale


def _inverse(matrix: Tensor) -> Tensor:  # (n, n)
    """The inverse along those directions."""
    white = _axes(matrix)[1]
    return white.T @ white


def _tensions(
    parts: Sequence[_Part | None], prior: Tensor | None, exact: bool
) -> list[tuple[int, int, float]]:
    """Of each pair that draws and shares parameters: (i, j, sigmas). `prior` is its precision,
    `exact` whether from known moments."""
    found, marginal = [], {}
    spread = None if prior is None else _inverse(prior)
    for j, b in enumerate(parts):
        for i, a in enumerate(parts[:j]):
            shared = (
                []
                if a is None or b is None
                else sorted(set(a.index.tolist()) & set(b.index.tolist()))
            )
            if a is None or b is None or not shared:
                continue
            if spread is not None and tuple(shared) not in marginal:
                marginal[tuple(shared)] = _inverse(
                    spread[shared][:, shared]
                )  # the precision of the prior's marginal law
            known = exact and a.exact and b.exact
            found.append(
                (
                    i,
                    j,
                    _tension(a, b, torch.tensor(shared), marginal.get(tuple(shared)), exact=known),
                )
            )
    return sorted(found)


def _tension(a: _Part, b: _Part, shared: Tensor, prior: Tensor | None, *, exact: bool) -> float:
    """Of the difference of the means with variance V = C_i + C_j - 2 C_i P⁻¹ C_j, P the prior's
    covariance: along the directions in which V is more than what the moments of draws leave in
    doubt. NaN where it is so in none: there the prior decides, not the data."""
    first, second = torch.searchsorted(a.index, shared), torch.searchsorted(b.index, shared)
    difference = a.mean[first] - b.mean[second]
    c, d = a.covariance[first][:, first], b.covariance[second][:, second]
    white = _axes(c + d, exact=exact)[1]  # white (c + d) whiteᵀ is 1
    less = torch.zeros(len(white), len(white)).to(white)
    if prior is not None:
        both = c @ prior @ d
        less = white @ (both + both.T) @ white.T
    less, axes = torch.linalg.eigh((less + less.T) / 2)
    along = axes.T @ white @ difference
    doubt = (
        0 if exact else DOUBT * math.sqrt(2 * len(shared) / min(a.size, b.size))
    )  # relative, of what the prior takes off
    told = 1 - less > (doubt * less.abs()).clamp(min=1e-6)
    return _sigmas(float((along.square() / (1 - less))[told].sum()), int(told.sum()))


def _sigmas(q: float, degrees: int) -> float:
    """The deviation of a normal that is as rare, on both sides, as a chi-square of q or more; NaN
    for no degrees of freedom."""
    from scipy.optimize import (
        brentq,
    )  # arviz-stats brings it, half a second: loaded when it is needed
    from scipy.stats import chi2, norm

    if not degrees:
        return math.nan
    rare = float(chi2.sf(q, degrees))
    if rare > 1e-300:
        return float(norm.isf(rare / 2))
    a, x, below = (
        degrees / 2,
        q / 2,
        0.0,
    )  # far out log P(χ² >= q) follows from Legendre's continued fraction of Γ(a, x)
    for k in range(200, 0, -1):
        below = k * (k - a) / (x + 2 * k + 1 - a - below)
    log_rare = a * math.log(x) - x - math.lgamma(a) - math.log(x + 1 - a - below)
    return float(brentq(lambda s: norm.logsf(s) + math.log(2) - log_rare, 0, math.sqrt(q) + 1))  # type: ignore[arg-type]


def _outside(part: _Part, x: Tensor) -> float:
    with torch.no_grad():
        return float((part.energy(x).double() > part.edge).double().mean())


def _ensemble(posteriors: Sequence[Energy], x: Tensor) -> tuple[float, ...]:
    """Each ensemble in turn is replaced by each of its copies, by reweighting the draws: the
    variance of the means over the copies is summed over the ensembles. NaN where the draws are too
    far from those of a copy to be weighed to them."""
    flat, total = _flat(x).to(x.device), None
    for posterior in {id(posterior): posterior for posterior in posteriors}.values():
        copies = _copies(posterior, cut=True)
        if not copies:
            continue
        times = sum(other is posterior for other in posteriors)  # what is given again moves with it
        with torch.no_grad():
            each = torch.stack([part(x).double() for part in copies])
            logs = times * (each.mean(0) - each)
        variance = (logs.softmax(-1) @ flat).var(0)
        if any(pareto_k(row) > PARETO_LIMIT for row in logs):
            variance = torch.full_like(variance, math.nan)
        total = variance + (0 if total is None else total)
    return () if total is None else tuple(total.sqrt().tolist())


def _copies(posterior: Energy, *, cut: bool = False) -> list[Energy]:
    """The members of a geometric ensemble Π p_k^(1/n), also on part of an event, shifted, or, where
    that is asked for, `cut` by flat factors; none where it is no such."""
    if is_on(posterior):
        index = posterior.function.index
        return [
            on(copy, index, posterior.event_shape) for copy in _copies(posterior.energy, cut=cut)
        ]
    if isinstance(posterior, Shifted):
        return _copies(posterior.energy, cut=cut)
    if not isinstance(posterior, Product):
        return []
    terms = [term for term in posterior.terms if not (cut and term.energy.flat)]
    alike = all(abs(term.power - 1 / len(terms)) < 1e-6 for term in terms)
    return [term.energy for term in terms] if alike and len(terms) > 1 else []


def _baselines(
    parts: Sequence[_Part | None], priors: Sequence[tuple[_Part | None, int]], n: int
) -> dict[str, Baseline]:
    signed = [
        (part, times)
        for part, times in [
            *((part, 1) for part in parts),
            *((part, 1 - count) for part, count in priors),
        ]
    ]
    if any(part is None for part, _ in signed):
        return {}
    known, found = [part for part in parts if part is not None], {}
    spread, near = torch.zeros(n, n, dtype=torch.float64), torch.zeros(n, dtype=torch.float64)
    for part, times in signed[::-1]:
        if part is not None and times > 0:
            spread[part.index.unsqueeze(1), part.index] += part.covariance
            near[part.index] = part.mean
    axes = _axes(spread)[0]  # answers are near + axes @ coordinates
    pull, precision = torch.zeros(n, dtype=torch.float64), torch.zeros(n, n, dtype=torch.float64)
    inverses = [_inverse(part.covariance) for part, _ in signed if part is not None]
    for (part, times), inverse in zip(signed, inverses, strict=True):
        if part is not None:
            precision[part.index.unsqueeze(1), part.index] += times * inverse
            pull[part.index] += times * inverse @ (part.mean - near[part.index])
    inward = axes.T @ precision @ axes
    if float(torch.linalg.eigvalsh(inward).min()) > 0:
        covariance = axes @ torch.linalg.inv(inward) @ axes.T
        found["Gaussian product"] = _baseline(
            near + covariance @ pull, covariance.diagonal().sqrt()
        )
    whole = [part for part in known if part.log_weights is not None]
    if len(whole) == len(parts):
        total = axes.T @ torch.stack(inverses[: len(parts)]).sum(0) @ axes
        pooled = torch.stack(
            [
                (part.x - near) @ inverse
                for part, inverse in zip(whole, inverses[: len(parts)], strict=True)
            ]
        ).sum(0)
        consensus = near + pooled @ axes @ torch.linalg.inv(total) @ axes.T
        found["consensus Monte Carlo"] = _baseline(consensus.mean(0), consensus.std(0))
    possible = [part for part in whole if bool((part.log_weights > -math.inf).any())]  # type: ignore[operator]
    if possible:
        best = min(possible, key=lambda part: pareto_k(part.log_weights))  # type: ignore[arg-type]
        weights = best.log_weights.softmax(0)  # type: ignore[union-attr]
        x = best.x[: len(weights)]
        mean = weights @ x
        found["reweighting"] = _baseline(mean, (weights @ (x - mean).square()).sqrt())
    return found


def _baseline(mean: Tensor, sd: Tensor) -> Baseline:
    return Baseline(tuple(mean.tolist()), tuple(sd.tolist()))
