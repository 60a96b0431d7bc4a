"""The spread of noise in a composition: how wide the noise of a level is in it."""

from __future__ import annotations

import math
from functools import singledispatch

from poe.algebra.capabilities import NoiseConditional
from poe.algebra.contrast import Contrast
from poe.algebra.energy import Energy
from poe.algebra.mixture import Mixture
from poe.algebra.product import Product
from poe.algebra.pullback import Pullback
from poe.algebra.shifted import Shifted


def spread(energy: Energy, sigma: float) -> float | None:
    """s of the energy at level σ, in units of x: noise adds |x|² / 2s² to it. None where it adds
    none, or where it is unknown how much (a ratio, or an expert at level 0 that does not state its
    `growth`)."""
    curvature = _curvature(energy, sigma)
    return None if curvature is None or curvature <= 0 else math.sqrt(0.5 / curvature)


def _curvature(energy: Energy, sigma: float) -> float | None:
    """What noise adds, in nats per squared unit of x; None where it is unknown."""
    return energy.growth if energy.growth is not None else _added(energy, sigma)


@singledispatch
def _added(energy: Energy, sigma: float) -> float | None:
    """`_curvature` of an energy that does not state its growth; 0 of an expert without levels."""
    if not energy.can(NoiseConditional):
        return 0.0
    return 0.5 / sigma**2 if sigma > 0 else None


@_added.register
def _(energy: Product, sigma: float) -> float | None:
    known = [_curvature(term.energy, sigma) for term in energy.terms]
    found = [p * c for p, c in zip(energy.powers, known, strict=True) if c is not None]
    return None if len(found) < len(known) else math.fsum(found)


@_added.register
def _(energy: Mixture, sigma: float) -> float | None:
    known = [_curvature(part, sigma) for part in energy.parts]
    found = [curvature for curvature in known if curvature is not None]
    return None if len(found) < len(known) else min(found)


@_added.register
def _(energy: Contrast, sigma: float) -> float | None:
    return _curvature(energy.wanted, sigma)


@_added.register(Shifted)
@_added.register(Pullback)
def _(energy: Energy, sigma: float) -> float | None:
    return _curvature(energy.parts[0], sigma)
