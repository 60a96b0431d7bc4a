"""Reverse diffusion with weights: exact noised experts in the plane and in 64 dimensions, where all
answers are known."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from scipy.stats import binomtest, chisquare
from torch import Tensor

import poe
from experts import Denoiser, NoiseSchedule
from poe.mcmc.run import streams
from poe.smc.diffusion_tuning import tune_diffusion
from poe.smc.noise_path import NoisePath
from poe.smc.population import anneal
from poe.smc.resampling import estimate
from tests.poe.smc.noised import EVERY, FIRST, LAST, SIGMA, Points, Scores, corners, nearest


@pytest.mark.parametrize("oversampling", [1, 4])
def test_weights_are_unbiased_and_bounded_from_both_sides(oversampling):
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
    schedule = tune_diffusion(NoisePath.to(target, generators[0]), generators[0]).schedule
    schedule = replace(
        schedule, oversampling=oversampling, oversampled_steps=len(schedule.steps) // 2
    )
    assert schedule.refined(3).oversampled_steps == 3 * schedule.oversampled_steps
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
    assert 20 * oversampling < int(moved.ancestors.max()) < 32 * oversampling
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
    )  # changes from scores are first order in δ
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


def test_scores_are_followed_where_an_expert_has_better_ones():
    """Shares and log Z of first & last / every as of exact densities, though gradients above the
    target are wrong."""
    target = Scores(FIRST.points) & Scores(LAST.points) / Scores(EVERY.points)
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


def test_a_lone_chain_is_not_sought_again_for_want_of_others():
    target = Points(torch.tensor([[-1.0], [1.0]])) & Points(torch.tensor([[-1.0], [1.2]]))
    draws = poe.sample(target, 400, chains=1, seed=0)
    assert len(draws.reasons) == 1 and "R-hat needs at least two chains" in draws.reasons[0]
    assert draws.log_z is not None
