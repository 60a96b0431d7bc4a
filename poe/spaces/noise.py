"""Levels of noise that the experts of a composition share."""

from __future__ import annotations

from poe.algebra.capabilities import NoiseConditional, as_a
from poe.algebra.energy import Energy
from poe.algebra.text import leaves

NOISE_LEVELS = 16  # of a path; energies between two of them are mixed where these are too far apart


def noise_levels(energy: Energy) -> list[Energy] | None:
    """The energy at decreasing levels of noise, evenly spaced on a log scale over the range that
    all its experts with noise levels share, and last the energy itself; None where no expert has
    noise levels, or where a level is not known to be proper.

    A composition of noised experts is not the noised composition: all but the last are bridges.
    """
    if not any(part.can(NoiseConditional) for part in leaves(energy)):
        return None
    low, high = noise_range(energy)
    between = [high * (low / high) ** (k / (NOISE_LEVELS - 1)) for k in range(1, NOISE_LEVELS - 1)]
    sigmas = [high, *between, low]  # both ends exactly
    levels = [energy.at(sigma) for sigma in sigmas]
    return [*levels, energy.at(0.0)] if all(level.proper for level in levels) else None


def noise_range(energy: Energy) -> tuple[float, float]:
    """Lowest and highest level of noise, in units of x, that all experts with noise levels share;
    the lowest is at least a thousandth of the highest. Raises ValueError where they share none."""
    noised = [as_a(part, NoiseConditional) for part in leaves(energy)]
    ranges = [part.sigma_range for part in noised if part is not None]
    low, high = max((r[0] for r in ranges), default=0.0), min((r[1] for r in ranges), default=0.0)
    if not 0 <= low < high:
        raise ValueError(
            f"the noise levels of the experts of {energy} have no range in common: "
            f"{sorted(set(ranges))}"
        )
    return max(low, 1e-3 * high), high
