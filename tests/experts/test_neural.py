"""Neural energies: proper by construction, against closed forms and quadrature."""

from __future__ import annotations

import math

import pytest
import torch

import poe
from experts import ConvEnergy, MLPEnergy
from experts.neural import GaussianBase


def test_base_is_the_mixture_of_gaussians():
    base = GaussianBase(3, 2).double()
    weights = torch.tensor([0.3, 0.7]).double()
    means = torch.randn(2, 3, dtype=torch.float64)
    root = torch.randn(2, 3, 3, dtype=torch.float64)
    covariances = root @ root.mT + 0.1 * torch.eye(3, dtype=torch.float64)
    base.set(weights, means, covariances)
    reference = torch.distributions.MixtureSameFamily(
        torch.distributions.Categorical(weights),
        torch.distributions.MultivariateNormal(means, covariances),
    )
    x = 3 * torch.randn(4, 5, 3, dtype=torch.float64)
    assert torch.allclose(-base(x), reference.log_prob(x))
    draws = base.sample(40_000, generator=torch.Generator().manual_seed(0))
    error = draws.std(0) / math.sqrt(len(draws))
    assert ((draws.mean(0) - reference.mean).abs() < 5 * error).all()
    assert torch.allclose(draws.var(0), reference.variance, rtol=0.1)
    with pytest.raises(ValueError, match="has means of shape"):
        base.set(weights, means[:, :2], covariances)


def test_log_z_lies_within_the_limit():
    expert = MLPEnergy((2,), base="normal", limit=1.5, hidden=(16,)).double()
    with torch.no_grad():
        for parameter in expert.net.parameters():
            parameter.mul_(20)
    axis = torch.linspace(-9, 9, 601, dtype=torch.float64)
    z = torch.exp(-expert(torch.cartesian_prod(axis, axis))).sum() * (axis[1] - axis[0]) ** 2
    assert -1.5 <= z.log().item() <= 1.5
    assert abs(z.log().item()) > 0.05  # not a density by accident
    assert expert.proper
    assert expert.bounded
    assert expert.log_z is None


def test_tail_is_the_bases():
    expert = ConvEnergy((4, 4), channels=(4, 8), hidden=8, base=2, limit=3.0).double()
    direction = torch.randn(4, 4, dtype=torch.float64)
    for radius in (1e2, 1e4):
        energy = expert(radius * direction).item()
        assert (
            abs(energy - 0.5 * radius**2 * direction.square().sum().item()) < 3 + 16 * 0.919 + 1e-6
        )


def test_a_bare_network_claims_nothing():
    expert = MLPEnergy((3,), base=None, limit=None)
    assert expert.proper is None
    assert expert.bounded is None
    assert MLPEnergy((3,), base=None, limit=2.0).proper is None
    assert MLPEnergy((3,), base=None, limit=2.0).bounded


@pytest.mark.parametrize(
    "make",
    [
        lambda: MLPEnergy((2, 3), hidden=(8, 8), base=2, activation="elu"),
        lambda: ConvEnergy((4, 4), channels=(4, 8), hidden=8),
        lambda: ConvEnergy(
            (2, 4, 4), channels=(4, 4, 4), hidden=8, base=None, limit=None, activation="softplus"
        ),
    ],
)
def test_shapes_gradient_and_config(make):
    expert = make().double()
    shape = tuple(expert.event_shape)
    x = torch.randn(3, 2, *shape, dtype=torch.float64)
    assert expert(x).shape == (3, 2)
    assert expert(x[:0]).shape == (0, 2)
    assert torch.allclose(expert(x)[1, 1], expert(x[1, 1]))
    assert torch.autograd.gradcheck(expert, x[0].clone().requires_grad_())
    assert torch.autograd.gradgradcheck(expert, x[0, :1].clone().requires_grad_())
    again = type(expert).from_config(**expert.config()).double()
    again.load_state_dict(expert.state_dict())
    assert torch.equal(again(x), expert(x))


def test_nonsense_is_refused():
    with pytest.raises(ValueError, match="do not fit 2 convolutions"):
        ConvEnergy((5, 5))
    with pytest.raises(ValueError, match="no activation"):
        MLPEnergy((2,), activation="relu6")
    with pytest.raises(ValueError, match="number of Gaussians"):
        MLPEnergy((2,), base="cauchy")
    with pytest.raises(ValueError, match="must be positive"):
        poe.create("neural", event_shape=(2,), limit=0.0)
    with pytest.raises(ValueError, match="has no base to fit"):
        MLPEnergy((2,), base=None).fit_base(torch.ones(1), torch.zeros(1, 2), torch.eye(2)[None])
