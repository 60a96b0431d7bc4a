from __future__ import annotations

import math

import pytest
import torch
from scipy.stats import chi2, kstest, norm
from torch import Tensor
from torch import distributions as td

import poe
from experts import Normal
from poe.sampling.agreement import agreement
from tests.poe.targets import Raw

F64 = torch.float64


def covariance(d: int, g: torch.Generator) -> Tensor:
    a = torch.randn(d, d, generator=g, dtype=F64)
    return a @ a.T / d + 0.3 * torch.eye(d, dtype=F64)


def normal(mean: Tensor, cov: Tensor, name: str) -> Normal:
    return Normal(mean, scale_tril=torch.linalg.cholesky(cov), name=name)


def pair(d: int, sigmas: float, seed: int) -> poe.Energy:
    """Two correlated Gaussian posteriors that differ by so many sigmas, under a prior that says
    nothing."""
    g = torch.Generator().manual_seed(seed)
    c, e = covariance(d, g), covariance(d, g)
    direction = torch.randn(d, generator=g, dtype=F64)
    q = chi2.isf(2 * norm.sf(sigmas), d) if sigmas else 0.0
    gap = direction * math.sqrt(q / float(direction @ torch.linalg.solve(c + e, direction)))
    return poe.combine(
        [normal(-gap / 2, c, "a"), normal(gap / 2, e, "b")],
        prior=Normal(torch.zeros(d, dtype=F64), 1e3),
    )


@pytest.mark.parametrize("d", [2, 5, 20])
@pytest.mark.parametrize("sigmas", [0, 2, 4, 6])
def test_tension_of_gaussians_is_reported_insigmas_of(d: int, sigmas: float) -> None:
    draws = poe.sample(pair(d, sigmas, seed=d), 1000, seed=1)
    assert draws.agreement is not None
    ((i, j, found),) = draws.agreement.tension
    assert (i, j) == (0, 1) and abs(found - sigmas) <= 0.1 * max(sigmas, 1)
    tense = [warning for warning in draws.warnings if "in tension" in warning]
    tails = [warning for warning in draws.warnings if "extrapolated tails" in warning]
    assert bool(tense) == (sigmas >= 4) and bool(tails) == (sigmas >= 4)
    assert draws.trusted == (sigmas < 4)
    assert f"tension        {found:.1f} sigmas between a and b" in draws.report()


def test_tension_under_an_informative_prior_is_a_p_value() -> None:
    """Of experiments that measure the same parameters, p-values are even; without the prior's terms
    they are not."""
    d, g, found, naive = 3, torch.Generator().manual_seed(0), [], []
    prior = Normal(torch.zeros(d, dtype=F64), 1.0)
    for _ in range(120):
        theta = torch.randn(d, generator=g, dtype=F64)
        posteriors = []
        for name in "ab":
            f = torch.linalg.inv(covariance(d, g))  # precision of the experiment
            c = torch.linalg.inv(f + torch.eye(d, dtype=F64))
            measured = theta + torch.linalg.solve(
                torch.linalg.cholesky(f).T, torch.randn(d, generator=g, dtype=F64)
            )
            posteriors.append(normal(c @ f @ measured, c, name))
        energy = poe.combine(posteriors, prior=prior)
        known = agreement(energy, posteriors[0].sample(10, generator=g), g)
        assert known is not None
        found.append(2 * norm.sf(known.tension[0][2]))
        a, b = posteriors
        gap = a.loc - b.loc
        naive.append(chi2.sf(float(gap @ torch.linalg.solve(a.covariance + b.covariance, gap)), d))
    assert kstest(found, "uniform").pvalue > 0.001
    assert kstest(naive, "uniform").pvalue < 0.001


