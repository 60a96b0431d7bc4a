from __future__ import annotations

import math

import pytest
import torch
from scipy.stats import ttest_1samp
from torch.distributions import constraints

import poe
from experts import RBM, Ising, Potts
from poe.kernels import DiscreteLangevin, Gibbs
from poe.sampling.estimation import EstimateWarning
from poe.spaces import points
from tests.poe.discrete_targets import REQUIRED, curie_weiss, strong_rbm


class Chain(poe.Energy):
    """Bits in a row, E = -Σ x_i x_{i+1} + 0.3 Σ x_i: too many to enumerate, a transfer matrix away
    from exact."""

    def __init__(self, n: int) -> None:
        super().__init__((n,), support=constraints.boolean, name="chain")

    def forward(self, x):
        return 0.3 * x.sum(-1) - (x[..., 1:] * x[..., :-1]).sum(-1)


def exact(n: int) -> tuple[float, float]:
    """(mean number of ones, mean number of neighbouring pairs of ones) by derivatives of the
    transfer matrix' log Z."""
    field = torch.tensor(-0.3, dtype=torch.float64, requires_grad=True)
    coupling = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
    bits = torch.tensor([0.0, 1.0], dtype=torch.float64)
    vector = (field * bits).exp()
    for _ in range(n - 1):
        vector = (vector @ (coupling * bits[:, None] * bits).exp()) * (field * bits).exp()
    ones, pairs = torch.autograd.grad(vector.sum().log(), [field, coupling])
    return ones.item(), pairs.item()


def exact_log_z(n: int) -> float:
    bits = torch.tensor([0.0, 1.0], dtype=torch.float64)
    vector = (-0.3 * bits).exp()
    for _ in range(n - 1):
        vector = (vector @ (bits[:, None] * bits).exp()) * (-0.3 * bits).exp()
    return vector.sum().log().item()


@pytest.mark.parametrize("kernel", [None, DiscreteLangevin(), Gibbs()])
def test_bits_too_many_to_enumerate_are_drawn(kernel) -> None:
    n = 24
    draws = poe.sample(Chain(n), 2000, kernel=kernel, seed=0)
    how = "importance" if kernel is None else "chains"
    assert how in draws.method.lower() and draws.x.dtype == torch.float32 and draws.trusted
    ones, pairs = exact(n)
    size = draws.diagnostics.ess_bulk
    for values, truth in (
        (draws.x.sum(-1), ones),
        ((draws.x[:, 1:] * draws.x[:, :-1]).sum(-1), pairs),
    ):
        assert abs(values.mean() - truth) < 4.5 * values.std() / math.sqrt(size)


@pytest.mark.parametrize("method", ["annealed", pytest.param("tempered", marks=pytest.mark.slow)])
def test_bits_are_annealed_and_tempered(method) -> None:
    n = 24
    draws = poe.sample(Chain(n), 2000, method=method, seed=1)
    assert (
        draws.trusted
        and draws.x.dtype == torch.float32
        and bool(((draws.x == 0) | (draws.x == 1)).all())
    )
    ones, pairs = exact(n)
    size = draws.diagnostics.ess_bulk
    for values, truth in (
        (draws.x.sum(-1), ones),
        ((draws.x[:, 1:] * draws.x[:, :-1]).sum(-1), pairs),
    ):
        assert abs(values.mean() - truth) < 4.5 * values.std() / math.sqrt(size)
    if method == "annealed":
        assert (
            draws.log_z is not None
            and draws.diagnostics.gradients == 0
            and draws.diagnostics.energies > 2000
        )
        assert abs(draws.log_z.value - exact_log_z(n)) < 4 * draws.log_z.standard_error


@pytest.mark.parametrize("method", ["annealed", "ais"])
@pytest.mark.parametrize(
    "make",
    [
        lambda: Ising((4, 4), 0.44068679350977147),
        lambda: Ising((10, 10), 0.4, 0.04),
        lambda: Potts((3, 3), 3, 0.7),
        lambda: RBM(torch.randn(12, 6, generator=torch.Generator().manual_seed(0)), 0.3, -0.5),
    ],
    ids=["ising", "field", "potts", "rbm"],
)
def test_log_z_of_a_machine_is_near_the_exact_sum(make, method) -> None:
    energy = make()
    found, truth = poe.log_z(energy, method=method, seed=3, draws=1024), energy.log_z
    assert truth is not None and truth.standard_error == 0
    assert 0 < found.standard_error < 0.1
    assert abs(found.value - truth.value) < 4 * found.standard_error


def test_draws_of_a_machine_are_those_of_its_visible_units() -> None:
    rbm = RBM(
        1.5 * torch.randn(9, 4, generator=torch.Generator().manual_seed(1)),
        -0.5,
        0.2,
        event_shape=(3, 3),
    )
    draws = poe.sample(rbm, 4000, method="annealed", seed=0)
    assert draws.x.shape == (4000, 3, 3) and draws.trusted
    states = points(rbm)
    law = (-rbm(states).double()).softmax(0)
    each = draws.chains.flatten(2).double().mean(1)  # populations are independent
    assert (
        ttest_1samp(each.numpy(), (law @ states.flatten(1).double()).numpy()).pvalue.min()
        > 0.001 / 9
    )


def test_a_space_of_a_million_points_is_listed_in_pieces() -> None:
    draws = poe.sample(Chain(20), 2000, seed=0)
    assert draws.diagnostics.energies == 1 << 20 and draws.log_z is not None
    assert draws.log_z.value == pytest.approx(exact_log_z(20), abs=1e-4)
    ones, _ = exact(20)
    total = draws.x.sum(-1)
    assert abs(total.mean() - ones) < 4.5 * total.std() / math.sqrt(2000)
    with pytest.raises(ValueError, match="cannot be enumerated"):
        poe.sample(Chain(21), 10, method="enumerate")
    assert "fitted to phases" in str(poe.plan(Chain(21)))
    assert "drawn evenly for each site" in str(poe.plan(Chain(200)))


def test_few_particles_of_a_critical_grid_are_no_evidence() -> None:
    with pytest.warns(EstimateWarning, match="rests on"):
        poe.log_z(Ising((6, 6), 0.44), method="annealed", draws=32, seed=0)


QUICK = (strong_rbm, curie_weiss)  # the others are slow


@pytest.mark.parametrize(
    "make",
    [
        make if make.func in QUICK else pytest.param(make, marks=pytest.mark.slow)
        for make in REQUIRED
    ],
    ids=lambda make: f"{make.func.__name__}{make.keywords}",
)
def test_every_phase_has_its_share(make) -> None:
    """Shares within .02 + 3 standard errors at the reported ESS; log Z within .03 + 3 of its
    own."""
    case = make()
    draws = poe.sample(case.energy, 1000, seed=7)
    d = draws.diagnostics
    size = min(d.ess_bulk, d.ess_tail)
    assert draws.trusted and size >= 300
    error = (case.shares * (1 - case.shares) / size).sqrt()
    assert bool(((case.events(draws.x).mean(0) - case.shares).abs() <= 0.02 + 3 * error).all())
    assert draws.log_z is not None
    assert abs(draws.log_z.value - case.log_z) <= 0.03 + 3 * draws.log_z.standard_error
    assert (
        draws.search is not None and draws.search.counted >= 1 and "starts ended" in draws.verdict
    )
