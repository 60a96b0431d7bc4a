"""Noise-conditional energies: against closed forms, one by one, and on pictures whose factors are known."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import pytest
import torch
from scipy.stats import binomtest

import poe
from experts import noise
from experts.noise import ConceptNetwork, NoiseConditional, concept_matching, noise_matching
from poe.capabilities import Conditional, SharesNetwork
from poe.capabilities import NoiseConditional as NoiseLevels
from poe.path import noise_levels
from poe.testing import check_expert

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples"))
import shapes


def network(**changes) -> ConceptNetwork:
    arguments = {"concepts": ("red", "round", "small"), "sigma_range": (0.1, 5.0), "widths": (8, 8), "embedding": 8}
    torch.manual_seed(0)
    return ConceptNetwork((1, 8, 8), **{**arguments, **changes})


def energy(**changes) -> NoiseConditional:
    return NoiseConditional(network(**changes), name="toy.any").eval().requires_grad_(False)


class Counted(ConceptNetwork):
    """Counts its calls and the pictures in each."""

    def forward(self, x, sigma, concept):
        vars(self).setdefault("calls", []).append(len(x))
        return super().forward(x, sigma, concept)


def counted() -> NoiseConditional:
    torch.manual_seed(0)
    return NoiseConditional(Counted((1, 8, 8), concepts=("red", "round", "small"), widths=(8, 8), embedding=8)).eval()


class Known(ConceptNetwork):
    """A network whose output is given: `answer(x, log_sigma) -> f`."""

    answer = staticmethod(lambda x, log_sigma: torch.zeros_like(x))

    def _f(self, x, log_sigma, concept):
        return self.answer(x, log_sigma)


# ---------------------------------------------------------------- what the energy is


def test_score_of_noised_normal_data_has_the_scale_of_the_closed_form():
    """Data N(loc, spread²) noised by σ are N(loc, spread² + σ²): f(x̃) = (√(σ²+spread²) - σ) / spread · x̃ makes E exactly that."""
    net = Known((1, 8, 8), loc=0.3, spread=0.7, widths=(4, 4))
    net.answer = lambda x, log_sigma: ((log_sigma.exp() ** 2 + 0.49).sqrt() - log_sigma.exp())[:, None, None, None] / 0.7 * x
    x = torch.randn(5, 1, 8, 8)
    for sigma in (0.05, 0.8, 10.0):
        value, gradient = NoiseConditional(net).at(sigma).value_and_grad(x)
        variance = 0.49 + sigma**2
        assert torch.allclose(value, (x - 0.3).square().flatten(1).sum(1) / 2 / variance, rtol=1e-4)
        assert torch.allclose(-gradient, -(x - 0.3) / variance, rtol=1e-3, atol=1e-5)


def test_loss_of_the_exact_score_is_one_and_of_a_known_point_nothing():
    """For normal data λ_σ E‖σ∇E - ε‖² / n = 1 at the truth, at every level; where all data are one point x₀, D = x₀ leaves nothing."""
    net = Known((1, 8, 8), spread=0.7, widths=(4, 4))
    net.answer = lambda x, log_sigma: ((log_sigma.exp() ** 2 + 0.49).sqrt() - log_sigma.exp())[:, None, None, None] / 0.7 * x
    torch.manual_seed(1)
    n = 2_000
    sigma, none = torch.full((n,), 0.6), torch.zeros(n, dtype=torch.long)
    clean, eps = 0.7 * torch.randn(n, 1, 8, 8), torch.randn(n, 1, 8, 8)
    x = clean + 0.6 * eps
    score = (0.6 * x / (0.49 + 0.36) - eps).square().flatten(1).sum(1) * (1 + 0.36 / 0.49)
    rate = 0.36 * x.square().flatten(1).sum(1) / (0.49 + 0.36) ** 2
    huber = torch.nn.functional.huber_loss(-rate, -eps.square().flatten(1).sum(1), reduction="none", delta=5.0)
    loss = noise_matching(net, clean, eps, sigma, none)
    assert torch.allclose(loss, (score + huber) / 64, rtol=1e-4)
    ratio = score.double() / 64
    assert abs(ratio.mean().item() - 1) < 5 * ratio.std().item() / math.sqrt(n)
    net.answer = lambda x, log_sigma: torch.full_like(x, 2.0)
    point = torch.full((n, 1, 8, 8), 1.4)
    assert noise_matching(net, point, eps, sigma, none).abs().max() < 1e-5


def test_concept_loss_is_the_cross_entropy_of_bayes_rule():
    net = network()
    x, sigma = torch.randn(6, 1, 8, 8), torch.linspace(0.2, 3, 6)
    prior, truth = torch.tensor([0.2, 0.3, 0.5]), torch.tensor([0, 1, 2, 0, 1, 2])
    with torch.no_grad():
        energies = torch.stack([net(x, sigma, torch.full((6,), c)) for c in range(4)]).double()
        joint = prior.double()[:, None] * (-energies[:3]).exp()
        gap = energies[3] + joint.sum(0).log()
        wanted = -(joint / joint.sum(0))[truth, torch.arange(6)].log()
        wanted = wanted + torch.where(gap.abs() < 3, gap**2 / 2, 3 * (gap.abs() - 1.5)) / 10
        loss = concept_matching(net, x, sigma, torch.arange(3), prior.log(), truth)
    assert torch.allclose(loss.double(), wanted, rtol=1e-4)


def test_growth_is_what_far_points_show():
    any_ = energy()
    x = torch.randn(4, 1, 8, 8)
    for e in (any_, any_.given("red").at(0.7), poe.conjunction(any_, [any_.given("red"), any_.given("round")]).at(2.0)):
        with torch.no_grad():
            seen = [(e(r * x) / (r * x).square().flatten(1).sum(1)).mean().item() for r in (1e2, 1e4)]
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
    return [poe.conjunction(any_, [red, round_, small]), red | round_ | small, red - round_, red**0.5 & round_.at(0.5) & ~small]


@pytest.mark.parametrize("which", range(4))
def test_fused_is_one_call_and_equal(which):
    any_ = counted()
    e, x = composed(any_)[which], torch.randn(2, 3, 1, 8, 8)
    value, gradient = e.value_and_grad(x)
    assert any_.network.calls == [6 * len(poe.leaves(e))]
    any_.network.calls.clear()
    forward = e(x)
    assert any_.network.calls == [6 * len(poe.leaves(e))]
    alone = e.rebuild([poe.shift(part, 0.0, log_z=poe.Estimate(0.0)) for part in e.parts])  # hides what the terms share
    assert not any(part.can(SharesNetwork) for part in alone.parts)
    wanted, slope = alone.value_and_grad(x)
    assert torch.allclose(value, wanted, atol=1e-5 * wanted.abs().max().item())
    assert torch.allclose(forward, wanted, atol=1e-5 * wanted.abs().max().item())
    assert torch.allclose(gradient, slope, atol=1e-5 * slope.abs().max().item())


def test_fused_in_chunks(monkeypatch):
    any_, x = counted(), torch.randn(10, 1, 8, 8)
    e = composed(any_)[0]
    value, gradient = e.value_and_grad(x)
    any_.network.calls.clear()
    monkeypatch.setattr(noise, "MOST_ROWS", 15)
    chunked = e.value_and_grad(x)
    assert any_.network.calls == [12, 12, 12, 4]
    assert torch.allclose(chunked[0], value, atol=1e-5 * value.abs().max().item())
    assert torch.allclose(chunked[1], gradient, atol=1e-5 * gradient.abs().max().item())


def test_other_networks_stay_apart():
    a, b, x = counted(), counted(), torch.randn(4, 1, 8, 8)
    (a.given("red") & a.given("round") & b.given("red")).value_and_grad(x)
    assert (a.network.calls, b.network.calls) == ([8], [4])


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
    left, right = (shapes.pictures(40, (side, "small"), generator=generator)[0] for side in ("left", "right"))
    two, blank = torch.maximum(left, right), torch.full((2, 3, 16, 16), -1.0)
    assert shapes.judge(two).broken.all()
    assert shapes.judge(blank + 0.05 * torch.randn(blank.shape, generator=generator)).objects.tolist() == [0, 0]
    assert not shapes.judge(two).has("small").any()
    half = left.clone()
    half[:, :, ::2] = -1
    assert shapes.judge(half).broken.all()


def test_combinations_left_out_never_occur(generator):
    seen = shapes.combinations()
    every = shapes.combinations(unseen=True)
    left_out = {shapes.names(row) for row in every.tolist()} - {shapes.names(row) for row in seen.tolist()}
    assert len(every) == 96
    assert len(left_out) == 4 + 4 + 2
    assert all(any(set(combination) >= set(left) for left in shapes.UNSEEN) for combination in left_out)
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
    with pytest.raises(ValueError, match="has not learned the concept 'rde'; did you mean 'red'"):
        prior.given("rde")
    with pytest.raises(ValueError, match="from 0.05 to 10"):
        prior.at(0.01)
    with pytest.raises(ValueError, match="shapes.re"):
        poe.load("shapes.re")


def test_energies_of_the_zoo_tell_concepts_apart() -> None:
    """Of pictures at a fifth of the noise of their contrast, Bayes' rule over the colours, and the places, is right nearly always."""
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
    """Two concepts of the zoo; the sum of their scores with the prior's counted twice would draw something else."""
    prior = poe.load("shapes.any")
    target = poe.conjunction(prior, [prior.given("blue"), prior.given("large")])
    draws = poe.sample(target, 64, seed=0)
    judged = shapes.judge(draws.x)
    wanted = int(judged.has("blue", "large").sum())
    assert binomtest(wanted, 64, 0.6, alternative="less").pvalue > 1e-3, wanted  # by chance: an eighth
    assert draws.diagnostics.nonfinite == 0