@pytest.mark.filterwarnings(
    "ignore:it is unknown whether"
)  # a quotient of partial densities may have infinite mass
def test_parts_over_some_parameters_count_each_prior_once() -> None:
    first, second, third = Normal([0.0], [2.0]), Normal([0.0], [3.0]), Normal([1.0], [1.0])
    prior = poe.on(first, [0], [3]) & poe.on(second, [1], [3]) & poe.on(third, [2], [3])
    a = Normal([1.0, 0.5], scale_tril=torch.tensor([[1.0, 0.0], [0.3, 0.8]]), name="a")
    b = Normal([0.8, -0.2], scale_tril=torch.tensor([[0.7, 0.0], [0.2, 0.9]]), name="b")
    energy = poe.combine([poe.on(a, [0, 1], [3]), poe.on(b, [1, 2], [3])], prior=prior)
    x = torch.randn(20, 3)
    direct = a(x[:, :2]) + b(x[:, 1:]) - second(x[:, 1:2])
    assert torch.allclose(energy(x) - energy(x[:1]), direct - direct[:1], atol=1e-5)
    draws = poe.sample(energy, 2000, seed=0)
    assert draws.agreement is not None and draws.trusted
    ((_, _, sigmas),) = draws.agreement.tension
    c, d, known = 0.3**2 + 0.8**2, 0.7**2, 1 / 9  # of the shared parameter
    spread = math.sqrt(c + d - 2 * c * known * d)
    assert sigmas == pytest.approx(abs(0.5 - 0.8) / spread, abs=0.1)
    with pytest.raises(ValueError, match="about some parameters of the prior's factor"):
        poe.combine(
            [poe.on(a, [0, 1], [3]), poe.on(b, [1, 2], [3])], prior=Normal(torch.zeros(3), 1.0)
        )


def test_baselines_are_those_of_gaussians() -> None:
    draws = poe.sample(pair(3, 1.0, seed=4), 4000, seed=0)
    assert draws.agreement is not None and set(draws.agreement.baselines) == {
        "Gaussian product",
        "consensus Monte Carlo",
        "reweighting",
    }
    for baseline in draws.agreement.baselines.values():
        assert torch.allclose(
            torch.tensor(baseline.mean), draws.x.mean(0).double().to(torch.float32), atol=0.1
        )
        assert torch.allclose(
            torch.tensor(baseline.sd), draws.x.std(0).double().to(torch.float32), rtol=0.1
        )


def test_copies_of_an_ensemble_give_an_error_bar() -> None:
    """Copies N(m_k, 1) with m_k of spread s: the mean of the product with N(0, 1) moves by half of
    what a copy moves."""
    shifts = torch.tensor([-0.3, 0.0, 0.1, 0.2])
    copies = [
        Normal(shift.reshape(1), torch.ones(1), name=f"copy{k}") for k, shift in enumerate(shifts)
    ]
    posterior, prior = (
        Normal(torch.zeros(1), torch.ones(1)),
        Normal(torch.zeros(1), torch.tensor([100.0])),
    )
    draws = poe.sample(
        poe.combine([poe.product(copies, powers=[0.25] * 4), posterior], prior=prior),
        20_000,
        seed=0,
    )
    assert draws.agreement is not None
    (error,) = draws.agreement.ensemble
    assert error == pytest.approx(float((shifts / 2).std()), rel=0.1)


def test_what_cannot_draw_is_said_and_files_keep_the_evidence(tmp_path) -> None:
    a, prior = Normal(torch.zeros(2), 1.0, name="a"), Normal(torch.zeros(2), 50.0)
    energy = poe.combine([a, Raw(lambda x: (x - 0.3).square().sum(-1), name="exact")], prior=prior)
    draws = poe.sample(energy, 500, seed=0)
    assert draws.agreement is not None and draws.agreement.tension == ()
    assert (
        math.isnan(draws.agreement.outside[1])
        and "exact: no draws of its own: not checked" in draws.report()
    )
    draws.save(tmp_path / "draws")
    again = poe.Draws.load(tmp_path / "draws").agreement
    assert again is not None and str(again) == str(draws.agreement)
    assert poe.sample(a, 100, seed=0).agreement is None


