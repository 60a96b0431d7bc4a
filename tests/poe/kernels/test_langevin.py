from __future__ import annotations

import math

import pytest
import torch
from torch.distributions import MultivariateNormal

import poe
from poe.kernels import Langevin
from poe.mcmc.run import run, streams
from tests.poe.targets import Gauss, Raw, Skewed


def test_the_acceptance_probability_is_the_metropolis_hastings_ratio_of_the_stated_proposal() -> (
    None
):
    torch.manual_seed(0)
    h, factor = 0.3, torch.tensor([[1.1, 0.0], [0.4, 0.7]], dtype=torch.float64)
    energy = Skewed()
    kernel = Langevin(h, scale=factor, dense=True)
    x = Skewed().sample(64).double()
    state = kernel.init(energy, x)
    noise = kernel.noise(state, torch.Generator().manual_seed(1))
    _, info = kernel.step(energy, state, noise)
    metric = factor @ factor.T

    def proposal(at: torch.Tensor) -> MultivariateNormal:
        mean = at + h * energy.score(at) @ metric
        return MultivariateNormal(mean, 2 * h * metric)

    new = proposal(x).loc + math.sqrt(2 * h) * noise.normal @ factor.T
    ratio = energy(x) - energy(new) + proposal(new).log_prob(x) - proposal(x).log_prob(new)
    assert torch.allclose(info.acceptance, ratio.clamp(max=0).exp(), atol=1e-10)
    assert torch.equal(info.accepted, noise.uniform < info.acceptance)


@pytest.mark.parametrize("h", [0.2, 0.5])
def test_unadjusted_langevin_has_the_stationary_variance_of_theory_and_metropolis_removes_the_bias(
    h: float,
) -> None:
    sd, chains, steps = 1.0, 4_000, 400
    energy = Gauss(0.0, sd, d=1)
    theory = sd**2 / (1 - h / (2 * sd**2))
    for metropolis, variance in ((False, theory), (True, sd**2)):
        x = energy.sample(chains, generator=torch.Generator().manual_seed(2)) * math.sqrt(variance)
        kernel = Langevin(h, metropolis=metropolis)
        trace = run(
            kernel, energy, x, draws=steps, thin=1, generators=streams(5, 1, torch.device("cpu"))
        )
        means = trace.x.square().mean((1, 2))  # one independent number a chain
        z = (means.mean() - variance) / (means.std() / math.sqrt(chains))
        assert abs(z) < 4.5, (metropolis, means.mean(), variance)
        wrong = (means.mean() - (sd**2 if not metropolis else theory)) / (
            means.std() / math.sqrt(chains)
        )
        assert abs(wrong) > 4.5  # the other variance is told apart


def test_the_step_size_of_unadjusted_langevin_is_found_too_and_its_bias_is_that_of_theory() -> None:
    energy = Gauss(3.0, 5.0, d=1)
    start = energy.sample(1000, generator=torch.Generator().manual_seed(0))
    trace = run(
        Langevin(metropolis=False),
        energy,
        start,
        draws=400,
        thin=2,
        warmup=300,
        generators=streams(5, 1, torch.device("cpu")),
    )
    assert isinstance(trace.kernel.step_size, torch.Tensor) and trace.kernel.scale is not None
    h = float(trace.kernel.step_size) * float(trace.kernel.scale) ** 2 / 25
    assert 0.05 < h < 1
    means = ((trace.x[:, 20:] - 3) / 5).square().mean((1, 2))  # one independent number a chain
    assert abs((means.mean() - 1 / (1 - h / 2)) / (means.std() / math.sqrt(1000))) < 4.5


def test_each_chain_decides_for_itself_and_a_nan_is_rejected_and_counted() -> None:
    def broken(x: torch.Tensor) -> torch.Tensor:
        return torch.where(x[..., 0] > 1, torch.nan, 0.5 * x.square().sum(-1))

    energy = Raw(broken, name="broken")
    kernel = Langevin(0.5)
    x = torch.zeros(2000, 2)
    state = kernel.init(energy, x)
    nonfinite = 0
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        state, info = kernel.step(energy, state, kernel.noise(state, generator))
        assert 0 < info.accepted.float().mean() < 1
        assert not info.accepted[info.nonfinite].any()
        nonfinite += int(info.nonfinite.sum())
    assert nonfinite > 100
    assert state.x.isfinite().all() and (state.x[:, 0] <= 1).all()


def test_what_lies_outside_the_support_is_rejected_but_is_no_failure() -> None:
    class Half(poe.Energy):
        def __init__(self) -> None:
            super().__init__((1,), support=torch.distributions.constraints.positive)

        def forward(self, x):
            return x.sum(-1)

    kernel = Langevin(1.0)
    state = kernel.init(Half(), torch.full((500, 1), 0.1))
    moved, info = kernel.step(Half(), state, kernel.noise(state, torch.Generator().manual_seed(0)))
    assert not info.nonfinite.any() and (moved.x > 0).all() and (~info.accepted).any()


def test_one_gradient_a_step() -> None:
    calls = []

    def counted(x: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        return x.square().sum(-1)

    energy, kernel = Raw(counted), Langevin(0.1)
    state = kernel.init(energy, torch.zeros(3, 2))
    calls.clear()
    for _ in range(5):
        state, _ = kernel.step(energy, state, kernel.noise(state))
    assert len(calls) == 5


@pytest.mark.parametrize("step", [0.0, -1.0, math.inf])
def test_a_step_size_that_makes_no_sense_is_refused(step: float) -> None:
    with pytest.raises(ValueError, match="positive number in units of x squared"):
        Langevin(step)
    kernel = Langevin()
    state = kernel.init(Gauss(0.0), torch.zeros(2, 2))
    with pytest.raises(ValueError, match="tuned by poe.sample"):
        kernel.step(Gauss(0.0), state, kernel.noise(state))
