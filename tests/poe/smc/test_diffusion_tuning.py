"""What one population finds: levels of noise, and how many particles start."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import torch

import poe
from poe.mcmc.run import streams
from poe.smc import diffusion_tuning
from poe.smc.diffusion_tuning import tune_diffusion
from poe.smc.noise_path import NoisePath
from tests.poe.smc.noised import EVERY, Scores, corners, nearest


def test_no_step_is_longer_than_the_stride():
    """A single expert has weight 1 at any stride, and reverse diffusion by too long strides would
    draw something else."""
    (generator,) = streams(0, 1, torch.device("cpu"))
    pilot = tune_diffusion(NoisePath.to(EVERY, generator), generator)
    sigmas = [8.0, *(step.sigma for step in pilot.schedule.steps)]
    strides = [math.log(a / b) for a, b in pairwise(sigmas) if b > 0]
    assert max(strides) <= diffusion_tuning.MAX_STRIDE + 1e-9 and sigmas[-1] == 0
    assert pilot.schedule.steps[-1].moves <= diffusion_tuning.MAX_LAST_MOVES


def test_more_particles_start_where_weights_leave_few():
    """A set of points is what its score leads to. The sum of the scores of high powers of two sets
    hardly finds the common point."""
    one, other, every = (
        Scores(corners(*which)) for which in ((0, 1, 2, 3), (0, 4, 5, 6), range(12))
    )
    (generator,) = streams(0, 1, torch.device("cpu"))
    target = one**3 & other**3 / every**5
    alone, common = (
        tune_diffusion(NoisePath.to(energy, generator), generator).schedule
        for energy in (one, target)
    )
    assert alone.oversampling == 1 and len(alone.steps) == len(common.steps)
    assert (
        common.oversampling > 1 and common.steps[common.oversampled_steps - 1].sigma > 1
    )  # points are about √128 apart
    assert (
        common.gradients
        <= diffusion_tuning.MAX_COST_FACTOR * replace(common, oversampling=1).gradients
    )
    draws = poe.sample(target, 200, seed=0)
    assert draws.trusted and set(nearest(draws.x).tolist()) == {0}
