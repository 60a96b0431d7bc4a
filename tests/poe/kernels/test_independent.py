from __future__ import annotations

import pytest
import torch
from torch.distributions import constraints

import poe
from experts.families import Gamma
from poe.kernels import IndependentMetropolis
from poe.mcmc.run import run, streams
from tests.poe.targets import Gauss, Raw, Skewed

CPU = torch.device("cpu")


def test_the_acceptance_is_the_ratio_of_importance_weights() -> None:
    proposal, energy = Gauss(0.3, 2.0), Skewed()
    x = energy.sample(200, generator=torch.Generator().manual_seed(0))
    kernel = IndependentMetropolis(proposal)
    state = kernel.init(energy, x)
    noise = kernel.noise(state, torch.Generator().manual_seed(1))
    _, info = kernel.step(energy, state, noise)
    weights = [(energy.log_prob(z) - proposal.log_prob(z)).exp() for z in (noise.fresh, x)]
    assert torch.allclose(info.acceptance, (weights[0] / weights[1]).clamp(max=1), atol=1e-5)


def test_draws_of_the_target_itself_are_always_taken() -> None:
    energy = Gauss(1.0)
    trace = run(
        IndependentMetropolis(energy),
        energy,
        torch.zeros(20, 2),
        draws=50,
        generators=streams(0, 1, CPU),
    )
    assert trace.counts.acceptance == pytest.approx(1.0)
    assert trace.counts.gradients == 0 and trace.counts.energies == 20 * 51


def test_it_crosses_between_modes_and_needs_no_warm_up() -> None:
    target = poe.mixture([Gauss(-6.0, 0.5), Gauss(6.0, 0.5)], weights=[0.3, 0.7]) & Raw(
        lambda x: 0 * x.sum(-1)
    )
    kernel = IndependentMetropolis(Gauss(0.0, 6.0))
    assert kernel.ready and kernel.exact
    trace = run(
        kernel, target, torch.full((64, 2), -6.0), draws=400, thin=5, generators=streams(0, 1, CPU)
    )
    share = (trace.x[:, 100:, 0] > 0).double().mean(1)
    assert abs((share.mean() - 0.7) / (share.std() / 8)) < 4.5
    warmed = run(
        kernel, target, torch.full((4, 2), -6.0), draws=1, warmup=5, generators=streams(0, 1, CPU)
    )
    assert warmed.kernel is kernel


def test_a_proposal_that_cannot_serve_is_refused() -> None:
    with pytest.raises(TypeError, match="a - b does not: give a Density"):
        IndependentMetropolis(Gauss(0.0, name="a") - Gauss(1.0, name="b"))
    with pytest.raises(ValueError, match=r"event shape \(3,\), not \(2,\)"):
        IndependentMetropolis(Gauss(0.0, d=3)).init(Gauss(0.0), torch.zeros(1, 2))

    class Narrow(Gauss):
        @property
        def support(self):
            return poe.algebra.support.box(torch.zeros(2), torch.ones(2))

    class Wide(Gauss):
        @property
        def support(self):
            return poe.algebra.support.box(-torch.ones(2), torch.ones(2))

    with pytest.raises(ValueError, match="draws from .* only"):
        IndependentMetropolis(Narrow(0.5)).init(Wide(0.5), torch.zeros(1, 2))


def test_a_proposal_goes_with_the_variables() -> None:
    from poe.spaces.transport import Unconstrained

    target, proposal = (
        Gamma(torch.tensor([3.0]), torch.tensor([2.0])),
        Gamma(torch.tensor([2.0]), torch.tensor([1.0])),
    )
    assert target.support is not constraints.real
    space = Unconstrained(target)
    kernel = IndependentMetropolis(proposal).through(space.around)
    start = space.to_z(torch.ones(200, 1))
    trace = run(kernel, space, start, draws=100, generators=streams(0, 1, CPU))
    means = space.to_x(trace.x[:, 20:]).mean((1, 2))  # the mean of a Gamma(3, 2) is 3/2
    assert abs((means.mean() - 1.5) / (means.std() / 200**0.5)) < 4.5
