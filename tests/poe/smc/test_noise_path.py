"""Which targets have a path down their levels of noise, and by which weights."""

from __future__ import annotations

import pytest
import torch

import poe
from poe.mcmc.run import streams
from poe.smc.noise_path import NoisePath, diffusible, expensive, guidance
from tests.poe.smc.noised import EVERY, FIRST, LAST, Points, Scores
from tests.poe.targets import Gauss


def test_targets_with_levels_of_noise_are_diffusible() -> None:
    assert not diffusible(Gauss(0.0)) and diffusible(EVERY) and expensive(EVERY)


def test_weights_follow_from_scores_where_powers_sum_to_one() -> None:
    for target in (FIRST & LAST / EVERY, poe.shift(FIRST, 3.0), FIRST - LAST):
        assert guidance(target) is not None
    assert guidance(FIRST & LAST) is None  # twice as sharp as its experts
    assert guidance(FIRST | LAST) is None
    assert guidance(Points(torch.zeros(1, 2))) is None  # few dimensions: energies are as good


def test_scores_are_followed_above_the_target_alone() -> None:
    target = Scores(FIRST.points) & Scores(LAST.points) / Scores(EVERY.points)
    (generator,) = streams(0, 1, torch.device("cpu"))
    path = NoisePath.to(target, generator)
    assert path.follows_scores
    assert not path.level(1.0)[0].metropolis and path.level(0.0)[0].metropolis
    assert path.mass == pytest.approx(1.5, abs=0.2)
