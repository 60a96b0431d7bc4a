"""Exponential families against scipy, quadrature, enumeration and each other."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy import integrate, stats
from torch import Tensor, nn

import poe
from experts import (
    Bernoulli,
    Beta,
    Categorical,
    Dirichlet,
    Exponential,
    Gamma,
    Normal,
    Poisson,
    VonMises,
)
from poe.testing import check_expert

F64 = torch.float64


def t(*values: float) -> Tensor:
    return torch.tensor(values, dtype=F64)


COVARIANCE = torch.tensor([[2.0, 0.6, 0.1], [0.6, 1.0, -0.3], [0.1, -0.3, 0.5]], dtype=F64)
MAKERS: dict[str, Callable[[], poe.Density]] = {
    "normal": lambda: Normal(0.3, 1.7),
    "normal, diagonal": lambda: Normal(torch.tensor([0.0, -3.0]), torch.tensor([1.0, 0.2])),
    "normal, full": lambda: Normal(torch.tensor([1.0, -1.0, 0.5]), covariance=COVARIANCE.float()),
    "normal, full over a matrix": lambda: Normal(torch.zeros(1, 2), covariance=COVARIANCE[:2, :2]),
    "normal, learnable": lambda: Normal(torch.zeros(2), 1.0, learnable=True),
    "exponential": lambda: Exponential(2.5),
    "exponential, 2": lambda: Exponential(torch.tensor([0.5, 3.0])),
    "gamma": lambda: Gamma(3.0, 0.5),
    "gamma, unbounded": lambda: Gamma(0.6, 2.0),
    "beta": lambda: Beta(2.0, 3.5),
    "beta, unbounded": lambda: Beta(torch.tensor(0.5, dtype=F64), 0.7),
    "dirichlet": lambda: Dirichlet(torch.tensor([1.5, 2.0, 3.0])),
    "bernoulli": lambda: Bernoulli(torch.tensor([0.2, 0.9, 0.5])),
    "categorical": lambda: Categorical(torch.tensor([0.1, -1.0, 2.0, 0.0])),
    "categorical, 2": lambda: Categorical(probs=torch.tensor([[0.2, 0.8, 0.0], [0.3, 0.3, 0.4]])),
    "poisson": lambda: Poisson(3.5),
    "von mises": lambda: VonMises(1.0, 2.0),
    "von mises, flat": lambda: VonMises(0.0, 0.0),
    "von mises, sharp": lambda: VonMises(3.0, 400.0),
}


@pytest.mark.parametrize("name", MAKERS)
def test_laws(name: str) -> None:
    report = check_expert(MAKERS[name])
    assert {"draws", "save and load", "eval mode", "facts"} <= set(report.checked), report


# each expert with the same distribution of scipy, which is written apart from ours
SCIPY: dict[str, tuple[poe.Density, Callable[[np.ndarray], Any], Tensor]] = {
    "normal": (Normal(t(0.3), 1.7), lambda x: stats.norm(0.3, 1.7).logpdf(x), t(-4, 0, 2.5)),
    "exponential": (Exponential(t(2.5)), lambda x: stats.expon(scale=0.4).logpdf(x), t(0, 0.1, 7)),
    "gamma": (Gamma(t(0.6), 2.0), lambda x: stats.gamma(0.6, scale=0.5).logpdf(x), t(1e-8, 0.3, 9)),
    "gamma, one": (
        Gamma(t(1.0), 2.0),
        lambda x: stats.gamma(1.0, scale=0.5).logpdf(x),
        t(0, 0.3, 9),
    ),
    "beta": (Beta(t(0.5), 2.5), lambda x: stats.beta(0.5, 2.5).logpdf(x), t(1e-8, 0.3, 0.999)),
    "beta, flat": (Beta(t(1.0), 1.0), lambda x: stats.beta(1.0, 1.0).logpdf(x), t(0, 0.3, 1)),
    "bernoulli": (Bernoulli(t(0.3)), lambda x: stats.bernoulli(0.3).logpmf(x), t(0, 1)),
    "poisson": (Poisson(t(3.5)), lambda x: stats.poisson(3.5).logpmf(x), t(0, 1, 40)),
    "von mises": (
        VonMises(t(1.0), 3.0),
        lambda x: stats.vonmises(3.0, 1.0).logpdf(x),
        t(-3.1, 0, 1),
    ),
    "von mises, sharp": (
        VonMises(t(1.0), 4e4),
        lambda x: stats.vonmises(4e4, 1.0).logpdf(x),
        t(0.99, 1, 1.02),
    ),
}


@pytest.mark.parametrize("name", SCIPY)
def test_log_prob_is_scipys(name: str) -> None:
    expert, reference, x = SCIPY[name]
    shaped = x.reshape(-1, *expert.event_shape)
    np.testing.assert_allclose(
        -expert(shaped).numpy(),
        np.asarray(reference(x.numpy())).reshape(len(x), -1).sum(-1),
        rtol=1e-10,
        atol=1e-10,
    )


def test_full_normal_and_dirichlet_are_scipys() -> None:
    x = torch.randn(5, 3, dtype=F64)
    expert = Normal(t(1, -1, 0.5), covariance=COVARIANCE)
    reference = stats.multivariate_normal([1, -1, 0.5], COVARIANCE.numpy())
    np.testing.assert_allclose(-expert(x).numpy(), reference.logpdf(x.numpy()), rtol=1e-12)
    simplex = x.softmax(-1)
    dirichlet = Dirichlet(t(0.5, 2, 3))
    np.testing.assert_allclose(
        -dirichlet(simplex).numpy(),
        [stats.dirichlet([0.5, 2, 3]).logpdf(row) for row in simplex.numpy()],
        rtol=1e-10,
    )


@pytest.mark.parametrize("name", MAKERS)
def test_natural_form_is_the_density(name: str) -> None:
    expert = MAKERS[name]().double()
    x = expert.sample(20)
    natural = expert.natural  # type: ignore[attr-defined]
    total = natural.log_base(x) - natural.log_partition
    for eta, statistic in zip(natural.parameters, natural.statistics(x), strict=True):
        terms = torch.where(statistic == 0, 0, eta * statistic)  # an excluded category has η = -inf
        total = total + terms.reshape(20, -1).sum(-1)
    torch.testing.assert_close(total, -expert(x).detach(), rtol=1e-9, atol=1e-9)
    again = type(expert).from_natural(natural.parameters)  # type: ignore[attr-defined]
    torch.testing.assert_close(
        again(x.reshape(20, *again.event_shape)), expert(x).detach(), rtol=1e-9, atol=1e-9
    )


# ---------------------------------------------------------------- closed forms

CONTINUOUS: dict[str, tuple[Callable[[], poe.Energy], tuple[float, float]]] = {
    "normals": (lambda: Normal(t(1.0), 2.0) & Normal(t(-0.5), 0.7), (-20, 20)),
    "normal quotient": (lambda: Normal(t(1.0), 0.5) ** 1.5 / Normal(t(0.0), 1.0) ** 0.3, (-20, 20)),
    "normal power": (lambda: Normal(t(1e4), 0.1) ** 0.2, (1e4 - 5, 1e4 + 5)),
    "exponentials": (lambda: Exponential(t(1.0)) ** 2 & Exponential(t(0.5)), (0, 60)),
    "exponential quotient": (lambda: Exponential(t(2.0)) / Exponential(t(1.5)), (0, 200)),
    "gammas": (lambda: Gamma(t(3.0), 2.0) & Gamma(t(1.5), 0.5) ** 0.5, (0, 60)),
    "gamma and exponential": (
        lambda: Gamma(t(3.0), 2.0) & Exponential(t(0.7)) & Exponential(t(0.1)),
        (0, 60),
    ),
    "gamma over exponential": (lambda: Gamma(t(3.0), 2.0) / Exponential(t(0.7)), (0, 80)),
    "betas": (lambda: Beta(t(2.0), 3.0) & Beta(t(1.5), 0.8), (0, 1)),
    "beta quotient": (lambda: Beta(t(4.0), 3.0) / Beta(t(1.5), 1.8), (0, 1)),
    "beta power 0": (lambda: Beta(t(4.0), 3.0) ** 0, (0, 1)),
    "von mises": (
        lambda: VonMises(t(1.0), 3.0) & VonMises(t(-2.0), 1.0) ** 0.5,
        (-math.pi, math.pi),
    ),
    "inverse von mises": (lambda: ~VonMises(t(1.0), 3.0), (-math.pi, math.pi)),
}


@pytest.mark.parametrize("name", CONTINUOUS)
def test_closed_form_against_quadrature(name: str) -> None:
    make, (low, high) = CONTINUOUS[name]
    energy = make()
    closed = poe.simplify(energy)
    assert energy.log_z is not None
    assert not isinstance(closed, type(energy))
    assert energy.log_z.standard_error == 0
    assert energy.proper is True
    axis = torch.linspace(low, high, 30, dtype=F64)[1:-1].reshape(-1, 1)
    torch.testing.assert_close(closed(axis), energy(axis), rtol=1e-9, atol=1e-8)
    lowest = float(energy(axis).min())  # scaled so that the integrand is of order 1
    mode = float(axis[energy(axis).argmin()])
    f = lambda x: math.exp(lowest - float(energy(t(x))))  # noqa: E731
    mass, error = integrate.quad(f, low, high, points=[mode], limit=400, epsabs=0, epsrel=1e-9)
    assert math.log(mass) - lowest == pytest.approx(energy.log_z.value, abs=1e-6 + error / mass)


DISCRETE: dict[str, tuple[Callable[[], poe.Energy], Tensor]] = {
    "bernoullis": (
        lambda: Bernoulli(t(0.2, 0.6)) ** 2 / Bernoulli(t(0.7, 0.1)),
        torch.cartesian_prod(t(0, 1), t(0, 1)),
    ),
    "categoricals": (
        lambda: Categorical(t(0, 1, 2)) ** 0.5 & Categorical(t(3, 1, -1)),
        torch.arange(3),
    ),
    "excluded": (
        lambda: Categorical(probs=t(0, 0.4, 0.6)) / Categorical(probs=t(0.5, 0.5, 0)),
        torch.arange(3),
    ),
    "poissons": (
        lambda: Poisson(t(3.0)) ** 0.5 & Poisson(t(5.0)) ** 0.5,
        torch.arange(120, dtype=F64)[:, None],
    ),
    "poisson quotient": (
        lambda: Poisson(t(3.0)) & Poisson(t(5.0)) / Poisson(t(2.0)),
        torch.arange(200, dtype=F64)[:, None],
    ),
}


@pytest.mark.parametrize("name", DISCRETE)
def test_closed_form_against_enumeration(name: str) -> None:
    make, states = DISCRETE[name]
    energy = make()
    closed = poe.simplify(energy)
    assert energy.log_z is not None
    assert float(torch.logsumexp(-energy(states), 0)) == pytest.approx(
        energy.log_z.value, abs=1e-10
    )
    torch.testing.assert_close(closed(states), energy(states), rtol=1e-9, atol=1e-9)


def test_two_and_three_dimensions() -> None:
    a, b = Normal(t(1, 0), covariance=COVARIANCE[:2, :2]), Normal(t(-1, 2), t(0.5, 3))
    product = a & b**0.5
    grid, step = torch.linspace(-20, 20, 801, dtype=F64), 0.05
    # trapezoidal rule
    log_mass = torch.logsumexp(-product(torch.cartesian_prod(grid, grid)), 0) + 2 * math.log(step)
    assert product.log_z is not None
    assert float(log_mass) == pytest.approx(product.log_z.value, abs=1e-9)
    simplex = Dirichlet(t(1.5, 2, 3)) & Dirichlet(t(1.2, 1, 2)) ** 0.5
    # u = sin² θ, midpoint rule
    theta, h = ((torch.arange(500, dtype=F64) + 0.5) * math.pi / 1000, math.pi / 1000)
    a, b = torch.cartesian_prod(theta, theta).unbind(-1)
    u, v = a.sin().square(), b.sin().square()
    x = torch.stack([u, (1 - u) * v, (1 - u) * (1 - v)], -1)
    log_jacobian = (1 - u).log() + (2 * a).sin().log() + (2 * b).sin().log()
    log_mass = torch.logsumexp(log_jacobian - simplex(x), 0) + 2 * math.log(h)
    assert simplex.log_z is not None
    assert float(log_mass) == pytest.approx(simplex.log_z.value, abs=1e-5)


def test_ten_dimensional_gaussians_of_the_reference_sheet() -> None:
    # precisions: diagonal logspace(-1, 1, 10), and 2 on the diagonal with 0.9 beside it
    band = 2 * torch.eye(10, dtype=F64) + 0.9 * (
        torch.diag(torch.ones(9, dtype=F64), 1) + torch.diag(torch.ones(9, dtype=F64), -1)
    )
    a = Normal(torch.ones(10, dtype=F64), torch.logspace(-1, 1, 10, dtype=F64).rsqrt())
    b = Normal(torch.full((10,), -0.5, dtype=F64), covariance=torch.linalg.inv(band))
    log_z = (a & b).log_z
    assert log_z is not None
    assert log_z.value == pytest.approx(-24.7404266752, abs=1e-9)


def test_mixtures_of_gaussians_multiply_into_a_mixture_of_gaussians(
    generator: torch.Generator,
) -> None:
    left = poe.mixture([Normal(t(m), 0.5) for m in (-3.0, 0.0, 2.0)], weights=[0.2, 0.5, 0.3])
    right = poe.mixture([Normal(t(m), 1.0) for m in (-2.0, 3.0)], weights=[0.6, 0.4])
    energy = left & right
    closed = poe.simplify(energy)
    assert len(closed.parts) == 6
    assert all(part.can(poe.algebra.capabilities.Samples) for part in closed.parts)  # type: ignore[attr-defined]
    x = torch.linspace(-6, 6, 50, dtype=F64).reshape(-1, 1)
    torch.testing.assert_close(closed(x), energy(x), rtol=1e-10, atol=1e-10)
    mass = integrate.quad(lambda v: math.exp(-float(energy(t(v)))), -12, 12, limit=400)[0]
    assert energy.log_z is not None
    assert energy.log_z.value == pytest.approx(math.log(mass), abs=1e-8)
    draws = closed.sample(4000, generator=generator).flatten()  # type: ignore[operator]
    grid = torch.linspace(-8, 8, 4001, dtype=F64)
    cdf = (-energy(grid.reshape(-1, 1))).softmax(0).cumsum(0)
    assert (
        stats.kstest(draws.numpy(), lambda v: np.interp(v, grid.numpy(), cdf.numpy())).pvalue > 1e-4
    )
    square = poe.simplify((Normal(t(0.0), 1.0) | Normal(t(2.0), 0.5)) ** 2)
    assert len(square.parts) == 3


def test_a_product_with_something_else_merges_what_it_can() -> None:
    other = poe.as_energy(lambda x: x.abs().sum(-1), event_shape=(1,))
    energy = Normal(t(0.0), 1.0) & other & Normal(t(2.0), 1.0)
    closed = poe.simplify(energy)
    x = torch.randn(9, 1, dtype=F64)
    torch.testing.assert_close(closed(x), energy(x))
    assert len(poe.leaves(closed)) == 2
    assert energy.log_z is None


@pytest.mark.parametrize(
    "make",
    [
        lambda: ~Normal(0.0, 1.0),
        lambda: Normal(0.0, 2.0) / Normal(0.0, 1.0),
        lambda: Normal(0.0, 1.0) / Normal(1.0, 1.0),
        lambda: Normal(0.0, 1.0) ** 0,
        lambda: Normal(torch.zeros(3), covariance=COVARIANCE.float()) / Normal(torch.zeros(3), 0.8),
        lambda: Exponential(1.0) / Exponential(1.0),
        lambda: Gamma(1.0, 1.0) / Exponential(2.0),
        lambda: Gamma(0.4, 1.0) ** 2,
        lambda: Gamma(0.5, 1.0) ** 2,
        lambda: Beta(0.5, 1.0) ** 2,
        lambda: ~Beta(2.0, 2.0),
        lambda: ~Dirichlet(torch.tensor([2.0, 1.0])),
        lambda: ~Poisson(2.0),
        lambda: Poisson(2.0) / Poisson(1.0),
        lambda: Categorical(probs=[1.0, 0.0]) & Categorical(probs=[0.0, 1.0]),
    ],
)
def test_divergent_products_are_not_proper(make: Callable[[], poe.Energy]) -> None:
    energy = make()
    assert energy.proper is False
    assert energy.log_z is None


@pytest.mark.parametrize(
    "make",
    [
        lambda: Normal(0.0, 1.0) / Normal(0.0, 2.0),
        lambda: Beta(0.5, 1.0) ** 1.9,
        lambda: Gamma(3.0, 1.0) ** 0.001,
        lambda: Poisson(2.0) ** 2,
        lambda: ~Bernoulli(0.2),
    ],
)
def test_convergent_products_are_proper(make: Callable[[], poe.Energy]) -> None:
    assert make().proper is True


def test_rounding_is_not_taken_for_a_proper_product() -> None:
    a, b = Normal(t(0.0), 0.3), Normal(t(0.0), 0.3)
    almost = a**0.1 & b**0.2 & Normal(t(0.0), 0.3) ** -0.3  # precision 0 up to rounding
    assert almost.proper is not True
    assert almost.log_z is None


def test_an_improper_pair_says_nothing_of_the_whole() -> None:
    well = poe.as_energy(lambda x: (x**4).sum(-1), event_shape=(1,))
    assert (~Normal(t(0.0), 1.0) & well).proper is None
    assert (Exponential(1.0) / Exponential(1.5) & Gamma(2.0, 1.0)).proper is True


def test_a_poisson_power_is_no_poisson() -> None:
    energy = Poisson(t(3.0)) ** 2
    assert energy.log_z is None
    assert poe.simplify(energy) is energy


def test_far_means_lose_no_digits() -> None:
    a, b = Normal(t(1e7), 1e-2), Normal(t(1e7 + 1e-2), 1e-2)
    log_z = (a & b).log_z
    assert log_z is not None
    assert log_z.value == pytest.approx(stats.norm(0, math.sqrt(2e-4)).logpdf(1e-2), abs=1e-6)


def test_precision_and_device_follow_the_experts() -> None:
    closed = poe.simplify(Normal(torch.zeros(2), 1.0) & Normal(torch.ones(2, dtype=F64), 1.0))
    assert closed.dtype == F64
    assert poe.simplify(Normal(0.0, 1.0) ** 2).dtype == torch.float32
    assert (Normal(0.0, 1.0) ** 2).proper is True


# ---------------------------------------------------------------- draws


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize(
    "name", ["gamma", "beta", "tiny beta", "tiny gamma", "tiny dirichlet", "von mises"]
)
def test_draws_are_inside_finite_and_right(
    name: str, dtype: torch.dtype, generator: torch.Generator
) -> None:
    expert: poe.Density = {
        "gamma": lambda: Gamma(3.0, 2.0),
        "beta": lambda: Beta(0.5, 0.5),
        "tiny beta": lambda: Beta(0.01, 0.02),
        "tiny gamma": lambda: Gamma(0.01, 1.0),
        "tiny dirichlet": lambda: Dirichlet(torch.full((4,), 0.01)),
        "von mises": lambda: VonMises(3.0, 0.5),
    }[name]().to(dtype)
    x = expert.sample(20_000, generator=generator)
    assert x.dtype == dtype
    assert bool(expert(x).isfinite().all())
    mean = {
        "gamma": 1.5,
        "beta": 0.5,
        "tiny beta": 1 / 3,
        "tiny gamma": 0.01,
        "tiny dirichlet": 0.25,
    }.get(name)
    if mean is None:  # a von Mises: its mean direction, resultant length I1/I0
        x, mean = (x - 3.0).cos(), float(torch.special.i1(t(0.5)) / torch.special.i0(t(0.5)))
    flat = x.double() if x.ndim == 1 else x.double()[:, 0]
    assert abs(float(flat.mean()) - mean) < 5 * float(flat.std()) / math.sqrt(len(flat))


@pytest.mark.parametrize(("kappa", "loc"), [(1e-8, 0.5), (0.3, -3.0), (7.0, 3.1), (1e6, 1.0)])
def test_von_mises_draws(kappa: float, loc: float, generator: torch.Generator) -> None:
    x = VonMises(t(loc), kappa).sample(5000, generator=generator).flatten()
    centred = torch.remainder(x - loc + math.pi, 2 * math.pi) - math.pi
    assert stats.kstest(centred.numpy(), stats.vonmises(kappa).cdf).pvalue > 1e-4


def test_draws_depend_on_the_generator_alone() -> None:
    for name, make in MAKERS.items():
        expert = make()
        first, second = (
            expert.sample(7, generator=torch.Generator().manual_seed(3)) for _ in range(2)
        )
        assert torch.equal(first, second), name
        assert expert.sample((2, 3)).shape == (2, 3, *expert.event_shape), name


# ---------------------------------------------------------------- parameters


def test_learnable_parameters_learn() -> None:
    expert = Normal(0.0, nn.Parameter(torch.tensor(3.0)))
    assert [key for key, _ in expert.named_parameters()] == ["scale"]
    expert(torch.ones(5)).sum().backward()
    assert expert.scale.grad is not None
    assert float(expert.scale.grad) == pytest.approx(5 * (1 / 3 - 1 / 27))
    assert len(list(Gamma(1.0, 2.0, learnable=True).parameters())) == 2
    assert not list(Gamma(1.0, 2.0).parameters())


def test_bounded_is_exact() -> None:
    assert Beta(1.0, 1.0).bounded is True
    assert Beta(0.5, 1.0).bounded is False
    assert Gamma(0.5, 1.0).bounded is False
    assert Gamma(1.0, 1.0).bounded is True
    assert Dirichlet([0.9, 2.0]).bounded is False


def test_scalars_broadcast() -> None:
    assert Normal(torch.zeros(2, 3), 1.0).event_shape == (2, 3)
    assert Normal(0.0, covariance=COVARIANCE).event_shape == (3,)
    assert Gamma(2.0, torch.ones(4)).event_shape == (4,)
    assert Normal(0, 1).dtype == torch.float32
    assert Normal(np.zeros(2), 1.0).dtype == F64


@pytest.mark.parametrize(
    ("make", "error", "hint"),
    [
        (
            lambda: Normal(0.0, -1.0),
            ValueError,
            "scale = -1: a standard deviation must be positive",
        ),
        (lambda: Normal(0.0), TypeError, "Normal\\(loc, scale\\) is the diagonal one"),
        (lambda: Normal(0.0, 1.0, covariance=torch.eye(1)), TypeError, "one of scale="),
        (lambda: Normal(float("nan"), 1.0), ValueError, "loc = nan: parameters must be finite"),
        (lambda: Normal(torch.zeros(2), torch.ones(3)), ValueError, "loc \\(2,\\), scale \\(3,\\)"),
        (
            lambda: Normal(0.0, covariance=[[1.0, 2.0], [2.0, 1.0]]),
            ValueError,
            "smallest eigenvalue is -1",
        ),
        (
            lambda: Normal(0.0, covariance=[[1.0, 0.5], [0.0, 1.0]]),
            ValueError,
            "\\(C \\+ C.mT\\) / 2",
        ),
        (
            lambda: Normal(torch.zeros(3), covariance=torch.eye(2)),
            ValueError,
            "covariance is 2 x 2",
        ),
        (lambda: Normal(0.0, covariance=torch.ones(2)), ValueError, "square matrix"),
        (
            lambda: Normal(0.0, covariance=nn.Parameter(torch.eye(2))),
            TypeError,
            "through its Cholesky factor",
        ),
        (lambda: Exponential(0.0), ValueError, "rate = 0"),
        (lambda: Gamma(-2.0, 1.0), ValueError, "concentration = -2"),
        (lambda: Beta(1.0, math.inf), ValueError, "b = inf: parameters must be finite"),
        (lambda: Dirichlet([1.0]), ValueError, "two or more categories"),
        (lambda: Bernoulli(1.0), ValueError, "poe.fill"),
        (lambda: Bernoulli(1.5), ValueError, "must lie between 0 and 1"),
        (lambda: Bernoulli(), TypeError, "one of probs= and logits="),
        (
            lambda: Categorical(torch.full((3,), -math.inf)),
            ValueError,
            "in every row one above -inf",
        ),
        (lambda: Categorical(probs=[0.2, -0.1]), ValueError, "probs = -0.1"),
        (lambda: Poisson(-1.0), ValueError, "rate = -1"),
        (lambda: VonMises(0.0, -1.0), ValueError, "concentration of at least 0"),
    ],
)
def test_bad_parameters_are_refused(
    make: Callable[[], Any], error: type[Exception], hint: str
) -> None:
    with pytest.raises(error, match=hint):
        make()


def test_names_and_registry() -> None:
    assert str(Normal(0.0, 1.0, name="prior") & Normal(1.0, 1.0)) == "prior & normal"
    assert isinstance(poe.create("von-mises", loc=0.0, concentration=2.0), VonMises)
    with pytest.raises(ValueError, match="not a precision"):
        Normal.from_config(shapes={"loc": [], "scale": []}, dtype="load")


def test_normals_of_parts_of_an_event_are_one_normal() -> None:
    """Against the precision matrix by hand, and its integral."""
    first = Normal(t(1.0, 2.0, 3.0), covariance=COVARIANCE)
    second, prior = Normal(t(0.0, -1.0), t(0.5, 0.7)), Normal(t(0.3), 5.0)
    parts = [(first, [0, 1, 3], 1.0), (second, [2, 3], 2.0), (prior, [3], -1.0)]
    target = poe.product(
        [poe.on(e, index, (4,)) for e, index, _ in parts], [power for *_, power in parts]
    )
    precision, linear, constant = torch.zeros(4, 4, dtype=F64), torch.zeros(4, dtype=F64), 0.0
    for expert, index, power in parts:
        own, at = torch.linalg.inv(expert.covariance), torch.tensor(index)
        precision[at[:, None], at] += power * own
        linear[at] += power * own @ expert.loc
        constant += (
            power
            * (
                float(expert.loc @ own @ expert.loc)
                - float(own.logdet())
                + len(index) * math.log(2 * math.pi)
            )
            / 2
        )
    mean = torch.linalg.solve(precision, linear)
    log_z = (
        -constant
        + float(mean @ linear) / 2
        - float(precision.logdet()) / 2
        + 2 * math.log(2 * math.pi)
    )
    assert (
        target.proper is True
        and target.log_z is not None
        and target.log_z.value == pytest.approx(log_z, abs=1e-9)
    )
    closed = poe.simplify(target)
    x = torch.randn(50, 4, dtype=F64)
    assert torch.allclose(closed(x), target(x), atol=1e-10)
    draws = poe.sample(target, 20_000, seed=0)
    z = (
        (draws.x.mean(0) - mean)
        / torch.linalg.inv(precision).diagonal().sqrt()
        * math.sqrt(len(draws))
    )
    assert draws.diagnostics.independent and bool((z.abs() < 4.1).all())  # family-wise level 2e-4
    assert (
        poe.on(second, [2, 3], (4,)) & poe.on(prior, [2], (4,))
    ).proper is False  # numbers 0 and 1 are free
