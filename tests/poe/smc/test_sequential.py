from __future__ import annotations

import math

import pytest
import torch
from scipy.stats import chi2
from torch import Tensor

import poe
from experts import Bernoulli, Ising
from poe.algebra.support import Box
from poe.mcmc.run import streams
from poe.smc.resampling import estimate
from poe.smc.sequential import ordered_product, propagate, should_twist
from poe.spaces import points

CPU = torch.device("cpu")


class Causal(poe.Density):
    """Conditionals that depend on all earlier values through a random network, along an order of
    one's own; `values` a site."""

    def __init__(
        self, n: int, values: int, seed: int, order: list[int] | None = None, sharp: float = 1.5
    ) -> None:
        box = Box(torch.zeros(n), torch.full((n,), values - 1.0), integer=True)
        super().__init__((n,), support=box, name=f"causal_{seed}")
        g = torch.Generator().manual_seed(seed)
        self.order = torch.tensor(list(range(n)) if order is None else order)
        self.weight = sharp * torch.randn(n, n, values, generator=g)
        self.bias = sharp * torch.randn(n, values, generator=g)

    @property
    def bounded(self) -> bool:
        return True

    def next_logits(self, prefix: Tensor) -> Tensor:
        t = prefix.shape[-1]
        logits = (
            torch.einsum("...s,sv->...v", (prefix.float() * 1.7).sin(), self.weight[t, :t])
            + self.bias[t]
        )
        return logits.log_softmax(-1)

    def log_prob(self, x: Tensor) -> Tensor:
        x = x[..., self.order]
        each = [
            self.next_logits(x[..., :t]).gather(-1, x[..., t : t + 1].long())
            for t in range(x.shape[-1])
        ]
        return torch.cat(each, -1).sum(-1)

    def sample(self, n, *, generator=None):
        raise AssertionError("no method of products needs draws of one factor")


def pairs(n: int, values: int) -> poe.Energy:
    class Pairs(poe.Energy):
        def __init__(self) -> None:
            super().__init__(
                (n,),
                support=Box(torch.zeros(n), torch.full((n,), values - 1.0), integer=True),
                name="pairs",
            )

        def forward(self, x: Tensor) -> Tensor:
            x = x.float()
            return 0.8 * (x[..., 1:] - x[..., :-1]).abs().sum(-1) - 0.3 * x[..., 0] * x[..., -1]

    return Pairs()


class Ones(poe.Energy):
    """Allows exactly k ones, which nobody can see before the end."""

    def __init__(self, n: int, k: int) -> None:
        super().__init__(
            (n,), support=Box(torch.zeros(n), torch.ones(n), integer=True), name="ones"
        )
        self.k = k

    def forward(self, x: Tensor) -> Tensor:
        return torch.where(x.sum(-1) == self.k, 0.0, math.inf)


def chi_square(draws: Tensor, target: poe.Energy, ess: float) -> tuple[float, int]:
    """The statistic of how often each state came, at the size `ess`, and its degrees of freedom;
    rare states are pooled."""
    states = points(target)
    law = (-target(states).double()).softmax(0)
    values = int(states.max()) + 1

    def number(x):
        return (x.double() @ (values ** torch.arange(x.shape[1] - 1, -1, -1)).double()).long()

    place = torch.searchsorted(number(states), number(draws))
    found = torch.bincount(place, minlength=len(states)).double() / len(draws)
    big = law * ess > 5
    law, found = (torch.cat([part[big], part[~big].sum().reshape(1)]) for part in (law, found))
    keep = law > 0
    return float((ess * (found - law).square() / law)[keep].sum()), int(keep.sum()) - 1


TARGETS = {
    "two": lambda: Causal(6, 3, 0) & Causal(6, 3, 1),
    "order": lambda: (
        Causal(6, 3, 0, order=[3, 1, 5, 0, 2, 4]) & Causal(6, 3, 1, order=[3, 1, 5, 0, 2, 4])
    ),
    "powers": lambda: Causal(6, 3, 0) ** 0.5 & Causal(6, 3, 1) ** 2 / Causal(6, 3, 2) ** 0.3,
    "two orders": lambda: Causal(6, 3, 0) & Causal(6, 3, 1, order=[5, 4, 3, 2, 1, 0]),
    "rest": lambda: Causal(6, 3, 0) & pairs(6, 3),
    "field": lambda: Causal(9, 2, 0) & Bernoulli(logits=torch.linspace(-2, 2, 9)) ** 1.5,
    "spins": lambda: Causal(9, 2, 3) & Ising((9,), 0.8, 0.2, bits=True),
    "ones": lambda: Causal(9, 2, 4) & Ones(9, 4),
}