@pytest.mark.filterwarnings("ignore::poe.ImproperWarning")
@pytest.mark.parametrize(("scale", "gap"), [(1.0, 3.0), (10.0, 50.0), (30.0, 150.0)])
def test_tension_where_the_prior_decides(scale: float, gap: float) -> None:
    """Likelihoods N(0, s²) and N(m, s²) differ by m / s√2 sigmas, whatever the prior. Known moments
    tell it; those of draws do, or say that they cannot."""

    class Drawn(poe.Density):
        """Knows no moments."""

        def __init__(self, inner: Normal) -> None:
            super().__init__(inner.event_shape)
            self.inner = inner

        def log_prob(self, x: Tensor) -> Tensor:
            return self.inner.log_prob(x)

        def sample(
            self, n: int | tuple[int, ...], *, generator: torch.Generator | None = None
        ) -> Tensor:
            return self.inner.sample(n, generator=generator)

    variance = 1 / (1 + scale**-2)
    means = [torch.tensor([variance * m / scale**2], dtype=F64) for m in (0.0, gap)]
    posteriors, prior = (
        [Normal(mean, variance**0.5) for mean in means],
        Normal(torch.zeros(1, dtype=F64), 1.0),
    )
    known = poe.sample(poe.combine(posteriors, prior=prior), 100, seed=0)
    drawn = poe.sample(poe.combine([Drawn(p) for p in posteriors], prior=Drawn(prior)), 100, seed=0)
    assert known.agreement is not None and drawn.agreement is not None
    exact = gap / scale / 2**0.5
    assert known.agreement.tension[0][2] == pytest.approx(exact, rel=1e-3)
    told = drawn.agreement.tension[0][2]
    assert told == pytest.approx(exact, rel=0.1) if scale == 1 else math.isnan(told)
    assert ("the prior decides" in drawn.report()) == (scale > 1)


def test_far_posteriors_are_a_finite_number_of_sigmas_apart() -> None:
    target = poe.combine(
        [Normal(torch.zeros(1), 0.1), Normal(torch.full((1,), 20.0), 0.1)],
        prior=Normal(torch.zeros(1), 1e4),
    )
    draws = poe.sample(target, 100, seed=0)
    assert draws.agreement is not None and draws.agreement.tension[0][2] == pytest.approx(
        20 / 0.1 / 2**0.5, rel=1e-3
    )


def test_what_was_combined_leaves_its_parts_alone_and_is_saved(tmp_path) -> None:
    a, b, prior = (
        Normal(torch.full((2,), m), s, name=n)
        for m, s, n in ((0.0, 1.0, "a"), (5.0, 0.3, "b"), (0.0, 9.0, "prior"))
    )
    assert (
        poe.combine([a, prior], prior=prior) is a and poe.sample(a, 100, seed=0).agreement is None
    )
    both = poe.combine([a & a, b], prior=prior)
    assert both**1 is both
    poe.save(both, tmp_path / "both.safetensors")
    before, after = (
        poe.sample(e, 500, seed=0) for e in (both, poe.load(tmp_path / "both.safetensors"))
    )
    assert (
        before.agreement is not None
        and "tension" in before.report()
        and str(after.agreement) == str(before.agreement)
    )
    assert after.verdict == before.verdict and not after.trusted


def uniform(low: float, high: float, name: str) -> poe.Energy:
    return poe.as_energy(td.Uniform(torch.tensor(low), torch.tensor(high)), name=name)


