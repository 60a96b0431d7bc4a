"""Invariance of one transition: its p-values are honest, and have power."""

from __future__ import annotations

import pytest
import torch

import poe
from poe.testing import invariance_pvalue, one_step_invariance


def chain(n=20_000, size=2):
    g = torch.Generator().manual_seed(3)
    return torch.empty(n, size).exponential_(generator=g), g


def test_invariance_of_a_right_transition():
    x, g = chain()
    keep = torch.rand(len(x), 1, generator=g) < 0.7
    new = torch.empty_like(x).exponential_(generator=g)
    assert invariance_pvalue(x, torch.where(keep, x, new)) > 1e-3


@pytest.mark.parametrize("wrong", [lambda x: x + 0.2, lambda x: 1.2 * x, lambda x: x.square() / 2])
def test_invariance_has_power(wrong):
    x, g = chain()
    move = torch.rand(len(x), 1, generator=g) < 0.3
    new = torch.empty_like(x).exponential_(generator=g)
    assert invariance_pvalue(x, torch.where(move, wrong(new), x)) < 1e-6


def test_invariance_pvalues_are_not_too_small():
    """Bonferroni: P(p <= 0.1) <= 0.1 over independent repetitions of a right transition."""
    g = torch.Generator().manual_seed(5)
    small = 0
    for _ in range(200):
        x, y = torch.randn(2, 400, 3, generator=g)
        mix = 0.6 * x + 0.8 * y  # leaves N(0, 1) as it is
        small += invariance_pvalue(x, mix) <= 0.1
    assert small <= 37  # P(Binomial(200, 0.1) > 37) < 1e-4


class Refresh:
    """A kernel that redraws with probability one half, from the law of `energy` made wider by
    `factor`."""

    def __init__(self, factor: float):
        self.factor = factor

    def init(self, energy, x):
        return x

    def noise(self, state, generator=None):
        return torch.rand(len(state), 1, generator=generator), torch.randn(
            state.shape, generator=generator
        )

    def step(self, energy, state, noise):
        class State:
            x = torch.where(
                noise[0] < 0.5, state, energy.loc + self.factor * energy.scale * noise[1]
            )

        return State, None


def test_one_step_invariance_and_its_negative_control():
    e = poe.create("normal", loc=torch.tensor([-1.0, 1.0]), scale=torch.tensor([0.5, 3.0]))
    x = e.sample(20_000, generator=torch.Generator().manual_seed(2))
    assert one_step_invariance(Refresh(1.0), e, x) > 1e-3
    assert one_step_invariance(Refresh(1.1**-0.5), e, x) < 1e-6  # the kernel of target ** 1.1
