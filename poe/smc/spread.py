"""Whether and how particles go down levels of noise to a target: its spread of noise, and what
weights follow from."""

from __future__ import annotations

import math

from poe.algebra import support as sets
from poe.algebra.capabilities import NoiseConditional, Rough, Scored
from poe.algebra.contrast import Contrast
from poe.algebra.energy import Energy
from poe.algebra.mixture import Mixture
from poe.algebra.product import Product
from poe.algebra.pullback import Pullback
from poe.algebra.shifted import Shifted
from poe.algebra.text import leaves
from poe.smc.gaussians import MOST_DIMENSIONS
from poe.smc.scores import diffuses
from poe.spaces.noise import noise_levels, noise_range

FEW, GROUPS = (
    1024,
    4,
    # particles where each is dear (at the least 4 for each draw, up to this many), and their
    # populations
)


def falls(target: Energy) -> bool:
    """Whether particles go down levels of noise to it by reverse diffusion: there are some, all
    proper, and with a known spread."""
    if not sets.is_real(target.support) or noise_levels(target) is None:
        return False
    return all(spread(target.at(sigma), sigma) is not None for sigma in noise_range(target))


def dear(target: Energy) -> bool:
    """Whether they do so in many dimensions, where networks give the energies and nothing else
    draws."""
    return target.event_shape.numel() > MOST_DIMENSIONS and falls(target)


def by_scores(target: Energy) -> bool:
    """Whether weights follow from scores: in many dimensions, of compositions for which
    `poe.smc.scores.diffuses` holds, with an expert that says that its values are too wrong to weigh
    by (`Scored`, `Rough`). The weights of others are those of their energies."""
    if not dear(target) or not any(leaf.can(Scored) or leaf.can(Rough) for leaf in leaves(target)):
        return False
    (low, high) = noise_range(target)
    return all(
        diffuses(target.at(sigma), spread(target.at(sigma), sigma) or math.inf)
        for sigma in (low, high)
    )


def spread(energy: Energy, sigma: float) -> float | None:
    """s of the energy at level σ, in units of x: noise adds |x|² / 2s² to it. None where it adds
    none, or where it is unknown how much (a ratio, and an expert at level 0 that does not state its
    `growth`)."""
    sharpness = _sharpness(energy, sigma)
    return None if sharpness is None or sharpness <= 0 else math.sqrt(0.5 / sharpness)


def _sharpness(energy: Energy, sigma: float) -> float | None:  # nats per squared unit of x
    if energy.growth is not None:
        return energy.growth
    if isinstance(energy, Product):
        known = [
            (power, _sharpness(term.energy, sigma))
            for power, term in zip(energy.powers, energy.terms, strict=True)
        ]
        return None if any(s is None for _, s in known) else math.fsum(p * s for p, s in known)  # type: ignore[operator]
    if isinstance(energy, Mixture):
        parts = [_sharpness(part, sigma) for part in energy.parts]
        return None if None in parts else min(parts)  # type: ignore[type-var]
    if isinstance(energy, Contrast):
        return _sharpness(energy.wanted, sigma)
    if isinstance(energy, (Shifted, Pullback)):
        return _sharpness(energy.parts[0], sigma)
    if energy.can(NoiseConditional):
        return 0.5 / sigma**2 if sigma > 0 else None
    return 0.0  # an expert without levels of noise
