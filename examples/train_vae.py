"""Train `digits.vae`, a variational autoencoder of all ten digits, by its importance-weighted
bound. A few minutes.

A thousand images are few: half of each batch are draws of a mixture with one Gaussian for each
digit, fitted to the same images, as for the other experts of this space. The encoder then learns
alone for a while, on images and on draws of the decoder, whose
posterior it has to find: that tightens the bound without changing the model.
"""

from __future__ import annotations

import math

import torch
from digits import (
    dequantise,
    epochs,
    fast,
    fit,
    gaussians_by_digit,
    images,
    publish,
    repeated,
    setup,
)
from torch import Tensor

import poe
from experts import VAE
from experts.neural import GaussianBase

LATENT, HIDDEN, SAMPLES, AMPLITUDE = 16, (144, 144), 8, 1.05
EPOCHS, MORE = 200, 120  # of all, and of the encoder alone


def teacher(draws: int) -> Tensor:  # -> (draws, 8, 8)
    """Draws of a mixture with one Gaussian for each digit, fitted to the images."""
    base = GaussianBase(64, 10)
    base.set(**gaussians_by_digit(range(10)))
    return base.sample(draws).reshape(-1, 8, 8)


def bound(vae: VAE, x: Tensor, samples: int) -> Tensor:  # (n, 8, 8) -> ()
    """Mean of minus the importance-weighted bound, by fresh points of z for each x, in nats."""
    weights = vae.log_weights(x, torch.randn(len(x), samples, LATENT))
    return math.log(samples) - weights.logsumexp(-1).mean()


def main() -> None:
    setup()
    count, more = (2, 2) if fast() else (EPOCHS, MORE)
    x, _ = images("experts")
    pool = teacher(40_000)
    vae: VAE = poe.create(
        "vae",
        event_shape=(8, 8),
        latent=LATENT,
        hidden=HIDDEN,
        samples=SAMPLES,
        scale=0.5,
        amplitude=AMPLITUDE,
    )
    steps = math.ceil(len(x) / 64)

    def mixed(batch: Tensor) -> Tensor:
        return torch.cat([batch, pool[torch.randint(len(pool), (len(batch),))]])

    with vae.training_mode():
        fit(
            vae,
            lambda batch: bound(vae, mixed(batch), 4),
            epochs(x, count),
            steps=count * steps,
            rate=3e-3,
            decay=0.01,
        )

        def encoding(batch: Tensor) -> Tensor:
            return bound(vae, torch.cat([batch, vae.sample(len(batch))]), 1)

        encoder = list(vae.encoder.parameters())
        fit(encoder, encoding, epochs(x, more), steps=more * steps, rate=1e-3, decay=0.0)
    generator = torch.Generator().manual_seed(0)
    log_z = vae.measure_log_z(2_000 if fast() else 50_000, generator=generator)
    few = 16 if fast() else 256
    test = repeated(images("test")[0], 1, seed=1)[:few]
    evidence, gap = vae.evidence(test, generator=generator), vae.gap(test, generator=generator)
    train = vae.evidence(dequantise(x[:few], generator), generator=generator)
    own = vae.gap(vae.sample(few, generator=generator), generator=generator)
    judged = poe.load("digits.judge").predict(vae.sample(2000, generator=generator))  # type: ignore[operator]
    publish(
        vae,
        "digits.vae",
        kind=(
            f"variational autoencoder ({LATENT} latent numbers, energy bounded by {SAMPLES} of "
            "them)"
        ),
        digits=list(range(10)),
        log_z=log_z.value,
        log_z_standard_error=log_z.standard_error,
        log_z_by="exact draws of (x, z), 50,000: Z = E[exp(-E(x)) q(z | x) / p(x, z)]",
        test_log_likelihood=evidence.value.mean().item(),
        test_log_likelihood_of=(
            "mean log p(x) over the test images, one noise each (seed 1), "
            "4,096 "
            "points of z, jackknife, nats"
        ),
        train_log_likelihood=train.value.mean().item(),
        test_gap=gap.value.mean().item(),
        gap_of_own_draws=own.value.mean().item(),
        gap_of="mean E(x) + log p(x), what the bound loses, nats",
        least_share_of_a_digit=min((judged == digit).float().mean().item() for digit in range(10)),
        trained_by="examples/train_vae.py",
    )


if __name__ == "__main__":
    main()
