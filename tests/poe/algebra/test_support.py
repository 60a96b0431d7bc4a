"""Supports as sets: membership, inclusion, intersection and union against points, and bijections
from R^m."""

from __future__ import annotations

import math
from itertools import combinations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.distributions import constraints

from poe.algebra import support as sets
from poe.spaces import reals

GRID = torch.cartesian_prod(*[torch.linspace(-3, 3, 13)] * 2)  # halves, so that ends are hit

ends = st.tuples(st.integers(-4, 4), st.integers(-4, 4)).map(lambda p: (min(p) / 2, max(p) / 2))
infinite = st.sampled_from([(-math.inf, math.inf), (0.0, math.inf), (-math.inf, 1.0)])


@st.composite
def boxes(draw: st.DrawFn) -> sets.Box:
    sides = [draw(ends | infinite) for _ in range(2)]
    low, high = (torch.tensor(side, dtype=torch.float64) for side in zip(*sides, strict=True))
    return sets.Box(low, high, integer=draw(st.booleans()))


supports = st.recursive(
    boxes(),
    lambda s: st.lists(s, min_size=2, max_size=3).flatmap(
        lambda parts: st.sampled_from([sets.intersect(parts), sets.union(parts)])
    ),
    max_leaves=4,
)


@given(st.lists(supports, min_size=2, max_size=3))
def test_intersection_and_union_hold_the_right_points(parts: list[sets.Constraint]) -> None:
    member = torch.stack([sets.contains(part, GRID) for part in parts])
    assert torch.equal(sets.contains(sets.intersect(parts), GRID), member.all(0))
    union = sets.contains(sets.union(parts), GRID)
    solid = torch.stack(
        [sets.contains(part, GRID) for part in parts if not sets.is_empty(part)] or [member[0]]
    )
    assert bool(
        (union >= solid.any(0)).all()
    )  # an empty part may be dropped with its ends, which have no volume
    assert bool((union <= member.any(0)).all())


@given(supports, supports)
def test_inclusion_and_emptiness_are_never_wrong(a: sets.Constraint, b: sets.Constraint) -> None:
    inside_a, inside_b = sets.contains(a, GRID), sets.contains(b, GRID)
    if sets.covers(a, b) is True:
        assert bool((inside_a >= inside_b).all())
    if sets.is_empty(a) and sets.is_discrete(a):
        assert not bool(inside_a.any())
    if sets.is_infinite(a):
        assert not sets.is_bounded(a)


@given(boxes(), boxes())
def test_boxes_are_compared_exactly(a: sets.Box, b: sets.Box) -> None:
    assert sets.is_empty(sets.intersect([a, b])) == _overlap_is_empty(a, b)
    if not a.integer and not b.integer:
        assert sets.covers(a, b) == bool((a.low <= b.low).all() and (a.high >= b.high).all())


def _overlap_is_empty(a: sets.Box, b: sets.Box) -> bool:
    empty = False
    for i in range(2):
        low, high = max(a.low[i].item(), b.low[i].item()), min(a.high[i].item(), b.high[i].item())
        if a.integer or b.integer:
            empty |= (
                math.isfinite(low) and math.isfinite(high) and math.ceil(low) > math.floor(high)
            )
        else:
            empty |= low >= high
    return empty


def test_a_nan_lies_in_no_support() -> None:
    x = torch.tensor([math.nan, 0.5])
    for support in (
        sets.real((2,)),
        sets.box(0.0, 1.0, (2,)),
        sets.canonical(constraints.simplex, (2,)),
    ):
        assert not bool(sets.contains(support, x))


def test_unions_of_boxes_are_intersected_exactly() -> None:
    pair = sets.union([sets.box(0.0, 1.0, ()), sets.box(2.0, 3.0, ())])
    assert sets.is_empty(sets.intersect([pair, sets.box(4.0, 5.0, ())]))
    one = sets.intersect([pair, sets.box(2.5, 9.0, ())])
    assert isinstance(one, sets.Box)
    assert (one.low.item(), one.high.item()) == (2.5, 3.0)
    assert sets.is_bounded(pair)
    assert not sets.is_infinite(pair)
    assert sets.is_infinite(sets.union([pair, sets.box(0.0, math.inf, ())]))


def test_whole_numbers_meet_an_interval() -> None:
    counts = sets.Box(torch.tensor(0.0), torch.tensor(5.0), integer=True)
    both = sets.intersect([counts, sets.box(2.5, math.inf, ())])
    assert sets.is_discrete(both)
    assert not sets.is_empty(both)
    assert sets.contains(both, torch.arange(7.0)).tolist() == [False] * 3 + [True] * 3 + [False]
    assert sets.is_empty(sets.intersect([counts, sets.box(2.2, 2.8, ())]))


