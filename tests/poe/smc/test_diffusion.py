"""Reverse diffusion with weights: exact noised experts in the plane and in 64 dimensions, where all
answers are known."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from scipy.stats import binomtest, chisquare
from torch import Tensor

import poe
from experts import Denoiser, NoiseSchedule
from poe.mcmc.run import streams
from poe.smc import diffusion, scores
from poe.smc.annealing import anneal
from poe.smc.diffusion import Noised, descend
from poe.smc.resampling import estimate
from poe.smc.spread import by_scores, dear, falls, spread
from poe.spaces.noise import noise_levels
from tests.poe.targets import Gauss, Raw

D, SIGMA = 64, 0.1


class Points(poe.Energy):
    """The law of equally likely points under noise: exact at every level, normalised. Points lie
    many σ apart at the lowest. They say that their values are not to be trusted, so that weights
    follow from scores."""

    sigma_range = (SIGMA, 8.0)
    rough_below = 0.0

    def __init__(self, points: Tensor, sigma: float = SIGMA, name: str | None = None) -> None:
        super().__init__(points.shape[1:], name=name)
        self.points, self.sigma = points, max(sigma, SIGMA)

    @property
    def proper(self) -> bool:
        return True

    @property
    def bounded(self) -> bool:
        return True

    @property
    def growth(self) -> float:
        return 0.5 / self.sigma**2

    def at(self, sigma: float) -> Points:
        return Points(self.points, sigma, self.name)

    def forward(self, x: Tensor) -> Tensor:  # (*batch, d) -> (*batch)
        squares = (x.unsqueeze(-2) - self.points).square().sum(-1)
        constant = math.log(len(self.points)) + self.points.shape[1] / 2 * math.log(
            2 * math.pi * self.sigma**2
        )
        return constant - (-squares / (2 * self.sigma**2)).logsumexp(-1)


def corners(*which: int) -> Tensor:
    """Some of 12 points of 64 dimensions, each with entries ±1."""
    generator = torch.Generator().manual_seed(5)
    return torch.randn(12, D, generator=generator).sign()[list(which)]


EVERY = Points(corners(*range(12)), name="every")
FIRST = Points(corners(0, 1, 2, 3, 4, 5, 6, 7), name="first")
LAST = Points(corners(5, 6, 7, 8, 9, 10, 11), name="last")


def nearest(x: Tensor) -> Tensor:  # (n, d) -> (n)
    return torch.cdist(x, corners(*range(12))).argmin(1)


def test_spread_of_noise_of_a_composition():
    assert spread(EVERY.at(0.5), 0.5) == pytest.approx(0.5)
    assert spread((EVERY & FIRST).at(0.5), 0.5) == pytest.approx(0.5 / math.sqrt(2))
    assert spread((FIRST & LAST / EVERY).at(0.5), 0.5) == pytest.approx(0.5)
    assert spread((FIRST - LAST).at(2.0), 2.0) == pytest.approx(2.0)
    assert spread((FIRST | LAST).at(2.0), 2.0) == pytest.approx(2.0)
    assert spread((EVERY / FIRST).at(0.5), 0.5) is None
    assert spread(Gauss(0.0), 0.5) is None
    assert not falls(Gauss(0.0)) and falls(EVERY) and dear(EVERY)


def test_gains_follow_from_scores_where_powers_sum_to_one():
    assert (
        by_scores(FIRST & LAST / EVERY)
        and by_scores(poe.shift(FIRST, 3.0))
        and by_scores(FIRST - LAST)
    )
    assert not by_scores(FIRST & LAST)  # twice as sharp as its experts
    assert not by_scores(FIRST | LAST)
    assert not by_scores(Points(torch.zeros(1, 2)))  # few dimensions: energies are as good


@pytest.mark.parametrize("make", [
    lambda a, b, c: a,
    lambda a, b, c: a & b / c,
    lambda a, b, c: a**3 & c / b**3,
    lambda a, b, c: poe.contrast(a, b, strength=3),
    lambda a, b, c: poe.shift(a & b / c, 1.7) - b,
])  # fmt: skip
def test_gain_of_single_points_is_exact(make):
    """One point each: x₀ is known, so r is exact and the gain is log p_k(x') - log p_{k-1}(x),
    wherever x and x' are."""
    g = torch.Generator().manual_seed(0)
    experts = [Points(torch.randn(1, 5, generator=g, dtype=torch.float64)) for _ in range(3)]
    target = make(*experts)
    above, below = target.at(1.3), target.at(0.9)
    x, to = torch.randn(2, 50, 5, generator=g, dtype=torch.float64)
    high, low = scores.Followed(above), scores.Followed(below)
    for followed, at in ((high, x), (low, to)):
        value, gradient = followed.value_and_grad(at)
        assert torch.allclose(value, followed.energy(at)) and torch.allclose(
            gradient, followed.energy.value_and_grad(at)[1]
        )
    (values, slope), (values_there, _) = high.remembered(), low.remembered()
    assert torch.allclose(
        scores.gain(high, low, x, values, slope, to, values_there), above(x) - below(to), atol=1e-9
    )
    assert (
        high.remembered() is low.remembered() is None
    )  # told once: nothing is kept at each of many levels


@pytest.mark.parametrize("crowd", [1, 4])
def test_weights_are_unbiased_and_bounded_from_both_sides(crowd):
    """E[Z] = 1 over few populations of few particles, with one move a level, of which four times as
    many may set out; the way back has mean 1/Z."""
    target = Points(torch.tensor([[2.0, 0.0], [-1.0, 1.0], [0.0, -3.0]])) & Points(
        torch.tensor([[2.2, 0.1], [-1.0, 0.8]])
    )
    axis = torch.linspace(-6, 6, 2401, dtype=torch.float64)
    log_z = float((-target(torch.cartesian_prod(axis, axis))).logsumexp(0)) + 2 * math.log(
        float(axis[1] - axis[0])
    )
    generators = streams(3, 3, torch.device("cpu"))
    schedule = descend(Noised.to(target, generators[0]), generators[0]).schedule
    schedule = replace(schedule, crowd=crowd, crowded=len(schedule.rungs) // 2)
    assert schedule.refined(3).crowded == 3 * schedule.crowded
    moved = anneal(
        schedule,
        lambda n, g: schedule.path.start.sample(n, generator=g),
        [300],
        32,
        [generators[1]],
    )
    assert moved.x.shape == (300, 32, 2) and moved.log_weights.shape == moved.ancestors.shape == (
        300,
        32,
    )
    assert 20 * crowd < int(moved.ancestors.max()) < 32 * crowd
    found = estimate(moved.log_ratio)
    assert abs(found.value - log_z) < 4 * found.standard_error and found.standard_error < 0.05
    mode = torch.cdist(moved.x.reshape(-1, 2), torch.tensor([[2.0, 0.0], [-1.0, 1.0]])).argmin(1)
    exact = moved.x.reshape(-1, 2)[
        torch.randint(len(mode), (2000,), generator=generators[2])
    ]  # near enough for a bound
    back = schedule.refined(2).back(exact, generators[2])
    assert float(-back.mean()) > log_z - 5 * float(back.std()) / math.sqrt(len(back))
    assert float((back + log_z).exp().mean()) == pytest.approx(1, abs=0.2)


def test_product_of_64_dimensions_has_the_right_log_z_and_shares():
    """first & last / every: three points are common, Z = (1/12) (12/8) (12/7) 3. The sum of the
    noised scores alone goes elsewhere."""
    target = FIRST & LAST / EVERY
    exact = math.log(3 / 12 * (12 / 8) * (12 / 7))
    draws = poe.sample(target, 1000, seed=0)
    counts = torch.bincount(nearest(draws.x), minlength=12)
    assert counts[[5, 6, 7]].sum() == len(draws)
    effective = min(draws.diagnostics.ancestors, len(draws))
    assert chisquare(counts[[5, 6, 7]].numpy() * effective / len(draws)).pvalue > 1e-3
    assert (
        abs(draws.log_z.value - exact) < 4 * draws.log_z.standard_error + 0.1
    )  # gains from scores are first order in δ
    assert "noise" in draws.plan and not draws.exact
    assert draws.diagnostics.nonfinite == 0
    residual = draws.x - corners(*range(12))[nearest(draws.x)]
    assert float(residual.square().mean()) == pytest.approx(
        SIGMA**2, rel=0.05
    )  # the last moves see to it
    estimated = poe.log_z(target, seed=1)
    assert abs(estimated.value - exact) < 4 * estimated.standard_error + 0.1


def test_contrast_of_64_dimensions():
    target = poe.contrast(
        FIRST, LAST, strength=8
    )  # at common points (1 + 7/8 · 8/7)^-8 = 2^-8 or so of the others
    draws = poe.sample(target, 400, seed=0)
    assert set(nearest(draws.x).tolist()) <= {0, 1, 2, 3, 4, 5, 6, 7}
    assert (
        binomtest(int((nearest(draws.x) > 4).sum()), 400, 0.02, alternative="greater").pvalue > 1e-3
    )


def test_a_raw_product_is_weighed_by_energies():
    """p_first p_last is sharper than its experts: N(x; m, σ²)² has variance σ²/2."""
    draws = poe.sample(FIRST & LAST, 400, seed=0)
    assert set(nearest(draws.x).tolist()) == {5, 6, 7}
    residual = draws.x - corners(*range(12))[nearest(draws.x)]
    assert float(residual.square().mean()) == pytest.approx(SIGMA**2 / 2, rel=0.05)


def test_same_seed_same_draws_and_checkpoints(tmp_path):
    target = FIRST & LAST / EVERY
    a = poe.sample(target, 64, seed=4)
    b = poe.sample(target, 64, seed=4, checkpoint=str(tmp_path / "run"))
    again = poe.sample(target, 64, seed=4, checkpoint=str(tmp_path / "run"))
    assert torch.equal(a.x, b.x) and torch.equal(a.x, again.x)
    assert a.log_z == b.log_z == again.log_z
    assert not torch.equal(a.x, poe.sample(target, 64, seed=5).x)


def test_an_expert_that_fails_is_said():
    class Broken(Points):
        def at(self, sigma: float) -> Points:
            return Broken(self.points, sigma, self.name)

        def forward(self, x: Tensor) -> Tensor:
            return (
                torch.where(x[..., 0] > 1.1, torch.nan, super().forward(x))
                if self.sigma < 1
                else super().forward(x)
            )

    draws = poe.sample(Broken(corners(0, 1, 2, 3), name="broken"), 100, seed=0)
    assert not draws.trusted and any("non-finite" in reason for reason in draws.reasons)

    class Void(Points):
        def at(self, sigma: float) -> Points:
            return Void(self.points, sigma, self.name)

        def forward(self, x: Tensor) -> Tensor:
            return torch.nan * super().forward(x)

    with pytest.raises(ValueError, match="no finite gradient|finite energy"):
        poe.sample(Void(corners(0, 1), name="void"), 100, seed=0)


def test_no_fall_is_longer_than_the_stride():
    """A single expert has weight 1 at any stride, and reverse diffusion by too long strides would
    draw something else."""
    (generator,) = streams(0, 1, torch.device("cpu"))
    pilot = descend(Noised.to(EVERY, generator), generator)
    sigmas = [8.0, *(rung.sigma for rung in pilot.schedule.rungs)]
    falls_ = [math.log(a / b) for a, b in pairwise(sigmas) if b > 0]
    assert max(falls_) <= diffusion.STRIDE + 1e-9 and sigmas[-1] == 0
    assert pilot.schedule.rungs[-1].moves <= diffusion.LAST


# ---------------------------------------------------------------- mixtures part by part


def test_parts_of_a_mixture_have_their_shares_whatever_lies_between():
    """A part that no other part's draws come near; the shares are those of the log Z, not of what
    is found."""
    a = poe.as_energy(torch.distributions.Normal(torch.zeros(1), torch.ones(1)))
    far = poe.normalize(
        Raw(lambda x: (x - 40).square().sum(-1) / 2, 1, name="far"),
        log_z=poe.Estimate(math.log(2 * math.pi) / 2),
    )
    mixed = poe.mixture([a, far], weights=[0.3, 0.7])
    assert poe.plan(mixed).method == "parts" and "shares" in str(poe.plan(mixed))
    draws = poe.sample(mixed, 1000, seed=0)
    share = float((draws.x > 20).double().mean())
    assert abs(share - 0.7) <= 1 / 1000
    assert draws.trusted and draws.log_z == poe.Estimate(0.0, 0.0)
    near, other = draws.x[draws.x < 20], draws.x[draws.x > 20]
    assert (
        abs(float(near.mean())) < 5 / math.sqrt(len(near)) and abs(float(other.mean()) - 40) < 0.5
    )
    assert torch.equal(draws.x, poe.sample(mixed, 1000, seed=0).x)
    with pytest.raises(ValueError, match="poe.normalize gives parts"):
        poe.plan(a | Raw(lambda x: (x - 40).square().sum(-1) / 2, 1), method="parts")


def test_a_known_log_z_that_draws_miss_is_said():
    a = poe.as_energy(torch.distributions.Normal(torch.zeros(1), torch.ones(1)))
    far = poe.normalize(
        Raw(lambda x: (x - 40).square().sum(-1) / 2, 1, name="far"),
        log_z=poe.Estimate(math.log(2 * math.pi) / 2),
    )
    draws = poe.sample(a | far, 400, method="annealed", seed=0)
    share = float((draws.x > 20).double().mean())
    assert abs(share - 0.5) < 0.15 or any(
        "log Z is known to be" in reason for reason in draws.reasons
    ), draws.report()


class Guided(Points):
    """Exact at every level by its `scored` alone: above the target, gradients of its own point
    away, and its mass is e^1.5."""

    by_score = False

    @property
    def scored(self) -> Guided:
        other = Guided(self.points, self.sigma, self.name)
        other.by_score = True
        return other

    def at(self, sigma: float) -> Guided:
        return Guided(self.points, sigma, self.name)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) - 1.5

    def _value_and_grad(self, x: Tensor) -> tuple[Tensor, Tensor]:
        value, gradient = super()._value_and_grad(x)
        return value, gradient if self.by_score or self.sigma in (
            SIGMA,
            self.sigma_range[1],
        ) else -gradient


def test_scores_are_followed_where_an_expert_has_better_ones():
    """Shares and log Z of first & last / every as of exact densities, though gradients above the
    target are wrong."""
    target = Guided(FIRST.points) & Guided(LAST.points) / Guided(EVERY.points)
    (generator,) = streams(0, 1, torch.device("cpu"))
    path = Noised.to(target, generator)
    assert path.level(1.0)[0].guided and not path.level(0.0)[0].guided  # type: ignore[attr-defined]
    assert path.mass == pytest.approx(1.5, abs=0.2)
    draws = poe.sample(target, 1000, seed=0)
    assert "log Z: of the densities" in draws.report()
    counts = torch.bincount(nearest(draws.x), minlength=12)
    assert counts[[5, 6, 7]].sum() == len(draws)
    effective = min(draws.diagnostics.ancestors, len(draws))
    assert chisquare(counts[[5, 6, 7]].numpy() * effective / len(draws)).pvalue > 1e-3
    exact = math.log(3 / 12 * (12 / 8) * (12 / 7))
    assert draws.log_z is not None
    assert abs(draws.log_z.value - exact) < 4 * draws.log_z.standard_error + 0.1
    residual = draws.x - corners(*range(12))[nearest(draws.x)]
    assert float(residual.square().mean()) == pytest.approx(SIGMA**2, rel=0.05)


def test_more_set_out_where_weights_leave_few():
    """A set of points is what its score leads to. The sum of the scores of high powers of two sets
    hardly finds the common point."""
    one, other, every = (
        Guided(corners(*which)) for which in ((0, 1, 2, 3), (0, 4, 5, 6), range(12))
    )
    (generator,) = streams(0, 1, torch.device("cpu"))
    target = one**3 & other**3 / every**5
    alone, common = (
        descend(Noised.to(energy, generator), generator).schedule for energy in (one, target)
    )
    assert alone.crowd == 1 and len(alone.rungs) == len(common.rungs)
    assert (
        common.crowd > 1 and common.rungs[common.crowded - 1].sigma > 1
    )  # points are about √128 apart
    assert common.gradients <= diffusion.DEARER * replace(common, crowd=1).gradients
    draws = poe.sample(target, 200, seed=0)
    assert draws.trusted and set(nearest(draws.x).tolist()) == {0}


class Concepts(Points):
    """One of two halves of the points as a concept; without it, all of them."""

    def at(self, sigma: float) -> Concepts:
        return Concepts(self.points, sigma, self.name)

    @property
    def unconditional(self) -> Points:
        return EVERY.at(self.sigma)


def test_a_concept_is_weighed_against_what_it_is_without_it():
    followed = scores.Followed(Concepts(FIRST.points).at(0.5))
    x = torch.randn(6, D, generator=torch.Generator().manual_seed(1))
    followed.value_and_grad(x)
    values, slope = followed.remembered()
    assert torch.allclose(slope, EVERY.at(0.5).value_and_grad(x)[1])
    assert torch.allclose(
        followed.relative(values, x), (FIRST.at(0.5)(x) - EVERY.at(0.5)(x)).double(), atol=1e-4
    )


def test_values_that_are_said_to_be_rough_are_not_compared():
    """Below the level that an expert states, a descent has weight 1 but for experts without noise,
    which count at every level."""

    class Rugged(Points):
        rough_below = 1.0

        def at(self, sigma: float) -> Points:
            return Rugged(self.points, sigma, self.name)

    every, first, last = (Rugged(p.points, name=p.name) for p in (EVERY, FIRST, LAST))
    tilt = poe.as_energy(
        lambda x: 2 * x[..., 0].tanh(), event_shape=(D,), bounded=True, name="tilt"
    )
    (generator,) = streams(0, 1, torch.device("cpu"))
    target = first & last / every & tilt
    path = Noised.to(target, generator)
    assert path.by_scores
    state = diffusion._at_rest(path.level(0.8)[0], torch.randn(16, D, generator=generator))
    fallen, logs = diffusion._fall(path, state, 0.8, 0.7, generator)
    assert torch.allclose(logs, tilt(state.x).double() - tilt(fallen.x).double(), atol=1e-5)
    state = diffusion._at_rest(path.level(2.0)[0], torch.randn(16, D, generator=generator))
    fallen, logs = diffusion._fall(path, state, 2.0, 1.5, generator)
    assert not torch.allclose(logs, tilt(state.x).double() - tilt(fallen.x).double(), atol=1e-2)


@pytest.mark.parametrize("d", [2, 48])
def test_energies_that_do_not_say_otherwise_are_what_is_drawn(d):
    """Two modes of an energy-parameterised denoiser, in few dimensions and in many: shares and log
    Z by quadrature over the first number, times a normal in each of the others."""
    axis, odds = torch.eye(d)[0], 0.5 * math.log(0.95 / 0.05)
    net = lambda u, t: torch.tanh(u[:, :1] / t[:, None] ** 2 + odds) * axis  # noqa: E731 - of data at axis (.95) and -axis (.05)
    schedule = NoiseSchedule.exploding(0.1, 5.0)
    target = Denoiser(
        net, (d,), schedule=schedule, predicts="denoised", energy="denoised", bounded=True
    )
    grid = torch.linspace(-4, 4, 8001, dtype=torch.float64)
    x = torch.zeros(len(grid), d, dtype=torch.float64)
    x[:, 0] = grid
    logs = -target(x.float()).double() + (d - 1) / 2 * math.log(2 * math.pi * 0.01)
    log_z = float(logs.logsumexp(0) + (grid[1] - grid[0]).log())
    share = float(logs.softmax(0)[grid > 0].sum())
    draws = poe.sample(target, 1000, seed=0)
    assert abs(float((draws.x[:, 0] > 0).double().mean()) - share) < 5 * math.sqrt(
        share * (1 - share) / draws.diagnostics.ess_bulk
    )
    assert (
        draws.log_z is not None and abs(draws.log_z.value - log_z) < 4 * draws.log_z.standard_error
    )
    assert "follow scores" not in draws.method


def test_parts_of_a_mixture_have_streams_of_their_own():
    def part(place: float) -> poe.Energy:
        net = lambda u, t: torch.full_like(u, place)  # noqa: E731
        made = Denoiser(
            net,
            (1,),
            schedule=NoiseSchedule.exploding(1.0, 5.0),
            predicts="denoised",
            energy="denoised",
            bounded=True,
        )
        return poe.normalize(made, log_z=poe.Estimate(math.log(2 * math.pi) / 2))

    both = poe.mixture([part(0.0), part(10.0)], weights=[0.5, 0.5])
    nested = poe.mixture(
        [part(-10.0), poe.mixture([part(0.0), part(10.0)], weights=[0.5, 0.5]), part(20.0)],
        weights=[0.5, 0.25, 0.25],
    )
    pieces = []
    for energy, seed in ((both, 0), (both, 1), (nested, 2)):
        x = poe.sample(energy, 800, seed=seed).x.flatten()
        pieces += [x[(x - place).abs() < 5] - place for place in (-10.0, 0.0, 10.0, 20.0)]
    pieces = [piece for piece in pieces if len(piece)]
    for i, a in enumerate(pieces):
        for b in pieces[:i]:
            assert (a[:, None] - b).abs().min(1).values.lt(1e-6).double().mean() < 0.05


def test_a_lone_chain_is_not_sought_again_for_want_of_others():
    target = Points(torch.tensor([[-1.0], [1.0]])) & Points(torch.tensor([[-1.0], [1.2]]))
    draws = poe.sample(target, 400, chains=1, seed=0)
    assert len(draws.reasons) == 1 and "R-hat needs at least two chains" in draws.reasons[0]
    assert draws.log_z is not None


def test_ends_of_a_range_are_not_rounded():
    for low, high in ((0.01, 5.1), (0.02, 5.1), (0.03, 1.1), (0.03, 2.2)):

        class Strict(Points):
            sigma_range = (low, high)

            def at(self, sigma: float) -> Strict:
                assert sigma == 0 or self.sigma_range[0] <= sigma <= self.sigma_range[1]
                level = Strict(self.points)
                level.sigma = sigma
                return level

        levels = noise_levels(Strict(torch.zeros(1, 2)))
        assert levels is not None and levels[0].sigma == high and levels[-2].sigma == low
