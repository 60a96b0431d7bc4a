"""The branches of an expression add up to its density, and scouts reach each of them."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributions import constraints
from torch.distributions.transforms import AffineTransform, SigmoidTransform

import experts
import poe
from poe.spaces.branches import MAX_BRANCHES, branches, scouts
from poe.spaces.structure import Structure
from tests.poe.targets import Gauss, Raw

LEAVES = [Gauss(m, sd, name=f"g{i}") for i, (m, sd) in enumerate([(0, 1), (1, 0.7), (-1, 2)])]
LEAVES += [poe.on(Gauss(0.5, 1.0, d=1, name="h"), [i], (2,)) for i in range(2)]


def bend(x: torch.Tensor) -> torch.Tensor:
    """A map without an inverse."""
    return torch.stack([x[..., 0] ** 2 - x[..., 1], x[..., 0].sin()], -1)


def grown(inner: st.SearchStrategy) -> st.SearchStrategy:
    """Expressions over smaller ones, by each of the operations."""
    pairs = st.tuples(inner, inner)
    return st.one_of(
        pairs.map(lambda ab: ab[0] | ab[1]),
        pairs.map(lambda ab: ab[0] | ab[1]),
        pairs.map(lambda ab: ab[0] & ab[1]),
        pairs.map(lambda ab: ab[0] & ab[1]),
        pairs.map(lambda ab: ab[0] - ab[1]),
        pairs.map(lambda ab: poe.contrast(ab[0], ab[1], 2.5)),
        st.tuples(inner, st.sampled_from([2.0, 3.0, 0.5, -1.0])).map(lambda e: e[0] ** e[1]),
        st.tuples(inner, st.floats(-3, 3)).map(lambda e: poe.shift(*e)),
        inner.map(lambda e: e @ bend),
    )


EXPRESSIONS = st.recursive(st.sampled_from(LEAVES), grown, max_leaves=7)


def total(found: list[tuple[float, poe.Energy]], x: torch.Tensor) -> torch.Tensor:
    """-log Σ w_k exp(-E_k)."""
    return -torch.stack([w - e(x) for w, e in found]).logsumexp(0)


@settings(max_examples=150, deadline=None)
@given(EXPRESSIONS)
def test_branches_add_up_to_the_density(energy: poe.Energy) -> None:
    x = 2 * torch.randn(40, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = branches(energy)
    if found is None:
        return
    assert 1 <= len(found) <= MAX_BRANCHES
    exact = energy(x)
    # powers of powers of ill-conditioned terms lose digits of the largest of them
    scale = 1e-10 * (1 + exact.abs() + torch.stack([e(x).abs() for _, e in found]).amax(0))
    torch.testing.assert_close(total(found, x) / scale, exact / scale, atol=100, rtol=0)


def leaves_of(energy: Any) -> set[int]:
    return set().union({id(energy)}, *map(leaves_of, energy.parts))


def test_products_distribute_and_experts_stay_one_object() -> None:
    a, b, c, d = (Raw(lambda x: x.sum(-1), name=n) for n in "abcd")
    found = branches(a & (b | c) & (b | d))
    assert found is not None and [w for w, _ in found] == [0.0] * 4
    assert [str(e) for _, e in found] == ["a & b ** 2", "a & b & d", "a & c & b", "a & c & d"]
    assert all(id(a) in leaves_of(e) for _, e in found)


def test_powers_expand_by_the_multinomial_theorem() -> None:
    a, b = (Raw(lambda x: x.square().sum(-1), name=n) for n in "ab")
    found = branches((a | b) ** 3)
    assert found is not None
    assert [round(math.exp(w), 9) for w, _ in found] == [1, 3, 3, 1]
    whole = (a | b) ** 2.5
    assert branches(whole) == [(0.0, whole)]  # no finite sum of products
    (one,) = branches(~(a | b)) or []
    assert one[0] == 0.0


def test_more_branches_than_are_told_apart_are_unknown() -> None:
    parts = [Raw(lambda x: x.sum(-1), name=f"r{i}") for i in range(MAX_BRANCHES + 1)]
    assert branches(poe.mixture(parts)) is None
    assert len(branches(poe.mixture(parts[:-1])) or []) == MAX_BRANCHES
    pairs = [a | b for a, b in zip(parts[::2], parts[1::2], strict=False)]
    assert branches(poe.product(pairs[:7])) is None
    assert branches((parts[0] | parts[1]) ** 64) is None
    assert len(branches(poe.product(pairs[:6])) or []) == 64


def test_branches_without_mass_are_left_out() -> None:
    left, right, narrow = (
        poe.as_energy(torch.distributions.Uniform(torch.tensor([a]), torch.tensor([b])))
        for a, b in [(0.0, 1.0), (2.0, 3.0), (0.2, 0.7)]
    )
    found = branches((left | right) & narrow)
    assert found is not None and len(found) == 1
    known = Structure.of(narrow & (left | right)).branches
    assert known is not None and len(known) == 1
    assert Structure.of(left & narrow).branches is None


def test_scouts_reach_each_branch() -> None:
    a, b, raw = Gauss(0.0, name="a"), Gauss(9.0, name="b"), Raw(Gauss(1.0), name="raw")
    assert scouts(raw & (a | b)) == [a, b]
    assert scouts((a | b) - raw)[:2] == [a, b]
    assert scouts(poe.shift(a | raw, 1.0)) == [a] and scouts(raw) == []
    assert scouts((raw & a) | (raw & b) | raw) == [a, b]
    assert scouts(a & (b | raw) @ bend) == [a]  # nothing is drawn through a map without inverse


def test_scouts_of_closed_forms_are_those() -> None:
    n = [experts.Normal([float(m)], [1.0]) for m in (0, 4, 8)]
    found = scouts(n[0] & (n[1] | n[2]) & Raw(lambda x: x.sum(-1) * 0, d=1))
    assert len(found) == 3  # each normal; a raw factor leaves no closed form
    x = scouts(n[0] & (n[1] | n[2]))
    draws = [float(e.sample(4000, generator=torch.Generator().manual_seed(0)).mean()) for e in x]  # type: ignore[operator]
    assert [round(m) for m in draws] == [2, 4]  # sd of a mean is .011


def test_scouts_see_through_maps_with_an_inverse() -> None:
    base = Gauss(0.0, 1.0, name="a")
    move = AffineTransform(torch.tensor([5.0, -1.0]), torch.tensor([2.0, 0.5]))
    (found,) = scouts(base @ move & Raw(lambda x: x.sum(-1)))
    x = found.sample(20_000, generator=torch.Generator().manual_seed(0))  # type: ignore[operator]
    # x = (y - loc) / scale has mean (-2.5, 2) and standard deviation (.5, 2)
    torch.testing.assert_close(x.mean(0), torch.tensor([-2.5, 2.0]), atol=0.06, rtol=0)
    torch.testing.assert_close(x.std(0), torch.tensor([0.5, 2.0]), atol=0.05, rtol=0)
    grid = torch.stack(
        torch.meshgrid(torch.linspace(-6, 1, 400), torch.linspace(-10, 14, 400), indexing="ij"), -1
    )
    mass = (-found(grid)).exp().sum() * 7 * 24 / 399**2
    assert abs(float(mass) - 1) < 1e-4
    assert scouts(base @ SigmoidTransform())  # a bijection of torch


def test_scouts_of_factors_that_fill_the_event_together() -> None:
    a, b = Gauss(3.0, 0.1, d=1, name="a"), Gauss(-3.0, 0.2, d=2, name="b")
    whole = poe.on(a, [1], (3,)) & poe.on(b, [2, 0], (3,)) & Raw(lambda x: x.sum(-1) * 0, d=3)
    (found,) = scouts(whole)
    x = found.sample((50, 40), generator=torch.Generator().manual_seed(0))  # type: ignore[operator]
    assert x.shape == (50, 40, 3) and found.log_z is not None and float(found.log_z) == 0.0
    means = x.mean((0, 1))
    torch.testing.assert_close(means, torch.tensor([-3.0, 3.0, -3.0]), atol=0.03, rtol=0)
    torch.testing.assert_close(found(x), whole(x))
    assert scouts(poe.on(a, [1], (3,))) == []  # draws of one number are no draws of three


def test_scouts_of_a_thousand_branches_are_one_mixture() -> None:
    parts = [Gauss(float(m), 0.1, name=f"g{m}") for m in range(1000)]
    (found,) = scouts(poe.mixture(parts) & Raw(lambda x: x.sum(-1) * 0))
    x = found.sample(4000, generator=torch.Generator().manual_seed(0))  # type: ignore[operator]
    met = len(x[:, 0].round().unique())
    # 1000 (1 - e^-4) = 982, standard deviation 4
    assert 960 < met <= 1000


@pytest.mark.parametrize("n", [1, 3])
def test_discrete_branches(n: int) -> None:
    bits = [experts.Bernoulli(torch.full((n,), p)) for p in (0.2, 0.9, 0.5)]
    whole = bits[2] & (bits[0] | bits[1]) ** 2
    found = branches(whole)
    assert found is not None and len(found) == 3
    x = torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * n).reshape(-1, n)
    torch.testing.assert_close(total(found, x), whole(x), atol=1e-5, rtol=0)
    assert constraints.is_dependent(whole.support) is False and len(scouts(whole)) == 3
