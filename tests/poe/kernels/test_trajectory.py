from __future__ import annotations

import math

import pytest
import torch
from scipy.optimize import brentq

from poe.kernels.state import Trajectory
from poe.kernels.trajectory import NORMAL_LENGTH, chees_slope, mean_step_count, step_count


def test_the_mean_number_of_steps_is_that_of_its_law() -> None:
    u = (torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000
    for longest, most in ((0.3, 8), (1.0, 8), (5.5, 8), (8.0, 8), (30.2, 8)):
        assert sum(step_count(v, longest, most) for v in u[::10]) / 10_000 == pytest.approx(
            mean_step_count(longest, most), abs=1e-3
        )


def test_the_slope_is_the_derivative_of_the_criterion() -> None:
    """Against central differences of C(t)/√t over exact trajectories of a normal, z(t) = z cos t +
    v sin t, every chain accepted."""
    g = torch.Generator().manual_seed(0)
    z, v = torch.randn(2, 500, 3, generator=g, dtype=torch.float64)
    factor = torch.tensor([[2.0, 0.0, 0.0], [1.0, 0.5, 0.0], [0.0, 0.3, 1.0]], dtype=torch.float64)

    def at(t: float) -> torch.Tensor:
        return z * math.cos(t) + v * math.sin(t)

    def criterion(t: float) -> float:
        end, start = at(t) - at(t).mean(0), z - z.mean(0)
        change = end.square().sum(-1) - start.square().sum(-1)
        return float(change.square().mean() / 4 / t**0.5)

    for t in (0.4, 1.1, 2.0):
        trajectory = Trajectory(
            z @ factor.T + 7,
            at(t) @ factor.T + 7,
            v * math.cos(t) - z * math.sin(t),
            torch.full((500,), t).double(),
        )
        slope = chees_slope(trajectory, torch.ones(500).double(), factor, True)
        by_hand = (criterion(t * 1.0001) - criterion(t / 1.0001)) / (2 * math.log(1.0001)) * t**0.5
        # the centre of the ends moves with t, which changes the criterion by the mean of the ends
        # alone: nothing after centring
        assert float(slope) == pytest.approx(by_hand, rel=1e-2, abs=1e-2)


def test_the_best_length_for_a_normal() -> None:
    # C(t) ∝ sin² t; over u the mean is ½ - sin(2T)/(4T), and T maximises that over √T
    def slope(T: float) -> float:
        mean, change = (
            0.5 - math.sin(2 * T) / (4 * T),
            math.sin(2 * T) / (4 * T**2) - math.cos(2 * T) / (2 * T),
        )
        return change - mean / (2 * T)

    assert brentq(slope, 1.5, 2.5) == pytest.approx(NORMAL_LENGTH, abs=1e-4)
