"""Exact rewriting, as users and experts see it: `simplify`, and `@closed_form` for what an expert
knows."""

from poe.algebra.closed_forms import Empty, Factor, Improper, Rule, closed_form, count
from poe.algebra.simplification import MAX_PARTS, is_empty, simplify

__all__ = [
    "MAX_PARTS",
    "Empty",
    "Factor",
    "Improper",
    "Rule",
    "closed_form",
    "count",
    "is_empty",
    "simplify",
]
