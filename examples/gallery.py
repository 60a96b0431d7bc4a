"""Concepts of the zoo composed into one page of pictures, after Du et al. 2020 (compositional
generation): `python examples/gallery.py --html out/gallery.html`.

Sixteen pictures of each of 18 expressions take about half an hour on one core; an interrupted call
continues where it stopped.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import os
import re
import sys
import time
from dataclasses import dataclass
from html import escape
from pathlib import Path

import torch

import poe
from poe.plotting import figures

CONCEPTS = (
    "circle",
    "square",
    "triangle",
    "red",
    "green",
    "blue",
    "yellow",
    "left",
    "right",
    "top",
    "bottom",
    "small",
    "large",
)
DIGITS = ("even", "loops", "high")


@dataclass(frozen=True)
class Row:
    """One line of the page: what it shows, and the expression over short names of the zoo that it
    is drawn from."""

    section: str
    expression: str


def _both(*concepts: str) -> str:
    """A conjunction, the prior counted once."""
    over = (
        ""
        if len(concepts) == 1
        else " / prior"
        if len(concepts) == 2
        else f" / prior**{len(concepts) - 1}"
    )
    return " & ".join(concepts) + over


def _normal(*concepts: str) -> str:
    return f"poe.normalize({_both(*concepts)}, seed=0)"


ROWS = (
    *(
        Row("single concepts", concept)
        for concept in ("red", "circle", "triangle", "small", "left")
    ),
    *(
        Row("conjunctions of two to five", _both(*concepts))
        for concepts in (
            ("red", "square"),
            ("blue", "circle", "large"),
            ("yellow", "triangle", "right", "large"),
            ("green", "square", "right", "bottom", "large"),
        )
    ),
    Row(
        "disjunctions", f"poe.mixture([{_normal('red')}, {_normal('circle')}], weights=[0.3, 0.7])"
    ),
    Row("disjunctions", f"poe.mixture([{_normal('red', 'small')}, {_normal('blue', 'large')}])"),
    Row("negations", f"poe.contrast({_normal('circle')}, {_normal('red')}, strength=8)"),
    Row("negations", f"poe.contrast({_normal('square', 'left')}, {_normal('blue')}, strength=8)"),
    Row("combinations never seen in training", _both("circle", "yellow", "large")),
    Row("combinations never seen in training", _both("triangle", "red", "left")),
    Row("digits", "even"),
    Row("digits", "even | loops"),
    Row("digits", "(even & loops & high) ** (1/3)"),
)
BRIEF = ("red", _both("red", "square"), "even | loops")  # of a trial


def gallery(
    out: Path, count: int, seed: int, *, html: Path | None = None, brief: bool = False
) -> None:
    """Draws every row and paints them. The draws of finished rows are kept beside the picture until
    the page is complete, so that an interrupted call continues where it stopped; a row of another
    seed, number or version of the experts is drawn again."""
    begun = time.perf_counter()
    figures.require()
    if out.suffix != ".png":  # before half an hour is spent
        raise ValueError(f"{out} must end in .png")
    torch.set_flush_denormal(True)
    kept = out.with_suffix(".parts")
    kept.mkdir(parents=True, exist_ok=True)
    rows = [row for row in ROWS if not brief or row.expression in BRIEF]
    results = _drawn(rows, kept, count, seed)
    pictures = {f"{row.expression}   {_mark(draws)}": draws.x for row, draws in results}
    figures.rows(pictures, out, width=count)
    print(f"{out} written")
    if html is not None:
        html.parent.mkdir(parents=True, exist_ok=True)
        html.write_text(page(results))
        print(f"{html} written")
    for path in kept.glob("*.safetensors"):
        if re.fullmatch("[0-9a-f]{24}", path.stem):  # rows of this run, and of earlier ones
            path.unlink()
    if not any(kept.iterdir()):  # files of the user stay
        kept.rmdir()
    print(f"{time.perf_counter() - begun:.0f} s in all")


def _drawn(rows: list[Row], kept: Path, count: int, seed: int) -> list[tuple[Row, poe.Draws]]:
    """The draws of each row, from an earlier call where it saved them."""
    names = _names()
    results: list[tuple[Row, poe.Draws]] = []
    for number, row in enumerate(rows, 1):
        path = kept / f"{_digest(row, names, count, seed)}.safetensors"
        draws = _kept(path)
        if draws is None:
            print(f"{number} of {len(rows)}: {row.expression}", flush=True)
            energy = poe.parse(row.expression, names)
            draws = poe.sample(energy, count, seed=seed, progress=sys.stderr.isatty())
            if draws.partial:
                raise KeyboardInterrupt
            draws.save(path)
        print(f"{row.expression}: {draws.verdict}", flush=True)
        results.append((row, draws))
    return results


def page(results: list[tuple[Row, poe.Draws]]) -> str:
    """One page of HTML that needs nothing else: expressions, pictures and reports."""
    parts, section = [], None
    for row, draws in results:
        if row.section != section:
            parts.append(f"<h2>{escape(row.section.capitalize())}</h2>")
            section = row.section
        content = figures.rendered(figures.rows({"": draws.x}, width=len(draws)), "png", dpi=110)
        picture = base64.b64encode(content).decode()
        colour = "#1b7f3b" if draws.trusted else "#b00020"
        parts.append(
            f"<section><code>{escape(row.expression)}</code><img "
            f'alt="{escape(f"draws of {row.expression}", quote=True)}" '
            f'src="data:image/png;base64,{picture}"><details><summary '
            f'style="color:{colour}">{escape(draws.verdict)}</summary>'
            f"<pre>{escape(draws.report())}</pre></details></section>"
        )
    return _PAGE.replace("CONTENT", "\n".join(parts))


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Compositions of experts</title>
<link rel="icon" href="data:,">
<style>
body { font: 15px/1.5 sans-serif; max-width: 64em; margin: 2em auto; padding: 0 1em; color: #222;
background: #fff } h1 { font-size: 1.6em } h2 { font-size: 1.15em; margin: 2em 0 .5em;
border-bottom: 1px solid #ccc } section { margin: 1em 0 } code { font-size: 14px; overflow-wrap:
anywhere } img { display: block; width: 100%; image-rendering: auto; margin: .3em 0 } summary {
font-size: 13px; cursor: pointer } pre { font-size: 12px; white-space: pre-wrap } </style>
</head><body>
<h1>Compositions of experts</h1>
<p>Each row is drawn from the expression above it, by <code>examples/gallery.py</code>. <code>a
&amp; b / prior</code> multiplies two concepts and counts what they share once;
<code>poe.mixture</code> is either; <code>poe.contrast</code> is the first but not the second. Click
a verdict for the evidence.</p> CONTENT
</body></html>
"""


