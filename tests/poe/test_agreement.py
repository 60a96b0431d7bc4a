from __future__ import annotations

import math

import pytest
import torch
from scipy.stats import chi2, kstest, norm
from torch import Tensor

import poe
from experts import Normal
from poe.agreement import agreement
from tests.poe.targets import Raw

F64 = torch.float64


def covariance(d: int, g: torch.Generator) -> Tensor:
    a = torch.randn(d, d, generator=g, dtype=F64)
    return a @ a.T / d + 0.3 * torch.eye(d, dtype=F64)


def normal(mean: Tensor, cov: Tensor, name: str) -> Normal:
    return Normal(mean, scale_tril=torch.linalg.cholesky(cov), name=name)


def pair(d: int, sigmas: float, seed: int) -> poe.Energy:
    """Two correlated Gaussian posteriors that differ by so many sigmas, under a prior that says nothing."""
    g = torch.Generator().manual_seed(seed)
    c, e = covariance(d, g), covariance(d, g)
    direction = torch.randn(d, generator=g, dtype=F64)
    q = chi2.isf(2 * norm.sf(sigmas), d) if sigmas else 0.0
    gap = direction * math.sqrt(q / float(direction @ torch.linalg.solve(c + e, direction)))
    return poe.combine([normal(-gap / 2, c, "a"), normal(gap / 2, e, "b")], prior=Normal(torch.zeros(d, dtype=F64), 1e3))


@pytest.mark.parametrize("d", [2, 5, 20])
@pytest.mark.parametrize("sigmas", [0, 2, 4, 6])
def test_tension_of_gaussians_is_reported_in_sigmas(d: int, sigmas: float) -> None:
    draws = poe.sample(pair(d, sigmas, seed=d), 1000, seed=1)
    assert draws.agreement is not None
    ((i, j, found),) = draws.agreement.tension
    assert (i, j) == (0, 1) and abs(found - sigmas) <= 0.1 * max(sigmas, 1)
    tense = [warning for warning in draws.warnings if "in tension" in warning]
    tails = [warning for warning in draws.warnings if "extrapolated tails" in warning]
    assert bool(tense) == (sigmas >= 4) and bool(tails) == (sigmas >= 4)
    assert draws.trusted == (sigmas < 4)
    assert f"tension        {found:.1f} sigmas between a and b" in draws.report()


def test_tension_under_an_informative_prior_is_a_p_value() -> None:
    """Of experiments that measure the same parameters, p-values are even; without the prior's terms they are not."""
    d, g, found, naive = 3, torch.Generator().manual_seed(0), [], []
    prior = Normal(torch.zeros(d, dtype=F64), 1.0)
    for _ in range(120):
        theta = torch.randn(d, generator=g, dtype=F64)
        posteriors = []
        for name in "ab":
            f = torch.linalg.inv(covariance(d, g))  # precision of the experiment
            c = torch.linalg.inv(f + torch.eye(d, dtype=F64))
            measured = theta + torch.linalg.solve(torch.linalg.cholesky(f).T, torch.randn(d, generator=g, dtype=F64))
            posteriors.append(normal(c @ f @ measured, c, name))
        energy = poe.combine(posteriors, prior=prior)
        known = agreement(energy, posteriors[0].sample(10, generator=g), g)
        assert known is not None
        found.append(2 * norm.sf(known.tension[0][2]))
        a, b = posteriors
        gap = a.loc - b.loc
        naive.append(chi2.sf(float(gap @ torch.linalg.solve(a.covariance + b.covariance, gap)), d))
    assert kstest(found, "uniform").pvalue > 0.001
    assert kstest(naive, "uniform").pvalue < 0.001


@pytest.mark.filterwarnings("ignore:nobody knows whether")  # a quotient of partial densities may have infinite mass
def test_parts_over_some_parameters_count_each_prior_once() -> None:
    first, second, third = Normal([0.0], [2.0]), Normal([0.0], [3.0]), Normal([1.0], [1.0])
    prior = poe.on(first, [0], [3]) & poe.on(second, [1], [3]) & poe.on(third, [2], [3])
    a = Normal([1.0, 0.5], scale_tril=torch.tensor([[1.0, 0.0], [0.3, 0.8]]), name="a")
    b = Normal([0.8, -0.2], scale_tril=torch.tensor([[0.7, 0.0], [0.2, 0.9]]), name="b")
    energy = poe.combine([poe.on(a, [0, 1], [3]), poe.on(b, [1, 2], [3])], prior=prior)
    x = torch.randn(20, 3)
    direct = a(x[:, :2]) + b(x[:, 1:]) - second(x[:, 1:2])
    assert torch.allclose(energy(x) - energy(x[:1]), direct - direct[:1], atol=1e-5)
    draws = poe.sample(energy, 2000, seed=0)
    assert draws.agreement is not None and draws.trusted
    ((_, _, sigmas),) = draws.agreement.tension
    c, d, known = 0.3**2 + 0.8**2, 0.7**2, 1 / 9  # of the shared parameter
    spread = math.sqrt(c + d - 2 * c * known * d)
    assert sigmas == pytest.approx(abs(0.5 - 0.8) / spread, abs=0.1)
    with pytest.raises(ValueError, match="about some parameters of the prior's factor"):
        poe.combine([poe.on(a, [0, 1], [3]), poe.on(b, [1, 2], [3])], prior=Normal(torch.zeros(3), 1.0))


