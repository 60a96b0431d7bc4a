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

Where the product lies outside the bulk of an expert's own draws, it depends on tails in which the
expert had no data. The bulk is its region of highest density that holds 99 % of its draws.

References: Raveri and Hu 2019, Phys. Rev. D 99 (tension by parameter differences); Scott et al.
2016, Int. J. Manag. Sci. Eng. Manag. 11(2) (consensus Monte Carlo).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from poe.algebra import support as sets
from poe.algebra.combination import combined
from poe.algebra.combining import places
from poe.algebra.energy import Energy
from poe.diagnostics.agreement import Agreement, Baseline
from poe.diagnostics.verdict import PARETO_LIMIT
from poe.diagnostics.weights import pareto_k
from poe.sampling.posteriors import Posterior, copies, flattened, posterior_of
from poe.sampling.tension import axes_of, inverse, precision, tensions

MAX_NUMBERS = 256  # of an event whose means and covariances are compared


def agreement(energy: Energy, x: Tensor, generator: torch.Generator) -> Agreement | None:
    # (n, *event)
    """How the parts of a combined energy agree, beside its draws; None for an energy that
    `poe.combine` did not make."""
    known = combined(energy)
    if known is None or not len(x):
        return None
    posteriors, n = known.posteriors, energy.event_shape.numel()
    names = tuple(map(str, posteriors))
    nan = (math.nan,) * len(names)
    if sets.is_discrete(energy.support):
        return Agreement(names, (), nan, nan, (), {}, unknown=names)
    parts = [posterior_of(posterior, energy, generator, len(names)) for posterior in posteriors]
    priors = [
        (posterior_of(prior, energy, generator, len(names)), count)
        for prior, count in known.priors
        if not prior.flat
    ]
    pairs, prior_precision = [], None
    if n <= MAX_NUMBERS:
        prior_precision = precision([(part, 1) for part, _ in priors], n)
        exact = all(part is not None and part.exact for part, _ in priors)
        pairs = tensions(parts, prior_precision, exact)
    compared = {i for pair in pairs for i in pair[:2]}
    indices = [places(posterior) for posterior in posteriors]
    shared = [
        any(index & other for j, other in enumerate(indices) if j != i)
        for i, index in enumerate(indices)
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
        _baselines(parts, priors, n) if n <= MAX_NUMBERS and known.is_whole(energy) else {},
        bool(pairs) and prior_precision is None,
        tuple(name for i, name in enumerate(names) if shared[i] and i not in compared),
    )


def _outside(part: Posterior, x: Tensor) -> float:
    with torch.no_grad():
        return float((part.energy(x).double() > part.edge).double().mean())


def _ensemble(posteriors: Sequence[Energy], x: Tensor) -> tuple[float, ...]:
    """Each ensemble in turn is replaced by each of its copies, by reweighting the draws: the
    variance of the means over the copies is summed over the ensembles. NaN where the draws are too
    far from those of a copy to be weighed to them."""
    flat, total = flattened(x).to(x.device), None
    for posterior in {id(posterior): posterior for posterior in posteriors}.values():
        members = copies(posterior, cut=True)
        if not members:
            continue
        times = sum(other is posterior for other in posteriors)
        with torch.no_grad():
            each = torch.stack([member(x).double() for member in members])
            logs = times * (each.mean(0) - each)
        variance = (logs.softmax(-1) @ flat).var(0)
        if any(pareto_k(row) > PARETO_LIMIT for row in logs):
            variance = torch.full_like(variance, math.nan)
        total = variance + (0 if total is None else total)
    return () if total is None else tuple(total.sqrt().tolist())


def _baselines(
    parts: Sequence[Posterior | None], priors: Sequence[tuple[Posterior | None, int]], n: int
) -> dict[str, Baseline]:
    """Simpler answers, where every part draws."""
    listed = [*((part, 1) for part in parts), *((part, 1 - count) for part, count in priors)]
    signed = [(part, times) for part, times in listed if part is not None]
    if len(signed) < len(listed):
        return {}
    known = [part for part in parts if part is not None]
    found: dict[str, tuple[Tensor, Tensor]] = {}
    spread, near = torch.zeros(n, n, dtype=torch.float64), torch.zeros(n, dtype=torch.float64)
    for part, times in signed[::-1]:
        if times > 0:
            spread[part.index.unsqueeze(1), part.index] += part.covariance
            near[part.index] = part.mean
    axes = axes_of(spread)[0]  # answers are near + axes @ coordinates
    pull, total = torch.zeros(n, dtype=torch.float64), torch.zeros(n, n, dtype=torch.float64)
    inverses = [inverse(part.covariance) for part, _ in signed]
    for (part, times), own in zip(signed, inverses, strict=True):
        total[part.index.unsqueeze(1), part.index] += times * own
        pull[part.index] += times * own @ (part.mean - near[part.index])
    inward = axes.T @ total @ axes
    if float(torch.linalg.eigvalsh(inward).min()) > 0:
        covariance = axes @ torch.linalg.inv(inward) @ axes.T
        found["Gaussian product"] = near + covariance @ pull, covariance.diagonal().sqrt()
    whole = [(part, part.log_weights) for part in known if part.log_weights is not None]
    if len(whole) == len(parts):
        own = inverses[: len(parts)]
        total = axes.T @ torch.stack(own).sum(0) @ axes
        weighted = [(part.x - near) @ w for (part, _), w in zip(whole, own, strict=True)]
        pooled = torch.stack(weighted).sum(0)
        consensus = near + pooled @ axes @ torch.linalg.inv(total) @ axes.T
        found["consensus Monte Carlo"] = consensus.mean(0), consensus.std(0)
    possible = [(part, logs) for part, logs in whole if bool((logs > -math.inf).any())]
    if possible:
        best, logs = min(possible, key=lambda pair: pareto_k(pair[1]))
        weights = logs.softmax(0)
        x = best.x[: len(weights)]
        mean = weights @ x
        found["reweighting"] = mean, (weights @ (x - mean).square()).sqrt()
    return {name: Baseline(*(tuple(v.tolist()) for v in pair)) for name, pair in found.items()}
