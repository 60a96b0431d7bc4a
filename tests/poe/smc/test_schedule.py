from __future__ import annotations

import math

import torch

from tests.poe.smc.schedules import frozen
from tests.poe.targets import Gauss


def test_the_mean_weight_back_from_exact_draws_is_the_inverse_ratio() -> None:
    start, end, g = Gauss(0.0, 1.0), Gauss(0.6, 0.8), torch.Generator().manual_seed(3)
    schedule = frozen(start, end, [0.5, 1.0], step=0.05, moves=1).refined(2)
    assert [level.beta for level in schedule.levels] == [0.25, 0.5, 0.75, 1.0]
    for x, holds in (
        (end.sample(20_000, generator=g), True),
        (Gauss(0.7, 0.8).sample(20_000, generator=g), False),
    ):
        weights = schedule.back(x, g).exp()
        z = abs(weights.mean() - 1) / (weights.std() / math.sqrt(20_000))
        assert (z < 5) == holds, z