@pytest.mark.filterwarnings("ignore:it is unknown whether")
def test_factors_of_a_split_prior_keep_their_powers() -> None:
    """Eight shards with prior^(1/8) each: two of them divide one eighth of it out."""
    over = [poe.on(Normal([0.0], [1.0], name=f"w{i}"), [i], (2,)) for i in range(2)]
    shards = [Normal([1.0, 1.0], [0.8, 0.8], name=f"s{i}") for i in range(2)]
    for prior in (
        poe.product(over) ** (1 / 8),
        poe.product(over, [1 / 8, 1 / 8]),
        Normal([0.0, 0.0], [1.0, 1.0]) ** (1 / 8),
    ):
        draws = poe.sample(poe.combine(shards, prior=prior), 4000, seed=0)
        precision = 2 / 0.64 - 1 / 8
        assert torch.allclose(
            draws.x.mean(0),
            torch.tensor(2 / 0.64 / precision),
            atol=4 / math.sqrt(4000 * precision),
        )
        assert draws.agreement is not None and draws.agreement.baselines[
            "Gaussian product"
        ].mean == pytest.approx(
            [2 / 0.64 / precision] * 2,
            rel=5e-3,  # the covariance of the prior is that of 10,000 draws
        )
    with pytest.raises(ValueError, match="about some parameters of the prior's factor"):
        poe.combine(
            [poe.on(shards[0], [0, 1], (3,)), Normal(torch.zeros(3), 1.0)],
            prior=Normal(torch.zeros(3), 1.0),
        )


@pytest.mark.filterwarnings("ignore:it is unknown whether")
def test_what_a_posterior_is_about_shows_through_powers_and_shifts() -> None:
    event = (3,)
    w = Normal([0.0], [1.0], name="w")
    prior = poe.product([poe.on(w, [i], event) for i in range(3)])
    a, again, b = (Normal([1.0, 1.0], [0.7, 0.7], name=name) for name in ("a", "again", "b"))
    ensemble = poe.product([poe.on(a, [0, 1], event), poe.on(again, [0, 1], event)], powers=0.5)
    x = torch.randn(20, 3)
    right = a(x[:, :2]) + b(x[:, ::2]) - w(x[:, :1])
    for first in (
        ensemble,
        poe.shift(poe.on(a, [0, 1], event), 0.5),
        poe.on(poe.on(a, [0, 1], (2,)), [0, 1], event),
    ):
        energy = poe.combine([first, poe.on(b, [0, 2], event)], prior=prior)
        known = energy(x) - right
        assert torch.allclose(known, known[:1].expand(20), atol=1e-5)
    assert poe.combine([ensemble, poe.on(b, [0, 2], event)], prior=prior).event_shape == event


def test_posteriors_cut_to_a_box_are_checked() -> None:
    """4 / (.3 √2) = 9.4 sigmas; parts that do not draw are drawn by weights."""
    prior, a, b = (
        uniform(-3.0, 3.0, "prior"),
        Normal(-2.0, 0.3, name="a"),
        Normal(2.0, 0.3, name="b"),
    )
    draws = poe.sample(poe.combine([a & prior, b & prior], prior=prior), 1000, seed=0)
    assert draws.agreement is not None
    ((_, _, sigmas),) = draws.agreement.tension
    assert sigmas == pytest.approx(4 / (0.3 * math.sqrt(2)), rel=0.03)
    assert any("in tension by" in warning for warning in draws.warnings) and not draws.trusted
    near = poe.sample(
        poe.combine([a & prior, Normal(-1.9, 0.3, name="c") & prior], prior=prior), 1000, seed=0
    )
    assert near.agreement is not None and near.agreement.tension[0][2] < 1 and near.trusted


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_tension_on_a_simplex_has_one_direction_less(dtype: torch.dtype) -> None:
    """Against the same in two of the three numbers, from the moments of Dirichlet laws."""
    first, second = (
        torch.tensor([60.0, 40.0, 40.0], dtype=dtype),
        torch.tensor([40.0, 60.0, 40.0], dtype=dtype),
    )

    def moments(a: Tensor) -> tuple[Tensor, Tensor]:
        a = a.double()
        mean = a / a.sum()
        return mean[:2], ((mean.diag() - mean.outer(mean)) / (a.sum() + 1))[:2, :2]

    (m, c), (n, d), (_, p) = (moments(a) for a in (first, second, torch.ones(3)))
    v = c + d - c @ torch.linalg.solve(p, d) - d @ torch.linalg.solve(p, c)
    q = float((m - n) @ torch.linalg.solve(v, m - n))
    expected = norm.isf(chi2.sf(q, 2) / 2)
    dirichlets = [
        poe.as_energy(td.Dirichlet(a)) for a in (first, second, torch.ones(3, dtype=dtype))
    ]
    for seed in range(2):
        draws = poe.sample(poe.combine(dirichlets[:2], prior=dirichlets[2]), 1000, seed=seed)
        assert draws.agreement is not None
        assert draws.agreement.tension[0][2] == pytest.approx(expected, rel=0.1)
        assert len(draws.agreement.baselines) == 3
        for baseline in draws.agreement.baselines.values():
            assert sum(baseline.mean) == pytest.approx(1, abs=1e-4)
            assert baseline.mean == pytest.approx(draws.x.mean(0).tolist(), abs=0.01)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:it is unknown whether")
