"""VAE and GAN: a linear Gaussian decoder has its evidence in closed form, a bounded factor its
normaliser by quadrature."""

from __future__ import annotations

import importlib.resources
import json
import math
import sys
from pathlib import Path

import pytest
import torch
from scipy import stats
from torch import nn

import poe
from experts import GAN, VAE, Decoder, Discriminator, Generator, Normal
from poe.algebra.capabilities import BoundsLogProb, Proposes, Samples
from poe.testing import LawError, check_expert

pytest.importorskip("sklearn")
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples"))
import digits

LEVEL = 1e-6
ZOO = Path(str(importlib.resources.files("experts.zoo")))
LOOPS = (0, 6, 8, 9)


def linear(samples: int = 8, blur: float = 1.0) -> tuple[VAE, Normal]:
    """A VAE with x = Wz + b + s∘ε, and its law N(b, WWᵀ + diag(s²)). Its encoder is the exact
    posterior, with factor `blur`·L."""
    generator = torch.Generator().manual_seed(1)
    vae = VAE((2, 2), latent=2, hidden=(), samples=samples).double()
    w, b = (
        torch.randn(4, 2, generator=generator).double(),
        torch.randn(4, generator=generator).double(),
    )
    s = torch.tensor([0.5, 0.7, 1.0, 1.3]).double()
    precision = torch.eye(2) + w.T @ (w / s[:, None].square())
    gain = torch.linalg.solve(precision, (w / s[:, None].square()).T)  # m(x) = gain (x - b)
    factor = blur * torch.linalg.cholesky(torch.linalg.inv(precision))
    with torch.no_grad():
        decoder, encoder = vae.decoder.network[0], vae.encoder[0]
        decoder.weight.copy_(w)
        decoder.bias.copy_(b)
        vae.decoder.log_scale.copy_(s.log())
        encoder.weight.zero_()
        encoder.weight[:2] = gain
        encoder.bias[:2] = -gain @ b
        wanted = factor[torch.tril_indices(2, 2).unbind()]
        encoder.bias[2:] = wanted / 0.3
        encoder.bias[[2, 4]] = torch.expm1(wanted[[0, 2]] - 1e-3).log() - 0.55
    vae.requires_grad_(False)
    return vae, Normal(b.reshape(2, 2), covariance=w @ w.T + s.square().diag())


def test_with_the_exact_posterior_the_bound_is_the_evidence():
    vae, law = linear(samples=1)
    x = 3 * torch.randn(50, 2, 2, dtype=torch.float64)
    assert torch.allclose(vae(x), law(x), atol=1e-9)
    assert vae.gap(x, samples=2).value.abs().max() < 1e-9


@pytest.mark.parametrize("samples", [2, 1000])
def test_evidence_and_gap_against_the_closed_form(samples, generator):
    vae, law = linear(blur=1.5)  # weights of finite variance: q is wider than the posterior
    x = law.sample(400, generator=generator)
    found = vae.evidence(x, samples=samples, generator=generator)
    error = found.value + law(x)
    if (
        samples == 1000
        # the standard errors are honest: mean square of 400 standardised errors, each near to N(0,
        # 1)
    ):
        z = error / found.standard_error
        assert stats.chi2.ppf(LEVEL / 2, 400) < z.square().sum() < stats.chi2.isf(LEVEL / 2, 400)
        gap = vae.gap(x, samples=samples, generator=generator)
        assert ((gap.value - (vae(x) - law(x))).abs() < 6 * gap.standard_error).all()
    else:  # K = 2 has a bias, but the jackknife made it smaller than that of the plain bound
        plain = (
            -math.log(2)
            + vae.log_weights(x, torch.randn(400, 2, 2, generator=generator).double()).logsumexp(-1)
            + law(x)
        )
        assert error.mean().abs() < plain.mean().abs()


def test_the_mean_of_exp_minus_the_energy_is_the_density():
    """Over the choice of the fixed noise E[exp(-E(x))] = p(x), and so E >= -log p on average."""
    vae, law = linear(samples=4, blur=1.5)
    x = law.sample(5, generator=torch.Generator().manual_seed(2))
    noise = torch.randn(20_000, 4, 2, generator=torch.Generator().manual_seed(3)).double()
    log_w = torch.stack(
        [
            vae.log_weights(row.expand(len(noise), 2, 2), noise).logsumexp(-1) - math.log(4)
            for row in x
        ]
    )
    ratio = (log_w + law(x)[:, None]).exp()
    z = (ratio.mean(1) - 1) / (ratio.std(1) / len(noise) ** 0.5)
    assert 2 * len(x) * stats.norm.sf(z.abs().max()) > LEVEL
    assert (log_w.mean(1) < -law(x)).all()


