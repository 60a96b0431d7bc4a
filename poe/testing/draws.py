"""Laws of normalisation and of draws: quadrature, enumeration, frequencies, distribution functions,
Stein's identity."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from poe.algebra import support as sets
from poe.testing.case import Case, Skip, mean_pvalues, require, seeded


def normalisation(case: Case) -> None:
    """The stated log_z agrees with a sum, a quadrature, or draws."""
    e = case.expert
    if e.log_z is None:
        raise Skip("log Z is unknown")
    claimed, error = e.log_z.value, e.log_z.standard_error
    if case.discrete:
        found = float(torch.logsumexp(-e(case.states).detach().double(), 0))
        _agree(found, claimed, 1e-3 + 6 * error, "the sum of exp(-E) over the support")
        return
    case.twin  # noqa: B018  (skips where there is no double precision)
    try:
        nodes, log_mass = case.grid
    except Skip:
        _normalisation_by_draws(case, claimed, error)
        return
    found, coarse = float(log_mass.logsumexp(0)), _coarse(log_mass, nodes[0].numel())
    if abs(found - coarse) > 0.05:
        raise Skip(
            f"quadrature does not resolve the density: {found:.4f} against {coarse:.4f} on half "
            "the nodes"
        )
    _agree(found, claimed, 1e-3 + 6 * error + abs(found - coarse), "the integral of exp(-E)")


def _coarse(log_mass: Tensor, dimensions: int) -> float:
    """The trapezoidal rule on every other node along each axis."""
    side = round(len(log_mass) ** (1 / dimensions))
    table = log_mass.reshape((side,) * dimensions)[(slice(None, None, 2),) * dimensions]
    return float(table.flatten().logsumexp(0)) + dimensions * math.log(2)


def _normalisation_by_draws(case: Case, claimed: float, error: float) -> None:
    """E_p[q / p] = 1 for a Gaussian q inside p, fitted to half of the draws and averaged over the
    others."""
    z = case.free(case.draws).reshape(case.n, -1)
    fit, rest = z[: case.n // 2], z[case.n // 2 :]
    if not z.isfinite().all() or 4 * z.shape[1] > len(fit):
        raise Skip(f"{case.n} draws do not show the covariance of {z.shape[1]} coordinates")
    covariance = 0.8 * torch.cov(fit.T).reshape(z.shape[1], -1)
    factor, failed = torch.linalg.cholesky_ex(covariance)
    if failed:
        raise Skip("the draws lie in a plane")
    q = torch.distributions.MultivariateNormal(fit.mean(0), scale_tril=factor)
    shape = case.free(case.draws[:1]).shape[1:]
    with torch.no_grad():
        log_w = q.log_prob(rest) - case.log_density(rest.reshape(-1, *shape)) + claimed
    w = (log_w - log_w.max()).exp()
    if (w.sum() ** 2 / w.square().sum()) < 200:
        raise Skip(
            "no Gaussian is close enough to the draws, and quadrature needs one or two dimensions"
        )
    mean = w.mean()
    found = float(mean.log() + log_w.max())  # log of Z claimed / Z
    spread = float(w.std() / mean / math.sqrt(len(w)))
    z_max = float(stats.norm.isf(case.level / 2))
    _agree(
        claimed - found,
        claimed,
        z_max * (spread + error) + 0.01,
        "log Z by comparing draws and density",
    )


def _agree(found: float, claimed: float, tolerance: float, what: str) -> None:
    message = (
        f"{what} gives log Z = {found:.5f}, and log_z says {claimed:.5f} (tolerance "
        f"{tolerance:.2g})"
    )
    require(abs(found - claimed) <= tolerance, message)


def draws(case: Case) -> None:
    """Draws have the stated shapes, depend on their generator only, and lie in the support."""
    e, x, sample = case.expert, case.draws, case.sample
    event = e.event_shape
    for n in (5, (2, 3), 0, (), (2, 0)):
        shape = (n,) if isinstance(n, int) else n
        drawn = sample(n)
        require(
            drawn.shape == shape + event,
            f"sample({n}) has shape {tuple(drawn.shape)}, not {(*shape, *event)}",
        )
    first = sample(50)
    with seeded(1):
        again = sample(50)
        require(torch.equal(again, first), "two samples from the same generator state differ")
        after = torch.rand(())
        torch.manual_seed(1)
        require(
            torch.equal(after, torch.rand(())),
            "sample with a generator draws from the global one too",
        )
    other = sample(50, 1)
    require(not torch.equal(other, first), "samples from two seeds are the same")
    require(not x.requires_grad, "draws carry a graph")
    require(sets.contains(e.support, x).all(), "some draws lie outside the support")
    require(e(x).isfinite().all(), "some draws have energy that is not finite")


def draws_match_density(case: Case) -> None:
    """Draws follow the density: frequencies, a distribution function, or Stein's identity."""
    if case.discrete:
        _frequencies(case)
        return
    z = case.free(case.draws)
    z = z[z.isfinite().reshape(len(z), -1).all(-1)]  # rounding may put a draw on the edge
    reasons = []
    for test in (_distribution_function, _stein):
        try:
            test(case, z)
        except Skip as reason:
            reasons.append(str(reason))
    if len(reasons) == 2:
        raise Skip("; ".join(reasons))


