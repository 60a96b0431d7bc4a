"""Products of powers of Boltzmann machines with hidden units in closed form, and of their visible
fields."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import softplus

from experts.boltzmann.dbm import DBM
from experts.boltzmann.gaussian import GaussianRBM
from experts.boltzmann.machine import shared_dtype
from experts.boltzmann.rbm import RBM
from experts.families import Bernoulli, Normal
from poe.algebra.closed_forms import Factor, closed_form
from poe.algebra.energy import Energy
from poe.algebra.shifted import shift

MAX_COPIES = 8  # whole powers up to this one repeat the hidden units


@closed_form(DBM)
@closed_form(DBM, Bernoulli)
def _dbm(factors: Sequence[Factor]) -> Energy | None:
    """Weights and biases of machines with equal layers add up, to any power; so do Bernoulli
    fields."""
    machines = [(e, power) for e, power in factors if isinstance(e, DBM)]
    if not machines or len({e.sizes for e, _ in machines}) > 1:
        return None
    first = machines[0][0]
    totals = [[w * t.detach().double() for t in (*e.weights, *e.biases)] for e, w in machines]
    summed = [torch.stack(column).sum(0) for column in zip(*totals, strict=True)]
    weights, biases = summed[: len(first.weights)], torch.cat(summed[len(first.weights) :])
    biases, offset = _with_fields(biases, factors)
    merged = DBM(weights, biases.split(list(first.sizes)))
    return shift(merged.to(first.device, shared_dtype(factors)), offset)


@closed_form(RBM)
@closed_form(RBM, Bernoulli)
def _rbm(factors: Sequence[Factor]) -> Energy | None:
    """Hidden units side by side, visible biases summed; a Bernoulli field adds its logits, and w Σ
    softplus(logit) is left.

    A power of an RBM is one only where it is a whole number: so many copies of its hidden units.
    """
    machines = [(e, power) for e, power in factors if isinstance(e, RBM)]
    if not machines or not _copies(machines):
        return None
    weights, hidden = _side_by_side(machines)
    zero = hidden.new_zeros(())
    bias = sum((w * e._visible.detach().double() for e, w in machines), zero)
    bias, offset = _with_fields(bias, factors)
    first = machines[0][0]
    merged = RBM(weights, bias, hidden, event_shape=first.event_shape)
    return shift(merged.to(first.device, shared_dtype(factors)), offset)


@closed_form(GaussianRBM)
@closed_form(GaussianRBM, Normal)
def _gaussian_rbm(factors: Sequence[Factor]) -> Energy | None:
    """Hidden units side by side; precisions λ = Σ wλ_i and λb = Σ wλ_i b_i; the constant is
    ½ Σ (wλ_i b_i² - λb²) and those of the normals. None for a normal with full covariance, or a λ
    that is not positive."""
    machines = [(e, power) for e, power in factors if isinstance(e, GaussianRBM)]
    normals = [(e, power) for e, power in factors if isinstance(e, Normal)]
    if not machines or not _copies(machines) or any(e.full for e, _ in normals):
        return None
    first, offset = machines[0][0], 0.0
    n = first.event_shape.numel()
    precision = torch.zeros(n, dtype=torch.float64, device=first.device)
    slope, square = torch.zeros_like(precision), torch.zeros_like(precision)
    for energy, power in factors:
        loc, scale = (getattr(energy, key).detach().double() for key in ("loc", "scale"))
        if isinstance(energy, Normal):
            loc, scale = (value.expand(first.event_shape).flatten() for value in (loc, scale))
            offset += power * float((scale.log() + 0.5 * math.log(2 * math.pi)).sum())
        weight = power / scale.square()
        precision = precision + weight
        slope, square = slope + weight * loc, square + weight * loc.square()
    if not bool((precision > 0).all()):
        return None
    weights, hidden = _side_by_side(machines)
    loc = slope / precision
    merged = GaussianRBM(weights, loc, precision.rsqrt(), hidden, event_shape=first.event_shape)
    offset += 0.5 * float((square - slope * loc).sum())
    return shift(merged.to(first.device, shared_dtype(factors)), offset)


def _copies(machines: Sequence[Factor]) -> bool:
    return all(0 < power <= MAX_COPIES and power == int(power) for _, power in machines)


def _side_by_side(machines: Sequence[Factor]) -> tuple[Tensor, Tensor]:
    """The weights and biases of all hidden units, as often as each power says."""
    weights = [e.weights.detach().double().repeat(1, int(w)) for e, w in machines]
    biases = [e.hidden_bias.detach().double().expand(e.hidden).repeat(int(w)) for e, w in machines]
    return torch.cat(weights, 1), torch.cat(biases)


def _with_fields(bias: Tensor, factors: Sequence[Factor]) -> tuple[Tensor, float]:
    """The visible biases with the logits of Bernoulli factors, and w Σ softplus(logit) of these."""
    offset = 0.0
    for energy, power in factors:
        if isinstance(energy, Bernoulli):
            logits = energy.exact("logits")
            bias = bias + power * logits.flatten()
            offset += power * float(softplus(logits, threshold=40).sum())
    return bias, offset
