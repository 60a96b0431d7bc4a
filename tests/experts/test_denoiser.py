"""Denoising networks: every prediction on every schedule against data whose noised densities are
closed forms."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

import poe
from experts import Denoiser, NoiseSchedule, Normal
from poe.algebra.capabilities import Conditional, NoiseConditional, ScoreOnly
from poe.kernels import Langevin, LineIntegral
from poe.mcmc.run import run, streams
from poe.testing import check_expert, one_step_invariance

EPS = torch.finfo(torch.float64).eps
LOW, HIGH = 1e-9, 1e9
PREDICTIONS = ("noise", "score", "denoised", "velocity")

# data: a mixture of two normals in the plane
WEIGHT = torch.tensor([0.3, 0.7], dtype=torch.float64)
MEAN = torch.tensor([[-2.0, 0.5], [1.5, -1.0]], dtype=torch.float64)
VARIANCE = torch.tensor([0.4, 0.9], dtype=torch.float64)


def truth(u: Tensor, alpha: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    # (n, 2), (n), (n) -> (n, 2), (n, 2)
    """E[x₀ | u] and E[ε | u] for u = αx₀ + sε, each by its own formula."""
    total = alpha[:, None] ** 2 * VARIANCE.to(u) + s[:, None] ** 2
    away = u[:, None] - alpha[:, None, None] * MEAN.to(u)
    share = (WEIGHT.to(u).log() - total.log() - away.square().sum(-1) / 2 / total).softmax(-1)
    gain = share / total
    clean = share @ MEAN.to(u) + alpha[:, None] * ((gain * VARIANCE.to(u))[..., None] * away).sum(1)
    return clean, s[:, None] * (gain[..., None] * away).sum(1)


def noised(x: Tensor, sigma: float) -> tuple[Tensor, Tensor]:  # (n, 2) -> (n, 2), (n, 2)
    """E[x₀ | x] and E[ε | x]."""
    return truth(x, x.new_ones(len(x)), x.new_full((len(x),), sigma))


def log_density(x: Tensor, sigma: float) -> Tensor:  # (n, 2) -> (n)
    normals = torch.distributions.MultivariateNormal(
        MEAN, (VARIANCE + sigma**2)[:, None, None] * torch.eye(2, dtype=x.dtype)
    )
    return torch.distributions.MixtureSameFamily(
        torch.distributions.Categorical(WEIGHT), normals
    ).log_prob(x)


def schedules() -> dict[str, tuple[NoiseSchedule, object]]:
    """Each with α and s as functions of t, written apart from it."""
    rates = lambda t: 0.1 * t + 19.9 * t**2 / 2  # noqa: E731
    return {
        "exploding": (NoiseSchedule.exploding(LOW, HIGH), lambda t: (torch.ones_like(t), t)),
        "log exploding": (
            NoiseSchedule.exploding(LOW, HIGH, log=True),
            lambda t: (torch.ones_like(t), t.exp()),
        ),
        "preserving": (
            NoiseSchedule.preserving(LOW, HIGH, math.atan),
            lambda t: (t.cos(), t.sin()),
        ),
        "linear": (
            NoiseSchedule.linear(first=1e-5),
            lambda t: ((-rates(t) / 2).exp(), (-(-rates(t)).expm1()).sqrt()),
        ),
        "flow": (NoiseSchedule.flow(LOW, HIGH), lambda t: (1 - t, t)),
    }


def network(kind: str, predicts: str, path):
    """What a perfect network returns at (u, t), in its own terms."""

    def net(u: Tensor, t: Tensor) -> Tensor:
        alpha, s = path(t)
        clean, noise = truth(u, alpha, s)
        alpha, s = alpha[:, None], s[:, None]
        if predicts == "velocity":
            return {
                "exploding": noise,
                "flow": noise - clean,
                "preserving": alpha * noise - s * clean,
            }[kind]
        return {"noise": noise, "score": -noise / s, "denoised": clean}[predicts]

    return net


def expert(name: str, predicts: str, **changes) -> Denoiser:
    schedule, path = schedules()[name]
    return Denoiser(
        network(schedule.kind, predicts, path),
        (2,),
        schedule=schedule,
        predicts=predicts,
        name="data",
        **changes,
    )


def points(sigma: float, n: int = 50) -> Tensor:
    g = torch.Generator().manual_seed(1)
    return 2 * torch.randn(n, 2, generator=g, dtype=torch.float64) + sigma * torch.randn(
        n, 2, generator=g, dtype=torch.float64
    )


# ---------------------------------------------------------------- what networks predict


@pytest.mark.parametrize("predicts", PREDICTIONS)
@pytest.mark.parametrize("name", list(schedules()))
def test_every_prediction_gives_the_same_clean_point_and_noise(name: str, predicts: str) -> None:
    """To 10⁻¹⁰, and where σ is huge or tiny to what rounding leaves of x - σe, and of (x - D)/σ."""
    e = expert(name, predicts)
    low, high = e.sigma_range
    for sigma in (low, max(1e-3, low), 0.3, 1.0, 7.0, min(1e3, high), high):
        x = points(sigma)
        clean, noise = noised(x, sigma)
        size, far = x.abs().amax(), noise.abs().amax()
        subtracts = predicts in ("noise", "score") or (
            name.endswith("exploding") and predicts == "velocity"
        )
        assert (e.at(sigma).denoised(x) - clean).abs().amax() < 1e-10 + 64 * EPS * (
            size + sigma * far
        ) * subtracts
        assert (e.at(sigma).noise(x) - noise).abs().amax() < 1e-10 + 64 * EPS * size / sigma * (
            predicts == "denoised"
        )


@pytest.mark.parametrize("predicts", PREDICTIONS)
@pytest.mark.parametrize("name", list(schedules()))
def test_the_score_is_that_of_the_noised_data(name: str, predicts: str) -> None:
    for sigma in (0.02, 0.3, 1.0, 7.0):
        x = points(sigma).requires_grad_()
        (wanted,) = torch.autograd.grad(log_density(x, sigma).sum(), x)
        assert torch.allclose(
            expert(name, predicts).at(sigma).score(x.detach()), wanted, rtol=1e-9, atol=1e-10
        )
        other = expert(name, predicts).at(sigma * 1.01).score(x.detach())
        assert not torch.allclose(other, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("schedule", "ends"),
    [
        (NoiseSchedule.preserving(0.1, 1.0, float), ((1, 0, 0, 1), (0, 1, -1, 0))),
        (NoiseSchedule.flow(), ((1, 0, -1, 1), (0, 1, -1, 1))),
    ],
)
def test_coefficients_hold_at_both_ends_and_are_the_path_with_its_rates(
    schedule: NoiseSchedule, ends
) -> None:
    assert schedule.coefficients(0.0) == ends[0] and schedule.coefficients(math.inf) == ends[1]
    # its velocity is the rate by the angle whose tangent is σ
    angle = schedule.kind == "preserving"
    for t in (0.1, 0.5, 0.9):
        sigma = [math.tan(a) if angle else a / (1 - a) for a in (t - 1e-6, t, t + 1e-6)]
        before, c, after = (schedule.coefficients(value) for value in sigma)
        assert c.s / c.alpha == pytest.approx(sigma[1])
        assert (after.alpha - before.alpha) / 2e-6 == pytest.approx(c.alpha_rate, rel=1e-6)
        assert (after.s - before.s) / 2e-6 == pytest.approx(c.s_rate, rel=1e-6)
        assert c.alpha * c.s_rate - c.s * c.alpha_rate == pytest.approx(1)


def test_the_time_of_the_linear_diffusion_is_that_of_its_equation() -> None:
    """du = -β(t)u/2 dt + √β(t) dW, β(t) = 0.1 + 19.9t: from u = x₀, mean and variance by Euler's
    steps of their own equations."""
    schedule, mean, variance, n = NoiseSchedule.linear(), 1.0, 0.0, 20_000
    for k in range(n):
        rate = 0.1 + 19.9 * (k + 0.5) / n
        mean, variance = mean * (1 - rate / 2 / n), variance + rate / n * (1 - variance)
        if k + 1 in (n // 4, n // 2, n):
            sigma = math.sqrt(variance) / mean
            assert schedule.time(sigma) == pytest.approx((k + 1) / n, abs=2e-3)
    assert [schedule.time(sigma) for sigma in schedule.sigma_range] == pytest.approx([1e-3, 1.0])


def test_a_table_is_met_at_its_entries_and_followed_between_them_by_log_sigma() -> None:
    table = (1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)).cumprod(0)
    schedule, sigmas = NoiseSchedule.discrete(table), ((1 - table) / table).sqrt().tolist()
    for t in (0, 1, 500, 999):
        assert schedule.time(sigmas[t]) == pytest.approx(t, abs=1e-9)
    assert schedule.time(math.sqrt(sigmas[7] * sigmas[8])) == pytest.approx(7.5)
    assert schedule.sigma_range == pytest.approx((sigmas[0], sigmas[-1]))

    def net(u: Tensor, t: Tensor) -> Tensor:
        assert (t == t.round()).all()
        alpha = table[t.long()].sqrt().to(u)
        return truth(u, alpha, (1 - table[t.long()]).sqrt().to(u))[1]

    x = points(1.0)
    # σ from the table are rounded
    whole = replace(schedule, time=lambda sigma: float(round(schedule.time(sigma), 6)))
    e = Denoiser(net, (2,), schedule=whole)
    for t in (0, 300, 999):
        wanted = noised(x, sigmas[t])[1]
        assert torch.allclose(
            e.at(min(max(sigmas[t], e.sigma_range[0]), e.sigma_range[1])).noise(x),
            wanted,
            atol=1e-9,
        )


# ---------------------------------------------------------------- a score alone


def test_a_score_alone_has_no_energy_and_says_so() -> None:
    e, x = expert("flow", "velocity").at(0.5), points(0.5)
    other = Normal(torch.zeros(2, dtype=x.dtype), torch.ones(2, dtype=x.dtype))
    assert e.can(ScoreOnly) and not e.can(NoiseConditional) and not other.can(ScoreOnly)
    for call in (
        lambda: e(x),
        lambda: (e & other)(x),
        lambda: poe.sample(e & other, 10),
        lambda: poe.sample(e**2, 10),
    ):
        with pytest.raises(
            TypeError, match="data has a score and no energy: draw products of it by .*LineIntegral"
        ):
            call()
    value, gradient = (e**0.5 & other).value_and_grad(x)
    assert value.isnan().all() and torch.allclose(gradient, x - e.score(x) / 2)
    assert (e | other).value_and_grad(x)[1].isnan().all() and (other - e).value_and_grad(x)[
        1
    ].isnan().all()
    assert (e.proper, e.bounded, e.growth, e.log_z) == (None, None, None, None)


def test_a_score_alone_has_the_target_of_no_exact_kernel(generator: torch.Generator) -> None:
    e, x = expert("flow", "velocity").at(0.5), points(0.5)
    with pytest.raises(ValueError, match="start where the energy is nan"):
        run(Langevin(0.1), e, x, draws=1, generators=[generator])


def test_two_networks_and_a_normal_are_drawn_with_the_moments_of_the_closed_form() -> None:
    """Data N(0, 1) and N(1, 1) at noise 0.5, and N(2, 1): precisions 0.8, 0.8 and 1."""
    schedule = NoiseSchedule.flow()

    def net(mean: float):
        def velocity(u: Tensor, t: Tensor) -> Tensor:
            t = t[:, None]
            total, away = (1 - t) ** 2 + t**2, u - (1 - t) * mean
            return (t - (1 - t)) / total * away - mean

        return velocity

    a, b = (
        Denoiser(net(mean), (2,), schedule=schedule, predicts="velocity", name="ab"[int(mean)]).at(
            0.5
        )
        for mean in (0.0, 1.0)
    )
    target = a & b & Normal(torch.full((2,), 2.0), torch.ones(2))
    mean, variance = (0.8 + 2) / 2.6, 1 / 2.6
    start = torch.randn(256, 2, generator=torch.Generator().manual_seed(2))
    with pytest.warns(UserWarning, match="finite mass"):
        draws = poe.sample(target, 1024, kernel=LineIntegral(0.25), init=start, thin=3, seed=3)
    assert not draws.exact and not draws.trusted
    found = draws.chains[:, -1]  # one a chain: independent
    assert float((found.mean(0) - mean).abs().amax()) < 4.5 * math.sqrt(variance / 256)
    assert float((found.var(0) / variance - 1).abs().amax()) < 4.5 * math.sqrt(2 / 255)


@pytest.mark.slow
def test_levels_from_the_noisiest_down_reach_both_modes_in_their_shares() -> None:
    """Modes 16 apart that no chain crosses at the target. Each level starts at the draws of the one
    before, which hold what share of mass each mode has; a chain that starts at the target keeps the
    share of its start."""
    far = torch.tensor([8.0, 0.0])

    def noise(u: Tensor, t: Tensor) -> Tensor:
        total = 1 + t[:, None, None] ** 2
        away = u[:, None] - torch.stack([-far, far]).to(u)
        logs = torch.tensor([0.3, 0.7]).log() - away.square().sum(-1) / 2 / total[..., 0]
        return (logs.softmax(-1)[..., None] * away * t[:, None, None] / total).sum(1)

    e = Denoiser(noise, (2,), schedule=NoiseSchedule.exploding(0.5, 30.0))
    n, generators = 4000, streams(1, 1, torch.device("cpu"))
    x = 30 * torch.randn(n, 2, generator=generators[0])
    for k in range(25):
        sigma = 30.0 * (0.5 / 30) ** (k / 24)
        kernel = LineIntegral(0.7 * (1 + sigma**2))
        x = run(kernel, e.at(sigma), x, draws=1, thin=25, generators=generators).x[:, 0]
    assert abs((x[:, 0] > 0).float().mean().item() - 0.7) < 4.5 * math.sqrt(0.21 / n)
    still = run(
        LineIntegral(0.9),
        e,
        far + torch.randn(500, 2, generator=generators[0]),
        draws=1,
        thin=100,
        generators=generators,
    )
    assert (still.x[:, 0, 0] > 0).all()


# ---------------------------------------------------------------- an energy of its own


class Small(nn.Module):
    """A multilayer perceptron that predicts a bounded clean point."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(3, 16), nn.SiLU(), nn.Dropout(0.5), nn.Linear(16, 2), nn.Tanh()
        )

    def forward(self, u: Tensor, t: Tensor) -> Tensor:
        return 2 * self.layers(torch.cat([u, t[:, None]], 1))


