from __future__ import annotations

import math

import pytest
import torch

import poe
from poe.kernels import Microcanonical
from poe.kernels.microcanonical import ENERGY_ERROR, turn
from poe.kernels.state import State
from poe.mcmc.run import BLOCK, run, streams
from tests.poe.targets import Gauss, Raw, Skewed, ks_pvalue

LEVEL = 1e-4  # each invariance test fails by chance once in ten thousand seeds
CPU = torch.device("cpu")
DENSE = torch.tensor([[1.1, 0.0], [0.5, 0.9]])


def unit(v: torch.Tensor) -> torch.Tensor:
    return v / v.norm(dim=-1, keepdim=True)


@pytest.mark.parametrize("d", [2, 3, 7])
def test_a_turn_follows_its_equation_of_motion(d: int) -> None:
    """du/ds = -(1 - u uᵀ) g / (d - 1) and dK/ds = -u·g, by a Runge-Kutta integration."""
    g = torch.Generator().manual_seed(0)
    u, slope = (
        unit(torch.randn(d, generator=g, dtype=torch.float64)),
        torch.randn(d, generator=g, dtype=torch.float64),
    )
    turned, change = turn(u, slope, torch.tensor(2.5, dtype=torch.float64))

    def rate(y: torch.Tensor) -> torch.Tensor:
        return torch.cat(
            [-(slope - y[:d] * (y[:d] @ slope)) / (d - 1), -(y[:d] @ slope).unsqueeze(0)]
        )

    y, h = torch.cat([u, torch.zeros(1, dtype=torch.float64)]), 2.5 / 1000
    for _ in range(1000):
        k1 = rate(y)
        k2 = rate(y + h / 2 * k1)
        k3 = rate(y + h / 2 * k2)
        y = y + h / 6 * (k1 + 2 * k2 + 2 * k3 + rate(y + h * k3))
    assert torch.allclose(turned, y[:d], atol=1e-9)
    assert float(change) == pytest.approx(float(y[d]), abs=1e-9)


def tangent(u: torch.Tensor) -> torch.Tensor:
    """An orthonormal basis (d, d - 1) of the directions along the sphere at u."""
    return torch.linalg.svd(u.unsqueeze(0))[2][1:].T


@pytest.mark.parametrize("d", [2, 5])
def test_the_change_of_k_is_minus_the_log_determinant_of_a_turn(d: int) -> None:
    for seed in range(5):
        g = torch.Generator().manual_seed(seed)
        u, slope = (
            unit(torch.randn(d, generator=g, dtype=torch.float64)),
            torch.randn(d, generator=g, dtype=torch.float64),
        )
        time = torch.tensor(1.3, dtype=torch.float64)
        jacobian = torch.autograd.functional.jacobian(
            lambda v, s=slope, t=time: turn(v, s, t)[0], u
        )
        assert isinstance(jacobian, torch.Tensor)
        turned, change = turn(u, slope, time)
        along = tangent(turned).T @ jacobian @ tangent(u)
        assert abs(torch.linalg.slogdet(along)[1] + change) < 1e-10


class Quartic(poe.Energy):
    """With its gradient written as differentiable operations."""

    def forward(self, x):
        return (x**4).sum(-1) / 4 + x.prod(-1)

    def value_and_grad(self, x):
        others = torch.stack(
            [torch.cat([x[..., :i], x[..., i + 1 :]], -1).prod(-1) for i in range(x.shape[-1])], -1
        )
        return self.forward(x), x**3 + others


