from __future__ import annotations

import math

import pytest
import torch

from poe.kernels import Langevin
from poe.mcmc.run import streams
from poe.smc import tuning
from poe.smc.population import anneal
from poe.smc.resampling import estimate, systematic
from poe.smc.schedule import Level, Schedule
from poe.smc.tuning import StalledError, tune
from poe.spaces.path import Geometric
from tests.poe.targets import Gauss, Raw, Skewed, ks_pvalue

CPU = torch.device("cpu")


def started(start: Gauss):
    return lambda n, generator: start.sample(n, generator=generator)


def frozen(start: Gauss, end, betas: list[float], step: float, moves: int) -> Schedule:
    return Schedule(
        Geometric(start, end), tuple(Level(beta, Langevin(step), moves) for beta in betas)
    )


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


def test_particles_of_a_tuned_schedule_have_the_law_of_the_target() -> None:
    end, start = Skewed(), Gauss(0.0, 3.0)
    g = torch.Generator().manual_seed(0)
    pilot = tune(Geometric(start, end), start.sample(1000, generator=g), g)
    moved = anneal(pilot.schedule, started(start), [200], 100, streams(1, 1, CPU))
    one_each = moved.x[:, 50]  # populations are independent, particles of one share ancestors
    assert ks_pvalue(end.sample(200, generator=g), one_each) > 1e-3
    assert ks_pvalue(start.sample(200, generator=g), one_each) < 1e-4
    assert torch.allclose(moved.energy, end(moved.x))


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


def test_levels_keep_the_asked_share_of_particles() -> None:
    g = torch.Generator().manual_seed(0)
    start, end = Gauss(0.0, 1.0, d=8), Gauss(1.0, 0.4, d=8)
    pilot = tune(Geometric(start, end), start.sample(2000, generator=g), g)
    betas = [0.0, *(level.beta for level in pilot.schedule.levels)]
    assert betas[-1] == 1 and betas == sorted(betas) and len(betas) > 3
    assert abs(pilot.log_ratio) < 0.3


def test_what_dies_out_has_no_mass_and_what_is_too_far_is_said(monkeypatch) -> None:
    start = Gauss(0.0)
    nowhere = Raw(lambda x: x.sum(-1) * 0 + math.inf, name="nowhere")
    g = torch.Generator().manual_seed(0)
    with pytest.raises(ValueError, match="no draw of gauss has finite energy under nowhere"):
        tune(Geometric(start, nowhere), start.sample(50, generator=g), g)
    schedule = frozen(start, nowhere, [1.0], step=0.1, moves=1)
    assert bool(
        (anneal(schedule, started(start), [3], 8, streams(0, 1, CPU)).log_ratio == -math.inf).all()
    )
    far = Raw(lambda x: 0.5 * ((x - 1e3) / 1e-3).square().sum(-1), name="far")
    monkeypatch.setattr(tuning, "MAX_LEVELS", 5)
    with pytest.raises(StalledError, match="levels from gauss to far; give a nearer start"):
        tune(Geometric(start, far), start.sample(50, generator=g), g)
