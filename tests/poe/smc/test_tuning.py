from __future__ import annotations

import math

import pytest
import torch

from poe.mcmc.run import streams
from poe.smc import tuning
from poe.smc.population import anneal
from poe.smc.tuning import StalledError, tune
from poe.spaces.path import Geometric
from tests.poe.smc.schedules import CPU, frozen, started
from tests.poe.targets import Gauss, Raw


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
