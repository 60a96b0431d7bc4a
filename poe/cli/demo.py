"""`python -m poe demo`: three pretrained experts of real digits, composed and painted, and their
draws judged by a classifier."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import poe
from poe.cli.base import Command, add_seed, emit, whole
from poe.plotting import figures

# of the zoo's `digits`, and the digits that each was trained on
EXPERTS = {"even": "02468", "loops": "0689", "high": "56789"}
COMPOSITIONS = {  # and the digits that satisfy them
    "(even & loops & high) ** (1/3)": "68",
    "even | loops": "024689",
    "(even & loops) ** 0.5 & (loops / (loops | high)) ** 8": "0",
}
PICTURES = 16  # shown of each expression
EXPERT_DRAWS = 100  # of each expert alone


def demo(out: Path, count: int, seed: int, *, as_json: bool = False) -> None:
    """Draws from each expert and each composition, prints reports and shares, and writes one
    PNG."""
    begun = time.perf_counter()
    torch.set_flush_denormal(True)
    experts = {name: poe.load(f"digits.{name}") for name in EXPERTS}
    # `|` weighs densities, so the neural energy needs its log Z
    experts["high"] = poe.normalize(experts["high"], seed=seed)
    judge: Any = poe.load("digits.judge")
    pictures: dict[str, Tensor] = {}
    results: list[dict[str, Any]] = []
    for expression, digits in (EXPERTS | COMPOSITIONS).items():
        n = EXPERT_DRAWS if expression in EXPERTS else count
        draws = _drawn(poe.parse(expression, experts), n, seed)
        labels = judge.predict(draws.x)
        wanted = torch.tensor([int(digit) for digit in digits])
        right = torch.isin(labels, wanted).double().mean().item()
        if not as_json:
            shares = f"digits: {_shares(labels)}; {100 * right:.1f} % are {' '.join(digits)}"
            print(f"\n== {expression}\n{draws.report()}\n{shares}", flush=True)
        results.append(
            {"expression": expression, "digits": digits, "share": right, "verdict": draws.verdict}
        )
        spread = draws.x[:: max(1, len(draws) // PICTURES)]
        pictures[f"{expression}: {100 * right:.0f} % right"] = spread[:PICTURES]
    out.parent.mkdir(parents=True, exist_ok=True)
    figures.rows(pictures, out, width=PICTURES)
    seconds = time.perf_counter() - begun
    facts = {"compositions": results, "files": [str(out)], "seconds": seconds}
    emit(f"\n{out} written; {seconds:.0f} s in all", facts, as_json)


def _drawn(energy: poe.Energy, count: int, seed: int) -> poe.Draws:
    """Exact draws or annealed particles: importance resampling would work for some expressions, but
    the demo shows what Langevin moves do."""
    method = "exact" if poe.plan(energy).method == "exact" else "annealed"
    return poe.sample(energy, count, method=method, seed=seed)


def _shares(labels: Tensor) -> str:
    counted = torch.stack(labels.unique(return_counts=True), 1).tolist()
    return ", ".join(f"{digit} {100 * n / len(labels):.0f} %" for digit, n in counted)


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("out/demo.png"),
        help="the PNG to write (default: %(default)s)",
    )
    parser.add_argument(
        "--draws",
        type=whole(1),
        default=200,
        help="draws of each composition (default: %(default)s)",
    )
    add_seed(parser)


def _run(arguments: argparse.Namespace) -> int:
    demo(arguments.out, arguments.draws, arguments.seed, as_json=arguments.json)
    return 0


COMMAND = Command(
    "demo", "compose three pretrained experts of digits and paint draws", _arguments, _run
)