def test_error_bars_of_ensembles_on_part_of_the_parameters_and_in_a_box() -> None:
    copies = [Normal([0.3 * i, 0.0], [1.0, 1.0]) for i in range(3)]
    ensemble, other, w = (
        poe.product(copies, powers=1 / 3),
        Normal([0.0, 1.0], [1.0, 1.0]),
        Normal([0.0], [9.0]),
    )
    whole = poe.combine(
        [ensemble, other], prior=poe.product([poe.on(w, [i], (2,)) for i in range(2)])
    )
    parted = poe.combine(
        [poe.on(ensemble, [0, 1], (3,)), poe.on(other, [0, 2], (3,))],
        prior=poe.product([poe.on(w, [i], (3,)) for i in range(3)]),
    )
    box = poe.product([poe.on(uniform(-9.0, 9.0, f"u{i}"), [i], (2,)) for i in range(2)])
    boxed = poe.combine([ensemble & box, other & box], prior=box)
    for energy in (whole, parted, boxed):
        known = poe.sample(energy, 4000, seed=0).agreement
        assert known is not None and known.ensemble[0] == pytest.approx(
            0.15, rel=0.15
        )  # a copy's move of .3, halved


@pytest.mark.filterwarnings("ignore:it is unknown whether")
def test_a_prior_that_does_not_draw_bounds_the_tension() -> None:
    """Posteriors N(±1.4, 1/2) of a prior N(0, 1): V is 1/2, and 1 without what the prior has in
    both."""
    a, b = (Normal([m], [math.sqrt(0.5)], name=name) for m, name in ((1.4, "a"), (-1.4, "b")))
    silent = poe.as_energy(
        lambda x: x.square().sum(-1) / 2, event_shape=(1,), bounded=True, name="silent"
    )
    for prior, sigmas, said in (
        (Normal([0.0], [1.0]), 2.8 / math.sqrt(0.5), "by 4.0"),
        (silent, 2.8, "tension        at least 2.8 sigmas"),
    ):
        draws = poe.sample(poe.combine([a, b], prior=prior), 1000, seed=0)
        assert draws.agreement is not None and draws.agreement.tension[0][2] == pytest.approx(
            sigmas, rel=0.03
        )
        assert said in draws.report() and draws.agreement.at_least == (prior is silent)


def test_the_evidence_follows_the_combination(tmp_path) -> None:
    a, b, wide = (
        Normal([-2.0], [0.3], name="a"),
        Normal([2.0], [0.3], name="b"),
        Normal([0.0], [10.0]),
    )
    k = poe.combine([a, b], prior=wide)
    poe.save(poe.shift(k, 1.0), tmp_path / "k.safetensors")
    more = Normal([0.0], [5.0])
    for energy in (
        k,
        poe.shift(k, 1.0),
        poe.normalize(k),
        k & more,
        more & k,
        poe.load(tmp_path / "k.safetensors"),
    ):
        draws = poe.sample(energy, 1000, seed=0)
        assert (
            draws.agreement is not None
            and draws.agreement.tension[0][2] == pytest.approx(9.4, rel=0.02)
            and not draws.trusted
        )
        assert bool(draws.agreement.baselines) == (len(getattr(energy, "terms", ())) < 4)
    assert poe.sample(k / a, 10, seed=0).agreement is None  # which is out again
    c = Normal([0.0], [0.3], name="c")
    for energy in (
        poe.combine([a, b, c], prior=wide),
        poe.combine([poe.combine([a, b], prior=wide), c], prior=wide),
    ):
        known = poe.sample(energy, 500, seed=0).agreement
        assert known is not None and [sigmas for *_, sigmas in known.tension] == pytest.approx(
            [9.43, 4.72, 4.72], abs=0.02
        )


