"""How the benchmarks measure: things that are compared run in turns, in one process, on one thread.

The clock of a shared machine drifts; medians of ratios taken turn by turn do not. Seconds are those
of this
process on the processor, so that other processes do not count: everything runs on one thread.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence

import torch
from torch.profiler import ProfilerActivity, profile

torch.set_num_threads(1)
torch.set_flush_denormal(True)


def seconds(run: Callable[[], object]) -> float:
    """Processor seconds that one call takes."""
    start = time.process_time()
    run()
    return time.process_time() - start


def in_turns(
    runs: Sequence[Callable[[], object]], turns: int, warmup: int = 3
) -> list[list[float]]:
    """Seconds of each run in each turn, (turns, runs); every turn takes the runs one after the
    other."""
    for _ in range(warmup):
        for run in runs:
            run()
    return [[seconds(run) for run in runs] for _ in range(turns)]


def median_ratio(times: Sequence[Sequence[float]], top: slice, bottom: slice) -> float:
    """Median over turns of sum(times[top]) / sum(times[bottom])."""
    return statistics.median(sum(turn[top]) / sum(turn[bottom]) for turn in times)


def peak_bytes(run: Callable[[], object]) -> int:
    """Most bytes of tensors alive at once that were allocated during one call.

    Sums the CPU allocator's own events (+ allocate, - free), as torch's profiler records them, by
    time.
    Unlike resident memory it counts no caches of malloc and no garbage of earlier calls: it repeats
    exactly.
    """
    run()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        run()
    events = [
        event for event in record.profiler.kineto_results.events() if event.name() == "[memory]"
    ]
    alive = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        alive += event.nbytes()
        peak = max(peak, alive)
    return peak


def table(
    title: str, rows: Sequence[tuple[str, float, str, float | None]], *, largest: bool = True
) -> None:
    """Prints (what, value, unit, goal) rows; a goal is the largest value wanted, or the
    smallest."""
    print(f"\n{title}")
    for what, value, unit, goal in rows:
        verdict = ""
        if goal is not None:
            met = value <= goal if largest else value >= goal
            verdict = f"goal {'<=' if largest else '>='} {goal:g}: {'met' if met else 'MISSED'}"
        print(f"  {what:<50} {value:8.3f} {unit:<2} {verdict}".rstrip())
