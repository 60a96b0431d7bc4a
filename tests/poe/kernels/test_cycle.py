from __future__ import annotations

import pytest
import torch

import poe
from poe.kernels import (
    Cycle,
    Hamiltonian,
    IndependentMetropolis,
    Langevin,
    Microcanonical,
    RandomWalk,
    Tempered,
)
from poe.kernels.tempered import linear_betas
from poe.mcmc.run import run, streams
from tests.poe.targets import Gauss, Raw

CPU = torch.device("cpu")

CYCLES = {
    "langevin and independent": Cycle([Langevin(0.1), IndependentMetropolis(Gauss(0.0, 1.5))]),
    "without gradients": Cycle([IndependentMetropolis(Gauss(0.0, 1.5)), RandomWalk(0.5)]),
    "trajectories": Cycle(
        [Microcanonical(0.6, length=2.0), RandomWalk(0.4), Hamiltonian(0.4, length=1.0)]
    ),
}


@pytest.mark.slow
def test_each_kernel_is_tuned_at_its_own_acceptance() -> None:
    energy, proposal = Gauss(1.0, 5.0, d=5), Gauss(0.0, 20.0, d=5)
    kernel = Cycle([Langevin(), IndependentMetropolis(proposal), Hamiltonian()])
    assert not kernel.ready
    start = energy.sample(64, generator=torch.Generator().manual_seed(0))
    tuned = run(kernel, energy, start, draws=1, warmup=400, generators=streams(0, 2, CPU)).kernel
    assert tuned.ready
    langevin, independent, hamiltonian = tuned.parts
    assert independent is kernel.parts[1]
    assert hamiltonian.length is not None and langevin.scale is not None
    for part in (langevin, hamiltonian):
        alone = run(part, energy, start, draws=200, generators=streams(1, 1, CPU))
        assert abs(alone.counts.acceptance - part.target_acceptance) < 0.08


def test_a_cycle_crosses_between_modes_and_moves_within_them() -> None:
    target = poe.mixture([Gauss(-6.0, 0.5), Gauss(6.0, 0.5)], weights=[0.3, 0.7])
    kernel = Cycle([Langevin(), IndependentMetropolis(Gauss(0.0, 6.0))])
    trace = run(
        kernel,
        target,
        torch.full((64, 2), -6.0),
        draws=800,
        warmup=300,
        generators=streams(0, 1, CPU),
    )
    share = (trace.x[:, 100:, 0] > 0).double().mean(1)  # one number a chain
    assert abs((share.mean() - 0.7) / (share.std() / 8)) < 4.5
    assert (trace.x.diff(dim=1) != 0).any(-1).double().mean() > 0.4  # between jumps the chains move


def test_evaluations_are_counted_as_they_are() -> None:
    calls = []

    def counted(x: torch.Tensor) -> torch.Tensor:
        calls.append(len(x))
        return x.square().sum(-1)

    kernel = Cycle([Langevin(0.1), RandomWalk(0.5)])
    trace = run(kernel, Raw(counted), torch.zeros(7, 2), draws=20, generators=streams(0, 1, CPU))
    assert kernel.gradients_per_step == 2
    assert trace.counts.gradients == 7 * (1 + 2 * 20) == sum(calls) and trace.counts.energies == 0


def test_what_it_is_made_of_decides_what_it_is() -> None:
    assert not Cycle([Langevin(0.1), Langevin(0.1, metropolis=False)]).exact
    assert Cycle([RandomWalk(), IndependentMetropolis(Gauss(0.0))]).gradients_per_step == 0
    with pytest.raises(ValueError, match="at least one kernel"):
        Cycle([])
    ladder = Tempered(Gauss(0.0), linear_betas(3), Langevin())
    for kernel in (ladder, Microcanonical(metropolis=False)):
        with pytest.raises(TypeError, match="keeps a state of its own"):
            Cycle([Langevin(), kernel])
    for kernel in (ladder, Microcanonical(metropolis=False), Cycle([Langevin()])):
        with pytest.raises(TypeError, match="one kernel whose states are plain"):
            Tempered(Gauss(0.0), linear_betas(3), kernel)
    with pytest.raises(ValueError, match="two dimensions"):
        Cycle([Microcanonical(1.0)]).init(Gauss(0.0, d=1), torch.zeros(3, 1))


def test_poe_sample_takes_it() -> None:
    a, c = Gauss(0.0, name="a"), Gauss(1.0, 0.7, name="c")
    draws = poe.sample(a - c, 2000, kernel=Cycle([Langevin(), IndependentMetropolis(a)]), seed=0)
    assert draws.exact and draws.diagnostics.rhat < 1.05 and draws.diagnostics.ess_bulk > 400
