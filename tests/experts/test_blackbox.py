"""BlackBox: numpy functions as energies, with and without gradients, alone and in products."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats

import poe
from experts import Normal
from experts.blackbox import BlackBox
from poe.algebra import support as sets
from poe.testing import check_expert

COVARIANCE = np.array([[1.0, 0.6], [0.6, 2.0]])
REFERENCE = stats.multivariate_normal([0.5, -1.0], COVARIANCE)


def log_prob(x: np.ndarray) -> np.ndarray:  # (n, 2) -> (n)
    return np.atleast_1d(REFERENCE.logpdf(x))


def slope(x: np.ndarray) -> np.ndarray:  # (n, 2) -> (n, 2)
    return -(x - REFERENCE.mean) @ np.linalg.inv(COVARIANCE)


def with_gradient(**facts) -> BlackBox:
    return BlackBox(log_prob, (2,), gradient=slope, log_z=0.0, bounded=True, **facts)


def test_laws_with_a_gradient():
    report = check_expert(with_gradient)
    assert {"gradient", "value_and_grad", "normalisation"} <= set(report.checked)


def test_laws_without_a_gradient():
    report = check_expert(
        lambda: poe.create("black-box", log_prob=log_prob, event_shape=(2,), log_z=0.0)
    )
    assert "normalisation" in report.checked
    assert "no gradient= was given" in report.skipped["gradient"]


def test_energies_are_minus_the_log_densities_of_scipy():
    x = torch.randn(3, 4, 2)
    assert torch.allclose(
        with_gradient()(x).double(), -torch.as_tensor(REFERENCE.logpdf(x.numpy())), atol=1e-5
    )
    assert with_gradient()(x.double()).dtype == torch.float64
    assert with_gradient()(x[:0]).shape == (0, 4)


def gaussian_product() -> tuple[np.ndarray, np.ndarray]:
    """Moments of the product of the reference and N(1, I), by natural parameters."""
    precision = np.linalg.inv(COVARIANCE) + np.eye(2)
    covariance = np.linalg.inv(precision)
    return covariance @ (np.linalg.inv(COVARIANCE) @ REFERENCE.mean + 1), covariance


@pytest.mark.parametrize("kernel", [poe.RandomWalk(), poe.Hamiltonian()])
def test_products_have_the_closed_form(kernel):
    box = (
        with_gradient()
        if isinstance(kernel, poe.Hamiltonian)
        else BlackBox(log_prob, (2,), log_z=0.0, bounded=True)
    )
    draws = poe.sample(box & Normal(torch.ones(2), torch.ones(2)), 4000, kernel=kernel, seed=0)
    mean, covariance = gaussian_product()
    error = np.sqrt(np.diag(covariance) / draws.diagnostics.ess_bulk)
    assert (np.abs(draws.x.double().mean(0).numpy() - mean) < 5 * error).all()
    assert draws.trusted


def test_without_a_gradient_every_way_to_one_says_so():
    box = BlackBox(log_prob, (2,))
    with pytest.raises(TypeError, match=r"no gradient= was given.*kernel=poe.RandomWalk\(\)"):
        box.value_and_grad(torch.zeros(2))
    target = box & Normal(torch.ones(2), torch.ones(2))
    with pytest.raises(TypeError, match=r"kernel=poe.RandomWalk\(\)"):
        target.value_and_grad(torch.zeros(2))
    x = torch.zeros(2, requires_grad=True)
    # and a graph does not leave its share out
    with pytest.raises(TypeError, match=r"kernel=poe.RandomWalk\(\)"):
        target(x).backward()


def test_the_graph_carries_the_gradient():
    x = torch.randn(5, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(with_gradient(), x)


def test_a_support_shields_the_function():
    def strict(x: np.ndarray) -> np.ndarray:
        assert (x >= 0).all()
        return stats.expon.logpdf(x).sum(-1)

    decay = BlackBox(
        strict, (1,), gradient=lambda x: 0 * x - 1, support=sets.box(0.0, math.inf, (1,)), log_z=0.0
    )
    assert decay(torch.tensor([[-1.0], [2.0]]))[0] == math.inf
    assert "normalisation" in check_expert(lambda: decay).checked


def test_wrong_shapes_are_refused():
    with pytest.raises(
        ValueError,
        match=r"returned shape \(3, 2\) for 3 rows of event shape \(2,\): it must return \(3,\)",
    ):
        BlackBox(lambda x: x, (2,))(torch.zeros(3, 2))
    with pytest.raises(ValueError, match=r"it must return \(3, 2\)"):
        BlackBox(log_prob, (2,), gradient=log_prob).score(torch.zeros(3, 2))
    with pytest.raises(TypeError, match="takes functions of numpy rows"):
        BlackBox(3.0, (2,))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="wraps code"):
        BlackBox(log_prob, (2,)).config()
    with pytest.raises(TypeError, match='poe.create\\("black-box"'):
        poe.as_energy(lambda x: x.numpy().sum(-1), event_shape=(2,))(torch.zeros(3, 2))


def test_jax_functions():
    jax = pytest.importorskip("jax")
    precision = jax.numpy.asarray(np.linalg.inv(COVARIANCE))
    mean = jax.numpy.asarray(REFERENCE.mean)
    quadratic = lambda x: -0.5 * (x - mean) @ precision @ (x - mean)  # noqa: E731
    box = poe.create("jax", log_prob=quadratic, event_shape=(2,), bounded=True)
    x = torch.randn(5, 2)
    assert torch.allclose(box.score(x).double(), torch.as_tensor(slope(x.numpy())), atol=1e-4)
    assert poe.as_energy(jax.jit(quadratic), event_shape=(2,)).score(x).allclose(box.score(x))
    draws = poe.sample(
        box & Normal(torch.ones(2), torch.ones(2)), 2000, kernel=poe.Hamiltonian(), seed=0
    )
    wanted, covariance = gaussian_product()
    error = np.sqrt(np.diag(covariance) / draws.diagnostics.ess_bulk)
    assert (np.abs(draws.x.double().mean(0).numpy() - wanted) < 5 * error).all()
    with pytest.raises(ValueError, match=r"returned shape \(2,\)"):
        poe.create("jax", log_prob=lambda x: x, event_shape=(2,))


def test_without_jax_the_error_names_the_install_line(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "jax", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'product-of-experts\[jax\]'"):
        poe.create("jax", log_prob=log_prob, event_shape=(2,))
