"""`python -m poe experts`: what is registered, and what the zoo has."""

from __future__ import annotations

import argparse
import shutil
import textwrap
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from poe import registry
from poe.cli.base import Command, emit
from poe.io import zoo


def _run(arguments: argparse.Namespace) -> int:
    registered, pretrained = list(_registered()), list(_pretrained())
    lines = ["registered, built by poe.create(NAME, ...):"]
    lines += _table(
        ["name", "kind", "event", "licence"],
        [[e["name"], e["kind"], "as built", e["licence"]] for e in registered],
    )
    lines += ["", "pretrained, loaded by poe.load(NAME), and names in expressions:"]
    lines += _table(
        ["name", "kind", "event", "parameters", "size", "licence"],
        [_cells(entry) for entry in pretrained],
    )
    emit("\n".join(lines), {"registered": registered, "zoo": pretrained}, arguments.json)
    return 0


def _cells(entry: dict[str, Any]) -> list[str | None]:
    """The row of a pretrained expert; None where its card does not say."""
    shape, count = entry["event_shape"], entry["parameters"]
    event = None if shape is None else str(tuple(shape))
    size = f"{entry['bytes'] / 1000:.0f} kB"
    parameters = None if count is None else f"{count:,}"
    return [entry["name"], entry["kind"], event, parameters, size, entry["licence"]]


def _registered() -> Iterable[dict[str, Any]]:
    """What is known of each registered expert; one whose library is missing says so."""
    offered = {point.name: point for point in registry.entry_points(registry.GROUP)}
    for name in registry.available():
        try:
            kind = (registry.lookup(name).__doc__ or "").strip().partition("\n")[0]
        except (ImportError, registry.RegistryError) as error:
            kind = str(error)
        dist = offered[name].dist if name in offered else None
        said = {} if dist is None else dist.metadata.json
        licence = said.get("license_expression") or said.get("license")
        package = None if dist is None else dist.name
        facts = {"event_shape": None, "licence": licence, "package": package}
        yield {"name": name, "kind": kind, **facts}


def _pretrained() -> Iterable[dict[str, Any]]:
    """What the card of each pretrained expert says."""
    for name, file in sorted(zoo.files().items()):
        card = zoo.card(name)
        size = file.stat().st_size if isinstance(file, Path) else len(file.read_bytes())
        known = {key: card.get(key) for key in ("kind", "event_shape", "parameters", "licence")}
        yield {"name": name, **known, "bytes": size}


def _table(titles: list[str], rows: list[list[Any]]) -> list[str]:
    """Columns as wide as they must be; the kind as wide as the terminal leaves room for, and no
    wider than 72."""
    cells = [[str("?" if cell is None else cell) for cell in row] for row in [titles, *rows]]
    widths = [max(len(row[i]) for row in cells) for i in range(len(titles))]
    others = sum(widths) - widths[1] + 2 * len(widths)
    room = shutil.get_terminal_size((160, 24)).columns - others
    widths[1] = min(widths[1], max(30, min(72, room)))
    for row in cells:
        row[1] = textwrap.shorten(row[1], widths[1], placeholder=" ...")
    return ["  " + "  ".join(map(str.ljust, row, widths)).rstrip() for row in cells]


COMMAND = Command(
    "experts", "list the registered experts and the zoo's", lambda parser: None, _run, ("list",)
)
