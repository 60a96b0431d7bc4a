"""(m) Modes first: is what is TRUSTED right, and what does it cost? `poe.sample(e, 1000, seed=s)`,
and `poe.log_z(e, seed=s)` where a row says so, with nothing tuned by hand.

    bench_modes.py                                all rows but the family and the expensive one
    bench_modes.py --rows narrow pairs --seeds 2  rows by name
    bench_modes.py --rows family --count 20 --start 40
    bench_modes.py --list

"Right" is: every share within its slack (.02) + 3 standard errors at the reported ESS, ESS >= 300,
log Z within .03 + 3 of its own errors; and over the seeds the mean of every share within .02 (of
means, whose standard deviation is 1, within .02 + 3 standard errors). "Wrong" is a share off by
more than 5 of its own standard errors. Seconds are those of one thread.
"""

from __future__ import annotations

import argparse
import math
import re
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

import mode_targets as known
import poe
import targets
import timing  # noqa: F401
from mode_targets import Case
from poe.algebra.energy import Energy, Estimate

DRAWS = 1000
MIN_ESS = 300  # draws
LOG_Z_SLACK = 0.03  # nats
WRONG = 5.0  # own standard errors
FAMILY_SHARE = 0.06  # largest error of a share of a random mixture


@dataclass(frozen=True)
class Result:
    """One case and seed. `errors` are those of the figures; `units` the same in standard errors at
    the reported ESS; `excess` what they exceed of slack + 3 standard errors (negative: within).
    `honest`: not trusted, for a reason that a row accepts."""

    seconds: float
    gradients: float
    energies: float
    method: str = ""
    trusted: bool = False
    honest: bool = False
    ess: float = 0.0
    errors: Tensor = field(default_factory=lambda: torch.full((1,), math.inf).double())
    units: Tensor = field(default_factory=lambda: torch.full((1,), math.inf).double())
    excess: float = math.inf
    log_z: Estimate | None = None  # less the exact value
    said: str = ""

    @property
    def log_z_right(self) -> bool:
        z = self.log_z
        return z is None or abs(z.value) <= LOG_Z_SLACK + 3 * z.standard_error

    @property
    def log_z_wrong(self) -> bool:
        z = self.log_z
        return z is not None and abs(z.value) > LOG_Z_SLACK + WRONG * z.standard_error

    @property
    def right(self) -> bool:
        return self.excess <= 0 and self.log_z_right

    @property
    def wrong(self) -> bool:
        return bool(self.units.abs().max() > WRONG)


@dataclass(frozen=True)
class Row:
    """Cases that are judged alike, and what is wanted of them.

    Attributes:
        seeds: how many by default.
        right: the least share of runs that are right.
        seconds: the largest median.
        never_wrong: no run may be trusted and wrong.
        log_z: whether `poe.log_z` is called too.
        honest: a pattern of reasons; a run that is not trusted for one of them is as good as right.
        pooled: figures are judged over all seeds together, within 3 standard errors.
        gradients: the largest number of gradients.
    """

    name: str
    cases: Callable[[], list[Case]]
    seeds: int = 5
    right: float | None = 1.0
    seconds: float | None = None
    draws: int = DRAWS
    never_wrong: bool = True
    log_z: bool = False
    honest: str = ""
    pooled: bool = False
    gradients: float | None = None


def gaussians(d: int, seconds: float) -> Row:
    return Row(f"gaussian-{d}", lambda: [known.gaussian(d)], 3, seconds=seconds)


def schools() -> list[Case]:
    kinds = [(form, dtype) for form in ("log tau", "tau > 0") for dtype in FLOATS]
    return [known.schools(form, dtype) for form, dtype in kinds]


FLOATS = (torch.float32, torch.float64)
NARROW = (  # d, distance, sd
    (8, 5.0, 0.3),
    (4, 5.0, 0.2),
    (2, 3.0, 0.03),
    (5, 0.0, 0.1),
    (10, 0.0, 0.1),
    (2, 0.0, 0.01),
)
PAIRS = ((1, 0.1, 10.0), (2, 1.0, 30.0))


def rows(count: int, start: int) -> list[Row]:
    family = range(start, start + count)
    return [
        *(
            Row(f"two_modes-{d}", lambda d=d: [known.two_modes(d)], seconds=3.0, log_z=True)
            for d in (8, 16, 32, 64, 128)
        ),
        Row("narrow", lambda: [known.narrow(*which) for which in NARROW], 10, right=0.9),
        Row("torch", lambda: [known.crossed(0.03), known.crossed(0.01), known.six(0.03)]),
        Row("pairs", lambda: [known.pair(*which) for which in PAIRS]),
        Row("scales", lambda: [known.scales()]),
        Row("tails", lambda: [known.student(), known.students()], right=None, pooled=True),
        Row("schools", schools, right=0.6, honest=r"\b9\b|tau", never_wrong=False),
        Row("expression", known.expressions),
        gaussians(10, 0.5),
        gaussians(100, 2.0),
        gaussians(300, 4.0),
        gaussians(1000, 8.0),
        Row("logistic", lambda: [known.logistic()], 3, right=None, seconds=2.0),
        Row("funnel", lambda: [known.neck()], 3, seconds=5.0),
        Row("banana-100", lambda: [known.banana()], 3, seconds=1.0, draws=100),
        Row("banana-100000", lambda: [known.banana()], 3, seconds=3.0, draws=100_000),
        Row("modes-16", lambda: [known.four_modes()], 3, seconds=2.0),
        Row("product-4", lambda: [known.five_by_five()], 3, seconds=1.0),
        Row("expensive", lambda: [known.logistic(20_000)], 1, right=None, gradients=60_000),
        Row("family", lambda: [known.random_mixture(i) for i in family], 1, 0.9, 3.0),
    ]


