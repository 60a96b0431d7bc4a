from __future__ import annotations

import math

import pytest
import torch

import poe
from poe.diagnostics.evidence import diagnose
from poe.kernels import Hamiltonian, Langevin, Tempered
from poe.kernels.state import State
from poe.kernels.trajectory import NORMAL_LENGTH
from poe.mcmc.run import run, streams
from tests.poe.targets import Gauss, Raw, Skewed, but_not

CPU = torch.device("cpu")
DENSE = torch.tensor([[1.1, 0.0], [0.5, 0.9]])


def double(kernel: Hamiltonian, n: int):
    """Points and velocities, and the leapfrog map of both, in double precision."""
    g = torch.Generator().manual_seed(0)
    x, v = (
        Skewed().sample(20, generator=g).double(),
        torch.randn(20, 2, generator=g, dtype=torch.float64),
    )

    def leap(x: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        end, velocity = kernel.leapfrog(
            Skewed(), kernel.init(Skewed(), x), v, torch.tensor(0.3).double(), n
        )
        return end.x, velocity

    return x, v, leap


def test_leapfrog_is_reversible() -> None:
    x, v, leap = double(Hamiltonian(scale=DENSE, dense=True), 20)
    there, speed = leap(x, v)
    back, slowed = leap(there, -speed)
    assert (there - x).abs().mean() > 0.5
    assert torch.allclose(back, x, atol=1e-10)
    assert torch.allclose(slowed, -v, atol=1e-10)


def test_leapfrog_keeps_volume() -> None:
    """The determinant of the Jacobian by autograd, through an energy whose gradient is written as
    differentiable operations."""

    class Quartic(poe.Energy):
        def forward(self, x):
            return (x**4).sum(-1) / 4 + x.prod(-1)

        def value_and_grad(self, x):
            return self.forward(x), x**3 + x.flip(-1)

    kernel, energy = Hamiltonian(scale=DENSE.double(), dense=True), Quartic((2,))

    def leap(both: torch.Tensor) -> torch.Tensor:
        start = State(both[:2], *energy.value_and_grad(both[:2]))
        end, velocity = kernel.leapfrog(energy, start, both[2:], torch.tensor(0.2).double(), 5)
        return torch.cat([end.x, velocity])

    for seed in range(5):
        both = torch.randn(4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        jacobian = torch.autograd.functional.jacobian(leap, both)
        assert isinstance(jacobian, torch.Tensor)
        assert abs(torch.linalg.det(jacobian) - 1) < 1e-10


def test_a_trajectory_of_so_many_steps_takes_so_many_gradients() -> None:
    kernel = Hamiltonian(0.1, length=0.75, most_steps=6)
    energy = Gauss(0.0)
    trace = run(kernel, energy, torch.zeros(5, 2), draws=400, generators=streams(0, 1, CPU))
    generator = streams(0, 1, CPU)[0]
    total = 0
    for _ in range(400):
        jitter = kernel.noise(kernel.init(energy, torch.zeros(5, 2)), generator).jitter
        total += min(max(math.ceil(7.5 * float(jitter)), 1), 6)
    assert trace.counts.gradients == 5 * (total + 1)  # one more to start from
    assert kernel.gradients_per_step == pytest.approx((1 + 2 + 3 + 4 + 5 + 2.5 * 6) / 7.5)


def test_warm_up_finds_the_length_and_the_acceptance() -> None:
    energy = Gauss(3.0, 20.0, d=20)
    start = energy.sample(64, generator=torch.Generator().manual_seed(0))
    trace = run(Hamiltonian(), energy, start, draws=200, warmup=400, generators=streams(0, 2, CPU))
    assert abs(trace.counts.acceptance - 0.651) < 0.06
    time = trace.kernel.gradients_per_step * float(
        trace.kernel.step_size
    )  # the mean over u, whole steps counted
    assert time == pytest.approx(NORMAL_LENGTH / 2, rel=0.35)
    fixed = run(
        Hamiltonian(length=1.0), energy, start, draws=1, warmup=50, generators=streams(0, 1, CPU)
    )
    assert fixed.kernel.length == 1.0


def ill_conditioned(d: int = 100, condition: float = 1000.0) -> tuple[poe.Energy, torch.Tensor]:
    """A normal whose principal axes are not the coordinates', and its covariance."""
    axes = torch.linalg.qr(torch.randn(d, d, generator=torch.Generator().manual_seed(4)))[0]
    variance = torch.logspace(-0.5, 0.5, d) ** math.log10(condition)
    precision = axes @ torch.diag(1 / variance) @ axes.T
    return Raw(lambda x: 0.5 * ((x @ precision) * x).sum(-1), d=d), axes @ torch.diag(
        variance
    ) @ axes.T


def test_an_ill_conditioned_normal_costs_few_gradients() -> None:
    energy, covariance = ill_conditioned()
    start = torch.randn(64, 100, generator=torch.Generator().manual_seed(1))
    warm = run(Hamiltonian(), energy, start, draws=1, warmup=400, generators=streams(0, 1, CPU))
    trace = run(warm.kernel, energy, warm.states, draws=200, generators=streams(1, 1, CPU))
    evidence = diagnose(trace.x, trace.energy, 1)
    # without a preconditioner, a trajectory of length π/2 along the longest axis, √1000 times the
    # shortest, takes some 45 steps of the size 1.1 that the shortest allows; measured here 0.06 to
    # 0.09, by seed
    assert evidence.ess_bulk / trace.counts.gradients > 1 / 25
    assert warm.counts.gradients < 64 * 3000
    y = trace.x @ torch.linalg.inv(torch.linalg.cholesky(covariance)).T
    means = y.mean(1)  # one number a chain and coordinate, all chains independent
    z = means.mean(0) / (means.std(0) / 8)
    assert z.abs().max() < 5.5  # t with 63 degrees of freedom, 100 of them: by chance 1e-4


@pytest.mark.slow
def test_a_ladder_is_tuned_rung_by_rung() -> None:
    target = poe.mixture([Gauss(-6.0, 0.5), Gauss(6.0, 0.5)], weights=[0.3, 0.7])
    kernel = Tempered(
        Gauss(0.0, 6.0), torch.linspace(0, 1, 8, dtype=torch.float64) ** 3, Hamiltonian()
    )
    trace = run(
        kernel,
        target,
        torch.full((32, 2), -6.0),
        draws=200,
        warmup=200,
        generators=streams(0, 1, CPU),
    )
    assert isinstance(trace.kernel.step_size, torch.Tensor) and trace.kernel.step_size.shape == (8,)
    share = (trace.x[..., 0] > 0).double().mean(1)
    assert abs((share.mean() - 0.7) / (share.std() / len(share) ** 0.5)) < 4


@pytest.mark.slow
def test_poe_sample_takes_it() -> None:
    a, c = Gauss(0.0, name="a"), Gauss(1.0, 0.7, name="c")
    draws = poe.sample(a - c, 4000, kernel=Hamiltonian(), chains=16, seed=0)
    exact = but_not(a, c, 100_000, torch.Generator().manual_seed(1))
    assert draws.exact and draws.diagnostics.rhat < 1.05
    z = (draws.x.mean(0) - exact.mean(0)) / (exact.std(0) / draws.diagnostics.ess_bulk**0.5)
    assert z.abs().max() < 4.5


def test_a_nan_is_rejected_and_counted_and_an_overflow_is_a_divergence() -> None:
    def broken(x: torch.Tensor) -> torch.Tensor:
        return torch.where(x[..., 0] > 1, torch.nan, 0.5 * x.square().sum(-1))

    kernel = Hamiltonian(0.5, length=1.5)
    trace = run(kernel, Raw(broken), torch.zeros(500, 2), draws=50, generators=streams(0, 1, CPU))
    assert trace.counts.nonfinite > 100 and trace.counts.divergent == 0
    assert trace.x.isfinite().all() and (trace.x[..., 0] <= 1).all()
    wild = run(
        Hamiltonian(9.0, length=1000.0),
        Gauss(0.0),
        torch.ones(50, 2),
        draws=20,
        generators=streams(0, 1, CPU),
    )
    assert wild.counts.divergent > 500 and (wild.x == 1).all()


def test_what_makes_no_sense_is_refused() -> None:
    for arguments in ({"step_size": 0.0}, {"length": -1.0}):
        with pytest.raises(ValueError, match="positive number in units of x"):
            Hamiltonian(**arguments)
    with pytest.raises(ValueError, match="at least one step"):
        Hamiltonian(most_steps=0)
    state = Hamiltonian().init(Gauss(0.0), torch.zeros(2, 2))
    with pytest.raises(ValueError, match="tuned by poe.sample"):
        Hamiltonian().step(Gauss(0.0), state, Hamiltonian().noise(state))
    assert not Hamiltonian().ready and Hamiltonian(0.1).ready and not Langevin().ready
