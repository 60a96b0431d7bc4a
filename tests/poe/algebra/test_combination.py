"""Posteriors that share a prior."""

from __future__ import annotations

import pytest
import torch
from torch import distributions as td

import poe
from experts import Beta, Distribution, Gamma, Normal
from tests.poe.algebra.cases import F64, LINE, ZERO, a, b, c, unit


def test_combine_counts_the_prior_once() -> None:
    prior = Normal(torch.zeros(1, dtype=F64), 3.0)
    likelihoods = [Normal(torch.tensor([m], dtype=F64), 1.0) for m in (0.5, 1.0, 2.0)]
    posteriors = [poe.simplify(prior & likelihood) for likelihood in likelihoods]
    combined = poe.combine(posteriors, prior=prior)
    whole = prior & poe.product(likelihoods)
    gap = combined(LINE) - whole(LINE)
    torch.testing.assert_close(gap, gap[0].expand_as(gap), rtol=1e-9, atol=1e-9)
    assert combined.proper is True
    assert str(poe.combine([a, b, c], prior=prior)) == "a & b & c / normal ** 2"
    assert str(poe.combine([a], prior=prior)) == "a"


def test_a_flat_prior_is_divided_out() -> None:
    box = td.Uniform(ZERO, ZERO + 1)
    inside = [Distribution(td.Beta(ZERO + 2, ZERO + k)) for k in (2, 3)]  # bounded, on the box
    rough = [Distribution(td.Beta(ZERO + 0.5, ZERO + k)) for k in (2, 3)]  # like 1 / sqrt(x) at 0
    split = poe.on(Distribution(td.Uniform(0.0, 1.0)), [0], (2,)) & poe.on(
        Distribution(td.Uniform(0.0, 1.0)), [1], (2,)
    )
    for prior in (Distribution(box), Distribution(td.Independent(box, 1)), split):
        assert prior.flat is True
        both = poe.combine(inside, prior=prior)
        assert both.proper is True and both.bounded is True
        assert poe.combine([rough[0], inside[0]], prior=prior).proper is True
        assert poe.combine(rough, prior=prior).proper is None  # ∫ 1 / x is infinite
    assert (
        poe.combine(inside, prior=Distribution(td.Beta(ZERO + 2, ZERO + 1))).proper is None
    )  # x / x², were they other
    assert (inside[0] | inside[0]).flat is None and Distribution(
        td.Dirichlet(ZERO + 1)
    ).flat is True


def test_combine_checks_supports() -> None:
    positive = Gamma(torch.ones(1, dtype=F64), 1.0, name="prior")
    with pytest.raises(ValueError, match="no mass where its prior has none; restrict it"):
        poe.combine([a, b], prior=positive)
    with pytest.raises(ValueError, match="poe.on\\(energy, index, event_shape\\)"):
        poe.combine([a, b], prior=Normal(torch.zeros(2), 1.0))
    assert poe.combine([unit, unit], prior=Beta(torch.ones(1, dtype=F64), 1.0)).proper is not False
