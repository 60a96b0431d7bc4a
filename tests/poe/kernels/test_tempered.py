from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

import poe
from poe.kernels import Langevin, Tempered
from poe.kernels.tempered import linear_betas
from poe.mcmc.run import run, streams
from poe.spaces.path import Geometric, PathEnergy
from tests.poe.targets import Gauss, paired_pvalue

LEVEL = 1e-4
CPU = torch.device("cpu")


def ladder_law(
    start: Gauss, end: Gauss, betas: torch.Tensor, n: int, generator: torch.Generator
) -> torch.Tensor:
    """Exact draws of every rung, (n, rungs, d): between two normals each geometric bridge is a
    normal."""
    rungs = []
    for beta in betas.tolist():
        precision = (1 - beta) / start.sd**2 + beta / end.sd**2
        mean = ((1 - beta) * start.loc / start.sd**2 + beta * end.loc / end.sd**2) / precision
        rungs.append(mean + precision**-0.5 * torch.randn(n, start.d, generator=generator))
    return torch.stack(rungs, 1)


@pytest.mark.parametrize("parity", [0, 1])
def test_a_step_leaves_the_joint_law_of_the_ladder_invariant(parity: int) -> None:
    g = torch.Generator().manual_seed(1)
    start, end, betas = Gauss(0.0, 2.0), Gauss(1.5, 0.7), torch.tensor([0.0, 0.3, 0.7, 1.0])
    x = ladder_law(start, end, betas, 50_000, g)
    for target, holds in ((end, True), (end**1.1, False)):
        kernel = Tempered(start, betas, Langevin(torch.tensor([1.0, 0.8, 0.4, 0.3])), moves=1)
        state = kernel.init(target, x)._replace(parity=parity)
        state, info = kernel.step(target, state, kernel.noise(state, g))
        assert 0.5 < info.acceptance.mean() < 0.99
        p = [paired_pvalue(x[:, rung], state.rungs.x[:, rung], end) for rung in (1, 2, 3)]
        assert (min(p) > LEVEL / 3) == holds, p
        # energies and gradients in the state are those of the rungs where the walkers now stand
        level = Geometric(start, target).level(betas)
        value, gradient = level.value_and_grad(state.rungs.x)
        assert torch.allclose(value, state.rungs.energy, atol=1e-4)
        assert torch.allclose(gradient, state.rungs.gradient, atol=1e-4)


def test_swaps_satisfy_detailed_balance_on_a_path_that_can_be_enumerated() -> None:
    """Two rungs over three points: π(x, y) P(swap) = π(y, x) P(swap back), and a swap keeps the
    pair of points."""
    kernel = Tempered(
        Gauss(0.0, d=1), torch.tensor([0.0, 1.0], dtype=torch.float64), Langevin(0.1), moves=1
    )
    gap = torch.tensor([0.3, -1.2, 2.0], dtype=torch.float64)  # U = E_1 - E_0 at the three points
    start = torch.tensor([0.1, 0.7, -0.4], dtype=torch.float64)
    for i in range(3):
        for j in range(3):
            flow = []
            for a, b in ((i, j), (j, i)):
                order, p = kernel.swaps(
                    gap[[a, b]].unsqueeze(0), 0, torch.zeros(1, 1, dtype=torch.float64)
                )
                assert order.tolist() in ([[0, 1]], [[1, 0]])
                weight = (-(start[a]) - (start[b] + gap[b])).exp()
                flow.append(weight * p[0, 0])
            assert abs(flow[0] - flow[1]) < 1e-12


@pytest.mark.slow
def test_replica_exchange_crosses_where_langevin_does_not() -> None:
    target = poe.mixture([Gauss(-6.0, 0.5), Gauss(6.0, 0.5)], weights=[0.3, 0.7])
    # a ladder dense near the start: with equal steps the first swap is rare, and the chains
    # remember where they began for long
    kernel = Tempered(
        Gauss(0.0, 6.0), torch.linspace(0, 1, 8, dtype=torch.float64) ** 3, Langevin()
    )
    x = torch.full((32, 2), -6.0)  # every chain starts in the smaller mode
    trace = run(kernel, target, x, draws=400, warmup=400, generators=streams(0, 1, CPU))
    share = (trace.x[..., 0] > 0).double().mean(1)  # one number a chain, all chains independent
    z = (share.mean() - 0.7) / (share.std() / len(share) ** 0.5)
    assert abs(z) < 4
    alone = run(Langevin(), target, x, draws=400, warmup=100, generators=streams(0, 1, CPU))
    assert (alone.x[..., 0] < 0).all()


@dataclass(frozen=True)
class Bridge:
    """A path of the caller's own, which happens to be geometric."""

    start: poe.Energy
    end: poe.Energy

    def pair(self, x):
        return Geometric(self.start, self.end).pair(x)

    def level(self, beta):
        return PathEnergy(self, beta)  # type: ignore[arg-type]


def test_a_path_of_ones_own_is_followed() -> None:
    start, target = Gauss(0.0, 3.0), Gauss(2.0) - Gauss(0.0)
    kernels = [
        Tempered(start, linear_betas(4), Langevin(0.3), path=path) for path in (Geometric, Bridge)
    ]
    geometric, own = (
        run(k, target, torch.zeros(8, 2), draws=20, generators=streams(0, 1, CPU)).x
        for k in kernels
    )
    assert torch.equal(geometric, own)


def test_respacing_evens_out_the_rejection_rates() -> None:
    target, start = Gauss(3.0, 0.3), Gauss(0.0, 2.0)
    kernel = Tempered(start, linear_betas(6), Langevin())
    pilot = run(
        kernel, target, torch.zeros(64, 2), draws=50, warmup=60, generators=streams(0, 1, CPU)
    )
    rejection = 1 - pilot.states[0].swapped
    spaced = pilot.kernel.respaced(rejection)
    again = run(
        spaced, target, pilot.states[0].rungs.x, draws=200, warmup=60, generators=streams(1, 1, CPU)
    )
    after = 1 - again.states[0].swapped
    assert after.max() - after.min() < rejection.max() - rejection.min()
    assert spaced.betas[0] == 0 and spaced.betas[-1] == 1 and (spaced.betas.diff() > 0).all()


def test_a_ladder_that_makes_no_sense_is_refused() -> None:
    with pytest.raises(ValueError, match="rise from 0 to 1"):
        Tempered(Gauss(0.0), [0.0, 0.5])
    with pytest.raises(TypeError, match="draws exactly"):
        Tempered(Gauss(0.0) - Gauss(1.0), linear_betas(4))
