"""`poe.sample(e)` without options on targets that are hard in different ways, nothing known of them
but the energy. The benchmark `tests/benchmarks/bench_targets.py` measures more of them, longer."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.stats import chi2, ttest_1samp
from torch import Tensor

import poe
from experts import Ising
from poe.diagnostics.convergence import ess
from tests.poe.targets import Raw

pytestmark = pytest.mark.slow


def test_nine_modes_far_apart_have_their_weights() -> None:
    centres = torch.cartesian_prod(*[torch.tensor([-5.0, 0.0, 5.0])] * 2)
    normals = Raw(
        lambda x: -(-(x.unsqueeze(-2) - centres).square().sum(-1) / 0.6).logsumexp(-1), name="nine"
    )
    draws = poe.sample(normals, 4000, seed=1)
    counts = torch.cdist(draws.x, centres).argmin(1).bincount(minlength=9)
    assert draws.trusted
    assert float((counts - 4000 / 9).square().sum() / (4000 / 9)) < chi2.ppf(0.999, 8)
    assert draws.log_z is not None
    assert (
        abs(draws.log_z.value - math.log(9 * 2 * math.pi * 0.3))
        < 4 * draws.log_z.standard_error
        < 0.1
    )


def test_a_funnel_has_its_neck_and_its_mouth() -> None:
    def energy(x: Tensor) -> Tensor:  # x0 ~ N(0, 3²), the others N(0, exp(x0)): log Z is 0
        first, rest = x[..., 0], x[..., 1:]
        return (
            first.square() / 18
            + (rest.square().sum(-1) * (-first).exp() + 9 * first) / 2
            + math.log(3)
            + 5 * math.log(2 * math.pi)
        )

    draws = poe.sample(Raw(energy, d=10, name="funnel"), 4000, seed=2)
    assert draws.trusted and draws.log_z is not None
    assert abs(draws.log_z.value) < max(0.02, 4 * draws.log_z.standard_error)
    each = draws.chains[
        ..., 0
    ]  # populations are independent: the spread of their means is that of the estimate
    assert ttest_1samp(each.mean(1), 0).pvalue > 0.001
    assert ttest_1samp(each.square().mean(1), 9).pvalue > 0.001


def test_a_narrow_gaussian_in_many_dimensions_is_right() -> None:
    """Variances from 1 to 1/1000 in 60 dimensions, turned at random: annealed particles from
    one wide normal do not suffice, the search knows its shape."""
    d = 60
    turn = torch.linalg.qr(torch.randn(d, d, generator=torch.Generator().manual_seed(0)))[0]
    scale = torch.logspace(0, -1.5, d)
    target = Raw(lambda x: ((x - 1) @ turn / scale).square().sum(-1) / 2, d=d, name="narrow")
    draws = poe.sample(target, 2000, seed=3)
    assert draws.trusted
    z = ((draws.x - 1) @ turn / scale).double()
    # squares of 60 standard normals: the mean over draws has variance 2/ESS, at the ESS that is
    # reported at the least
    error = math.sqrt(2 / draws.diagnostics.ess_bulk)
    assert bool(((z.square().mean(0) - 1).abs() < 4.5 * error).all())
    assert draws.log_z is not None
    truth = float(scale.log().sum()) + d / 2 * math.log(2 * math.pi)
    assert abs(draws.log_z.value - truth) < 4 * draws.log_z.standard_error


@pytest.mark.parametrize(("beta", "exact"), [(0.4, -1.1060792037), (0.5, -1.7455645753)])
def test_onsagers_energy_of_a_square_lattice(beta: float, exact: float) -> None:
    """Energy a site on both sides of the transition; in the cold chains start in one of the two
    phases, of equal energy."""
    init = torch.ones(16, 64, 64) if beta > 0.45 else None
    draws = poe.sample(Ising((64, 64), beta), 640, method="chains", chains=16, init=init, seed=4)
    s = draws.chains
    found = -(s * (s.roll(1, -1) + s.roll(1, -2))).mean((-1, -2)).double()  # (chains, draws)
    error = float(found.std()) / math.sqrt(float(ess(found.numpy()[..., None], "mean").min()))
    assert error < 0.01 and abs(float(found.mean()) - exact) < 3 * error


def test_annealed_importance_of_a_trained_machine_is_near_its_exact_log_z() -> None:
    machine = poe.load("digits.rbm")
    found, exact = poe.log_z(machine, method="ais", seed=1), machine.log_z
    assert exact is not None and exact.standard_error == 0
    assert abs(found.value - exact.value) < min(0.02, 4 * found.standard_error)
