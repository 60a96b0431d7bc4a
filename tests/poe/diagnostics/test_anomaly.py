from __future__ import annotations

import math

import pytest
import torch

import poe
from experts import Bernoulli, Ising
from tests.poe.targets import Gauss, Raw


def test_scores_are_the_log_likelihood_ratio() -> None:
    x = torch.randn(50, 2, dtype=torch.float32)
    found = poe.anomaly_score(Gauss(0.0), x, Gauss(1.0, 2.0))
    truth = 0.5 * x.square().sum(-1) - 0.125 * (x - 1).square().sum(-1) - 2 * math.log(2)
    assert torch.allclose(found, truth, atol=1e-5) and not found.requires_grad


def test_unknown_constants_do_not_change_the_order() -> None:
    x = torch.randint(0, 2, (40, 3, 3)).float()
    a, b = Ising((3, 3), 0.4, bits=True), Bernoulli(logits=torch.zeros(3, 3))
    moved = poe.anomaly_score(poe.shift(a, 7.0), x, b) - poe.anomaly_score(a, x, b)
    assert torch.allclose(moved, torch.full((40,), 7.0), atol=1e-5)


def test_what_an_expert_excludes_is_infinitely_strange_or_normal() -> None:
    box = Raw(lambda x: torch.where(x.abs().amax(-1) < 1, 0.0, math.inf))
    x = torch.tensor([[0.0, 0.0], [2.0, 0.0]])
    assert poe.anomaly_score(box, x, Gauss(0.0))[1] == math.inf
    assert poe.anomaly_score(Gauss(0.0), x, box)[1] == -math.inf
    assert poe.anomaly_score(box, x, box)[1] == math.inf
    assert poe.anomaly_score(Raw(lambda x: x.sum(-1) * math.nan), x, Gauss(0.0)).isnan().all()


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(TypeError, match="background expert is an energy, not a function"):
        poe.anomaly_score(Gauss(0.0), torch.zeros(2), lambda x: x)
    with pytest.raises(ValueError, match=r"events of shape \(2,\) .* of shape \(3,\)"):
        poe.anomaly_score(Gauss(0.0), torch.zeros(2), Gauss(0.0, d=3))
    with pytest.raises(ValueError, match="do not end in the event shape"):
        poe.anomaly_score(Gauss(0.0), torch.zeros(4, 3), Gauss(0.0))
