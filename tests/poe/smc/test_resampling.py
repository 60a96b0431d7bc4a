from __future__ import annotations

import math

import pytest
import torch

from poe.mcmc.run import streams
from poe.smc.population import anneal
from poe.smc.resampling import estimate, systematic
from tests.poe.smc.schedules import CPU, frozen, started
from tests.poe.targets import Gauss


def test_standard_errors_cover() -> None:
    start, end = Gauss(0.0, 1.0), Gauss(1.0, 0.6)
    schedule = frozen(start, end, [0.5, 1.0], step=0.2, moves=2)
    covered = 0
    for seed in range(200):
        ratio = estimate(
            anneal(schedule, started(start), [16], 32, streams(seed, 1, CPU)).log_ratio
        )
        covered += abs(ratio.value) < 1.96 * ratio.standard_error
    # 15 degrees of freedom: 93.1 % expected; outside of 172 to 199 of 200 with probability 1e-3
    assert 172 <= covered <= 199


@pytest.mark.parametrize("place", [0, 7])
def test_resampling_has_mean_counts_and_one_law_at_every_place(place: int) -> None:
    g = torch.Generator().manual_seed(0)
    logs = torch.randn(40_000, 8, generator=g, dtype=torch.float64)
    order = systematic(logs, torch.rand(40_000, 2, generator=g, dtype=torch.float64))
    counts = torch.nn.functional.one_hot(order, 8).sum(1)
    assert (counts - 8 * logs.softmax(1)).abs().max() < 1  # systematic: never a whole copy off
    change = (counts - 8 * logs.softmax(1))[:, 0]
    assert abs(change.mean()) < 4.5 * change.std() / math.sqrt(40_000)
    chosen = logs.gather(1, order)
    gap = chosen[:, place] - (logs * logs.softmax(1)).sum(1)
    assert abs(gap.mean()) < 4.5 * gap.std() / math.sqrt(40_000)
