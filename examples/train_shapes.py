"""Train `shapes`, the noise-conditional energies of the concept zoo, on pictures drawn as they are
needed. An hour and a quarter.

Three networks, of 930,000 weights in all, know 13 concepts at all levels of noise from 0.05 to 10:
three shapes, four colours, left, right, top, bottom, small, large. One learns to denoise pictures,
another, in a process of its own, to classify the concepts of noised ones. Then a small one learns
what each concept adds to the denoised picture, from features of the first, which is trained further
with it.
Combinations in `shapes.UNSEEN` never occur. What is kept is the running mean of the weights.
"""

from __future__ import annotations

import copy
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import torch
import torch.multiprocessing
from shapes import FACTORS, SIGMA, UNSEEN, combinations, pictures
from torch import Tensor, nn

import poe
from experts.noise import (
    ConceptNetwork,
    NoiseConditional,
    concept_denoising,
    concept_matching,
    denoising,
)

ZOO = Path(__file__).resolve().parent.parent / "experts" / "zoo"
FAST = os.environ.get("POE_FAST") == "1"
RATE, DECAY, KEEP = 2e-3, 1e-3, 0.999


def network() -> ConceptNetwork:
    """Untrained; the frequencies of the concepts are those of the combinations that occur."""
    seen = combinations()
    shares = [
        torch.bincount(seen[:, i], minlength=len(values)) / len(seen)
        for i, values in enumerate(FACTORS.values())
    ]
    return ConceptNetwork(
        (3, 16, 16),
        concepts=list(FACTORS.values()),
        frequencies=torch.cat(shares).tolist(),
        placed=FACTORS["column"] + FACTORS["row"],
        sigma_range=(SIGMA, 10.0),
        loc=-0.85,
    )


def noised(model: ConceptNetwork, n: int, centre: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """n pictures, their factors, noise, and its levels, log-normal about exp(centre)."""
    clean, factors = pictures(n)
    return (
        clean,
        factors,
        torch.randn_like(clean),
        (1.4 * torch.randn(n) + centre).exp().clamp(*model.sigma_range),
    )


def concepts(model: ConceptNetwork, factors: Tensor, which: Tensor) -> Tensor:
    # (n, 5), (n, m) -> (n, m)
    """The places in `model.concepts` of the values of which factors."""
    first = torch.tensor([0, *model.sizes[:-1]]).cumsum(0)
    return first[which] + factors.gather(1, which)


def by_denoising(model: ConceptNetwork) -> Tensor:  # -> ()
    clean, _, noise, sigma = noised(model, 64, -0.7)
    return denoising(model, clean, noise, sigma).mean()


def by_guides(model: ConceptNetwork) -> Tensor:  # -> ()
    """Denoising loss, and how much two concepts of each picture reduce its error."""
    clean, factors, noise, sigma = noised(model, 64, 0.0)
    two = torch.rand(len(clean), len(model.sizes)).argsort(1)[:, :2]
    return sum(concept_denoising(model, clean, noise, sigma, concepts(model, factors, two))).mean()


def by_shape(model: ConceptNetwork) -> Tensor:  # -> ()
    """The reduction by guides, shapes more often than other factors, and with more weight on little
    noise,
    where shapes can be recognised."""
    clean, factors, noise, sigma = noised(model, 64, 0.2)
    two = torch.stack(
        [
            torch.zeros(len(clean), dtype=torch.long),
            torch.randint(1, len(model.sizes), (len(clean),)),
        ],
        1,
    )
    _, saved = concept_denoising(model, clean, noise, sigma, concepts(model, factors, two))
    return (saved / (1 + (sigma / model.spread).square()).sqrt()).mean()


def by_concepts(model: ConceptNetwork) -> Tensor:  # -> ()
    clean, factors, noise, sigma = noised(model, 128, 0.0)
    return concept_matching(
        model, clean + sigma[:, None, None, None] * noise, sigma, factors
    ).mean()


def train(
    model: ConceptNetwork,
    part: nn.Module,
    loss: Callable[[ConceptNetwork], Tensor],
    steps: int,
    seed: int,
    rate: float = RATE,
) -> None:
    """Make the weights of a part the running mean of theirs over so many steps of AdamW, one
    warm-up and cosine decay of the rate."""
    steps = 20 if FAST else steps
    torch.manual_seed(seed)
    mean, parameters = copy.deepcopy(part), list(part.parameters())
    optimiser = torch.optim.AdamW(parameters, rate, betas=(0.9, 0.99), weight_decay=DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, rate, total_steps=steps + 1, pct_start=0.05
    )
    running = 0.0
    for step in range(1, steps + 1):
        value = loss(model)
        optimiser.zero_grad()
        value.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        schedule.step()
        keep = min(KEEP, step / (step + 10))
        with torch.no_grad():
            for kept, new in zip(mean.parameters(), parameters, strict=True):
                kept.lerp_(new, 1 - keep)
        running += value.item()
        if step % 500 == 0:
            print(
                f"{loss.__name__}, step {step}: loss {running / 500:.4f}",
                file=sys.stderr,
                flush=True,
            )
            running = 0.0
    part.load_state_dict(mean.state_dict())


def train_classifier(model: ConceptNetwork) -> None:
    """In a process of its own; the weights are in shared memory."""
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    assert model.classifier is not None
    train(model, model.classifier, by_concepts, 18_000, seed=0)


def publish(model: ConceptNetwork) -> None:
    """Write the energies, frozen, and their card to the zoo: one file for all concepts."""
    energy = NoiseConditional(model, name="shapes.any").eval().requires_grad_(False)
    card = {
        "name": "shapes",
        "concepts": list(model.concepts),
        "event_shape": list(energy.event_shape),
        "space": "x = 2 rgb - 1 + 0.05 eps, eps ~ N(0, 1), of examples/shapes.py, 3x16x16",
        "kind": "noise-conditional energy |x - D(x, sigma)|^2 / 2 sigma^2 - log p(c | x; sigma) "
        "+ log p(c), sigma from 0.05 to 10, "
        "with the score (E[x0 | x, c] - x) / sigma^2",
        "parameters": sum(p.numel() for p in energy.parameters()),
        "left_out": [list(combination) for combination in UNSEEN],
        "licence": "Apache-2.0; data: drawn by code",
        "trained_by": "examples/train_shapes.py",
    }
    print(json.dumps(card, indent=2))
    if not FAST:
        poe.save(energy, ZOO / "shapes.safetensors")
        (ZOO / "shapes.json").write_text(json.dumps(card, indent=2) + "\n")


def main() -> None:
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    torch.manual_seed(0)
    model = network().share_memory()
    other = torch.multiprocessing.get_context("spawn").Process(
        target=train_classifier, args=(model,)
    )
    other.start()
    assert model.guide is not None
    train(model, model.denoised, by_denoising, 16_000, seed=0)
    other.join()
    if other.exitcode:
        raise SystemExit("the classifier's process failed; what it printed says why")
    train(
        model,
        nn.ModuleList([model.denoised, model.guide]),
        by_guides,
        9_000,
        seed=1,
        rate=0.6 * RATE,
    )
    model.denoised.requires_grad_(False)
    for seed, steps in ((2, 4_000), (3, 5_000)):
        train(model, model.guide, by_shape, steps, seed, rate=0.75 * RATE)
    publish(model)


if __name__ == "__main__":
    main()
