from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import poe
from poe.diagnostics.narrow_end import LEVEL, NarrowEnd
from poe.smc.narrow_end import crossing, growing, narrow_end, sign_test

F64 = torch.float64


class Counted(poe.Energy):
    """A function as an energy that counts gradients."""

    proper = bounded = True

    def __init__(self, function, shape, dtype=F64, gradient=None) -> None:
        super().__init__(shape)
        self.function, self.gradient, self.gradients = function, gradient, 0
        self.register_buffer("like", torch.zeros(1, dtype=dtype))

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)

    def _value_and_grad(self, x: Tensor) -> tuple[Tensor, Tensor]:
        self.gradients += x.shape[: x.ndim - len(self.event_shape)].numel()
        if self.gradient is None:
            return super()._value_and_grad(x)
        return self.function(x).detach(), self.gradient(x)  # a black box: no second derivatives


def neal(x: Tensor) -> Tensor:
    """v ~ N(0, 9), x_i ~ N(0, e^v), i = 1 ... 9; Neal 2003."""
    v, rest = x[..., 0], x[..., 1:]
    return v.square() / 18 + 4.5 * v + rest.square().sum(-1) * (-v).exp() / 2


def funnel(n: int, generator: torch.Generator, above: float = -math.inf) -> Tensor:
    """Exact draws, those with v > above."""
    z = torch.randn(4 * n, 10, generator=generator, dtype=F64)
    x = torch.cat([3 * z[:, :1], z[:, 1:] * (1.5 * z[:, :1]).exp()], 1)
    return x[x[:, 0] > above][:n]


Y = torch.tensor([28.0, 8, -3, 7, -1, 1, 18, 12], dtype=F64)
S = torch.tensor([15.0, 10, 16, 11, 9, 11, 10, 18], dtype=F64)


def schools(x: Tensor) -> Tensor:
    """Rubin's eight schools, centred, in (θ, μ, log τ): μ ~ N(0, 5²), τ ~ Cauchy⁺(5)."""
    theta, mu, t = x[..., :8], x[..., 8:9], x[..., 9]
    prior = (t.exp() / 5).square().log1p() - t + mu[..., 0].square() / 50
    spread = ((theta - mu) * (-t).exp().unsqueeze(-1)).square().sum(-1) / 2 + 8 * t
    return prior + spread + ((Y.to(x) - theta) / S.to(x)).square().sum(-1) / 2


def posterior(n: int, generator: torch.Generator, above: float = 0.0) -> Tensor:
    """Exact draws, those with τ > above: log τ from a grid, the rest in closed form."""
    t = torch.linspace(-12, 6, 20001, dtype=F64)
    v = S**2 + (2 * t).exp()[:, None]
    precision = (1 / v).sum(1) + 1 / 25
    mean = (Y / v).sum(1) / precision
    log_p = t - (t.exp() / 5).square().log1p()
    log_p = log_p - (v.log().sum(1) + precision.log() + (Y**2 / v).sum(1)) / 2
    log_p = log_p + mean.square() * precision / 2
    mass = torch.where(t.exp() > above, log_p, -math.inf).softmax(0)
    which = torch.multinomial(mass, n, replacement=True, generator=generator)
    t, mean, precision = t[which], mean[which], precision[which]
    z = torch.randn(n, 9, generator=generator, dtype=F64)
    mu = (mean + z[:, 8] / precision.sqrt())[:, None]
    own = 1 / S**2 + (-2 * t).exp()[:, None]
    theta = (Y / S**2 + mu * (-2 * t).exp()[:, None]) / own + z[:, :8] / own.sqrt()
    return torch.cat([theta, mu, t[:, None]], 1)


def looks(energy, draw, sets: int, **options) -> list[NarrowEnd]:
    """The record of each set of 1,000 draws."""
    draws, generator = torch.Generator().manual_seed(0), torch.Generator().manual_seed(1)
    found = []
    for _ in range(sets):
        x = draw(1000, draws)
        found.append(narrow_end(Counted(energy, x.shape[1:]), x, generator, **options))
    return found


def alarms(found: list[NarrowEnd]) -> int:
    return sum(record.fires for record in found)


