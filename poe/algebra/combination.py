"""What `combine` put together in an energy: the posteriors, and how often each factor of the prior
counts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from poe.algebra.energy import Energy
from poe.algebra.shifted import Shifted, unshifted


class Combination(NamedTuple):
    """What `combine` put together: the posteriors, and the factors of the prior, each with the
    number of posteriors that contain it."""

    posteriors: tuple[Energy, ...]
    priors: tuple[tuple[Energy, int], ...]

    def is_whole(self, energy: Energy) -> bool:
        """Whether an energy is this combination, up to a constant, and nothing was multiplied with
        it afterwards."""
        return alike(self.product(), unshifted(energy))

    def product(self) -> Energy:
        """The combination itself."""
        whole, *more = [
            *self.posteriors,
            *(factor ** (1.0 - count) for factor, count in self.priors),
        ]
        for factor in more:
            whole = whole & factor
        return whole

    def mapped(self, change: Callable[[Energy], Energy]) -> Combination:
        """The same of energies that were changed, as by a context."""
        priors = tuple((change(factor), count) for factor, count in self.priors)
        return Combination(tuple(map(change, self.posteriors)), priors)

    def has_priors(self, factors: Sequence[Energy]) -> bool:
        return len(factors) == len(self.priors) and all(
            alike(a, b) for (a, _), b in zip(self.priors, factors, strict=True)
        )


def combined(energy: Energy) -> Combination | None:
    """What `combine` put together in an energy, which may be shifted, or multiplied by more
    factors; None where it did not."""
    known: Combination | None = vars(energy).get("combination")
    return combined(energy.energy) if known is None and isinstance(energy, Shifted) else known


def alike(a: Energy, b: Energy) -> bool:
    """Whether two energies are the same product of the same factors."""
    terms = [
        {(id(t.energy), t.power) for t in e.terms} if hasattr(e, "terms") else {(id(e), 1.0)}
        for e in (a, b)
    ]
    return terms[0] == terms[1]


def carry(result: Energy, energies: Sequence[Energy], powers: Sequence[Any]) -> None:
    """What was combined in factors is known of their product, but for posteriors that are divided
    out again."""
    signs = [1.0 if isinstance(power, Tensor) else power for power in powers]
    known = [combined(energy) for energy, sign in zip(energies, signs, strict=True) if sign == 1]
    found = [combination for combination in known if combination is not None]
    divided = {id(energy) for energy, sign in zip(energies, signs, strict=True) if sign < 0}
    if not found or not hasattr(result, "terms") or any(result is energy for energy in energies):
        return
    priors = [factor for factor, _ in found[0].priors]
    posteriors = [
        p for combination in found if combination.has_priors(priors) for p in combination.posteriors
    ]
    if not divided & set(map(id, posteriors)):
        vars(result)["combination"] = Combination(tuple(posteriors), found[0].priors)