def attempt(do: Callable[[], object]) -> tuple[object, float, str]:
    """What a call returns, None where it fails; processor seconds; the error, or warnings of
    estimates, in words."""
    began, result, said = time.process_time(), None, ""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            result = do()
        except Exception as problem:  # a benchmark goes on
            said = f"FAILED: {type(problem).__name__}: {problem}"
    for warning in caught:
        if issubclass(warning.category, poe.EstimateWarning):
            said = said or f"warned: {warning.message}"
    return result, time.process_time() - began, said


def tally(target: Energy) -> targets.Tally | None:
    """Of the black box, where the target is one."""
    return target.tally if isinstance(target, targets.Opaque) else None


def measure(case: Case, row: Row, seed: int) -> Result:
    """One run of `poe.sample`."""
    target = case.make()
    draws, seconds, error = attempt(lambda: poe.sample(target, row.draws, seed=seed))
    count = tally(target)
    if not isinstance(draws, poe.Draws):
        gradients, energies = (count.gradients, count.energies) if count else (math.nan,) * 2
        return Result(seconds, gradients, energies, said=error)
    d = draws.diagnostics
    gradients, energies = (count.gradients, count.energies) if count else (d.gradients, d.energies)
    ess = float(row.draws) if d.independent else min(d.ess_bulk, float(row.draws))
    said = "trusted" if draws.trusted else f"NOT TRUSTED: {draws.reasons[0]}"
    result = {
        "method": draws.method.split(",")[0],
        "trusted": draws.trusted,
        "honest": not draws.trusted
        and bool(row.honest)
        and any(re.search(row.honest, reason) for reason in draws.reasons),
        "ess": ess,
        "log_z": _less(draws.log_z, case.log_z),
        "said": said,
    }
    if case.figures is None:  # seconds and gradients alone are measured
        none = torch.zeros(1).double()
        result |= {"errors": none, "units": none, "excess": -1.0}
    else:
        figures = case.figures
        errors = figures.evaluate(draws.x.detach()).double().mean(0) - figures.exact
        se = figures.sd / math.sqrt(max(ess, 1e-9))
        excess = float((errors.abs() - figures.slack - 3 * se).max())
        short = ess < min(MIN_ESS, row.draws)
        result |= {"errors": errors, "units": errors / se, "excess": math.inf if short else excess}
    return Result(seconds, gradients, energies, **result)


def estimate(case: Case, seed: int) -> Result:
    """One run of `poe.log_z`."""
    target = case.make()
    z, seconds, said = attempt(lambda: poe.log_z(target, seed=seed))
    count = tally(target) or targets.Tally()
    if not isinstance(z, tuple):
        return Result(seconds, count.gradients, count.energies, "log_z", said=said)
    none = torch.zeros(1).double()
    return Result(
        seconds,
        count.gradients,
        count.energies,
        "log_z",
        not said,
        errors=none,
        units=none,
        excess=-1.0,
        log_z=_less(Estimate(*z), case.log_z),
        said=said,
    )


def _less(z: Estimate | None, exact: float | None) -> Estimate | None:
    if z is None or exact is None:
        return None
    return Estimate(z.value - exact, z.standard_error)


def line(case: Case, seed: int, result: Result) -> None:
    off = result.wrong or result.log_z_wrong
    word = "right" if result.right else "wrong" if off else "short"
    if case.figures is None and result.method != "log_z":
        word = "-"
    z = result.log_z
    parts = [f"  {case.name} seed {seed}: {word}"]
    if result.method != "log_z" and case.figures is not None:
        worst = int(result.units.abs().argmax())
        off, units = float(result.errors[worst]), float(result.units[worst])
        parts.append(f"off {off:+.3f} ({units:+.1f} se)")
    parts += [f"log Z {z.value:+.4f} ± {z.standard_error:.4f}"] if z else []
    parts += [f"ESS {result.ess:.0f}"] if result.method != "log_z" else []
    cost = f"{result.seconds:.2f} s, {result.gradients:,.0f} gradients"
    cost += f", {result.energies:,.0f} energies"
    print("; ".join([*parts, cost, result.method, result.said]), flush=True)


