from __future__ import annotations

import math

import pytest
import torch

from poe.smc.triangular import Triangular
from poe.spaces.transport import Transported
from tests.poe.targets import Raw


def funnel(n: int, generator: torch.Generator, d: int = 4) -> torch.Tensor:
    first = 2 * torch.randn(n, 1, generator=generator, dtype=torch.float64)
    return torch.cat(
        [
            first,
            (first / 2).exp() * torch.randn(n, d - 1, generator=generator, dtype=torch.float64),
        ],
        1,
    )


def banana(n: int, generator: torch.Generator) -> torch.Tensor:
    a = torch.randn(n, 1, generator=generator, dtype=torch.float64)
    return torch.cat(
        [a, a**2 + 0.1 * torch.randn(n, 1, generator=generator, dtype=torch.float64)], 1
    )


@pytest.mark.parametrize("make", [funnel, banana])
@pytest.mark.parametrize("backwards", [False, True])
def test_the_inverse_and_the_log_determinant_are_right(make, backwards: bool) -> None:
    g = torch.Generator().manual_seed(0)
    x = make(2000, g)
    map = Triangular.fitted(x, backwards=backwards)
    assert map is not None
    z, log_det = map.to_noise(x[:50])
    again, back = map.from_noise(z)
    assert torch.allclose(again, x[:50], atol=1e-8) and torch.allclose(log_det, -back, atol=1e-10)
    jacobian = torch.func.vmap(torch.func.jacrev(lambda x: map.to_noise(x)[0]))(x[:20])
    assert torch.allclose(torch.linalg.slogdet(jacobian).logabsdet, log_det[:20], atol=1e-8)


@pytest.mark.parametrize("make", [funnel, banana])
def test_what_it_can_express_becomes_a_standard_normal(make) -> None:
    g = torch.Generator().manual_seed(1)
    map = Triangular.fitted(make(20_000, g))
    assert map is not None
    z, _ = map.to_noise(make(20_000, g))
    assert z.mean(0).abs().max() < 0.05
    assert (z.T.cov() - torch.eye(z.shape[1])).abs().max() < 0.1
    # the variance no longer depends on the first coordinate: z2² and z1 are uncorrelated, within 5
    # standard errors
    assert (
        abs(torch.corrcoef(torch.stack([z[:, 0], z[:, 1].square()]))[0, 1])
        < 5 / math.sqrt(20_000) + 0.02
    )


def test_the_energy_in_its_noise_is_the_same_law() -> None:
    g = torch.Generator().manual_seed(2)
    map = Triangular.fitted(banana(4000, g))
    assert map is not None
    energy = Raw(lambda x: x[..., 0] ** 2 / 2 + (x[..., 1] - x[..., 0] ** 2) ** 2 / 0.02)
    moved = Transported(energy, map)
    z = torch.randn(200, 2, generator=g, dtype=torch.float64)
    value, gradient = moved.value_and_grad(z)
    x, log_det = map.from_noise(z)
    assert torch.allclose(value, energy(x) - log_det) and torch.allclose(moved(z), value)
    numeric = torch.autograd.functional.jacobian(lambda z: moved(z).sum(), z)
    assert torch.allclose(gradient, numeric, rtol=1e-6)
    assert torch.allclose(moved.to_z(moved.to_x(z)), z, atol=1e-8)
    # fitted to its own law: the energy is that of a standard normal up to a constant
    gap = value - z.square().sum(-1) / 2
    assert gap.std() < 0.3


def test_too_few_points_are_not_fitted() -> None:
    assert Triangular.fitted(torch.randn(20, 3)) is None
    assert Triangular.fitted(torch.randn(2000, 50)) is None
    assert Triangular.fitted(torch.randn(500)) is not None
