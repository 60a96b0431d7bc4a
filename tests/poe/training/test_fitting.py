from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats import norm

import poe
from poe.testing import check_expert

QUICK = {"layers": 2, "hidden": 16}


def bent(n: int, seed: int) -> torch.Tensor:
    """x0 in (0, 1) of Beta(2, 3), x1 ~ N(3 x0², .2²) and x2 > 0 of Gamma(2): entropies in closed
    form."""
    g = np.random.default_rng(seed)
    first = g.beta(2.0, 3.0, n)
    columns = [first, 3 * first**2 + 0.2 * g.standard_normal(n), g.gamma(2.0, 1.0, n)]
    return torch.as_tensor(np.stack(columns, -1), dtype=torch.float32)


def entropy() -> float:
    from scipy.stats import beta, gamma

    return float(beta(2, 3).entropy() + norm(0, 0.2).entropy() + gamma(2).entropy())


SUPPORT = ([0.0, None, 0.0], [1.0, None, None])


@pytest.fixture(scope="module")
def fitted() -> poe.Energy:
    return poe.fit_density(bent(4000, 0), support=SUPPORT, copies=2, seed=1, name="bent", **QUICK)


def test_flows_come_near_the_entropy_and_beat_a_gaussian(fitted) -> None:
    fit = fitted.parts[0].fit
    assert fit is fitted.parts[1].fit
    assert all(
        -entropy() - 0.25 < nats < -entropy() + 0.15 for nats in fit.copies
    )  # sd of the held-out mean is about 0.06
    assert min(fit.copies) > fit.gaussian + 0.1
    assert "Gaussian mixture" in str(fit) and fit.samples == (4000, 4000)
    fresh = bent(20_000, 5)
    own = torch.stack([-part(fresh) for part in fitted.parts]).mean()
    assert -entropy() - 0.2 < float(own) < -entropy() + 0.03


def test_an_ensemble_is_an_expert_that_is_saved_and_composed(fitted, tmp_path) -> None:
    assert len(fitted.parts) == 2 and str(fitted) == "bent_0 ** 0.5 & bent_1 ** 0.5"
    x = bent(50, 3)
    assert torch.allclose(
        fitted(x), torch.stack([part(x) for part in fitted.parts]).mean(0), atol=1e-5
    )
    assert fitted(torch.tensor([[1.5, 0.0, 1.0], [0.5, 0.0, -1.0]])).isinf().all()
    poe.save(fitted, tmp_path / "bent.safetensors")
    assert torch.equal(poe.load(tmp_path / "bent.safetensors")(x), fitted(x))
    draws = poe.sample(fitted, 1000, seed=0)
    assert draws.trusted and abs(float(draws.x[:, 2].mean()) - 2.0) < 0.25


def test_a_copy_is_a_density_like_any_other(fitted) -> None:
    (copy, _) = fitted.parts
    z, there = copy.to_noise(bent(20, 1))
    x, back = copy.from_noise(z)
    assert torch.allclose(x, bent(20, 1), atol=1e-3) and torch.allclose(there, -back, atol=1e-2)
    check_expert(
        lambda: poe.create(
            "fitted", event_shape=[2], low=[0.0, None], high=[1.0, None], layers=2, hidden=8
        )
    )


def test_weights_count_samples() -> None:
    g = torch.Generator().manual_seed(0)
    x = 2 * torch.randn(6000, 1, generator=g)
    w = (-x.squeeze(1).square() * (1 / 2 - 1 / 8)).exp()  # N(0, 4) to N(0, 1)
    fitted = poe.fit_density(x, w, copies=1, seed=0)
    draws = fitted.sample(20_000, generator=g)
    assert abs(float(draws.std()) - 1) < 0.08 and abs(float(draws.mean())) < 0.08
    assert fitted.fit.samples[1] < 6000  # type: ignore[attr-defined]


@pytest.mark.filterwarnings("ignore:it is unknown whether")  # quotients of learned densities
def test_shards_of_a_posterior_multiply_to_the_whole() -> None:
    """Two experiments with one Gaussian prior, each known by its samples alone, against the closed
    form."""
    g = torch.Generator().manual_seed(2)
    prior_sd, means, sd = 3.0, [0.4, 0.9], 0.8
    posteriors = []
    for k, m in enumerate(means):
        precision = 1 / sd**2 + 1 / prior_sd**2
        x = m / sd**2 / precision + torch.randn(2000, 1, generator=g) / math.sqrt(precision)
        posteriors.append(poe.fit_density(x, copies=1, seed=k, name=f"p{k}"))
    prior = poe.create("normal", loc=torch.zeros(1), scale=torch.full((1,), prior_sd))
    draws = poe.sample(poe.combine(posteriors, prior=prior), 4000, seed=0)
    precision = len(means) / sd**2 + 1 / prior_sd**2
    mean = sum(means) / sd**2 / precision
    assert abs(float(draws.x.mean()) - mean) < 0.15 / math.sqrt(precision) + 0.05
    assert float(draws.x.std()) == pytest.approx(1 / math.sqrt(precision), rel=0.15)


@pytest.mark.parametrize(
    "seed", [0, pytest.param(1, marks=pytest.mark.slow), pytest.param(2, marks=pytest.mark.slow)]
)
def test_a_border_of_one_parameter(seed: int) -> None:
    """|x| of a normal, above 0: what lies below 0.05 is .0399 of it, and of 3,000 samples a share
    with sd .0036."""
    samples = np.abs(np.random.default_rng(seed).normal(size=(3000, 1)))
    expert = poe.fit_density(samples, support=(0, None), copies=1, seed=seed)
    drawn = expert.sample(20_000, generator=torch.Generator().manual_seed(seed))  # type: ignore[operator]
    assert abs(float((drawn < 0.05).double().mean()) - 0.0399) < 4 * 0.0036
    fit = expert.fit  # type: ignore[attr-defined]
    assert fit.copies[0] > max(fit.gaussian, fit.mixture) - 0.01


@pytest.mark.parametrize("scale", [1e-60, 1e30])
def test_weights_count_whatever_their_scale(scale: float) -> None:
    x = torch.randn(300, 1, generator=torch.Generator().manual_seed(0))
    plain, scaled = (
        poe.fit_density(x, w, copies=1, seed=0, **QUICK) for w in (None, np.full(300, scale))
    )
    assert scaled.fit.samples == plain.fit.samples and torch.equal(plain(x), scaled(x))  # type: ignore[attr-defined]


def test_parameters_of_very_different_scales() -> None:
    g = np.random.default_rng(0)
    samples = np.stack([g.normal(2.1e-9, 3e-11, 1000), g.normal(67.0, 0.5, 1000)], -1)
    drawn = poe.fit_density(samples, copies=1, seed=0, **QUICK).sample(4000)  # type: ignore[operator]
    assert drawn.std(0).tolist() == pytest.approx([3e-11, 0.5], rel=0.2)
    assert drawn.mean(0).tolist() == pytest.approx([2.1e-9, 67.0], rel=0.01)
