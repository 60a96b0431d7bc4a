"""Exact rewriting: closed forms applied to an expression, and what they find out about its mass."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Sequence
from functools import singledispatch
from typing import NamedTuple

from poe.algebra.checks import energies_of
from poe.algebra.closed_forms import TABLE, Empty, Factor, Improper, Rule, count
from poe.algebra.energy import Energy, with_parts
from poe.algebra.fingerprint import Fingerprint
from poe.algebra.mixture import Mixture, mixture, raw_parts
from poe.algebra.product import Product, product
from poe.algebra.shifted import Shifted, shift

MAX_PARTS = 4096  # a mixture is distributed over a product only up to this many parts


class Reduction(NamedTuple):
    """What the closed forms make of a product, and what they found wrong with its mass."""

    energy: Energy
    flaw: Improper | None

    @property
    def closed(self) -> Energy | None:
        """The energy in closed form; None where it is still a product."""
        return None if isinstance(self.energy, Product) else self.energy


def reduction(energy: Product) -> Reduction:
    """What the closed forms make of a product, worked out again only after a tensor of the
    expression has changed, or the rules."""
    tensors = [*energy.parameters(), *energy.buffers()]
    known = energy.reduced
    if known is None or known[1] != count() or not known[0].matches(tensors):
        known = Fingerprint(tensors, compare=True), count(), _reduction(energy)
        energy.reduced = known
    return known[2]


def forget(energy: Energy) -> None:
    """Drops what was worked out of the products of an expression: their next closed form is that of
    their factors as they are then, whatever left no trace in tensors."""
    left = [energy]
    while left:
        part = left.pop()
        left += part.parts
        if isinstance(part, Product):
            part.reduced = None


def _reduction(energy: Product) -> Reduction:
    """The product over simplified parts, itself simplified; the flaw is that of the product as it
    is written."""
    rebuilt = _over_simplified(energy)
    flaw: Improper | None = None
    try:
        closed = _reduce(energy)
    except Improper as error:
        closed, flaw = energy, error.with_traceback(None)
    if rebuilt is energy:
        return Reduction(closed, flaw)
    try:
        return Reduction(_reduce(rebuilt) if isinstance(rebuilt, Product) else rebuilt, flaw)
    except Improper:
        return Reduction(rebuilt, flaw)


def simplify(energy: Energy) -> Energy:
    """The expression with every closed form applied. It has the same energy at each x (to rounding)
    and the same log Z."""
    if isinstance(energy, Product):
        return reduction(energy).energy
    (energy,) = energies_of([energy], "simplify")
    energy = _over_simplified(energy)
    return reduction(energy).energy if isinstance(energy, Product) else energy


def _over_simplified(energy: Energy) -> Energy:
    return with_parts(energy, [simplify(part) if part.parts else part for part in energy.parts])


@singledispatch
def is_empty(energy: Energy) -> bool:
    """Whether a closed form shows that a product has no mass."""
    return False


@is_empty.register
def _(energy: Product) -> bool:
    return isinstance(reduction(energy).flaw, Empty)


def _reduce(energy: Product) -> Energy:
    if energy.learnable:
        return energy  # a power that is still being learned has no closed form
    terms = [(term.energy, term.coefficient) for term in energy.terms]
    constant, factors = _pull_constants(terms)
    distributed = _distribute(factors)
    if distributed is not None:
        return shift(distributed, constant)
    for kinds, rule in TABLE:
        group = [factor for factor in factors if isinstance(factor[0], kinds)]
        power_alone = len(group) == 1 and kinds[0] is kinds[1] and group[0][1] != 1
        if len(group) < 2 and not power_alone:
            continue
        merged = _apply(rule, group, whole=len(group) == len(factors))
        if merged is not None:
            more, bare = _pull_constants([(merged, 1.0)])
            constant += more
            factors = bare + [factor for factor in factors if factor not in group]
    return energy if factors == terms else shift(product(*zip(*factors, strict=True)), constant)


def _apply(rule: Rule, group: Sequence[Factor], *, whole: bool) -> Energy | None:
    """The rule's answer. That some factors alone have infinite mass says nothing of a product with
    further ones."""
    try:
        return rule(group)
    except Empty:
        raise
    except Improper:
        if whole:
            raise
        return None


def _pull_constants(factors: Sequence[Factor]) -> tuple[float, list[Factor]]:
    """Exact offsets of shifted factors, summed, and the factors without them."""
    constant, bare = 0.0, []
    for energy, power in factors:
        constant, below = _without_offsets(energy, power, constant)
        bare.append((below, power))
    return constant, bare


def _distribute(factors: Sequence[Factor]) -> Energy | None:
    """(a | b) & c as (a & c) | (b & c), where every part then has a closed form with a known log Z.

    A whole power expands by the multinomial theorem: one part for each way to share it out.
    """
    mixtures = [
        (m, int(p)) for m, p in factors if isinstance(m, Mixture) and 0 < p == int(p) <= MAX_PARTS
    ]
    parts = math.prod(math.comb(len(m.parts) + p - 1, p) for m, p in mixtures)
    if not mixtures or (len(factors) == 1 and factors[0][1] == 1) or parts > MAX_PARTS:
        return None
    (first, power), rest = mixtures[0], [f for f in factors if f[0] is not mixtures[0][0]]
    weighed = first.weighted
    opened = []
    for chosen in itertools.combinations_with_replacement(range(len(weighed)), power):
        counts = Counter(chosen)
        weight = math.lgamma(power + 1) + sum(
            k * weighed[i][0] - math.lgamma(k + 1) for i, k in counts.items()
        )
        inner = [(weighed[i][1], float(k)) for i, k in counts.items()]
        term = product(*zip(*inner, *rest, strict=True))
        try:
            closed = _reduce(term) if isinstance(term, Product) else term
        except Empty:  # adds nothing
            continue
        if isinstance(closed, Product) or closed.log_z is None:
            return None
        opened += _spread(closed, -weight)
    if not opened:
        raise Empty("no part of a mixture is left")
    return mixture(opened)


def _spread(energy: Energy, offset: float) -> list[Energy]:
    """The parts of a raw mixture, each shifted, so that mixtures of mixtures stay flat."""
    offset, below = _without_offsets(energy, 1.0, offset)
    return [shift(part, offset) for part in raw_parts(below)]


def _without_offsets(energy: Energy, power: float, constant: float) -> tuple[float, Energy]:
    """A constant plus the exact offsets of a shifted factor, and the energy below them."""
    while isinstance(energy, Shifted) and energy.stated is None:
        constant, energy = constant + power * energy.offset, energy.energy
    return constant, energy
