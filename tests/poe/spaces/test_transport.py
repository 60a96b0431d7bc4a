from __future__ import annotations

import math

import pytest
import torch
from torch.distributions import (
    Beta,
    Dirichlet,
    Gamma,
    TransformedDistribution,
    biject_to,
    constraints,
)

import poe
from poe import ImproperWarning
from poe.spaces.transport import Unconstrained


class Wrapped(poe.Energy):
    """A torch distribution as an energy, for tests."""

    def __init__(
        self, distribution: torch.distributions.Distribution, support: constraints.Constraint
    ) -> None:
        super().__init__(distribution.batch_shape + distribution.event_shape, support=support)
        self.distribution = distribution

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logs = self.distribution.log_prob(x)
        return -(logs if not self.distribution.batch_shape else logs.sum(-1))


CASES = {
    "positive": (Gamma(torch.tensor([2.0, 3.5]), torch.tensor([1.0, 0.5])), constraints.positive),
    "unit interval": (
        Beta(torch.tensor([2.0, 0.7]), torch.tensor([1.5, 3.0])),
        constraints.unit_interval,
    ),
    "simplex": (Dirichlet(torch.tensor([2.0, 0.8, 3.0])), constraints.simplex),
}


@pytest.mark.parametrize("name", list(CASES))
def test_the_density_in_the_reals_is_that_of_torch_with_its_jacobian(name: str) -> None:
    distribution, support = CASES[name]
    energy = Unconstrained(Wrapped(distribution, support))
    z = torch.randn(40, *energy.event_shape, dtype=torch.float64)
    expected = TransformedDistribution(
        distribution, biject_to(distribution.support).inv, validate_args=False
    )
    logs = expected.log_prob(z)
    assert torch.allclose(-energy(z), logs if logs.ndim == 1 else logs.sum(-1), atol=1e-6)
    value, gradient = energy.value_and_grad(z)
    free = z.clone().requires_grad_()
    (by_autograd,) = torch.autograd.grad(energy(free).sum(), free)
    assert torch.allclose(value, energy(z)) and torch.allclose(gradient, by_autograd, atol=1e-6)
    assert torch.allclose(energy.to_z(energy.to_x(z)), z, atol=1e-5)


def test_a_preimage_is_moved_in_as_it_is() -> None:
    # a Beta(2, 2) of the sigmoid, without its Jacobian: 6 s (1 - s), 6 times the standard logistic
    energy = Wrapped(Beta(torch.tensor([2.0]), 2.0), constraints.unit_interval) @ torch.sigmoid
    with pytest.warns(ImproperWarning):
        draws = poe.sample(energy, 4000, seed=0)
    ess = draws.diagnostics.ess_bulk
    assert "TRUSTED" in draws.verdict and ess > 1000
    cdf = torch.sigmoid(draws.x).flatten().double().sort().values  # uniform
    assert (
        float((cdf - (torch.arange(4000) + 0.5) / 4000).abs().max()) < 2.23 / ess**0.5
    )  # Kolmogorov, p = 1e-4
    with pytest.warns(ImproperWarning):
        found = poe.log_z(energy, seed=0)
    assert abs(found.value - math.log(6)) < 5 * found.standard_error


def test_part_of_an_event_on_a_simplex_is_refused_by_name() -> None:
    shares = Wrapped(Dirichlet(torch.tensor([2.0, 0.8, 3.0])), constraints.simplex)
    shares.name = "shares"
    energy = poe.on(shares, [0, 1, 2], (4,))
    for call in (poe.sample, poe.log_z, poe.mode):
        with pytest.raises(
            ValueError,
            match=r"^poe.on\(shares, \[0, 1, 2\], \(4,\)\) cannot be drawn: no map .* Simplex",
        ):
            call(energy)
    assert "plan         none: poe.on(shares" in repr(energy)
