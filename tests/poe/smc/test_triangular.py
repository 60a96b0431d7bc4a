from __future__ import annotations

import math

import pytest
import torch

from poe.smc.triangular import Triangular, links, scales_first
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
    map = Triangular.fitted(x, order=torch.arange(x.shape[1]).flip(0) if backwards else None)
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


def test_stages_give_what_single_coordinates_give() -> None:
    """The inverse in stages against the definition, coordinate by coordinate, for a map in which
    all depend on all before, and one in which few do."""
    g = torch.Generator().manual_seed(3)
    d = 6
    for share in (1.0, 0.2):
        linear, slope, bend = torch.randn(3, d, d, generator=g, dtype=torch.float64).tril(-1)
        quadratic = 0.2 * torch.randn(d, d, d, generator=g, dtype=torch.float64).tril()
        inside = torch.arange(d)[:, None, None] > torch.arange(d)[:, None]  # i < j
        quadratic = quadratic * inside
        linear, slope, bend, quadratic = (
            part * (torch.rand(part.shape, generator=g) < share)
            for part in (linear, 0.3 * slope, 0.2 * bend, quadratic)
        )
        order = torch.randperm(d, generator=g)
        wide = torch.rand(2, d, generator=g, dtype=torch.float64) + 0.5
        map = Triangular(
            torch.Size([d]),
            order=order,
            centre=wide[0],
            scale=wide[1],
            constant=torch.randn(d, generator=g, dtype=torch.float64),
            linear=linear,
            quadratic=quadratic,
            level=torch.randn(d, generator=g, dtype=torch.float64) / 3,
            slope=slope,
            bend=bend,
        )
        z = torch.randn(50, d, generator=g, dtype=torch.float64)
        u = torch.zeros(50, d, dtype=torch.float64)
        total = wide[1].log().sum().expand(50)
        for j in range(d):
            mean = map.constant[j] + u @ linear[j] + ((u @ quadratic[j]) * u).sum(-1)
            v = map.level[j] + u @ slope[j] + (1 + u.square()).sqrt() @ bend[j]
            log_scale = 30 * (v / 30).tanh()
            u[:, j] = mean + log_scale.exp() * z[:, j]
            total = total + log_scale
        x = torch.empty_like(u)
        x[:, order] = u
        found, log_det = map.from_noise(z)
        assert torch.allclose(found, x * wide[1] + wide[0]) and torch.allclose(log_det, total)
        again, back = map.to_noise(found)
        assert torch.allclose(again, z, atol=1e-6) and torch.allclose(back, -total)


def test_scales_come_first_where_they_are_found() -> None:
    g = torch.Generator().manual_seed(0)
    x = funnel(4000, g)[:, [1, 2, 0, 3]]
    assert scales_first(x)[0] == 2 and float(links(x)[2].max()) > 0.3
    # of independent ones a squared correlation is χ²(1)/n: 30 of them above 20/n have 3e-4
    assert float(links(torch.randn(4000, 6, generator=g)).max()) < 20 / 4000
    assert float(links(torch.ones(50, 3)).max()) == 0
