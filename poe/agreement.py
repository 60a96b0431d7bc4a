"""How posteriors that were combined agree: tension, how far each is used outside its own draws, and simpler answers beside the result.

Posteriors p_i of one parameter vector with the same prior π are multiplied, the prior counted once (`poe.combine`). With means μ_i and
covariances C_i of their own draws, and P that of the prior, the difference of two posterior means has covariance

    V = C_i + C_j - C_i P⁻¹ C_j - C_j P⁻¹ C_i

under the hypothesis of common parameters (for Gaussians exactly; the last two terms vanish as the prior widens, or is flat). The
tension is that of Q = (μ_i - μ_j)ᵀ V⁻¹ (μ_i - μ_j), χ² with as many degrees of freedom as V has directions, in sigmas of a normal:
P(|z| > t) = P(χ² > Q).

Where the product lies outside the bulk of an expert's own draws, it rests on tails that the expert never saw. The bulk is its region of
highest density that holds 99 % of its draws.

References: Raveri and Hu 2019, Phys. Rev. D 99 (tension by parameter differences); Scott et al. 2016, Int. J. Manag. Sci. Eng. Manag.
11(2) (consensus Monte Carlo).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from poe import support as sets
from poe.capabilities import Moments, Samples
from poe.diagnostics import PARETO_LIMIT, pareto_k
from poe.energy import Combination, Energy, Product, Pullback, Select, Shifted, combined, on, part_on, places, product
from poe.rules import simplify
from poe.starts import candidates, nearest, weigh

DRAWS = 10_000  # of each posterior
ENOUGH = 400  # effective draws, at the least, where they are weighed ones
NULL = 1e-8  # share of the largest eigenvalue of a correlation matrix below which a direction is none, as on a simplex
BULK = 0.99
OUTSIDE = 0.2  # share of the result outside the bulk of an expert from which on it rests on extrapolated tails
DOUBT = 4.0  # standard errors of a variance of draws below which what is left of it is in doubt
TENSE = 3.0  # sigmas from which on a pair is said to disagree


class Baseline(NamedTuple):
    """A simpler answer: mean and standard deviation of each number of the event, flattened; NaN where it has none."""

    mean: tuple[float, ...]
    sd: tuple[float, ...]


@dataclass(frozen=True)
class Agreement:
    """How the parts of `poe.combine` agree, as far as they draw samples.

    Attributes:
        names: the posteriors, as they print.
        tension: (i, j, sigmas) of each pair that shares parameters; NaN where the prior decides what the pair has in common.
        at_least: whether that is a lower bound, the prior being unknown but for its density: it draws no samples, and counts as wide.
        outside: the share of the combined draws outside the bulk (99 %) of each posterior's own draws; NaN where it cannot draw.
        pareto_k: of the weights that would turn each posterior's own draws into the result: above 0.7 they cannot; NaN likewise.
        ensemble: error bar (one sd) of the mean of each number of the event, flattened: its spread over retrained copies of posteriors
            that are geometric ensembles, `poe.product(copies, powers=1/n)`; empty where none is. It is not divided by √n: copies on
            bootstrap samples spread as one fit does from sample to sample, and that is in common to all of them.
        baselines: simpler answers, where nothing but the combination was drawn: "Gaussian product" of means and covariances, the
            prior counted once; "consensus Monte Carlo", own draws averaged with weights C_i⁻¹, which counts the prior n times; and
            "reweighting" of the own draws of the nearest posterior.
    """

    names: tuple[str, ...]
    tension: tuple[tuple[int, int, float], ...]
    outside: tuple[float, ...]
    pareto_k: tuple[float, ...]
    ensemble: tuple[float, ...]
    baselines: dict[str, Baseline]
    at_least: bool = False

    @property
    def tensions(self) -> list[str]:
        """Pairs that hardly speak of the same parameters."""
        return [
            f"{self.names[i]} and {self.names[j]} are in tension by {self._bound}{sigmas:.1f} sigmas: they hardly speak of the same "
            "parameters; try each alone, or look for what one of them leaves out"
            for i, j, sigmas in self.tension
            if sigmas >= TENSE
        ]

    @property
    def _bound(self) -> str:
        return "at least " if self.at_least else ""

    @property
    def unchecked(self) -> list[str]:
        """Posteriors of which nobody knows whether they agree with the others."""
        return [
            f"{name} draws no samples, so that nobody checked how it agrees with the others; poe.fit_density(draws of it) would"
            for name, share in zip(self.names, self.outside, strict=True)
            if math.isnan(share)
        ]

    @property
    def extrapolations(self) -> list[str]:
        """Posteriors on whose tails the answer rests."""
        return [
            f"{100 * share:.0f} % of the draws lie outside the bulk of the own draws of {name}: the answer rests on its extrapolated "
            "tails; try to retrain it with draws from there"
            for name, share in zip(self.names, self.outside, strict=True)
            if share > OUTSIDE
        ]

    @classmethod
    def read(cls, facts: dict[str, Any]) -> Agreement:
        """From the plain values that a file holds."""
        lists: dict[str, Any] = {name: _tuples(fact) for name, fact in facts.items() if name != "baselines"}
        baselines = {name: Baseline(tuple(mean), tuple(sd)) for name, (mean, sd) in facts["baselines"].items()}
        return cls(**lists, baselines=baselines)

    def lines(self) -> list[str]:
        """The lines of a report."""
        found = []
        for i, j, sigmas in self.tension:
            known = "unknown: the prior decides, not the data," if math.isnan(sigmas) else f"{self._bound}{sigmas:.1f} sigmas"
            found.append(f"  tension        {known} between {self.names[i]} and {self.names[j]}")
        for name, share, k in zip(self.names, self.outside, self.pareto_k, strict=True):
            known = (
                "draws no samples: not checked" if math.isnan(share) else f"{100 * share:.1f} % of the draws are outside its bulk"
            )
            found.append(f"  part           {name}: {known}" + ("" if math.isnan(k) else f"; Pareto k {k:.2f} of reweighting it"))
        if self.ensemble:
            found.append(f"  ensembles      error of the means by the spread over copies: {_numbers(self.ensemble)}")
        for name, (mean, sd) in self.baselines.items():
            found.append(f"  {name:<14} mean {_numbers(mean)}; sd {_numbers(sd)}")
        return found


class _Part(NamedTuple):
    """A posterior that draws: itself, the positions of the event that it is about, the same over those alone, its own draws
    (n, positions) and how many they count for, its mean and covariance, exact ones or theirs, and log weights that make them draws of
    the whole, where it is about the whole event."""

    energy: Energy
    index: Tensor
    inner: Energy
    x: Tensor
    size: float
    mean: Tensor
    covariance: Tensor
    log_weights: Tensor | None
    exact: bool


def agreement(energy: Energy, x: Tensor, generator: torch.Generator) -> Agreement | None:  # (n, *event)
    """How the parts of a combined energy agree, beside its draws; None for an energy that `poe.combine` did not make."""
    known = combined(energy)
    if known is None or not len(x) or sets.is_discrete(energy.support):
        return None
    n, posteriors = energy.event_shape.numel(), known.posteriors
    parts = [_part(posterior, energy, generator) for posterior in posteriors]
    priors = [(_part(prior, energy, generator), count) for prior, count in known.priors if not prior.flat]
    wide = _precision([(part, 1) for part, _ in priors], n)
    exact = all(part is not None and part.exact for part, _ in priors)
    pairs = [
        (i, j, sigmas)
        for i in range(len(parts))
        for j in range(i + 1, len(parts))
        if (sigmas := _tension(parts[i], parts[j], wide, exact=exact)) is not None
    ]
    return Agreement(
        tuple(str(posterior) for posterior in posteriors),
        tuple(pairs),
        tuple(math.nan if part is None else _outside(part, energy, x) for part in parts),
        tuple(math.nan if part is None or part.log_weights is None else pareto_k(part.log_weights) for part in parts),
        _ensemble(posteriors, x),
        _baselines(parts, priors, n) if _is_all(known, energy) else {},
        bool(pairs) and wide is None,
    )


def _is_all(known: Combination, energy: Energy) -> bool:
    """Whether nothing was multiplied with the combination afterwards."""
    while isinstance(energy, Shifted):
        energy = energy.energy
    factors, counts = [factor for factor, _ in known.priors], [count for _, count in known.priors]
    made = product([*known.posteriors, *factors], [1.0] * len(known.posteriors) + [1.0 - count for count in counts])
    each = [{(id(t.energy), t.power) for t in e.terms} if isinstance(e, Product) else {(id(e), 1.0)} for e in (made, energy)]
    return each[0] == each[1]


def _part(posterior: Energy, energy: Energy, generator: torch.Generator) -> _Part | None:
    """What is known of a part from its own draws, weighed ones where it has no others; None where it has none."""
    on_part = isinstance(posterior, Pullback) and isinstance(posterior.function, Select)
    index = posterior.function.index.tolist() if on_part else sorted(places(posterior))  # type: ignore[union-attr]
    inner = part_on(posterior, index)
    with torch.no_grad():
        known = _own(inner, generator)
        if known is None:
            return None
        x, size, closed = known
        x = x.to(energy._like())
        flat, logs = _flat(x), None
        if inner is posterior and size == len(x) and not _copies(inner):
            logs = (posterior(x) - energy(x)).double().cpu()
            logs = torch.where(logs.isnan(), -math.inf, logs)
        exact = closed.can(Moments)
        mean, covariance = closed.moments() if exact else (flat.mean(0), flat.T.cov())  # type: ignore[operator]
    covariance = covariance.double().cpu().reshape(len(index), -1)
    if not bool(covariance.isfinite().all()):
        return None
    return _Part(posterior, torch.tensor(index), inner, flat, size, mean.double().cpu(), covariance, logs, exact)


def _own(inner: Energy, generator: torch.Generator) -> tuple[Tensor, float, Energy] | None:  # -> (n, *event)
    """Draws of a posterior, how many they count for, and its closed form; None where none can be had cheaply."""
    closed = simplify(inner)
    copies = [closed] if closed.can(Samples) else _copies(inner)  # an ensemble lies where its copies lie
    if copies and all(part.can(Samples) for part in copies):
        x = torch.cat([part.sample(DRAWS // len(copies), generator=generator) for part in copies])  # type: ignore[operator]
        return x, len(x), closed
    start = nearest(candidates(inner), inner, generator)
    if start is None:
        return None
    start = weigh(start.density, inner, generator, 4 * DRAWS)
    if not start.pareto_k <= PARETO_LIMIT or start.ess < ENOUGH:
        return None
    weights = start.log_weights.softmax(0)
    return start.x[weights.multinomial(DRAWS, replacement=True, generator=generator)], min(start.ess, DRAWS), inner


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


def _axes(matrix: Tensor) -> tuple[Tensor, Tensor]:  # (n, n) -> (n, r), (r, n)
    """A and W with A Aᵀ the matrix and W A = 1, along the r directions in which it is more than rounding: all, but on a simplex."""
    scale = matrix.diagonal().clamp(min=0).sqrt()
    scale = torch.where(scale > 0, scale, 1)
    values, axes = torch.linalg.eigh(matrix / scale / scale.unsqueeze(1))
    there = values > NULL * values.max().clamp(min=0)
    axes, root = axes[:, there], values[there].sqrt()
    return scale.unsqueeze(1) * axes * root, axes.T / root.unsqueeze(1) / scale


def _inverse(matrix: Tensor) -> Tensor:  # (n, n)
    """The inverse along those directions."""
    white = _axes(matrix)[1]
    return white.T @ white


def _tension(a: _Part | None, b: _Part | None, prior: Tensor | None, *, exact: bool) -> float | None:
    """Of the difference of the means with variance V = C_i + C_j - 2 C_i P⁻¹ C_j, P the prior's covariance: along the directions in
    which V is more than what the moments of draws leave in doubt. NaN where it is so in none: there the prior decides, not the data."""
    if a is None or b is None:
        return None
    shared = [(i, j) for i, p in enumerate(a.index.tolist()) for j, q in enumerate(b.index.tolist()) if p == q]
    if not shared:
        return None
    first, second = (torch.tensor(side) for side in zip(*shared, strict=True))
    difference = a.mean[first] - b.mean[second]
    c, d = a.covariance[first][:, first], b.covariance[second][:, second]
    white = _axes(c + d)[1]  # white (c + d) whiteᵀ is 1
    variance = torch.eye(len(white)).to(white)
    if prior is not None:
        places = a.index[first]
        known = _inverse(_inverse(prior)[places][:, places])  # of the prior's marginal law
        both = c @ known @ d
        variance = variance - white @ (both + both.T) @ white.T
    values, axes = torch.linalg.eigh((variance + variance.T) / 2)
    along = axes.T @ white @ difference
    told = values > (1e-6 if exact and a.exact and b.exact else DOUBT * math.sqrt(2 * len(shared) / min(a.size, b.size)))
    return _sigmas(float((along.square() / values)[told].sum()), int(told.sum()))


def _sigmas(q: float, degrees: int) -> float:
    """The deviation of a normal that is as rare, on both sides, as a chi-square of q or more; NaN for no degrees of freedom."""
    from scipy.optimize import brentq  # arviz-stats brings it, half a second: loaded when it is needed
    from scipy.stats import chi2, norm

    if not degrees:
        return math.nan
    if q < 1000:
        return float(norm.isf(chi2.sf(q, degrees) / 2))
    half = degrees / 2  # far out log P(χ² >= q) is that of the first two terms of its asymptotic series
    rare = (half - 1) * math.log(q / 2) - q / 2 - math.lgamma(half) + math.log1p(2 * (half - 1) / q)
    return float(brentq(lambda s: norm.logsf(s) + math.log(2) - rare, 0, math.sqrt(q) + 1))  # type: ignore[arg-type]


def _outside(part: _Part, energy: Energy, x: Tensor) -> float:
    with torch.no_grad():
        edge = part.inner(part.x.to(energy._like()).reshape(-1, *part.inner.event_shape)).double().quantile(BULK)
        return float((part.energy(x).double() > edge).double().mean())


def _ensemble(posteriors: Sequence[Energy], x: Tensor) -> tuple[float, ...]:
    """Each ensemble in turn is replaced by each of its copies, by reweighting the draws: the variance of the means over the copies is
    summed over the ensembles."""
    flat, total = _flat(x).to(x.device), None
    for posterior in posteriors:
        copies = _copies(posterior, cut=True)
        if not copies:
            continue
        with torch.no_grad():
            each = torch.stack([part(x).double() for part in copies])
            weights = (each.mean(0) - each).softmax(-1)  # (copies, n)
        means = weights @ flat
        total = means.var(0) + (0 if total is None else total)
    return () if total is None else tuple(total.sqrt().tolist())


def _copies(posterior: Energy, *, cut: bool = False) -> list[Energy]:
    """The members of a geometric ensemble Π p_k^(1/n), also on part of an event, shifted, or, where that is asked for, `cut` by flat
    factors; none where it is no such."""
    if isinstance(posterior, Pullback) and isinstance(posterior.function, Select):
        index = posterior.function.index
        return [on(copy, index, posterior.event_shape) for copy in _copies(posterior.energy, cut=cut)]
    if isinstance(posterior, Shifted):
        return _copies(posterior.energy, cut=cut)
    if not isinstance(posterior, Product):
        return []
    terms = [term for term in posterior.terms if not (cut and term.energy.flat)]
    alike = all(abs(term.power - 1 / len(terms)) < 1e-6 for term in terms)
    return [term.energy for term in terms] if alike and len(terms) > 1 else []


def _baselines(parts: Sequence[_Part | None], priors: Sequence[tuple[_Part | None, int]], n: int) -> dict[str, Baseline]:
    signed = [*((part, 1) for part in parts), *((part, 1 - count) for part, count in priors)]
    if any(part is None for part, _ in signed):
        return {}
    known = [part for part in parts if part is not None]
    inverses, found = [_inverse(part.covariance) for part in known], {}
    spread, near = torch.zeros(n, n, dtype=torch.float64), torch.zeros(n, dtype=torch.float64)
    for part in known[::-1]:
        spread[part.index.unsqueeze(1), part.index] += part.covariance
        near[part.index] = part.mean
    axes = _axes(spread)[0]  # answers are near + axes @ coordinates
    pull, precision = torch.zeros(n, dtype=torch.float64), torch.zeros(n, n, dtype=torch.float64)
    for part, times in signed:
        assert part is not None
        inverse = times * _inverse(part.covariance)
        precision[part.index.unsqueeze(1), part.index] += inverse
        pull[part.index] += inverse @ (part.mean - near[part.index])
    inward = axes.T @ precision @ axes
    if float(torch.linalg.eigvalsh(inward).min()) > 0:
        covariance = axes @ torch.linalg.inv(inward) @ axes.T
        found["Gaussian product"] = _baseline(near + covariance @ pull, covariance.diagonal().sqrt())
    whole = [part for part in known if part.log_weights is not None]
    if len(whole) == len(parts):
        pooled = torch.stack([(part.x - near) @ inverse for inverse, part in zip(inverses, whole, strict=True)]).sum(0)
        total = axes.T @ torch.stack(inverses).sum(0) @ axes
        consensus = near + pooled @ axes @ torch.linalg.inv(total) @ axes.T
        found["consensus Monte Carlo"] = _baseline(consensus.mean(0), consensus.std(0))
    possible = [part for part in whole if bool((part.log_weights > -math.inf).any())]  # type: ignore[operator]
    if possible:
        best = min(possible, key=lambda part: pareto_k(part.log_weights))  # type: ignore[arg-type]
        weights = best.log_weights.softmax(0)  # type: ignore[union-attr]
        mean = weights @ best.x
        found["reweighting"] = _baseline(mean, (weights @ (best.x - mean).square()).sqrt())
    return found


def _baseline(mean: Tensor, sd: Tensor) -> Baseline:
    return Baseline(tuple(mean.tolist()), tuple(sd.tolist()))


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def _numbers(values: Sequence[float], most: int = 6) -> str:
    return " ".join(f"{value:.4g}" for value in values[:most]) + (" ..." if len(values) > most else "")
