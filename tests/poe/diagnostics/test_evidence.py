from __future__ import annotations

import math

import pytest
import torch

from poe.diagnostics.convergence import standard_errors
from poe.diagnostics.evidence import diagnose
from poe.diagnostics.verdict import reasons


def test_ess_is_bounded_by_weights_and_ancestors() -> None:
    x, energy = torch.randn(16, 100, 2), torch.randn(16, 100)
    free = diagnose(x, energy, 1)
    assert free.ess_bulk > 800 and free.max_ess == math.inf
    for counts, most in [
        ({"weight_ess": 50.0}, 50),
        ({"ancestors": 30}, 30),
        ({"weight_ess": 50.0, "ancestors": 30}, 30),
    ]:
        bounded = diagnose(x, energy, 1, **counts)
        assert bounded.ess_bulk == bounded.ess_tail == most
        assert math.isclose(bounded.mcse, 1 / math.sqrt(most))
        cure = (
            6400 if "weight_ess" in counts else "thin=4"
        )  # of annealed particles thin= is how many there are for each draw
        assert any(
            f"ESS {most} < 100; try poe.sample(..., {cure})" in reason
            for reason in reasons(bounded, 1600)
        )
    assert diagnose(x, energy, 1, weight_ess=1e9).ess_bulk == free.ess_bulk


@pytest.mark.parametrize(
    ("x", "event_dim"),
    [
        (torch.randn(4, 0, 3), 1),
        (torch.randn(0, 4, 3), 1),
        (torch.randn(4, 5, 0), 1),
        (torch.randn(1, 1, 3), 1),
        (torch.randn(1, 200, 3), 1),
        (torch.randn(4, 1, 3), 1),
        (torch.randn(4, 3), 0),
        (torch.randn(4, 100), 0),
        (torch.randint(5, (4, 100, 3)), 1),
        (torch.rand(4, 100, 3) > 0.5, 1),
        (torch.randn(4, 20, 3, 20, 20), 3),
        (torch.full((4, 100, 2), torch.nan), 1),
        (torch.full((4, 100, 2), torch.inf), 1),
    ],
    ids=lambda value: f"{tuple(value.shape)}" if isinstance(value, torch.Tensor) else "",
)
@pytest.mark.parametrize("energy", [0.0, math.nan, math.inf, -math.inf])
def test_evidence_of_any_draws_is_a_number_or_nan(
    x: torch.Tensor, event_dim: int, energy: float
) -> None:
    chains, draws = x.shape[:2]
    evidence = diagnose(x, torch.full((chains, draws), energy), event_dim)
    assert all(isinstance(figure, (int, float)) for figure in evidence.asdict().values())
    usable = x.numel() > 0 and bool(x.double().isfinite().all()) and chains * draws >= 4
    assert usable or not evidence.ess_bulk > 0
    assert math.isnan(evidence.rhat) or (chains > 1 and draws >= 4 and not x.double().isnan().any())
    assert evidence.invalid == (
        chains * draws
        if x.numel() and (not x.double().isfinite().all() or energy > 0 or energy != energy)
        else 0
    )
    found = reasons(evidence, chains * draws)
    even = energy == 0 and usable  # an even law may have any draws
    assert found or even or chains * draws == 0 or x.numel() == 0
    assert standard_errors(x, event_dim).shape == x.shape[2:]
