"""Zuko: densities are zuko's own, draws follow them, products agree with quadrature, and wrong
input says what to type."""

from __future__ import annotations

import copy
import math
import subprocess
import sys

import pytest
import torch
import zuko

import poe
from experts import Normal, Zuko
from experts.zuko import KINDS
from poe.algebra.capabilities import Conditional, Transport
from poe.testing import check_expert

SMALL = {"transforms": 2, "hidden_features": (16,)}
BUILT = dict.fromkeys(("bpf", "maf", "ncsf", "nice", "nsf"), SMALL) | {"gmm": {"components": 3}}

SLOW = ("bpf", "ncsf")


def trained(flow, seed: int = 0):
    """As if somebody had trained it: weights away from where they start."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return flow


def box(lower: float, upper: float, n: int = 601) -> tuple[torch.Tensor, float]:
    axis = torch.linspace(lower, upper, n, dtype=torch.float64)
    return torch.cartesian_prod(axis, axis), float(axis[1] - axis[0]) ** 2


@pytest.mark.parametrize(
    "kind", [pytest.param(k, marks=pytest.mark.slow) if k in SLOW else k for k in sorted(BUILT)]
)
def test_laws(kind):
    report = check_expert(
        lambda: trained(poe.create("zuko", kind=kind, event_shape=(2,), **BUILT[kind])), draws=2000
    )
    assert {"draws match the density", "save and load", "gradient"} <= set(report.checked)
    assert ("transport" in report.checked) is (kind not in ("ncsf", "gmm"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_energies_are_minus_the_log_densities_of_zuko(dtype):
    flow = trained(zuko.flows.NSF(3, transforms=2, hidden_features=(16,))).to(dtype)
    expert = poe.as_energy(flow)
    assert isinstance(expert, Zuko)
    x = torch.randn(4, 5, 3, dtype=dtype)
    assert torch.allclose(expert(x), -flow().log_prob(x))
    z, log_det = expert.to_noise(x)
    jacobian = torch.autograd.functional.jacobian(lambda x: expert.to_noise(x)[0], x[0, 0])
    assert torch.allclose(log_det[0, 0], torch.linalg.slogdet(jacobian).logabsdet, atol=1e-4)
    assert torch.allclose(expert.from_noise(z)[0], x, atol=1e-3)
    assert expert.sample((2, 3), generator=torch.Generator().manual_seed(0)).dtype == dtype


def test_a_base_that_is_no_standard_normal_is_standardised():
    base = zuko.lazy.UnconditionalDistribution(
        zuko.distributions.DiagNormal, torch.tensor([1.0, -2.0]), torch.tensor([0.5, 3.0])
    )
    flow = zuko.lazy.Flow(trained(zuko.flows.NICE(2, transforms=2)).transform, base)
    report = check_expert(lambda: poe.as_energy(copy.deepcopy(flow)))
    assert "transport" in report.checked
    swap = zuko.lazy.UnconditionalTransform(
        zuko.transforms.PermutationTransform, torch.tensor([1, 0]), buffer=True
    )
    pure = poe.as_energy(zuko.lazy.Flow(swap, base))
    with torch.no_grad():
        reference = torch.distributions.Normal(torch.tensor([-2.0, 1.0]), torch.tensor([3.0, 0.5]))
        x = torch.randn(5, 2)
        assert torch.allclose(pure.log_prob(x), reference.log_prob(x).sum(-1), atol=1e-5)


def test_a_context_binds():
    flow = trained(zuko.flows.MAF(2, 3, transforms=2, hidden_features=(16,))).double()
    expert = poe.as_energy(flow, context_shape=(3,))
    assert expert.can(Conditional)
    x, c = torch.randn(5, 2).double(), torch.randn(3).double()
    with pytest.raises(TypeError, match=r"bind a context of shape \(3,\)"):
        expert(x)
    bound = expert.given(c)
    assert not bound.can(Conditional)
    assert bound.can(Transport)
    assert torch.allclose(bound.log_prob(x), flow(c).log_prob(x))
    assert not torch.allclose(bound(x), expert.given(-c)(x))
    assert expert.given(c.clone()) is bound and (bound & expert.given(c)).powers == (2.0,)
    target = (expert & Normal(torch.zeros(2).double(), torch.ones(2).double())).given(c)
    assert torch.allclose(
        target(x), -flow(c).log_prob(x) + x.square().sum(-1) / 2 + math.log(2 * math.pi)
    )
    with pytest.raises(ValueError, match=r"one context of shape \(3,\), not \(2,\)"):
        expert.given(torch.zeros(2))
    with pytest.raises(TypeError, match="takes no context"):
        poe.as_energy(zuko.flows.MAF(2)).given(c)
    with pytest.raises(TypeError, match=r"context_shape=\.\.\., and \.given"):
        poe.as_energy(flow)


def test_conditional_laws():
    def make():
        return trained(
            poe.create("zuko", kind="nice", event_shape=(2,), context_shape=(3,), **SMALL)
        ).given(torch.ones(3))

    assert "save and load" in check_expert(make).checked


def test_a_product_of_two_flows_agrees_with_quadrature():
    a, b = (
        trained(poe.create("zuko", kind="nice", event_shape=(2,), **SMALL), seed) for seed in (0, 1)
    )
    target = a & b
    assert target.proper is True
    points, cell = box(-8, 8)
    with torch.no_grad():
        mass = (
            (a.flow().log_prob(points.float()) + b.flow().log_prob(points.float())).exp().double()
        )
    mean = (mass[:, None] * points).sum(0) / mass.sum()
    draws = poe.sample(target, 2000, seed=0)
    assert (
        abs(draws.log_z.value - math.log(float(mass.sum()) * cell))
        < 5 * draws.log_z.standard_error + 1e-3
    )
    error = draws.x.std(0).double() / draws.diagnostics.ess_bulk**0.5
    assert ((draws.x.double().mean(0) - mean).abs() < 5 * error).all()


def test_circles_have_their_support():
    expert = trained(poe.create("zuko", kind="ncsf", event_shape=(2,), **SMALL))
    points, cell = box(-math.pi, math.pi - 2 * math.pi / 201, 201)
    with torch.no_grad():
        assert float(expert.log_prob(points.float()).exp().sum()) * cell == pytest.approx(
            1, abs=5e-3
        )
    assert expert(torch.tensor([4.0, 0.0])).item() == math.inf
    assert not expert.can(Transport)


def test_facts():
    bounded = {
        kind: poe.create("zuko", kind=kind, event_shape=(2,), **BUILT[kind]).bounded
        for kind in BUILT
    }
    assert bounded == {
        "maf": True,
        "nsf": True,
        "nice": True,
        "ncsf": True,
        "bpf": None,
        "gmm": None,
    }
    assert poe.create("zuko", kind="gmm", event_shape=(2,), bounded=True).bounded is True
    assert poe.create("zuko", kind="maf", event_shape=(4,)).passes == 4
    assert poe.create("zuko", kind="nice", event_shape=(4,)).passes == 1
    assert poe.create("zuko", kind="nice", event_shape=(2, 2)).sample(3).shape == (3, 2, 2)
    assert set(BUILT) <= set(KINDS)


def test_nonsense_is_refused():
    with pytest.raises(ValueError, match="choose kind= one of bpf"):
        poe.create("zuko", kind="glow", event_shape=(2,))
    with pytest.raises(TypeError, match="needs event_shape"):
        poe.create("zuko", kind="nsf")
    with pytest.raises(TypeError, match="pass only one of them"):
        Zuko(zuko.flows.NSF(2), kind="nsf")
    with pytest.raises(ValueError, match="do not fill events"):
        Zuko(zuko.flows.NSF(3), event_shape=(2, 2))
    with pytest.raises(TypeError, match="takes a lazy distribution of zuko"):
        Zuko(torch.nn.Linear(2, 2))
    with pytest.raises(TypeError, match=r"works in torch.float32, x is torch.float64"):
        Zuko(zuko.flows.NSF(2))(torch.zeros(2).double())
    with pytest.raises(TypeError, match='poe.create\\("zuko"'):
        Zuko(zuko.flows.NSF(2)).config()
    with pytest.raises(TypeError, match="only estimated, at random"):
        Zuko(zuko.flows.CNF(2, exact=False))


def test_without_the_library_the_error_names_the_install_line():
    """In a process of its own, where the adapters have not been imported yet."""
    code = "\n".join(
        (
            "import sys, poe",
            "for name in ('zuko', 'normflows'):",
            "    sys.modules[name] = None",
            "    try: poe.create(name, event_shape=(2,))",
            "    except ModuleNotFoundError as error: print(error)",
        )
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "pip install 'product-of-experts[zuko]'" in run.stdout
    assert "pip install 'product-of-experts[normflows]'" in run.stdout
