"""(f) Coverage of the standard errors of log Z: 200 cheap runs on each of three targets: how often
95 %
intervals contain the truth.

Intervals are value ± 1.96 standard errors; the goal is 90 to 99 % over all runs. The three are
drawn by importance from a part, by annealing from a part, and by annealing from a start that has to
be found. Warnings and failures are counted, and none is left out.
"""

from __future__ import annotations

import argparse
import math
import time
import warnings
from collections.abc import Callable
from typing import NamedTuple

import torch
from scipy.integrate import quad
from torch.nn.functional import softplus

import poe
import targets as known
import timing  # noqa: F401
from poe.algebra.energy import Energy, Estimate
from poe.sampling.estimation import EstimateWarning


class Target(NamedTuple):
    name: str
    make: Callable[[], Energy]
    log_z: float


def tilted() -> Target:
    """N(0, I) in three dimensions, times exp(-3 softplus(2 s)) with s = Σ xᵢ ~ N(0, 3)."""

    def density(s: float) -> float:
        return math.exp(
            -(s**2) / 6 - 3 * math.log1p(math.exp(-abs(2 * s))) - 6 * max(s, 0.0)
        ) / math.sqrt(6 * math.pi)

    normal = known.isotropic(torch.zeros(1, 3), 1.0, name="normal")
    tilt = known.Opaque(lambda x: 3 * softplus(2 * x.sum(-1)), 3, name="tilt")
    return Target(
        "by importance from a part", lambda: normal & tilt, math.log(quad(density, -20, 20)[0])
    )


def narrowed() -> Target:
    """N(0, 1.5² I) in four dimensions, times exp(-|x - .5|²/(2 · .2²))."""
    d, a, b = 4, 1.5**2, 0.2**2
    wide = known.isotropic(torch.zeros(1, d), math.sqrt(a), name="wide")
    well = known.Opaque(lambda x: (x - 0.5).square().sum(-1) / (2 * b), d, name="well")
    log_z = d / 2 * math.log(b / (a + b)) - d * 0.25 / (2 * (a + b))
    return Target("by annealing from a part", lambda: wide & well, log_z)


def apart() -> Target:
    """Three parts in ten of N((-3, 0), 1) and the rest of N((3, 1), .25), as a mere energy."""
    means = torch.tensor([[-3.0, 0.0], [3.0, 1.0]])
    roots = torch.stack([torch.eye(2), torch.eye(2) / 2])
    mixed = known.Mixed(torch.tensor([0.3, 0.7]).log(), means, roots, name="two")
    return Target("from a start that is found", lambda: known.opaque(mixed), 0.0)


def covered(
    target: Target, estimate: Callable[[Energy, int], Estimate | None], runs: int
) -> list[bool]:
    """Whether the interval of each run holds the truth; a run that fails does not. Prints a
    line."""
    held, errors, warned, failed, began = [], [], 0, 0, time.process_time()
    for seed in range(runs):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                found = estimate(target.make(), seed)
            except Exception:
                found = None
        warned += any(issubclass(warning.category, EstimateWarning) for warning in caught)
        failed += found is None
        z = math.inf if found is None else (found.value - target.log_z) / found.standard_error
        held.append(abs(z) <= 1.96)
        errors.append(z)
    z = torch.tensor([error for error in errors if math.isfinite(error)])
    print(
        f"  {target.name:<28} {100 * sum(held) / runs:5.1f} %; error in units of its own: mean "
        f"{z.mean():+.2f}, sd {z.std():.2f}, "
        f"largest {z.abs().max():.1f}; {warned} warnings, {failed} without an answer; "
        f"{(time.process_time() - began) / runs:.2f} s a run",
        flush=True,
    )
    return held


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=200)
    runs = parser.parse_args().runs
    ways: dict[str, Callable[[Energy, int], Estimate | None]] = {
        "poe.log_z(e, draws=512)": lambda e, seed: poe.log_z(e, draws=512, seed=seed),
        "poe.sample(e, 500).log_z": lambda e, seed: poe.sample(e, 500, seed=seed).log_z,
    }
    for name, estimate in ways.items():
        print(f"\n{name}: share of {runs} intervals that hold the truth")
        held = [
            hit
            for target in (tilted(), narrowed(), apart())
            for hit in covered(target, estimate, runs)
        ]
        share = 100 * sum(held) / len(held)
        print(f"  over all {share:.1f} % (90 to 99: {'met' if 90 <= share <= 99 else 'MISSED'})")
