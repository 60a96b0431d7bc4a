"""Functions as energies: the four links against quadrature and high precision."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import integrate
from torch import Tensor, nn
from torch.distributions import constraints

import poe
from experts import Function, function
from poe.testing import check_expert

F64 = torch.float64


def quartic(x: Tensor) -> Tensor:
    return (x**4 - x).sum(-1)


class Squeeze(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.squeeze(-1)


LINKS = {
    "exp": lambda g: math.exp(-g),
    "square": lambda g: g**2,
    "abs": abs,
    "softplus": lambda g: math.log1p(math.exp(g)),
}


@pytest.mark.parametrize("link", LINKS)
def test_links(link: str) -> None:
    energy = Function(quartic, (1,), link=link)  # type: ignore[arg-type]
    for x in (-1.3, 0.2, 0.9, 2.0):
        density = LINKS[link](x**4 - x)
        assert float(energy(torch.tensor([x], dtype=F64))) == pytest.approx(
            -math.log(density), rel=1e-12
        )


@pytest.mark.parametrize("link", LINKS)
def test_laws(link: str) -> None:
    make = lambda: Function(lambda x: (x**2).sum(-1) + 0.5, (2,), link=link)  # type: ignore[arg-type]  # noqa: E731
    report = check_expert(make, points=torch.randn(24, 2))
    assert "gradient" in report.checked


def test_softplus_link_far_below_zero_keeps_its_digits() -> None:
    energy = Function(lambda x: x, (), link="softplus")
    for g in (-700.0, -100.0, -25.0, -20.0, -19.9, -5.0):
        u = math.exp(g)
        expected = -(g - u / 2 + 5 * u**2 / 24) if g < -15 else -math.log(math.log1p(u))
        assert float(energy(torch.tensor(g, dtype=F64))) == pytest.approx(expected, rel=1e-12)
    value, gradient = energy.value_and_grad(torch.tensor([-1e4, -90.0, 0.0, 90.0, 1e4]))
    assert value.isfinite().all()
    assert gradient.isfinite().all()
    assert float(gradient[0]) == pytest.approx(-1.0)


def test_zeros_of_a_density_have_infinite_energy_and_no_nan() -> None:
    for link in ("square", "abs"):
        energy, gradient = Function(lambda x: x, (), link=link).value_and_grad(torch.zeros(2))
        assert energy.tolist() == [math.inf, math.inf]
        assert gradient.tolist() == [0.0, 0.0]


def test_products_of_links_integrate() -> None:
    energy = Function(lambda x: x - 0.5, (), link="square") & poe.create(
        "normal", loc=0.0, scale=1.0
    )
    mass = integrate.quad(
        lambda x: math.exp(-float(energy(torch.tensor(x, dtype=F64)))), -9, 9, points=[0.5]
    )[0]
    assert mass == pytest.approx(1.25, rel=1e-6)  # E (x - 1/2)² of a standard normal


def test_modules_stay_in_eval_mode_and_learn() -> None:
    net = nn.Sequential(nn.Linear(2, 8), nn.Dropout(0.5), nn.SiLU(), nn.Linear(8, 1), Squeeze())
    energy = poe.as_energy(net, event_shape=(2,))
    assert isinstance(energy, Function)
    assert sum(p.numel() for p in energy.parameters()) == 33
    nn.ModuleList([energy]).train()
    assert not net.training
    assert energy.dtype == torch.float32
    energy(torch.zeros(2)).backward()
    assert net[0].bias.grad is not None  # type: ignore[union-attr]


def test_as_energy_takes_callables() -> None:
    energy = poe.as_energy(quartic, event_shape=(3,), proper=True, bounded=True)
    assert energy.event_shape == (3,)
    assert energy.proper is True
    assert energy.bounded is True
    assert (energy**2).proper is True
    plain = poe.as_energy(quartic, event_shape=(3,))
    assert plain.proper is None
    assert plain.bounded is None
    assert plain.log_z is None


def test_function_names_itself() -> None:
    assert str(function(quartic, (2,))) == "quartic"
    assert str(function(lambda x: x, ())) == "function"
    assert str(function(quartic, (2,), name="well") ** 2) == "well ** 2"


def test_support() -> None:
    energy = Function(lambda x: x.log().sum(-1), (2,), support=constraints.positive)
    assert torch.equal(
        energy(torch.tensor([[1.0, 1.0], [-1.0, 2.0]])), torch.tensor([0.0, math.inf])
    )


def test_a_stated_event_shape_is_read() -> None:
    class Net(nn.Module):
        event_shape = (4,)

        def forward(self, x: Tensor) -> Tensor:
            return x.sum(-1)

    assert Function(Net()).event_shape == (4,)


def test_mistakes_are_explained() -> None:
    with pytest.raises(ValueError, match="drop its last axis, lambda x: g\\(x\\).squeeze\\(-1\\)"):
        Function(nn.Linear(2, 1), (2,))(torch.zeros(5, 2))
    with pytest.raises(ValueError, match="one number for each event"):
        Function(lambda x: x, (2,))(torch.zeros(5, 2))
    with pytest.raises(TypeError, match="returned float, not a tensor"):
        Function(lambda x: 0.0, (2,))(torch.zeros(2))  # type: ignore[arg-type, return-value]
    with pytest.raises(TypeError, match="event_shape=\\(2,\\)"):
        Function(quartic)
    with pytest.raises(ValueError, match="choose one of 'exp', 'square', 'abs', 'softplus'"):
        Function(quartic, (1,), link="tanh")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="takes a callable"):
        Function(3.0, (1,))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="a file cannot hold"):
        Function(quartic, (1,)).config()


def test_a_function_sees_one_batch_axis() -> None:
    energy = Function(lambda x: (x[:, 0] - 1) ** 2 + x[:, 1] ** 2, (2,))
    x = torch.randn(3, 4, 2)
    assert torch.equal(energy(x), (x[..., 0] - 1) ** 2 + x[..., 1] ** 2)
    assert energy(x[0, 0]).shape == () and energy(x[:0]).shape == (0, 4)
