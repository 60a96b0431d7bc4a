"""MixtureMADE against quadrature, exact triangularity and its own conditionals."""

from __future__ import annotations

import math

import pytest
import torch

import poe
from experts import MixtureMADE
from poe.algebra.capabilities import Samples, Sequential


def made(shape, **arguments):
    torch.manual_seed(1)
    expert = MixtureMADE(shape, **{"components": 3, "hidden": 32, **arguments}).double().eval()
    with torch.no_grad():
        expert.last.weight.mul_(8)  # conditionals that visibly depend on the prefix
    return expert


def grid(low: float, high: float, n: int) -> torch.Tensor:
    return torch.linspace(low, high, n, dtype=torch.float64)


@pytest.mark.parametrize("order", [None, [0, 1], [1, 0]])
def test_integrates_to_one_in_two_dimensions(order):
    expert = made((2,), order=order, min_scale=0.1)
    axis = grid(-7, 7, 561)
    x = torch.cartesian_prod(axis, axis)
    total = expert.log_prob(x).exp().sum() * (axis[1] - axis[0]) ** 2
    assert total.item() == pytest.approx(1, abs=1e-6)


def test_integrates_to_one_in_one_dimension():
    axis = grid(-9, 9, 4001)
    total = made((1,)).log_prob(axis[:, None]).exp().sum() * (axis[1] - axis[0])
    assert total.item() == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_conditionals_depend_on_earlier_positions_alone(layers):
    order = [3, 0, 5, 1, 4, 2]
    expert = made((2, 3), order=order, layers=layers)
    x = torch.randn(6, dtype=torch.float64)

    def parameters(x):
        return torch.stack(expert._conditionals(x), -1).flatten(1)

    jacobian = torch.autograd.functional.jacobian(parameters, x).abs().sum(1)[order][:, order]
    assert (jacobian.triu() == 0).all()
    assert (jacobian[torch.ones(6, 6).tril(-1).bool()] > 0).all()  # and on every one of them


def test_next_logits_multiply_to_the_density():
    expert = made((2, 2), order=[2, 0, 3, 1])
    assert expert.can(Sequential)
    assert expert.can(Samples)
    x = torch.randn(5, 2, 2, dtype=torch.float64)
    values = x.flatten(1)[:, expert.order]
    total = torch.zeros(5, dtype=torch.float64)
    for t in range(4):
        log_weight, mean, scale = expert.next_logits(values[:, :t]).unbind(-2)
        parts = log_weight + torch.distributions.Normal(mean, scale).log_prob(values[:, t, None])
        assert torch.allclose(log_weight.exp().sum(-1), torch.ones(5, dtype=torch.float64))
        total += parts.logsumexp(-1)
    assert torch.allclose(total, expert.log_prob(x))
    with pytest.raises(ValueError, match="no position after the last"):
        expert.next_logits(values)


def test_draws_follow_the_density(generator):
    expert = made((2,), order=[1, 0])
    x = expert.sample(20_000, generator=generator)
    axis = grid(-7, 7, 281)
    points = torch.cartesian_prod(axis, axis)
    weight = expert.log_prob(points).exp() * (axis[1] - axis[0]) ** 2
    mean = (weight[:, None] * points).sum(0)
    second = (weight[:, None] * points**2).sum(0)
    cross = (weight * points.prod(1)).sum()
    for draws, exact in [
        *zip(x.T, mean, strict=True),
        *zip(x.T**2, second, strict=True),
        (x.prod(1), cross),
    ]:
        assert abs(draws.mean() - exact) < 5 * draws.std() / math.sqrt(len(draws))


def test_draws_are_the_generators(generator):
    expert = made((2, 2))
    first = expert.sample((3, 2), generator=generator)
    torch.manual_seed(99)
    again = expert.sample((3, 2), generator=torch.Generator().manual_seed(0))
    assert first.shape == (3, 2, 2, 2)
    assert first.dtype == torch.float64
    assert torch.equal(first, again)


def test_shapes_gradient_and_bound():
    expert = made((2, 2), min_scale=0.5)
    x = torch.randn(3, 1, 2, 2, dtype=torch.float64)
    assert expert(x).shape == (3, 1)
    assert expert(torch.empty(0, 2, 2, dtype=torch.float64)).shape == (0,)
    assert expert(x[0, 0]).shape == ()
    assert torch.autograd.gradcheck(expert, x[0].clone().requires_grad_())
    assert expert(expert.sample(1000)).min() >= 4 * math.log(0.5 * math.sqrt(2 * math.pi))
    assert expert.bounded
    assert expert.proper


def test_config_rebuilds_and_nonsense_is_refused():
    expert = made((2, 2), order=[3, 2, 1, 0], layers=3, dropout=0.2)
    again = poe.create("mixture-made", **expert.config()).double()
    again.load_state_dict(expert.state_dict())
    x = torch.randn(4, 2, 2, dtype=torch.float64)
    assert torch.equal(again.eval()(x), expert(x))
    with pytest.raises(ValueError, match="each of the 4 positions"):
        MixtureMADE((2, 2), order=[0, 1, 1, 2])
    with pytest.raises(ValueError, match="min_scale must be positive"):
        MixtureMADE((2,), min_scale=0.0)


def test_on_a_base_the_untrained_expert_is_the_mixture_itself_and_a_correction_keeps_it_a_density():
    torch.manual_seed(0)
    factors = torch.randn(2, 4, 4, dtype=torch.float64) + 2 * torch.eye(4, dtype=torch.float64)
    covariances = factors @ factors.mT
    means, weights = (
        torch.randn(2, 4, dtype=torch.float64),
        torch.tensor([0.3, 0.7], dtype=torch.float64),
    )
    mixture = torch.distributions.MixtureSameFamily(
        torch.distributions.Categorical(weights),
        torch.distributions.MultivariateNormal(means, covariances),
    )
    expert = (
        MixtureMADE((2, 2), components=2, hidden=16, order=[2, 0, 3, 1], base=True).double().eval()
    )
    expert.fit_base(weights, means, covariances)
    x = torch.randn(50, 2, 2, dtype=torch.float64)
    assert torch.allclose(expert.log_prob(x), mixture.log_prob(x.flatten(1)), atol=1e-10)
    expert = MixtureMADE((2,), components=2, hidden=16, base=True).double().eval()
    expert.fit_base(weights, means[:, :2], covariances[:, :2, :2])
    with torch.no_grad():
        expert.last.weight.normal_(0, 0.3)
    axis = grid(-25, 25, 1001)
    total = expert.log_prob(torch.cartesian_prod(axis, axis)).exp().sum() * (axis[1] - axis[0]) ** 2
    assert total.item() == pytest.approx(1, abs=1e-6)
    jacobian = torch.autograd.functional.jacobian(
        lambda x: torch.stack(expert._conditionals(x), -1).flatten(1), x[0, 0]
    )
    assert (jacobian.abs().sum(1).triu() == 0).all()
    with pytest.raises(ValueError, match="needs base=True"):
        MixtureMADE((2,), components=2).fit_base(weights, means, covariances)
