"""(b) A product of 16 distinct neural experts: time over the sum of its parts, peak memory over one
part."""

from __future__ import annotations

import torch

import poe
from experts.neural import MLPEnergy
from timing import in_turns, median_ratio, peak_bytes, table

torch.manual_seed(0)
parts = [MLPEnergy((64,), hidden=(512, 512, 512)).eval() for _ in range(16)]
whole = poe.product(parts)
x = torch.randn(1024, 64)

runs = [lambda energy=energy: energy.value_and_grad(x) for energy in (whole, *parts)]
times = in_turns(runs, turns=15)
peaks = [peak_bytes(run) for run in runs]
table(
    "product of 16 neural experts, 1024 points",
    [
        (
            "time over the sum of its parts",
            median_ratio(times, slice(0, 1), slice(1, None)),
            "x",
            1.05,
        ),
        (
            f"peak memory over one part ({max(peaks[1:]) / 2**20:.1f} MiB)",
            peaks[0] / max(peaks[1:]),
            "x",
            1.3,
        ),
    ],
)
