"""Importance weights: Pareto k, Pareto smoothing and the effective number of weights.

Reference: Vehtari, Simpson, Gelman, Yao and Gabry 2024, JMLR 25 (Pareto-smoothed importance
sampling).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from poe.diagnostics.convergence import arviz

NEIGHBOURS = 4  # of a draw of energy NaN, whose weights it would have
COMPARED_DRAWS = 2048  # of energy NaN, and of others
MIN_WEIGHTS = 25  # finite ones, for a Pareto tail to be fitted
TIE = 1e-6  # nats between log weights that count as equal, as those of discrete points often are
MAX_TOP_SHARE = 0.02  # of the weight, that fewer than `MIN_WEIGHTS` above many equal ones may have


def pareto_k(log_weights: Tensor) -> float:
    """Pareto k of importance weights (n,) given in nats: below 0.7 their mean can be trusted.
    Infinity where fewer than 25 are finite; -infinity where the largest are equal, to rounding, or
    the few above many equal ones have little weight: bounded weights without a tail to fit."""
    return _fitted(log_weights[log_weights.isfinite()])[1]


def pareto_smoothed(log_weights: Tensor) -> tuple[Tensor, float]:
    """Log weights (n,) in nats whose largest are replaced by quantiles of the generalised Pareto
    law fitted to them, and its k."""
    good = log_weights.isfinite()
    smooth, k = _fitted(log_weights[good])
    if smooth is None:
        return log_weights, k
    result = log_weights.clone()
    result[good] = torch.as_tensor(np.array(smooth)).to(result) + log_weights[good].logsumexp(0)
    return result, k


def _fitted(log_weights: Tensor) -> tuple[np.ndarray | None, float]:
    """Finite log weights (n,), smoothed and normalised, and k; None where there is no tail."""
    logs = log_weights.detach().double().cpu().numpy()
    if len(logs) < MIN_WEIGHTS:
        return None, float("inf")
    n = len(logs)
    count = int(min(n / 5, 3 * n**0.5))
    top = np.sort(logs)[-count - 1 :]
    if np.ptp(top[1:]) < TIE:
        return None, float("-inf")
    efficiency = 1.0
    if top[1] - top[0] < TIE:  # only what is above the ties is a tail
        count = int((top > top[0] + TIE).sum())
        if count < MIN_WEIGHTS:
            share = np.exp(top[-count:] - top[-1]).sum() / np.exp(logs - top[-1]).sum()
            return None, float("-inf" if share < MAX_TOP_SHARE else "inf")
        if np.ptp(top[-count:]) < TIE:
            return None, float("-inf")
        efficiency = 9 * n / (count + 0.5) ** 2  # for which the fit takes so many
    smooth, k = arviz("psislw", -logs, r_eff=efficiency)  # of log-likelihoods: the negatives
    good = np.isfinite(k) and bool(np.isfinite(smooth).all())
    return (smooth if good else None), float(k)


def weight_ess(log_weights: Tensor) -> Tensor:  # (*batch, n) -> (*batch)
    """The effective number (Σ w)² / Σ w² of weights given in nats; 0 where none is positive."""
    logs = log_weights.double()
    size = (2 * logs.logsumexp(-1) - (2 * logs).logsumexp(-1)).exp()
    return torch.where((logs > -torch.inf).any(-1), size, 0)


def hidden_share(x: Tensor, log_weights: Tensor, failed: Tensor) -> float:
    # (n, *event), (n), (n) -> share
    """The share of the mass that lies at draws of energy NaN if the weights go on there as beside
    them: each gets the mean weight of its `NEIGHBOURS` nearest draws without NaN, in units of the
    weighed standard deviations. 0 where no draw failed, 1 where no other has weight.

    At most `COMPARED_DRAWS` of each kind are compared, evenly spaced."""
    if not bool(failed.any()):
        return 0.0
    flat, weights = x.reshape(len(x), -1).double(), log_weights.double().softmax(0)
    if not bool((log_weights[~failed] > -torch.inf).any()):
        return 1.0
    mean = weights @ flat
    scale = (weights @ (flat - mean).square()).sqrt()
    flat = (flat - mean) / torch.where(scale > 0, scale, 1)
    lost, known = (_spaced(kind.nonzero().flatten()) for kind in (failed, ~failed))
    near = torch.cdist(flat[lost], flat[known]).topk(min(NEIGHBOURS, len(known)), largest=False)
    beside = weights[known][near.indices].mean(1)
    mass = float(beside.mean() * failed.sum())
    return mass / (1 + mass)


def _spaced(index: Tensor) -> Tensor:
    count = len(index)
    return index[torch.linspace(0, count - 1, min(count, COMPARED_DRAWS)).long()]