# full counts: tests/benchmarks/bench_narrow_end.py


@pytest.mark.parametrize(
    ("energy", "draw", "coordinate"),
    [
        (neal, lambda n, g: funnel(n, g, -3.0), 0),
        (neal, lambda n, g: funnel(n, g, -1.0), 0),
        (schools, lambda n, g: posterior(n, g, 0.3), 9),
        (schools, lambda n, g: posterior(n, g, 0.6), 9),
    ],
    ids=["funnel > -3", "funnel > -1", "schools > .3", "schools > .6"],
)
def test_a_neck_that_is_missing_is_found_and_named(energy, draw, coordinate):
    found = looks(energy, draw, 10)
    # of 10 sets that each give an alarm with probability .9, 6 or fewer do with probability .013
    assert alarms(found) >= 7
    for record in filter(lambda record: record.fires, found):
        assert record.coordinate == coordinate and record.sign == -1
        assert f"small x[..., {coordinate}]" in record.reason() and "; try " in record.reason()
        assert record.beyond is not None and (-record.beyond[:, coordinate] > record.edge).all()
        assert record.gradients <= 50_000


@pytest.mark.parametrize(
    ("energy", "draw"), [(neal, funnel), (schools, posterior)], ids=["funnel", "schools"]
)
def test_exact_draws_give_no_alarm(energy, draw):
    found = looks(energy, draw, 20)
    # two alarms in 20 sets have probability .017 at most
    assert alarms(found) <= 1
    assert all(record.coordinate is not None and record.reason() is None for record in found)


def test_a_gaussian_costs_a_few_hundred_gradients():
    scale = torch.logspace(-3, 3, 10, dtype=F64)

    def energy(x: Tensor) -> Tensor:
        return (x / scale).square().sum(-1) / 2

    found = looks(energy, lambda n, g: scale * torch.randn(n, 10, generator=g, dtype=F64), 10)
    # a coordinate is taken for growing curvature by chance once in about fifty sets
    assert sum(record.gradients < 500 for record in found) >= 8 and not alarms(found)


def test_the_first_of_several_scales_does_not_hide_the_second():
    def draw(n: int, generator: torch.Generator) -> Tensor:
        return torch.cat([funnel(n, generator), funnel(n, generator, -3.0)], 1)

    found = looks(lambda x: neal(x[..., :10]) + neal(x[..., 10:]), draw, 3)
    assert all(record.fires and record.coordinate == 10 for record in found)


def test_the_look_is_the_same_again_and_counts_its_gradients():
    x = funnel(1000, torch.Generator().manual_seed(0))
    energies = [Counted(neal, (10,)) for _ in range(2)]
    first, second = (narrow_end(e, x, torch.Generator().manual_seed(5)) for e in energies)
    assert first.pvalue == second.pvalue and first.line() == second.line()
    assert first.gradients == energies[0].gradients == energies[1].gradients


@pytest.mark.parametrize("most", [4000, 10_000, 20_000])
def test_a_budget_is_kept_and_still_finds_the_neck(most):
    energy = Counted(neal, (10,))
    x = funnel(1000, torch.Generator().manual_seed(0), -3.0)
    record = narrow_end(energy, x, torch.Generator().manual_seed(1), max_gradients=most)
    assert record.fires and energy.gradients <= most


def test_float32_events_of_any_shape_and_gradients_without_second_derivatives():
    x = funnel(1000, torch.Generator().manual_seed(0), -3.0).float().reshape(-1, 2, 5)
    generator = torch.Generator().manual_seed(1)

    def gradient(x: Tensor) -> Tensor:
        v, rest = x.flatten(1)[:, :1], x.flatten(1)[:, 1:]
        own = v / 9 + 4.5 - rest.square().sum(1, keepdim=True) * (-v).exp() / 2
        return torch.cat([own, rest * (-v).exp()], 1).reshape(x.shape)

    energy = Counted(lambda x: neal(x.flatten(-2)), (2, 5), torch.float32, gradient)
    record = narrow_end(energy, x, generator)
    assert record.fires and record.name((2, 5)) == "x[..., 0, 0]"
    assert record.beyond.shape[1:] == (2, 5) and record.beyond.dtype == torch.float32