def test_measured_log_z_against_importance_sampling_from_the_law(generator):
    vae, law = linear(samples=2, blur=1.5)
    assert vae.log_z is None
    found = vae.measure_log_z(40_000, generator=generator)
    assert vae.log_z == found
    x = law.sample(40_000, generator=generator)
    weight = (law(x) - vae(x)).exp()
    error = math.hypot(found.standard_error, float(weight.std() / weight.mean()) / len(x) ** 0.5)
    assert 2 * stats.norm.sf(abs(found.value - math.log(weight.mean())) / error) > LEVEL
    assert abs(found.value) > 6 * error  # that of one set of noise: not 0
    with vae.training_mode():
        pass
    assert vae.log_z is None


@pytest.mark.parametrize("measured", [False, True])
def test_vae_obeys_the_laws(measured):
    def make() -> VAE:
        vae = VAE((2, 2), latent=2, hidden=(8,), samples=64, amplitude=2.0, dropout=0.5)
        if measured:
            vae.measure_log_z(4000, generator=torch.Generator().manual_seed(0))
        return vae

    report = check_expert(make)
    assert "draws match the density" in report.checked
    assert ("normalisation" in report.checked) == measured


def test_a_loose_bound_is_caught():
    def make() -> VAE:
        vae = VAE((2, 2), latent=2, hidden=(), samples=1)
        with torch.no_grad():
            vae.decoder.network[0].weight.mul_(5)  # type: ignore[operator]
        return vae

    with pytest.raises(LawError, match="draws match the density"):
        check_expert(make)


def test_vae_says_that_it_is_a_bound():
    vae = VAE((2, 2), latent=2)
    assert vae.can(BoundsLogProb)
    assert "bound        E(x) >= -log p(x)" in repr(vae)
    assert vae.can(Samples)
    assert vae.proper
    assert vae.bounded
    far = 1e3 * torch.nn.functional.normalize(torch.randn(20, 4), dim=-1).reshape(20, 2, 2)
    assert (vae(2 * far) > 2 * vae(far)).all()


def test_a_product_with_the_model_itself_through_its_generator(generator):
    """prior & energy @ generator has pictures with the density p(x) exp(-E(x)): here one Gaussian,
    in closed form."""
    vae, law = linear()
    factor = Normal(torch.ones(2, 2).double(), torch.full((2, 2), 1.5).double())
    draws = poe.sample(vae.prior & factor @ vae.generator, 4000, seed=0)
    x = vae.decode(draws.x)
    exact = poe.simplify(law & factor).parts[0]
    z = torch.linalg.solve_triangular(exact.scale_tril, (x - exact.loc).flatten(1).T, upper=False)
    n = draws.diagnostics.ess_bulk
    assert 8 * stats.norm.sf(float(z.mean(1).abs().max()) * n**0.5) > LEVEL
    assert 8 * stats.norm.sf(float((z.var(1) - 1).abs().max()) * (n / 2) ** 0.5) > LEVEL
    assert (
        abs(draws.log_z.value - float(poe.log_z(law & factor)))
        < 5 * draws.log_z.standard_error + 1e-6
    )


def test_the_bound_cancels_where_the_vae_is_start_and_factor():
    """The encoder is ruined, and importance resampling of p(x) exp(-E(x)) does not notice."""
    vae, law = linear(samples=1, blur=0.5)
    factor = Normal(torch.zeros(2, 2).double(), torch.full((2, 2), 3.0).double())
    draws = poe.sample(vae & factor, 4000, seed=0, method="importance")
    exact = poe.simplify(law & factor).parts[0]
    z = torch.linalg.solve_triangular(
        exact.scale_tril, (draws.x - exact.loc).flatten(1).T, upper=False
    )
    assert 8 * stats.norm.sf(float(z.mean(1).abs().max()) * draws.diagnostics.ess_bulk**0.5) > LEVEL


