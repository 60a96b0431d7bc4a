"""Importance weights: Pareto k, Pareto smoothing and the effective number of weights.

Reference: Vehtari, Simpson, Gelman, Yao and Gabry 2024, JMLR 25 (Pareto-smoothed importance
sampling).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from poe.diagnostics.convergence import arviz

MIN_WEIGHTS = 25  # finite ones, for a Pareto tail to be fitted


def pareto_k(log_weights: Tensor) -> float:
    """Pareto k of importance weights (n,) given in nats: below 0.7 their mean can be trusted.
    Infinity where fewer than 25 are finite; -infinity where the largest are equal, to rounding:
    bounded weights without a tail to fit."""
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
    tail = np.sort(logs)[-int(min(len(logs) / 5, 3 * len(logs) ** 0.5)) :]
    if np.ptp(tail) < 1e-6:
        return None, float("-inf")
    smooth, k = arviz("psislw", -logs)  # of log-likelihoods, whose negatives are the weights
    return (smooth if np.isfinite(k) else None), float(k)


def weight_ess(log_weights: Tensor) -> Tensor:  # (*batch, n) -> (*batch)
    """The effective number (Σ w)² / Σ w² of weights given in nats; 0 where none is positive."""
    logs = log_weights.double()
    size = (2 * logs.logsumexp(-1) - (2 * logs).logsumexp(-1)).exp()
    return torch.where((logs > -torch.inf).any(-1), size, 0)
