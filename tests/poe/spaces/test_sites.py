from __future__ import annotations

import math

import pytest
import torch

from experts import Bernoulli, Normal
from poe.algebra import support as sets
from poe.smc.discrete import Independent
from poe.spaces.path import Geometric
from poe.spaces.sites import Sites, box_of, pick, sites_of, toss

UNEVEN = sets.Box(torch.tensor([0, -2, 4]), torch.tensor([1, 2, 4]), integer=True)


def test_values_indices_and_points_correspond() -> None:
    sites = Sites(UNEVEN)
    assert sites.counts.tolist() == [2, 5, 1] and sites.max_count == 5 and not sites.binary
    values, own = sites.values(torch.zeros(1))
    assert own.equal(sites.mask(values.device)) and own.sum(1).tolist() == [2, 5, 1]
    x = torch.stack([values[0, 1], values[1, 3], values[2, 0]])
    assert sites.places(x, 1).tolist() == [1, 3, 0]
    everywhere = torch.arange(3)
    assert torch.equal(sites.put(torch.zeros(3), everywhere, torch.tensor([1, 3, 0]), 1), x)


def test_values_are_drawn_by_inversion() -> None:
    """Against the thresholds of cumulative probabilities, 1/2, 3/4 and 1."""
    logits = torch.tensor([0.5, 0.25, 0.25, 0.0]).log()
    uniform = torch.tensor([0.0, 0.49, 0.51, 0.74, 0.76, 1 - 1e-9], dtype=torch.float64)
    places = pick(logits.expand(6, 4), uniform)
    assert places.tolist() == [0, 0, 1, 1, 2, 2]
    odds = torch.tensor([math.log(3.0)] * 2)
    assert toss(odds, torch.tensor([0.74, 0.76]), torch.float32).tolist() == [1.0, 0.0]


def test_the_sites_of_a_path_are_those_of_its_ends() -> None:
    end = Bernoulli(logits=torch.zeros(3)) & Bernoulli(logits=torch.ones(3))
    path = Geometric(Independent.even(end), end, gradients=False)
    box, own = box_of(path.level(torch.tensor(0.5))), box_of(end)
    assert box is not None and own is not None and torch.equal(box.high, own.high)


def test_without_a_finite_number_of_values_there_are_no_sites() -> None:
    normal = Normal(torch.zeros(2), 1.0, name="normal")
    assert box_of(normal) is None
    with pytest.raises(ValueError, match="normal is on .* need a finite number of whole values"):
        sites_of(normal)
