"""Estimators of sbi: energies against sbi's own numbers, draws, the prior counted once, and a
product against quadrature."""

from __future__ import annotations

import copy
import math

import pytest
import torch

import poe
from experts.sbi import Likelihood, Posterior, Ratio
from poe.algebra.capabilities import Conditional, Samples
from poe.testing import check_expert

pytest.importorskip("sbi")
from sbi.inference import (
    DirectPosterior,
    EnsemblePosterior,
    MCMCPosterior,
    likelihood_estimator_based_potential,
    ratio_estimator_based_potential,
)
from sbi.neural_nets import classifier_nn, likelihood_nn, posterior_nn
from sbi.utils import BoxUniform

BOX = BoxUniform(-2 * torch.ones(2), 2 * torch.ones(2))
NORMAL = torch.distributions.MultivariateNormal(torch.zeros(2), torch.eye(2))
OBSERVED = torch.tensor([0.5, -0.3, 0.2])


def simulations(prior) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    theta = prior.sample((300,))
    return theta, torch.cat([theta, theta[:, :1] * theta[:, 1:]], 1) + 0.5 * torch.randn(300, 3)


def estimator(kind: str, model: str = "maf", prior=BOX):
    """Not trained: where it starts is a density like any other."""
    theta, x = simulations(prior)
    match kind:
        case "posterior":
            return posterior_nn(model, hidden_features=8, num_transforms=2)(theta, x)
        case "likelihood":
            return likelihood_nn(model, hidden_features=8, num_transforms=2)(theta, x)
        case _:
            return classifier_nn("mlp", hidden_features=8)(theta, x)


def potential_of(kind: str):
    if kind == "likelihood":
        return likelihood_estimator_based_potential(estimator(kind), BOX, OBSERVED[None])
    return ratio_estimator_based_potential(estimator(kind), BOX, OBSERVED[None])


@pytest.mark.parametrize("model", ["maf", "nsf", "zuko_nsf", "mdn"])
def test_posteriors_are_those_of_sbi(model):
    posterior = DirectPosterior(estimator("posterior", model), BOX)
    expert = poe.as_energy(posterior)
    assert isinstance(expert, Posterior)
    assert expert.can(Conditional)
    assert not expert.can(Samples)
    bound = expert.given(OBSERVED)
    assert expert.given(OBSERVED.tolist()) is bound and expert.given(OBSERVED + 1) is not bound
    theta = torch.rand(4, 5, 2) * 6 - 3
    theirs = posterior.log_prob(theta.flatten(0, 1), x=OBSERVED, norm_posterior=False).reshape(4, 5)
    assert theirs.isinf().any()
    assert torch.allclose(bound(theta), -theirs, atol=1e-5)
    posterior.set_default_x(OBSERVED)
    assert torch.equal(poe.as_energy(posterior)(theta), bound(theta))


@pytest.mark.parametrize("prior", [BOX, NORMAL])
def test_laws_of_posteriors(prior):
    net = estimator("posterior", prior=prior)
    report = check_expert(
        lambda: poe.as_energy(DirectPosterior(copy.deepcopy(net), prior)).given(OBSERVED),
        draws=2000,
    )
    assert {"draws match the density", "gradient", "normalisation"} <= set(report.checked)
    exact = poe.create("sbi-posterior", estimator=net, context=OBSERVED).log_z
    assert exact.value == exact.standard_error == 0.0


@pytest.mark.parametrize("kind", ["likelihood", "ratio"])
def test_potentials_are_those_of_sbi(kind):
    potential, transform = potential_of(kind)
    target = poe.as_energy(potential)
    theta = torch.rand(7, 2) * 4 - 2
    assert torch.allclose(target(theta), -potential(theta), atol=1e-5)
    assert target(torch.tensor([3.0, 0.0])) == math.inf
    posterior = MCMCPosterior(potential, BOX, transform)
    assert torch.allclose(poe.as_energy(posterior)(theta), target(theta))
    trials = OBSERVED + torch.randn(4, 3)
    potential.set_x(trials, x_is_iid=True)
    assert torch.allclose(poe.as_energy(potential)(theta), -potential(theta), atol=1e-4)


@pytest.mark.parametrize(("kind", "expert"), [("likelihood", Likelihood), ("ratio", Ratio)])
def test_laws_of_factors(kind, expert):
    net = estimator(kind)
    report = check_expert(
        lambda: poe.create(f"sbi-{kind}", estimator=copy.deepcopy(net), context=OBSERVED)
    )
    assert "gradient" in report.checked
    assert not expert(net, OBSERVED).can(Samples)


def test_the_prior_counts_once():
    """Likelihoods of two observations and one prior, against the potential of both as trials."""
    net = estimator("likelihood")
    both = torch.stack([OBSERVED, OBSERVED + 0.3])
    one, two = (
        poe.create("sbi-likelihood", estimator=net, context=x, support=BOX.support) for x in both
    )
    potential, _ = likelihood_estimator_based_potential(net, BOX, both)
    theta = torch.rand(7, 2) * 4 - 2
    target = one & two & poe.as_energy(BOX)
    assert target.proper is True
    assert torch.allclose(target(theta), -potential(theta), atol=1e-4)


@pytest.mark.slow
def test_a_product_agrees_with_quadrature():
    net = estimator("posterior")
    parts = [poe.as_energy(DirectPosterior(net, BOX)).given(x) for x in (OBSERVED, OBSERVED + 0.5)]
    target = poe.combine(parts, prior=poe.as_energy(BOX))
    axis = torch.linspace(-2, 2, 402)[:-1] + 2 / 401
    nodes = torch.cartesian_prod(axis, axis)
    with torch.no_grad():
        logs = sum(
            net.log_prob(nodes[:, None], condition=x[None])[:, 0]
            for x in (OBSERVED, OBSERVED + 0.5)
        ) + math.log(16)
    mass = logs.double().exp()
    assert target.proper is True  # a uniform prior is divided out
    draws = poe.sample(target, 2000, seed=0)
    assert draws.trusted and not draws.conditions
    error = 5 * draws.x.std(0) / draws.diagnostics.ess_bulk**0.5 + 1e-3
    assert ((draws.x.mean(0) - (mass[:, None] * nodes).sum(0) / mass.sum()).abs() < error).all()
    wanted = math.log(float(mass.sum()) * (4 / 401) ** 2)
    assert abs(draws.log_z.value - wanted) < 5 * draws.log_z.standard_error + 2e-3


def test_nonsense_is_refused():
    posterior = DirectPosterior(estimator("posterior"), BOX)
    expert = poe.as_energy(posterior)
    with pytest.raises(TypeError, match=r"bind an observation of shape \(3,\) with .given\(x\)"):
        expert(torch.zeros(2))
    with pytest.raises(
        ValueError,
        match=r"observation of shape \(3,\) \(a network trained on single observations.*not \(2,\)",
    ):
        expert.given(torch.zeros(2))
    with pytest.raises(ValueError, match="takes no trials"):
        expert.given(torch.zeros(4, 3))
    with pytest.raises(TypeError, match=r"works in torch.float32, x is torch.float64"):
        expert.given(OBSERVED)(torch.zeros(2).double())
    with pytest.raises(TypeError, match="has neither a posterior"):
        poe.as_energy(EnsemblePosterior([posterior, posterior]))
    far = poe.algebra.support.box(50.0, 51.0, (2,))
    with pytest.raises(ValueError, match="lies in the support of its prior"):
        Posterior(estimator("posterior"), OBSERVED, support=far)
    with pytest.raises(TypeError, match="no plain description"):
        expert.config()
