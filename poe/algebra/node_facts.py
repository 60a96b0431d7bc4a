"""Facts of the nodes: what follows from those of their parts."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch

from poe.algebra import facts
from poe.algebra import support as sets
from poe.algebra.contrast import Contrast
from poe.algebra.energy import Estimate
from poe.algebra.maps import Select
from poe.algebra.mass import dominating, falls_off, is_proper, shaping
from poe.algebra.mixture import Mixture
from poe.algebra.product import Product
from poe.algebra.pullback import Pullback
from poe.algebra.shifted import Shifted
from poe.algebra.simplification import reduction


@facts.log_z.register
def _(energy: Product) -> Estimate | None:
    closed = reduction(energy).closed
    return None if closed is None else closed.log_z


@facts.proper.register
def _(energy: Product) -> bool | None:
    """What a closed form says, or else what `poe.algebra.mass` proves of its factors."""
    if sets.is_empty(energy.support):
        return False
    if energy.growth:
        return energy.growth > 0
    if falls_off(energy):
        return True
    known = reduction(energy)
    if known.closed is not None:
        return known.closed.proper
    if known.flaw is not None:
        return False
    if any(term.parameter is not None for term in energy.terms):
        return facts.is_finite(energy)
    proven = is_proper(energy)
    return facts.is_finite(energy) if proven is None else proven


@facts.flat.register
def _(energy: Product) -> bool | None:
    return True if all(term.energy.flat or not term.coefficient for term in energy.terms) else None


@facts.growth.register
def _(energy: Product) -> float | None:
    found = [term.energy.growth for term in energy.terms]
    known = [growth for growth in found if growth is not None]
    if len(known) < len(found):
        return None
    return math.fsum(p * g for p, g in zip(energy.powers, known, strict=True))


@facts.bounded.register
def _(energy: Product) -> bool | None:
    if energy.growth:
        return energy.growth > 0
    if falls_off(energy):
        return True
    if all(t.parameter is None for t in energy.terms):
        known = dominating(shaping(energy))
        if all(power > 0 and e.bounded for power, e in known):
            return True
    closed = reduction(energy).closed
    return facts.is_finite(energy) if closed is None else closed.bounded


@facts.log_z.register
def _(energy: Mixture) -> Estimate | None:
    found = [part.log_z for part in energy.parts]
    known = [log_z for log_z in found if log_z is not None]
    shares = energy.shares
    if shares is None or len(known) < len(found):
        return None
    errors: dict[int, float] = {}  # a part that stands twice errs twice the same way
    for part, share, z in zip(energy.parts, shares, known, strict=True):
        errors[id(part)] = errors.get(id(part), 0.0) + share * z.standard_error
    error = math.hypot(*errors.values())
    if energy.weights is not None:
        return Estimate(0.0, error)
    logs = torch.tensor([float(z) for z in known], dtype=torch.float64)
    return Estimate(logs.logsumexp(0).item(), error)


@facts.proper.register
def _(energy: Mixture) -> bool | None:
    if sets.is_empty(energy.support):
        return False
    # an empty part adds no mass
    return _all(part.proper for part in energy.parts if not sets.is_empty(part.support))


@facts.bounded.register
def _(energy: Mixture) -> bool | None:
    return True if all(part.bounded for part in energy.parts) else facts.is_finite(energy)


def _all(answers: Iterable[bool | None]) -> bool | None:
    answers = list(answers)
    return False if False in answers else None if None in answers else True


@facts.proper.register
def _(energy: Contrast) -> bool | None:
    if sets.is_empty(energy.support):
        return False
    return True if energy.wanted.proper else facts.is_finite(energy)


@facts.bounded.register
def _(energy: Contrast) -> bool | None:
    return True if energy.wanted.bounded else facts.is_finite(energy)


@facts.proper.register
def _(energy: Pullback) -> bool | None:
    if sets.is_empty(energy.support):
        return False
    finite = sets.is_bounded(energy.support) and energy.energy.bounded
    loose = (
        isinstance(energy.function, Select)
        and len(energy.function.index) < energy.event_shape.numel()
    )
    if loose and energy.energy.proper and sets.measure(energy.support) == sets.VOLUME:
        return False  # even over numbers that it does not look at, without end
    return True if finite else facts.is_finite(energy)


@facts.bounded.register
def _(energy: Pullback) -> bool | None:
    return True if energy.energy.bounded else facts.is_finite(energy)


@facts.flat.register
def _(energy: Pullback) -> bool | None:
    return energy.energy.flat


@facts.log_z.register
def _(energy: Shifted) -> Estimate | None:
    known = energy.energy.log_z
    if energy.stated is not None or known is None:
        return energy.stated
    return Estimate(known.value - energy.offset, known.standard_error)


@facts.proper.register
def _(energy: Shifted) -> bool | None:
    return True if energy.stated is not None else energy.energy.proper


@facts.bounded.register
def _(energy: Shifted) -> bool | None:
    return energy.energy.bounded


@facts.flat.register
def _(energy: Shifted) -> bool | None:
    return energy.energy.flat
