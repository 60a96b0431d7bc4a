from __future__ import annotations

import itertools
import math
import warnings

import pytest
import torch
from scipy import integrate
from torch.distributions import constraints

import poe
from poe.algebra.energy import Estimate
from poe.algebra.errors import ImproperWarning
from poe.sampling.estimation import EstimateWarning
from tests.poe.targets import Gauss, Raw


def quadratic(sd: float, offset: float, d: int = 2) -> tuple[Raw, float]:
    """An unnormalised normal and its log Z."""
    energy = Raw(lambda x: 0.5 * (x / sd).square().sum(-1) - offset, d=d, name="quadratic")
    return energy, offset + d * (math.log(sd) + 0.5 * math.log(2 * math.pi))


def test_importance_estimates_are_within_their_standard_error() -> None:
    z = []
    for seed in range(100):
        energy, truth = quadratic(0.8, 3.0)
        estimate = poe.log_z(energy, proposal=Gauss(0.2), draws=1000, seed=seed)
        assert estimate.standard_error > 0
        z.append((estimate.value - truth) / estimate.standard_error)
    covered = (torch.tensor(z).abs() < 1.96).float().mean()
    assert 0.88 <= covered <= 1.0  # 95 of 100 expected; 88 or fewer has probability 0.4 %
    assert abs(torch.tensor(z).mean()) < 4.5 / math.sqrt(100)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["annealed", "ais"])
def test_annealing_takes_over_where_weights_are_uneven(method: str) -> None:
    z = []
    for seed in range(10):
        energy, truth = quadratic(0.3, 0.0, d=4)
        estimate = poe.log_z(
            energy, proposal=Gauss(1.0, 1.5, d=4), draws=512, method=method, seed=seed
        )
        assert 0 < estimate.standard_error < 0.5
        z.append((estimate.value - truth) / estimate.standard_error)
    # of student's t on 15 degrees of freedom: 10 values beyond 6 have probability 3e-4, and their
    # mean has sd 1.07 / sqrt(10)
    assert torch.tensor(z).abs().max() < 6
    assert abs(torch.tensor(z).mean()) < 4 * 1.07 / math.sqrt(10)


def test_without_a_proposal_a_start_is_found() -> None:
    energy, truth = quadratic(5.0, -2.0)
    estimate = poe.log_z(energy, seed=0)
    assert abs(estimate.value - truth) < 5 * estimate.standard_error


def test_a_contrast_against_quadrature() -> None:
    a, b = Gauss(0.0, d=1, name="a"), Gauss(1.0, 0.7, d=1, name="b")
    density = lambda x: math.exp(-(a - b)(torch.tensor([[x]], dtype=torch.float64)).item())  # noqa: E731
    truth = math.log(integrate.quad(density, -12, 12)[0])
    estimate = poe.log_z(a - b, seed=0)
    assert abs(estimate.value - truth) < 5 * estimate.standard_error


def test_normalize_keeps_the_standard_error_and_shows_it() -> None:
    energy, truth = quadratic(0.8, 3.0)
    normal = poe.normalize(energy, proposal=Gauss(0.0), seed=0)
    assert normal.log_z is not None and normal.log_z.value == 0 and normal.log_z.standard_error > 0
    x = torch.randn(5, 2)
    assert torch.allclose(normal(x), energy(x) + truth, atol=10 * normal.log_z.standard_error)
    assert "±" in repr(normal) and "log_z=poe.Estimate(0.0, " in str(normal)
    both = poe.mixture([normal, Gauss(1.0)], weights=[0.4, 0.6])
    assert (
        both.log_z is not None
        and abs(both.log_z.standard_error - 0.4 * normal.log_z.standard_error) < 1e-12
    )
    stated = poe.normalize(energy, log_z=Estimate(truth, 0.1))
    assert stated.log_z == Estimate(0.0, 0.1)


def test_where_a_closed_form_knows_nothing_is_estimated() -> None:
    assert poe.log_z(Gauss(0.0) | Gauss(1.0)) == Estimate(math.log(2))
    assert poe.normalize(Gauss(0.0) | Gauss(1.0)).log_z == Estimate(0.0)


def test_what_cannot_be_estimated_is_said() -> None:
    energy, _ = quadratic(1.0, 0.0)
    with pytest.raises(TypeError, match="must draw exact samples and know its log Z"):
        poe.log_z(energy, proposal=energy)
    with pytest.raises(ValueError, match="is improper"):
        poe.log_z(~Gauss(0.0))
    with pytest.raises(ValueError, match="event shape"):
        poe.log_z(energy, proposal=Gauss(0.0, d=3))
    nan = Raw(lambda x: torch.where(x[..., 0] > 0, torch.nan, x.square().sum(-1)), name="nan")
    with pytest.raises(ValueError, match="particles have energy NaN"):
        poe.log_z(nan, proposal=Gauss(0.0))