def _frequencies(case: Case) -> None:
    """A χ² test of the frequencies of draws of a discrete expert."""
    states = case.states
    flat = states.reshape(len(states), -1).double().cpu()
    p = (-case.expert(states).double()).softmax(0).detach().cpu()
    base = torch.tensor([flat.max() - flat.min() + 1], dtype=torch.float64)
    code = base ** torch.arange(flat.shape[1], dtype=torch.float64)
    index = {float(key): i for i, key in enumerate((flat @ code).tolist())}
    keys = (case.draws.reshape(case.n, -1).double().cpu() @ code).tolist()
    unknown = [key for key in keys if key not in index]
    require(
        len(unknown) <= 0.001 * case.n,
        f"{len(unknown)} of {case.n} draws are not points of the support",
    )
    counts = torch.bincount(
        torch.tensor([index[k] for k in keys if k in index]), minlength=len(states)
    ).double()
    order = p.argsort(descending=True)
    p, counts = p[order], counts[order]
    common = p * case.n >= 5
    expected = torch.cat([p[common], p[~common].sum()[None]]) * case.n
    observed = torch.cat([counts[common], counts[~common].sum()[None]])
    kept = expected >= 5
    chi2 = float(((observed - expected).square() / expected)[kept].sum())
    pvalue = stats.chi2.sf(chi2, max(int(kept.sum()) - 1, 1))
    require(
        pvalue >= case.level,
        f"frequencies of draws differ from probabilities: χ² = {chi2:.1f}, p = {pvalue:.2g}",
    )


def _distribution_function(case: Case, z: Tensor) -> None:
    """A Kolmogorov-Smirnov test in one dimension."""
    if z[0].numel() > 1:
        raise Skip("a distribution function needs one dimension")
    nodes, log_mass = case.grid
    below = log_mass.softmax(0).cumsum(0)
    at = np.interp(z.reshape(-1).numpy(), nodes.reshape(-1).numpy(), below.numpy())
    result: Any = stats.kstest(at, "uniform", method="asymp")
    require(
        result.pvalue >= case.level,
        f"draws and density differ: Kolmogorov-Smirnov D = {result.statistic:.4f}, p = "
        f"{result.pvalue:.2g}",
    )


def _stein(case: Case, z: Tensor) -> None:
    """For draws of p, E[s] = 0 and E[(z - m) s] = -1 by coordinate, where s = ∇ log p (Stein)."""
    case.differentiable()
    leaf = z.detach().clone().requires_grad_()
    (score,) = torch.autograd.grad(case.log_density(leaf).sum(), leaf)
    s, flat = score.reshape(len(z), -1), z.reshape(len(z), -1)
    centred = flat - flat.median(0).values
    pvalues = mean_pvalues(torch.cat([s, centred * s + 1], 1))
    worst = float(pvalues.min())
    require(
        worst * len(pvalues) >= case.level,
        f"draws and density differ: E[score] = 0, E[x·score] = -1 have p = {worst:.2g}, "
        f"{len(pvalues)} tests",
    )
