from __future__ import annotations

import math

import pytest
import torch
from torch.distributions import constraints

import poe
from poe.kernels import DiscreteLangevin, Gibbs


class Chain(poe.Energy):
    """Bits in a row, E = -Σ x_i x_{i+1} + 0.3 Σ x_i: too many to enumerate, a transfer matrix away from exact."""

    def __init__(self, n: int) -> None:
        super().__init__((n,), support=constraints.boolean, name="chain")

    def forward(self, x):
        return 0.3 * x.sum(-1) - (x[..., 1:] * x[..., :-1]).sum(-1)


def exact(n: int) -> tuple[float, float]:
    """(mean number of ones, mean number of neighbouring pairs of ones) by derivatives of the transfer matrix' log Z."""
    field = torch.tensor(-0.3, dtype=torch.float64, requires_grad=True)
    coupling = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
    bits = torch.tensor([0.0, 1.0], dtype=torch.float64)
    vector = (field * bits).exp()
    for _ in range(n - 1):
        vector = (vector @ (coupling * bits[:, None] * bits).exp()) * (field * bits).exp()
    ones, pairs = torch.autograd.grad(vector.sum().log(), [field, coupling])
    return ones.item(), pairs.item()


@pytest.mark.parametrize("kernel", [None, DiscreteLangevin(), Gibbs()])
def test_bits_too_many_to_enumerate_are_drawn_by_chains(kernel) -> None:
    n = 20
    draws = poe.sample(Chain(n), 2000, kernel=kernel, seed=0)
    assert "chains" in draws.method and draws.x.dtype == torch.float32 and draws.trusted
    ones, pairs = exact(n)
    size = draws.diagnostics.ess_bulk
    for values, truth in ((draws.x.sum(-1), ones), ((draws.x[:, 1:] * draws.x[:, :-1]).sum(-1), pairs)):
        assert abs(values.mean() - truth) < 4.5 * values.std() / math.sqrt(size)


def test_methods_for_continuous_x_are_refused() -> None:
    for method in ("importance", "annealed", "tempered"):
        with pytest.raises(ValueError, match="chain is discrete"):
            poe.sample(Chain(20), 10, method=method)
    assert "drawn evenly for each site" in str(poe.plan(Chain(20)))
