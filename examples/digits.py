"""8x8 digits as points of R^64: loading, the split, and the concepts of the zoo.

The images are scikit-learn's `load_digits`: 1,797 images, levels 0 to 16. A point is

    x = (level - 8) / 8 + 0.2 ε,   ε ~ N(0, 1) in each pixel, event shape (8, 8),

so the data have a smooth density on R^64 (Gaussian dequantisation; every log-likelihood of the zoo
is of this x, in nats, and fresh ε is drawn whenever an image is used). Image i of the data set
belongs to

    i mod 7 in {0, 1, 2, 3}   the experts' training set  (1,028 images)
    i mod 7 in {4, 5}         the judge's training set   (513 images)
    i mod 7 = 6               the test set               (256 images)
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import poe

SIGMA = 0.2  # scale of the dequantisation noise, in units of x
EVEN, LOOPS, HIGH = (0, 2, 4, 6, 8), (0, 6, 8, 9), (5, 6, 7, 8, 9)
SPLITS = {"experts": (0, 1, 2, 3), "judge": (4, 5), "test": (6,)}
ZOO = Path(__file__).resolve().parent.parent / "experts" / "zoo"


def images(split: str, digits: Iterable[int] = range(10)) -> tuple[Tensor, Tensor]:
    """(clean images (n, 8, 8) on [-1, 1], their digits (n)) of one split."""
    from sklearn.datasets import load_digits  # needed for training only

    data = load_digits()
    levels, labels = torch.tensor(data.images, dtype=torch.float32), torch.tensor(data.target)
    index = torch.arange(len(labels))
    chosen = torch.isin(index % 7, torch.tensor(SPLITS[split])) & torch.isin(
        labels, torch.tensor(list(digits))
    )
    return (levels[chosen] - 8) / 8, labels[chosen]


def dequantise(images: Tensor, generator: torch.Generator | None = None) -> Tensor:
    # (*batch, 8, 8) -> same
    """x = image + 0.2 ε."""
    return images + SIGMA * torch.randn(images.shape, generator=generator)


def repeated(images: Tensor, times: int, seed: int = 0) -> Tensor:  # (n, 8, 8) -> (times n, 8, 8)
    """Each image with `times` independent noises."""
    return dequantise(images.repeat(times, 1, 1), torch.Generator().manual_seed(seed))


def epochs(images: Tensor, count: int, batch: int = 64) -> Iterator[tuple[int, Tensor]]:
    """(epoch, batch of freshly dequantised images), shuffled in each epoch."""
    for epoch in range(count):
        for index in torch.randperm(len(images)).split(batch):
            yield epoch, dequantise(images[index])


def fit(
    modules: nn.Module | list[nn.Parameter],
    loss: Callable[[Tensor], Tensor],
    batches: Iterable[tuple[int, Tensor]],
    *,
    steps: int,
    rate: float,
    decay: float,
    clip: float = 20.0,
) -> None:
    """AdamW with one warm-up and cosine decay of the rate, and clipped gradients."""
    parameters = list(modules.parameters()) if isinstance(modules, nn.Module) else modules
    optimiser = torch.optim.AdamW(parameters, rate, weight_decay=decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, rate, total_steps=steps + 1, pct_start=0.05
    )
    for _, batch in batches:
        value = loss(batch)
        optimiser.zero_grad()
        value.backward()
        nn.utils.clip_grad_norm_(parameters, clip)
        optimiser.step()
        schedule.step()


def mixture_of_gaussians(x: Tensor, components: int, ridge: float = 0.01) -> dict[str, Tensor]:
    """Weights, means and covariances of a mixture with full covariances fitted by scikit-learn's EM
    to x (n, 8, 8)."""
    from sklearn.mixture import GaussianMixture

    fitted = GaussianMixture(
        components, covariance_type="full", reg_covar=ridge, random_state=0, max_iter=50
    )
    fitted.fit(x.flatten(1).double().numpy())
    return {
        "weights": torch.tensor(fitted.weights_),
        "means": torch.tensor(fitted.means_),
        "covariances": torch.tensor(fitted.covariances_),
    }


def gaussians_by_digit(digits: Iterable[int]) -> dict[str, Tensor]:
    """One Gaussian with full covariance for each digit, of its training images with eight noises
    each, weighted by their number."""
    groups = [
        (len(x), mixture_of_gaussians(repeated(x, 8, seed=d), 1))
        for d in digits
        for x in [images("experts", [d])[0]]
    ]
    total = sum(count for count, _ in groups)
    return {
        "weights": torch.cat([fitted["weights"] * count / total for count, fitted in groups]),
        "means": torch.cat([fitted["means"] for _, fitted in groups]),
        "covariances": torch.cat([fitted["covariances"] for _, fitted in groups]),
    }


def log_likelihood(energy: poe.Energy, digits: Iterable[int], log_z: float = 0.0) -> float:
    """Mean log p(x) over the test images, five noises each, in nats."""
    x = repeated(images("test", digits)[0], 5, seed=1)
    with torch.no_grad():
        return -energy(x).mean().item() - log_z


def fast() -> bool:
    """Whether this is a smoke run (POE_FAST=1): a few steps, nothing written."""
    return os.environ.get("POE_FAST") == "1"


def setup(seed: int = 0) -> None:
    """One thread (two on a busy machine can be slower), flushed denormals, a seed."""
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    torch.manual_seed(seed)


def publish(energy: poe.Energy, name: str, **facts: Any) -> None:
    """Write the expert, frozen, and its facts to the zoo."""
    energy.name = name
    energy.eval().requires_grad_(False)
    card = {
        "name": name,
        "event_shape": list(energy.event_shape),
        "space": "x = (level - 8) / 8 + 0.2 eps, eps ~ N(0, 1), of scikit-learn load_digits, 8x8",
        "split": "image index mod 7: experts 0-3, judge 4-5, test 6",
        "parameters": sum(p.numel() for p in energy.parameters()),
        "licence": "Apache-2.0; data: UCI optical recognition of handwritten digits, CC BY 4.0",
        **{
            key: round(value, 4) if isinstance(value, float) else value
            for key, value in facts.items()
        },
    }
    assert all(math.isfinite(value) for value in card.values() if isinstance(value, float))
    print(json.dumps(card, indent=2))
    if not fast():
        poe_save(energy, name)
        (ZOO / f"{name}.json").write_text(json.dumps(card, indent=2) + "\n")


def poe_save(energy: poe.Energy, name: str) -> None:
    """One file of weights in the zoo."""
    from poe.io.storage import save

    save(energy, ZOO / f"{name}.safetensors")
