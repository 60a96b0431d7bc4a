"""(l) Fifteen posteriors of posteriordb: `poe.sample(e, 1000, seed=s)`, with nothing tuned by hand.

Right is: each mean within 4 MCSE + .02 sd of the reference, and each standard deviation within 10 %
+ 3 of its standard errors. MCSE is at the ESS of each quantity in its draws. Wanted: all right, 14
of 15 trusted, none of these wrong; none over 60 s, the median at most 3 s.

    bench_posteriordb.py                    all, seed 0
    bench_posteriordb.py --only garch nes   those whose name holds one of these words
    bench_posteriordb.py --seeds 5          more seeds
    bench_posteriordb.py --float64          in double precision
    bench_posteriordb.py --check            no sampler: the densities by importance weights, from a
                                            Student-t law at their mode
"""

from __future__ import annotations

import argparse
import statistics
import time
import warnings
from dataclasses import dataclass

import torch
from torch import Tensor

import poe
import timing  # noqa: F401
from posteriors import Posterior, errors, posteriors
from reweighing import moments

DRAWS = 1000
MIN_ESS = 1000  # of weights, to compare a density with its reference
MAX_SECONDS, MEDIAN_SECONDS, MIN_TRUSTED_SHARE = 60.0, 3.0, 14 / 15


@dataclass(frozen=True)
class Run:
    posterior: str
    seconds: float
    trusted: bool
    right: bool


def measure(posterior: Posterior, seed: int) -> Run:
    """One line of figures, and the reason where draws are not trusted."""
    target, began = posterior.make(), time.process_time()
    try:
        draws = poe.sample(target, DRAWS, seed=seed)
    except Exception as error:
        took = time.process_time() - began
        print(f"  seed {seed}: FAILED after {took:.1f} s: {type(error).__name__} {error}")
        return Run(posterior.name, took, False, False)
    took, d = time.process_time() - began, draws.diagnostics
    found = errors(posterior, draws)
    print(
        f"  seed {seed}: {took:5.1f} s, {d.gradients:,.0f} gradients, {d.energies:,.0f} energies; "
        f"{draws.method}\n    {found}; {draws.verdict}",
        flush=True,
    )
    return Run(posterior.name, took, draws.trusted, found.right)


def summary(runs: list[Run]) -> None:
    """Counts of runs, and seconds, beside what is wanted."""
    seconds = [run.seconds for run in runs]
    trusted = sum(run.trusted for run in runs)
    wrong = sorted({run.posterior for run in runs if run.trusted and not run.right})
    middle, longest = statistics.median(seconds), max(seconds)

    def said(met: bool) -> str:
        return "met" if met else "MISSED"

    right = sum(run.right for run in runs)
    print(f"\n{len(runs)} runs")
    print(f"  right              {right:6d} (wanted {len(runs)}: {said(right == len(runs))})")
    print(
        f"  trusted            {trusted:6d} (wanted >= {MIN_TRUSTED_SHARE:.0%}: "
        f"{said(trusted >= MIN_TRUSTED_SHARE * len(runs) - 1e-9)})"
    )
    print(
        f"  trusted and wrong  {sum(r.trusted and not r.right for r in runs):6d} (wanted 0: "
        f"{said(not wrong)}) {', '.join(wrong)}".rstrip()
    )
    print(
        f"  seconds, median    {middle:6.1f} (wanted <= {MEDIAN_SECONDS:g}: "
        f"{said(middle <= MEDIAN_SECONDS)})"
    )
    print(
        f"  seconds, longest   {longest:6.1f} (wanted <= {MAX_SECONDS:g}: "
        f"{said(longest <= MAX_SECONDS)})"
    )


def check(posterior: Posterior) -> None:
    """The moments of the density by importance weights beside those of the reference."""
    names, truth = list(posterior.reference()), posterior.reference().values()
    expected: Tensor = torch.tensor(list(truth), dtype=torch.float64)
    found = moments(posterior)
    # 10,000 draws made the reference
    allowed = (found.error.square() + expected[:, 1].square() / 10_000).sqrt()
    z = (found.mean - expected[:, 0]).abs() / allowed
    ratio = (found.sd / expected[:, 1])[: len(names) - len(posterior.more)]
    print(
        f"  ESS {found.ess:,.0f} of {found.points:,}; means off by {float(z.max()):.1f} standard "
        f"errors ({names[int(z.argmax())]}); sd over that of the reference {float(ratio.min()):.3f}"
        f" ... {float(ratio.max()):.3f}{'' if found.ess >= MIN_ESS else '; too few to tell'}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", nargs="+", default=[""], metavar="WORD")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--float64", action="store_true")
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    if options.float64 or options.check:
        torch.set_default_dtype(torch.float64)
    runs = []
    for posterior in posteriors():
        if any(word in posterior.name for word in options.only):
            print(posterior.name, flush=True)
            if options.check:
                check(posterior)
            else:
                runs += [measure(posterior, seed) for seed in range(options.seeds)]
    if runs:
        summary(runs)


if __name__ == "__main__":
    main()
