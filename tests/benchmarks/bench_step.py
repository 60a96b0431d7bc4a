"""(a) What a Metropolis-adjusted Langevin step costs beyond the one gradient that it needs.

One turn is a bare `value_and_grad` of the energy and a whole step (its noise included) of the same
chains.
"""

from __future__ import annotations

import statistics

import torch

from experts.neural import MLPEnergy
from poe.kernels.langevin import Langevin
from timing import in_turns, median_ratio, table

rows = []
for width in (64, 512, 1024):
    torch.manual_seed(0)
    energy = MLPEnergy((64,), hidden=(width, width, width)).eval()
    x = torch.randn(256, 64)
    generator = torch.Generator().manual_seed(0)
    kernel = Langevin(step_size=1e-3)
    state = kernel.init(energy, x)

    def gradient(energy=energy, x=x) -> object:
        return energy.value_and_grad(x)

    def step(energy=energy, kernel=kernel, state=state, generator=generator) -> object:
        return kernel.step(energy, state, kernel.noise(state, generator))

    times = in_turns([step, gradient], turns=60)
    took = 1e3 * statistics.median(turn[1] for turn in times)
    goal = 1.15 if took >= 5 else None
    rows.append(
        (
            f"256 chains, 64-{width}x3-1, gradient {took:.1f} ms",
            median_ratio(times, slice(0, 1), slice(1, 2)),
            "x",
            goal,
        )
    )
table("MALA step over a bare value_and_grad", rows)
