"""Energies that remember one evaluation."""

from __future__ import annotations

import torch

from poe.spaces.known import Known
from tests.poe.targets import Gauss


def test_only_the_known_points_are_remembered() -> None:
    """Equal points elsewhere in memory are evaluated."""
    energy, x = Gauss(0.0), torch.randn(5, 2, generator=torch.Generator().manual_seed(0))
    value, gradient = torch.full((5,), 7.0), torch.full((5, 2), 3.0)
    known = Known(energy, x, value, gradient)
    assert known.value_and_grad(x)[0] is value
    for other in (x.clone(), x[:3], x.flip(0)):
        assert torch.equal(known.value_and_grad(other)[0], energy.value_and_grad(other)[0])
    assert torch.equal(known(x), energy(x))
