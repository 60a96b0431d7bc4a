from __future__ import annotations

import math

import torch
from scipy import integrate

from poe.smc.gaussians import Gaussians
from tests.poe.targets import ks_pvalue


def grid(n: int, generator: torch.Generator) -> torch.Tensor:
    centres = torch.cartesian_prod(torch.tensor([-5.0, 5.0]), torch.tensor([-5.0, 0.0, 5.0]))
    return centres[torch.randint(6, (n,), generator=generator)] + 0.4 * torch.randn(
        n, 2, generator=generator
    )


def test_a_fit_finds_the_modes_and_is_normalised() -> None:
    g = torch.Generator().manual_seed(0)
    fit = Gaussians.fitted(grid(2000, g), g)
    assert fit is not None
    held = grid(4000, g)
    truth = (
        -math.log(6) - 2 * math.log(0.4) - math.log(2 * math.pi) - 1
    )  # minus the entropy of the grid, whose modes do not overlap
    assert (
        float(fit.log_prob(held).mean()) > truth - 0.25
    )  # a tenth of the mass is wide, and variances are 1.3 times larger
    density = lambda y, x: math.exp(fit.log_prob(torch.tensor([x, y])).item())  # noqa: E731
    assert abs(integrate.dblquad(density, -20, 20, -20, 20, epsabs=1e-3)[0] - 1) < 1e-2


def test_draws_have_the_density() -> None:
    g = torch.Generator().manual_seed(1)
    fit = Gaussians.fitted(torch.randn(500, 3, generator=g) * torch.tensor([1.0, 5.0, 0.1]), g)
    assert fit is not None
    # importance weights against another sampler of the same law: E[q/p] = 1 for draws of p
    x = fit.sample(20_000, generator=g)
    normal = torch.distributions.Normal(torch.zeros(3), torch.tensor([1.0, 5.0, 0.1]) * 0.8)
    ratio = (normal.log_prob(x).sum(-1) - fit.log_prob(x)).exp()
    assert abs(ratio.mean() - 1) < 4.5 * ratio.std() / math.sqrt(20_000)
    assert ks_pvalue(x, fit.sample((2, 10_000), generator=g).flatten(0, 1)) > 1e-4


def test_too_many_dimensions_or_too_few_points_are_not_fitted() -> None:
    g = torch.Generator().manual_seed(0)
    assert Gaussians.fitted(torch.randn(2000, 60, generator=g), g) is None
    assert Gaussians.fitted(torch.randn(50, 3, generator=g), g) is None
    scalar = Gaussians.fitted(torch.randn(2000, generator=g), g)
    assert scalar is not None and scalar.sample(5, generator=g).shape == (5,)
