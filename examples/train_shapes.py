"""Train `shapes`, the noise-conditional energies of the concept zoo, on pictures drawn as they are needed. About half an hour.

Two networks, of half and a quarter of a million weights, know 13 concepts at all levels of noise from 0.05 to 10: three shapes, four
colours, left, right, top, bottom, small, large. The first learns to denoise pictures, the second, in a process of its own, to tell
the concepts of noised ones. Combinations in `shapes.UNSEEN` never occur. What is kept is the running mean of the weights.
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
from experts.noise import ConceptNetwork, NoiseConditional, concept_matching, denoising

ZOO = Path(__file__).resolve().parent.parent / "experts" / "zoo"
FAST = os.environ.get("POE_FAST") == "1"
RATE, DECAY, KEEP = 2e-3, 1e-3, 0.999


def network() -> ConceptNetwork:
    """Untrained; the frequencies of the concepts are those of the combinations that occur."""
    seen = combinations()
    shares = [torch.bincount(seen[:, i], minlength=len(values)) / len(seen) for i, values in enumerate(FACTORS.values())]
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
    return clean, factors, torch.randn_like(clean), (1.4 * torch.randn(n) + centre).exp().clamp(*model.sigma_range)


def by_denoising(model: ConceptNetwork) -> Tensor:  # -> ()
    clean, _, noise, sigma = noised(model, 64, -0.7)
    return denoising(model, clean, noise, sigma).mean()


def by_concepts(model: ConceptNetwork) -> Tensor:  # -> ()
    clean, factors, noise, sigma = noised(model, 128, 0.0)
    return concept_matching(model, clean + sigma[:, None, None, None] * noise, sigma, factors).mean()


def train(model: ConceptNetwork, part: nn.Module, loss: Callable[[ConceptNetwork], Tensor], steps: int, seed: int) -> None:
    """Make the weights of a part the running mean of theirs over so many steps of AdamW, one warm-up and cosine decay of the rate."""
    steps = 20 if FAST else steps
    torch.manual_seed(seed)
    mean, parameters = copy.deepcopy(part), list(part.parameters())
    optimiser = torch.optim.AdamW(parameters, RATE, betas=(0.9, 0.99), weight_decay=DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, RATE, total_steps=steps + 1, pct_start=0.05)
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
            print(f"{loss.__name__}, step {step}: loss {running / 500:.4f}", file=sys.stderr, flush=True)
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
        "kind": "noise-conditional energy |x - D(x, sigma)|^2 / 2 sigma^2 - log p(c | x; sigma) + log p(c), sigma from 0.05 to 10",
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
    other = torch.multiprocessing.get_context("spawn").Process(target=train_classifier, args=(model,))
    other.start()
    model.denoised.to(memory_format=torch.channels_last)
    train(model, model.denoised, by_denoising, 16_000, seed=0)
    other.join()
    if other.exitcode:
        raise SystemExit("the classifier's process failed; what it printed says why")
    publish(model)


if __name__ == "__main__":
    main()
