from __future__ import annotations

import math

import pytest
import torch

from poe.kernels import Langevin
from poe.kernels.adapt import Ascent, DualAveraging, Moments
from poe.kernels.state import Trajectory
from poe.kernels.trajectory import NORMAL_LENGTH, chees_slope
from poe.mcmc.run import run, streams
from tests.poe.targets import Gauss, Raw

CPU = torch.device("cpu")


def test_the_step_size_is_found_and_the_acceptance_is_the_target() -> None:
    for sd in (0.01, 1.0, 300.0):
        energy = Gauss(0.0, sd, d=4)
        start = energy.sample(50, generator=torch.Generator().manual_seed(0))
        trace = run(Langevin(), energy, start, draws=200, warmup=300, generators=streams(0, 1, CPU))
        assert abs(trace.counts.acceptance - 0.574) < 0.08


def test_the_preconditioner_learns_the_covariance_of_the_pooled_chains() -> None:
    factor = torch.tensor([[3.0, 0.0], [2.9, 0.1]])
    precision = torch.linalg.inv(factor @ factor.T)
    energy = Raw(lambda x: 0.5 * torch.einsum("...i,ij,...j->...", x, precision, x))
    start = torch.randn(64, 2) @ factor.T
    trace = run(Langevin(), energy, start, draws=500, warmup=600, generators=streams(0, 1, CPU))
    learned = trace.kernel.scale
    assert trace.kernel.dense
    assert torch.allclose(learned @ learned.T, factor @ factor.T, rtol=0.3)
    assert torch.allclose(trace.x.flatten(0, 1).T.cov(), factor @ factor.T, rtol=0.15)


def test_moments_pool_chains_and_steps_as_one_sample() -> None:
    x = torch.randn(6, 5, 3, dtype=torch.float64)  # six steps of five chains
    dense = Moments.empty(x[0], dense=True)
    diagonal = Moments.empty(x[0], dense=False)
    for step in x:
        dense, diagonal = dense.update(step), diagonal.update(step)
    flat = x.flatten(0, 1)
    assert torch.allclose(dense.mean, flat.mean(0))
    assert torch.allclose(dense.scatter / (dense.count - 1), flat.T.cov())
    assert torch.allclose(diagonal.scatter / (diagonal.count - 1), flat.var(0))


def test_dual_averaging_solves_for_the_target_of_a_known_curve() -> None:
    averaging = DualAveraging.start(torch.tensor(1.0))
    for _ in range(2000):
        averaging = averaging.update(
            torch.exp(-averaging.log_step.exp()), 0.574
        )  # acceptance exp(-h)
    assert abs(averaging.log_average.exp() + torch.tensor(0.574).log()) < 0.01


@pytest.mark.parametrize("length", [0.2, 3.5])
def test_the_ascent_finds_the_best_length_for_a_normal(length: float) -> None:
    """On exact trajectories, of 500 chains that are drawn anew each time."""
    g = torch.Generator().manual_seed(0)
    ascent = Ascent.start(length)
    for _ in range(600):
        z, v = torch.randn(2, 500, 10, generator=g)
        t = math.exp(ascent.log_length) * torch.rand((), generator=g)
        trajectory = Trajectory(
            z, z * t.cos() + v * t.sin(), v * t.cos() - z * t.sin(), t.expand(500)
        )
        ascent = ascent.update(
            float(chees_slope(trajectory, torch.ones(500), None, False)), 0.01, 100.0
        )
    assert math.exp(ascent.log_average) == pytest.approx(NORMAL_LENGTH, rel=0.1)
