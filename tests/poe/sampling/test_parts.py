"""Mixtures drawn part by part."""

from __future__ import annotations

import math

import pytest
import torch

import poe
from experts import Denoiser, NoiseSchedule
from tests.poe.targets import Raw


def test_parts_of_a_mixture_have_their_shares_whatever_lies_between():
    """A part that no other part's draws come near; the shares are those of the log Z, not of what
    is found."""
    a = poe.as_energy(torch.distributions.Normal(torch.zeros(1), torch.ones(1)))
    far = poe.normalize(
        Raw(lambda x: (x - 40).square().sum(-1) / 2, 1, name="far"),
        log_z=poe.Estimate(math.log(2 * math.pi) / 2),
    )
    mixed = poe.mixture([a, far], weights=[0.3, 0.7])
    assert poe.plan(mixed).method == "parts" and "shares" in str(poe.plan(mixed))
    draws = poe.sample(mixed, 1000, seed=0)
    share = float((draws.x > 20).double().mean())
    assert abs(share - 0.7) <= 1 / 1000
    assert draws.trusted and draws.log_z == poe.Estimate(0.0, 0.0)
    near, other = draws.x[draws.x < 20], draws.x[draws.x > 20]
    assert (
        abs(float(near.mean())) < 5 / math.sqrt(len(near)) and abs(float(other.mean()) - 40) < 0.5
    )
    assert torch.equal(draws.x, poe.sample(mixed, 1000, seed=0).x)
    with pytest.raises(ValueError, match="poe.normalize gives parts"):  # more than are told apart
        poe.plan(a | Raw(lambda x: (x - 40).square().sum(-1) / 2, 1), method="parts")


def test_a_known_log_z_that_draws_miss_is_said():
    a = poe.as_energy(torch.distributions.Normal(torch.zeros(1), torch.ones(1)))
    far = poe.normalize(
        Raw(lambda x: (x - 40).square().sum(-1) / 2, 1, name="far"),
        log_z=poe.Estimate(math.log(2 * math.pi) / 2),
    )
    draws = poe.sample(a | far, 400, method="annealed", seed=0)
    share = float((draws.x > 20).double().mean())
    assert abs(share - 0.5) < 0.15 or any(
        "log Z is known to be" in reason for reason in draws.reasons
    ), draws.report()


def test_parts_of_a_mixture_have_streams_of_their_own():
    def part(place: float) -> poe.Energy:
        net = lambda u, t: torch.full_like(u, place)  # noqa: E731
        made = Denoiser(
            net,
            (1,),
            schedule=NoiseSchedule.exploding(1.0, 5.0),
            predicts="denoised",
            energy="denoised",
            bounded=True,
        )
        return poe.normalize(made, log_z=poe.Estimate(math.log(2 * math.pi) / 2))

    both = poe.mixture([part(0.0), part(10.0)], weights=[0.5, 0.5])
    nested = poe.mixture(
        [part(-10.0), poe.mixture([part(0.0), part(10.0)], weights=[0.5, 0.5]), part(20.0)],
        weights=[0.5, 0.25, 0.25],
    )
    pieces = []
    for energy, seed in ((both, 0), (both, 1), (nested, 2)):
        x = poe.sample(energy, 800, seed=seed).x.flatten()
        pieces += [x[(x - place).abs() < 5] - place for place in (-10.0, 0.0, 10.0, 20.0)]
    pieces = [piece for piece in pieces if len(piece)]
    for i, a in enumerate(pieces):
        for b in pieces[:i]:
            assert (a[:, None] - b).abs().min(1).values.lt(1e-6).double().mean() < 0.05
