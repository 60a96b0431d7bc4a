"""How energies and draws show themselves in a notebook: plain HTML that carries its own styles and pictures."""

from __future__ import annotations

import base64
from html import escape
from typing import Any

from poe import outline, plotting
from poe.energy import Energy

_BOX = "font-family:sans-serif;font-size:13px;line-height:1.45;max-width:60em"
_GREY = "color:#888;font-size:12px"
PRE = "font-size:12px;line-height:1.35;white-space:pre-wrap;margin:4px 0;background:none;border:none;padding:0"


def of_energy(energy: Energy) -> str:
    """The expression, its facts and plan as a table, and the tree of its parts."""
    rows = "".join(
        f'<tr><td style="{_GREY};text-align:left;vertical-align:top;padding:1px 1em 1px 0;white-space:nowrap">{escape(title)}</td>'
        f'<td style="text-align:left;padding:1px 0">{"<br>".join(map(escape, text.splitlines()))}</td></tr>'
        for title, text in outline.words(energy).items()
    )
    table = f'<table style="border-collapse:collapse;margin:4px 0;font-size:13px">{rows}</table>'
    tree = outline.outline(energy)
    parts = f'<ul style="list-style:none;margin:0;padding:0">{_branch(tree, None)}</ul>' if tree.parts else ""
    return f'<div style="{_BOX}"><code style="font-size:14px">{escape(str(energy))}</code>{table}{parts}</div>'


def _branch(node: outline.Node, above: outline.Node | None) -> str:
    role = f'<span style="{_GREY}">{escape(node.role)}</span> ' if node.role else ""
    line = f'{role}<code>{escape(node.text)}</code> <span style="{_GREY}">{escape(outline.remarks(node, above))}</span>'
    if not node.parts:
        return f"<li>{line}</li>"
    inner = "".join(_branch(part, node) for part in node.parts)
    style = "list-style:none;margin:0 0 0 .5em;padding:0 0 0 1em;border-left:1px solid #bbb"
    return f'<li><details open><summary>{line}</summary><ul style="{style}">{inner}</ul></details></li>'


def of_draws(draws: Any) -> str:
    """The verdict, a picture where matplotlib is there, and the report."""
    colour = "#1b7f3b" if draws.trusted else "#b00020"
    verdict = f'<div style="color:{colour};font-weight:bold">{escape(draws.verdict)}</div>'
    report = f'<details open><summary>report</summary><pre style="{PRE}">{escape(draws.report())}</pre></details>'
    return f'<div style="{_BOX}">{verdict}{_picture(draws)}{report}</div>'


def _picture(draws: Any) -> str:
    try:
        content = plotting.rendered(plotting.plot(draws), "png", dpi=90)
    except (ImportError, ValueError):  # no matplotlib, or nothing to plot: the report alone
        return ""
    data = base64.b64encode(content).decode()
    text = escape(f"{len(draws)} draws of {draws.expression}", quote=True)
    return f'<img alt="{text}" style="max-width:100%" src="data:image/png;base64,{data}">'
