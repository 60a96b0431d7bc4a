from __future__ import annotations

import itertools

import pytest
import torch

import poe
from experts import Bernoulli, Categorical
from poe.spaces.points import energies, enumerable, point_dtype, points, uniform_points
from tests.poe.targets import Raw


def bits(n: int, function) -> poe.Energy:
    return Raw(function, d=n) & Bernoulli(logits=torch.zeros(n))


def test_points_are_all_combinations_the_last_site_fastest() -> None:
    energy = Bernoulli(logits=torch.zeros(3))
    assert enumerable(energy) == 8
    expected = [list(map(float, x)) for x in itertools.product((0, 1), repeat=3)]
    assert points(energy).tolist() == expected
    assert points(energy, torch.tensor([6, 1])).tolist() == [expected[6], expected[1]]


def test_energies_are_those_of_the_points() -> None:
    energy = bits(4, lambda x: x.sum(-1) ** 2)
    assert torch.allclose(energies(energy), energy(points(energy)).double())


def test_points_have_the_dtype_that_the_energy_takes() -> None:
    assert point_dtype(Bernoulli(logits=torch.zeros(2))).is_floating_point
    kinds = Categorical(logits=torch.zeros(2, 5))
    assert points(kinds).dtype == point_dtype(kinds)


def test_uniform_points_have_each_value_equally_often() -> None:
    energy, generator = Bernoulli(logits=torch.zeros(2)), torch.Generator().manual_seed(0)
    x = uniform_points(energy, 40_000, generator)
    assert bool(((x == 0) | (x == 1)).all())
    assert (x.mean(0) - 0.5).abs().max() < 4.5 * 0.5 / 200


def test_failures_are_counted() -> None:
    with pytest.raises(ValueError, match=r"is NaN at 2 of 4 points"):
        energies(bits(2, lambda x: torch.where(x[..., 0] == 1, torch.nan, 0.0)))
    with pytest.raises(ValueError, match=r"\+inf at every point"):
        energies(bits(2, lambda x: x.sum(-1) * 0 + torch.inf))
