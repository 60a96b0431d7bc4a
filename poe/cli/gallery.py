"""`python -m poe gallery`: concepts of the zoo composed into one page of pictures, after Du et al.
2020 (compositional generation)."""

from __future__ import annotations

import argparse
import base64
import hashlib
import re
import sys
import time
from dataclasses import dataclass
from html import escape
from pathlib import Path

import torch

import poe
from poe.algebra.energy import Energy
from poe.cli.main import PICTURES, Command, Failure, emit, tell, whole
from poe.diagnostics.draws import Draws
from poe.io.container import StorageError, write_whole
from poe.plotting import figures as plotting
from poe.plotting.html import PRE

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
    out: Path,
    count: int,
    seed: int,
    *,
    html: Path | None = None,
    brief: bool = False,
    as_json: bool = False,
) -> None:
    """Draws every row and paints them. What is drawn is kept beside the picture until the page is
    complete, so that a call that was interrupted goes on where it stopped; a row of another seed,
    number or version of the experts is drawn anew."""
    begun = time.perf_counter()
    torch.set_flush_denormal(True)
    names = _names()
    rows = [row for row in ROWS if not brief or row.expression in BRIEF]
    kept = out.with_suffix(".parts")
    kept.mkdir(parents=True, exist_ok=True)
    results: list[tuple[Row, Draws]] = []
    for number, row in enumerate(rows, 1):
        path = kept / f"{_digest(row, names, count, seed)}.safetensors"
        draws = _kept(path)
        if draws is None:
            tell(f"{number} of {len(rows)}: {row.expression}")
            draws = poe.sample(
                poe.parse(row.expression, names), count, seed=seed, progress=sys.stderr.isatty()
            )
            if draws.partial:
                raise KeyboardInterrupt
            draws.save(path)
        results.append((row, draws))
    plotting.rows(
        {f"{row.expression}   {_verdict(draws)}": draws.x for row, draws in results},
        out,
        width=count,
    )
    files = [out]
    if html is not None:
        write_whole(html, page(results).encode())
        files.append(html)
    for path in kept.glob("*.safetensors"):
        if re.fullmatch("[0-9a-f]{24}", path.stem):  # rows of this run, and of others
            path.unlink()
    if not any(kept.iterdir()):  # what anybody else put there stays
        kept.rmdir()
    seconds = time.perf_counter() - begun
    facts = [
        {"section": row.section, "expression": row.expression, "verdict": draws.verdict}
        for row, draws in results
    ]
    lines = [f"{row.expression}: {draws.verdict}" for row, draws in results]
    text = "\n".join([*lines, *(f"{path} written" for path in files), f"{seconds:.0f} s in all"])
    emit(text, {"rows": facts, "files": [str(path) for path in files], "seconds": seconds}, as_json)


def page(results: list[tuple[Row, Draws]]) -> str:
    """One page of HTML that needs nothing else: expressions, pictures and reports."""
    parts, section = [], None
    for row, draws in results:
        if row.section != section:
            parts.append(f"<h2>{escape(row.section.capitalize())}</h2>")
            section = row.section
        content = plotting.rendered(plotting.rows({"": draws.x}, width=len(draws)), "png", dpi=110)
        picture = base64.b64encode(content).decode()
        colour = "#1b7f3b" if draws.trusted else "#b00020"
        parts.append(
            f"<section><code>{escape(row.expression)}</code><img "
            f'alt="{escape(f"draws of {row.expression}", quote=True)}" '
            f'src="data:image/png;base64,{picture}"><details><summary '
            f'style="color:{colour}">{escape(draws.verdict)}</summary>'
            f'<pre style="{PRE}">{escape(draws.report())}</pre></details></section>'
        )
    return _PAGE.replace("CONTENT", "\n".join(parts))


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content=("width=device-width, "
                                                                          "initial-scale=1")>
<title>Compositions of experts</title>
<link rel="icon" href="data:,">
<style>
body { font: 15px/1.5 sans-serif; max-width: 64em; margin: 2em auto; padding: 0 1em; color: #222;
background: #fff } h1 { font-size: 1.6em } h2 { font-size: 1.15em; margin: 2em 0 .5em;
border-bottom: 1px solid #ccc } section { margin: 1em 0 } code { font-size: 14px; overflow-wrap:
anywhere } img { display: block; width: 100%; image-rendering: auto; margin: .3em 0 } summary {
font-size: 13px; cursor: pointer } </style></head><body>
<h1>Compositions of experts</h1>
<p>Each row is drawn from the expression above it, by <code>python -m poe gallery</code>. <code>a
&amp; b / prior</code> multiplies two concepts and counts what they share once;
<code>poe.mixture</code> is either; <code>poe.contrast</code> is the first but not the second. Click
a verdict for the evidence.</p> CONTENT
</body></html>
"""


def _names() -> dict[str, Energy]:
    prior = poe.load("shapes.any")
    concepts = {concept: prior.given(concept) for concept in CONCEPTS}  # type: ignore[operator]
    names: dict[str, Energy] = {"prior": prior, **concepts}
    for digit in DIGITS:
        names[digit] = poe.load(f"digits.{digit}")
    names["high"] = poe.normalize(
        names["high"], seed=0
    )  # `|` weighs densities, so the neural energy needs its log Z
    for name, energy in names.items():
        energy.name = name
    return names


def _digest(row: Row, names: dict[str, Energy], count: int, seed: int) -> str:
    """Tells the draws of a row from others: by the expression, the weights of the experts, and the
    arguments."""
    told = hashlib.sha256(f"{row.expression}|{count}|{seed}|{torch.__version__}".encode())
    for name, energy in names.items():
        for key, tensor in energy.state_dict().items() if name in ("prior", *DIGITS) else ():
            told.update(key.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
    return told.hexdigest()[:24]


def _kept(path: Path) -> Draws | None:
    """Draws of an earlier call; None where there are none, or a file is broken."""
    if not path.exists():
        return None
    try:
        return Draws.load(path)
    except StorageError as error:
        tell(f"{error}: drawn anew")
        return None


def _verdict(draws: Draws) -> str:
    return "" if draws.trusted else "(not trusted)"


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("out/gallery.png"),
        help="the PNG to write (default: %(default)s)",
    )
    parser.add_argument(
        "--html", type=Path, help="a page of its own to write: expressions, pictures and reports"
    )
    parser.add_argument(
        "--draws", type=whole(1), default=16, help="pictures of each row (default: %(default)s)"
    )
    parser.add_argument("--brief", action="store_true", help="three rows only")
    parser.add_argument("--seed", type=whole(0), default=0)


def _run(arguments: argparse.Namespace) -> int:
    plotting.require()
    if arguments.out.suffix.lower() not in PICTURES:
        raise Failure(f"{str(arguments.out)!r} does not end in one of {', '.join(PICTURES)}")
    for path in filter(None, (arguments.out, arguments.html)):
        path.parent.mkdir(parents=True, exist_ok=True)
    gallery(
        arguments.out,
        arguments.draws,
        arguments.seed,
        html=arguments.html,
        brief=arguments.brief,
        as_json=arguments.json,
    )
    return 0


COMMAND = Command(
    "gallery", "compose concepts and digits of the zoo into one page of pictures", _arguments, _run
)