def test_weights_of_draws_of_the_model_say_log_z_of_the_model():
    """∫ p f, not ∫ exp(-E) f: by draws through the decoder. Reports say that all rests on the
    bound."""
    torch.manual_seed(1)
    vae = VAE((1,), latent=1, hidden=(8,), samples=2, scale=0.3)
    with torch.no_grad():
        for parameter in vae.decoder.network.parameters():
            parameter.mul_(3)
    vae.measure_log_z(10_000)
    factor = Normal(torch.tensor([0.5]), torch.tensor([0.5]))
    direct = (-factor(vae.sample(400_000))).double()
    draws = poe.sample(vae & factor, 4000, seed=0, method="importance")
    assert draws.log_z is not None
    exact = float(direct.logsumexp(0)) - math.log(len(direct))
    assert abs(draws.log_z.value - exact) < 4 * draws.log_z.standard_error + 0.005
    for found in (draws, poe.sample(vae, 10, seed=0)):
        assert found.verdict.startswith("TRUSTED if ")
        assert "the bound of vae is tight" in found.verdict.split(":")[0]
        assert any("vae.gap(x)" in w for w in found.warnings)


class Tilt(nn.Module):
    """f(x) = slope·Σx."""

    def forward(self, x):
        return 0.7 * x.sum(-1, keepdim=True)


def gan() -> GAN:
    return GAN((2, 2), latent=2, hidden=(8,), judge=(8,), dropout=0.5)


def test_gan_obeys_the_laws():
    check_expert(gan)
    check_expert(lambda: gan().discriminator)
    found = gan()
    assert found.proper
    assert found.discriminator.proper is False
    assert found.can(Proposes)


def test_latent_energy_is_that_of_che_et_al():
    found = gan()
    u = torch.randn(7, 6)
    z, noise = u[:, :2], u[:, 2:].reshape(-1, 2, 2)
    logit = found.discriminator.logit(found.decoder(z) + 0.2 * noise)
    wanted = 0.5 * u.square().sum(-1) - logit
    assert torch.allclose(found(u) - wanted, torch.tensor(3 * math.log(2 * math.pi)), atol=1e-5)
    assert torch.equal(found.decode(u), found.generator(u).detach())


def test_latent_draws_follow_the_generator_times_the_odds():
    """x = ½(z + 0.2ε') tilted by exp(limit·tanh(0.7 x/limit)): its law on the line by quadrature,
    log Z too."""
    found = GAN((1,), latent=1, hidden=(), scale=0.5, judge=(), limit=3.0)
    with torch.no_grad():
        found.decoder.network[0].weight.fill_(1.2)
        found.decoder.network[0].bias.fill_(0.3)
    found.discriminator.network = Tilt()
    axis = torch.linspace(-12, 12, 20_001, dtype=torch.float64)
    log_p = (
        -0.5 * (axis - 0.3).square() / 1.69
        - 0.5 * math.log(2 * math.pi * 1.69)
        + 3 * torch.tanh(0.7 * axis / 3)
    )
    mass = log_p.exp() * (axis[1] - axis[0])
    estimate = poe.log_z(found, seed=0)
    assert (
        2 * stats.norm.sf(abs(estimate.value - math.log(mass.sum())) / estimate.standard_error)
        > LEVEL
    )
    draws = poe.sample(found, 4000, seed=0)
    x = found.decode(draws.x).flatten().double()
    below = torch.searchsorted(axis, x)
    uniform = (mass.cumsum(0) / mass.sum())[below.clamp(max=len(axis) - 1)]
    n = draws.diagnostics.ess_bulk
    error = (uniform.mean() - 0.5).abs().item() / (1 / 12 / n) ** 0.5
    assert 2 * stats.norm.sf(error) > LEVEL
    # without the discriminator the test fails
    plain = found.decode(found.prior.sample(4000)).flatten().double()
    wrong = (mass.cumsum(0) / mass.sum())[torch.searchsorted(axis, plain).clamp(max=len(axis) - 1)]
    assert 2 * stats.norm.sf((wrong.mean() - 0.5).abs().item() / (1 / 12 / 4000) ** 0.5) < LEVEL


def test_maps_state_their_event_and_share_the_decoder(tmp_path):
    found = gan()
    wanted = Normal(torch.zeros(2, 2), 1.0)
    assert (wanted @ found.generator).event_shape == (6,)
    assert (wanted @ found.decoder).event_shape == (2,)
    assert found.generator is found.generator
    target = found & wanted @ found.generator
    poe.save(target, tmp_path / "target.safetensors")
    loaded = poe.load(tmp_path / "target.safetensors")
    u = torch.randn(5, 6)
    assert torch.equal(loaded(u), target(u))
    assert str(loaded) == str(target) == "gan & normal @ generator"
    doubled = found.double()
    assert doubled.generator(u.double()).dtype == torch.float64