def test_baselines_are_those_of_gaussians() -> None:
    draws = poe.sample(pair(3, 1.0, seed=4), 4000, seed=0)
    assert draws.agreement is not None and set(draws.agreement.baselines) == {
        "Gaussian product",
        "consensus Monte Carlo",
        "reweighting",
    }
    for baseline in draws.agreement.baselines.values():
        assert torch.allclose(torch.tensor(baseline.mean), draws.x.mean(0).double().to(torch.float32), atol=0.1)
        assert torch.allclose(torch.tensor(baseline.sd), draws.x.std(0).double().to(torch.float32), rtol=0.1)


def test_copies_of_an_ensemble_give_an_error_bar() -> None:
    """Copies N(m_k, 1) with m_k of spread s: the mean of the product with N(0, 1) moves by half of what a copy moves."""
    shifts = torch.tensor([-0.3, 0.0, 0.1, 0.2])
    copies = [Normal(shift.reshape(1), torch.ones(1), name=f"copy{k}") for k, shift in enumerate(shifts)]
    posterior, prior = Normal(torch.zeros(1), torch.ones(1)), Normal(torch.zeros(1), torch.tensor([100.0]))
    draws = poe.sample(poe.combine([poe.product(copies, powers=[0.25] * 4), posterior], prior=prior), 20_000, seed=0)
    assert draws.agreement is not None
    (error,) = draws.agreement.ensemble
    assert error == pytest.approx(float((shifts / 2).std()), rel=0.1)


def test_what_cannot_draw_is_said_and_files_keep_the_evidence(tmp_path) -> None:
    a, prior = Normal(torch.zeros(2), 1.0, name="a"), Normal(torch.zeros(2), 50.0)
    energy = poe.combine([a, Raw(lambda x: (x - 0.3).square().sum(-1), name="exact")], prior=prior)
    draws = poe.sample(energy, 500, seed=0)
    assert draws.agreement is not None and draws.agreement.tension == ()
    assert math.isnan(draws.agreement.outside[1]) and "exact: draws no samples: not checked" in draws.report()
    draws.save(tmp_path / "draws")
    again = poe.Draws.load(tmp_path / "draws").agreement
    assert again is not None and str(again) == str(draws.agreement)
    assert poe.sample(a, 100, seed=0).agreement is None


@pytest.mark.filterwarnings("ignore::poe.plan.ImproperWarning")
@pytest.mark.parametrize(("scale", "gap"), [(1.0, 3.0), (5.0, 25.0), (30.0, 150.0)])
def test_tension_where_the_prior_decides(scale: float, gap: float) -> None:
    """Likelihoods N(0, s²) and N(m, s²) differ by m / s√2 sigmas, whatever the prior. Known moments tell it; those of draws do, or say
    that they cannot."""

    class Drawn(poe.Density):
        """Knows no moments."""

        def __init__(self, inner: Normal) -> None:
            super().__init__(inner.event_shape)
            self.inner = inner

        def log_prob(self, x: Tensor) -> Tensor:
            return self.inner.log_prob(x)

        def sample(self, n: int | tuple[int, ...], *, generator: torch.Generator | None = None) -> Tensor:
            return self.inner.sample(n, generator=generator)

    variance = 1 / (1 + scale**-2)
    means = [torch.tensor([variance * m / scale**2], dtype=F64) for m in (0.0, gap)]
    posteriors, prior = [Normal(mean, variance**0.5) for mean in means], Normal(torch.zeros(1, dtype=F64), 1.0)
    known = poe.sample(poe.combine(posteriors, prior=prior), 100, seed=0)
    drawn = poe.sample(poe.combine([Drawn(p) for p in posteriors], prior=Drawn(prior)), 100, seed=0)
    assert known.agreement is not None and drawn.agreement is not None
    exact = gap / scale / 2**0.5
    assert known.agreement.tension[0][2] == pytest.approx(exact, rel=1e-3)
    told = drawn.agreement.tension[0][2]
    assert told == pytest.approx(exact, rel=0.1) if scale == 1 else math.isnan(told)
    assert ("the prior decides" in drawn.report()) == (scale > 1)


def test_far_posteriors_are_a_finite_number_of_sigmas_apart() -> None:
    target = poe.combine([Normal(torch.zeros(1), 0.1), Normal(torch.full((1,), 20.0), 0.1)], prior=Normal(torch.zeros(1), 1e4))
    draws = poe.sample(target, 100, seed=0)
    assert draws.agreement is not None and draws.agreement.tension[0][2] == pytest.approx(20 / 0.1 / 2**0.5, rel=1e-3)


def test_what_was_combined_leaves_its_parts_alone_and_is_saved(tmp_path) -> None:
    a, b, prior = (Normal(torch.full((2,), m), s, name=n) for m, s, n in ((0.0, 1.0, "a"), (5.0, 0.3, "b"), (0.0, 9.0, "prior")))
    assert poe.combine([a, prior], prior=prior) is a and poe.sample(a, 100, seed=0).agreement is None
    both = poe.combine([a & a, b], prior=prior)
    assert both**1 is both
    poe.save(both, tmp_path / "both.safetensors")
    before, after = (poe.sample(e, 500, seed=0) for e in (both, poe.load(tmp_path / "both.safetensors")))
    assert before.agreement is not None and "tension" in before.report() and str(after.agreement) == str(before.agreement)
    assert after.verdict == before.verdict and not after.trusted
