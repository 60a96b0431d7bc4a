"""`python -m poe show`: an expression as a tree, with its facts and the plan to draw it."""

from __future__ import annotations

import argparse
from typing import Any

from poe.algebra import outline
from poe.cli import expressions
from poe.cli.base import Command, emit
from poe.sampling.planning import drawing


def _run(arguments: argparse.Namespace) -> int:
    energy = expressions.energy(arguments)
    tree = outline.outline(energy)
    methods, plan = drawing(energy)
    facts = outline.words(energy)
    width = max(map(len, facts))
    lines = [str(energy), ""] + [
        f"{title.ljust(width)}  {_indented(text, width + 2)}" for title, text in facts.items()
    ]
    report = {
        "expression": str(energy),
        **outline.facts(energy),
        "methods": methods,
        "plan": plan,
        "tree": _branch(tree),
    }
    emit("\n".join([*lines, "", *outline.lines(tree)]), report, arguments.json)
    return 0


def _indented(text: str, margin: int) -> str:
    return ("\n" + " " * margin).join(text.splitlines())


def _branch(node: outline.Node) -> dict[str, Any]:
    return {
        "role": node.role,
        "expression": node.text,
        "kind": node.kind,
        **node.facts,
        "parts": [_branch(p) for p in node.parts],
    }


COMMAND = Command(
    "show",
    "show an expression as a tree, with its facts and the plan to draw it",
    expressions.arguments,
    _run,
)
