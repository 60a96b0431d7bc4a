from __future__ import annotations

import math

import numpy as np
import torch

from poe.diagnostics import diagnose, ess, judge, pareto_k, rhat, weight_ess


def test_a_stuck_chain_has_no_effective_draws() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(4, 500, 1))
    free = ess(x, "bulk")[0]
    x[0] = 1.3
    assert ess(x, "bulk")[0] < free * 0.8
    x[:] = 1.3
    assert ess(x, "bulk")[0] == 0


def test_chains_that_stand_still_apart_have_infinite_rhat() -> None:
    x = np.broadcast_to(np.arange(4.0)[:, None, None], (4, 10, 1))
    assert rhat(x)[0] == np.inf
    apart = np.random.default_rng(0).normal(size=(4, 100, 1)) + 3 * np.arange(4)[:, None, None]
    assert rhat(apart)[0] > 1.5
    assert math.isnan(rhat(apart[:1])[0])


def test_ess_of_an_autoregression_is_that_of_theory() -> None:
    rng, phi, n = np.random.default_rng(1), 0.9, 20_000
    x = np.zeros((4, n, 1))
    for t in range(1, n):
        x[:, t] = phi * x[:, t - 1] + rng.normal(size=(4, 1))
    theory = 4 * n * (1 - phi) / (1 + phi)
    assert 0.8 < ess(x, "bulk")[0] / theory < 1.25


def test_pareto_k_and_ess_of_weights_of_known_tail() -> None:
    u = torch.rand(20_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for k in (0.3, 0.9):
        assert abs(pareto_k(-k * u.log()) - k) < 0.15  # u ** -k has a Pareto tail of shape k
    assert pareto_k(torch.zeros(100)) == -math.inf
    assert pareto_k(torch.full((100,), -math.inf)) == math.inf
    assert abs(weight_ess(torch.tensor([0.0, 0.0, -math.inf])) - 2) < 1e-9
    assert weight_ess(torch.full((3,), -math.inf)) == 0


def test_bad_evidence_is_put_into_words() -> None:
    chains = torch.randn(4, 50, 2) + 5 * torch.arange(4).reshape(4, 1, 1)
    evidence = diagnose(chains, torch.randn(4, 50), 1, divergent=3, nonfinite=2, acceptance=0.05)
    said = " ".join(judge(evidence, 200, exact_draws=False))
    for part in (
        "chains disagree",
        "3 divergent",
        "2 proposals had a non-finite",
        "acceptance 0.05 is low",
        "few independent draws",
    ):
        assert part in said
    assert judge(evidence, 200, exact_draws=True) == []