def test_a_network_of_ones_own_is_not_saved_as_another(tmp_path):
    own = Discriminator(
        nn.Sequential(nn.Linear(4, 128), nn.ReLU(), nn.Linear(128, 1)), event_shape=(4,)
    )
    with pytest.raises(poe.io.storage.StorageError, match="wraps a network object"):
        poe.save(own, tmp_path / "d.safetensors")


def test_wrong_arguments_say_so():
    with pytest.raises(ValueError, match="latent >= 1 and a finite scale > 0"):
        Decoder((2, 2), latent=0, hidden=())
    with pytest.raises(ValueError, match="samples is the number of points"):
        VAE((2, 2), samples=0)
    with pytest.raises(ValueError, match="limit bounds"):
        Discriminator(event_shape=(2,), limit=0.0)
    with pytest.raises(ValueError, match="two points of z or more"):
        VAE((2, 2)).evidence(torch.zeros(2, 2), samples=1)
    with pytest.raises(ValueError, match="two draws or more"):
        VAE((2, 2)).measure_log_z(1)
    assert Generator({"picture_shape": [2], "latent": 1, "hidden": []}).event_shape == (3,)


# ---------------------------------------------------------------- the pretrained ones


def card(name: str) -> dict:
    return json.loads((ZOO / f"{name}.json").read_text())


def clear(x: torch.Tensor) -> float:
    """The share of pictures of which the judge is sure to 90 %."""
    with torch.no_grad():
        return (
            (poe.load("digits.judge").logits(x).softmax(-1).amax(-1) >= 0.9).float().mean().item()
        )


@pytest.mark.parametrize("name", ["digits.vae", "digits.gan"])
def test_zoo_loads_frozen_and_small(name):
    energy = poe.load(name)
    assert energy.name == name
    assert not energy.training
    assert sum(p.numel() for p in energy.parameters()) == card(name)["parameters"]
    assert (ZOO / f"{name}.safetensors").stat().st_size < 400_000
    assert energy.decode(torch.zeros(3, *energy.generator.event_shape)).shape == (3, 8, 8)


def test_zoo_vae_is_what_its_card_says(generator):
    vae, facts = poe.load("digits.vae"), card("digits.vae")
    assert vae.event_shape == (8, 8)
    assert vae.log_z.value == pytest.approx(facts["log_z"], abs=1e-3)
    x, _ = digits.images("test")
    x = digits.repeated(x, 1, seed=1)
    found = vae.evidence(x, samples=256, generator=generator)
    assert found.value.mean().item() == pytest.approx(facts["test_log_likelihood"], abs=0.1)
    assert 0 < vae.gap(x, samples=256, generator=generator).value.mean() < 1
    uniform = 16 * torch.rand(64, 8, 8, generator=generator)
    assert (
        vae.evidence((uniform - 8) / 8, samples=64, generator=generator).value.mean()
        < found.value.mean() - 50
    )


def test_zoo_discriminator_makes_the_generator_clearer(generator):
    gan, n = poe.load("digits.gan"), 2000
    draws = poe.sample(gan, n, seed=0)
    alone, both = (
        clear(gan.decode(gan.prior.sample(n, generator=generator))),
        clear(gan.decode(draws.x)),
    )
    error = (
        alone * (1 - alone) / n + both * (1 - both) / min(n, draws.diagnostics.weight_ess)
    ) ** 0.5
    assert stats.norm.sf((both - alone) / error) < 1e-3
    counts = torch.bincount(poe.load("digits.judge").predict(gan.decode(draws.x)), minlength=10) / n
    assert counts.min() > 0.04  # no digit is lost


@pytest.mark.slow
def test_zoo_vae_and_loops_draws_digits_with_loops():
    vae, loops = poe.load("digits.vae"), poe.load("digits.loops")
    judge = poe.load("digits.judge")
    draws = poe.sample((vae & loops) ** 0.5, 200, seed=0, method="annealed")
    assert torch.isin(judge.predict(draws.x), torch.tensor(LOOPS)).float().mean() >= 0.9
    assert torch.isin(judge.predict(vae.sample(1000)), torch.tensor(LOOPS)).float().mean() < 0.7
