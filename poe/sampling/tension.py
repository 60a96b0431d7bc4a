"""Tension between posteriors, in sigmas (`poe.sampling.agreement` has the formula)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from poe.sampling.posteriors import Posterior

# share of the largest eigenvalue of a correlation matrix that is rounding
ROUNDING = {torch.float32: 1e-10, torch.float64: 1e-13}
# standard errors of a variance of draws that its remainder must exceed
MIN_SIGNIFICANCE = 4.0


def precision(parts: Sequence[tuple[Posterior | None, int]], n: int) -> Tensor | None:  # -> (n, n)
    """Σ of the inverse covariances, each as often as is said; None where one does not draw."""
    total = torch.zeros(n, n, dtype=torch.float64)
    for part, times in parts:
        if part is None:
            return None
        total[part.index.unsqueeze(1), part.index] += times * inverse(part.covariance)
    return total


def axes_of(matrix: Tensor, *, exact: bool = False) -> tuple[Tensor, Tensor]:
    # (n, n) -> (n, r), (r, n)
    """A and W with A Aᵀ the matrix and W A = 1, along the r directions in which it is more than
    rounding: all, but on a simplex."""
    scale = matrix.diagonal().clamp(min=0).sqrt()
    scale = torch.where(scale > 0, scale, 1)
    values, axes = torch.linalg.eigh(matrix / scale / scale.unsqueeze(1))
    double = exact or torch.get_default_dtype() == torch.float64
    null = ROUNDING[torch.float64 if double else torch.float32]
    kept = values > null * values.max().clamp(min=0)
    axes, root = axes[:, kept], values[kept].sqrt()
    return scale.unsqueeze(1) * axes * root, axes.T / root.unsqueeze(1) / scale


def inverse(matrix: Tensor) -> Tensor:  # (n, n)
    """The inverse along those directions."""
    white = axes_of(matrix)[1]
    return white.T @ white


def tensions(
    parts: Sequence[Posterior | None], prior: Tensor | None, exact: bool
) -> list[tuple[int, int, float]]:
    """Of each pair that draws and shares parameters: (i, j, sigmas). `prior` is its precision,
    `exact` whether from known moments."""
    found, marginal = [], {}
    spread = None if prior is None else inverse(prior)
    for j, b in enumerate(parts):
        for i, a in enumerate(parts[:j]):
            if a is None or b is None:
                continue
            shared = tuple(sorted(set(a.index.tolist()) & set(b.index.tolist())))
            if not shared:
                continue
            if spread is not None and shared not in marginal:  # precision of the prior's marginal
                marginal[shared] = inverse(spread[shared, :][:, shared])
            known, index = exact and a.exact and b.exact, torch.tensor(shared)
            found.append((i, j, _tension(a, b, index, marginal.get(shared), exact=known)))
    return sorted(found)


def _tension(
    a: Posterior, b: Posterior, shared: Tensor, prior: Tensor | None, *, exact: bool
) -> float:
    """Of the difference of the means with variance V = C_i + C_j - 2 C_i P⁻¹ C_j, P the prior's
    covariance, along the directions in which V is significant against the error of the moments of
    draws. NaN where there is none: the prior decides, not the data."""
    first, second = torch.searchsorted(a.index, shared), torch.searchsorted(b.index, shared)
    difference = a.mean[first] - b.mean[second]
    c, d = a.covariance[first][:, first], b.covariance[second][:, second]
    white = axes_of(c + d, exact=exact)[1]  # white (c + d) whiteᵀ is 1
    less = torch.zeros(len(white), len(white)).to(white)
    if prior is not None:
        both = c @ prior @ d
        less = white @ (both + both.T) @ white.T
    less, axes = torch.linalg.eigh((less + less.T) / 2)
    components = axes.T @ white @ difference
    # relative error of what the prior takes off
    error = 0 if exact else MIN_SIGNIFICANCE * math.sqrt(2 * len(shared) / min(a.size, b.size))
    significant = 1 - less > (error * less.abs()).clamp(min=1e-6)
    q = float((components.square() / (1 - less))[significant].sum())
    return sigmas_of(q, int(significant.sum()))


def sigmas_of(q: float, degrees: int) -> float:
    """The deviation of a normal that is as rare, on both sides, as a chi-square of q or more; NaN
    for no degrees of freedom."""
    from scipy.optimize import brentq  # arviz-stats brings scipy; half a second
    from scipy.stats import chi2, norm

    if not degrees:
        return math.nan
    rare = float(chi2.sf(q, degrees))
    if rare > 1e-300:
        return float(norm.isf(rare / 2))
    # far out log P(χ² >= q) follows from Legendre's continued fraction of Γ(a, x)
    a, x, below = degrees / 2, q / 2, 0.0
    for k in range(200, 0, -1):
        below = k * (k - a) / (x + 2 * k + 1 - a - below)
    log_rare = a * math.log(x) - x - math.lgamma(a) - math.log(x + 1 - a - below)
    return float(brentq(lambda s: norm.logsf(s) + math.log(2) - log_rare, 0, math.sqrt(q) + 1))  # type: ignore[arg-type]
