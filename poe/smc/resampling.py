"""Weights of particles: estimates of Z with their errors, resampling, and a space-filling order."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from poe.algebra.energy import Estimate
from poe.diagnostics.weights import weight_ess

SORTED_COORDINATES = 4  # those of greatest variance, along which particles are sorted


def estimate(log_ratios: Tensor) -> Estimate:  # (populations)
    """log of the mean of independent estimates of Z, with the standard error sd(Z) / (sqrt(n)
    mean(Z)) of the delta method, times the ratio of the 97.5 % points of Student's t and of the
    normal, so that ±1.96 of it covers 95 % for small n too."""
    logs, n = log_ratios.double(), len(log_ratios)
    value = logs.logsumexp(0) - math.log(n)
    if n == 1 or value == -math.inf:
        return Estimate(value.item(), math.inf)
    return Estimate(
        value.item(), (logs - value).exp().std().item() / math.sqrt(n) * _student(n - 1)
    )


def _student(freedom: int) -> float:
    """The 97.5 % point of Student's t over that of the normal."""
    from scipy.stats import norm, t  # half a second: loaded when an error is first asked for

    return float(t.ppf(0.975, freedom) / norm.ppf(0.975))


def systematic(log_weights: Tensor, uniform: Tensor, count: int | None = None) -> Tensor:
    # (populations, particles), (populations, 2) -> (populations, count)
    """Systematic resampling: indices whose mean numbers of copies are count·w_i, from two uniform
    numbers per population. Copies are neighbours.

    The points (i + u)/count are looked up in the cumulative weights (Kitagawa 1996, J. Comput.
    Graph. Statist. 5(1)). The first point is more likely to fall on a small weight than a later
    one, so the second number rotates the list: then each place has the same law.
    """
    n = log_weights.shape[-1]
    count = n if count is None else count
    edges = log_weights.double().softmax(-1).cumsum(-1)
    place = torch.arange(count, device=log_weights.device)
    turned = (place + (uniform[..., 1:] * count).long()) % count
    at = (turned + uniform[..., :1].double()) / count
    return torch.searchsorted(edges / edges[..., -1:], at.clamp(max=1 - 1e-12), right=True).clamp(
        max=n - 1
    )


def resampled(
    logs: Tensor,
    generator: torch.Generator,
    *,
    always: bool,
    threshold: float = 0.5,
    count: int | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    # (populations, n) -> (populations, count), (populations, count), (populations)
    """Indices of the particles that are kept, their log weights after that, and the increment of
    log Z. Populations whose effective share is below `threshold` are resampled, or `always`, and
    all to `count` particles where that is not n. A population without weight is left as it is, with
    Z = 0."""
    populations, n = logs.shape
    count = n if count is None else count
    always |= count != n
    size = weight_ess(logs)
    degenerate = ((size < n * threshold) | always) & (logs > -math.inf).any(1)
    uniform = torch.rand(
        populations, 2, generator=generator, device=logs.device, dtype=torch.float64
    )
    own = torch.arange(count, device=logs.device)
    order = torch.where(degenerate.unsqueeze(1), systematic(logs, uniform, count), own)
    increment = torch.where(degenerate, logs.logsumexp(1) - math.log(n), 0)
    return order, torch.where(degenerate.unsqueeze(1), 0, logs[:, :count]), increment


def morton_order(x: Tensor, event: int) -> Tensor:  # (populations, n, *event) -> (populations, n)
    """The particles of each population along a space-filling curve: ranks of up to
    `SORTED_COORDINATES` coordinates, their bits interleaved (Morton's order). Systematic resampling
    along it reproduces the weights of whole regions almost without noise.
    Reference: Gerber, Chopin and Whiteley 2019, Ann. Statist. 47(4) (with Hilbert's curve)."""
    flat = x.reshape(*x.shape[: x.ndim - event], -1).double()
    widest = flat.var((0, 1)).nan_to_num(0).topk(min(SORTED_COORDINATES, flat.shape[-1])).indices
    rank = flat[..., widest].argsort(1).argsort(1)
    bits = min(20, 60 // len(widest))
    rank = (rank << bits) // flat.shape[1]
    key = torch.zeros_like(rank[..., 0])
    for bit in reversed(range(bits)):
        for axis in range(len(widest)):
            key = key * 2 + (rank[..., axis] >> bit & 1)
    return key.argsort(1)


def correlation(a: Tensor, b: Tensor) -> float:
    """Pearson's, over the particles where both are finite; 0 where it is undefined."""
    good = a.isfinite() & b.isfinite()
    if good.sum() < 3:
        return 0.0
    result = torch.corrcoef(torch.stack([a[good], b[good]]))[0, 1].item()
    return 0.0 if math.isnan(result) else result
