from __future__ import annotations

import pytest
import torch

import poe
from poe.kernels import RandomWalk, Tempered
from poe.kernels.tempered import linear_betas
from poe.mcmc.run import BLOCK, run, streams
from tests.poe.targets import Gauss, Raw, Skewed, ks_pvalue

LEVEL = 1e-4  # each invariance test fails by chance once in ten thousand seeds
CPU = torch.device("cpu")
DENSE = torch.tensor([[1.1, 0.0], [0.5, 0.9]])


def rounded() -> poe.Energy:
    """A normal behind a wall of numbers that autograd cannot see through."""
    return Raw(lambda x: 0.5 * (x.detach().double() ** 2).sum(-1).to(x), name="rounded")


def test_the_acceptance_is_the_ratio_of_densities() -> None:
    kernel, energy = RandomWalk(0.7, scale=DENSE, dense=True), Skewed()
    x = energy.sample(100, generator=torch.Generator().manual_seed(0))
    state = kernel.init(energy, x)
    noise = kernel.noise(state, torch.Generator().manual_seed(1))
    moved, info = kernel.step(energy, state, noise)
    new = x + 0.7 * noise.normal @ DENSE.T
    assert torch.allclose(
        info.acceptance, (energy.log_prob(new) - energy.log_prob(x)).clamp(max=0).exp(), atol=1e-6
    )
    assert torch.equal(info.accepted, noise.uniform < info.acceptance)
    assert torch.allclose(moved.x, torch.where(info.accepted.unsqueeze(-1), new, x))


def test_an_energy_without_a_gradient_is_drawn_from_and_only_energies_are_counted() -> None:
    with pytest.raises(TypeError, match="no gradient"):
        rounded().value_and_grad(torch.zeros(1, 2))
    start = torch.zeros(64, 2)
    trace = run(
        RandomWalk(), rounded(), start, draws=400, thin=5, warmup=300, generators=streams(0, 1, CPU)
    )
    assert trace.counts.gradients == 0
    assert trace.counts.energies >= 64 * (1 + 300 + 2000)
    means = trace.x.square().mean((1, 2))  # one number a chain
    assert abs((means.mean() - 1) / (means.std() / 8)) < 4.5


@pytest.mark.parametrize(
    ("d", "best"), [(1, 0.441), (2, 0.352), (5, 0.275), (10, 0.267), (50, 0.234)]
)
def test_the_acceptance_is_the_best_one_by_dimension(d: int, best: float) -> None:
    # the optimal acceptance for a normal, Gelman, Roberts and Gilks 1996, table 1; 0.234 in the
    # limit
    assert RandomWalk().target(d) == pytest.approx(best, abs=0.02)
    energy = Gauss(2.0, 3.0, d=d)
    start = energy.sample(64, generator=torch.Generator().manual_seed(0))
    trace = run(RandomWalk(), energy, start, draws=200, warmup=400, generators=streams(0, 1, CPU))
    assert abs(trace.counts.acceptance - best) < 0.05


def test_a_ladder_needs_no_gradient_either() -> None:
    def two(x: torch.Tensor) -> torch.Tensor:
        a, b = (Gauss(m, 0.5).log_prob(x.detach()) for m in (-4.0, 4.0))
        return -torch.logaddexp(a + torch.tensor(0.3).log(), b + torch.tensor(0.7).log())

    kernel = Tempered(Gauss(0.0, 4.0), linear_betas(8) ** 2, RandomWalk())
    trace = run(
        kernel,
        Raw(two),
        torch.full((64, 2), -4.0),
        draws=300,
        warmup=200,
        generators=streams(0, 1, CPU),
    )
    assert trace.counts.gradients == 0
    share = (trace.x[..., 0] > 0).double().mean(1)
    assert abs((share.mean() - 0.7) / (share.std() / 8)) < 4.5


def test_what_lies_outside_the_support_is_rejected() -> None:
    class Half(poe.Energy):
        def __init__(self) -> None:
            super().__init__((1,), support=torch.distributions.constraints.positive)

        def forward(self, x):
            return x.sum(-1)

    trace = run(
        RandomWalk(1.0), Half(), torch.full((500, 1), 0.1), draws=50, generators=streams(0, 1, CPU)
    )
    assert (trace.x > 0).all() and trace.counts.nonfinite == 0 and trace.counts.acceptance < 0.9


def test_what_makes_no_sense_is_refused() -> None:
    with pytest.raises(ValueError, match="step size of RandomWalk must be a positive number"):
        RandomWalk(-1.0)
    state = RandomWalk().init(Gauss(0.0), torch.zeros(2, 2))
    with pytest.raises(ValueError, match="tuned by poe.sample"):
        RandomWalk().step(Gauss(0.0), state, RandomWalk().noise(state))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's compiler warns about itself
def test_compiled_blocks_agree_in_law_and_are_counted() -> None:
    energy = Gauss(1.0, 2.0)
    start = energy.sample(2000, generator=torch.Generator().manual_seed(0))
    kernel = RandomWalk(2.0)
    trace = run(kernel, energy, start, draws=3 * BLOCK, generators=streams(1, 1, CPU), compile=True)
    assert trace.counts.energies == 2000 * (3 * BLOCK + 1) and trace.counts.gradients == 0
    assert (
        ks_pvalue(energy.sample(2000, generator=torch.Generator().manual_seed(2)), trace.x[:, -1])
        > LEVEL
    )
