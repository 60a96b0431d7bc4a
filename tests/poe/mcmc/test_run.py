from __future__ import annotations

import pytest
import torch

from poe.kernels import Langevin
from poe.kernels.adapt import DualAveraging, Moments
from poe.mcmc.run import run, streams
from poe.mcmc.shard import Shard
from tests.poe.targets import Gauss, Raw

CPU = torch.device("cpu")


def test_the_step_size_is_found_and_the_acceptance_is_the_target() -> None:
    for sd in (0.01, 1.0, 300.0):
        energy = Gauss(0.0, sd, d=4)
        start = energy.sample(50, generator=torch.Generator().manual_seed(0))
        trace = run(Langevin(), energy, start, draws=200, warmup=300, generators=streams(0, 1, CPU))
        assert abs(trace.counts.acceptance - 0.574) < 0.08


def test_the_preconditioner_learns_the_covariance_of_the_pooled_chains() -> None:
    factor = torch.tensor([[3.0, 0.0], [2.9, 0.1]])
    precision = torch.linalg.inv(factor @ factor.T)
    energy = Raw(lambda x: 0.5 * torch.einsum("...i,ij,...j->...", x, precision, x))
    start = torch.randn(64, 2) @ factor.T
    trace = run(Langevin(), energy, start, draws=500, warmup=600, generators=streams(0, 1, CPU))
    learned = trace.kernel.scale
    assert trace.kernel.dense
    assert torch.allclose(learned @ learned.T, factor @ factor.T, rtol=0.3)
    assert torch.allclose(trace.x.flatten(0, 1).T.cov(), factor @ factor.T, rtol=0.15)


def test_moments_pool_chains_and_steps_as_one_sample() -> None:
    x = torch.randn(6, 5, 3, dtype=torch.float64)  # six steps of five chains
    dense = Moments.empty(x[0], dense=True)
    diagonal = Moments.empty(x[0], dense=False)
    for step in x:
        dense, diagonal = dense.update(step), diagonal.update(step)
    flat = x.flatten(0, 1)
    assert torch.allclose(dense.mean, flat.mean(0))
    assert torch.allclose(dense.scatter / (dense.count - 1), flat.T.cov())
    assert torch.allclose(diagonal.scatter / (diagonal.count - 1), flat.var(0))


def test_dual_averaging_solves_for_the_target_of_a_known_curve() -> None:
    averaging = DualAveraging.start(torch.tensor(1.0))
    for _ in range(2000):
        averaging = averaging.update(
            torch.exp(-averaging.log_step.exp()), 0.574
        )  # acceptance exp(-h)
    assert abs(averaging.log_average.exp() + torch.tensor(0.574).log()) < 0.01


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


def test_blocks_of_steps_are_thinned_as_single_ones_are() -> None:
    shard = Shard(Gauss(1.0), torch.Generator(), draws=8, thin=3)
    shard.start(Langevin(0.3), Langevin(0.3).init(Gauss(1.0), torch.zeros(2, 2)))
    at = 0
    for block in (10, 1, 2, 10, 1):
        numbers = torch.arange(
            at + 1.0, at + block + 1
        )  # the positions and energies are the numbers of the steps
        at += block
        shard.add(
            shard.state,
            numbers[:, None, None].expand(-1, 2, 2),
            numbers[:, None].expand(-1, 2),
            torch.ones(4),
        )
    kept = shard.saved()
    assert kept.x[:, 1, 1].tolist() == kept.energy[:, 0].tolist() == [3, 6, 9, 12, 15, 18, 21, 24]
    assert kept.sums.tolist() == [5.0] * 4


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
