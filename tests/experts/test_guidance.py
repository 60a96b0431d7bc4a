"""Guidance of reverse diffusion by scores: exact where a single point lies behind the noise."""

from __future__ import annotations

import pytest
import torch

import poe
from experts.noise.guidance import GuidedLevel
from poe.mcmc.run import streams
from poe.smc.diffusion import Particles, step_down
from poe.smc.noise_path import NoisePath
from tests.poe.smc.noised import EVERY, FIRST, LAST, D, Points


@pytest.mark.parametrize("make", [
    lambda a, b, c: a,
    lambda a, b, c: a & b / c,
    lambda a, b, c: a**3 & c / b**3,
    lambda a, b, c: poe.contrast(a, b, strength=3),
    lambda a, b, c: poe.shift(a & b / c, 1.7) - b,
])  # fmt: skip
def test_gain_of_single_points_is_exact(make):
    """One point each: x₀ is known, so r is exact and the change is log p_k(x') - log p_{k-1}(x),
    wherever x and x' are."""
    g = torch.Generator().manual_seed(0)
    experts = [Points(torch.randn(1, 5, generator=g, dtype=torch.float64)) for _ in range(3)]
    target = make(*experts)
    above, below = target.at(1.3), target.at(0.9)
    x, to = torch.randn(2, 50, 5, generator=g, dtype=torch.float64)
    upper, lower = GuidedLevel(above, 1.3), GuidedLevel(below, 0.9)
    for level, at in ((upper, x), (lower, to)):
        value, gradient = level.value_and_grad(at)
        assert torch.allclose(value, level.composition(at))
        assert torch.allclose(gradient, level.composition.value_and_grad(at)[1])
    change = upper.log_density_change(lower, Particles.at(upper, x), Particles.at(lower, to))
    assert torch.allclose(change, above(x) - below(to), atol=1e-9)


class Concepts(Points):
    """One of two halves of the points as a concept; without it, all of them."""

    def at(self, sigma: float) -> Concepts:
        return Concepts(self.points, sigma, self.name)

    @property
    def unconditional(self) -> Points:
        return EVERY.at(self.sigma)


def test_a_concept_is_weighed_against_what_it_is_without_it():
    level = GuidedLevel(Concepts(FIRST.points).at(0.5), 0.5)
    x = torch.randn(6, D, generator=torch.Generator().manual_seed(1))
    _, _, values, slope = level.evaluate(x)
    assert torch.allclose(slope, EVERY.at(0.5).value_and_grad(x)[1])
    assert torch.allclose(
        level.relative(values, x), (FIRST.at(0.5)(x) - EVERY.at(0.5)(x)).double(), atol=1e-4
    )


def test_values_that_are_said_to_be_rough_are_not_compared():
    """Below the level that an expert states, a descent has weight 1 but for experts without noise,
    which count at every level."""

    class Rugged(Points):
        rough_below = 1.0

        def at(self, sigma: float) -> Points:
            return Rugged(self.points, sigma, self.name)

    every, first, last = (Rugged(p.points, name=p.name) for p in (EVERY, FIRST, LAST))
    tilt = poe.as_energy(
        lambda x: 2 * x[..., 0].tanh(), event_shape=(D,), bounded=True, name="tilt"
    )
    (generator,) = streams(0, 1, torch.device("cpu"))
    target = first & last / every & tilt
    path = NoisePath.to(target, generator)
    assert path.guidance is not None
    state = Particles.at(path.level(0.8)[0], torch.randn(16, D, generator=generator))
    fallen, logs = step_down(path, state, 0.8, 0.7, generator)
    assert torch.allclose(logs, tilt(state.x).double() - tilt(fallen.x).double(), atol=1e-5)
    state = Particles.at(path.level(2.0)[0], torch.randn(16, D, generator=generator))
    fallen, logs = step_down(path, state, 2.0, 1.5, generator)
    assert not torch.allclose(logs, tilt(state.x).double() - tilt(fallen.x).double(), atol=1e-2)
