"""What experts know in closed form: the table of rules that `@closed_form` fills. Nothing here
names an expert class."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

Factor = tuple[Any, float]  # an energy and its power
Rule = Callable[[Sequence[Factor]], Any]


class Improper(ValueError):
    """A rule found that the product has infinite mass."""


class Empty(Improper):
    """A rule found that the product has no mass."""


class Entry(NamedTuple):
    """A rule, and the two types of factors that it is for."""

    kinds: tuple[type, type]
    rule: Rule


TABLE: list[Entry] = []


def closed_form(a: type, b: type | None = None) -> Callable[[Rule], Rule]:
    """Registers `rule(factors) -> Energy | None` for the factors (energy, power) whose types are
    `a` or `b` (by default `a` alone).

    A rule for one type also serves its powers: it is called for a single factor whose power is not
    1.
    """

    def add(rule: Rule) -> Rule:
        TABLE.append(Entry((a, a if b is None else b), rule))
        return rule

    return add


def count() -> int:
    """How many rules are registered."""
    return len(TABLE)
