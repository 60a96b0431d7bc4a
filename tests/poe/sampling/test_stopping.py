"""Calls that end early, by max_gradients= or Ctrl-C, return what there is, and say so."""

from __future__ import annotations

import pytest
import torch
from torch.distributions import constraints

import poe
from poe.sampling.estimation import EstimateWarning
from tests.poe.targets import Gauss


class Interrupted(poe.Energy):
    """A normal in two dimensions and a well, whose evaluation number `call` raises `error`; later
    ones do not."""

    def __init__(self, call: int = -1) -> None:
        super().__init__((2,), name="f")
        self.call, self.count = call, 0

    @property
    def bounded(self) -> bool:
        return True

    @property
    def proper(self) -> bool:
        return True

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.count += 1
        if self.count == self.call:
            raise KeyboardInterrupt
        return 0.5 * (x[..., 0] ** 2 - 1) ** 2 + 0.5 * (x[..., 1] - x[..., 0]) ** 2


def shown(draws: poe.Draws, why: str) -> None:
    assert draws.partial and not draws.trusted and len(draws) > 0
    assert draws.verdict.startswith(f"NOT TRUSTED: {why}: ") and "; try " in draws.verdict
    assert draws.x.isfinite().all() and draws.energy.isfinite().all()
    assert why in draws.report()


def calls(**options) -> int:
    """Evaluations of a whole call."""
    target = Interrupted()
    poe.sample(target, 200, seed=0, **options)
    return target.count


METHODS = [
    None,
    "annealed",
    *(pytest.param(m, marks=pytest.mark.slow) for m in ("chains", "tempered")),
]


@pytest.mark.parametrize("method", METHODS)
def test_an_interrupt_in_any_phase_returns_what_there_is(method: str | None) -> None:
    total = calls(method=method)
    for share in (0.02, 0.2, 0.5, 0.95) if method is None else (0.1, 0.9):
        target = Interrupted(max(3, round(share * total)))
        draws = poe.sample(target, 200, method=method, seed=0)
        shown(draws, "interrupted")
        assert target.count < total  # it ends there
        assert (draws.energy - target(draws.chains)).abs().max() < 1e-5


class Spins(poe.Energy):
    """24 spins that prefer to agree; evaluation number `call` raises an interrupt."""

    def __init__(self, call: int = -1) -> None:
        super().__init__((24,), support=constraints.boolean, name="spins")
        self.call, self.count = call, 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.count += 1
        if self.count == self.call:
            raise KeyboardInterrupt
        return -(2 * x.sum(-1) - 24).square() / 60


@pytest.mark.slow
def test_discrete_draws_that_are_interrupted() -> None:
    target = Spins()
    whole = poe.sample(target, 200, seed=0)
    assert not whole.partial
    for share in (0.1, 0.6):
        shown(poe.sample(Spins(round(share * target.count)), 200, seed=0), "interrupted")
    few = poe.sample(Spins(), 200, seed=0, max_gradients=20_000)
    shown(few, "stopped at max_gradients=20000")


def test_an_interrupt_before_there_is_any_point_is_raised() -> None:
    with pytest.raises(KeyboardInterrupt):
        poe.sample(Interrupted(1), 200, method="chains", seed=0)


@pytest.mark.parametrize("method", METHODS)
def test_a_call_takes_no_more_than_it_may(method: str | None) -> None:
    for limit in (20_000, 60_000) if method is None else (30_000,):
        one, other = (
            poe.sample(Interrupted(), 20_000, method=method, seed=0, max_gradients=limit)
            for _ in range(2)
        )
        shown(one, f"stopped at max_gradients={limit}")
        assert torch.equal(one.x, other.x)
        d = one.diagnostics
        assert d.gradients + d.energies <= 1.1 * limit + len(one)
    free = poe.sample(Interrupted(), 200, method=method, seed=0)
    held = poe.sample(Interrupted(), 200, method=method, seed=0, max_gradients=10**9)
    assert torch.equal(free.x, held.x) and not held.partial


def test_a_branch_that_is_cut_short_keeps_its_share() -> None:
    known = poe.normalize(Interrupted(), log_z=poe.Estimate(0.0))
    target = poe.mixture([known, Gauss(30.0)], weights=[0.25, 0.75])
    draws = poe.sample(target, 400, method="parts", seed=0, max_gradients=20_000)
    shown(draws, "stopped at max_gradients=20000")
    assert len(draws) == 400 and int((draws.x[:, 0] > 15).sum()) == 300


def test_nothing_at_all_is_no_error() -> None:
    draws = poe.sample(Interrupted(), 100, seed=0, max_gradients=1)
    assert len(draws) == 0 and not draws.trusted and draws.partial
    assert any("stopped at max_gradients=1" in reason for reason in draws.reasons)
    with pytest.raises(ValueError, match="exclude each other"):
        poe.sample(Gauss(0.0), 10, seed=0, max_gradients=100, checkpoint="run")
    with pytest.raises(ValueError, match="max_gradients is a whole number"):
        poe.sample(Gauss(0.0), 10, max_gradients=0)


def test_log_z_ends_with_the_estimate_that_is_there() -> None:
    target = Gauss(0.0, sd=2.0) & Gauss(1.0) & Interrupted()
    whole = poe.log_z(target, seed=0)
    for method, limit in (("annealed", 40_000), (None, 9_000)):
        with pytest.warns(EstimateWarning, match=f"stopped at max_gradients={limit}"):
            found = poe.log_z(target, method=method, seed=0, max_gradients=limit)
        assert abs(found.value - whole.value) < 5 * (found.standard_error + whole.standard_error)
    with pytest.raises(ValueError, match="no estimate of log Z.*larger max_gradients"):
        poe.log_z(target, seed=0, max_gradients=1)
