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
    margin = "\n" + " " * (width + 2)
    rows = [f"{t.ljust(width)}  {margin.join(fact.splitlines())}" for t, fact in facts.items()]
    report = {"expression": str(energy), **outline.facts(energy)}
    report |= {"methods": methods, "plan": plan, "tree": _branch(tree)}
    emit("\n".join([str(energy), "", *rows, "", *outline.lines(tree)]), report, arguments.json)
    return 0


def _branch(node: outline.Node) -> dict[str, Any]:
    said = {"role": node.role, "expression": node.text, "kind": node.kind}
    return {**said, **node.facts, "parts": [_branch(part) for part in node.parts]}


COMMAND = Command(
    "show",
    "show an expression as a tree, with its facts and the plan to draw it",
    expressions.arguments,
    _run,
)
