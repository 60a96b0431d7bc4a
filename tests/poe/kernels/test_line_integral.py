"""Line-integral Metropolis: against the test by energies, the errors of its rules, and laws that
are known in closed form."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import poe
from poe.algebra.capabilities import ScoreOnly
from poe.kernels import Langevin, LineIntegral
from poe.kernels.line_integral import divided
from poe.mcmc.run import run, streams
from tests.poe.targets import Gauss, Raw, Score, Skewed, ks_pvalue, paired_pvalue

N = 50_000
LEVEL = 1e-4  # each invariance test fails by chance once in ten thousand seeds


def one_step(energy: poe.Energy, x: Tensor, kernel, seed: int = 7):
    state = kernel.init(energy, x)
    return kernel.step(energy, state, kernel.noise(state, torch.Generator().manual_seed(seed)))


# ---------------------------------------------------------------- the rules


@pytest.mark.parametrize("nodes", range(4))
def test_a_rule_is_exact_to_its_degree_and_then_off_by_what_is_stated(nodes: int) -> None:
    degree, constant = 2 * nodes + 3, (12, 2880, 1512000, 1422489600)[nodes]
    kernel = LineIntegral(0.5, nodes=nodes)
    x, move = (
        torch.tensor(v, dtype=torch.float64).reshape(-1, 1) for v in ([0.3, -1.1], [0.9, 1.7])
    )
    for power in range(1, degree + 1):
        scored = Score(Raw(lambda x, power=power: x[..., 0] ** power, d=1))
        gained = kernel.integrate(scored, kernel.init(scored, x), move)[1]
        error = gained - ((x + move) ** power - x**power)[:, 0]
        wanted = 0.0 if power < degree else math.factorial(degree) * move[:, 0] ** degree / constant
        assert torch.allclose(error, torch.zeros_like(error) + wanted, rtol=1e-6, atol=1e-12), power


def test_a_quartic_is_tested_as_by_its_energy_and_without_scores_everything_is() -> None:
    """Simpson's rule is exact for it; negative control: the trapezium is not."""

    def quartic(x: Tensor) -> Tensor:
        return (x[..., 0] ** 4 - x[..., 0] ** 3 + x[..., 0] * x[..., 1] ** 2 + x[..., 1] ** 4) / 4

    plain, other = Raw(quartic), Gauss(1.0, 0.8)
    scale = torch.tensor([[1.1, 0.0], [0.5, 0.9]], dtype=torch.float64)
    x = torch.randn(200, 2, dtype=torch.float64)
    wanted, info = one_step(plain & other, x, Langevin(0.2, scale=scale, dense=True))
    for energy, nodes in (
        (Score(plain) & other, 1),
        (Score(plain) & Score(other), 2),
        (plain & other, 0),
    ):
        found, same = one_step(energy, x, LineIntegral(0.2, nodes=nodes, scale=scale, dense=True))
        assert torch.allclose(same.acceptance, info.acceptance, atol=1e-12)
        assert torch.allclose(found.x, wanted.x) and torch.allclose(found.gradient, wanted.gradient)
    assert not torch.allclose(
        one_step(Score(plain) & other, x, LineIntegral(0.2, nodes=0))[1].acceptance,
        info.acceptance,
        atol=1e-3,
    )


# ---------------------------------------------------------------- the law