def test_the_change_of_k_is_minus_the_log_determinant_of_a_trajectory() -> None:
    kernel, energy, d = (
        Microcanonical(scale=torch.tensor([1.3, 0.6, 0.9]).double()),
        Quartic((3,)),
        3,
    )
    h = torch.tensor(0.3, dtype=torch.float64)

    def drift(both: torch.Tensor) -> torch.Tensor:
        start = State(both[:d], *energy.value_and_grad(both[:d]))
        end, direction, kinetic = kernel.drift(energy, start, both[d:], h, 6)
        return torch.cat([end.x, direction, kinetic.unsqueeze(0)])

    for seed in range(5):
        g = torch.Generator().manual_seed(seed)
        x, u = (
            torch.randn(d, generator=g, dtype=torch.float64),
            unit(torch.randn(d, generator=g, dtype=torch.float64)),
        )
        both = torch.cat([x, u])
        jacobian, out = torch.autograd.functional.jacobian(drift, both), drift(both)
        assert isinstance(jacobian, torch.Tensor)
        before, after = (
            torch.block_diag(torch.eye(d, dtype=torch.float64), tangent(v))
            for v in (u, out[d : 2 * d])
        )
        assert abs(torch.linalg.slogdet(after.T @ jacobian[: 2 * d] @ before)[1] + out[-1]) < 1e-10


def test_a_trajectory_is_reversible() -> None:
    g = torch.Generator().manual_seed(0)
    x, u = (
        Skewed().sample(20, generator=g).double(),
        unit(torch.randn(20, 2, generator=g, dtype=torch.float64)),
    )
    kernel, h = Microcanonical(scale=DENSE, dense=True), torch.full((20,), 0.3, dtype=torch.float64)
    there, ahead, up = kernel.drift(Skewed(), kernel.init(Skewed(), x), u, h, 20)
    back, behind, down = kernel.drift(Skewed(), there, -ahead, h, 20)
    assert (there.x - x).abs().mean() > 0.5
    assert torch.allclose(back.x, x, atol=1e-9)
    assert torch.allclose(behind, -u, atol=1e-9)
    assert torch.allclose(down, -up, atol=1e-9)


def test_warm_up_finds_the_acceptance_and_a_length_like_the_radius() -> None:
    energy = Gauss(3.0, 20.0, d=20)
    start = energy.sample(64, generator=torch.Generator().manual_seed(0))
    trace = run(
        Microcanonical(), energy, start, draws=200, warmup=400, generators=streams(0, 2, CPU)
    )
    assert abs(trace.counts.acceptance - 0.9) < 0.04
    # on a normal the dynamics goes round near enough to great circles of radius sqrt(d):
    # independence is π/2 of that away
    assert 0.5 < trace.kernel.gradients_per_step * float(trace.kernel.step_size) / math.sqrt(20) < 2
    means = trace.x.mean((1, 2))
    assert abs((means.mean() - 3) / (means.std() / 8)) < 4.5
    squares = ((trace.x - 3) / 20).square().mean((1, 2))
    assert abs((squares.mean() - 1) / (squares.std() / 8)) < 4.5


def test_the_unadjusted_form_has_a_small_bias_and_the_stated_energy_error() -> None:
    d, sd = 10, 5.0
    energy = Gauss(2.0, sd, d=d)
    start = energy.sample(256, generator=torch.Generator().manual_seed(0))
    trace = run(
        Microcanonical(metropolis=False),
        energy,
        start,
        draws=1000,
        warmup=400,
        generators=streams(0, 1, CPU),
    )
    kernel, state = trace.kernel, trace.states[0]
    assert not kernel.exact and trace.counts.gradients < 256 * (1 + 30 + 400 + 1000)  # one a step
    x = trace.x[:, 200:]
    means = x.mean((1, 2))
    assert abs((means.mean() - 2) / (means.std() / 16)) < 4.5
    squares = ((x - 2) / sd).square().mean((1, 2))  # one number a chain
    error = float(squares.std() / 16)
    assert squares.mean() - 1 - 4.5 * error > 0.005  # it is there
    assert squares.mean() - 1 + 4.5 * error < 0.06  # and small: 3 % by h²/(12 d)
    bias = float(kernel.step_size) ** 2 / (12 * d)
    assert float(squares.mean()) - 1 == pytest.approx(bias, abs=4.5 * error + 0.01)
    signals, generator = [], torch.Generator().manual_seed(1)
    for _ in range(50):
        state, _, feedback = kernel.learn(energy, state, kernel.noise(state, generator))
        signals.append(feedback.signal.mean())
    assert float(torch.stack(signals).mean()) == pytest.approx(
        1.0, rel=0.5
    )  # of ENERGY_ERROR; it grows as h to the sixth
    assert ENERGY_ERROR == 5e-4