@pytest.mark.filterwarnings("ignore:it is unknown whether")
def test_bounded_parameters_can_be_shared_in_part() -> None:
    flat = [uniform(-3.0, 3.0, f"u{i}") for i in range(3)]
    prior = poe.product([poe.on(u, [i], (3,)) for i, u in enumerate(flat)])
    a, b = Normal([0.5, 0.0], [0.5, 0.6], name="a"), Normal([0.0, 1.0], [0.5, 0.6], name="b")
    cut = [
        poe.product([n, *(poe.on(uniform(-3.0, 3.0, "box"), [i], (2,)) for i in range(2))])
        for n in (a, b)
    ]
    energy = poe.combine([poe.on(cut[0], [0, 1], (3,)), poe.on(cut[1], [0, 2], (3,))], prior=prior)
    draws = poe.sample(energy, 4000, seed=0)
    assert draws.agreement is not None and draws.agreement.tension[0][2] == pytest.approx(
        0.5 / math.sqrt(0.5), rel=0.05
    )
    for place, mean in enumerate((0.25, 0.0, 1.0)):
        assert draws.x[:, place].mean().item() == pytest.approx(mean, abs=0.05)
    outside = poe.on(Normal([0.0, 0.0], [0.5, 0.6]), [0, 1], (3,))
    with pytest.raises(ValueError, match="is not inside that of the prior"):
        poe.combine([outside, poe.on(cut[1], [0, 2], (3,))], prior=prior)


class Drawn(poe.Density):
    """Knows no moments and no closed form."""

    def __init__(self, inner: poe.Energy, name: str | None = None) -> None:
        super().__init__(inner.event_shape, name=name)
        self.inner = inner

    def log_prob(self, x: Tensor) -> Tensor:
        return -self.inner(x)

    def sample(
        self, n: int | tuple[int, ...], *, generator: torch.Generator | None = None
    ) -> Tensor:
        return self.inner.sample(n, generator=generator)  # type: ignore[operator]


