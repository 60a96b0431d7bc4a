"""Minima and their masses, against closed forms."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from poe.smc.descent import Descent
from poe.smc.flat import Flat
from poe.smc.minima import Minima
from tests.poe.targets import Raw

SDS = torch.tensor([[0.5, 1.0, 2.0], [0.4, 0.6, 1.5]])
MEANS = torch.tensor([[0.0, 0.0, 0.0], [9.0, 0.0, 0.0]])


def two_normals(x: Tensor) -> Tensor:  # (*batch, 3) -> (*batch)
    """exp(-E) is the sum of two normals of masses 1 and e."""
    z = (x.unsqueeze(-2) - MEANS.to(x)) / SDS.to(x)
    norm = SDS.log().sum(1) + 1.5 * math.log(2 * math.pi) - torch.tensor([0.0, 1.0])
    return -(-z.square().sum(-1) / 2 - norm.to(x)).logsumexp(-1)


def test_two_normals_have_their_masses() -> None:
    minima = Minima(Flat(Raw(two_normals, d=3, name="two")))
    generator = torch.Generator().manual_seed(0)
    x = 9 * torch.randn(200, 3, generator=generator, dtype=torch.float64)
    minima.descend(x, x.norm(dim=1))
    masses = sorted(minimum.log_mass for minimum in minima.found)
    assert len(masses) == 2
    assert abs(masses[0]) < 0.01
    assert abs(masses[1] - 1) < 0.01


def test_what_stopped_in_a_valley_is_no_minimum_of_its_own() -> None:
    """A valley of condition 10⁸: its floor is flat to a few nats over 10⁴ widths. Ends that lie on
    it, as descents stop there, are brought to its one minimum together."""
    turn = torch.tensor([[1.0, 1.0], [-1.0, 1.0]], dtype=torch.float64) / math.sqrt(2)
    widths = torch.tensor([1.0, 1e-4], dtype=torch.float64)

    def valley(x: Tensor) -> Tensor:  # (*batch, 2) -> (*batch)
        return ((x @ turn.to(x)) / widths.to(x)).square().sum(-1) / 2

    flat = Flat(Raw(valley, d=2, name="valley"))
    flat.like = flat.like.double()
    along = torch.linspace(-6, 6, 101, dtype=torch.float64)
    ends = torch.stack([along, torch.zeros_like(along)], 1) @ turn.T
    all_there = torch.ones(len(ends), dtype=torch.bool)
    energy, gradient = flat.value_and_grad(ends)
    minima = Minima(flat)
    minima.clustered(Descent(ends, energy, gradient, all_there))
    (minimum,) = minima.found
    assert float(minimum.x.norm()) < 0.1 and minima.skipped == 0
    # widths of nearly flat directions are measured to a factor of 2
    assert abs(minimum.log_mass - math.log(2 * math.pi * 1e-4)) < math.log(2)
    # a descent of each by itself costs at least ten gradients an end
    assert flat.gradients < 10 * len(ends)