def small(**changes) -> Denoiser:
    arguments = {
        "schedule": NoiseSchedule.flow(0.1, 10.0),
        "predicts": "denoised",
        "energy": "denoised",
        "sigma": 0.5,
        "bounded": True,
    }
    return Denoiser(Small(), (2,), **{**arguments, **changes})


def test_laws() -> None:
    report = check_expert(small)
    assert "wraps a network object" in report.skipped["save and load"]
    for predicts in ("noise", "score", "velocity"):
        check_expert(lambda predicts=predicts: small(predicts=predicts, bounded=False))


@pytest.mark.parametrize("predicts", PREDICTIONS)
def test_the_energy_is_half_the_square_of_the_noise(predicts: str) -> None:
    x = points(0.7)
    wanted = noised(x, 0.7)[1].square().sum(-1) / 2
    for name in schedules():
        e = expert(name, predicts, energy="denoised", sigma=0.7)
        assert torch.allclose(e(x), wanted, atol=1e-10)
        assert e.bounded and e.proper is None and e.can(NoiseConditional) and not e.can(ScoreOnly)


def test_the_energy_of_a_posterior_mean_is_not_that_of_the_noised_data() -> None:
    """Data N(0, τ²): the energy is |x|² σ²/2(σ² + τ²)², while that of p_σ is |x|²/2(σ² + τ²)."""
    tau, sigma, x = 1.5, 0.8, points(1.0)
    e = Denoiser(
        lambda u, t: u * tau**2 / (tau**2 + t[:, None] ** 2),
        (2,),
        schedule=NoiseSchedule.exploding(0.1, 10.0),
        predicts="denoised",
        energy="denoised",
        sigma=sigma,
    )
    square = x.square().sum(-1)
    assert torch.allclose(e(x), square * sigma**2 / 2 / (sigma**2 + tau**2) ** 2)
    assert torch.allclose(e.score(x), -x * sigma**2 / (sigma**2 + tau**2) ** 2)


