"""Any torch distribution as a density: checked against torch itself, and against the laws of
experts."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import distributions as td
from torch import nn

import poe
from experts import Distribution, Normal
from poe.algebra import support as sets
from poe.testing import check_expert

MAKERS: dict[str, Callable[[], td.Distribution]] = {
    "Bernoulli": lambda: td.Bernoulli(torch.tensor([0.2, 0.6])),
    "Beta": lambda: td.Beta(torch.tensor(2.0), torch.tensor(3.0)),
    "Binomial": lambda: td.Binomial(5, logits=torch.tensor([0.3, -1.0])),
    "Categorical": lambda: td.Categorical(logits=torch.tensor([0.3, -1.0, 0.0])),
    "Cauchy": lambda: td.Cauchy(torch.tensor([0.0, 1.0]), 1.0),
    "Chi2": lambda: td.Chi2(torch.tensor(3.0)),
    "Dirichlet": lambda: td.Dirichlet(torch.tensor([1.5, 2.0, 3.0])),
    "Exponential": lambda: td.Exponential(torch.tensor(2.0)),
    "Gamma": lambda: td.Gamma(torch.tensor(2.0), torch.tensor(3.0)),
    "Geometric": lambda: td.Geometric(torch.tensor(0.4)),
    "Gumbel": lambda: td.Gumbel(0.0, 1.0),
    "HalfNormal": lambda: td.HalfNormal(torch.tensor(2.0)),
    "InverseGamma": lambda: td.InverseGamma(torch.tensor(3.0), torch.tensor(1.0)),
    "Laplace": lambda: td.Laplace(torch.zeros(2), 1.0),
    "LogNormal": lambda: td.LogNormal(torch.tensor(0.0), 0.5),
    "LowRankMultivariateNormal": lambda: td.LowRankMultivariateNormal(
        torch.zeros(3), torch.ones(3, 1), torch.ones(3)
    ),
    "MultivariateNormal": lambda: td.MultivariateNormal(
        torch.zeros(2), torch.tensor([[1.0, 0.5], [0.5, 1.0]])
    ),
    "NegativeBinomial": lambda: td.NegativeBinomial(torch.tensor(3.0), torch.tensor(0.4)),
    "Normal": lambda: td.Normal(torch.zeros(2), 1.0),
    "Poisson": lambda: td.Poisson(torch.tensor(3.0)),
    "StudentT": lambda: td.StudentT(torch.tensor(4.0)),
    "Uniform": lambda: td.Uniform(torch.tensor([0.0, -1.0]), torch.tensor([2.0, 1.0])),
    "Weibull": lambda: td.Weibull(torch.tensor(1.0), torch.tensor(2.0)),
    "Independent": lambda: td.Independent(td.Normal(torch.zeros(2, 2), 1.0), 1),
    "MixtureSameFamily": lambda: td.MixtureSameFamily(
        td.Categorical(torch.tensor([0.3, 0.7])),
        td.Normal(torch.tensor([-2.0, 1.0]), torch.tensor([1.0, 0.5])),
    ),
    "MixtureSameFamily of Gammas": lambda: td.MixtureSameFamily(
        td.Categorical(torch.tensor([0.3, 0.7])),
        td.Gamma(torch.tensor([2.0, 3.0]), torch.tensor([1.0, 0.5])),
    ),
}


@pytest.mark.parametrize("name", MAKERS)
def test_laws(name: str) -> None:
    report = check_expert(lambda: Distribution(MAKERS[name]()), draws=2000)
    assert {"draws", "save and load"} <= set(report.checked), report


@pytest.mark.parametrize("name", MAKERS)
def test_log_prob_is_torchs(name: str) -> None:
    reference = MAKERS[name]()
    expert = Distribution(MAKERS[name]())
    x = reference.sample((6,))
    logs = reference.log_prob(x)
    assert expert.event_shape == reference.batch_shape + reference.event_shape
    torch.testing.assert_close(-expert(x), logs.reshape(6, -1).sum(-1))
    assert expert.log_z == (0.0, 0.0)


def test_batch_axes_become_coordinates() -> None:
    expert = Distribution(td.Normal(torch.zeros(2, 3), 1.0))
    assert expert.event_shape == (2, 3)
    assert expert.sample((4, 5)).shape == (4, 5, 2, 3)
    assert sets.is_real(expert.support)


@pytest.mark.parametrize(
    ("dist", "points"),
    [
        (td.LogNormal(0.0, 1.0), [-1.0, 0.0, float("inf"), float("nan")]),
        (td.Gamma(2.0, 1.0), [-1.0, float("nan")]),
        (td.Uniform(0.0, 1.0), [-0.1, 1.1, float("nan")]),
        (td.Beta(2.0, 2.0), [-0.1, 1.5, float("nan")]),
        (td.Poisson(2.0), [-1.0, 0.5, float("nan")]),
        (td.Pareto(2.0, 1.0), [1.0, -3.0]),
        (td.Dirichlet(torch.ones(2)), [[0.3, 0.3], [-0.5, 1.5]]),
    ],
)
def test_outside_the_support_the_energy_is_infinite_and_nothing_is_nan(
    dist: td.Distribution, points: list
) -> None:
    expert = Distribution(dist)
    x = torch.tensor(points)
    assert torch.equal(expert(x), torch.full((len(x),), float("inf")))
    energy, gradient = expert.value_and_grad(x)
    assert torch.equal(energy, expert(x))
    assert torch.equal(gradient, torch.zeros_like(x))


def test_a_uniform_has_gradient_0() -> None:
    uniform = Distribution(td.Uniform(torch.zeros(2), torch.ones(2)))
    energy, gradient = uniform.value_and_grad(torch.tensor([[0.5, 0.2], [2.0, 0.0]]))
    assert energy.tolist() == [0.0, float("inf")]
    assert gradient.tolist() == [[0.0, 0.0], [0.0, 0.0]]
    half = uniform & Normal(torch.zeros(2), 1.0)
    assert torch.equal(half.score(torch.tensor([0.5, 0.2])), torch.tensor([-0.5, -0.2]))


def test_a_discrete_one_that_torch_cannot_differentiate_says_so() -> None:
    with pytest.raises(TypeError, match="kernel that needs none"):
        Distribution(td.OneHotCategorical(torch.ones(3))).value_and_grad(torch.eye(3))


def test_draws_leave_the_global_randomness_alone(generator: torch.Generator) -> None:
    expert = Distribution(td.Gamma(torch.tensor(2.0), 1.0))
    torch.manual_seed(1)
    first = expert.sample(5, generator=generator)
    after = torch.rand(())
    torch.manual_seed(1)
    assert torch.equal(after, torch.rand(()))
    assert not torch.equal(first, expert.sample(5, generator=generator))
    assert torch.equal(first, expert.sample(5, generator=torch.Generator().manual_seed(0)))


def test_parameters_move_and_load() -> None:
    expert = Distribution(td.MultivariateNormal(torch.zeros(2), torch.eye(2)))
    expert(torch.zeros(2))  # the distribution is built once, and again after a move
    expert.double()
    assert expert(torch.zeros(2, dtype=torch.float64)).dtype == torch.float64
    assert expert.sample(3).dtype == torch.float64
    other = Distribution(td.MultivariateNormal(torch.ones(2), 2 * torch.eye(2))).double()
    expert.load_state_dict(other.state_dict())
    x = torch.randn(4, 2, dtype=torch.float64)
    assert torch.equal(expert(x), other(x))


def test_parameters_learn() -> None:
    loc = nn.Parameter(torch.tensor(0.0))
    expert = Distribution(td.Normal(loc, 1.0))
    if not list(expert.parameters()):
        pytest.skip("torch broadcasts the parameter away")
    optimiser = torch.optim.SGD(expert.parameters(), lr=0.5)
    for _ in range(20):
        optimiser.zero_grad()
        expert(torch.tensor([2.0, 4.0])).mean().backward()
        optimiser.step()
    assert loc.item() == pytest.approx(3.0, abs=1e-4)


@pytest.mark.parametrize(
    ("dist", "bounded"),
    [
        (td.Cauchy(0.0, 1.0), True),
        (td.Gamma(0.5, 1.0), False),
        (td.Gamma(1.5, 1.0), True),
        (td.Beta(0.5, 2.0), False),
        (td.Independent(td.Beta(torch.ones(2), 2.0), 1), True),
        (td.Poisson(2.0), True),
        (td.LKJCholesky(3), None),
        (td.TransformedDistribution(td.Normal(0.0, 1.0), [td.TanhTransform()]), None),
    ],
)
def test_bounded_where_known(dist: td.Distribution, bounded: bool | None) -> None:
    assert Distribution(dist).bounded is bounded


def test_cauchy_powers() -> None:
    cauchy = Distribution(td.Cauchy(0.0, 1.0))
    assert (cauchy**0.5).proper is not True
    assert (cauchy**2).proper is True
    assert (~cauchy).proper is False
    assert (cauchy**0.5 & Distribution(td.Cauchy(1.0, 1.0)) ** 0.5).proper is True


def test_transformed_distributions_work_but_are_not_saved() -> None:
    dist = td.TransformedDistribution(td.Normal(torch.zeros(2), 1.0), [td.ExpTransform()])
    expert = Distribution(dist, name="warped")
    x = dist.sample((3,))
    torch.testing.assert_close(-expert(x), dist.log_prob(x).sum(-1))
    with pytest.raises(TypeError, match="a file cannot hold it: build it from those types"):
        expert.config()


def test_config_is_json_and_keeps_the_support() -> None:
    expert = Distribution(td.Uniform(torch.tensor([0.1, -1.0]), torch.tensor([0.3, 7.5])))
    config = json.loads(json.dumps(expert.config()))
    again = Distribution.from_config(**config)
    again.load_state_dict(expert.state_dict())
    x = torch.tensor([[0.2, 7.0], [0.4, 0.0], [0.1, 7.5]])
    assert torch.equal(again(x), expert(x))


@pytest.mark.parametrize(
    ("spec", "hint"),
    [
        (
            {"type": "os.system", "arguments": {}},
            "not a distribution of torch.distributions that a file may name",
        ),
        ({"type": "TransformedDistribution", "arguments": {}}, "may name"),
        ({"type": "biject_to", "arguments": {}}, "may name"),
        ({"type": ["Normal"], "arguments": {}}, "may name"),
        ("Normal", "may name"),
        (
            {"type": "Normal", "arguments": {"validate_args": True}},
            "takes no argument 'validate_args'",
        ),
        (
            {"type": "Normal", "arguments": {"loc": {"shape": [1], "dtype": "load"}}},
            "needs a shape and a dtype",
        ),
        (
            {
                "type": "Independent",
                "arguments": {"base_distribution": {"type": "eval", "arguments": {}}},
            },
            "'eval' is no",
        ),
    ],
)
def test_a_file_names_public_types_only(spec: Any, hint: str) -> None:
    with pytest.raises(ValueError, match=hint):
        Distribution.from_config(spec=spec)


def test_as_energy_takes_torch_distributions() -> None:
    expert = poe.as_energy(td.Laplace(0.0, 1.0))
    assert isinstance(expert, Distribution)
    assert str(expert) == "distribution"
    with pytest.raises(TypeError, match="takes a torch.distributions.Distribution, not float"):
        Distribution(1.0)  # type: ignore[arg-type]


def test_a_von_mises_law_is_that_of_one_period() -> None:
    """times a wide normal, against quadrature over [-π, π]; over all reals a periodic density has
    no mass"""
    circle = poe.as_energy(td.VonMises(torch.tensor([0.0]), 1.0))
    assert (
        repr(circle.support) == "interval[-3.14159, 3.14159](1,)"
        and circle(torch.tensor([4.0])) == math.inf
    )
    target = circle & Normal([1.0], [4.0])
    grid = torch.linspace(-math.pi, math.pi, 20_001, dtype=torch.float64)
    logs = -target(grid[:, None].float()).double()
    weights, log_z = logs.softmax(0), float(logs.logsumexp(0) + (grid[1] - grid[0]).log())
    mean = float(weights @ grid)
    sd = float(weights @ (grid - mean).square()) ** 0.5
    for method in (None, "chains"):
        draws = poe.sample(target, 4000, seed=0, method=method)
        assert abs(float(draws.x.mean()) - mean) < 5 * sd / draws.diagnostics.ess_bulk**0.5
        assert float(draws.x.std()) == pytest.approx(sd, rel=0.06)
    found = poe.log_z(target, seed=0)
    assert abs(found.value - log_z) < 5 * found.standard_error + 1e-4