TORCH = [
    (constraints.real, ()),
    (constraints.positive, (2,)),
    (constraints.unit_interval, ()),
    (constraints.interval(-1.0, 2.0), (3,)),
    (constraints.less_than(1.0), ()),
    (constraints.greater_than_eq(1.0), (1,)),
    (constraints.simplex, (3,)),
    (constraints.simplex, (2, 3)),
    (constraints.independent(constraints.positive, 1), (2,)),
    (constraints.corr_cholesky, (3, 3)),
    (constraints.positive_definite, (2, 2)),
    (constraints.boolean, (2,)),
    (constraints.integer_interval(1, 4), ()),
    (constraints.one_hot, (3,)),
    (constraints.nonnegative_integer, ()),
    (constraints.real_vector, (2,)),
    (constraints.half_open_interval(0.0, 1.0), ()),
]


@pytest.mark.parametrize(("constraint", "shape"), TORCH, ids=str)
def test_canonical_supports_act_on_whole_events_and_have_an_inside(
    constraint: sets.Constraint, shape: tuple[int, ...]
) -> None:
    support = sets.canonical(constraint, shape)
    assert support.event_dim == len(shape)
    point = sets.inside_point(support, torch.empty(0), shape)
    assert point is not None
    assert point.shape == shape
    assert bool(sets.contains(support, point))
    batch = point.expand(4, *shape)
    assert sets.contains(support, batch).tolist() == [True] * 4
    assert sets.contains(support, batch[:0]).shape == (0,)
    assert sets.is_discrete(support) == constraint.is_discrete


BOXES = [
    sets.box(-1.0, 2.0, (2,)),
    sets.box(0.0, math.inf, (2,)),
    sets.box(-math.inf, 3.0, (2,)),
    sets.real((2,)),
]
BOXES.append(sets.Box(torch.tensor([0.0, -math.inf]), torch.tensor([1.0, math.inf])))


@pytest.mark.parametrize("box", BOXES, ids=str)
def test_box_transform_is_a_bijection_with_its_jacobian(box: sets.Box) -> None:
    transform = reals.from_reals(box)
    z = torch.randn(50, 2, dtype=torch.float64)
    x = transform(z)
    assert bool(sets.contains(box, x).all())
    torch.testing.assert_close(transform.inv(x), z)
    for row in z[:5]:
        jacobian = torch.autograd.functional.jacobian(transform, row)
        assert isinstance(jacobian, Tensor)
        logdet = transform.log_abs_det_jacobian(
            row, transform(row)
        ).sum()  # the identity gives a term for each coordinate
        torch.testing.assert_close(logdet, torch.linalg.slogdet(jacobian).logabsdet)


@pytest.mark.parametrize("pair", list(combinations(BOXES, 2)), ids=str)
def test_from_reals_of_an_intersection_and_a_union(pair: tuple[sets.Box, sets.Box]) -> None:
    z = torch.randn(200, 2)
    meet = sets.intersect(pair)
    assert bool(sets.contains(meet, reals.from_reals(meet)(z)).all())
    join = sets.union(pair)
    reached = reals.from_reals(join)(z)
    assert reached.isfinite().all()
    if isinstance(join, sets.Box):
        assert bool(sets.contains(join, reached).all())


def test_supports_print_short() -> None:
    assert repr(sets.real((2,))) == "real(2,)"
    assert repr(sets.box(0.0, math.inf, ())) == "interval[0, inf]()"
    pair = sets.union([sets.box(0.0, 1.0, ()), sets.box(2.0, 3.0, ())])
    assert repr(pair) == "interval[0, 1]() ∪ interval[2, 3]()"


def test_a_box_of_every_second_whole_number() -> None:
    spins = sets.Box(-torch.ones(2), torch.ones(2), integer=True, step=2)
    bits, thirds = (
        sets.Box(torch.zeros(2), torch.ones(2), integer=True),
        sets.Box(torch.zeros(2), torch.full((2,), 4.0), integer=True, step=2),
    )
    points = torch.tensor(
        [[-1.0, 1.0], [1.0, 1.0], [0.0, 1.0], [1.0, 3.0], [0.5, 1.0], [float("nan"), 1.0]]
    )
    assert sets.contains(spins, points).tolist() == [True, True, False, False, False, False]
    assert sets.contains(
        thirds, torch.tensor([[0.0, 2.0], [4.0, 4.0], [1.0, 2.0], [6.0, 0.0]])
    ).tolist() == [
        True,
        True,
        False,
        False,
    ]
    assert repr(spins) == "{-1, 1}(2,)" and repr(thirds) == "{0, 2, 4}(2,)"
    assert sets.is_discrete(spins) and sets.is_bounded(spins) and not sets.is_empty(spins)
    assert sets.covers(sets.real((2,)), spins) and sets.covers(spins, spins)
    assert sets.covers(spins, bits) is None and not sets.covers(bits, spins)
    both = sets.intersect([spins, bits])
    assert sets.contains(both, points).tolist() == [False, True, False, False, False, False]
    assert sets.intersect([spins, sets.real((2,))]) is spins
    half = sets.intersect([spins, sets.box(0.0, 5.0, (2,))])
    assert sets.contains(half, points).tolist() == [False, True, False, False, False, False]
    anchor = sets.inside_point(spins, points, (2,))
    assert anchor is not None and bool(sets.contains(spins, anchor))