def test_growth_is_what_far_points_show() -> None:
    e = small()
    x = torch.randn(20, 2)
    with torch.no_grad():
        seen = e(1e4 * x) / (1e4 * x).square().sum(-1)
    assert torch.allclose(seen, torch.full((20,), e.growth), rtol=1e-2)
    assert e.proper and e.bounded and (~e).proper is False
    alone = small(energy=None)
    assert (alone.growth, alone.proper, alone.bounded) == (e.growth, True, True)
    assert alone.can(ScoreOnly) and small(bounded=False).growth is None


def test_exact_kernels_move_on_the_energy() -> None:
    """Draws of exp(-E) in the plane by rejection from a wide normal whose density bounds it."""
    e, n, g = small(), 400_000, torch.Generator().manual_seed(5)
    x = 3 * torch.randn(n, 2, generator=g)
    with torch.no_grad():
        logs = x.square().sum(-1) / 18 - e(x)
    # |x - D| >= |x| - 2√2, σ = 1/2: the log ratio is at most max over r of r²/18 - 2 (r - 2√2)²₊,
    # at r = 2.909
    bound = 0.458
    assert float(logs.max()) <= bound
    x = x[torch.rand(n, generator=g) < (logs - bound).exp()]
    assert len(x) > 5000
    assert one_step_invariance(Langevin(0.15), e, x) > 1e-4
    assert one_step_invariance(Langevin(0.15), e**1.3, x) < 1e-4


