"""An expression as a tree with its facts: the page of `repr`, the tree of `python -m poe show`, and
the plain HTML, with its own styles, of notebooks."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from html import escape
from typing import Any

from poe import registry
from poe.algebra.capabilities import NoiseConditional
from poe.algebra.text import caveats, child, labels, roles

# what upper floors know of an energy, by its title: the plan to draw it
FURTHER: dict[str, Callable[[Any], str]] = {}
WIDTH = 60  # characters of an expression in one line of a tree
BOX = "font-family:sans-serif;font-size:13px;line-height:1.45;max-width:60em"
GREY = "color:#888;font-size:12px"


@dataclass(frozen=True)
class Node:
    """One energy of an expression: what it is to the one above it (`role`, such as "** 2"), how it
    prints, what kind it is, its facts.

    `again` marks an energy that stood further up already; its parts are not listed twice.
    """

    role: str
    text: str
    kind: str
    facts: dict[str, Any]
    parts: tuple[Node, ...] = ()
    again: bool = False


def outline(energy: Any) -> Node:
    """The tree of an expression."""
    label = labels(energy)
    seen: set[int] = set()

    def visit(node: Any, role: str) -> Node:
        text, kind = child(node, label)[0], _kind(node)
        if id(node) in seen:
            return Node(role, text, kind, {}, again=True)
        seen.add(id(node))
        parts = tuple(visit(part, its) for part, its in zip(node.parts, roles(node), strict=True))
        return Node(role, text, kind, facts(node), parts)

    return visit(energy, "")


def facts(energy: Any) -> dict[str, Any]:
    """What is known of an energy, as plain values; None where unknown."""
    log_z = energy.log_z
    return {
        "event_shape": list(energy.event_shape),
        "support": repr(energy.support),
        "log_z": None if log_z is None else log_z._asdict(),
        "proper": energy.proper,
        "parameters": sum(p.numel() for p in energy.parameters()),
    }


def words(energy: Any) -> dict[str, str]:
    """The facts, notes and plan in words, by their titles; a note's title ends in a number where
    there are several."""
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
    return lines | {title: say(energy) for title, say in FURTHER.items()}


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
        yield from _rows(
            part, node, rest + ("└─ " if last else "├─ "), rest + ("   " if last else "│  ")
        )


def _kind(node: Any) -> str:
    if node.parts:
        return type(node).__name__.lower()
    return registry.name_of(type(node)) or type(node).__name__


def _answer(fact: bool | None) -> str:
    return {True: "yes", False: "no", None: "unknown"}[fact]


def page(energy: Any) -> str:
    """The facts of an energy as `repr` shows them."""
    log_z = "unknown" if energy.log_z is None else str(energy.log_z)
    lines = [
        str(energy),
        f"  event_shape  {tuple(energy.event_shape)}",
        f"  support      {energy.support!r}",
        f"  log_z        {log_z}",
        f"  proper       {'unknown' if energy.proper is None else energy.proper}",
        f"  parameters   {sum(p.numel() for p in energy.parameters()):,}",
    ]
    if energy.can(NoiseConditional) and isinstance(getattr(energy, "sigma", None), float):
        lines.append(f"  noise        {energy.sigma:g} (units of x)")
    lines += [f"  note         {note}" for note in caveats(energy)]
    lines += [f"  {title:<12} {say(energy).splitlines()[0]}" for title, say in FURTHER.items()]
    return "\n".join(lines)


def html(energy: Any) -> str:
    """The expression, its facts and plan as a table, and the tree of its parts."""
    rows = "".join(
        f'<tr><td style="{GREY};text-align:left;vertical-align:top;padding:1px 1em 1px '
        f'0;white-space:nowrap">{escape(title)}</td>'
        '<td style="text-align:left;padding:1px '
        f'0">{"<br>".join(map(escape, text.splitlines()))}</td></tr>'
        for title, text in words(energy).items()
    )
    table = f'<table style="border-collapse:collapse;margin:4px 0;font-size:13px">{rows}</table>'
    tree = outline(energy)
    parts = ""
    if tree.parts:
        parts = f'<ul style="list-style:none;margin:0;padding:0">{_branch(tree, None)}</ul>'
    return (
        f'<div style="{BOX}"><code '
        f'style="font-size:14px">{escape(str(energy))}</code>{table}{parts}</div>'
    )


def _branch(node: Node, above: Node | None) -> str:
    role = f'<span style="{GREY}">{escape(node.role)}</span> ' if node.role else ""
    line = (
        f"{role}<code>{escape(node.text)}</code> <span "
        f'style="{GREY}">{escape(remarks(node, above))}</span>'
    )
    if not node.parts:
        return f"<li>{line}</li>"
    inner = "".join(_branch(part, node) for part in node.parts)
    style = "list-style:none;margin:0 0 0 .5em;padding:0 0 0 1em;border-left:1px solid #bbb"
    return (
        f"<li><details open><summary>{line}</summary><ul "
        f'style="{style}">{inner}</ul></details></li>'
    )
