"""What `combine` put together in an energy: the posteriors, and how often each factor of the prior
counts."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Sequence
from functools import singledispatch
from typing import Any, NamedTuple

from torch import Tensor

from poe.algebra.energy import Energy, with_parts
from poe.algebra.shifted import Shifted, unshifted


class Combination(NamedTuple):
    """What `combine` put together: the posteriors, and the factors of the prior, each with the
    number of posteriors that contain it."""

    posteriors: tuple[Energy, ...]
    priors: tuple[tuple[Energy, int], ...]

    def is_whole(self, energy: Energy) -> bool:
        """Whether an energy is this combination, up to a constant, and nothing was multiplied with
        it afterwards."""
        return powers_by_factor(self.product()) == powers_by_factor(unshifted(energy))

    def product(self) -> Energy:
        """The combination itself."""
        divided = (factor ** (1.0 - count) for factor, count in self.priors)
        return functools.reduce(operator.and_, (*self.posteriors, *divided))

    def mapped(self, change: Callable[[Energy], Energy]) -> Combination:
        """The same of energies that were changed, as by a context or a level of noise."""
        priors = tuple((change(factor), count) for factor, count in self.priors)
        return Combination(tuple(map(change, self.posteriors)), priors)

    def replaced(self, old: Sequence[Energy], new: Sequence[Energy]) -> Combination:
        """The same over other parts: `new` for `old`, one by one."""
        known = dict(zip(map(id, old), new, strict=True))

        def change(energy: Energy) -> Energy:
            if id(energy) in known or not energy.parts:
                return known.get(id(energy), energy)
            return with_parts(energy, [change(part) for part in energy.parts])

        return self.mapped(change)

    def has_priors(self, factors: Sequence[Energy]) -> bool:
        return len(factors) == len(self.priors) and all(
            powers_by_factor(a) == powers_by_factor(b)
            for (a, _), b in zip(self.priors, factors, strict=True)
        )


@singledispatch
def powers_by_factor(energy: Energy) -> set[tuple[int, float]]:
    """The identity of each factor of a product, with its power."""
    return {(id(energy), 1.0)}


@singledispatch
def combined(energy: Energy) -> Combination | None:
    """What `combine` put together in an energy, which may be shifted, or multiplied by more
    factors; None where it did not."""
    return None


@combined.register
def _(energy: Shifted) -> Combination | None:
    return combined(energy.energy)


@singledispatch
def combined_as(energy: Energy, combination: Combination) -> Energy:
    """A product, which may be shifted, that is known to be this combination; other energies as they
    are."""
    return energy


@combined_as.register
def _(energy: Shifted, combination: Combination) -> Energy:
    return energy.rebuild([combined_as(energy.energy, combination)])


def kept(energies: Sequence[Energy], powers: Sequence[Any]) -> Combination | None:
    """What was combined in the factors of a product, which is known of the product too, but for
    posteriors that are divided out again."""
    signs = [1.0 if isinstance(power, Tensor) else power for power in powers]
    known = [combined(energy) for energy, sign in zip(energies, signs, strict=True) if sign == 1]
    found = [combination for combination in known if combination is not None]
    if not found:
        return None
    divided = {id(energy) for energy, sign in zip(energies, signs, strict=True) if sign < 0}
    priors = [factor for factor, _ in found[0].priors]
    posteriors = [
        p for combination in found if combination.has_priors(priors) for p in combination.posteriors
    ]
    if divided & set(map(id, posteriors)):
        return None
    return Combination(tuple(posteriors), found[0].priors)