def summary(name: str, case: Case | None, row: Row, found: Sequence[Result]) -> str:
    """Of the runs of one case, or of a whole row, beside what is wanted."""
    n = len(found)
    right = sum(r.right or r.honest for r in found)
    wrong = sum(r.trusted and r.wrong for r in found)
    bad_z = sum(r.trusted and r.log_z_wrong for r in found)
    seconds = sorted(r.seconds for r in found)
    words = [f"{name}: right {right} of {n}", f"trusted {sum(r.trusted for r in found)}"]
    words += [f"trusted and wrong {wrong}", f"trusted with log Z off by 5 errors {bad_z}"]
    middle, most = statistics.median(seconds), max(r.gradients for r in found)
    words += [f"{middle:.2f} s (largest {seconds[-1]:.2f})", f"at most {most:,.0f} gradients"]
    met = row.right is None or right >= row.right * n
    if case is not None and case.figures is not None and n > 1 and found[0].method != "log_z":
        over, within = over_seeds(case, row, found)
        words.append(over)
        met &= within
    if row.never_wrong:
        met &= wrong == 0
    if row.seconds is not None:
        met &= middle <= row.seconds
        words.append(f"wanted <= {row.seconds:g} s")
    if row.gradients is not None:
        met &= most <= row.gradients
        words.append(f"wanted <= {row.gradients:,.0f} gradients")
    return "; ".join(words) + f": {'met' if met else 'MISSED'}"


def over_seeds(case: Case, row: Row, found: Sequence[Result]) -> tuple[str, bool]:
    """The worst mean error over the seeds, and whether it is within what is allowed."""
    figures, done = case.figures, [r for r in found if r.ess > 0]
    if figures is None or not done:
        return "no draws", False
    mean = torch.stack([r.errors for r in done]).mean(0)
    se = figures.sd / math.sqrt(sum(r.ess for r in done))
    if row.pooled:
        units = mean / se
        said = ", ".join(f"{float(u):+.1f}" for u in units)
        return f"over the seeds {said} standard errors", bool((units.abs() <= 3).all())
    allowed = figures.slack if figures.shares else figures.slack + 3 * se
    worst = int((mean.abs() - allowed).argmax())
    said = f"mean over seeds off {float(mean[worst]):+.4f} of {float(allowed[worst]):.3f}"
    return said, bool((mean.abs() <= allowed).all())


def family_words(found: Sequence[Result]) -> str:
    """Of the random mixtures, and what is wanted of them."""
    n = len(found)
    wrong = sum(r.trusted and r.wrong for r in found)
    far = [bool(r.errors.abs().max() > FAMILY_SHARE) for r in found]
    trusted_far = sum(r.trusted and (r.wrong or f) for r, f in zip(found, far, strict=True))
    within = n - sum(far)
    bad_z = sum(r.trusted and r.log_z_wrong for r in found)
    words = [
        f"of {n}: trusted {sum(r.trusted for r in found)}",
        f"trusted and off by > 5 standard errors {wrong} (wanted <= {0.02 * n:g})",
        f"by those or > {FAMILY_SHARE} {trusted_far}",
        f"every share within {FAMILY_SHARE} in {within} (wanted >= {0.9 * n:g})",
        f"right {sum(r.right for r in found)}",
        f"trusted with log Z off by 5 errors {bad_z}",
        f"median {statistics.median(r.seconds for r in found):.2f} s (wanted <= 3)",
    ]
    return "; ".join(words)


def run(row: Row, seeds: int) -> list[str]:
    """All cases and seeds of a row; its summary lines."""
    print(f"\n{row.name}", flush=True)
    said, every = [], []
    for case in row.cases():
        found = []
        for seed in range(seeds):
            found.append(measure(case, row, seed))
            line(case, seed, found[-1])
        every += found
        if row.name != "family":
            said.append(summary(case.name, case, row, found))
        if row.log_z:
            of_z = [estimate(case, seed) for seed in range(seeds)]
            for seed, result in enumerate(of_z):
                line(case, seed, result)
            said.append(summary(f"{case.name} by log_z", case, row, of_z))
    return said + ([family_words(every)] if row.name == "family" else [])


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", nargs="*", default=[], help="words in the names of rows")
    parser.add_argument("--seeds", type=int, help="by default five, of some rows ten or three")
    parser.add_argument("--count", type=int, default=200, help="how many of the family")
    parser.add_argument("--start", type=int, default=0, help="the first of the family")
    parser.add_argument("--list", action="store_true", help="the rows by name")
    chosen = parser.parse_args()
    poe.sample(known.pair(1, 1.0, 5.0).make(), 10, seed=0)  # what is imported on first use
    lines, names = [], [row.name for row in rows(0, 0)]
    wanted = {n for word in chosen.rows for n in ([word] if word in names else names) if word in n}
    for row in rows(chosen.count, chosen.start):
        apart = row.name in ("family", "expensive")
        if chosen.list:
            print(row.name)
        elif row.name in wanted or (not chosen.rows and not apart):
            lines += run(row, chosen.seeds or row.seeds)
    print("\nsummary", *lines, sep="\n  ")
