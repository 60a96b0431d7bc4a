"""Losses against closed forms: optimal score, optimal log-normaliser, the likelihood of a Gaussian."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import poe
from experts import MLPEnergy, Normal
from poe.losses import DenoisingScoreMatching, MaximumLikelihood, NoiseContrastive


class Quadratic(poe.Energy):
    """E(x) = ½ Σ precision (x - loc)²: an unnormalised Gaussian."""

    def __init__(self, n: int, precision: float = 1.0, loc: float = 0.0) -> None:
        super().__init__((n,))
        self.precision = nn.Parameter(torch.full((n,), precision, dtype=torch.float64))
        self.loc = nn.Parameter(torch.full((n,), loc, dtype=torch.float64))

    def forward(self, x):
        return 0.5 * (self.precision * (x - self.loc) ** 2).sum(-1)


def data(n: int = 20_000) -> torch.Tensor:
    """Gaussian, mean (1, -2), variances (0.25, 4)."""
    z = torch.randn(n, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    return torch.tensor([1.0, -2.0]) + z * torch.tensor([0.5, 2.0])


def minimise(parameters, loss, steps: int = 40) -> None:
    optimiser = torch.optim.LBFGS(list(parameters), max_iter=steps, line_search_fn="strong_wolfe")

    def closure():
        optimiser.zero_grad()
        value = loss()
        value.backward()
        return value

    optimiser.step(closure)


def test_likelihood_of_a_density():
    x = data(2_000)
    expert = Normal(torch.zeros(2, dtype=torch.float64), torch.ones(2, dtype=torch.float64), learnable=True)
    assert MaximumLikelihood()(expert, x).item() == pytest.approx((0.5 * x**2).sum(-1).mean().item() + math.log(2 * math.pi))
    optimiser = torch.optim.Adam(expert.parameters(), 0.1)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimiser, 0.99)
    for _ in range(700):
        optimiser.zero_grad()
        MaximumLikelihood()(expert, x).backward()
        optimiser.step()
        schedule.step()
    assert torch.allclose(expert.loc, x.mean(0), atol=1e-2)
    assert torch.allclose(expert.scale, x.std(0, correction=0), atol=1e-2)


def test_likelihood_of_a_raw_mixture_counts_its_constant():
    a, b = Normal(torch.zeros(2), 1.0), Normal(torch.ones(2), 1.0)
    x = torch.randn(5, 2)
    reference = -(0.5 * (torch.exp(-a(x)) + torch.exp(-b(x)))).log().mean()
    assert MaximumLikelihood()(a | b, x).item() == pytest.approx(reference.item(), rel=1e-5)


def test_likelihood_gradient_from_model_draws():
    energy, x = Quadratic(2), data()
    model = torch.randn(200_000, 2, dtype=torch.float64)
    MaximumLikelihood(draws=lambda n: model)(energy, x).backward()
    exact = 0.5 * ((x**2).mean(0) - 1)  # d/dλ of ½λ E x² - ½ log λ at λ = 1
    error = 0.5 * (x**2).std(0) / len(x) ** 0.5 + 0.5 * math.sqrt(2 / len(model))
    assert ((energy.precision.grad - exact).abs() < 5 * error).all()


def test_likelihood_refuses_an_unknown_normaliser():
    with pytest.raises(ValueError, match="DenoisingScoreMatching or NoiseContrastive"):
        MaximumLikelihood()(Quadratic(2), data(10))
    with pytest.raises(ValueError, match="changes with its parameters"):
        MaximumLikelihood()(Normal(torch.zeros(2), 1.0, learnable=True) ** 2, torch.zeros(3, 2))


@pytest.mark.parametrize("sigma", [0.1, 1.0])
def test_denoising_finds_the_score_of_blurred_data(sigma):
    energy, x = Quadratic(2), data()
    loss = DenoisingScoreMatching(sigma, generator=torch.Generator())
    minimise(energy.parameters(), lambda: (loss.generator.manual_seed(0), loss(energy, x))[1])
    exact = 1 / (torch.tensor([0.25, 4.0], dtype=torch.float64) + sigma**2)
    tolerance = 0.05 if sigma == 1.0 else 0.15  # the variance of the estimate grows like 1 / σ²
    assert torch.allclose(energy.precision, exact, rtol=tolerance, atol=0.05)
    assert torch.allclose(energy.loc, torch.tensor([1.0, -2.0], dtype=torch.float64), atol=5 * tolerance)


def test_denoising_value_on_a_gaussian():
    """x ~ N(0, 1), E = ½x²: ½E(σ(x + σε) - ε)² = ½(σ² + (1 - σ²)²)."""
    x = torch.randn(400_000, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    sigma = 0.6
    value = DenoisingScoreMatching(sigma, generator=torch.Generator().manual_seed(1))(Quadratic(1), x).item()
    variance = sigma**2 + (1 - sigma**2) ** 2
    assert abs(value - 0.5 * variance) < 5 * variance / math.sqrt(2 * len(x))


def test_contrast_at_chance_is_two_log_two():
    noise = Normal(torch.zeros(2), 1.0)
    value = NoiseContrastive(noise)(Normal(torch.zeros(2), 1.0), torch.randn(7, 2))
    assert value.item() == pytest.approx(2 * math.log(2), rel=1e-5)
    value = NoiseContrastive(noise, ratio=3)(Normal(torch.zeros(2), 1.0), torch.randn(7, 2))
    assert value.item() == pytest.approx(4 * math.log(4) - 3 * math.log(3), rel=1e-5)


def test_contrast_finds_the_density_and_its_normaliser():
    energy, x = Quadratic(2), data()
    noise = Normal(torch.tensor([1.0, -2.0]).double(), torch.tensor([1.0, 3.0]).double())
    log_z = nn.Parameter(torch.zeros((), dtype=torch.float64))
    loss = NoiseContrastive(noise, ratio=3, log_z=log_z, generator=torch.Generator())
    minimise([*energy.parameters(), log_z], lambda: (loss.generator.manual_seed(0), loss(energy, x))[1])
    assert torch.allclose(energy.precision, torch.tensor([4.0, 0.25]).double(), rtol=0.06)
    assert log_z.item() == pytest.approx(math.log(2 * math.pi), abs=0.06)  # σ₁σ₂ = 1
    assert torch.allclose(energy.loc, torch.tensor([1.0, -2.0]).double(), atol=0.1)


def test_losses_reach_every_expert_and_learnable_powers():
    power = nn.Parameter(torch.tensor(0.5))
    target = MLPEnergy((2,), hidden=(4,)) & Normal(torch.zeros(2), 1.0, learnable=True) ** power
    x = torch.randn(16, 2)
    for loss in (DenoisingScoreMatching(0.5), NoiseContrastive(Normal(torch.zeros(2), 2.0))):
        target.zero_grad()
        loss(target, x).backward()
        missing = [name for name, p in target.named_parameters() if p.grad is None]
        assert missing in ([], [name for name in missing if "offset" in name])  # a constant has no score
    assert power.grad is not None


def test_nonsense_is_refused():
    with pytest.raises(ValueError, match="must be positive"):
        DenoisingScoreMatching(0.0)
    with pytest.raises(TypeError, match="dequantise"):
        DenoisingScoreMatching(0.1)(Quadratic(2), torch.zeros(3, 2, dtype=torch.long))
    with pytest.raises(ValueError, match="draws no samples"):
        NoiseContrastive(Quadratic(2))
    with pytest.raises(ValueError, match="positive integer"):
        NoiseContrastive(Normal(torch.zeros(2), 1.0), ratio=0)
