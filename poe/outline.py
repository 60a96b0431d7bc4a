"""An expression as a tree with its facts, for `python -m poe show` and for notebooks."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from poe import registry
from poe.energy import (
    Contrast,
    Energy,
    Mixture,
    Product,
    Pullback,
    Select,
    Shifted,
    _child,
    _function_name,
    _number,
    caveats,
    names,
)
from poe.plan import plan, refuse_improper

WIDTH = 60  # characters of an expression in one line of a tree


@dataclass(frozen=True)
class Node:
    """One energy of an expression: what it is to the one above it (`role`, such as "** 2"), how it prints, what kind it is, its facts.

    `again` marks an energy that stood further up already; its parts are not listed twice.
    """

    role: str
    text: str
    kind: str
    facts: dict[str, Any]
    parts: tuple[Node, ...] = ()
    again: bool = False


def outline(energy: Energy) -> Node:
    """The tree of an expression."""
    label = {id(thing): text for text, thing in names(energy).items()}
    seen: set[int] = set()

    def visit(node: Energy, role: str) -> Node:
        text, kind = _child(node, label)[0], _kind(node)
        if id(node) in seen:
            return Node(role, text, kind, {}, again=True)
        seen.add(id(node))
        parts = tuple(visit(part, its) for part, its in zip(node.parts, _roles(node), strict=True))
        return Node(role, text, kind, facts(node), parts)

    return visit(energy, "")


def facts(energy: Energy) -> dict[str, Any]:
    """What is known of an energy, as plain values; None where unknown."""
    log_z = energy.log_z
    return {
        "event_shape": list(energy.event_shape),
        "support": repr(energy.support),
        "log_z": None if log_z is None else {"value": log_z.value, "standard_error": log_z.standard_error},
        "proper": energy.proper,
        "parameters": sum(p.numel() for p in energy.parameters()),
    }


def drawing(energy: Energy) -> tuple[tuple[str, ...], str]:
    """The methods that `poe.sample` would try, in order, and its plan in words; no methods, and the reason, where it would refuse."""
    try:
        refuse_improper(energy)
        found = plan(energy)
        return found.methods, str(found)
    except (ValueError, TypeError) as refused:  # a TypeError where an expert has a score and no energy
        return (), f"none: {refused}"


def words(energy: Energy) -> dict[str, str]:
    """The facts, notes and plan in words, by their titles; a note's title ends in a number where there are several."""
    log_z = energy.log_z
    lines = {
        "event shape": str(tuple(energy.event_shape)),
        "support": repr(energy.support),
        "log Z": "unknown" if log_z is None else str(log_z),
        "proper": _answer(energy.proper),
        "parameters": f"{sum(p.numel() for p in energy.parameters()):,}",
    }
    notes = caveats(energy)
    lines |= {"note" if len(notes) == 1 else f"note {i}": note for i, note in enumerate(notes, 1)}
    return lines | {"plan": drawing(energy)[1]}


def remarks(node: Node, above: Node | None) -> str:
    """One line about a node of a tree: what is not already said of the node above it."""
    if node.again:
        return f"{node.kind}, as above"
    said = [node.kind]
    for key, title in (("event_shape", "event"), ("support", "on")):
        if above is None or above.facts[key] != node.facts[key]:
            value = tuple(node.facts[key]) if key == "event_shape" else node.facts[key]
            said.append(f"{title} {value}")
    z = node.facts["log_z"]
    error = "" if z is None or not z["standard_error"] else f" ± {z['standard_error']:.2g}"
    said.append("log Z unknown" if z is None else f"log Z {z['value']:.6g}{error}")
    said.append({True: "proper", False: "IMPROPER", None: "proper unknown"}[node.facts["proper"]])
    if node.facts["parameters"] and not node.parts:
        said.append(f"{node.facts['parameters']:,} parameters")
    return ", ".join(said)


def lines(node: Node) -> list[str]:
    """A tree as text: one line for each node, remarks in a column of their own."""
    rows = list(_rows(node, None, "", ""))
    width = max(len(left) for left, _ in rows)
    return [f"{left.ljust(width)}  {right}" for left, right in rows]


def _rows(node: Node, above: Node | None, first: str, rest: str) -> Iterator[tuple[str, str]]:
    shown = textwrap.shorten(node.text, WIDTH, placeholder=" ...")
    yield f"{first}{node.role + '  ' if node.role else ''}{shown}", remarks(node, above)
    for i, part in enumerate(node.parts):
        last = i == len(node.parts) - 1
        yield from _rows(part, node, rest + ("└─ " if last else "├─ "), rest + ("   " if last else "│  "))


def _kind(node: Energy) -> str:
    if node.parts:
        return type(node).__name__.lower()
    return registry.name_of(type(node)) or type(node).__name__


def _roles(node: Energy) -> list[str]:
    """What each part is to its composition."""
    if isinstance(node, Product):
        return ["" if power == 1 else f"** {_number(power)}" for power in node.powers]
    if isinstance(node, Mixture):
        return [""] * len(node.parts) if node.weights is None else [f"{100 * weight:.4g} %" for weight in node.weights]
    if isinstance(node, Contrast):
        return ["wanted", "unwanted" if node.strength == 1 else f"unwanted, strength {node.strength:g}"]
    if isinstance(node, Pullback):
        select = isinstance(node.function, Select)
        return [f"on {node.function.index.tolist()}" if select else f"of {_function_name(node.function)}(x)"]
    return [f"{node.offset:+.6g} nats"] if isinstance(node, Shifted) else [""] * len(node.parts)


def _answer(fact: bool | None) -> str:
    return {True: "yes", False: "no", None: "unknown"}[fact]
