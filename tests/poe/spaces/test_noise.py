"""Levels of noise that experts share."""

from __future__ import annotations

import torch

from poe.spaces.noise import noise_levels
from tests.poe.smc.noised import Points


def test_ends_of_a_range_are_not_rounded():
    for low, high in ((0.01, 5.1), (0.02, 5.1), (0.03, 1.1), (0.03, 2.2)):

        class Strict(Points):
            sigma_range = (low, high)

            def at(self, sigma: float) -> Strict:
                assert sigma == 0 or self.sigma_range[0] <= sigma <= self.sigma_range[1]
                level = Strict(self.points)
                level.sigma = sigma
                return level

        levels = noise_levels(Strict(torch.zeros(1, 2)))
        assert levels is not None and levels[0].sigma == high and levels[-2].sigma == low