def test_directions_stay_unit_and_the_first_is_uniform() -> None:
    kernel = Microcanonical(0.5, metropolis=False)
    state = kernel.init(Gauss(0.0, d=3), torch.zeros(2000, 3))
    state, _ = kernel.step(
        Gauss(0.0, d=3), state, kernel.noise(state, torch.Generator().manual_seed(0))
    )
    assert torch.allclose(state.direction.norm(dim=-1), torch.ones(2000), atol=1e-5)
    # a flat energy does not turn: the components of a uniform direction in three dimensions are
    # uniform on (-1, 1)
    flat = Raw(lambda x: 0 * x.sum(-1), d=3)
    state = kernel.init(flat, torch.zeros(2000, 3))
    state, _ = kernel.step(flat, state, kernel.noise(state, torch.Generator().manual_seed(0)))
    from scipy.stats import kstest

    assert (
        min(kstest(state.direction[:, i].numpy(), "uniform", (-1, 2)).pvalue for i in range(3))
        > LEVEL
    )


def test_a_failing_expert_is_rejected_counted_and_turned_from() -> None:
    def broken(x: torch.Tensor) -> torch.Tensor:
        return torch.where(x[..., 0] > 1, torch.nan, 0.5 * x.square().sum(-1))

    for metropolis in (True, False):
        kernel = Microcanonical(0.5, length=2.0, metropolis=metropolis)
        trace = run(
            kernel, Raw(broken), torch.zeros(500, 2), draws=50, generators=streams(0, 1, CPU)
        )
        assert trace.counts.nonfinite > 100
        assert trace.x.isfinite().all() and (trace.x[..., 0] <= 1).all()


def test_a_steep_turn_does_not_overflow() -> None:
    u = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]])
    turned, change = turn(u, torch.tensor([[1e15, 0.0]]).expand(3, 2), torch.full((3,), 10.0))
    assert torch.allclose(turned[1:], torch.tensor([-1.0, 0.0]).expand(2, 2))
    assert change[1:].isfinite().all() and not turned.isnan().any()
    wild = run(
        Microcanonical(1e4, length=1e5),
        Gauss(0.0),
        torch.ones(50, 2),
        draws=5,
        generators=streams(0, 1, CPU),
    )
    assert (wild.x == 1).all()


def test_what_makes_no_sense_is_refused() -> None:
    for arguments in ({"step_size": 0.0}, {"length": -1.0}):
        with pytest.raises(ValueError, match="positive number in units of x"):
            Microcanonical(**arguments)
    with pytest.raises(ValueError, match="at least one step"):
        Microcanonical(most_steps=0)
    with pytest.raises(ValueError, match="two dimensions or more, and gauss has one"):
        poe.sample(Gauss(0.0, d=1), 10, kernel=Microcanonical())


def test_poe_sample_flags_the_unadjusted_form() -> None:
    a, c = Gauss(0.0, name="a"), Gauss(1.0, 0.7, name="c")
    draws = poe.sample(a - c, 2000, kernel=Microcanonical(metropolis=False), seed=0)
    assert not draws.exact and any("unadjusted" in line for line in draws.warnings)
    exact = poe.sample(a - c, 2000, kernel=Microcanonical(), seed=0)
    assert exact.exact and exact.diagnostics.rhat < 1.05


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's compiler warns about itself
def test_compiled_blocks_of_the_unadjusted_form_agree_in_law() -> None:
    energy, kernel = Gauss(1.0, 2.0, d=3), Microcanonical(0.5, metropolis=False)
    start = energy.sample(2000, generator=torch.Generator().manual_seed(0))
    trace = run(kernel, energy, start, draws=3 * BLOCK, generators=streams(1, 1, CPU), compile=True)
    assert trace.counts.gradients == 2000 * (3 * BLOCK + 1)
    assert (
        ks_pvalue(energy.sample(2000, generator=torch.Generator().manual_seed(2)), trace.x[:, -1])
        > LEVEL
    )
