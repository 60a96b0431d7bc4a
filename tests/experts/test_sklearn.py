"""Models of scikit-learn: energies against their own numbers, draws, products against closed forms
and quadrature."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.calibration import CalibratedClassifierCV
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression, Perceptron
from sklearn.mixture import GaussianMixture
from sklearn.model_selection import GridSearchCV
from sklearn.naive_bayes import GaussianNB
from sklearn.neighbors import KernelDensity as Kde
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import poe
from experts import Normal
from experts.sklearn import KernelDensity, PredictProba
from poe.algebra.capabilities import Conditional, Samples
from poe.testing import check_expert

DATA = np.random.default_rng(0).normal(size=(60, 2)) * [1.0, 0.5] + np.repeat(
    [[-2.0, 0.0], [1.5, 1.0], [0.0, -1.5]], 20, axis=0
)
CLASSES = np.repeat(["left", "right", "low"], 20)
KERNELS = ("gaussian", "exponential", "tophat", "epanechnikov", "linear")


def points(n: int = 40) -> torch.Tensor:
    return torch.randn(n, 2, generator=torch.Generator().manual_seed(1)) * 2


# ---- mixtures of Gaussians


@pytest.mark.parametrize("covariance", ["full", "tied", "diag", "spherical"])
def test_gaussian_mixtures_are_exact(covariance):
    model = GaussianMixture(3, covariance_type=covariance, random_state=0).fit(DATA)
    expert = poe.as_energy(model)
    assert np.allclose(expert(points()).numpy(), -model.score_samples(points().numpy()), atol=1e-4)
    assert expert.log_z.value == pytest.approx(0, abs=1e-6)
    report = check_expert(lambda: poe.create("gaussian-mixture", model=model))
    assert {"draws match the density", "save and load"} <= set(report.checked)


def test_products_of_gaussian_mixtures_have_a_closed_form():
    models = [
        GaussianMixture(k, random_state=0).fit(DATA + shift) for k, shift in ((2, 0.0), (3, 0.5))
    ]
    target = poe.as_energy(models[0]) & poe.as_energy(models[1])
    closed = 0.0  # ∫ N(x; m, A) N(x; n, B) dx = N(m; n, A + B)
    a, b = models
    for w, m, s in zip(a.weights_, a.means_, a.covariances_, strict=True):
        for v, n, t in zip(b.weights_, b.means_, b.covariances_, strict=True):
            closed += w * v * stats.multivariate_normal(n, s + t).pdf(m)
    assert poe.log_z(target).value == pytest.approx(math.log(closed), abs=1e-4)
    assert poe.plan(target).method == "exact"


def test_one_component_is_a_normal():
    assert isinstance(poe.as_energy(GaussianMixture(1).fit(DATA)), Normal)


# ---- kernel densities


@pytest.mark.parametrize("kernel", KERNELS)
def test_kernel_densities_are_those_of_scikit_learn(kernel):
    weights = np.random.default_rng(1).uniform(size=len(DATA))
    for d in (1, 2, 3):
        data = np.concatenate([DATA, DATA[:, :1] ** 2], 1)[:, :d]
        model = Kde(kernel=kernel, bandwidth=0.7).fit(data, sample_weight=weights)
        expert = poe.as_energy(model)
        x = data[:30] + 0.3 * np.random.default_rng(2).normal(size=(30, d))
        x[0] = 50.0
        mine, theirs = -expert(torch.as_tensor(x).float()).numpy(), model.score_samples(x)
        reached = theirs > -1e3
        assert np.allclose(mine[reached], theirs[reached], atol=1e-3)
        assert (
            (mine[~reached] < -1e3).all()
            if kernel in ("gaussian", "exponential")
            else (mine[~reached] == -math.inf).all()
        )


@pytest.mark.parametrize(
    "kernel", [k for k in KERNELS if k != "tophat"]
)  # Stein's identity does not hold across jumps
def test_laws_of_kernel_densities(kernel):
    model = Kde(kernel=kernel, bandwidth="scott").fit(DATA)
    report = check_expert(lambda: poe.as_energy(model))
    assert {"draws", "gradient", "save and load"} <= set(report.checked)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("d", [1, 2, 3])
def test_draws_of_kernels_have_their_radii(kernel, d):
    """Distances to a single point, by Kolmogorov-Smirnov against the radial distribution function;
    15 tests at 1e-6 together."""
    expert = KernelDensity(points=np.zeros((1, d)), bandwidth=2.0, kernel=kernel).double()
    r = expert.sample(20_000, generator=torch.Generator().manual_seed(0)).norm(dim=-1).numpy() / 2
    radial = {
        "gaussian": stats.chi(d).cdf,
        "exponential": stats.gamma(d).cdf,
        "tophat": lambda r: r**d,
        "epanechnikov": lambda r: stats.beta(d / 2, 2).cdf(r**2),
        "linear": stats.beta(d, 2).cdf,
    }
    assert stats.kstest(r, radial[kernel]).pvalue > 1e-6 / 15
    wrong = {**radial, kernel: stats.chi(d + 1).cdf}  # a negative control
    assert stats.kstest(r, wrong[kernel]).pvalue < 1e-6


def test_a_product_of_kernel_densities_agrees_with_quadrature():
    a, b = (poe.as_energy(Kde(bandwidth=0.5).fit(DATA + shift)) for shift in (0.0, 0.4))
    axis = np.linspace(-8, 8, 321)
    nodes = np.stack(np.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 2)
    mass = np.exp(
        sum(Kde(bandwidth=0.5).fit(DATA + shift).score_samples(nodes) for shift in (0.0, 0.4))
    )
    draws = poe.sample(a & b, 2000, seed=0)
    assert (
        abs(draws.log_z.value - math.log(mass.sum() * (axis[1] - axis[0]) ** 2))
        < 5 * draws.log_z.standard_error + 1e-3
    )
    mean = (mass[:, None] * nodes).sum(0) / mass.sum()
    assert (
        np.abs(draws.x.mean(0).numpy() - mean)
        < 5 * draws.x.std(0).numpy() / draws.diagnostics.ess_bulk**0.5
    ).all()


# ---- classifiers


def test_classifiers_are_factors():
    model = LogisticRegression().fit(DATA, CLASSES)
    expert = poe.as_energy(model)
    assert expert.can(Conditional)
    left = expert.given("left")
    assert not left.can(Conditional)
    assert not left.can(Samples)
    assert (
        expert.given(["left"]) is left and str(left & expert.given("left")) == "predictproba ** 2"
    )
    x = points()
    shares = model.predict_proba(x.numpy())
    assert np.allclose(left(x).numpy(), -np.log(shares[:, 0]), atol=1e-5)
    either = PredictProba(model, ["left", "low"])
    assert np.allclose(either(x).numpy(), -np.log(shares[:, [0, 1]].sum(1)), atol=1e-5)
    report = check_expert(lambda: poe.create("sklearn-classifier", model=model, labels="right"))
    assert "kernel=poe.RandomWalk()" in report.skipped["gradient"]


def test_a_prior_times_a_classifier_is_the_conditional_density():
    """Naive Bayes: prior(x) = Σ_c π_c N_c(x) times p(c | x) is π_c N_c(x), whose moments and mass
    are known."""
    model = GaussianNB().fit(DATA, CLASSES)
    parts = [
        Normal(torch.as_tensor(m).float(), torch.as_tensor(v).sqrt().float())
        for m, v in zip(model.theta_, model.var_, strict=True)
    ]
    target = poe.mixture(parts, weights=model.class_prior_.tolist()) & poe.as_energy(model).given(
        "right"
    )
    for options in ({}, {"kernel": poe.RandomWalk()}):
        draws = poe.sample(target, 2000, seed=0, **options)
        error = 5 * np.sqrt(model.var_[2] / draws.diagnostics.ess_bulk)
        assert (np.abs(draws.x.double().mean(0).numpy() - model.theta_[2]) < error).all()
        if draws.log_z is not None:
            assert (
                abs(draws.log_z.value - math.log(model.class_prior_[2]))
                < 5 * draws.log_z.standard_error
            )


def test_zeros_of_a_forest_are_zeros_unless_smoothed():
    forest = RandomForestClassifier(5, random_state=0).fit(DATA, CLASSES)
    x = torch.as_tensor(DATA[:20]).float()
    assert (poe.as_energy(forest).given("right")(x) == math.inf).any()
    smooth = poe.as_energy(forest, smoothing=0.03).given("right")
    assert smooth(x).max().item() == pytest.approx(-math.log(0.01), rel=1e-5)


def test_pipelines_and_searches_are_classifiers():
    pipeline = make_pipeline(StandardScaler(), LogisticRegression()).fit(DATA, CLASSES)
    search = GridSearchCV(LogisticRegression(), {"C": [0.1, 1.0]}, cv=2).fit(DATA, CLASSES)
    for model in (pipeline, search):
        assert poe.as_energy(model, labels="low")(points()).shape == (40,)


def test_nonsense_is_refused():
    fitted = LogisticRegression().fit(DATA, CLASSES)
    with pytest.raises(TypeError, match=r"not fitted: call .fit\(data\)"):
        poe.as_energy(GaussianMixture(2))
    with pytest.raises(TypeError, match=r"not fitted: call .fit\(data\)"):
        poe.as_energy(LogisticRegression())
    with pytest.raises(TypeError, match="CalibratedClassifierCV"):
        poe.as_energy(Perceptron().fit(DATA, CLASSES))
    assert (
        poe.as_energy(CalibratedClassifierCV(Perceptron(), cv=2).fit(DATA, CLASSES), labels="low")(
            points()
        )
        .isfinite()
        .all()
    )
    with pytest.raises(
        ValueError, match=r"knows the classes \['left', 'low', 'right'\], not \['top'\]"
    ):
        poe.as_energy(fitted).given("top")
    with pytest.raises(TypeError, match=r"bind one of .* with .given\(label\)"):
        poe.as_energy(fitted)(points())
    with pytest.raises(ValueError, match="do not fill the 2 features"):
        PredictProba(fitted, "low", event_shape=(3,))
    with pytest.raises(ValueError, match="kernel 'cosine' is not supported"):
        poe.as_energy(Kde(kernel="cosine").fit(DATA))
    with pytest.raises(ValueError, match="only Euclidean distances"):
        poe.as_energy(Kde(metric="manhattan").fit(DATA))
    with pytest.raises(TypeError, match="only pickles hold"):
        PredictProba(fitted, "low").config()