def _names() -> dict[str, poe.Energy]:
    prior = poe.load("shapes.any")
    concepts = {concept: prior.given(concept) for concept in CONCEPTS}
    names: dict[str, poe.Energy] = {"prior": prior, **concepts}
    for digit in DIGITS:
        names[digit] = poe.load(f"digits.{digit}")
    # `|` weighs densities, so the neural energy needs its log Z
    names["high"] = poe.normalize(names["high"], seed=0)
    for name, energy in names.items():
        energy.name = name
    return names


def _digest(row: Row, names: dict[str, poe.Energy], count: int, seed: int) -> str:
    """Tells the draws of a row from others: by the expression, the weights of the experts, and the
    arguments."""
    digest = hashlib.sha256(f"{row.expression}|{count}|{seed}|{torch.__version__}".encode())
    for name, energy in names.items():
        for key, tensor in energy.state_dict().items() if name in ("prior", *DIGITS) else ():
            digest.update(key.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:24]


def _kept(path: Path) -> poe.Draws | None:
    """Draws of an earlier call; None where there are none, or where the file is damaged."""
    if not path.exists():
        return None
    try:
        return poe.Draws.load(path)
    except poe.StorageError as error:
        print(f"{error}: drawn again")
        return None


def _mark(draws: poe.Draws) -> str:
    return "" if draws.trusted else "(not trusted)"


def _arguments(argv: list[str] | None = None) -> argparse.Namespace:
    fast = os.environ.get("POE_FAST") == "1"
    parser = argparse.ArgumentParser(description="Compose concepts of the zoo into one page.")
    parser.add_argument("--out", type=Path, default=Path("out/gallery.png"), help="the picture")
    parser.add_argument("--html", type=Path, help="a page: expressions, pictures and reports")
    parser.add_argument("--draws", type=int, default=4 if fast else 16, help="pictures of a row")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--brief", action="store_true", default=fast, help="three rows only")
    return parser.parse_args(argv)


if __name__ == "__main__":
    given = _arguments()
    gallery(given.out, given.draws, given.seed, html=given.html, brief=given.brief)