# ---------------------------------------------------------------- levels, contexts, errors


def test_levels_share_the_network() -> None:
    e = expert("flow", "velocity", sigma=0.5)
    assert (
        e.sigma == 0.5
        and e.at(0.5) is e
        and e.at(2.0) is e.at(2.0)
        and e.at(2.0).network is e.network
    )
    assert e.at(0).sigma == LOW
    assert str((e & poe.on(Normal(0.0, 1.0), [0], (2,))).at(2.0)).startswith("data & ")
    with pytest.raises(ValueError, match="knows noise levels from 1e-09 to 1e\\+09 .*not 1e\\+10"):
        e.at(1e10)
    with pytest.raises(ValueError, match="noise levels from 0.1 to 10"):
        small(sigma=0.05)


def test_contexts_go_to_the_network() -> None:
    seen = []

    def net(u: Tensor, t: Tensor, context: object) -> Tensor:
        seen.append(context)
        return context if isinstance(context, Tensor) else u * {None: 0.0, "red": 1.0}[context]

    e = Denoiser(net, (2,), schedule=NoiseSchedule.flow(), predicts="noise", conditional=True)
    assert not seen and e.can(Conditional)
    x = torch.ones(3, 2)
    assert e.noise(x).eq(0).all() and torch.allclose(e.given("red").noise(x), x, rtol=2e-3)
    bound = (
        (e & Normal(torch.zeros(2), torch.ones(2)))
        .given(torch.tensor([2.0, 3.0], dtype=torch.float64))
        .parts[0]
    )
    assert torch.equal(bound.noise(x), torch.tensor([2.0, 3.0]).expand(3, 2)) and seen[
        -1
    ].shape == (3, 2)
    assert (
        torch.equal(bound.at(0.5).noise(x), bound.noise(x))
        and bound.at(0.5).at(bound.sigma) is bound
    )
    assert (
        not bound.can(Conditional) and bound.given(None) is e and e.given("red") is e.given("red")
    )
    assert e.at(0.5).given("red").at(0.7) is e.given("red").at(0.7)
    again = e.given(torch.tensor([2.0, 3.0], dtype=torch.float64))
    assert (
        again is bound
        and e.at(0.5).given(bound.context) is bound.at(0.5)
        and e.given(bound.context + 1) is not bound
    )
    with pytest.raises(TypeError, match="takes no context: wrap a network .* conditional=True"):
        expert("flow", "noise").given("red")


