"""`poe.sample(e)` without options on some of the posteriors of `tests/benchmarks/posteriors.py`,
against the reference draws of posteriordb. The benchmark `tests/benchmarks/bench_posteriordb.py`
has all fifteen, and more seeds."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal, norm

import poe
from tests.benchmarks.posteriors import Posterior, data, errors, posteriors

ALL = {posterior.name: posterior for posterior in posteriors()}
DRAWN = (
    "eight_schools-eight_schools_noncentered",  # a hierarchy, as factors
    "kilpisjarvi_mod-kilpisjarvi",  # a correlation of .9999
    "gp_pois_regr-gp_regr",  # three positive parameters, in one function
    "sblri-blr",  # posterior sds of .001 and .07
)


@pytest.mark.slow
@pytest.mark.parametrize("name", DRAWN)
def test_draws_have_the_moments_of_the_reference(name: str) -> None:
    draws = poe.sample(ALL[name].make(), 1000, seed=1)
    found = errors(ALL[name], draws)
    assert draws.trusted, draws.verdict
    assert found.right, str(found)
    # a control: half of a standard deviation off, at some 1,000 effective draws, is found
    moved = replace(draws, chains=draws.chains + draws.x.std(0) / 2)
    assert not errors(ALL[name], moved).right


def test_all_fifteen_are_finite_where_the_reference_lies() -> None:
    assert len(ALL) == 15
    for posterior in ALL.values():
        target = posterior.make()
        assert target.proper is True and target.bounded is not False, posterior.name
        x = inside(posterior)
        value, gradient = target.value_and_grad(x.expand(3, -1))
        assert bool(value.isfinite().all() and gradient.isfinite().all()), posterior.name
        assert len(posterior.reference()) == posterior.values(x).shape[-1], posterior.name


def inside(posterior: Posterior) -> torch.Tensor:  # -> (d)
    """The reference's mean where the target is about these parameters, else a plain point."""
    (d,) = posterior.make().event_shape
    x = torch.tensor([mean for mean, _ in posterior.reference().values()])[:d]
    same = len(x) == d and torch.equal(posterior.quantities(x), x)
    return x if same else torch.full((d,), 0.3)


def test_the_recursion_of_the_variance_is_that_of_a_loop() -> None:
    given, y = data("garch"), np.array(data("garch")["y"])

    def by_loop(mu: float, alpha0: float, alpha1: float, share: float) -> float:
        sigma, total = given["sigma1"], 0.0
        for t in range(len(y)):
            if t:
                square = alpha1 * (y[t - 1] - mu) ** 2 + share * (1 - alpha1) * sigma**2
                sigma = math.sqrt(alpha0 + square)
            total -= norm.logpdf(y[t], mu, sigma)
        return total - math.log(1 - alpha1)

    points = [(5.0, 1.5, 0.55, 0.6), (4.8, 0.9, 0.2, 0.3)]
    energy = ALL["garch-garch11"].make()(torch.tensor(points))
    assert float(energy[0] - energy[1]) == pytest.approx(
        by_loop(*points[0]) - by_loop(*points[1]), abs=1e-3
    )


def test_the_noise_of_the_process_is_a_variance() -> None:
    at, y = (np.array(data("gp_pois_regr")[key], dtype=float) for key in ("x", "y"))

    def by_scipy(rho: float, alpha: float, sigma: float) -> float:
        near = alpha**2 * np.exp(-((at[:, None] - at) ** 2) / (2 * rho**2))
        prior = norm.logpdf(alpha, 0, 2) + norm.logpdf(sigma, 0, 1) + 24 * math.log(rho) - 4 * rho
        return -prior - multivariate_normal(cov=near + sigma * np.eye(len(at))).logpdf(y)

    points = [(6.0, 2.0, 1.5), (7.5, 1.2, 0.7)]
    energy = ALL["gp_pois_regr-gp_regr"].make()(torch.tensor(points))
    assert float(energy[0] - energy[1]) == pytest.approx(
        by_scipy(*points[0]) - by_scipy(*points[1]), abs=1e-4
    )