@pytest.mark.filterwarnings("ignore:it is unknown whether")
@pytest.mark.parametrize("drawn", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_the_order_of_parameters_and_nested_parts_say_the_same(drawn: bool) -> None:
    a, b = Normal([0.0, 5.0], [1.0, 0.5], name="a"), Normal([5.0, 0.0], [0.5, 1.0], name="b")
    p = Normal([0.0, 0.0], [9.0, 9.0], name="p")
    if drawn:
        a = Drawn(a, "a")
    plain = poe.sample(poe.combine([a, b], prior=p), 1000, seed=0).agreement
    assert (
        plain is not None and plain.tension[0][2] > 5 and not plain.unknown and not plain.at_least
    )
    flipped = Normal([5.0, 0.0], [0.5, 1.0])
    flipped = Drawn(flipped) if drawn else flipped
    same = [
        poe.combine([poe.on(a, [0, 1], (2,)), b], prior=p),
        poe.combine([poe.on(flipped, [1, 0], (2,)), b], prior=p),
        poe.combine([a, b], prior=poe.on(p, [0, 1], (2,))),
        poe.combine([poe.on(poe.on(a, [0, 1], (2,)), [0, 1], (2,)), b], prior=p),
    ]
    for energy in same:
        known = poe.sample(energy, 1000, seed=0).agreement
        assert known is not None and known.tension[0][2] == pytest.approx(
            plain.tension[0][2], rel=0.02
        )
        assert (
            known.outside == pytest.approx(plain.outside, abs=0.1)
            and known.pareto_k[0] > 0.7
            and known.pareto_k[1] > 0.7
        )
        assert set(known.baselines) == set(plain.baselines)
        for name in ("Gaussian product", "consensus Monte Carlo"):
            assert known.baselines[name].mean == pytest.approx(plain.baselines[name].mean, abs=0.05)
    square = Normal(torch.zeros(2, 2), torch.ones(2, 2))
    table = poe.on(square, [0, 1, 2, 3], (4,)) & poe.on(Normal([1.0], [1.0]), [2], (4,))
    known = poe.sample(
        poe.combine([table, Normal(torch.zeros(4), 1.0)], prior=Normal(torch.zeros(4), 9.0)),
        500,
        seed=0,
    ).agreement
    assert known is not None and not known.unknown
    nested = poe.on(poe.on(Normal([0.0], [1.0]), [0], (2,)), [0, 1], (3,))
    first, prior = (
        Normal([1.0, 0.0], [1.0, 1.0]),
        poe.product([poe.on(Normal([0.0], [9.0]), [i], (3,)) for i in range(3)]),
    )
    known = poe.sample(
        poe.combine([nested, poe.on(first, [0, 2], (3,))], prior=prior), 500, seed=0
    ).agreement
    assert known is not None and known.tension[0][2] == pytest.approx(1 / math.sqrt(2), rel=0.02)


@pytest.mark.filterwarnings("ignore:it is unknown whether")
def test_baselines_know_what_only_the_prior_speaks_of() -> None:
    prior = poe.product(
        [
            poe.on(Normal([m], [s]), [i], (3,))
            for i, (m, s) in enumerate([(0.0, 3.0), (0.0, 3.0), (5.0, 2.0)])
        ]
    )
    a, b = (poe.on(Normal([m, 0.0], [0.5, 0.5]), [0, 1], (3,)) for m in (1.0, 1.2))
    draws = poe.sample(poe.combine([a, b], prior=prior), 2000, seed=0)
    assert draws.agreement is not None
    gaussian = draws.agreement.baselines["Gaussian product"]
    assert gaussian.mean[2] == pytest.approx(5) and gaussian.sd[2] == pytest.approx(2)


def test_an_ensemble_lies_where_its_product_does() -> None:
    """Π N(m_k, .3)^(1/4) is N(mean m, .3), narrower than the mixture of the copies; (l & w) ** .5
    has the precision of the mean."""
    wide, b = Normal([0.0], [50.0]), Normal([2.0], [0.3], name="b")
    copies = [Drawn(Normal([m], [0.3])) for m in (-0.4, -0.2, 0.2, 0.4)]
    known = poe.sample(
        poe.combine([poe.product(copies, powers=0.25), b], prior=wide), 1000, seed=0
    ).agreement
    assert known is not None and known.tension[0][2] == pytest.approx(
        2 / (0.3 * math.sqrt(2)), rel=0.05
    )
    tempered = poe.product([Drawn(Normal([0.0], [0.1])), Drawn(Normal([0.0], [10.0]))], powers=0.5)
    draws = poe.sample(poe.combine([tempered, Normal([1.0], [0.1])], prior=wide), 1000, seed=0)
    sd = math.sqrt(2 / (100 + 0.01))
    assert draws.agreement is not None
    assert draws.agreement.tension[0][2] == pytest.approx(1 / math.hypot(sd, 0.1), rel=0.05)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:it is unknown whether")
def test_tails_without_a_variance_leave_the_tension_unknown() -> None:
    def cauchy(place: float, name: str) -> poe.Energy:
        return poe.as_energy(td.Cauchy(torch.tensor(place), torch.tensor(0.1)), name=name)

    energy = poe.combine(
        [cauchy(0.0, "a"), cauchy(5.0, "b")],  # over a normal they would grow without bound
        prior=poe.as_energy(td.Cauchy(torch.tensor(0.0), torch.tensor(100.0))),
    )
    draws = poe.sample(energy, 1000, seed=0)
    assert (
        draws.agreement is not None
        and not draws.agreement.tension
        and draws.agreement.unknown == ("a", "b")
    )
    assert "if the posteriors are about the same parameters" in draws.verdict


def test_error_bars_that_no_weights_can_tell_are_nan() -> None:
    copies = [Normal([m], [1.0]) for m in (-6.0, -2.0, 2.0, 6.0)]
    far = poe.combine(
        [poe.product(copies, powers=0.25), Normal([0.0], [1.0])], prior=Normal([0.0], [100.0])
    )
    known = poe.sample(far, 2000, seed=0).agreement
    assert known is not None and math.isnan(known.ensemble[0])
    near = poe.product([Normal([m], [1.0]) for m in (-0.3, 0.0, 0.1, 0.2)], powers=0.25)
    twice = poe.sample(
        poe.combine([near, near], prior=Normal([0.0], [100.0])), 20_000, seed=0
    ).agreement
    assert twice is not None and twice.ensemble[0] == pytest.approx(
        0.216, rel=0.1
    )  # both move together


def test_discrete_posteriors_say_that_nothing_was_checked() -> None:
    a, b, flat = (
        poe.as_energy(td.Categorical(torch.tensor(p)))
        for p in ([0.98, 0.01, 0.01], [1e-4, 1e-4, 0.9998], [1 / 3] * 3)
    )
    draws = poe.sample(poe.combine([a, b], prior=flat), 200, seed=0)
    assert "if the posteriors are about the same parameters" in draws.verdict


@pytest.mark.parametrize("n", [3, 200])
def test_many_numbers_without_a_prior_to_speak_of_are_told(n: int) -> None:
    far = torch.zeros(n)
    far[0] = math.sqrt(2 * chi2.isf(2 * norm.sf(4), n))
    a, b = Drawn(Normal(torch.zeros(n), torch.ones(n))), Drawn(Normal(far, torch.ones(n)))
    known = agreement(
        poe.combine([a, b], prior=Normal(torch.zeros(n), 1000.0)),
        torch.randn(100, n),
        torch.Generator().manual_seed(0),
    )
    assert known is not None and known.tension[0][2] == pytest.approx(4, rel=0.1)


def test_a_context_keeps_the_evidence() -> None:
    class Measured(poe.Density):
        takes_context = True

        def __init__(self, place: float | None = None) -> None:
            super().__init__((1,))
            self.place = place

        def given(self, context: float) -> Measured:
            return Measured(context)

        def log_prob(self, x: Tensor) -> Tensor:
            return Normal([self.place], [0.3]).log_prob(x)  # type: ignore[list-item]

        def sample(
            self, n: int | tuple[int, ...], *, generator: torch.Generator | None = None
        ) -> Tensor:
            return Normal([self.place], [0.3]).sample(n, generator=generator)  # type: ignore[list-item]

    k = poe.combine([Measured(), Normal([2.0], [0.3])], prior=Normal([0.0], [10.0]))
    draws = poe.sample(k.given(-2.0), 500, seed=0)
    assert (
        draws.agreement is not None
        and draws.agreement.tension[0][2] == pytest.approx(9.43, rel=0.03)
        and not draws.trusted
    )


def test_own_draws_of_posteriors_are_not_those_of_the_result() -> None:
    """The random numbers of exact draws of the result are no others' ones."""
    seen: list[torch.Tensor] = []

    class Watched(Normal):
        """Keeps what it drew, as numbers of a standard normal."""

        def sample(
            self, n: int | tuple[int, ...], *, generator: torch.Generator | None = None
        ) -> Tensor:
            x = super().sample(n, generator=generator)
            seen.append(((x - self.loc) / self.scale).flatten())
            return x

    posteriors = [Watched(torch.full((1,), float(m)), 1.0) for m in range(2)]
    target = poe.combine(posteriors, prior=Normal(torch.zeros(1), 5.0))
    draws = poe.sample(target, 100, seed=0, chains=1)
    own = [x for x in seen if len(x) > 1000]
    mine = (draws.x.flatten() - draws.x.mean()) / draws.x.std()
    assert draws.method.startswith("closed form") and draws.agreement is not None and own
    for x in own:
        assert abs(float(torch.corrcoef(torch.stack([mine, x[:100]]))[0, 1])) < 0.5