def test_copies_and_a_small_ess_make_it_less_sure():
    x = funnel(1000, torch.Generator().manual_seed(0), -3.0)
    copied = funnel(300, torch.Generator().manual_seed(0), -3.0)
    copied = copied[torch.randint(300, (1000,), generator=torch.Generator().manual_seed(2))]
    p = {}
    for name, draws, ess in (("all", x, None), ("ess", x, 300.0), ("copies", copied, None)):
        generator = torch.Generator().manual_seed(1)
        p[name] = narrow_end(Counted(neal, (10,)), draws, generator, ess=ess).pvalue
    assert p["all"] < p["ess"] and p["all"] < p["copies"]


def test_nothing_is_told_from_too_few_draws_or_rounded_energies():
    generator = torch.Generator().manual_seed(0)
    x = funnel(1000, generator)
    for few in (x[:0], x[:49], x[:1].expand(1000, 10), x * math.nan):
        assert narrow_end(Counted(neal, (10,)), few, generator) is None
    walled = Counted(lambda x: torch.where(x[..., 0] > 1e9, neal(x), math.inf), (10,))
    assert narrow_end(walled, x, generator) is None
    offset = Counted(lambda x: neal(x) + 1e8, (10,), torch.float32)
    assert narrow_end(offset, x.float(), generator) is None
    assert narrow_end(Counted(neal, (10,)), x, generator, max_gradients=1000) is None


def test_one_dimension_and_a_scalar_event():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1000, generator=generator, dtype=F64)
    for draws, shape in ((x, ()), (x[:, None], (1,))):
        energy = Counted(lambda x, s=shape: (x if s == () else x[..., 0]).square() / 2, shape)
        record = narrow_end(energy, draws, generator)
        assert record is not None and not record.fires


def test_the_sign_test_is_binomial():
    one = torch.ones(1, dtype=F64)
    assert sign_test(one.expand(10), one[:0], 1.0) == 2.0**-10
    assert sign_test(one.expand(9), one, 1.0) == pytest.approx(11 / 1024)
    assert sign_test(one[:0], one[:0], 1.0) == 1.0
    # ten crossings of weight 3 are ten; a share of .5 of them five
    assert sign_test(3 * one.expand(10), one[:0], 1.0) == 2.0**-10
    assert sign_test(one.expand(10), one[:0], 0.5) == 2.0**-5


@pytest.mark.parametrize(("shift", "least", "most"), [(0.0, 0.0, 0.05), (0.6, 0.9, 1.0)])
def test_the_test_keeps_its_level_on_exchangeable_pairs(shift, least, most):
    generator = torch.Generator().manual_seed(0)
    sets, alarms = 1000, 0
    for _ in range(sets):
        z = torch.randn(2, 1000, generator=generator, dtype=F64)
        start = z[0]
        end = 0.8 * start + 0.6 * z[1] + shift  # reversible where there is no shift
        order = start.argsort(descending=True)[:200]
        alarms += crossing(start[order], end[order], torch.ones(200, dtype=F64)).pvalue < 0.05
    error = 3 * math.sqrt(0.05 / sets)
    assert least <= alarms / sets <= most + error


def test_growing_curvature_is_read_from_gradients():
    generator = torch.Generator().manual_seed(0)
    x = funnel(256, generator).requires_grad_()
    (gradient,) = torch.autograd.grad(neal(x).sum(), x)
    assert growing(x.detach(), gradient)[:, 0].tolist() == [-1.0] + [0.0] * 9
    z = torch.randn(256, 10, generator=generator, dtype=F64)
    assert growing(z, z).shape == (10, 0)


def test_the_record_says_what_was_found():
    record = NarrowEnd(1e-6, 3, -1, chains=200, outwards=40, inwards=1)
    assert record.fires and record.pvalue < LEVEL
    assert record.line((2, 2)) == (
        "narrow end, small x[..., 1, 1]: of 200 short chains 40 went out and 1 came back "
        "(p = 1e-06)"
    )
    assert NarrowEnd(1.0).reason() is None
    assert NarrowEnd(1.0).line() == "narrow end: curvature grows along no coordinate"
