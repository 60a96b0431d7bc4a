"""Exact sums over bits in layers. All in float64."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import softplus

CHUNK = 1 << 15  # states, or entries of a table, at a time
MAX_UNITS = 24  # bits of a layer over which log Z is summed
MAX_FACTORS = 1 << 30  # of that sum which `log_z` takes without being asked: one or two seconds
MAX_LOG = 700.0  # e^700 is still a number in float64


def layered_log_z(weights: Tensor, left: Tensor, right: Tensor) -> float:  # (k, m), (k), (m)
    """log Σ_{x,y} exp(left·x + right·y + xᵀ weights y) over bits x, y: the shorter layer x is
    enumerated, the other summed out,

        log Σ_x exp(left·x) Π_j (1 + exp(right_j + (xᵀ weights)_j)).

    x is cut into two halves, so that each exponential is a product of one that depends on the first
    half and one on the second: m·2^k multiplications, and as many logarithms as keep the products
    of factors below e^700. In float64.
    """
    if len(left) > len(right):
        weights, left, right = weights.T, right, left
    half = len(left) // 2
    upper = _inputs(weights[:half]) + right  # (2^half, m)
    lower = _inputs(weights[half:])  # (2^(k - half), m)
    own = _inputs(left[:half, None]), _inputs(left[half:, None]).T
    reach = right.abs() + weights.abs().sum(0) + math.log(2)
    groups: list[list[int]] = [[]]
    size = 0.0
    for j, most in enumerate(reach.tolist()):
        if size + most > MAX_LOG:
            groups.append([])
            size = 0.0
        groups[-1].append(j)
        size += most
    found = []
    for rows in torch.arange(len(upper)).split(max(1, CHUNK // len(lower))):
        total = own[0][rows] + own[1]
        for group in groups:
            if len(group) == 1:  # perhaps too large an exponent for a factor
                exponent = upper[rows, group][:, None] + lower[:, group[0]]
                total = total + softplus(exponent, threshold=40)
            else:
                total = total + _factors(upper[rows][:, group].exp(), lower[:, group].exp()).log()
        found.append(total.logsumexp((0, 1)))
    return float(torch.stack(found).logsumexp(0))


def layer_weights(weights: Tensor, left: Tensor, right: Tensor) -> Tensor:
    # (k, m), (k), (m) -> (2^k)
    """log Σ_y exp(left·x + right·y + xᵀ weights y) for all bits x, unit j of x being bit j of its
    number. In float64."""
    found = []
    for numbers in torch.arange(1 << len(left)).split(CHUNK):
        x = (numbers.unsqueeze(-1) >> torch.arange(len(left)) & 1).to(weights)
        found.append(x @ left + softplus(x @ weights + right, threshold=40).sum(-1))
    return torch.cat(found)


def _inputs(weights: Tensor) -> Tensor:  # (k, m) -> (2^k, m)
    """xᵀ weights for all bits x."""
    bits = torch.arange(1 << len(weights)).unsqueeze(-1) >> torch.arange(len(weights)) & 1
    return bits.to(weights) @ weights


def _factors(upper: Tensor, lower: Tensor) -> Tensor:  # (r, m), (s, m) -> (r, s)
    """Π_j (1 + upper_rj lower_sj)."""
    product = upper.new_ones(len(upper), len(lower))
    for a, b in zip(upper.T.contiguous(), lower.T.contiguous(), strict=True):
        product.addcmul_(product, torch.outer(a, b))
    return product


def quadratic_log_z(linear: Tensor, square: Tensor) -> float:  # (k), (k, k)
    """log Σ_x exp(linear·x + ½ xᵀ square x) over bits x, cut into two halves: one matrix product
    joins them. In float64."""
    half = len(linear) // 2
    own, states = [], []
    for part in (slice(None, half), slice(half, None)):
        bits = _inputs(torch.eye(len(linear[part]), dtype=torch.float64))
        states.append(bits)
        own.append(bits @ linear[part] + 0.5 * ((bits @ square[part, part]) * bits).sum(-1))
    cross = states[0] @ square[:half, half:]
    found = []
    for rows in torch.arange(len(cross)).split(max(1, CHUNK // len(states[1]))):
        total = own[0][rows].unsqueeze(-1) + own[1] + cross[rows] @ states[1].T
        found.append(total.logsumexp((0, 1)))
    return float(torch.stack(found).logsumexp(0))


def layers_log_z(weights: Tensor, left: Tensor, right: Tensor, *, patient: bool) -> float | None:
    """`layered_log_z` up to 24 units of the shorter layer; unless `patient`, only where it takes
    one or two seconds."""
    units, others = sorted((len(left), len(right)))
    if units > MAX_UNITS or (not patient and others << units > MAX_FACTORS):
        return None
    return layered_log_z(weights, left, right)
