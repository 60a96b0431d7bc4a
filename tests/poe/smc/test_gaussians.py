from __future__ import annotations

import math

import torch
from scipy import stats

from poe.diagnostics.weights import pareto_k
from poe.smc.gaussians import Gaussians, maximised
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
    side = torch.arange(-80, 80, 0.1)  # beyond it lies less than 1e-4 of a t(8) of scale 10
    mass = fit.log_prob(torch.cartesian_prod(side, side)).double().exp().sum() * 0.1**2
    assert abs(mass - 1) < 1e-3


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


def heavy(d: int = 3) -> tuple[Gaussians, list]:
    """Two Student-t and a normal, and the same by scipy."""
    g = torch.Generator().manual_seed(5)
    roots = torch.randn(3, d, d, generator=g, dtype=torch.float64).tril()
    roots.diagonal(dim1=1, dim2=2).abs_().add_(0.5)
    means = 3 * torch.randn(3, d, generator=g, dtype=torch.float64)
    weights = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    freedom = torch.tensor([1.5, 6.0, math.inf], dtype=torch.float64)
    shapes = roots @ roots.mT
    laws = [
        stats.multivariate_t(means[k], shapes[k], df=freedom[k].item())  # a normal at df = inf
        for k in range(3)
    ]
    return Gaussians(weights, means, roots, torch.Size([d]), freedom), laws


def test_student_t_components_have_their_density_and_its_gradient() -> None:
    fit, laws = heavy()
    x = 10 * torch.randn(200, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    truth = sum(
        w * torch.as_tensor(law.pdf(x.numpy()))
        for w, law in zip((0.5, 0.3, 0.2), laws, strict=True)
    )
    assert torch.allclose(fit.log_prob(x).exp(), truth, rtol=1e-10)
    energy, gradient = fit.value_and_grad(x)
    numeric = torch.autograd.functional.jacobian(lambda x: -fit.log_prob(x).sum(), x)
    assert torch.allclose(energy, -truth.log()) and torch.allclose(gradient, numeric, atol=1e-10)


def test_student_t_components_are_drawn_exactly() -> None:
    fit, _ = heavy()
    for k in range(2):
        one = Gaussians(
            torch.ones(1, dtype=torch.float64),
            fit.means[k : k + 1],
            fit.roots[k : k + 1],
            torch.Size([3]),
            fit.freedom[k : k + 1],
        )
        x = one.sample(20_000, generator=torch.Generator().manual_seed(k))
        z = torch.linalg.solve_triangular(fit.roots[k], (x - fit.means[k]).T, upper=False)
        radius = z.square().sum(0) / 3  # of the law F(d, ν)
        nu = fit.freedom[k].item()
        assert stats.kstest(radius, stats.f(3, nu).cdf).pvalue > 1e-4
        assert stats.kstest(radius, stats.f(3, 1.3 * nu).cdf).pvalue < 1e-4


def test_weights_count_as_copies() -> None:
    g = torch.Generator().manual_seed(0)
    x = torch.cat([torch.randn(500, 2, generator=g), 5 + torch.randn(300, 2, generator=g)]).double()
    times = torch.randint(1, 4, (800,), generator=g)
    # from one component there is no choice of centres, so that the same fixed point is reached
    weighed = maximised(x, 1, g, weights=times.double())
    copied = maximised(x.repeat_interleave(times, 0), 1, g)
    assert all(torch.allclose(a, b) for a, b in zip(weighed, copied, strict=True))
    # draws of N(0, 2²) weighed for N(1, 1): the fit is that of N(1, 1)
    x = 2 * torch.randn(20_000, 2, generator=g)
    logs = x.square().sum(-1) / 8 - (x - 1).square().sum(-1) / 2
    fit = Gaussians.fitted(x, g, logs)
    plain = Gaussians.fitted(x, g)
    assert fit is not None and plain is not None
    held = 1 + torch.randn(4000, 2, generator=g)
    entropy = 1 + math.log(2 * math.pi)
    assert float(fit.log_prob(held).mean()) > -entropy - 0.15  # inflation and defence cost .1
    assert float(plain.log_prob(held).mean()) < -entropy - 0.3


def test_tails_of_the_defensive_component_are_no_lighter_than_those_of_the_points() -> None:
    g = torch.Generator().manual_seed(0)
    for nu, d in ((1.0, 2), (2.0, 5), (3.0, 5)):
        law = torch.distributions.Chi2(nu)
        torch.manual_seed(0)
        x = torch.randn(4096, d, generator=g) / (law.sample((4096, 1)) / nu).sqrt()
        fit = Gaussians.fitted(x.double(), g)
        assert fit is not None and 0.5 <= fit.freedom[-1] <= nu
        draws = fit.sample(20_000, generator=g)
        truth = stats.multivariate_t(torch.zeros(d), torch.eye(d), df=nu)
        logs = torch.as_tensor(truth.logpdf(draws.numpy())) - fit.log_prob(draws)
        assert pareto_k(logs) < 0.5  # of bounded weights at most 0, but for its noise
    normal = Gaussians.fitted(torch.randn(4096, 5, generator=g), g)
    assert normal is not None and normal.freedom[-1] > 5
