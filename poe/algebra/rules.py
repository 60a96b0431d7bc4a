"""Exact rewriting, as users and experts see it: `simplify`, and `@closed_form` for what an expert
knows."""

from poe.algebra.closed_forms import Empty, Factor, Improper, Rule, closed_form, count
from poe.algebra.product import MOST_PARTS, is_empty, is_improper, simplify

__all__ = [
    "MOST_PARTS",
    "Empty",
    "Factor",
    "Improper",
    "Rule",
    "closed_form",
    "count",
    "is_empty",
    "is_improper",
    "simplify",
]
