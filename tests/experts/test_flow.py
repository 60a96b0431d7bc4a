"""Flow: each trap of nflows has a test, and the densities have outside references."""

from __future__ import annotations

import copy
import math
import pickle

import pytest
import torch
from nflows.distributions.normal import ConditionalDiagonalNormal, DiagonalNormal, StandardNormal
from nflows.flows import MaskedAutoregressiveFlow, SimpleRealNVP
from nflows.flows.base import Flow as Nflow
from nflows.nn.nets.resnet import ResidualNet
from nflows.transforms.autoregressive import MaskedAffineAutoregressiveTransform
from nflows.transforms.base import CompositeTransform, InverseTransform
from nflows.transforms.coupling import AffineCouplingTransform
from nflows.transforms.linear import NaiveLinear
from nflows.transforms.lu import LULinear
from nflows.transforms.normalization import ActNorm, BatchNorm
from nflows.transforms.standard import PointwiseAffineTransform
from torch import nn

import poe
from experts import Flow
from experts.couplings import KINDS
from poe.algebra.capabilities import Conditional, Samples, Transport


def built(kind: str = "realnvp", shape=(2, 2), **arguments) -> Flow:
    torch.manual_seed(0)
    flow = poe.create(
        "flow", kind=kind, event_shape=shape, **{"layers": 3, "hidden": 8, **arguments}
    )
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return flow.double()


def affine(scale: float = 2.0, shift: float = 1.0, features: int = 3, base=None) -> Nflow:
    transform = PointwiseAffineTransform(shift=torch.tensor(shift), scale=torch.tensor(scale))
    return Nflow(CompositeTransform([transform]), base or StandardNormal([features]))


