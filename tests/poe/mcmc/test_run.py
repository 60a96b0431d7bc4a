from __future__ import annotations

import pytest
import torch

from poe.kernels import Langevin
from poe.mcmc.run import run, streams
from tests.poe.targets import Gauss, Raw

CPU = torch.device("cpu")


def test_draws_depend_on_the_seed_and_the_shards_only() -> None:
    energy, x = Gauss(1.0), torch.zeros(8, 2)

    def go(seed: int, shards: int) -> torch.Tensor:
        return run(
            Langevin(), energy, x, draws=20, warmup=50, generators=streams(seed, shards, CPU)
        ).x

    assert torch.equal(go(0, 2), go(0, 2))
    assert not torch.equal(go(0, 2), go(1, 2))
    assert not torch.equal(go(0, 2), go(0, 4))


def test_thinning_keeps_every_third_state_of_the_same_chain() -> None:
    energy, x = Gauss(1.0), torch.zeros(4, 2)
    all_states = run(Langevin(0.3), energy, x, draws=30, generators=streams(0, 1, CPU)).x
    thinned = run(Langevin(0.3), energy, x, draws=10, thin=3, generators=streams(0, 1, CPU)).x
    assert torch.equal(thinned, all_states[:, 2::3])


def test_a_run_goes_on_from_the_states_of_another() -> None:
    energy, x, kernel = Gauss(1.0), torch.zeros(4, 2), Langevin(0.3)
    whole = run(kernel, energy, x, draws=20, generators=streams(0, 1, CPU)).x
    generators = streams(0, 1, CPU)
    half = run(kernel, energy, x, draws=10, generators=generators)
    rest = run(kernel, energy, half.states, draws=10, generators=generators)
    assert torch.equal(torch.cat([half.x, rest.x], 1), whole)


def test_a_start_without_finite_energy_is_refused() -> None:
    energy = Raw(lambda x: torch.where(x[..., 0] > 0, torch.nan, x.square().sum(-1)), name="half")
    with pytest.raises(ValueError, match="1 of 2 chains of half start where the energy is nan"):
        run(
            Langevin(0.1),
            energy,
            torch.tensor([[1.0, 0.0], [-1.0, 0.0]]),
            draws=1,
            generators=streams(0, 1, CPU),
        )


def test_an_interrupt_returns_what_there_is() -> None:
    calls = []

    def energy(x: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        if len(calls) == 25:
            raise KeyboardInterrupt
        return x.square().sum(-1)

    trace = run(
        Langevin(0.1), Raw(energy), torch.zeros(3, 2), draws=100, generators=streams(0, 1, CPU)
    )
    assert trace.partial and trace.x.shape == (3, 23, 2)
