"""Train `digits.made`, an autoregressive density of 8x8 binary digits, by maximum likelihood. A
minute or two.

A pixel is 1 where its level is 8 or more. The first 1,437 images are learned, the last 360 held out
and looked at once. They are by
other writers, so each training image is distorted at random whenever it is used: turned, slanted,
stretched, moved, with a thicker or thinner pen. These changes fade away towards the end of the
training, and the result is an average over its last steps.

All settings were chosen with `--validate`, which learns the first 1,197 images, reports the
likelihood of the next 240, and writes nothing."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator

import torch
from digits import fast, fit, publish, setup
from torch import Tensor
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from experts import MADE
from experts.sequential import Autoregressive
from poe.training import MaximumLikelihood

LEARNED, VALIDATED, BATCH = 1437, 240, 64


def levels(first: int, last: int) -> Tensor:  # -> (last - first, 8, 8)
    """Images of scikit-learn's `load_digits`, levels 0 to 16."""
    from sklearn.datasets import load_digits  # needed for training only

    return torch.tensor(load_digits().images[first:last], dtype=torch.float32)


def bits(images: Tensor, threshold: float | Tensor = 8.0) -> Tensor:  # (n, 8, 8) -> (n, 8, 8)
    """1 where the level is at least the threshold."""
    return (images >= threshold).float()


def redrawn(images: Tensor, strength: float) -> Tensor:  # (n, 8, 8) -> (n, 8, 8)
    """Bits of the images under random affine maps and thresholds; at strength 1 the standard
    deviations are 0.15 of the turn (radians), 0.2 of the slant, a tenth of both sizes, half a pixel
    of both shifts and 1.4 levels of the threshold."""
    turn, slant, wider, taller, right, down, pen = strength * torch.randn(7, len(images))
    cos, sin = (0.15 * turn).cos(), (0.15 * turn).sin()
    rows = [
        torch.stack([cos * (1 + 0.1 * wider), 0.2 * slant - sin, 0.12 * right], -1),
        torch.stack([sin, cos * (1 + 0.1 * taller), 0.12 * down], -1),
    ]
    grid = F.affine_grid(torch.stack(rows, 1), [len(images), 1, 8, 8], align_corners=False)
    moved = F.grid_sample(images.unsqueeze(1), grid, mode="bicubic", align_corners=False).squeeze(1)
    return bits(moved, 8 + 1.4 * pen.reshape(-1, 1, 1))


def trained(
    expert: Autoregressive, images: Tensor, *, epochs: int, rate: float, decay: float, keep: float
) -> Autoregressive:
    """The expert with weights averaged over the last 1 / (1 - keep) steps of maximum likelihood,
    roughly."""
    likelihood = MaximumLikelihood()
    averaged = AveragedModel(expert, multi_avg_fn=get_ema_multi_avg_fn(keep))

    def batches() -> Iterator[tuple[int, Tensor]]:
        for epoch in range(epochs):
            strength = 0.7 * max(0.0, 1 - epoch / (0.9 * epochs))
            for index in torch.randperm(len(images)).split(BATCH):
                yield epoch, redrawn(images[index], strength)

    def loss(batch: Tensor) -> Tensor:
        averaged.update_parameters(expert)
        return likelihood(expert, batch)

    with expert.training_mode():
        fit(
            expert,
            loss,
            batches(),
            steps=epochs * math.ceil(len(images) / BATCH),
            rate=rate,
            decay=decay,
        )
    return averaged.module.eval()


def mean_log_likelihood(expert: Autoregressive, x: Tensor) -> float:  # (n, 8, 8)
    """Mean log p(x) in nats."""
    with torch.no_grad():
        return expert.log_prob(x).double().mean().item()


def train(expert: Autoregressive, name: str, kind: str, **settings: float) -> None:
    """Fit the expert, and publish it with the likelihood of the held-out images; or validate its
    settings."""
    if "--validate" in sys.argv:
        images = levels(0, LEARNED)
        fitted = trained(expert, images[:-VALIDATED], **settings)  # type: ignore[arg-type]
        print(f"validation {mean_log_likelihood(fitted, bits(images[-VALIDATED:])):.4f} nats")
        return
    images = levels(0, 128 if fast() else LEARNED)
    fitted = trained(expert, images, **settings)  # type: ignore[arg-type]
    publish(
        fitted,
        name,
        kind=kind,
        space="bits: level >= 8 of scikit-learn load_digits, 8x8",
        split="the first 1,437 images learned, the last 360 held out",
        train_log_likelihood=mean_log_likelihood(fitted, bits(images)),
        test_log_likelihood=mean_log_likelihood(fitted, bits(levels(LEARNED, 1797))),
        test_log_likelihood_of="mean log p(x) over the images, nats",
        trained_by=f"examples/train_{name.removeprefix('digits.')}.py",
    )


def main() -> None:
    setup()
    expert = MADE((8, 8), hidden=512, layers=1, dropout=0.5)
    kind = "autoregressive density of bits (MADE, 512 hidden units)"
    train(
        expert, "digits.made", kind, epochs=2 if fast() else 600, rate=2e-3, decay=0.1, keep=0.999
    )


if __name__ == "__main__":
    main()
