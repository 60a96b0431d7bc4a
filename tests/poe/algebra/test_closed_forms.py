"""Exact rewriting: the table of rules, constants, distribution over mixtures, and what is left
alone."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import pytest
import torch
from torch import Tensor, distributions, nn

import poe
from experts import Bernoulli, Categorical, Distribution, Gamma, Normal
from poe.algebra import closed_forms
from poe.algebra.mixture import Mixture
from poe.algebra.product import Product
from poe.algebra.shifted import Shifted

F64 = torch.float64
X = torch.linspace(-3, 3, 21, dtype=F64).reshape(-1, 1)


def normal(loc: float, scale: float = 1.0) -> Normal:
    return Normal(torch.tensor([loc], dtype=F64), scale)


class Tilt(poe.Energy):
    """E = slope·x on [0, 1]: a third-party family with a rule of its own."""

    def __init__(self, slope: float) -> None:
        super().__init__((1,), support=torch.distributions.constraints.unit_interval)
        self.slope = slope

    def forward(self, x: Tensor) -> Tensor:  # (*batch, 1) -> (*batch)
        return self.slope * x[..., 0]


@pytest.fixture
def tilted() -> Iterator[list[int]]:
    """Registers a rule for Tilt for the time of one test, and counts how many factors it was
    given."""
    calls: list[int] = []
    before = list(closed_forms.TABLE)

    @poe.closed_form(Tilt)
    def merge(factors: Sequence[closed_forms.Factor]) -> poe.Energy | None:
        calls.append(len(factors))
        return Tilt(sum(power * energy.slope for energy, power in factors))  # type: ignore[union-attr, misc]

    yield calls
    closed_forms.TABLE[:] = before


def test_a_strangers_rule_is_used(tilted: list[int]) -> None:
    closed = poe.simplify(Tilt(1.0) & Tilt(2.0) ** 2 & normal(0.0))
    assert tilted == [2]
    slopes = [leaf.slope for leaf in poe.leaves(closed) if isinstance(leaf, Tilt)]
    assert slopes == [5.0]
    assert isinstance(poe.simplify(Tilt(3.0) ** 2), Tilt)


def test_a_single_factor_of_power_1_is_left_alone(tilted: list[int]) -> None:
    energy = Tilt(1.0) & normal(0.0)
    assert poe.simplify(energy) is energy
    assert tilted == []


def test_constants_of_shifts_are_carried() -> None:
    energy = poe.shift(normal(0.0), 3.0) ** 2 & poe.shift(normal(1.0), -0.5)
    closed = poe.simplify(energy)
    torch.testing.assert_close(closed(X), energy(X))
    assert energy.log_z is not None
    plain = (normal(0.0) ** 2 & normal(1.0)).log_z
    assert plain is not None
    assert energy.log_z.value == pytest.approx(plain.value - 6 + 0.5)


def test_a_stated_log_z_is_not_looked_through() -> None:
    stated = poe.shift(normal(0.0), 1.0, log_z=poe.Estimate(0.0, 0.1))
    assert poe.simplify(stated & normal(1.0)).log_z is None


def test_simplify_reaches_the_inside_of_compositions() -> None:
    other = poe.as_energy(lambda x: x.square().sum(-1), event_shape=(1,))
    energy = ((normal(0.0) & normal(1.0)) | other) - (normal(2.0) ** 2 & other)
    closed = poe.simplify(energy)
    torch.testing.assert_close(closed(X), energy(X))
    assert len(poe.leaves(closed)) == 3


@pytest.mark.parametrize("power", [1, 2, 3])
def test_powers_of_mixtures_expand(power: int) -> None:
    energy = (normal(0.0) | normal(2.0, 0.5)) ** power & normal(1.0)
    closed = poe.simplify(energy)
    assert isinstance(closed, Mixture | Shifted)
    torch.testing.assert_close(closed(X), energy(X), rtol=1e-10, atol=1e-10)
    grid = torch.linspace(-15, 15, 6001, dtype=F64).reshape(-1, 1)
    mass = torch.logsumexp(-energy(grid), 0) + math.log(0.005)
    assert energy.log_z is not None
    assert energy.log_z.value == pytest.approx(float(mass), abs=1e-9)


def test_a_high_power_of_a_mixture_has_one_part_for_each_way_to_share_it() -> None:
    energy = (
        poe.mixture([normal(0.0), normal(2.0), normal(3.0, 0.5)], weights=[0.2, 0.5, 0.3]) ** 12
    )
    closed = poe.simplify(energy)
    assert len(poe.leaves(closed)) == math.comb(14, 2)
    torch.testing.assert_close(closed(X), energy(X), rtol=1e-10, atol=1e-9)


def test_mixtures_that_cannot_be_closed_are_left_whole() -> None:
    mixed = normal(0.0) | normal(2.0)
    cauchy = Distribution(distributions.Cauchy(torch.zeros(1, dtype=F64), 1.0))
    for energy in (mixed & cauchy, mixed**0.5, mixed**1e300, mixed**5000, ~mixed):
        assert energy.log_z is None
        assert isinstance(poe.simplify(energy), Product)


def test_weighted_mixtures_keep_their_weights() -> None:
    energy = poe.mixture([normal(0.0), normal(3.0), normal(9.0)], weights=[1, 3, 0]) & normal(
        1.0, 2.0
    )
    closed = poe.simplify(energy)
    torch.testing.assert_close(closed(X), energy(X))
    assert len(poe.leaves(closed)) == 2


def test_parts_without_mass_are_dropped() -> None:
    first, second = (
        Categorical(probs=torch.tensor(p, dtype=F64)) for p in ([1.0, 0.0, 0.0], [0.0, 0.5, 0.5])
    )
    energy = (first | second) & Categorical(probs=torch.tensor([0.5, 0.5, 0.0], dtype=F64))
    assert energy.log_z is not None
    assert energy.log_z.value == pytest.approx(math.log(0.5 + 0.25))
    assert energy.proper is True
    nothing = first & second
    assert nothing.proper is False
    assert (nothing | first).proper is not True or (nothing | first).log_z is not None


def test_a_closed_form_is_worked_out_again_when_its_experts_change() -> None:
    left, right = normal(0.0), normal(1.0)
    energy = left & right
    assert isinstance(energy, Product)
    closed = poe.simplify(energy)
    assert poe.simplify(energy) is closed  # worked out once
    left.load_state_dict(normal(5.0).state_dict())
    assert energy.log_z == (normal(5.0) & right).log_z
    energy.float()
    assert poe.simplify(energy).dtype == torch.float32
    left.loc = torch.tensor([1.0])  # type: ignore[assignment]
    assert energy.log_z is not None
    assert energy.log_z.value == pytest.approx(-0.5 * math.log(4 * math.pi))


def test_a_rule_that_comes_later_is_used(tilted: list[int]) -> None:
    energy = Tilt(1.0) & Tilt(2.0)
    assert energy.log_z is None
    count = closed_forms.count()
    poe.closed_form(Tilt)(lambda factors: poe.shift(Tilt(0.0), 0.0, log_z=poe.Estimate(0.0)))
    assert closed_forms.count() == count + 1
    closed_forms.TABLE.reverse()
    assert energy.log_z == (0.0, 0.0)


def test_learnable_powers_are_left_alone() -> None:
    energy = normal(0.0) ** nn.Parameter(torch.tensor(2.0)) & normal(1.0)
    assert poe.simplify(energy) is energy
    assert energy.log_z is None


def test_improper_products_stay_as_they_are() -> None:
    energy = normal(0.0, 2.0) / normal(0.0, 1.0)
    assert poe.simplify(energy) is energy
    assert energy.proper is False


def test_an_improper_part_makes_a_raw_mixture_improper() -> None:
    assert ((normal(0.0) | normal(1.0)) & ~normal(0.0, 0.5)).proper is False


def test_families_merge_side_by_side() -> None:
    bits = Bernoulli(torch.tensor([0.2, 0.7], dtype=F64))
    energy = bits & Bernoulli(torch.tensor([0.5, 0.9], dtype=F64))
    states = torch.cartesian_prod(
        torch.tensor([0.0, 1.0], dtype=F64), torch.tensor([0.0, 1.0], dtype=F64)
    )
    assert energy.log_z is not None
    assert energy.log_z.value == pytest.approx(float(torch.logsumexp(-energy(states), 0)))
    gammas = (
        Gamma(torch.tensor([2.0], dtype=F64), 1.0)
        & normal(0.0)
        & Gamma(torch.tensor([3.0], dtype=F64), 1.0)
        & normal(1.0)
    )
    closed = poe.simplify(gammas)
    assert len(poe.leaves(closed)) == 2
    positive = X[X[:, 0] > 0]
    torch.testing.assert_close(closed(positive), gammas(positive))
