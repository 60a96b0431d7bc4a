"""Facts of the nodes: what follows from those of their parts, and proofs that a product has finite
mass or a bounded density."""

from __future__ import annotations

import math
from typing import Any

import torch

from poe.algebra import facts
from poe.algebra import support as sets
from poe.algebra.contrast import Contrast
from poe.algebra.energy import Energy, Estimate
from poe.algebra.mixture import Mixture
from poe.algebra.product import Product
from poe.algebra.pullback import Pullback, is_on
from poe.algebra.shifted import Shifted
from poe.algebra.simplification import reduction

Powers = list[tuple[float, Energy]]  # factors, each with its power


@facts.log_z.register
def _(energy: Product) -> Estimate | None:
    closed = reduction(energy).closed
    return None if closed is None else closed.log_z


@facts.proper.register
def _(energy: Product) -> bool | None:
    """What a closed form says, or else what `is_proper` proves of its factors."""
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
    return sets.every(part.proper for part in energy.parts if not sets.is_empty(part.support))


@facts.bounded.register(Mixture)
@facts.bounded.register(Pullback)
def _(energy: Energy) -> bool | None:
    return True if all(part.bounded for part in energy.parts) else facts.is_finite(energy)


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
    loose = is_on(energy) and len(energy.function.index) < energy.event_shape.numel()
    if loose and energy.energy.proper and sets.measure(energy.support) == sets.VOLUME:
        return False  # even over numbers that it does not look at, without end
    return True if finite else facts.is_finite(energy)


@facts.flat.register(Pullback)
@facts.flat.register(Shifted)
def _(energy: Any) -> bool | None:
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


def is_proper(product: Any) -> bool | None:
    """True where Hölder's inequality bounds Z: powers are positive once mixtures in denominators
    are taken out against their own parts, those of proper factors sum to 1 or more, and what
    exceeds 1 falls on factors bounded above; also where factors of `on` tile the event. A flat
    factor that is divided out only cuts the support, ∫_S f/c = (1/c) ∫_S f. False where every power
    is negative on a support of infinite volume. None otherwise."""
    known = shaping(product)
    support = product.support
    if all(power < 0 for power, _ in known) and sets.is_infinite(support):
        # 1/p has infinite mass on infinite volume: vol <= (∫p)^(w/(1+w)) (∫p^-w)^(1/(1+w)), and
        # zero powers add nothing
        return False if all(_is_mass(e, support) for _, e in known) else None
    known = dominating(known)
    if any(power < 0 for power, _ in known):
        return None
    loose = [power for power, e in known if not e.bounded]
    if all(_is_mass(e, support) or e.bounded for _, e in known):
        anchored = sum(power for power, e in known if _is_mass(e, support))
        if sets.is_bounded(support) and sum(loose) <= 1:
            return True
        if anchored >= 1 - 1e-12 and sum(loose) <= 1 + 1e-12:
            return True
    return True if _is_tiled(product, known) else None


def shaping(product: Any) -> Powers:
    """(power, factor) of the factors that do more than cut the support: no power of 0, nothing flat
    that is divided out."""
    return [
        (t.coefficient, t.energy)
        for t in product.terms
        if t.coefficient > 0 or (t.coefficient and not t.energy.flat)
    ]


def falls_off(product: Any) -> bool:
    """Whether the factors whose growth is known fall off as a Gaussian together, and all others are
    bounded above."""
    weighed = [(term.power, term.energy) for term in product.terms]
    fall = math.fsum(p * e.growth for p, e in weighed if e.growth is not None)
    return fall > 0 and all((p > 0 and e.bounded) or e.flat for p, e in weighed if e.growth is None)


def dominating(factors: Powers) -> Powers:
    """Factors (power, energy) whose product bounds that of the given ones up to a constant, with
    mixtures taken out of denominators: a part is at most a constant times its mixture, so a^w / (a
    | b)^s <= c·a^(w - s)."""
    powers = {id(e): (power, e) for power, e in factors}
    for power, mixed in factors:
        if power > 0 or not isinstance(mixed, Mixture):
            continue
        for weight, part in zip(mixed.log_weights, mixed.parts, strict=True):
            have = powers.get(id(part), (0.0, part))[0]
            if weight > -math.inf and have >= -power:
                powers[id(part)] = have + power, part
                del powers[id(mixed)]
                break
    return [(power, e) for power, e in powers.values() if power]


def _is_mass(energy: Energy, support: sets.Constraint) -> bool:
    """Whether a factor is known to be proper in the measure of the product: a continuous one says
    nothing about sums."""
    return energy.proper is True and sets.is_discrete(energy.support) == sets.is_discrete(support)


def _is_tiled(product: Any, factors: Powers) -> bool:
    """Whether factors of `on` with finite mass on disjoint coordinates fill the event, and all
    others are bounded above: the integral is then at most a constant times the product of theirs.
    Factors that overlap bound nothing, as the marginal of a bounded density may be unbounded."""
    measure = sets.POINTS if sets.is_discrete(product.support) else sets.VOLUME
    free = set(range(product.event_shape.numel()))
    rest = len(product.terms) - len(factors)  # those of power 0 still cut the support
    # an unbounded one must be a tile
    for power, e in sorted(factors, key=lambda factor: bool(factor[1].bounded)):
        tile = set(e.function.index.tolist()) if is_on(e) else set()
        part = e.parts[0] if tile else e
        mass = part.proper and sets.measure(part.support) == measure
        finite = mass and (power == 1 or (power > 1 and part.bounded))
        if tile and tile <= free and finite:
            free -= tile
        elif e.bounded:
            rest += 1
        else:
            return False
    # the emptiness of a box is known exactly
    return not free and (not rest or isinstance(product.support, sets.Box))