@pytest.mark.parametrize("name", TARGETS)
def test_draws_and_log_z_are_those_of_the_global_product(name: str) -> None:
    target = TARGETS[name]()
    truth = float((-target(points(target)).double()).logsumexp(0))
    draws = poe.sample(target, 4000, method="sequential", seed=1)
    assert draws.log_z is not None and draws.method.startswith("sequential")
    assert abs(draws.log_z.value - truth) < 4 * draws.log_z.standard_error
    assert draws.log_z.standard_error < 0.1
    assert draws.trusted
    statistic, freedom = chi_square(
        draws.x, target, draws.diagnostics.weight_ess / 2
    )  # resampling from twice as many adds its own noise
    assert statistic < 2 * chi2.ppf(0.999, freedom)
    of = ordered_product(target)
    assert of is not None
    for twisted in (False, True) if of.remainder is not None else (False,):
        found = estimate(propagate(of, 32, 128, streams(2, 1, CPU)[0], twisted=twisted).log_ratio)
        assert abs(found.value - truth) < 4.5 * found.standard_error


def test_the_locally_normalised_product_is_another_law() -> None:
    """The negative control: the same proposals without their weights are far from the global
    product."""
    target = TARGETS["two"]()
    states = points(target)
    law = (-target(states).double()).softmax(0)
    a, b = target.parts
    local = torch.zeros(len(states), dtype=torch.float64)
    for t in range(6):
        q = (a.next_logits(states[:, :t]) + b.next_logits(states[:, :t])).double().log_softmax(-1)
        local += q.gather(-1, states[:, t : t + 1].long()).squeeze(-1)
    assert float(local.exp().sum()) == pytest.approx(1, abs=1e-6)
    assert 0.5 * float((local.exp() - law).abs().sum()) > 0.1
    draws = poe.sample(target, 4000, method="sequential", seed=3).x
    number = (draws.double() @ (3 ** torch.arange(5, -1, -1)).double()).long()
    found = torch.bincount(number, minlength=729).double() / 4000
    bound = 0.5 * float(
        (law * (1 - law) / 1000).sqrt().sum()
    )  # of the mean total variation, at a quarter of the draws
    assert (
        0.5 * float((found - law).abs().sum())
        < bound
        < 0.5 * float((found - local.exp()).abs().sum())
    )


def test_a_plan_follows_the_order_where_there_is_one() -> None:
    big = Causal(30, 2, 0, sharp=0.3) & Causal(30, 2, 1, sharp=0.3)
    assert poe.plan(big).method == "sequential" and "order" in str(poe.plan(big))
    draws = poe.sample(big, 500, seed=0)
    assert draws.trusted and draws.log_z is not None
    again = poe.log_z(big, seed=5)
    assert abs(again.value - draws.log_z.value) < 4 * math.hypot(
        again.standard_error, draws.log_z.standard_error
    )
    with pytest.raises(ValueError, match="no autoregressive factor"):
        poe.sample(pairs(30, 2), 10, method="sequential")
    with pytest.raises(ValueError, match="no autoregressive factor"):
        poe.log_z(pairs(30, 2), method="sequential")


def test_a_rest_that_is_local_is_worth_a_twist() -> None:
    of = ordered_product(Causal(24, 2, 0, sharp=0.3) & Ising((24,), 1.0, bits=True))
    assert of is not None and should_twist(of, streams(0, 1, CPU)[0])
    assert not should_twist(ordered_product(TARGETS["two"]()), streams(0, 1, CPU)[0])  # type: ignore[arg-type]


def test_what_no_particle_reaches_is_said() -> None:
    with pytest.raises(ValueError, match="none of .* particles has weight"):
        poe.sample(Causal(24, 2, 0) & Ones(24, 25), 100, method="sequential", seed=0)
