"""Train `digits.high`, an unnormalised neural energy of the digits 5 to 9. About a minute.

A convolutional network tilts a mixture with one Gaussian for each digit. It learns by
noise-contrastive estimation, with that mixture as the noise, and by denoising score matching at the
scale of the dequantisation. Half of the points used as data are draws of the mixture: they keep the
tilt small where seven hundred images give little information. log Z is unknown to the energy; the
card records an importance-sampling estimate from the mixture."""

from __future__ import annotations

import math

import torch
from digits import (
    HIGH,
    SIGMA,
    epochs,
    fast,
    fit,
    gaussians_by_digit,
    images,
    log_likelihood,
    publish,
    repeated,
    setup,
)

import poe
from experts import ConvEnergy, Normal
from poe.training import DenoisingScoreMatching, NoiseContrastive


def main() -> None:
    setup()
    count = 2 if fast() else 80
    x, _ = images("experts", HIGH)
    gaussians = gaussians_by_digit(HIGH)
    noise = as_density(gaussians)
    pool = noise.sample(40_000)  # type: ignore[operator]
    expert: ConvEnergy = poe.create(
        "conv-energy", event_shape=(8, 8), base=len(HIGH), channels=(16, 32), hidden=64, limit=40.0
    )
    expert.fit_base(**gaussians)
    expert.standardise(repeated(x, 20), least=0.2)
    contrast, denoise = NoiseContrastive(noise, ratio=4), DenoisingScoreMatching(SIGMA)

    def loss(batch: torch.Tensor) -> torch.Tensor:
        half = len(batch) // 2
        drawn = pool[torch.randint(len(pool), (half,))]
        clean = x[torch.randint(len(x), (32,))]
        return contrast(expert, torch.cat([drawn, batch[half:]])) + 0.04 * denoise(expert, clean)

    expert.train()
    fit(expert, loss, epochs(x, count), steps=count * math.ceil(len(x) / 64), rate=2e-3, decay=0.01)
    expert.eval()
    log_z = estimate_log_z(expert, noise, 2_000 if fast() else 50_000)
    publish(
        expert,
        "digits.high",
        kind="neural energy, unnormalised (convolutional tilt of a Gaussian mixture)",
        digits=list(HIGH),
        log_z=log_z.value,
        log_z_standard_error=log_z.standard_error,
        log_z_by="importance sampling from the Gaussian mixture of its base, 50,000 draws",
        test_log_likelihood=log_likelihood(expert, HIGH, log_z.value),
        test_log_likelihood_of=(
            "mean -E(x) - log_z over the test images of these digits, 5 noises each, nats"
        ),
        trained_by="examples/train_high.py",
    )


def as_density(gaussians: dict[str, torch.Tensor]) -> poe.Energy:
    """The mixture as an energy over images."""
    parts = [
        Normal(mean.float().reshape(8, 8), covariance=covariance.float())
        for mean, covariance in zip(gaussians["means"], gaussians["covariances"], strict=True)
    ]
    return poe.mixture(parts, weights=gaussians["weights"].tolist())


def estimate_log_z(energy: poe.Energy, noise: poe.Energy, draws: int) -> poe.Estimate:
    """log of the mean of exp(-E) / q over draws of q, with its standard error by the delta
    method."""
    assert noise.log_z is not None
    logs = []
    with torch.no_grad():
        for _ in range(draws // 1000):
            x = noise.sample(1000)  # type: ignore[attr-defined]
            logs.append(noise(x) + noise.log_z.value - energy(x))
    log_weight = torch.cat(logs).double()
    weight = (log_weight - log_weight.max()).exp()
    value = log_weight.max() + weight.mean().log()
    error = weight.std() / weight.mean() / math.sqrt(len(weight))
    return poe.Estimate(value.item(), error.item())


if __name__ == "__main__":
    main()
