"""Chains of GetDist: the adapter against `fit_density` on the arrays that made the chain, and a
product against its closed form."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import poe
from experts import Normal

getdist = pytest.importorskip("getdist")


def arrays(n: int) -> tuple[np.ndarray, np.ndarray]:
    """(a, b) and weights: a ~ N(0, 1); b ~ Exp(1), drawn from a wider one."""
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=n), rng.exponential(2.0, n)
    return np.stack([a, b], 1), np.exp(-b / 2)


def chain(n: int):
    x, weights = arrays(n)
    samples = np.concatenate([x, x.sum(1, keepdims=True)], 1)
    return getdist.MCSamples(
        samples=samples, weights=weights, names=["a", "b", "c*"], ranges={"b": (0, None)}
    )


SMALL = {"kind": "realnvp", "layers": 1, "hidden": 8, "copies": 1, "seed": 3}


def test_it_is_the_density_fitted_to_samples_weights_and_ranges():
    (x, weights), at = arrays(150), torch.tensor([[0.3, 1.0], [-1.0, 0.2]])
    expert = poe.as_energy(chain(150), **SMALL)  # the derived parameter is left out
    reference = poe.fit_density(x, weights, support=([-math.inf, 0.0], math.inf), **SMALL)
    assert torch.equal(expert(at), reference(at))
    assert expert(torch.tensor([0.0, -1.0])) == math.inf
    swapped = poe.create("getdist", samples=chain(150), parameters=["b", "a"], **SMALL)
    assert swapped(torch.tensor([-1.0, 0.0])) == math.inf
    with pytest.raises(ValueError, match="parameters a, b, c, not d"):
        poe.as_energy(chain(150), parameters=["d"])


@pytest.mark.slow
def test_a_product_with_a_measurement_has_the_closed_form():
    """N(0, 1) N(1, 1) ∝ N(1/2, 1/2). A mean of effective size n errs by 1/√n; half of that reaches
    the product's."""
    n = 1000
    expert = poe.as_energy(chain(n), parameters=["a"], copies=1)
    draws = poe.sample(expert & Normal(torch.ones(1), torch.ones(1)), 2000, seed=0)
    weights = arrays(n)[1]
    effective = weights.sum() ** 2 / (weights**2).sum()
    error = math.sqrt(0.25 / effective + 0.5 / draws.diagnostics.ess_bulk)
    # and the fit is no better than its smoothing
    assert abs(float(draws.x.mean()) - 0.5) < 5 * error + 0.05
