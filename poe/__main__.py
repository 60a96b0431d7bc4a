"""The command line: `python -m poe demo` composes three pretrained experts of real digits."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

import poe
from poe import plotting, storage

EXPERTS = {"even": "02468", "loops": "0689", "high": "56789"}  # of the zoo's `digits`, and the digits that each was trained on
COMPOSITIONS = {  # and the digits that satisfy them
    "(even & loops & high) ** (1/3)": "68",
    "even | loops": "024689",
    "(even & loops) ** 0.5 & (loops / (loops | high)) ** 8": "0",
}
PICTURES = 16
ONE = 100  # draws of each expert alone; the first are shown


def demo(out: Path, count: int, seed: int) -> None:
    """Draws from each expert and each composition, prints reports and shares, and writes one PNG."""
    begun = time.perf_counter()
    torch.set_flush_denormal(True)
    experts = {name: poe.load(f"digits.{name}") for name in EXPERTS}
    experts["high"] = poe.normalize(experts["high"], seed=seed)  # `|` weighs densities, so the neural energy needs its log Z
    judge = poe.load("digits.judge")
    pictures: dict[str, Tensor] = {}
    for expression, digits in (EXPERTS | COMPOSITIONS).items():
        print(f"\n== {expression}", flush=True)
        energy = poe.parse(expression, experts)
        exact = poe.plan(energy).method == "exact"
        # importance resampling would do for some of these: annealed particles show what Langevin moves do
        draws = poe.sample(
            energy, ONE if expression in EXPERTS else count, method="exact" if exact else "annealed", seed=seed, progress=True
        )  # fmt: skip
        print(draws.report())
        labels = judge.predict(draws.x)  # type: ignore[operator]
        right = torch.isin(labels, torch.tensor([int(digit) for digit in digits])).double().mean()
        print(f"digits: {_shares(labels)}; {100 * right:.1f} % are {' '.join(digits)}")
        pictures[f"{expression}: {100 * right:.0f} % right"] = draws.x[:: max(1, len(draws) // PICTURES)][:PICTURES]
    out.parent.mkdir(parents=True, exist_ok=True)
    plotting.rows(pictures, out, width=PICTURES)
    print(f"\n{out} written; {time.perf_counter() - begun:.0f} s in all")


def _shares(labels: Tensor) -> str:
    digits, counts = labels.unique(return_counts=True)
    return ", ".join(f"{d} {100 * c / len(labels):.0f} %" for d, c in zip(digits.tolist(), counts.tolist(), strict=True))


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of the command `poe`; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m poe", description="Products of experts.")
    commands = parser.add_subparsers(dest="command", required=True)
    show = commands.add_parser("demo", help="compose three pretrained experts of digits and paint draws")
    show.add_argument("--out", type=Path, default=Path("out/demo.png"), help="the PNG to write (default: %(default)s)")
    show.add_argument("--draws", type=int, default=200, help="draws of each composition (default: %(default)s)")
    show.add_argument("--seed", type=int, default=0)
    commands.add_parser("list", help="name the registered experts and the zoo's")
    arguments = parser.parse_args(argv)
    if arguments.command == "demo":
        demo(arguments.out, arguments.draws, arguments.seed)
    else:
        print("experts:", *poe.available())
        print("zoo:", *storage.zoo())
    return 0


if __name__ == "__main__":
    sys.exit(main())
