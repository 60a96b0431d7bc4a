"""Conjunctions against Gaussians worked out by hand and enumeration; and the growth of energies."""

from __future__ import annotations

import pytest
import torch

import experts
import poe
from tests.poe.targets import Gauss


def test_it_is_the_product_with_the_prior_once():
    prior, a, b, c = (
        Gauss(0.0, 3.0, name="prior"),
        Gauss(1.0, name="a"),
        Gauss(2.0, name="b"),
        Gauss(-1.0, name="c"),
    )
    e = poe.conjunction(prior, [a, b, c])
    assert str(e) == "a & b & c / prior ** 2"
    x = torch.randn(5, 2)
    assert torch.allclose(e(x), (prior & a / prior & b / prior & c / prior)(x))
    assert torch.allclose(e(x), a(x) + b(x) + c(x) - 2 * prior(x))
    assert poe.conjunction(prior, [a]) is a
    assert poe.conjunction(prior, []) is prior


def test_of_normal_concepts_it_is_bayes_rule():
    """μ ~ N(0, 4), and each concept is what N(μ; yᵢ, 1) makes of it: N(4yᵢ/5, 4/5). Together:
    precision 9/4, mean Σy / (9/4)."""
    prior = experts.Normal(torch.zeros(1), torch.full((1,), 2.0))
    parts = [
        experts.Normal(torch.full((1,), 0.8 * y), torch.full((1,), 0.8**0.5)) for y in (1.0, 2.5)
    ]
    exact = experts.Normal(torch.full((1,), 3.5 / 2.25), torch.full((1,), 2.25**-0.5))
    x = torch.linspace(-3, 3, 7)[:, None]
    difference = poe.conjunction(prior, parts)(x) - exact(x)
    assert (difference - difference[0]).abs().max() < 1e-5


def test_of_events_it_conditions():
    """A table of 8 states and three events, each a density p(x | event): the conjunction is p(x |
    all three)."""
    torch.manual_seed(0)
    p = torch.rand(8).softmax(0)
    events = torch.tensor(
        [[1, 1, 1, 1, 0, 0, 1, 0], [1, 0, 1, 1, 1, 0, 1, 1], [0, 1, 1, 0, 1, 1, 1, 1]]
    ).bool()
    prior = experts.Categorical(p.log())
    given = [experts.Categorical(torch.where(event, p, 1e-30).log()) for event in events]
    e = poe.conjunction(prior, given)
    x = torch.arange(8)
    wanted = torch.where(events.all(0), p, 0)
    assert torch.allclose((-e(x)).softmax(0), wanted / wanted.sum(), atol=1e-6)


def test_what_is_refused():
    prior, a = Gauss(0.0), Gauss(1.0, name="a")
    with pytest.raises(ValueError, match="a is given twice"):
        poe.conjunction(prior, [a, a])
    with pytest.raises(TypeError, match="takes a list of energies"):
        poe.conjunction(prior, a)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="not inside that of the prior"):
        poe.conjunction(
            experts.Gamma(2.0, 1.0), [experts.Normal(0.0, 1.0), experts.Gamma(3.0, 1.0)]
        )
    with pytest.raises(ValueError, match="event shape"):
        poe.conjunction(prior, [Gauss(0.0, d=3)])
