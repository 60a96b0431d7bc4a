"""Losses against closed forms: optimal score, optimal log-normaliser, the likelihood of a
Gaussian."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import poe
from experts import RBM, Gamma, MLPEnergy, Normal
from poe.training.losses import (
    ContrastiveDivergence,
    DenoisingScoreMatching,
    MaximumLikelihood,
    NoiseContrastive,
    PersistentContrastiveDivergence,
    SlicedScoreMatching,
)


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
    expert = Normal(
        torch.zeros(2, dtype=torch.float64), torch.ones(2, dtype=torch.float64), learnable=True
    )
    assert MaximumLikelihood()(expert, x).item() == pytest.approx(
        (0.5 * x**2).sum(-1).mean().item() + math.log(2 * math.pi)
    )
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
    assert torch.allclose(
        energy.loc, torch.tensor([1.0, -2.0], dtype=torch.float64), atol=5 * tolerance
    )


def test_denoising_value_on_a_gaussian():
    """x ~ N(0, 1), E = ½x²: ½E(σ(x + σε) - ε)² = ½(σ² + (1 - σ²)²)."""
    x = torch.randn(400_000, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    sigma = 0.6
    value = DenoisingScoreMatching(sigma, generator=torch.Generator().manual_seed(1))(
        Quadratic(1), x
    ).item()
    variance = sigma**2 + (1 - sigma**2) ** 2
    assert abs(value - 0.5 * variance) < 5 * variance / math.sqrt(2 * len(x))


class Full(poe.Energy):
    """E(x) = ½ (x - loc)ᵀ precision (x - loc), with a full precision matrix."""

    def __init__(self, n: int) -> None:
        super().__init__((n,))
        self.precision = nn.Parameter(torch.eye(n, dtype=torch.float64))
        self.loc = nn.Parameter(torch.zeros(n, dtype=torch.float64))

    def forward(self, x):
        return 0.5 * ((x - self.loc) @ self.precision * (x - self.loc)).sum(-1)


def test_sliced_score_matching_finds_a_gaussian():
    """Score matching of a Gaussian family has its least at the sample's mean and the inverse of its
    covariance (Hyvärinen 2005). With n·m random signs v the curvature's vᵀPv is off by P·mean(vvᵀ),
    whose errors are 1/sqrt(n·m)."""
    mix = torch.tensor([[1.0, 0.0, 0.0], [0.6, 0.5, 0.0], [-0.4, 0.3, 2.0]], dtype=torch.float64)
    x = (
        torch.randn(5_000, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
        @ mix.T
        + 1
    )
    mean, exact = x.mean(0), torch.linalg.inv(torch.cov(x.T, correction=0))
    energy = Full(3)
    loss = SlicedScoreMatching(20, generator=torch.Generator())
    minimise(energy.parameters(), lambda: (loss.generator.manual_seed(0), loss(energy, x))[1], 200)
    signs = 5 / math.sqrt(5_000 * 20)
    # the minimiser solves ½(PC + CP) = mean(vvᵀ): P = C⁻¹ + δ, where |δ| is at most |mean(vvᵀ) - 1|
    # over the least eigenvalue of C, in spectral norms
    least = torch.linalg.eigvalsh(torch.cov(x.T, correction=0))[0].item()
    symmetric = (energy.precision + energy.precision.T).detach() / 2
    assert torch.linalg.matrix_norm(symmetric - exact, 2).item() < 2 * signs / least
    assert torch.allclose(energy.loc, mean, atol=1e-4)


def test_sliced_score_matching_has_the_value_of_the_exact_one():
    """For a diagonal Hessian every vᵀ∇²E v is its trace: no error. Else the mean over v is ½‖∇E‖² -
    tr ∇²E."""
    x = data(500)
    energy = Quadratic(2, 3.0, 0.5)
    exact = (0.5 * (3 * (x - 0.5)).square().sum(1)).mean() - 6
    assert SlicedScoreMatching()(energy, x).item() == pytest.approx(exact.item(), rel=1e-12)
    network, x = MLPEnergy((2,), hidden=(8,)).double(), x[:20]
    hessians = [torch.autograd.functional.hessian(network, point) for point in x]
    exact = (
        0.5 * network.score(x).square().sum(1).mean()
        - torch.stack([h.trace() for h in hessians]).mean()
    )
    generator = torch.Generator().manual_seed(0)
    values = torch.stack(
        [SlicedScoreMatching(2, generator=generator)(network, x).detach() for _ in range(400)]
    )
    assert abs(values.mean() - exact) < 4.5 * values.std() / 20
    assert values.std() > 0


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
    minimise(
        [*energy.parameters(), log_z], lambda: (loss.generator.manual_seed(0), loss(energy, x))[1]
    )
    assert torch.allclose(energy.precision, torch.tensor([4.0, 0.25]).double(), rtol=0.06)
    assert log_z.item() == pytest.approx(math.log(2 * math.pi), abs=0.06)  # σ₁σ₂ = 1
    assert torch.allclose(energy.loc, torch.tensor([1.0, -2.0]).double(), atol=0.1)


def test_losses_reach_every_expert_and_learnable_powers():
    power = nn.Parameter(torch.tensor(0.5))
    target = MLPEnergy((2,), hidden=(4,)) & Normal(torch.zeros(2), 1.0, learnable=True) ** power
    x = torch.randn(16, 2)
    for loss in (
        DenoisingScoreMatching(0.5),
        SlicedScoreMatching(2),
        NoiseContrastive(Normal(torch.zeros(2), 2.0)),
        ContrastiveDivergence(),
        PersistentContrastiveDivergence(8),
    ):
        target.zero_grad()
        loss(target, x).backward()
        missing = [name for name, p in target.named_parameters() if p.grad is None]
        assert missing in (
            [],
            [name for name in missing if "offset" in name],
        )  # a constant has no score
    assert power.grad is not None


def test_nonsense_is_refused():
    with pytest.raises(ValueError, match="must be positive"):
        DenoisingScoreMatching(0.0)
    with pytest.raises(TypeError, match="dequantise"):
        DenoisingScoreMatching(0.1)(Quadratic(2), torch.zeros(3, 2, dtype=torch.long))
    with pytest.raises(ValueError, match="draws no samples"):
        NoiseContrastive(Quadratic(2))
    with pytest.raises(ValueError, match="whole number of at least 1"):
        NoiseContrastive(Normal(torch.zeros(2), 1.0), ratio=0)
    with pytest.raises(ValueError, match="whole number of at least 1"):
        SlicedScoreMatching(0)
    with pytest.raises(TypeError, match="not a function"):
        NoiseContrastive(lambda x: x.sum(-1))  # type: ignore[arg-type]
    for loss in (DenoisingScoreMatching(0.1), SlicedScoreMatching()):
        with pytest.raises(TypeError, match="PersistentContrastiveDivergence"):
            loss(RBM(torch.zeros(2, 2)), torch.zeros(3, 2))
        with pytest.raises(ValueError, match="where it has no score"):
            loss(Gamma(torch.full((2,), 3.0), 1.0), torch.full((3, 2), -1.0))


@pytest.mark.parametrize(
    "loss",
    [
        MaximumLikelihood(),
        MaximumLikelihood(draws=lambda n: torch.zeros(5, 2)),
        DenoisingScoreMatching(0.1),
        SlicedScoreMatching(),
        NoiseContrastive(Normal(torch.zeros(2), 1.0)),
        ContrastiveDivergence(),
        PersistentContrastiveDivergence(),
    ],
    ids=lambda loss: type(loss).__name__,
)
def test_an_empty_batch_is_refused(loss):
    energy = Normal(torch.zeros(2), 1.0)
    with pytest.raises(ValueError, match=r"the batch of shape \(0, 2\) is empty"):
        loss(energy, torch.zeros(0, 2))
    with pytest.raises(ValueError, match=r"a batch is \(n, \*event\)"):
        loss(energy, torch.zeros(2))


def test_no_draws_of_the_model_are_refused():
    with pytest.raises(ValueError, match="is empty"):
        MaximumLikelihood(draws=lambda n: torch.zeros(0, 2))(Quadratic(2), data(3))
