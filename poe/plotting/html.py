"""How draws show themselves in a notebook: plain HTML that carries its own styles and pictures."""

from __future__ import annotations

import base64
from html import escape
from typing import Any

from poe.algebra.outline import BOX
from poe.plotting import figures

PRE = (
    "font-size:12px;line-height:1.35;white-space:pre-wrap;margin:4px 0;"
    "background:none;border:none;padding:0"
)


def of_draws(draws: Any) -> str:
    """The verdict, a picture where matplotlib is installed, and the report."""
    colour = "#1b7f3b" if draws.trusted else "#b00020"
    verdict = f'<div style="color:{colour};font-weight:bold">{escape(draws.verdict)}</div>'
    report = (
        "<details open><summary>report</summary><pre "
        f'style="{PRE}">{escape(draws.report())}</pre></details>'
    )
    return f'<div style="{BOX}">{verdict}{_picture(draws)}{report}</div>'


def _picture(draws: Any) -> str:
    try:
        content = figures.rendered(figures.plot(draws), "png", dpi=90)
    except (ImportError, ValueError):  # no matplotlib, or nothing to plot: the report alone
        return ""
    data = base64.b64encode(content).decode()
    text = escape(f"{len(draws)} draws of {draws.expression}", quote=True)
    return f'<img alt="{text}" style="max-width:100%" src="data:image/png;base64,{data}">'
