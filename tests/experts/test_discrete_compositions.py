"""Random expressions over discrete experts of every kind, drawn by general methods, against
enumeration."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

import poe
from experts import MADE, RBM, Bernoulli, Ising, PixelCNN
from poe.smc.sequential import ordered_product
from poe.spaces import points

SHAPE = (3, 4)
RARE = 1e-6  # probability with which one sound example exceeds its bound


def seeded(make):
    with torch.random.fork_rng():
        torch.manual_seed(3)
        expert = make()
    for parameter in expert.parameters():
        torch.nn.init.normal_(
            parameter, std=0.4, generator=torch.Generator().manual_seed(parameter.numel())
        )
    return expert


LEAVES = {
    "ising": Ising(SHAPE, 0.3, 0.2, bits=True, name="ising"),
    "rbm": RBM(
        torch.randn(12, 4, generator=torch.Generator().manual_seed(0)),
        -0.2,
        0.1,
        event_shape=SHAPE,
        name="rbm",
    ),
    "made": seeded(lambda: MADE(SHAPE, hidden=24, name="made")),
    "pixelcnn": seeded(lambda: PixelCNN(SHAPE, channels=4, layers=2, name="pixelcnn")),
    "bernoulli": Bernoulli(logits=torch.linspace(-1, 1, 12).reshape(SHAPE), name="bernoulli"),
}


def grown(inner: st.SearchStrategy[poe.Energy]) -> st.SearchStrategy[poe.Energy]:
    pair = st.tuples(inner, inner)
    return st.one_of(
        pair.map(lambda ab: ab[0] & ab[1]),
        pair.map(lambda ab: ab[0] | ab[1]),
        pair.map(lambda ab: ab[0] - ab[1]),
        st.tuples(inner, st.sampled_from([0.5, 1.5, 2.0])).map(lambda at: at[0] ** at[1]),
    )


EXPRESSIONS = st.recursive(st.sampled_from(list(LEAVES.values())), grown, max_leaves=4)


def law_of(target: poe.Energy) -> tuple[Tensor, Tensor]:
    states = points(target)
    with torch.no_grad():
        return states, (-target(states).double()).softmax(0)


def excess(target: poe.Energy, x: Tensor, size: float) -> float:
    """Total variation between `size` independent draws and the law, less what it may be by chance:
    its mean is at most ½ Σ sqrt(p (1 - p) / n), and it exceeds that by sqrt(log(1/δ) / 2n) with
    probability δ at most (McDiarmid)."""
    _, law = law_of(target)
    number = (x.flatten(1).double() @ (2.0 ** torch.arange(11, -1, -1)).double()).long()
    found = torch.bincount(number, minlength=4096).double() / len(x)
    bound = 0.5 * float((law * (1 - law) / size).sqrt().sum()) + math.sqrt(
        math.log(1 / RARE) / (2 * size)
    )
    return 0.5 * float((found - law).abs().sum()) - bound


@settings(max_examples=25, deadline=None)
@given(EXPRESSIONS)
def test_default_draws_are_those_of_the_table(target: poe.Energy) -> None:
    draws = poe.sample(target, 20_000, seed=0)
    assert draws.trusted and excess(target, draws.x, 20_000) < 0


@pytest.mark.slow
@pytest.mark.parametrize("method", ["chains", "annealed"])
@settings(
    max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(EXPRESSIONS)
def test_general_methods_agree_with_the_table(method: str, target: poe.Energy) -> None:
    draws = poe.sample(target, 2000, method=method, seed=1)
    assert draws.trusted, draws.report()
    assert excess(target, draws.x, min(2000, draws.diagnostics.ess_bulk)) < 0
    if draws.log_z is not None and draws.log_z.standard_error > 0:
        states, _ = law_of(target)
        truth = float((-target(states).detach().double()).logsumexp(0))
        assert abs(draws.log_z.value - truth) < 5 * draws.log_z.standard_error


@settings(max_examples=10, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(list(LEAVES.values())), st.sampled_from([0.5, 1.0, 2.0])),
        min_size=1,
        max_size=3,
    )
)
def test_products_with_an_order_are_drawn_along_it(terms: list[tuple[poe.Energy, float]]) -> None:
    target = poe.product([LEAVES["made"], *(e for e, _ in terms)], [1.0, *(w for _, w in terms)])
    assert ordered_product(target) is not None
    draws = poe.sample(target, 2000, method="sequential", seed=2)
    assert excess(target, draws.x, min(2000, draws.diagnostics.ess_bulk)) < 0
    states, _ = law_of(target)
    truth = float((-target(states).detach().double()).logsumexp(0))
    assert (
        draws.log_z is not None
        and abs(draws.log_z.value - truth) < 5 * draws.log_z.standard_error + 1e-6
    )


def test_the_bound_rejects_another_law() -> None:
    """The negative control."""
    target = LEAVES["ising"] & LEAVES["rbm"]
    draws = poe.sample(target**1.5, 20_000, seed=0)
    assert excess(target, draws.x, 20_000) > 0
