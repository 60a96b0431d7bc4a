"""Expressions from text, without eval: `parse("even & loops - eight ** 0.5", names)`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from poe.algebra.energy import Energy
from poe.io.syntax import read
from poe.io.zoo import Zoo


def parse(text: str, names: Mapping[str, Any] | None = None) -> Energy:
    """The energy that `text` stands for; nothing in it is executed but the algebra of energies.

    Arguments:
        text: an expression such as `(even & loops) ** 0.5 - poe.mixture([a, b], weights=[1, 3])`.
        names: what the names stand for: energies, and maps for the right side of `@`; dotted names
            are looked up whole. None: names are those of the zoo, such as `digits.even`.

    Raises:
        ExpressionError: the text is not an expression, a name is unknown, or the algebra refuses
            the composition.
        ImportError: an expert of the zoo needs a library that is not installed.
    """
    return read(text, Zoo() if names is None else names)
