"""Exact rewriting: products of experts that have a closed form become one expert, log Z carried exactly.

Experts register what they know with `@closed_form(TypeA, TypeB)`; nothing here names an expert class. A rule gets all factors of a
product whose types are TypeA or TypeB and returns one energy that equals Σ powerᵢ·Eᵢ(x) exactly, constant included
(`poe.shift` carries it), or None where these have no closed form. It raises `Improper` where the product has infinite mass.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from poe.energy import Energy, Mixture, Product, Shifted, mixture, product, shift

Factor = tuple[Energy, float]
Rule = Callable[[Sequence[Factor]], Energy | None]

MOST_PARTS = 4096  # a mixture is distributed over a product only up to this many parts


class Improper(ValueError):
    """A rule found that the product has infinite mass."""


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


def simplify(energy: Energy) -> Energy:
    """The expression with every closed form applied. It has the same energy at each x (to rounding) and the same log Z."""
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
    """Whether a closed form shows that the product has infinite mass."""
    try:
        _reduce(energy)
    except Improper:
        return True
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
    """(a | b) & c as (a & c) | (b & c), where every part then has a closed form with a known log Z."""
    mixtures = [(m, p) for m, p in factors if isinstance(m, Mixture) and 0 < p == int(p)]
    parts = math.prod(len(m.parts) ** int(min(p, 64)) for m, p in mixtures)
    if not mixtures or (len(factors) == 1 and factors[0][1] == 1) or parts > MOST_PARTS:
        return None
    (first, power), rest = mixtures[0], [f for f in factors if f[0] is not mixtures[0][0]]
    if power > 1:
        rest.append((first, power - 1))
    opened = []
    for weight, part in zip(first.log_weights, first.parts, strict=True):
        if weight == -math.inf:
            continue
        term = product([part, *(f[0] for f in rest)], [1.0, *(f[1] for f in rest)])
        closed = _reduce(term) if isinstance(term, Product) else term
        if isinstance(closed, Product) or closed.log_z is None:
            return None
        opened.append(shift(closed, -weight))
    return mixture(opened)
