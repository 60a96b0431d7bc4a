"""What is proven of the mass and the height of a density."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch import distributions as td
from torch.distributions import constraints

import poe
from experts import Beta, Categorical, Distribution, Function, Normal, Poisson
from poe.algebra.energy import Energy
from tests.poe.algebra.cases import INF, ZERO, lap, n1, n2, plane, wide


def cauchy(loc: float = 0.0) -> Energy:
    return Distribution(td.Cauchy(loc, 1.0))


class Plateau(Energy):
    """E = 0 on all of R."""

    flat = True

    def __init__(self) -> None:
        super().__init__(())

    def forward(self, x: Tensor) -> Tensor:
        return 0 * x


half = Beta(0.5, 1.0)


flat = Function(lambda x: 0 * x, (), name="flat")


PROPER: list[tuple[Callable[[], Energy], bool | None]] = [
    (lambda: n1 / n2, True),
    (lambda: n2 / n1, False),
    (lambda: ~n1, False),
    (lambda: n1**0, False),
    (lambda: cauchy() ** 0, False),
    (lambda: n1**0.1 & n1**0.2 / n1**0.3, False),
    (lambda: ~cauchy(), False),
    (lambda: ~(cauchy() & cauchy(1.0)), False),
    (lambda: cauchy() ** 0.5, None),
    (lambda: cauchy() ** 1.5, True),
    (lambda: cauchy() ** 0.5 & n1, True),
    (lambda: cauchy() / n1, None),
    (lambda: half**2, False),
    (lambda: half**1.5, True),
    (lambda: Distribution(td.Beta(0.5, 1.0)) ** 2, None),
    (lambda: Distribution(td.Beta(0.5, 1.0)) ** 0.9, True),
    (lambda: Distribution(td.Beta(0.5, 1.0)) & Beta(2.0, 3.0), True),
    (lambda: Distribution(td.Beta(0.5, 1.0)) & half, None),
    (lambda: flat, None),
    (lambda: ~flat, None),
    (lambda: flat & n1, None),
    (lambda: Distribution(td.Uniform(0.0, 1.0)) ** 7, True),
    (lambda: ~Distribution(td.Uniform(0.0, 1.0)), True),  # 1 on [0, 1]
    (
        lambda: (
            Distribution(td.Beta(0.5, 1.0)) & Beta(2.0, 3.0) / Distribution(td.Uniform(0.0, 1.0))
        ),
        True,
    ),
    (
        lambda: Distribution(td.Beta(0.5, 1.0)) & half / Distribution(td.Uniform(0.0, 1.0)),
        None,
    ),  # ∫ 1 / x
    (lambda: half**2 / Distribution(td.Uniform(0.0, 1.0)), None),  # again
    (lambda: n1 / Beta(1.0, 1.0), True),
    (lambda: n1 / Beta(2.0, 1.0), None),  # ∫ 1 / x
    (lambda: n1 / n2 / Distribution(td.Uniform(0.0, 1.0)), True),
    (
        lambda: cauchy() / n1 / Distribution(td.Uniform(torch.tensor(0.0), 1.0)),
        None,
    ),  # only a bounded support saves it
    (lambda: n1 / poe.shift(Distribution(td.Independent(td.Uniform(0.0, 1.0), 0)), 3.0), True),
    (lambda: ~Plateau(), False),  # 1 on all of R
    (lambda: n1 / Plateau(), True),
    (lambda: n1**-1 / Plateau(), False),
    (lambda: Distribution(td.Uniform(0.0, 1.0)) & Distribution(td.Uniform(2.0, 3.0)), False),
    (lambda: (Distribution(td.Uniform(0.0, 1.0)) & Distribution(td.Uniform(2.0, 3.0))) | n1, True),
    (
        lambda: (
            (Distribution(td.Uniform(0.0, 1.0)) | Distribution(td.Uniform(2.0, 3.0)))
            & Distribution(td.Uniform(4.0, 5.0))
        ),
        False,
    ),
    (lambda: n1 - n2, True),
    (lambda: n1 - flat, True),
    (lambda: flat - n1, None),
    (lambda: n1 | n2, True),
    (lambda: n1 | flat, None),
    (lambda: n1 | ~n1, False),
    (lambda: n1 @ torch.tanh, None),
    (lambda: Poisson(1.0) ** 2, True),
    (lambda: Poisson(1.0) & Normal(0.0, 1.0), True),
    (lambda: Poisson(1.0) ** 0.5 & cauchy() ** 0.5, None),
    (lambda: ~Categorical(torch.zeros(3)), True),
    (lambda: poe.shift(n1, 3.0), True),
    (lambda: n1 ** nn.Parameter(torch.tensor(1.0)), None),
]


@pytest.mark.parametrize(("make", "proper"), PROPER)
def test_proper(make: Callable[[], Energy], proper: bool | None) -> None:
    assert make().proper is proper


def at(energy: Energy, *index: int) -> Energy:
    return poe.on(energy, index, (3,))


sheet = Distribution(td.Laplace(ZERO, 1.0), name="sheet")


TILED: list[tuple[Callable[[], Energy], bool | None]] = [
    (lambda: at(sheet, 0, 1) & at(lap, 2), True),  # ∫∫∫ = 1
    (lambda: at(sheet, 0, 1) & at(lap, 2) & at(sheet, 2, 1), True),  # a bounded factor more
    (lambda: at(sheet, 2, 1) ** 2 & at(lap, 0) & at(wide, 1) ** 0.5, True),
    (lambda: at(sheet, 0, 1), False),  # the third coordinate is free
    (
        lambda: at(sheet, 0, 1) & at(sheet, 2, 1),
        None,
    ),  # ∫ m_a(x_1) m_b(x_1): the marginals may be unbounded
    (lambda: at(half, 0) & at(lap, 1) & at(lap, 2), True),  # unbounded, and a tile
    (lambda: at(half, 0) & at(half, 0) & at(lap, 1) & at(lap, 2), None),  # ∫ 1 / x
    (lambda: at(half, 0) ** 2 & at(lap, 1) & at(lap, 2), None),
    (lambda: at(lap, 0) & at(lap, 1) & at(lap, 2) / at(wide, 2), None),
    (lambda: at(lap, 0) ** 0.5 & at(lap, 1) & at(lap, 2), None),
    (lambda: at(plane, 0, 1) & at(plane, 2, 1), True),  # Normals have a closed form
    (lambda: at(n1, 0) & at(n1, 1) & at(n1, 2) / at(n2, 2), True),
    (lambda: at(n1, 0) & at(n1, 1) & at(n2, 2) / at(n1, 2), False),
    (lambda: at(n1, 0) & at(n1, 1), False),
    (lambda: at(Poisson(1.0), 0) & at(Poisson(1.0), 1) & at(Poisson(2.0), 2), True),
    (lambda: at(Poisson(1.0), 0) & at(lap, 1) & at(lap, 2), None),  # neither a sum nor an integral
]


@pytest.mark.parametrize(("make", "proper"), TILED)
def test_factors_on_parts_that_tile_the_event_are_proper(
    make: Callable[[], Energy], proper: bool | None
) -> None:
    assert make().proper is proper


def test_negative_powers_on_a_support_of_unknown_volume_are_unknown() -> None:
    class Disc(constraints.Constraint):
        event_dim = 1

        def check(self, value: Tensor) -> Tensor:
            return value.square().sum(-1) <= 1

    inside = Function(lambda x: x.square().sum(-1), (2,), support=Disc(), proper=True, bounded=True)
    assert (~inside).proper is None
    assert inside(torch.tensor([[0.5, 0.5], [2.0, 0.0]])).tolist() == [0.5, INF]


def test_bounded() -> None:
    assert (n1 & n2).bounded is True
    assert (n1 / n2).bounded is True
    assert (~n1).bounded is None
    assert (n1 & half).bounded is not True
    assert (n1 | half).bounded is not True
    assert (n1 - half).bounded is True
    assert (n1 @ torch.sin).bounded is True
