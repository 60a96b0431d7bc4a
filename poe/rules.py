"""Exact rewriting: products of experts that have a closed form become one expert, log Z carried exactly.

Experts register what they know with `@closed_form(TypeA, TypeB)`; nothing here names an expert class. A rule gets all factors of a
product whose types are TypeA or TypeB and returns one energy that equals Σ powerᵢ·Eᵢ(x) exactly, constant included
(`poe.shift` carries it), or None where these have no closed form. It raises `Improper` where the product has infinite mass,
`Empty` where it has none.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

from poe.energy import Energy, Mixture, Product, Shifted, _energies, mixture, product, shift

Factor = tuple[Energy, float]
Rule = Callable[[Sequence[Factor]], Energy | None]

MOST_PARTS = 4096  # a mixture is distributed over a product only up to this many parts


class Improper(ValueError):
    """A rule found that the product has infinite mass."""


class Empty(Improper):
    """A rule found that the product has no mass."""


class _Entry(NamedTuple):
    kinds: tuple[type, type]
    rule: Rule


_table: list[_Entry] = []


def closed_form(a: type, b: type | None = None) -> Callable[[Rule], Rule]:
    """Registers `rule(factors) -> Energy | None` for the factors (energy, power) whose types are `a` or `b` (by default `a` alone).

    A rule for one type also serves its powers: it is called for a single factor whose power is not 1.
    """

    def add(rule: Rule) -> Rule:
        _table.append(_Entry((a, a if b is None else b), rule))
        return rule

    return add


def count() -> int:
    """How many rules are registered."""
    return len(_table)


def simplify(energy: Energy) -> Energy:
    """The expression with every closed form applied. It has the same energy at each x (to rounding) and the same log Z."""
    (energy,) = _energies([energy], "simplify")
    parts = [simplify(part) for part in energy.parts]
    if any(new is not old for new, old in zip(parts, energy.parts, strict=True)):
        energy = energy.rebuild(parts)
    if not isinstance(energy, Product):
        return energy
    try:
        return _reduce(energy)
    except Improper:
        return energy


def is_improper(energy: Product) -> bool:
    """Whether a closed form shows that the product has infinite mass, or none."""
    try:
        _reduce(energy)
    except Improper:
        return True
    return False


def is_empty(energy: Product) -> bool:
    """Whether a closed form shows that the product has no mass."""
    try:
        _reduce(energy)
    except Improper as error:
        return isinstance(error, Empty)
    return False


def _reduce(energy: Product) -> Energy:
    if energy.learnable:
        return energy  # a power that is still being learned has no closed form
    terms = [(term.energy, term.coefficient) for term in energy.terms]
    constant, factors = _pull_constants(terms)
    distributed = _distribute(factors)
    if distributed is not None:
        return shift(distributed, constant)
    for kinds, rule in _table:
        group = [factor for factor in factors if isinstance(factor[0], kinds)]
        power_alone = len(group) == 1 and kinds[0] is kinds[1] and group[0][1] != 1
        merged = _apply(rule, group, whole=len(group) == len(factors)) if len(group) > 1 or power_alone else None
        if merged is not None:
            more, bare = _pull_constants([(merged, 1.0)])
            constant += more
            factors = bare + [factor for factor in factors if factor not in group]
    return energy if factors == terms else shift(product(*zip(*factors, strict=True)), constant)


def _apply(rule: Rule, group: Sequence[Factor], *, whole: bool) -> Energy | None:
    """The rule's answer. That some factors alone have infinite mass says nothing of a product with further ones."""
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
        while isinstance(energy, Shifted) and energy.stated is None:
            constant, energy = constant + power * energy.offset, energy.energy
        bare.append((energy, power))
    return constant, bare


def _distribute(factors: Sequence[Factor]) -> Energy | None:
    """(a | b) & c as (a & c) | (b & c), where every part then has a closed form with a known log Z.

    A whole power expands by the multinomial theorem: one part for each way to share it out.
    """
    mixtures = [(m, int(p)) for m, p in factors if isinstance(m, Mixture) and 0 < p == int(p) <= MOST_PARTS]
    parts = math.prod(math.comb(len(m.parts) + p - 1, p) for m, p in mixtures)
    if not mixtures or (len(factors) == 1 and factors[0][1] == 1) or parts > MOST_PARTS:
        return None
    (first, power), rest = mixtures[0], [f for f in factors if f[0] is not mixtures[0][0]]
    weighed = [(w, part) for w, part in zip(first.log_weights, first.parts, strict=True) if w > -math.inf]
    opened = []
    for chosen in itertools.combinations_with_replacement(range(len(weighed)), power):
        counts = Counter(chosen)
        weight = math.lgamma(power + 1) + sum(k * weighed[i][0] - math.lgamma(k + 1) for i, k in counts.items())
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
    while isinstance(energy, Shifted) and energy.stated is None:
        offset, energy = offset + energy.offset, energy.energy
    parts = energy.parts if isinstance(energy, Mixture) and energy.weights is None else (energy,)
    return [shift(part, offset) for part in parts]
