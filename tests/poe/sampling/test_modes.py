from __future__ import annotations

import pytest
import torch
from torch.distributions import constraints

import experts
import poe
from tests.poe.targets import Gauss, Raw


def test_the_mode_of_a_product_of_normals_is_the_weighted_mean() -> None:
    target = Gauss(0.0, 1.0, d=3) & Gauss(3.0, 0.5, d=3)
    assert torch.allclose(poe.mode(target, seed=0), torch.full((3,), 12 / 5), atol=1e-3)


def test_of_several_modes_the_likeliest_is_found() -> None:
    target = poe.mixture([Gauss(-4.0, 0.5), Gauss(4.0, 0.4)], weights=[0.5, 0.5]) & Gauss(
        0.0, 100.0
    )
    assert torch.allclose(poe.mode(target, seed=0), torch.full((2,), 4.0), atol=1e-2)


def test_constrained_supports_have_the_mode_over_x() -> None:
    class Gamma(poe.Energy):
        proper = bounded = True

        def __init__(self) -> None:
            super().__init__((2,), support=constraints.positive)

        def forward(self, x):
            return (x - 2 * x.log()).sum(-1)

    assert torch.allclose(
        poe.mode(Gamma(), seed=0), torch.full((2,), 2.0), atol=1e-3
    )  # (k - 1)·θ of Gamma(3, 1)


def test_small_discrete_spaces_are_searched_whole_and_unbounded_energies_refused() -> None:
    class Bits(poe.Energy):
        def __init__(self) -> None:
            super().__init__((3,), support=constraints.boolean)

        def forward(self, x):
            return x[..., 0] - x[..., 1] + 0.5 * x[..., 1] * x[..., 2]

    assert poe.mode(Bits()).tolist() == [0.0, 1.0, 0.0]
    falling = Raw(lambda x: -x.square().sum(-1), name="falling")
    with pytest.raises(ValueError, match="falling has no most likely x"):
        poe.mode(falling, init=torch.ones(1, 2))


def test_where_the_search_may_not_start_is_said() -> None:
    half = Gauss(0.0, d=1) & experts.Gamma(torch.tensor([3.0]), 1.0)
    for init, said in {-3.0: "no point of init has finite energy", 0.0: "no point of init"}.items():
        with pytest.raises(ValueError, match=said):
            poe.mode(half, init=torch.full((1, 1), init))
    with pytest.raises(ValueError, match=r"event shape \(2,\) of gauss, got shape \(2, 3\)"):
        poe.mode(Gauss(0.0), init=torch.zeros(2, 3))
    with pytest.raises(TypeError, match="takes energies, not int"):
        poe.mode(3)  # type: ignore[arg-type]


def test_nan_and_energies_without_a_least_value_are_refused() -> None:
    nan = Raw(lambda x: torch.where(x.sum(-1) > 0, torch.nan, x.square().sum(-1)))
    with pytest.raises(ValueError, match="NaN where the search"):
        poe.mode(nan, init=-torch.ones(3, 2))
    with pytest.raises(ValueError, match="falls without bound"):  # x²/2 + log x: at the border
        poe.mode(Gauss(0.0, d=1) / experts.Gamma(torch.tensor([2.0]), 1.0), init=torch.ones(2, 1))
    with pytest.raises(ValueError, match="infinitely many values"):
        poe.mode(experts.Poisson(torch.tensor([3.5])))
    with pytest.raises(ValueError, match="NaN at 1 of 2 points of init"):
        poe.mode(nan, init=torch.tensor([[-1.0, -1.0], [1.0, 1.0]]))


def test_a_far_and_narrow_number_beside_a_half_line_is_no_border() -> None:
    box = poe.algebra.support.box(
        torch.tensor([0.0, -torch.inf]), torch.tensor([torch.inf, torch.inf])
    )
    near = lambda x: (x[..., 0] - 1).square() / 2 + ((x[..., 1] - 67.3) / 1e-3).square() / 2  # noqa: E731
    target = poe.as_energy(near, event_shape=(2,), support=box)
    assert torch.allclose(
        poe.mode(target, init=torch.tensor([[2.0, 67.29]])), torch.tensor([1.0, 67.3]), atol=1e-3
    )
