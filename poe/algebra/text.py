"""An expression as text: Python's precedence, labels of what it names, numbers that read back. It
knows energies by their parts."""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction
from functools import singledispatch
from types import BuiltinFunctionType, FunctionType, MethodType
from typing import Any

import torch

OR, AND, MINUS, SLASH, TILDE, POWER, ATOM = range(7)  # Python's precedence, loosest first


@singledispatch
def written(energy: Any, label: dict[int, str]) -> tuple[str, int]:
    """(text, precedence) of an energy with the given labels of leaves."""
    return label[id(energy)], ATOM


@singledispatch
def roles(energy: Any) -> list[str]:
    """What each part is to a composition, in words."""
    return [""] * len(energy.parts)


@singledispatch
def balances(energy: Any, label: dict[int, str]) -> list[tuple[str, list[str]]]:
    """Where the constants of parts decide: the sign, `|` or `-`, and the text of each side whose
    log Z is unknown."""
    return []


@singledispatch
def function_of(energy: Any) -> Any:
    """The function that an energy names beside its parts, as `a @ f` does; None where there is
    none."""
    return None


def leaves(energy: Any) -> list[Any]:
    """The experts of an expression, each once, in the order in which they are written."""
    found: dict[int, Any] = {}
    stack = [energy]
    while stack:
        node = stack.pop()
        if node.parts:
            stack += reversed(node.parts)
        else:
            found.setdefault(id(node), node)
    return list(found.values())


def names(energy: Any) -> dict[str, Any]:
    """A label for everything that `str(energy)` names: experts, named parts and maps.
    `poe.parse(str(e), poe.names(e))` is e.

    A label is the `name`, else the class name in lower case; different things with one name get
    `_2`, `_3`, ...
    """
    found: dict[int, tuple[Any, str]] = {}

    def visit(node: Any, top: bool) -> None:
        if id(node) in found:
            return
        if not node.parts or (node.name and not top):
            found[id(node)] = node, node.name or type(node).__name__.lower()
            return
        for part in node.parts:
            visit(part, False)
        function = function_of(node)
        if function is not None:
            found[id(function)] = function, function_name(function)

    visit(energy, True)
    return labelled(found.values())


def labels(energy: Any) -> dict[int, str]:
    """The labels of `names`, by the identity of what they name."""
    return {id(thing): label for label, thing in names(energy).items()}


def labelled(things: Iterable[tuple[Any, str]]) -> dict[str, Any]:
    """Things by their names; different ones with one name get `_2`, `_3`, ..."""
    labels: dict[str, Any] = {}
    counts: dict[str, int] = {}
    for thing, base in things:
        label, count = base, counts.get(base, 1)
        while label in labels:
            count += 1
            label = f"{base}_{count}"
        labels[label], counts[base] = thing, count
    return labels


def caveats(energy: Any) -> list[str]:
    """Where a `|` or `-` rests on parts whose log Z is unknown, so that their balance is
    arbitrary."""
    notes: dict[str, None] = {}
    label = labels(energy)
    stack = [energy]
    while stack:
        node = stack.pop()
        stack += node.parts
        for sign, unknown in balances(node, label):
            if unknown:
                notes[
                    f"`{sign}` rests on raw energies: log Z unknown for {', '.join(unknown)}; "
                    "poe.normalize makes the balance mean what it says"
                ] = None
    return list(notes)


def wrap(text: tuple[str, int], least: int) -> str:
    """A text in brackets where its precedence is below the least one."""
    return text[0] if text[1] >= least else f"({text[0]})"


def bracketed(energy: Any, least: int = AND) -> str:
    """The text of an energy as it stands in a product, or with another least precedence, in
    brackets where it must."""
    return wrap(written(energy, labels(energy)), least)


def child(energy: Any, label: dict[int, str]) -> tuple[str, int]:
    """(text, precedence) of a part: its label where it has one."""
    return (label[id(energy)], ATOM) if id(energy) in label else written(energy, label)


def number(value: float) -> str:
    """The shortest text that Python reads back as the same float: 2, 0.5, (1/3)."""
    text = repr(int(value)) if value == int(value) and abs(value) < 1e15 else repr(value)
    if len(text) > 6:
        fraction = Fraction(value).limit_denominator(99)
        if fraction.numerator / fraction.denominator == value:
            return f"({fraction.numerator}/{fraction.denominator})"
    return text


def function_name(function: Any) -> str:
    """The name of a function on the right of `@`; "f" where it has none."""
    if (
        isinstance(function, BuiltinFunctionType)
        and getattr(torch, function.__name__, None) is function
    ):
        return f"torch.{function.__name__}"
    own = getattr(function, "name", None) if isinstance(function, torch.nn.Module) else None
    named = isinstance(function, (FunctionType, BuiltinFunctionType, MethodType))
    text = own or (function.__name__ if named else type(function).__name__.lower())
    return text if text.isidentifier() else "f"


def shown(thing: Any) -> str:
    """What the user wrote, as it reads in an expression."""
    return str(thing) if hasattr(thing, "parts") else repr(thing)
