from __future__ import annotations

import math

import pytest
import torch

from poe.mcmc.run import streams
from poe.smc.population import anneal
from poe.smc.tuning import tune
from poe.spaces.path import Geometric
from tests.poe.smc.schedules import CPU, frozen, started
from tests.poe.targets import Gauss, Skewed, ks_pvalue


@pytest.mark.parametrize("resample", [True, False])
def test_the_mean_weight_is_the_ratio_of_the_z_whatever_the_mixing(resample: bool) -> None:
    # three levels and one small move each: the weights are bad, and right on average
    start, end = Gauss(0.0, 1.0), Gauss(1.2, 0.7)
    schedule = frozen(start, end, [0.3, 0.7, 1.0], step=0.01, moves=1)
    moved = anneal(schedule, started(start), [4000], 16, streams(0, 1, CPU), resample=resample)
    ratios = moved.log_ratio.exp()
    assert abs(ratios.mean() - 1) < 5 * ratios.std() / math.sqrt(4000)
    wrong = frozen(
        start, end**1.1, [0.3, 0.7, 1.0], step=0.01, moves=1
    )  # the control: another Z, (2π·0.49)^-1.1 · 2π·0.49/1.1
    other = anneal(
        wrong, started(start), [4000], 16, streams(0, 1, CPU), resample=resample
    ).log_ratio.exp()
    assert abs(other.mean() - 1) > 5 * other.std() / math.sqrt(4000)
    truth = (2 * math.pi * 0.49) ** -0.1 / 1.1
    assert abs(other.mean() - truth) < 5 * other.std() / math.sqrt(4000)


def test_particles_of_a_tuned_schedule_have_the_law_of_the_target() -> None:
    end, start = Skewed(), Gauss(0.0, 3.0)
    g = torch.Generator().manual_seed(0)
    pilot = tune(Geometric(start, end), start.sample(1000, generator=g), g)
    moved = anneal(pilot.schedule, started(start), [200], 100, streams(1, 1, CPU))
    one_each = moved.x[:, 50]  # populations are independent, particles of one share ancestors
    assert ks_pvalue(end.sample(200, generator=g), one_each) > 1e-3
    assert ks_pvalue(start.sample(200, generator=g), one_each) < 1e-4
    assert torch.allclose(moved.energy, end(moved.x))
