"""Noise-conditional energies: against closed forms, one by one, and on pictures whose factors are
known."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import pytest
import torch
from scipy.stats import binomtest

import poe
from experts.noise import (
    ConceptNetwork,
    NoiseConditional,
    concept_denoising,
    concept_matching,
    denoising,
)
from experts.noise.layers import Features
from poe.algebra.capabilities import Conditional, SharesNetwork
from poe.algebra.capabilities import NoiseConditional as NoiseLevels
from poe.spaces.noise import noise_levels
from poe.testing import check_expert

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples"))
import shapes


def network(**changes) -> ConceptNetwork:
    small = {"widths": (8, 8), "classifier_widths": (8, 8), "embedding": 8}
    arguments = {"concepts": ("red", "round", "small"), "sigma_range": (0.1, 5.0), **small}
    torch.manual_seed(0)
    return ConceptNetwork((1, 8, 8), **{**arguments, **changes})


def energy(**changes) -> NoiseConditional:
    return NoiseConditional(network(**changes), name="toy.any").eval().requires_grad_(False)


class Counted(ConceptNetwork):
    """Counts its denoised points, and the pictures in each call."""

    def features(self, x, sigma):
        vars(self).setdefault("calls", []).append(len(x))
        return super().features(x, sigma)


def counted() -> NoiseConditional:
    torch.manual_seed(0)
    return NoiseConditional(
        Counted(
            (1, 8, 8),
            concepts=("red", "round", "small"),
            widths=(8, 8),
            classifier_widths=(8, 8),
            embedding=8,
        )
    ).eval()


class Answer(torch.nn.Module):
    """A denoising network whose output is given."""

    def __init__(self, f) -> None:
        super().__init__()
        self.f = f

    def features(self, x, log_sigma):
        return Features(x, self.f(x, log_sigma), log_sigma)

    def forward(self, features):
        return features.coarse


def known(f, **changes) -> ConceptNetwork:
    net = ConceptNetwork((1, 8, 8), widths=(4, 4), **changes)
    net.denoised = Answer(f)
    return net


def posterior_mean(x, log_sigma):
    """f for data N(loc, 0.7²): D - loc = (x - loc) / (1 + σ² / 0.7²), and x - loc = √(σ² + 0.7²)
    x̃."""
    return 0.7 / (log_sigma.exp() ** 2 + 0.49).sqrt()[:, None, None, None] * x


# ---------------------------------------------------------------- what the energy is


@pytest.mark.parametrize("sigma", [0.05, 0.8, 10.0])
def test_score_and_energy_of_noised_normal_data(sigma):
    """Data N(loc, τ²) noised by σ are N(loc, σ² + τ²), which `scored` knows at every level; the
    energy alone is the density of a normal of variance (σ² + τ²)² / σ², times its mass."""
    net = known(posterior_mean, loc=0.3, spread=0.7)
    x = torch.randn(5, 1, 8, 8)
    energy = NoiseConditional(net).at(sigma)
    value, gradient = energy.value_and_grad(x)
    same, minus_score = energy.scored.value_and_grad(x)
    variance = 0.49 + sigma**2
    squares = (x - 0.3).square().flatten(1).sum(1)
    assert torch.allclose(
        value,
        squares * sigma**2 / 2 / variance**2 + 32 * math.log(2 * math.pi * sigma**2),
        rtol=1e-4,
    )
    assert torch.allclose(gradient, (x - 0.3) * sigma**2 / variance**2, rtol=1e-3, atol=1e-4)
    assert torch.equal(same, value)
    assert torch.allclose(minus_score, (x - 0.3) / variance, rtol=1e-3, atol=1e-4)


def test_energy_of_points_is_exact_where_noise_is_small():
    """D is the nearest of two points, far apart: E is -log p but for log 2, and its gradient minus
    the score."""
    points = torch.tensor([-1.0, 1.0])
    net = known(
        lambda x, log_sigma: x.mean((1, 2, 3), keepdim=True).sign().expand_as(x), spread=1.0
    )
    energy, x = NoiseConditional(net).at(0.2), 1 + 0.2 * torch.randn(6, 1, 8, 8)
    exact = torch.distributions.Normal(points[:, None, None, None, None], 0.2).log_prob(x).sum(
        (2, 3, 4)
    ).logsumexp(0) - math.log(2)
    value, gradient = energy.value_and_grad(x)
    assert torch.allclose(value, -exact - math.log(2), rtol=1e-5)
    assert torch.allclose(gradient, (x - 1) / 0.04, rtol=1e-4, atol=1e-4)
    assert torch.allclose(gradient, energy.scored.value_and_grad(x)[1])


class Logits(torch.nn.Module):
    """A classifier whose output is given."""

    def __init__(self, f) -> None:
        super().__init__()
        self.f = f

    def forward(self, x, log_sigma):
        return self.f(x, log_sigma)


class Guided(torch.nn.Module):
    """A guide whose output is given, the same for all pictures."""

    def __init__(self, h: dict[int, float]) -> None:
        super().__init__()
        self.h = h

    def forward(self, features, concept):
        return torch.tensor([self.h[int(c)] for c in concept])[:, None, None, None].expand_as(
            features.fine
        )


def two_points(factor: float = 1.0) -> ConceptNetwork:
    """Data are +1 everywhere ("plus", .8 of them) or -1 everywhere ("minus"): D = 2p - 1 with p =
    p(plus | x), logistic in the mean pixel, and E[x₀ | x, plus] - E[x₀ | x, minus] = 2, which the
    guide says `factor` times."""

    def log_odds(x, log_sigma):  # of standardised x
        variance = log_sigma.exp() ** 2
        return math.log(4) + 2 * 64 * x.mean((1, 2, 3)) * (variance + 1).sqrt() / variance

    def f(x, log_sigma):
        return (2 * torch.sigmoid(log_odds(x, log_sigma)) - 1)[:, None, None, None].expand_as(x)

    net = known(f, concepts=[("plus", "minus")], frequencies=(0.8, 0.2), spread=1.0)
    net.classifier = Logits(
        lambda x, log_sigma: torch.stack([log_odds(x, log_sigma), torch.zeros(len(x))], 1)
    )  # type: ignore[assignment]
    net.guide = Guided({0: 2 * factor, 1: -2 * factor})  # type: ignore[assignment]
    return net


@pytest.mark.parametrize("sigma", [2.0, 8.0])
def test_scores_of_concepts_are_those_of_their_point(sigma):
    """Given its concept, x is that point and noise, whatever D says of it."""
    any_ = NoiseConditional(two_points()).at(sigma)
    plus, minus = any_.given("plus"), any_.given("minus")
    assert (
        plus.scored is plus.scored
        and plus.scored.given(None) is any_.scored
        and plus.scored.unconditional is any_.scored
    )
    x = sigma * torch.randn(5, 1, 8, 8)
    for e, point in ((plus, 1.0), (minus, -1.0)):
        value, slope = e.scored.value_and_grad(x)
        assert torch.allclose(slope, (x - point) / sigma**2, atol=1e-5)
        assert torch.allclose(value, e(x), rtol=1e-5)
    share, other = (
        p * (any_(x) - e(x)).exp()[:, None, None, None] for p, e in ((0.8, plus), (0.2, minus))
    )
    both = (share * (x - 1) + other * (x + 1)) / sigma**2  # Fisher's identity
    assert torch.allclose(any_.scored.value_and_grad(x)[1], both, atol=1e-4)


def test_a_guide_is_learned_by_concepts_alone():
    net, x, level = network(concepts=()), torch.randn(2, 1, 8, 8), torch.ones(2)
    with pytest.raises(ValueError, match="no concepts to learn"):
        concept_denoising(net, x, x, level, torch.zeros(2, 1, dtype=torch.long))


def test_an_untrained_guide_adds_nothing_and_a_settled_concept_neither():
    any_, x = energy().at(0.5), torch.randn(4, 1, 8, 8)
    assert "noise        0.5 (units of x)" in repr(any_)
    assert torch.equal(
        any_.given("red").scored.value_and_grad(x)[1], any_.scored.value_and_grad(x)[1]
    )
    net = two_points()
    settled = torch.full((1, 1, 8, 8), 1.0)
    assert float(net.log_posteriors(settled, torch.tensor([0.1]))[0][0, 0]) == 0
    plus = NoiseConditional(net).at(0.1).given("plus")
    assert torch.equal(
        plus.scored.value_and_grad(settled)[1], plus.scored.given(None).value_and_grad(settled)[1]
    )


def test_concept_denoising_is_least_where_the_guide_is_exact():
    """E‖D - x₀‖² = 64·4 E[p (1 - p)], all of which an exact guide saves; and gradients reach f by
    the guide, D by itself."""
    torch.manual_seed(3)
    n, sigma = 4_000, 8.0
    truth = (torch.rand(n, 1) < 0.2).long()
    clean, eps, level = (
        (1.0 - 2.0 * truth)[..., None, None].expand(n, 1, 8, 8),
        torch.randn(n, 1, 8, 8),
        torch.full((n,), sigma),
    )
    saved = {}
    for factor in (0.8, 1.0, 1.2):
        net = two_points(factor)
        plain, saved[factor] = (
            part.double() for part in concept_denoising(net, clean, eps, level, truth)
        )
        assert torch.allclose(plain, denoising(net, clean, eps, level).double(), rtol=1e-4)
        p = net.log_posteriors(clean + sigma * eps, level)[0].exp()[:, 0].double()
        entropy = 4 * p * (1 - p) * (1 / sigma**2 + 1)
        gap = plain - entropy
        assert abs(gap.mean()) < 4 * gap.std() / math.sqrt(n)
    assert torch.allclose(saved[1.0], -plain, atol=1e-5)
    assert saved[1.0].mean() < min(saved[0.8].mean(), saved[1.2].mean())

    net = network()
    with torch.no_grad():
        net.guide.leave.weight.normal_()  # type: ignore[union-attr]
    two = torch.tensor([[0, 2], [1, 2], [0, 1]])
    plain, gained = concept_denoising(net, clean[:3], eps[:3], level[:3], two)
    assert plain.shape == gained.shape == (3,)
    gained.sum().backward()
    assert net.denoised.leave.weight.grad is None and net.denoised.enter.weight.grad is not None
    assert net.classifier.enter.weight.grad is None  # type: ignore[union-attr]


def test_denoising_of_normal_data_is_least_at_the_posterior_mean():
    """E[x₀ | x] = x / (1 + σ² / spread²), which leaves spread²σ² / (spread² + σ²) in each
    coordinate: a loss of λ_σ / λ_σ = 1."""
    torch.manual_seed(2)
    n = 4_000
    clean, eps = 0.7 * torch.randn(n, 1, 8, 8), torch.randn(n, 1, 8, 8)
    sigma = torch.full((n,), 0.6)
    nets = [
        known(lambda x, log_sigma, c=c: c * posterior_mean(x, log_sigma), spread=0.7)
        for c in (1.0, 0.9, 1.1)
    ]
    exact, less, more = (denoising(net, clean, eps, sigma).double() for net in nets)
    assert abs(exact.mean().item() - 1) < 5 * exact.std().item() / math.sqrt(n)
    assert min(less.mean(), more.mean()) > exact.mean()


def test_concepts_follow_bayes_rule():
    """Σ_c p(c) exp(-E(x; c)) over the values of a factor is exp(-E(x)); a single name and its
    absence make up the same; and no x, however far from all data, gains more than log 1/p(c)."""
    frequencies = (0.2, 0.3, 0.5, 0.1)
    net = network(concepts=[("red", "green", "blue"), "round"], frequencies=frequencies)
    with torch.no_grad():
        net.classifier.anywhere[-1].weight.mul_(30.0)  # type: ignore[union-attr]
        for scale in (1.0, 1e3):
            x, sigma = scale * torch.randn(6, 1, 8, 8), torch.linspace(0.2, 3, 6)
            energies = torch.stack([net(x, sigma, torch.full((6,), c)) for c in range(5)]).double()
            rows = net.log_ratios(x, sigma).double() + torch.tensor(frequencies).double().log()
            assert torch.allclose(rows[:, :3].exp().sum(1), torch.ones(6).double(), atol=1e-5)
            assert (rows < 1e-6).all()
            assert torch.allclose(
                energies[4] - energies[:4],
                net.log_ratios(x, sigma).T.double(),
                rtol=1e-4,
                atol=1e-6 * energies[4].max(),
            )
            present, absent = net.log_posteriors(x, sigma)[1].double().exp().unbind(1)
            assert torch.allclose(present + absent, torch.ones(6).double(), atol=1e-5)
    assert rows.min() > -90  # logits are bounded


def test_concept_loss_is_the_cross_entropy():
    net = network(concepts=[("red", "green", "blue"), "round"])
    x, sigma = torch.randn(6, 1, 8, 8), torch.linspace(0.2, 3, 6)
    truth = torch.tensor([[0, 0], [1, 0], [2, 1], [0, 1], [1, 0], [2, 1]])
    with torch.no_grad():
        gains = net.log_ratios(x, sigma) + torch.tensor([1 / 3, 1 / 3, 1 / 3, 0.5]).log()
        p = gains.exp().double()
        right = torch.where(truth[:, 1] == 0, p[:, 3], 1 - p[:, 3])
        wanted = -p[torch.arange(6), truth[:, 0]].log() - right.log()
        assert torch.allclose(concept_matching(net, x, sigma, truth).double(), wanted, rtol=1e-5)


def test_fitted_concepts_are_calibrated():
    """Two points, ±1 everywhere, of frequencies .8 and .2, under so much noise that x tells little:
    p(c | x) is a logistic function of the mean pixel, log-odds log 4 + 2·64·x̄ / σ²."""
    net = network(concepts=[("plus", "minus")], frequencies=(0.8, 0.2), classifier_widths=(4, 4))
    torch.manual_seed(5)
    optimiser = torch.optim.Adam(net.classifier.parameters(), 5e-3)  # type: ignore[union-attr]

    def data(n):
        truth = (torch.rand(n, 1) < 0.2).long()
        return (
            truth,
            (1.0 - 2.0 * truth)[:, :, None, None] + 5.0 * torch.randn(n, 1, 8, 8),
            torch.full((n,), 5.0),
        )

    for _ in range(300):
        truth, x, sigma = data(256)
        optimiser.zero_grad()
        concept_matching(net, x, sigma, truth).mean().backward()
        optimiser.step()
    truth, x, sigma = data(4_000)
    exact = math.log(4) + 2 * 64 * x.mean((1, 2, 3)).double() / 25
    with torch.no_grad():
        plus, minus = net.log_posteriors(x, sigma)[0].double().unbind(1)
        excess = concept_matching(net, x, sigma, truth).double() + torch.nn.functional.logsigmoid(
            torch.where(truth[:, 0] == 0, exact, -exact)
        )
    # nats above the entropy: what a divergence of the fitted from the true posterior costs
    assert excess.mean() < 0.05
    assert torch.corrcoef(torch.stack([plus - minus, exact]))[0, 1] > 0.95


def test_growth_is_what_far_points_show():
    any_ = energy()
    x = torch.randn(4, 1, 8, 8)
    for e in (
        any_,
        any_.given("red").at(0.7),
        poe.conjunction(any_, [any_.given("red"), any_.given("round")]).at(2.0),
    ):
        with torch.no_grad():
            seen = [
                (e(r * x) / (r * x).square().flatten(1).sum(1)).mean().item() for r in (1e2, 1e4)
            ]
        assert e.proper and e.bounded
        assert seen[1] == pytest.approx(e.growth, rel=1e-3)
        assert abs(seen[1] / e.growth - 1) < abs(seen[0] / e.growth - 1)
    assert (~any_).proper is False
    assert (any_.given("red") / any_).proper is None


def test_laws():
    report = check_expert(lambda: NoiseConditional(network().arguments, concept="red", sigma=0.5))
    assert "save and load" in str(report)


# ---------------------------------------------------------------- levels and concepts


def test_levels():
    red = energy().given("red")
    assert red.can(NoiseLevels)
    assert red.sigma_range == (0.1, 5.0)
    assert red.at(0) is red and red.at(0.1) is red
    assert red.at(0.5) is red.at(0.5) and red.at(0.5).sigma == 0.5
    with pytest.raises(ValueError, match="knows noise levels from 0.1 to 5"):
        red.at(0.05)
    with pytest.raises(ValueError, match="not 6"):
        red.at(6.0)
    levels = noise_levels(red & energy().given("round"))
    assert levels is not None and levels[0].proper


def test_concepts():
    any_ = energy()
    red = any_.given("red")
    assert (str(red), str(any_.at(1.0)), str(red.given(None))) == ("toy.red", "toy.any", "toy.any")
    assert red.network is any_.network
    assert any_.given("red") is red and red.given(None) is any_
    assert any_.can(Conditional) and not red.can(Conditional)
    assert (any_ / red).given("round").parts[0] is any_.given("round")
    with pytest.raises(ValueError, match="did you mean 'round'"):
        any_.given("rounds")
    with pytest.raises(ValueError, match="it knows red, round, small"):
        any_.given("yellow")
    with pytest.raises(TypeError, match="takes a context"):
        (red & red.given("round")).given("small")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sigma_range": (0.0, 1.0)}, "0 < low < high"),
        ({"concepts": ("a", "a")}, "named once"),
        ({"concepts": [("a", "b"), "a"]}, "named once"),
        ({"concepts": [("a", "b"), ()]}, "at least one value"),
        ({"placed": ("left",)}, "some of the concepts"),
        ({"frequencies": (0.5, 0.5)}, "3 numbers between 0 and 1"),
        ({"frequencies": (0.5, 0.5, 0.0)}, "3 numbers between 0 and 1"),
    ],
)
def test_networks_that_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        network(**changes)
    with pytest.raises(ValueError, match="divisible by 4"):
        ConceptNetwork((1, 6, 8))


# ---------------------------------------------------------------- one call for all


def composed(any_: NoiseConditional) -> list[poe.Energy]:
    red, round_, small = (any_.given(name) for name in ("red", "round", "small"))
    return [
        poe.conjunction(any_, [red, round_, small]),
        red | round_ | small,
        red - round_,
        red**0.5 & round_.at(0.5) & ~small,
    ]


@pytest.mark.parametrize("which", range(4))
def test_fused_is_one_call_and_equal(which):
    any_ = counted()
    e, x = composed(any_)[which], torch.randn(2, 3, 1, 8, 8)
    levels = 2 if which == 3 else 1
    value, gradient = e.value_and_grad(x)
    assert any_.network.calls == [6] * levels
    any_.network.calls.clear()
    forward = e(x)
    assert any_.network.calls == [6] * levels
    # hides what the terms share
    alone = e.rebuild([poe.shift(part, 0.0, log_z=poe.Estimate(0.0)) for part in e.parts])
    assert not any(part.can(SharesNetwork) for part in alone.parts)
    wanted, slope = alone.value_and_grad(x)
    assert torch.allclose(value, wanted, atol=1e-5 * wanted.abs().max().item())
    assert torch.allclose(forward, wanted, atol=1e-5 * wanted.abs().max().item())
    assert torch.allclose(gradient, slope, atol=1e-5 * slope.abs().max().item())


def test_fused_scores_are_one_call_and_those_of_each_concept():
    any_ = counted()
    with torch.no_grad():
        any_.network.guide.leave.weight.normal_()  # type: ignore[union-attr]
    x, concepts = (
        torch.randn(2, 3, 1, 8, 8),
        [any_.given(name).scored for name in ("red", "round", "small")],
    )
    values, slopes = any_.fused_value_and_grad(concepts, x)
    assert any_.network.calls == [6]
    for one, value, slope in zip(concepts, values, slopes, strict=True):
        alone = one.value_and_grad(x)
        assert torch.allclose(value, alone[0], rtol=1e-5)
        assert torch.allclose(slope, alone[1], atol=1e-4)
    assert not torch.allclose(slopes[0], slopes[1], atol=1e-2)


def test_fused_in_chunks(monkeypatch):
    any_, x = counted(), torch.randn(10, 1, 8, 8)
    e = composed(any_)[0]
    value, gradient = e.value_and_grad(x)
    any_.network.calls.clear()
    monkeypatch.setattr("experts.noise.energy.MAX_PICTURES", 4)
    chunked = e.value_and_grad(x)
    assert any_.network.calls == [4, 4, 2]
    any_.network.calls.clear()
    with torch.no_grad():
        assert torch.allclose(e(x), value, atol=1e-5 * value.abs().max().item())
    assert any_.network.calls == [4, 4, 2]
    assert torch.allclose(chunked[0], value, atol=1e-5 * value.abs().max().item())
    assert torch.allclose(chunked[1], gradient, atol=1e-5 * gradient.abs().max().item())


def test_other_networks_stay_apart():
    a, b, x = counted(), counted(), torch.randn(4, 1, 8, 8)
    (a.given("red") & a.given("round") & b.given("red")).value_and_grad(x)
    assert (a.network.calls, b.network.calls) == ([4], [4])


# ---------------------------------------------------------------- files


def test_a_shared_network_is_stored_once_and_shared_again(tmp_path):
    any_ = energy()
    e, one = composed(any_)[0], any_.given("red")
    for name, what in (("all", e), ("one", one)):
        poe.save(what, tmp_path / f"{name}.safetensors")
    sizes = [(tmp_path / f"{name}.safetensors").stat().st_size for name in ("one", "all")]
    assert sizes[1] < 1.5 * sizes[0]
    again = poe.load(tmp_path / "all.safetensors")
    assert str(again) == str(e)
    assert len({id(leaf.network) for leaf in poe.leaves(again)}) == 1
    x = torch.randn(3, 1, 8, 8)
    assert torch.equal(again(x), e(x))
    assert torch.equal(poe.load(tmp_path / "one.safetensors")(x), one(x))


# ---------------------------------------------------------------- pictures of shapes


@pytest.mark.parametrize("sigma", [0.0, 0.05, 0.1])
def test_the_classifier_is_exact(generator, sigma):
    """99.9 % right would leave 2 wrong of 300 with probability 4 %; none is expected."""
    x, factors = shapes.pictures(300, unseen=True, sigma=sigma, generator=generator)
    seen = shapes.judge(x)
    assert int((seen.factors != factors).any(1).sum()) == 0
    assert not seen.broken.any()


def test_the_classifier_sees_what_is_broken(generator):
    left, right = (
        shapes.pictures(40, (side, "small"), generator=generator)[0] for side in ("left", "right")
    )
    two, blank = torch.maximum(left, right), torch.full((2, 3, 16, 16), -1.0)
    assert shapes.judge(two).broken.all()
    assert shapes.judge(
        blank + 0.05 * torch.randn(blank.shape, generator=generator)
    ).objects.tolist() == [0, 0]
    assert not shapes.judge(two).has("small").any()
    half = left.clone()
    half[:, :, ::2] = -1
    assert shapes.judge(half).broken.all()


def test_combinations_left_out_never_occur(generator):
    seen = shapes.combinations()
    every = shapes.combinations(unseen=True)
    left_out = {shapes.names(row) for row in every.tolist()} - {
        shapes.names(row) for row in seen.tolist()
    }
    assert len(every) == 96
    assert len(left_out) == 4 + 4 + 2
    assert all(
        any(set(combination) >= set(left) for left in shapes.UNSEEN) for combination in left_out
    )
    with pytest.raises(ValueError, match="purple"):
        shapes.combinations(["purple"])


# ---------------------------------------------------------------- the zoo's concepts


def test_the_zoo_of_shapes_is_what_its_card_says() -> None:
    prior = poe.load("shapes.any")
    red = poe.load("shapes.red")
    assert prior.network.concepts == shapes.CONCEPTS and prior.event_shape == (3, 16, 16)
    assert str(red) == "shapes.red" and red.concept == "red"
    file = Path(__file__).resolve().parents[2] / "experts" / "zoo" / "shapes.safetensors"
    assert file.stat().st_size < 4_000_000
    with pytest.raises(ValueError, match="does not know the concept 'rde'; did you mean 'red'"):
        prior.given("rde")
    with pytest.raises(ValueError, match="from 0.05 to 10"):
        prior.at(0.01)
    with pytest.raises(ValueError, match="shapes.re"):
        poe.load("shapes.re")


def test_energies_of_the_zoo_tell_concepts_apart() -> None:
    """Of pictures at a fifth of the noise of their contrast, Bayes' rule over the colours, and the
    places, is right nearly always."""
    prior = poe.load("shapes.any")
    x, factors = shapes.pictures(128, sigma=0.2, generator=torch.Generator().manual_seed(3))
    for index in (1, 2, 3, 4):
        values = list(shapes.FACTORS.values())[index]
        with torch.no_grad():
            energies = torch.stack([prior.given(value).at(0.2)(x) for value in values])
        right = (energies.argmin(0) == factors[:, index]).sum().item()
        assert binomtest(right, 128, 0.97, alternative="less").pvalue > 1e-3, (values, right)


@pytest.mark.slow
def test_draws_of_a_conjunction_are_what_was_asked_for() -> None:
    """Two concepts of the zoo; the sum of their scores with the prior's counted twice would draw
    something else."""
    prior = poe.load("shapes.any")
    target = poe.conjunction(prior, [prior.given("blue"), prior.given("large")])
    draws = poe.sample(target, 64, seed=0)
    judged = shapes.judge(draws.x)
    wanted = int(judged.has("blue", "large").sum())
    # by chance: an eighth
    assert binomtest(wanted, 64, 0.98, alternative="less").pvalue > 1e-3, wanted
    assert draws.diagnostics.nonfinite == 0


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda e: e.at("x"), "a level of noise is a finite number"),
        (lambda e: (e & e.given("red")).at(None), "a level of noise is a finite number"),
        (lambda e: e.given(["red"]), "a concept is a name, not"),
        (lambda e: ConceptNetwork((1, 8, 8), concepts="red"), "a list of names"),
        (
            lambda e: ConceptNetwork((1, 8, 8), concepts=[("a", "b")], frequencies=[0.9, 0.9]),
            "of a, b sum to 1.8",
        ),
        (lambda e: ConceptNetwork((1, 8, 8), spread=0.0), "spread is that of the data"),
        (lambda e: poe.normalize(e, log_z=0.0), "a number and its standard error"),
        (lambda e: poe.normalize(e, log_z=(0.0, -1.0)), "a number and its standard error"),
    ],
)
def test_wrong_levels_and_concepts_say_so(wrong, message):
    with pytest.raises(ValueError, match=message):
        wrong(energy())


def test_scores_for_gradients_are_not_saved_as_gradients(tmp_path):
    with pytest.raises(poe.io.storage.StorageError, match="save the energy whose `scored` it is"):
        poe.save(energy().scored, tmp_path / "e.safetensors")
