from __future__ import annotations

import math

import torch
from torch.distributions import constraints

import experts
import poe
from poe.spaces.structure import Structure, candidates, factors
from tests.poe.targets import Gauss, Raw


def test_facts_of_a_product() -> None:
    a, raw = Gauss(0.0, name="a"), Raw(Gauss(1.0), name="raw", proper=None)
    known = Structure.of(a & raw)
    assert known.closed is known.energy and known.starts == (a,)
    assert (known.discrete, known.real, known.states, known.shares) == (False, True, None, None)
    assert known.log_z is None and known.obstacle is None
    assert not known.autoregressive and not known.noised


def test_a_closed_form_is_the_start() -> None:
    normals = experts.Normal([0.0], [1.0]) & experts.Normal([1.0], [2.0])
    known = Structure.of(normals)
    assert known.closed is not normals and known.starts == (known.closed,)
    assert known.log_z == known.closed.log_z


def test_a_change_without_a_trace_in_tensors_is_seen() -> None:
    """More numbers than a fingerprint compares, written through `.data`, which counts no version:
    the product of N(0, 1) and N(9, 1) has mean 4.5."""
    n = 3000
    a, b = (experts.Normal(torch.full((n,), m), torch.ones(n)) for m in (0.0, 1.0))
    both = a & b
    assert abs(float(poe.sample(both, 20, seed=0).x.mean()) - 0.5) < 0.03
    b.loc.data.fill_(9.0)
    assert abs(float(poe.sample(both, 20, seed=0).x.mean()) - 4.5) < 0.03  # 10 standard errors


def test_starts_are_positive_factors_wanted_sides_and_branches() -> None:
    a, b, raw = Gauss(0.0, name="a"), Gauss(1.0, name="b"), Raw(Gauss(1.0), name="raw")
    assert candidates(a / b & raw) == [a]
    assert candidates(a - raw) == [a]
    assert candidates(poe.shift(raw & a, 2.0)) == [a]
    assert candidates(raw) == [] and candidates(a | raw) == []  # no start reaches the branch raw
    (both,) = candidates((a & raw) | (b & raw))
    assert [str(part) for part in both.parts] == ["a", "b"] and both.shares == (0.5, 0.5)


def test_factors_are_seen_through_shifts_and_powers() -> None:
    a, b = Gauss(0.0), Gauss(1.0)
    found = factors(poe.shift(poe.shift(a & b**2.0, 1.0) ** 0.5, 3.0))
    assert [(part is a or part is b, power) for part, power in found] == [(True, 0.5), (True, 1.0)]


def test_small_discrete_spaces_and_shares() -> None:
    ising = experts.Ising((3, 3), 0.2)
    assert Structure.of(ising).states == 512 and Structure.of(ising).discrete
    assert Structure.of(experts.Ising((6, 6), 0.2)).states is None
    mixture = poe.mixture([Gauss(0.0), Gauss(1.0)], weights=[1, 3])
    shares = Structure.of(mixture).shares
    assert shares is not None and math.isclose(shares[1], 0.75)


def test_what_nothing_moves_on_is_said() -> None:
    class Counts(poe.Energy):
        def __init__(self) -> None:
            super().__init__((), support=constraints.nonnegative_integer)

        def forward(self, x):
            return torch.lgamma(x + 1.0)

    why = Structure.of(Counts()).obstacle
    assert why is not None and why.startswith("is discrete, without a closed form")


def test_parts_that_draw_are_found_wherever_they_stand() -> None:
    a, b, c = Gauss(0.0, name="a"), Gauss(1.0, name="b"), Raw(lambda x: x.sum(-1))
    assert candidates(a & b & c) == [a, b]
    assert candidates((a - c) & ~b) == [a]
    assert candidates(c) == []