def cases() -> dict[str, tuple[poe.Energy, poe.Energy, Tensor, float]]:
    """(what is drawn from, its energy, draws of it, step size): scores alone, and products with
    what has an energy."""
    g = torch.Generator().manual_seed(3)
    a, b, c = Gauss(0.0, name="a"), Gauss(1.5, 0.7, name="b"), Gauss(1.0, 1.5, name="c")
    mixture = poe.mixture([a, b], weights=[0.3, 0.7])
    # the product of the mixture and c, in closed form: N(m, v) N(n, w) is N(n; m, v + w) times
    # N((mw + nv)/(v + w), vw/(v + w))
    parts, logs = [], []
    for weight, part in ((0.3, a), (0.7, b)):
        v, w = part.sd**2, c.sd**2
        parts.append(Gauss((part.loc * w + c.loc * v) / (v + w), math.sqrt(v * w / (v + w))))
        logs.append(
            math.log(weight) - math.log(v + w) - (part.loc - c.loc) ** 2 / (v + w)
        )  # two coordinates
    product = poe.mixture(parts, weights=torch.tensor(logs).softmax(0).tolist())
    return {
        "asymmetric": (Score(Skewed()), Skewed(), Skewed().sample(N, generator=g), 0.15),
        "mixture": (Score(mixture), mixture, mixture.sample(N, generator=g), 0.3),
        "product": (Score(mixture) & c, product, product.sample(N, generator=g), 0.3),
        "two scores": (
            Score(a) ** 2 & Score(b) / Score(a) & (a - c),
            a & b & (a - c),
            _both(a, b, c, N, g),
            0.1,
        ),
    }


def _both(a: Gauss, b: Gauss, c: Gauss, n: int, g: torch.Generator) -> Tensor:
    """a & b & (a - c) by rejection: draws of a² b, a normal, kept with probability p_a / (p_a +
    p_c)."""
    precision = 2 / a.sd**2 + 1 / b.sd**2
    normal = Gauss((2 * a.loc / a.sd**2 + b.loc / b.sd**2) / precision, precision**-0.5)
    x = normal.sample(6 * n, generator=g)
    return x[torch.rand(len(x), generator=g) < torch.sigmoid(a.log_prob(x) - c.log_prob(x))][:n]