def test_networks_and_arguments_that_are_refused() -> None:
    flow = NoiseSchedule.flow()
    with pytest.raises(ValueError, match="not 'velocities'; did you mean 'velocity'"):
        Denoiser(lambda u, t: u, (2,), schedule=flow, predicts="velocities")
    with pytest.raises(ValueError, match="energy is None, for a score alone, or 'denoised'"):
        Denoiser(lambda u, t: u, (2,), schedule=flow, energy="residual")
    with pytest.raises(TypeError, match="takes a network"):
        Denoiser(3, (2,), schedule=flow)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="returned shape \\(2, 3\\) for u of shape \\(2, 2\\)"):
        Denoiser(lambda u, t: torch.cat([u, t[:, None]], 1), (2,), schedule=flow)
    with pytest.raises(ValueError, match="returned tuple .* lambda u, t: model"):
        Denoiser(lambda u, t: (u,), (2,), schedule=flow)  # type: ignore[arg-type, return-value]
    with pytest.raises(ValueError, match="NaN at x = 0 and noise 1000"):
        Denoiser(lambda u, t: u + (0.99 - t[:, None]).sqrt(), (2,), schedule=flow)
    with pytest.raises(ValueError, match="two values at one point"):
        Denoiser(lambda u, t: torch.rand_like(u), (2,), schedule=flow)
    for build in (
        lambda: NoiseSchedule.exploding(0.0, 1.0),
        lambda: NoiseSchedule.flow(1.0, math.inf),
        lambda: NoiseSchedule.linear(2.0, 1.0),
        lambda: NoiseSchedule.discrete([0.5, 0.9]),
        lambda: NoiseSchedule("cosine", (0.1, 1.0), float),
    ):
        with pytest.raises(ValueError, match="sigma_range|rates|table|schedule"):
            build()


def test_a_nan_of_the_network_is_rejected_and_counted() -> None:
    def broken(u: Tensor, t: Tensor) -> Tensor:
        return torch.where(u[:, :1] > 1, torch.nan, u / 2)

    e, kernel = (
        Denoiser(broken, (2,), schedule=NoiseSchedule.exploding(0.5, 1.0)),
        LineIntegral(0.3),
    )
    state, nonfinite, g = kernel.init(e, torch.zeros(500, 2)), 0, torch.Generator().manual_seed(0)
    for _ in range(20):
        state, info = kernel.step(e, state, kernel.noise(state, g))
        nonfinite += int(info.nonfinite.sum())
    assert nonfinite > 100 and (state.x[:, 0] <= 1).all() and state.energy.isfinite().all()
