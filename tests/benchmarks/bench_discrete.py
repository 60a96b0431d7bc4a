"""(e) Discrete targets with several phases: `poe.sample(e, 1000, seed=s)` and its log Z, by default
methods, against exact sums.

Right: each share within .02 + 3 standard errors at the reported ESS, ESS at least 300, log Z within
.03 + 3 of its own errors. Wrong: trusted, and a share off by more than 5 of its standard errors
plus .02, or log Z by more than .03 + 5. Over the seeds, each mean share is to be within .02.

    bench_discrete.py                 the required targets, seeds 0 to 4
    bench_discrete.py --all --seeds 1 the family too, fewer seeds
    bench_discrete.py potts spin_glass    rows whose builder and arguments hold one of these words
"""

from __future__ import annotations

import argparse
import math
import sys
import time
import warnings
from pathlib import Path

import torch

import poe
import timing  # noqa: F401

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from tests.poe.discrete_targets import FAMILY, REQUIRED, Case

MOST_SECONDS, MIN_ESS, SHARE, NATS = 60.0, 300.0, 0.02, 0.03


def row(case: Case, seed: int) -> dict:
    """One run, its figures beside what is wanted."""
    begun = time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        draws = poe.sample(case.energy, 1000, seed=seed)
    seconds, d = time.process_time() - begun, draws.diagnostics
    found = case.events(draws.x).mean(0)
    ess = min(d.ess_bulk, d.ess_tail)
    ess = 0.0 if math.isnan(ess) else ess
    se = (case.shares * (1 - case.shares) / max(ess, 1.0)).sqrt()
    off = (found - case.shares).abs()
    error = 0.0 if draws.log_z is None else draws.log_z.value - case.log_z
    own = 0.0 if draws.log_z is None else draws.log_z.standard_error
    good = bool((off <= SHARE + 3 * se).all()) and ess >= MIN_ESS and abs(error) <= NATS + 3 * own
    bad = bool((off > SHARE + 5 * se).any()) or abs(error) > NATS + 5 * own
    reason = draws.reasons[0][:60] if draws.reasons else ""
    print(
        f"{case.name:46} seed {seed} {'right' if good else 'WRONG' if bad else 'short':5} "
        f"{'trusted' if draws.trusted else 'NOT':7} off {float(off.max()):.3f} log Z {error:+.3f} "
        f"± {own:.3f} ESS {ess:5.0f} {seconds:5.1f} s {draws.method[:40]} {reason}",
        flush=True,
    )
    return {
        "right": good and draws.trusted,
        "wrong": bad and draws.trusted,
        "seconds": seconds,
        "found": found,
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("words", nargs="*")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--all", action="store_true")
    arguments = parser.parse_args()
    words, cases = arguments.words, REQUIRED + (FAMILY if arguments.all else [])
    right = wrong = count = slow = biased = 0
    for make in cases:
        label = " ".join(map(str, (make.func.__name__, *make.args, make.keywords)))
        if words and not any(word in label for word in words):
            continue
        case = make()
        rows = [
            row(case, seed) for seed in range(arguments.first, arguments.first + arguments.seeds)
        ]
        mean = torch.stack([r["found"] for r in rows]).mean(0)
        biased += len(rows) > 1 and bool(((mean - case.shares).abs() > SHARE).any())
        right += sum(r["right"] for r in rows)
        wrong += sum(r["wrong"] for r in rows)
        slow += sum(r["seconds"] > MOST_SECONDS for r in rows)
        count += len(rows)
    print(f"right and trusted {right} of {count} (wanted: at least 80 %)")
    print(f"trusted and wrong {wrong} (wanted: 0)")
    print(f"above {MOST_SECONDS:g} s {slow} (wanted: 0)")
    print(f"targets whose mean share over seeds is off by more than {SHARE} {biased} (wanted: 0)")


if __name__ == "__main__":
    main()