def test_weights_of_too_heavy_a_tail_are_warned_about() -> None:
    wide, _ = quadratic(30.0, 0.0, d=6)
    with pytest.warns(EstimateWarning, match="rests on few particles"):
        poe.log_z(wide, proposal=Gauss(0.0, 0.05, d=6), method="importance", draws=200, seed=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        poe.log_z(wide, proposal=Gauss(0.0, 35.0, d=6), draws=500, seed=0)


def test_small_discrete_spaces_are_summed() -> None:
    class Spins(poe.Energy):
        def __init__(self) -> None:
            super().__init__((5,), support=constraints.boolean)

        def forward(self, x):
            return (x[..., :-1] * x[..., 1:]).sum(-1) - 0.3 * x.sum(-1)

    states = itertools.product([0.0, 1.0], repeat=5)
    truth = math.log(
        sum(math.exp(0.3 * sum(s) - sum(a * b for a, b in itertools.pairwise(s))) for s in states)
    )
    assert poe.log_z(Spins()).standard_error == 0
    assert abs(poe.log_z(Spins()).value - truth) < 1e-5


def test_exact_draws_of_the_target_bracket_log_z() -> None:
    energy, truth = quadratic(0.3, 2.0, d=4)
    x = 0.3 * torch.randn(1000, 4, generator=torch.Generator().manual_seed(1))
    lower, upper = poe.bracket(energy, x, proposal=Gauss(0.5, 1.0, d=4), seed=0)
    assert (
        lower.value - 4.5 * lower.standard_error < truth < upper.value + 4.5 * upper.standard_error
    )
    assert upper.value - lower.value < 2
    with pytest.raises(ValueError, match="needs a proposal="):
        poe.bracket(energy, x)


@pytest.mark.parametrize("method", [None, "annealed"])
def test_constrained_supports_have_a_log_z(method: str | None) -> None:
    class Gamma(poe.Density):
        """Gamma(shape, 1) on one positive number."""

        def __init__(self, shape: float) -> None:
            super().__init__((1,), support=constraints.positive)
            self.shape = shape

        def log_prob(self, x):
            return ((self.shape - 1) * x.log() - x - math.lgamma(self.shape)).sum(-1)

        def sample(self, n, *, generator=None):
            shape = (n,) if isinstance(n, int) else tuple(n)
            return torch._standard_gamma(torch.full((*shape, 1), self.shape), generator=generator)

    a, b = Gamma(3.0), Gamma(2.0)
    density = lambda x: math.exp(-(a - b)(torch.tensor([[x]], dtype=torch.float64)).item())  # noqa: E731
    truth = math.log(integrate.quad(density, 0, 60)[0])
    estimate = poe.log_z(a - b, method=method, seed=0)
    assert abs(estimate.value - truth) < 5 * estimate.standard_error < 0.2
    drawn = poe.sample(a - b, 500, method=method, seed=0).log_z
    assert drawn is not None and abs(drawn.value - truth) < 5 * drawn.standard_error < 0.5


def test_few_populations_have_wider_errors() -> None:
    from poe.smc.resampling import estimate as pooled

    g, covered = torch.Generator().manual_seed(0), 0
    for _ in range(2000):
        ratio = pooled(0.1 * torch.randn(3, generator=g, dtype=torch.float64))
        covered += (
            abs(ratio.value - 0.005) < 1.96 * ratio.standard_error
        )  # E exp(0.1 ξ) = exp(0.005)
    assert abs(covered / 2000 - 0.95) < 4.5 * math.sqrt(0.95 * 0.05 / 2000) + 0.01


def test_an_integral_that_may_be_infinite_is_warned_of():
    energy = Raw(lambda x: x.square().sum(-1), proper=None, name="unknown")
    for call in (poe.log_z, poe.normalize):
        with pytest.warns(ImproperWarning, match="it is unknown whether .* has finite mass"):
            call(energy, seed=0)


def test_an_integral_that_is_infinite_is_refused():
    """p_1 p_2 / p_0 of heavy tails over a normal grows without bound, far out."""
    heavy = [
        poe.as_energy(torch.distributions.StudentT(torch.tensor([3.0]), place, 1.0))
        for place in (-1.0, 1.0)
    ]
    energy = poe.combine(heavy, prior=poe.create("normal", loc=[0.0], scale=[5.0]))
    for call in (poe.log_z, poe.normalize):
        with pytest.raises(ValueError, match="it seems improper"):
            call(energy, seed=0)


def test_a_normalised_part_prints_as_what_it_is():
    """`a | b` would be another density."""
    a, b = Raw(lambda x: x.square().sum(-1), name="a"), Gauss(0.0)
    mixed = poe.normalize(a, log_z=Estimate(1.0, 0.1)) | b
    assert str(mixed) == "poe.shift(a, 1.0, log_z=poe.Estimate(0.0, 0.1)) | gauss"
    x = torch.randn(5, 2)
    assert torch.equal(poe.parse(str(mixed), {"a": a, "gauss": b})(x), mixed(x))


def test_the_target_of_a_composition_is_itself():
    a, b = Gauss(0.0), Gauss(1.0)
    known = poe.normalize(a & b, log_z=Estimate(1.0, 0.1))
    for energy in (known, a & b, a | b, a - b, poe.mixture([a, b], [0.3, 0.7])):
        assert energy.at(0) is energy
