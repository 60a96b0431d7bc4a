"""NormFlow: densities are normflows' own, draws follow them, products agree with quadrature, and
wrong input says what to type."""

from __future__ import annotations

import copy
import math

import normflows as nf
import pytest
import torch

import poe
from experts import Normal
from experts.normflows import KINDS, NormFlow
from poe.algebra.capabilities import Conditional, Transport
from poe.testing import check_expert

SMALL = {"layers": 2, "hidden": 16, "blocks": 1}


def trained(flow, seed: int = 0):
    """As if somebody had trained it: weights away from where they start."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return flow


def masked(base=None, features: int = 2) -> nf.NormalizingFlow:
    """A flow as users of normflows write them."""
    torch.manual_seed(0)
    layers = [
        nf.flows.MaskedAffineFlow(
            torch.tensor([i % 2, 1 - i % 2]).float(), *(nf.nets.MLP([2, 8, 2]) for _ in "st")
        )
        for i in (0, 1)
    ]
    return trained(nf.NormalizingFlow(base or nf.distributions.DiagGaussian(features), layers))


def splines() -> torch.nn.ModuleList:
    torch.manual_seed(0)
    return trained(NormFlow.build(2, kind="rq-coupling", **SMALL)).flows


@pytest.mark.parametrize("kind", KINDS)
def test_laws(kind):
    report = check_expert(
        lambda: trained(poe.create("normflows", kind=kind, event_shape=(2,), **SMALL)), draws=2000
    )
    assert {"draws match the density", "save and load", "gradient", "transport"} <= set(
        report.checked
    )


@pytest.mark.parametrize("kind", ["maf", "rq-coupling"])
def test_conditional_laws(kind):
    def make():
        return trained(
            poe.create("normflows", kind=kind, event_shape=(2,), context_shape=(3,), **SMALL)
        ).given(torch.ones(3))

    assert {"save and load", "transport"} <= set(check_expert(make, draws=2000).checked)


def test_energies_are_minus_the_log_densities_of_normflows():
    flow = masked()
    expert = poe.as_energy(flow)
    assert isinstance(expert, NormFlow)
    x = torch.randn(4, 5, 2)
    assert torch.allclose(expert(x), -flow.log_prob(x.flatten(0, 1)).reshape(4, 5))
    double = poe.as_energy(masked()).double()
    assert double(x.double()).dtype == torch.float64
    z, log_det = double.to_noise(x.double())
    jacobian = torch.autograd.functional.jacobian(lambda x: double.to_noise(x)[0], x[0, 0].double())
    assert torch.allclose(log_det[0, 0], torch.linalg.slogdet(jacobian).logabsdet)
    assert torch.allclose(double.from_noise(z)[0], x.double())


def test_a_base_that_is_no_gaussian_draws_by_itself():
    base = nf.distributions.GaussianMixture(3, 2, loc=[[-2.0, 0.0], [2.0, 0.0], [0.0, 3.0]])
    flow = nf.NormalizingFlow(base, splines())
    with pytest.raises(TypeError, match=r"mixes torch.float32 and torch.float64: call flow.float"):
        poe.as_energy(flow)
    report = check_expert(lambda: poe.as_energy(copy.deepcopy(flow).float()))
    assert "draws match the density" in report.checked
    assert "transport" in report.skipped


def test_a_context_binds():
    encoder = torch.nn.Linear(3, 4)
    layer = nf.flows.MaskedAffineAutoregressive(2, 8, context_features=3, num_blocks=1)
    flow = nf.ConditionalNormalizingFlow(
        nf.distributions.base.ConditionalDiagGaussian(2, encoder), [layer]
    )
    expert = poe.as_energy(trained(flow), context_shape=(3,))
    assert expert.can(Conditional)
    x, c = torch.randn(5, 2), torch.randn(3)
    with pytest.raises(TypeError, match=r"bind a context of shape \(3,\)"):
        expert(x)
    bound = expert.given(c)
    assert bound.can(Transport)
    assert torch.allclose(bound.log_prob(x), flow.log_prob(x, context=c.expand(5, 3)))
    assert torch.allclose(bound.from_noise(bound.to_noise(x)[0])[0], x, atol=1e-4)
    with pytest.raises(ValueError, match=r"one context of shape \(3,\), not \(2,\)"):
        expert.given(torch.zeros(2))
    with pytest.raises(TypeError, match=r"needs context_shape=\.\.\., and \.given"):
        poe.as_energy(flow)


def test_a_class_binds():
    base = nf.distributions.ClassCondDiagGaussian(2, 3)
    flow = nf.ClassCondFlow(base, splines())
    with torch.no_grad():
        base.loc.copy_(torch.randn(2, 3))
    expert = poe.as_energy(flow, context_shape=())
    assert (
        "draws match the density"
        in check_expert(lambda: copy.deepcopy(expert).given(1), draws=2000).checked
    )
    x = torch.randn(5, 2)
    assert torch.allclose(expert.given(1).log_prob(x), flow.log_prob(x, torch.full((5,), 1)))
    assert not torch.allclose(expert.given(1)(x), expert.given(2)(x))
    with pytest.raises(TypeError, match=r"context_shape=\(\)"):
        poe.as_energy(flow)


def test_a_product_of_two_flows_agrees_with_quadrature():
    a, b = (
        poe.as_energy(masked(), bounded=True),
        Normal(torch.tensor([0.5, -0.5]), torch.tensor([0.7, 1.3])),
    )
    axis = torch.linspace(-8, 8, 401, dtype=torch.float64)
    points = torch.cartesian_prod(axis, axis)
    reference = torch.distributions.Normal(
        torch.tensor([0.5, -0.5]).double(), torch.tensor([0.7, 1.3]).double()
    )
    with torch.no_grad():
        mass = (a.flow.log_prob(points.float()).double() + reference.log_prob(points).sum(-1)).exp()
    mean = (mass[:, None] * points).sum(0) / mass.sum()
    draws = poe.sample(a & b, 2000, seed=0)
    assert (
        abs(draws.log_z.value - math.log(float(mass.sum() * (axis[1] - axis[0]) ** 2)))
        < 5 * draws.log_z.standard_error + 1e-3
    )
    assert (
        (draws.x.double().mean(0) - mean).abs()
        < 5 * draws.x.std(0) / draws.diagnostics.ess_bulk**0.5
    ).all()


def test_passes_are_counted():
    passes = {
        kind: poe.create("normflows", kind=kind, event_shape=(4,), **SMALL).passes for kind in KINDS
    }
    # normflows' MAF is fast from noise to x
    assert passes == {"rq-autoregressive": 4, "rq-coupling": 1, "realnvp": 1, "maf": 1}


def test_nonsense_is_refused():
    with pytest.raises(ValueError, match="choose kind= one of rq-autoregressive"):
        poe.create("normflows", kind="glow", event_shape=(2,))
    with pytest.raises(ValueError, match="take no context"):
        poe.create("normflows", kind="realnvp", event_shape=(2,), context_shape=(1,))
    with pytest.raises(ValueError, match="do not fill events"):
        NormFlow(masked(), event_shape=(3,))
    with pytest.raises(TypeError, match="does not evaluate on one point"):
        NormFlow(
            nf.NormalizingFlow(
                nf.distributions.DiagGaussian(2), [nf.flows.Planar((2,), act="tanh")]
            )
        )
    fresh = nf.NormalizingFlow(nf.distributions.DiagGaussian(2), [nf.flows.ActNorm((2,))])
    with pytest.raises(TypeError, match="ActNorm layers flows.0 are not initialised"):
        NormFlow(fresh)
    fresh.log_prob(torch.randn(50, 2))
    assert NormFlow(fresh).sample(3).shape == (3, 2)
    with pytest.raises(TypeError, match=r"works in torch.float32, x is torch.float64"):
        NormFlow(masked())(torch.zeros(2).double())
    with pytest.raises(TypeError, match='poe.create\\("normflows"'):
        NormFlow(masked()).config()