@pytest.mark.parametrize("kind", KINDS)
def test_density_is_the_change_of_variables(kind):
    flow = built(kind)
    x = torch.randn(2, 2, dtype=torch.float64)
    z, log_det = flow.to_noise(x)
    jacobian = torch.autograd.functional.jacobian(lambda x: flow.to_noise(x)[0], x).reshape(4, 4)
    assert torch.allclose(log_det, torch.linalg.slogdet(jacobian).logabsdet)
    assert torch.allclose(
        flow.log_prob(x), log_det - 0.5 * z.square().sum() - 2 * math.log(2 * math.pi)
    )
    again, inverse = flow.from_noise(z)
    assert torch.allclose(again, x, atol=1e-6)
    assert torch.allclose(inverse, -log_det, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_integrates_to_one(kind):
    flow = built(kind, shape=(2,), layers=1)
    axis = torch.linspace(-30, 30, 501, dtype=torch.float64)
    with torch.no_grad():
        total = (
            flow.log_prob(torch.cartesian_prod(axis, axis)).exp().sum() * (axis[1] - axis[0]) ** 2
        )
    assert total.item() == pytest.approx(1, abs=2e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_any_batch_axes_and_none(kind):
    flow = built(kind)
    x = torch.randn(3, 2, 2, 2, dtype=torch.float64)
    assert torch.allclose(flow(x).flatten(), flow(x.reshape(6, 2, 2)))
    assert flow(x[0, 0]).shape == ()
    for empty in (x[:0], x[:, :0]):
        assert flow(empty).shape == empty.shape[:2]
        assert flow.to_noise(empty)[0].shape == empty.shape
        assert flow.from_noise(empty)[1].shape == empty.shape[:2]
    assert flow.sample(0).shape == (0, 2, 2)
    assert flow.sample((2, 3)).shape == (2, 3, 2, 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_generator_decides_the_draws_in_every_precision(dtype):
    flow = built().to(dtype)
    first = flow.sample(5, generator=torch.Generator().manual_seed(3))
    state = torch.get_rng_state()
    again = flow.sample(5, generator=torch.Generator().manual_seed(3))
    assert first.dtype == dtype
    assert torch.equal(first, again)
    assert torch.equal(torch.get_rng_state(), state)


def test_draws_follow_the_density():
    flow = Flow(affine()).double()
    x = flow.sample(50_000, generator=torch.Generator().manual_seed(0))  # z = 2x + 1
    assert ((x.mean(0) + 0.5).abs() < 5 * 0.5 / len(x) ** 0.5).all()
    assert ((x.var(0) - 0.25).abs() < 5 * 0.25 * (2 / len(x)) ** 0.5).all()
    reference = torch.distributions.Normal(torch.tensor(-0.5).double(), 0.5)
    assert torch.allclose(flow.log_prob(x), reference.log_prob(x).sum(-1), atol=1e-5)


class Wide(StandardNormal):
    """A base with a law of its own: N(0, 4)."""

    def _log_prob(self, inputs, context):
        return super()._log_prob(inputs / 2, context) - 3 * math.log(2)

    def _sample(self, num_samples, context):
        return 2 * super()._sample(num_samples, context)


def test_a_base_without_draws_says_so():
    with pytest.raises(TypeError, match="DiagonalNormal as its base, which draws no samples"):
        Flow(affine(base=DiagonalNormal([3]))).sample(2)


def test_another_base_falls_back_to_its_own_draws():
    flow = Flow(affine(base=Wide([3]))).double()
    assert flow.can(Samples)
    assert not flow.can(Transport)
    with pytest.raises(TypeError, match="not known to be a diagonal Gaussian"):
        flow.to_noise(torch.zeros(3))
    state = torch.get_rng_state()
    first = flow.sample(4, generator=torch.Generator().manual_seed(1))
    assert torch.equal(torch.get_rng_state(), state)
    assert first.dtype == torch.float64
    assert torch.equal(first, flow.sample(4, generator=torch.Generator().manual_seed(1)))
    x = flow.sample(20_000, generator=torch.Generator().manual_seed(1))
    assert ((x.var(0) - 1).abs() < 5 * (2 / len(x)) ** 0.5).all()
    assert built().can(Transport)


def test_linear_caches_do_not_go_stale():
    flow = Flow(Nflow(CompositeTransform([LULinear(3, using_cache=True)]), StandardNormal([3])))
    x = torch.randn(4, 3)
    before = flow(x)
    state = {key: value + 0.5 for key, value in flow.state_dict().items()}
    flow.load_state_dict(state)
    reference = Nflow(CompositeTransform([LULinear(3)]), StandardNormal([3]))
    reference.load_state_dict({key.removeprefix("flow."): value for key, value in state.items()})
    assert torch.allclose(flow(x), -reference.log_prob(x))
    assert not torch.allclose(flow(x), before)
    assert flow.double()(x.double()).dtype == torch.float64
    assert flow.sample(3).shape == (3, 3)  # and solves without a deprecation warning


def test_naive_linear_inverts():
    flow = Flow(
        Nflow(
            CompositeTransform([NaiveLinear(3, orthogonal_initialization=False)]),
            StandardNormal([3]),
        )
    ).double()
    x = torch.randn(4, 3, dtype=torch.float64)
    z, log_det = flow.to_noise(x)
    again, inverse = copy.deepcopy(flow).from_noise(z)
    assert torch.allclose(again, x)
    assert torch.allclose(inverse, -log_det)


@pytest.mark.parametrize("layer", [BatchNorm, ActNorm])
def test_a_parents_train_does_not_change_the_density(layer):
    flow = Flow(Nflow(CompositeTransform([layer(3)]), StandardNormal([3])))
    x = torch.randn(16, 3) * 3 + 1
    before, state = flow(x), copy.deepcopy(flow.state_dict())
    parent = nn.Sequential(flow).train()
    assert parent.training
    assert torch.equal(flow(x), before)
    assert torch.equal(flow(x[:3]), before[:3])
    assert all(torch.equal(state[key], value) for key, value in flow.state_dict().items())
    with flow.training_mode() as trained:
        trained(x)
    assert not flow.flow.training
    assert any(not torch.equal(state[key], value) for key, value in flow.state_dict().items())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_bad_row_is_nan_and_leaves_the_others_alone(kind, bad):
    flow = built(kind)
    x = torch.randn(3, 2, 2, dtype=torch.float64)
    clean = flow(x)
    x[1, 0, 1] = bad
    energy = flow(x)
    assert energy[1].isnan()
    assert torch.equal(energy[[0, 2]], clean[[0, 2]])
    gradient = flow.value_and_grad(x)[1]
    assert gradient[[0, 2]].isfinite().all()


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_and_files(kind, tmp_path):
    flow = built(kind)
    x = torch.randn(2, 2, 2, dtype=torch.float64)
    assert torch.autograd.gradcheck(flow, x.clone().requires_grad_())
    again = Flow.from_config(**flow.config()).double()
    again.load_state_dict(flow.state_dict())
    assert torch.equal(again(x), flow(x))
    assert flow.bounded is (True if kind == "realnvp" else None)


@pytest.mark.parametrize(
    ("make", "bounded"),
    [
        (lambda: SimpleRealNVP(2, 8, 2, 1), True),
        (
            lambda: SimpleRealNVP(
                2, 8, 2, 1, use_volume_preserving=True, batch_norm_between_layers=True
            ),
            True,
        ),
        (
            lambda: Nflow(
                InverseTransform(SimpleRealNVP(2, 8, 2, 1)._transform), StandardNormal([2])
            ),
            True,
        ),
        (lambda: MaskedAutoregressiveFlow(2, 8, 2, 1), None),  # a softplus, without bound
        (lambda: affine(base=DiagonalNormal([3])), None),
        (lambda: Nflow(CompositeTransform([Free()]), StandardNormal([2])), None),
    ],
)
def test_bounded_where_no_network_can_make_the_determinant_large(make, bounded):
    flow, narrow = Flow(make()), Flow(SimpleRealNVP(2, 8, 2, 1))
    assert flow.bounded is bounded
    if flow.event_shape == (2,):
        assert (flow & Flow(MaskedAutoregressiveFlow(2, 8, 2, 1))).proper is bounded and (
            flow & narrow
        ).proper is True


def test_the_couplings_of_nflows_bound_their_determinant():
    flow = Flow(SimpleRealNVP(2, 8, 4, 1))
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.mul_(30)
        _, log_det = flow.to_noise(200 * torch.rand(10_000, 2) - 100)
    assert (
        float(log_det.max()) <= 4 * math.log(1.001) + 1e-5
        and float(log_det.min()) >= 4 * math.log(0.001) - 1e-3
    )


class Free(AffineCouplingTransform):
    """A scale without bound."""

    def __init__(self):
        super().__init__(torch.tensor([1, 0]), lambda i, o: ResidualNet(i, o, hidden_features=4))

    def _scale_and_shift(self, transform_params):
        shift, raw = transform_params.split(self.num_transform_features, 1)
        return raw.exp(), shift


def test_equal_contexts_give_one_density():
    flow = conditional()
    c = torch.randn(3, dtype=torch.float64)
    first, second = flow.given(c), flow.given(c.clone())
    assert first is second and flow.given(-c) is not first
    squared = (flow & flow.given(c.tolist())).given(c)
    assert str(squared) == "flow ** 2" and squared.parts == (first,)
    c += 1  # the context that was bound is another now
    assert flow.given(c - 1) is not flow.given(c)
    assert torch.equal(flow.given(c - 1).context, c - 1) and torch.equal(flow.given(c).context, c)
    named = flow.given(c)
    named.name = "mine"
    assert flow.given(c) is not named  # nobody's name is taken over
    learned = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    assert flow.given(learned) is not flow.given(learned)
    again = copy.deepcopy(flow)
    assert again.given(c).flow is again.flow
    kept = pickle.loads(pickle.dumps(flow))
    assert kept.given(c).flow is kept.flow


def conditional() -> Flow:
    torch.manual_seed(0)
    return poe.create(
        "flow", kind="realnvp", event_shape=(2, 2), context_shape=(3,), layers=2, hidden=8
    ).double()


def test_a_context_binds():
    flow = conditional()
    assert flow.can(Conditional)
    x = torch.randn(5, 2, 2, dtype=torch.float64)
    with pytest.raises(TypeError, match="bind a context of shape \\(3,\\)"):
        flow(x)
    context = torch.randn(3, dtype=torch.float64)
    bound = flow.given(context)
    assert not bound.can(Conditional)
    assert torch.allclose(
        bound.log_prob(x), flow.flow.log_prob(x.flatten(1), context=context.expand(5, 3))
    )
    assert not torch.allclose(bound(x), flow.given(-context)(x))
    assert bound.sample(3).shape == (3, 2, 2)
    assert torch.allclose(bound.from_noise(bound.to_noise(x)[0])[0], x)
    again = Flow.from_config(**bound.config()).double()
    again.load_state_dict(bound.state_dict())
    assert torch.equal(again(x), bound(x))
    with pytest.raises(ValueError, match="one context of shape"):
        flow.given(torch.zeros(2))
    with pytest.raises(TypeError, match="takes no context"):
        built().given(context)


def test_a_wrapped_conditional_flow_with_a_conditional_base():
    base = ConditionalDiagonalNormal([2], context_encoder=nn.Linear(3, 4))
    flow = Flow(Nflow(CompositeTransform([]), base), context_shape=(3,)).double()
    context = torch.randn(3, dtype=torch.float64)
    mean, log_scale = base._context_encoder(context).chunk(2)
    bound = flow.given(context)
    x = bound.sample(20_000, generator=torch.Generator().manual_seed(0))
    assert ((x.mean(0) - mean).abs() < 5 * log_scale.exp() / len(x) ** 0.5).all()
    assert torch.allclose(
        bound.log_prob(x),
        torch.distributions.Normal(mean, log_scale.exp()).log_prob(x).sum(-1),
        atol=1e-5,
    )


def test_as_energy_wraps_and_saving_says_what_to_do():
    flow = poe.as_energy(affine(), event_shape=(3, 1))
    assert isinstance(flow, Flow)
    assert flow.event_shape == (3, 1)
    assert Flow(affine()).event_shape == (3,)
    with pytest.raises(TypeError, match='poe.create\\("flow", event_shape='):
        flow.config()


def test_nonsense_is_refused():
    with pytest.raises(ValueError, match="do not fill events"):
        Flow(affine(), event_shape=(2, 2))
    with pytest.raises(ValueError, match="choose one of realnvp"):
        Flow(kind="glow", event_shape=(2,))
    with pytest.raises(TypeError, match="needs event_shape"):
        Flow(kind="maf")
    with pytest.raises(TypeError, match="pass only one of them"):
        Flow(affine(), kind="maf")
    with pytest.raises(ValueError, match="one is not enough"):
        Flow(kind="realnvp", event_shape=(1,))
    network = lambda i, o: ResidualNet(i, o, 4, context_features=2)  # noqa: E731
    needy = Nflow(
        CompositeTransform([AffineCouplingTransform([1, 0], network)]), StandardNormal([2])
    )
    with pytest.raises(TypeError, match="needs context_shape"):
        Flow(needy)


def test_a_conditional_flow_is_not_wrapped_without_its_context() -> None:
    layer = MaskedAffineAutoregressiveTransform(2, 16, context_features=3)
    flow = Nflow(CompositeTransform([layer]), StandardNormal([2]))
    with pytest.raises(TypeError, match=r"context_layer takes a context.*needs context_shape="):
        Flow(flow)
    assert Flow(flow, context_shape=(3,)).given(torch.zeros(3)).sample(4).shape == (4, 2)