@pytest.mark.parametrize("name", list(cases()))
def test_one_step_leaves_the_target_invariant_and_a_wrong_target_is_seen(name: str) -> None:
    energy, closed, x, step = cases()[name]
    assert len(x) == N
    after, info = one_step(energy, x, LineIntegral(step))
    assert 0.5 < info.acceptance.mean() < 0.99
    assert paired_pvalue(x, after.x, closed) > LEVEL
    shuffled = x.roll(N // 2, 0)
    assert ks_pvalue(shuffled[: N // 2], after.x[: N // 2]) > LEVEL
    wrong, _ = one_step(energy**1.1, x, LineIntegral(step))
    assert paired_pvalue(x, wrong.x, closed) < LEVEL


@pytest.mark.parametrize("unadjusted", [False, True])
def test_the_test_removes_the_bias_of_unadjusted_langevin(unadjusted: bool) -> None:
    """On N(0, 1) with step h the unadjusted variance is 1/(1 - h/2); the integral of a linear score
    is exact."""
    h, chains, energy = 0.5, 4000, Gauss(0.0, d=1)
    kernel = Langevin(h, metropolis=False) if unadjusted else LineIntegral(h, nodes=0)
    variance = 1 / (1 - h / 2) if unadjusted else 1.0
    start = math.sqrt(variance) * torch.randn(chains, 1, generator=torch.Generator().manual_seed(2))
    target = energy if unadjusted else Score(energy)
    trace = run(kernel, target, start, draws=100, generators=streams(5, 1, torch.device("cpu")))
    means = trace.x.square().mean((1, 2))  # one independent number a chain
    error = means.std() / math.sqrt(chains)
    assert abs(means.mean() - variance) < 4.5 * error
    assert abs(means.mean() - (1.0 if unadjusted else 1 / (1 - h / 2))) > 4.5 * error


# ---------------------------------------------------------------- what a run says


def test_the_energy_of_a_run_is_that_of_the_target_up_to_a_constant() -> None:
    a, b = Skewed(), Gauss(0.0, 2.0)
    x = a.sample(40, generator=torch.Generator().manual_seed(0)).double()
    trace = run(
        LineIntegral(0.15, nodes=3),
        Score(a) & b,
        x,
        draws=30,
        generators=streams(1, 1, torch.device("cpu")),
    )
    gap = trace.energy - (a & b)(trace.x)
    assert (gap - gap.mean()).abs().max() < 0.02 < trace.energy.std()
    assert trace.counts.gradients == 40 * 30 * 4


def test_draws_are_flagged() -> None:
    e = Score(Gauss(0.0)) & Gauss(1.0)
    with pytest.warns(UserWarning, match="finite mass"):
        draws = poe.sample(
            e, 400, kernel=LineIntegral(), init=torch.randn(100, 2), warmup=60, seed=1
        )
    assert not draws.exact and not draws.trusted
    assert 0.4 < draws.diagnostics.acceptance < 0.75
    assert "not exact" in str(poe.plan(e, kernel=LineIntegral()))


def test_one_call_of_the_network_a_step_and_it_is_a_pure_function() -> None:
    e, kernel = Score(Skewed()), LineIntegral(0.1, nodes=3)
    state = kernel.init(e, torch.zeros(5, 2))
    e.calls, noise = 0, kernel.noise(state, torch.Generator().manual_seed(0))
    first, second = kernel.step(e, state, noise)[0], kernel.step(e, state, noise)[0]
    assert e.calls == 2
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


# ---------------------------------------------------------------- what has an energy and what has
# not


def test_compositions_are_divided_and_their_gradients_add_up() -> None:
    score, a, f = Score(Skewed()), Gauss(1.0), Gauss(0.0, 0.5)
    x = torch.randn(20, 2, dtype=torch.float64)
    for e in (
        poe.shift(score & a, 1.0) & f,
        (score**2 & a) @ torch.sin,
        score / a & (a | f),
        poe.on(score, [2, 0], (3,)) & poe.on(a, [1, 2], (3,)),
    ):
        known, scored = divided(e)
        assert (
            known is not None
            and scored is not None
            and not any(leaf.can(ScoreOnly) for leaf in poe.leaves(known))
        )
        points = torch.randn(20, *e.event_shape, dtype=torch.float64)
        total = known.value_and_grad(points)[1] + scored.value_and_grad(points)[1]
        assert torch.allclose(e.value_and_grad(points)[1], total)
    assert divided(a & f)[1] is None and divided(score) == (None, score)
    for e in (score | a, (a - score) & f, a & poe.shift(f - score, 2.0)):
        with pytest.raises(
            TypeError, match="has only a score: `|` and `-` need experts with an energy"
        ):
            LineIntegral(0.1).init(e, x)


def test_walls_and_failures_of_the_others_are_respected() -> None:
    """An expert that is +inf beyond 1, and one that is NaN with a finite gradient below -1: neither
    is entered, only this counts."""

    def wall(x: Tensor) -> Tensor:
        return torch.where(x[..., 0] > 1, math.inf, 0.0 * x.sum(-1))

    def broken(x: Tensor) -> Tensor:
        return torch.where(x[..., 0] < -1, math.nan, 0.0 * x.sum(-1))

    kernel = LineIntegral(0.5)
    e = Score(Gauss(0.0)) & Raw(wall) & Raw(broken)
    state, bad, g = kernel.init(e, torch.zeros(500, 2)), 0, torch.Generator().manual_seed(0)
    for _ in range(20):
        state, info = kernel.step(e, state, kernel.noise(state, g))
        bad += int(info.nonfinite.sum())
        assert 0 < info.accepted.float().mean() < 1
    assert (state.x[:, 0].abs() <= 1).all() and state.energy.isfinite().all() and bad > 100


def test_what_makes_no_sense_is_refused() -> None:
    for nodes in (-1, 4, True):
        with pytest.raises(ValueError, match="from 0 to 3 nodes"):
            LineIntegral(nodes=nodes)
    with pytest.raises(ValueError, match="positive number in units of x squared"):
        LineIntegral(-1.0)
    kernel = LineIntegral()
    state = kernel.init(Score(Gauss(0.0)), torch.zeros(2, 2))
    with pytest.raises(ValueError, match="tuned by poe.sample"):
        kernel.step(Score(Gauss(0.0)), state, kernel.noise(state))
    half = poe.create("gamma", concentration=torch.ones(2), rate=torch.ones(2))
    with pytest.raises(ValueError, match="constrained support"):
        poe.sample(
            Score(Gauss(0.0)) & half, 10, kernel=LineIntegral(), init=torch.ones(4, 2), seed=0
        )
