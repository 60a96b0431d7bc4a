"""The command line: `python -m poe demo` composes three pretrained experts of real digits."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

import poe
from poe import plotting, storage

EXPERTS = {"digits.even": "02468", "digits.loops": "0689", "digits.high": "56789"}
PICTURES = 16
ONE = 64  # draws of each expert alone; the first are shown


class Row(NamedTuple):
    """One row of the picture: an energy, the digits that satisfy it, and how many draws to judge it by."""

    energy: poe.Energy
    wanted: Sequence[int]
    count: int
    method: str | None = None


def demo(out: Path, count: int, seed: int) -> None:
    """Draws from each expert and each composition, prints reports and shares, and writes one PNG."""
    start = time.perf_counter()
    torch.set_flush_denormal(True)
    judge = poe.load("digits.judge")
    pictures: dict[str, Tensor] = {}
    for row in _rows(count):
        title = str(row.energy)
        print(f"\n== {title}", flush=True)
        draws = poe.sample(row.energy, row.count, method=row.method, seed=seed, progress=True)
        print(draws.report())
        labels = judge.predict(draws.x)  # type: ignore[operator]
        right = torch.isin(labels, torch.tensor(row.wanted)).double().mean()
        print(f"digits: {_shares(labels)}; {100 * right:.1f} % are {' '.join(map(str, row.wanted))}")
        shown = draws.x[:: max(1, len(draws) // PICTURES)][:PICTURES]
        pictures[f"{title}: {100 * right:.0f} % right"] = shown
    out.parent.mkdir(parents=True, exist_ok=True)
    plotting.rows(pictures, out, width=PICTURES)
    print(f"\n{out} written; {time.perf_counter() - start:.0f} s in all")


def _rows(count: int) -> Iterable[Row]:
    even, loops, high = (poe.load(name) for name in EXPERTS)
    for energy, (_, digits) in zip((even, loops, high), EXPERTS.items(), strict=True):
        yield Row(energy, [int(digit) for digit in digits], ONE)
    yield Row((even & loops & high) ** (1 / 3), [6, 8], count, "tempered")  # two modes that Langevin does not connect
    yield Row(even | loops, [0, 2, 4, 6, 8, 9], count)
    high = poe.normalize(high, draws=10_000, seed=0)  # `|` weighs densities, so the neural energy needs its log Z
    yield Row((even & loops) ** 0.5 & (loops / (loops | high)) ** 8, [0], count, "tempered")


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
