"""(i) Concepts of the zoo's `shapes` composed: how many draws satisfy what was asked for, judged by
the exact classifier of examples/shapes.py, and how the factors that were left free are distributed.

    python tests/benchmarks/bench_shapes.py [--draws 256] [--thin 1] [--rows NAME ...] [--baselines]

For each composition: the share of draws that satisfy it; that are broken (no object, several, or
one that no render comes near); the largest total variation between the shares of a free factor and
the truth, over the factors; ESS, R-hat, and processor seconds. With `--baselines` the same by the
score-only ways of baselines.py on the same networks: reverse diffusion, ULA and MALA at each level.
They draw a mixture from the log-sum-exp of its parts as it stands.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

import poe
import timing  # noqa: F401
from baselines import annealed_chains, mala, reverse_diffusion, ula
from poe.algebra.energy import Energy

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples"))
from shapes import FACTORS, combinations, judge

PRIOR = poe.load("shapes.any")
LEVELS, STEPS = 60, 3  # of the baselines


def both(*concepts: str) -> Energy:
    return poe.conjunction(PRIOR, [PRIOR.given(concept) for concept in concepts])  # type: ignore[operator]


def normal(*concepts: str) -> Energy:
    return poe.normalize(both(*concepts), seed=0)


@dataclass(frozen=True)
class Case:
    goal: str
    energy: Callable[[], Energy]
    wanted: tuple[tuple[str, ...], ...]  # alternatives, of which one must hold
    unwanted: tuple[str, ...] = ()
    unseen: bool = False


def conjunction(*concepts: str, goal: str, unseen: bool = False) -> Case:
    return Case(goal, lambda: both(*concepts), (concepts,), unseen=unseen)


CASES = {
    "red": conjunction("red", goal="99"),
    "circle": conjunction("circle", goal="99"),
    "small": conjunction("small", goal="99"),
    "left": conjunction("left", goal="99"),
    "2: red square": conjunction("red", "square", goal="98"),
    "2: circle left": conjunction("circle", "left", goal="98"),
    "3: blue circle large": conjunction("blue", "circle", "large", goal="96"),
    "4: yellow triangle right large": conjunction(
        "yellow", "triangle", "right", "large", goal="94"
    ),
    "4: red circle left small": conjunction("red", "circle", "left", "small", goal="94"),
    "5: green square right bottom large": conjunction(
        "green", "square", "right", "bottom", "large", goal="90"
    ),
    "mixture .3 red .7 circle": Case(
        "97; 30 ± 7",
        lambda: poe.mixture([normal("red"), normal("circle")], weights=[0.3, 0.7]),
        (("red",), ("circle",)),
    ),
    "mixture red small, blue large": Case(
        "97; 50 ± 7",
        lambda: poe.mixture([normal("red", "small"), normal("blue", "large")], weights=[0.5, 0.5]),
        (("red", "small"), ("blue", "large")),
    ),
    "circle but not red": Case(
        "97",
        lambda: poe.contrast(normal("circle"), normal("red"), strength=8),
        (("circle",),),
        ("red",),
    ),
    "square left but not blue": Case(
        "97",
        lambda: poe.contrast(normal("square", "left"), normal("blue"), strength=8),
        (("square", "left"),),
        ("blue",),
    ),
    "unseen: circle yellow large": conjunction("circle", "yellow", "large", goal="85", unseen=True),
    "unseen: triangle red left": conjunction("triangle", "red", "left", goal="85", unseen=True),
    "unseen: square green small top": conjunction(
        "square", "green", "small", "top", goal="85", unseen=True
    ),
}


def row(case: Case, x: Tensor, seconds: float, evidence: str = "") -> str:
    seen = judge(x)
    held = torch.stack([seen.has(*concepts) for concepts in case.wanted])
    good = held.any(0)
    for concept in case.unwanted:
        good &= ~seen.has(concept)
    sides = (
        ""
        if len(held) == 1
        else " sides " + " ".join(f"{100 * side.double().mean():.1f}" for side in held)
    )
    free = ""
    if len(held) == 1 and not case.unwanted:
        truth = combinations(case.wanted[0], unseen=case.unseen)
        gaps = {}
        for index, (factor, values) in enumerate(FACTORS.items()):
            if not set(values) & set(case.wanted[0]):
                exact = torch.bincount(truth[:, index], minlength=len(values)) / len(truth)
                gaps[factor] = 0.5 * (seen.shares(factor) - exact).abs().sum().item()
        free = " TV " + " ".join(f"{factor} {gap:.2f}" for factor, gap in gaps.items())
    share, broken = 100 * good.double().mean().item(), 100 * seen.broken.double().mean().item()
    return (
        f"{share:5.1f} % (goal {case.goal})  broken {broken:4.1f} %{sides}{free}  "
        f"{seconds:.0f} "
        f"s  {evidence}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--draws", type=int, default=256)
    parser.add_argument("--rows", nargs="*", default=list(CASES))
    parser.add_argument("--baselines", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--thin",
        type=int,
        default=1,
        help="particles for each that is needed; 1,024 are for 256 draws",
    )
    arguments = parser.parse_args()
    for name in arguments.rows:
        case = CASES[name]
        target = case.energy()
        print(name, flush=True)
        started = time.process_time()
        draws = poe.sample(target, arguments.draws, seed=arguments.seed, thin=arguments.thin)
        d = draws.diagnostics
        evidence = f"ESS {d.ess_bulk:.0f}, R-hat {d.rhat:.3f}, log Z {draws.log_z}, {draws.verdict}"
        print(
            "  poe.sample        ",
            row(case, draws.x, time.process_time() - started, evidence),
            flush=True,
        )
        if not arguments.baselines:
            continue
        for title, draw in {
            "reverse diffusion ": lambda g, e=target, n=arguments.draws: reverse_diffusion(
                e, n, LEVELS * (1 + STEPS), g
            ),
            "ULA               ": lambda g, e=target, n=arguments.draws: annealed_chains(
                e, n, LEVELS, STEPS, ula(0.05), g, diffuse=True
            ),
            "MALA              ": lambda g, e=target, n=arguments.draws: annealed_chains(
                e, n, LEVELS, STEPS, mala(0.15), g, diffuse=True
            ),
        }.items():
            started = time.process_time()
            x = draw(torch.Generator().manual_seed(arguments.seed))
            print(f"  {title}", row(case, x, time.process_time() - started), flush=True)


if __name__ == "__main__":
    main()
