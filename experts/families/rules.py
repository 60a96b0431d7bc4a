"""Products of powers of one exponential family in closed form.

A product adds natural parameters, η = Σ wᵢηᵢ, and its log Z is A(η) - Σ wᵢA(ηᵢ). Where the sum
leaves the natural domain the product has infinite mass (`poe.algebra.closed_forms.Improper`).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from experts.families.base import ExponentialFamily
from experts.families.beta import Beta, Dirichlet
from experts.families.discrete import Bernoulli, Categorical, Poisson
from experts.families.gamma import Exponential, Gamma
from experts.families.normal import Normal
from experts.families.parameters import ROUNDING
from experts.families.von_mises import VonMises
from poe.algebra.closed_forms import Factor, Improper, closed_form
from poe.algebra.energy import Energy
from poe.algebra.maps import Select
from poe.algebra.pullback import Pullback
from poe.algebra.shifted import shift

MAX_JOINT_SIZE = 2048  # of an event, up to which Normals of parts get a full covariance


def merge(kind: type[ExponentialFamily], factors: Sequence[Factor]) -> tuple[Any, float] | None:
    """Π p_i^{w_i} of one family as (member, offset): η = Σ wᵢηᵢ in float64, and Σ wᵢA(ηᵢ) - A(η)
    nats.

    Raises Improper where η leaves the natural domain; None where rounding hides whether it does.
    """
    powers = [power for _, power in factors]
    naturals = [energy.natural for energy, _ in factors]
    columns = list(zip(*(natural.parameters for natural in naturals), strict=True))
    eta = [_weighted(powers, column) for column in columns]
    sizes = [abs(w) for w in powers]
    size = [_weighted(sizes, [part.abs() for part in column]) for column in columns]
    # Σ w itself is rounded
    spread = 0.0 if all(w == int(w) for w in powers) else sum(map(abs, powers))
    member = kind.from_natural(eta, [ROUNDING * (s + spread) for s in size])
    if member is None:
        return None
    partition = _weighted(powers, [natural.log_partition for natural in naturals])
    return member, float(partition - member.natural.log_partition)


def _weighted(powers: Sequence[float], values: Sequence[Tensor]) -> Tensor:
    return torch.stack([w * value for w, value in zip(powers, values, strict=True)]).sum(0)


def _shifted(merged: tuple[Any, float] | None, factors: Sequence[Factor]) -> Energy | None:
    """The member in the precision and on the device of the experts that it stands for, with its
    constant."""
    if merged is None:
        return None
    experts = [energy for energy, _ in factors]
    dtype = functools.reduce(torch.promote_types, [expert.dtype for expert in experts])
    return shift(merged[0].to(experts[0].device, dtype), merged[1])


def _family_rule(kind: type[ExponentialFamily], factors: Sequence[Factor]) -> Energy | None:
    return _shifted(merge(kind, factors), factors)


for _family in (Exponential, Gamma, Beta, Dirichlet, Bernoulli, VonMises):
    closed_form(_family)(functools.partial(_family_rule, _family))


@closed_form(Normal)
def _normal(factors: Sequence[Factor]) -> Energy | None:
    """Merged about the mean of the first factor, so that means far from 0 cost no digits."""
    origin, full = factors[0][0].exact("loc"), any(energy.full for energy, _ in factors)
    merged = merge(Normal, [(energy.about(origin, full=full), power) for energy, power in factors])
    if merged is None:
        return None
    member, offset = merged
    spread = {"scale_tril": member.scale_tril} if full else {"scale": member.scale}
    return _shifted((Normal(member.loc.reshape(origin.shape) + origin, **spread), offset), factors)


class _Part(NamedTuple):
    """A Normal of some numbers of an event, their places in it, and its power."""

    expert: Normal
    index: Tensor
    power: float

    def energy(self, x: Tensor) -> float:  # (size of the event) -> weighted -log p in float64
        place = x[self.index].reshape(self.expert.event_shape).to(self.expert.device)
        return self.power * _exact_energy(self.expert, place)


@closed_form(Normal, Pullback)
def _normals_in_part(factors: Sequence[Factor]) -> Energy | None:
    """Normals of some numbers of an event each, by `poe.on`, and of all: Λ = Σ wᵢ Eᵢᵀ Λᵢ Eᵢ, Eᵢ
    selecting the numbers of factor i, about the mean of the first factor that has a number. The
    constant is the energy at the mean."""
    shape = factors[0][0].event_shape
    parts = _parts(factors, shape.numel())
    if parts is None:
        return None
    full = any(part.expert.full for part in parts)
    if full and shape.numel() > MAX_JOINT_SIZE:
        return None
    origin = torch.zeros(shape.numel(), dtype=torch.float64)
    for expert, index, _ in reversed(parts):
        origin[index] = expert.exact("loc").flatten().cpu()
    merged = _joined(parts, origin, full)
    if merged is None:
        return None
    mean = merged.exact("loc").flatten() + origin
    level, centre = math.fsum(part.energy(mean) for part in parts), mean.reshape(shape)
    if full:
        result = Normal(centre, scale_tril=merged.scale_tril)
    else:
        result = Normal(centre, merged.scale.reshape(shape))
    experts = [(part.expert, part.power) for part in parts]
    return _shifted((result, level - _exact_energy(result, centre)), experts)


def _parts(factors: Sequence[Factor], size: int) -> list[_Part] | None:
    """The factors as Normals of parts of the event; None where one is not such a Normal, or
    where no factor is placed by `poe.on`."""
    found = []
    for energy, power in factors:
        if isinstance(energy, Normal):
            found.append(_Part(energy, torch.arange(size), power))
        elif isinstance(energy.function, Select) and isinstance(energy.energy, Normal):
            found.append(_Part(energy.energy, energy.function.index.cpu(), power))
        else:
            return None
    return None if all(isinstance(energy, Normal) for energy, _ in factors) else found


def _joined(parts: Sequence[_Part], origin: Tensor, full: bool) -> Normal | None:
    """The product of the parts about `origin`, flattened; None where rounding hides whether it is
    proper."""
    size = len(origin)
    linear = torch.zeros(size, dtype=torch.float64)
    precision = torch.zeros((size, size) if full else size, dtype=torch.float64)
    slack = precision.clone()
    for expert, index, power in parts:
        place = origin[index].reshape(expert.event_shape).to(expert.device)
        parameters = expert.about(place, full=full).natural.parameters
        first, second = (parameter.cpu() for parameter in parameters)
        linear[index] += power * first.flatten()
        second = second if full else second.flatten()
        where = (index.unsqueeze(1), index) if full else (index,)
        precision[where] += power * second
        slack[where] += abs(power) * ROUNDING * second.abs()
    return Normal.from_natural((linear, precision), [slack.new_zeros(size), slack])


def _exact_energy(expert: Normal, x: Tensor) -> float:
    """-log p(x) of one x, in double precision."""
    return float(-expert.about(x, full=expert.full).log_prob(torch.zeros_like(x)))


@closed_form(Exponential, Gamma)
def _exponential_gamma(factors: Sequence[Factor]) -> Energy | None:
    """Exponential(rate) is Gamma(1, rate)."""

    def as_gamma(energy: Any) -> Gamma:
        rate = energy.exact("rate")
        return energy if isinstance(energy, Gamma) else Gamma(torch.ones_like(rate), rate)

    return _shifted(merge(Gamma, [(as_gamma(e), power) for e, power in factors]), factors)


@closed_form(Categorical)
def _categorical(factors: Sequence[Factor]) -> Energy | None:
    """Categories that one factor excludes stay excluded, whatever its power: 0/0 counts as 0."""
    powers = [power for _, power in factors]
    logits = [energy.logits.detach().double() for energy, _ in factors]
    if len({tuple(value.shape) for value in logits}) > 1:
        return None  # different numbers of categories
    excluded = torch.stack([value == -math.inf for value in logits]).any(0)
    total = _weighted(powers, [value.masked_fill(excluded, 0) for value in logits])
    member = Categorical.from_natural([total.masked_fill(excluded, -math.inf)])
    assert member is not None  # the natural domain is everything
    partition = _weighted(powers, [value.logsumexp(-1).sum() for value in logits])
    return _shifted((member, float(partition - member.natural.log_partition)), factors)


@closed_form(Poisson)
def _poisson(factors: Sequence[Factor]) -> Energy | None:
    """The base measure is (1/x!)^Σw: in the family where Σw = 1, of infinite mass where Σw < 0,
    else outside the family.
    """
    powers = [power for _, power in factors]
    total = math.fsum(powers)
    if math.isclose(total, 1.0, rel_tol=1e-12):
        return _family_rule(Poisson, factors)
    slope = _weighted(powers, [energy.natural.parameters[0] for energy, _ in factors])
    if total < -1e-12 or (total == 0 and bool((slope >= 0).any())):
        raise Improper("Σ over x of (x!)^-Σw e^(ηx) diverges")
    return None
