"""The numbers behind pictures: regions of a normal, densities of scipy, the experts by name, the
window."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats

import experts
import poe
from poe.plotting import landscape
from tests.poe.targets import Gauss

UNIT = Gauss(0.0, name="unit")


def named(energy: poe.Energy, name: str) -> poe.Energy:
    energy.name = name
    return energy


def test_regions_of_a_normal_have_their_known_energies():
    side = torch.linspace(-6, 6, 400, dtype=torch.float64)
    points = torch.cartesian_prod(side, side)
    values = UNIT(points).reshape(400, 400)
    half, most = landscape.regions(values, (0.5, 0.9))
    # r²/2 of a normal in the plane is exponential: P(r²/2 <= log 2) = 1/2, P(r²/2 <= log 10) = 9/10
    assert half - values.min() == pytest.approx(math.log(2), abs=2e-3)
    assert most - values.min() == pytest.approx(math.log(10), abs=5e-3)
    assert landscape.regions(torch.full((9,), math.inf), (0.5,)) == []
    flat = torch.tensor([1.0, 1.0, math.inf, math.nan])
    assert landscape.regions(flat, (0.5, 0.9)) == [1.0, 1.0]


def test_density_is_normalised_with_log_z_or_on_the_grid():
    grid = torch.linspace(-8, 8, 2001, dtype=torch.float64)
    raw = poe.shift(Gauss(0.0, 0.7, d=1), 3.0)
    values = landscape.energies(raw, grid[:, None])
    expected = torch.from_numpy(stats.norm(0, 0.7).pdf(grid.numpy()))
    for log_z in (-3.0, None):
        torch.testing.assert_close(
            landscape.density(values, 16 / 2000, log_z), expected, atol=1e-6, rtol=1e-6
        )
    assert landscape.density(
        values, 16 / 2000, None, 0.25
    ).sum().item() * 16 / 2000 == pytest.approx(0.25)


def test_components_are_the_experts_as_written():
    a, b, c = (Gauss(float(i), name=name) for i, name in enumerate("abc"))
    labels = [
        part.label
        for part in landscape.components((a & b) ** 2 / c - poe.mixture([a, c], weights=[1, 2]))
    ]
    assert labels == ["a", "b", "1/c"]
    assert [f.label for f in landscape.components(a - b | c)] == ["a", "not b", "c"]
    both = named(a | b, "both")
    assert [f.label for f in landscape.components(both & c)] == ["both", "c"]
    one = Gauss(0.0, d=1, name="one")
    placed = landscape.components(poe.on(one, [1], (2,)) & a @ torch.nn.Linear(2, 2))
    assert [f.label for f in placed] == ["one on [1]", "a @ linear"]
    assert all(f.energy.event_shape == (2,) for f in placed)


def test_the_window_holds_draws_and_near_experts_inside_the_support():
    x = torch.randn(5000, 2, generator=torch.Generator().manual_seed(0))
    low, high = landscape.window(x, UNIT & Gauss(3.0, name="near"))
    inside = ((x >= low) & (x <= high)).all(-1).double().mean()
    assert inside > 0.97 and (high > 4).all()  # with the bulk of the expert at 3
    far = landscape.window(x, UNIT & Gauss(1000.0, name="far"))[1]
    assert (far < 10).all()
    low, high = landscape.window(torch.rand(1000, 1), experts.Beta([2.0], [2.0]))
    assert -0.1 < low.item() < 0 and 1 < high.item() < 1.1
