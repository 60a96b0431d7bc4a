"""How energies show themselves in a notebook: plain HTML that carries its own styles."""

from __future__ import annotations

from html import escape
from typing import Any

from poe.algebra import outline

BOX = "font-family:sans-serif;font-size:13px;line-height:1.45;max-width:60em"
GREY = "color:#888;font-size:12px"


def of_energy(energy: Any) -> str:
    """The expression, its facts and plan as a table, and the tree of its parts."""
    rows = "".join(
        f'<tr><td style="{GREY};text-align:left;vertical-align:top;padding:1px 1em 1px '
        f'0;white-space:nowrap">{escape(title)}</td>'
        '<td style="text-align:left;padding:1px '
        f'0">{"<br>".join(map(escape, text.splitlines()))}</td></tr>'
        for title, text in outline.words(energy).items()
    )
    table = f'<table style="border-collapse:collapse;margin:4px 0;font-size:13px">{rows}</table>'
    tree = outline.outline(energy)
    parts = (
        f'<ul style="list-style:none;margin:0;padding:0">{_branch(tree, None)}</ul>'
        if tree.parts
        else ""
    )
    return (
        f'<div style="{BOX}"><code '
        f'style="font-size:14px">{escape(str(energy))}</code>{table}{parts}</div>'
    )


def _branch(node: outline.Node, above: outline.Node | None) -> str:
    role = f'<span style="{GREY}">{escape(node.role)}</span> ' if node.role else ""
    line = (
        f"{role}<code>{escape(node.text)}</code> <span "
        f'style="{GREY}">{escape(outline.remarks(node, above))}</span>'
    )
    if not node.parts:
        return f"<li>{line}</li>"
    inner = "".join(_branch(part, node) for part in node.parts)
    style = "list-style:none;margin:0 0 0 .5em;padding:0 0 0 1em;border-left:1px solid #bbb"
    return (
        f"<li><details open><summary>{line}</summary><ul "
        f'style="{style}">{inner}</ul></details></li>'
    )
