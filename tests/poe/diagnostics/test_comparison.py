"""What chains that disagreed have seen, in the draws of a later method."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from poe.diagnostics.comparison import Seen, unvisited


def energy(x: Tensor, low: float = 0.0) -> Tensor:
    """Of two normals of sd 1 around 0 and 20 in the first coordinate, the second with log mass
    `low` against the first."""
    near = -0.5 * x.square().sum(-1)
    far = low - 0.5 * (x - 20 * (torch.arange(x.shape[-1]) == 0)).square().sum(-1)
    return -torch.logaddexp(near, far)


def draws(n: int, share: float, d: int, generator: torch.Generator) -> Tensor:
    x = torch.randn(n, d, generator=generator)
    x[:, 0] += 20 * (torch.rand(n, generator=generator) < share)
    return x


def chains(far: int, d: int, generator: torch.Generator, low: float = 0.0) -> Seen:
    """16 chains, `far` of them in the second normal."""
    x = torch.randn(16, 60, d, generator=generator)
    x[:far, :, 0] += 20
    return Seen(x, energy(x, low))


@pytest.mark.parametrize("d", [1, 2, 10])
def test_a_mode_that_chains_spent_time_in_must_be_there(d: int) -> None:
    generator = torch.Generator().manual_seed(d)
    for far in (4, 8, 13):
        seen = chains(far, d, generator)
        (reason,) = unvisited(seen, draws(1000, 0.0, d, generator), 1000.0, None)
        place = float(reason.split("near x = (")[1].split(",")[0].rstrip(")"))
        assert reason.startswith("chains spent ") and abs(place - 20) < 3
        assert "; try " in reason
        # its share may be another one
        assert unvisited(seen, draws(1000, 0.05, d, generator), 1000.0, None) == []
    assert unvisited(seen, draws(30, 0.0, d, generator), 30.0, None) == []  # too few to tell


def test_right_draws_are_hardly_ever_refused() -> None:
    """200 sets of exact draws: the level is 1 %, of which the chains' times are no part."""
    generator = torch.Generator().manual_seed(0)
    alarms = 0
    for far in range(200):
        seen = chains(far % 16, 2, generator)
        alarms += len(unvisited(seen, draws(300, far % 16 / 16, 2, generator), 300.0, None))
    assert alarms <= 8  # binomial(200, .01): more with probability 1e-4


def test_a_trap_of_negligible_mass_may_be_missing() -> None:
    generator = torch.Generator().manual_seed(0)
    seen, right = chains(4, 3, generator, low=-15.0), draws(1000, 0.0, 3, generator)
    log_z = 1.5 * math.log(2 * math.pi)
    assert unvisited(seen, right, 1000.0, log_z) == []
    assert len(unvisited(chains(4, 3, generator), right, 1000.0, log_z)) == 1


def test_phases_of_discrete_chains() -> None:
    generator = torch.Generator().manual_seed(0)

    def phase(n: int, rate: float) -> Tensor:
        return (torch.rand(n, 64, generator=generator) < rate).float()

    x = torch.stack([phase(60, 0.9 if i < 5 else 0.1) for i in range(16)])
    seen = Seen(x, torch.zeros(16, 60))
    assert len(unvisited(seen, phase(1000, 0.1), 500.0, discrete=True)) == 1
    both = torch.cat([phase(900, 0.1), phase(100, 0.9)])
    assert unvisited(seen, both, 500.0, discrete=True) == []


def test_a_discrete_trap_may_be_missing_and_a_broad_phase_may_not() -> None:
    """40 spins: half of the mass at one point, half all over the cube; and a trap at another
    point, of mass e^-20."""
    generator = torch.Generator().manual_seed(0)
    peak, log_z = 40 * math.log(2), 41 * math.log(2)

    def seen(x: Tensor, energy: float) -> Seen:
        ones = torch.ones(10, 60, 40)
        energies = torch.cat([torch.full((10, 60), -peak), torch.full((6, 60), energy)])
        return Seen(torch.cat([ones, x]), energies)

    broad = (torch.rand(6, 60, 40, generator=generator) < 0.5).float()
    ones = torch.ones(1000, 40)
    assert len(unvisited(seen(broad, 0.0), ones, 500.0, log_z, discrete=True)) == 1
    trap = torch.zeros(6, 60, 40)
    assert unvisited(seen(trap, 20 - peak), ones, 500.0, log_z, discrete=True) == []
    assert len(unvisited(seen(trap, -peak), ones, 500.0, log_z, discrete=True)) == 1
