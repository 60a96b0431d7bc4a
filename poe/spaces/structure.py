"""What is known of a target before anything is drawn: its closed form, its facts, and the parts
that methods of drawing start from or follow."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property, singledispatch

from poe.algebra import support as sets
from poe.algebra.capabilities import Proposes, Samples, Sequential, as_a
from poe.algebra.contrast import Contrast
from poe.algebra.energy import Energy, Estimate
from poe.algebra.mixture import Mixture, mixture
from poe.algebra.product import Product
from poe.algebra.shifted import Shifted
from poe.algebra.simplification import forget, simplify
from poe.spaces.branches import branches, scouts
from poe.spaces.conditionals import few_sites
from poe.spaces.noise import noise_levels
from poe.spaces.points import enumerable
from poe.spaces.reals import from_reals
from poe.spaces.sites import box_of
from poe.spaces.transport import unmapped

UNLISTED = (
    "is discrete, without a closed form or a finite number of values a coordinate: no method draws "
    "it; multiply it by a factor over finitely many values, such as a Binomial"
)


@dataclass(frozen=True, eq=False)
class Structure:
    """A target and its closed form, worked out once for each call of `poe.sample`, `poe.plan` or
    `poe.log_z`; further facts are computed when they are first asked for."""

    energy: Energy
    closed: Energy

    @classmethod
    def of(cls, energy: Energy) -> Structure:
        """The structure of an energy as it is now."""
        forget(energy)
        return cls(energy, simplify(energy))

    @cached_property
    def log_z(self) -> Estimate | None:
        """log Z of the target, None where it is unknown."""
        return self.energy.log_z

    @cached_property
    def proper(self) -> bool | None:
        """Whether the target has finite mass; None where it is unknown."""
        return self.energy.proper

    @cached_property
    def discrete(self) -> bool:
        """Whether points are isolated."""
        return sets.is_discrete(self.energy.support)

    @cached_property
    def real(self) -> bool:
        """Whether the support is all of R^n."""
        return sets.is_real(self.energy.support)

    @cached_property
    def states(self) -> int | None:
        """How many points a small discrete space has; None for others."""
        return enumerable(self.energy) if self.discrete else None

    @cached_property
    def shares(self) -> tuple[float, ...] | None:
        """The probability of each branch of a mixture; None where the target is no mixture, or a
        log Z is unknown."""
        return shares(self.energy)

    @cached_property
    def branches(self) -> tuple[tuple[float, Energy], ...] | None:
        """Log weights and energies of the branches that `|` adds up in the expression
        (`poe.spaces.branches`); None where there are too many, or none but the target itself."""
        found = branches(self.energy)
        alone = found is not None and len(found) == 1 and found[0][1] is self.energy
        return None if found is None or alone else tuple(found)

    @cached_property
    def scouts(self) -> tuple[Energy, ...]:
        """Densities that draw, and whose draws show where each branch may have its mass."""
        return tuple(scouts(self.energy, self.closed))

    @cached_property
    def starts(self) -> tuple[Energy, ...]:
        """Factors and branches that draw samples, where particles may start."""
        return tuple(candidates(self.energy, self.closed))

    @cached_property
    def autoregressive(self) -> bool:
        """Whether a factor over discrete values draws one position after the other."""
        return self.discrete and any(
            part.can(Sequential) and power > 0 for part, power in factors(self.energy)
        )

    @cached_property
    def noised(self) -> bool:
        """Whether the experts share levels of noise, all of them proper."""
        return noise_levels(self.energy) is not None

    @property
    def searchable(self) -> bool:
        """Whether modes are searched for: points move in R^n, and levels of noise, which are a
        search of their own, are not followed; or the sites of a discrete event are few enough
        (`poe.spaces.conditionals.few_sites`), and drawn in no order."""
        if self.discrete:
            return self.obstacle is None and not self.autoregressive and few_sites(self.energy)
        return not self.discrete and self.obstacle is None and not self.noised

    @cached_property
    def obstacle(self) -> str | None:
        """Why no particle can move on the support, in words that follow the name of the target;
        None where one can."""
        if self.discrete:
            return None if box_of(self.energy) is not None else UNLISTED
        try:
            from_reals(self.energy.support)
        except NotImplementedError:
            return unmapped(self.energy.support)
        return None


@singledispatch
def shares(energy: Energy) -> tuple[float, ...] | None:
    """The probability of each branch of a mixture, where each log Z is known; else None."""
    return None


@shares.register
def _(energy: Mixture) -> tuple[float, ...] | None:
    return energy.shares


@singledispatch
def factors(energy: Energy) -> list[tuple[Energy, float]]:
    """The factors of a product and their powers, through shifts; an expert is its own factor."""
    return [(energy, 1.0)]


@factors.register
def _(energy: Shifted) -> list[tuple[Energy, float]]:
    return factors(energy.energy)


@factors.register
def _(energy: Product) -> list[tuple[Energy, float]]:
    return [
        (part, float(term.power) * power)
        for term in energy.terms
        for part, power in factors(term.energy)
    ]


def candidates(energy: Energy, closed: Energy | None = None) -> list[Energy]:
    """Samplable parts whose draws may lie where the target has its mass: positive factors, and the
    wanted side of `-`. Of `|`, whose branches may each hold mass where no other draws, it is a
    mixture that has a start of each branch; empty where a branch has none. `closed` is the
    closed form, where it is known."""
    if closed is None:
        closed = simplify(energy) if energy.parts else energy
    if closed.can(Samples):
        return [closed]
    proposing = as_a(energy, Proposes)
    if proposing is None:
        return _starts(energy)
    proposal = proposing.proposal()
    return [] if proposal is None else [proposal]


@singledispatch
def _starts(energy: Energy) -> list[Energy]:
    """The candidates in the parts of an energy that does not draw."""
    return []


@_starts.register
def _(energy: Product) -> list[Energy]:
    return _of_any(energy, (term.energy for term in energy.terms if term.power > 0))


@_starts.register
def _(energy: Contrast) -> list[Energy]:
    return _of_any(energy, [energy.wanted])


@_starts.register
def _(energy: Shifted) -> list[Energy]:
    return _of_any(energy, energy.parts)


@_starts.register
def _(energy: Mixture) -> list[Energy]:
    known = [
        [start for start in candidates(part) if start.log_z is not None] for part in energy.parts
    ]
    if not all(known):
        return []
    each = {id(start): start for starts in known for start in starts}
    if len(each) == 1:
        return list(each.values())
    return [mixture(list(each.values()), [1.0] * len(each))]


def _of_any(energy: Energy, parts: Iterable[Energy]) -> list[Energy]:
    found = {id(start): start for part in parts for start in candidates(part)}
    return [start for start in found.values() if start.event_shape == energy.event_shape]
