"""Train `shapes`, the noise-conditional energies of the concept zoo, on pictures drawn as they are needed. About 100 minutes.

One network of half a million weights knows 13 concepts at all levels of noise from 0.05 to 10: three shapes, four colours, left,
right, top, bottom, small, large; a quarter of the pictures train it without a concept. Combinations in `shapes.UNSEEN` never occur.
What is kept is the running mean of the weights.
"""

from __future__ import annotations

import copy
import json
import math
import os
import sys
from pathlib import Path

import torch
from shapes import CONCEPTS, FACTORS, SIGMA, UNSEEN, combinations, pictures
from torch import Tensor, nn

import poe
from experts.noise import ConceptNetwork, NoiseConditional, concept_matching, noise_matching

ZOO = Path(__file__).resolve().parent.parent / "experts" / "zoo"
CYCLES = (13_000, 15_000)  # steps, each from a high rate down to 0; a later one starts from the mean of the one before
BATCH, CONTRASTED = 64, 20
RATE, DECAY, KEEP = 2e-3, 1e-3, 0.999
UNCONDITIONAL = 0.25
FIRST = dict(zip(FACTORS, torch.tensor([0, *(len(values) for values in FACTORS.values())]).cumsum(0).tolist(), strict=False))


def priors() -> dict[str, Tensor]:
    """log p(c) of the values of each factor, in training."""
    seen = combinations()
    return {
        name: (torch.bincount(seen[:, i], minlength=len(values)) / len(seen)).log()
        for i, (name, values) in enumerate(FACTORS.items())
    }


def loss(network: ConceptNetwork, step: int, log_priors: dict[str, Tensor]) -> Tensor:  # -> ()
    """Denoising of one batch, each picture with one of its concepts or none; and one factor told apart in some of them."""
    clean, factors = pictures(BATCH)
    first = torch.tensor(list(FIRST.values()))
    which = torch.randint(len(FACTORS), (BATCH, 1))
    concept = (factors.gather(1, which) + first[which]).squeeze(1)
    concept = torch.where(torch.rand(BATCH) < UNCONDITIONAL, len(CONCEPTS), concept)
    sigma = (1.4 * torch.randn(BATCH) - 0.7).exp().clamp(*network.sigma_range)
    noise = torch.randn_like(clean)
    place, (name, values) = step % len(FACTORS), list(FACTORS.items())[step % len(FACTORS)]
    x = (clean + sigma[:, None, None, None] * noise)[:CONTRASTED]
    told = concept_matching(
        network,
        x,
        sigma[:CONTRASTED],
        torch.arange(FIRST[name], FIRST[name] + len(values)),
        log_priors[name],
        factors[:CONTRASTED, place],
    )
    return noise_matching(network, clean, noise, sigma, concept).mean() + 0.02 * told.mean()


def train(network: ConceptNetwork, steps: int, seed: int) -> ConceptNetwork:
    """The running mean of the weights after so many steps of AdamW, one warm-up and cosine decay of the rate."""
    torch.manual_seed(seed)
    mean, log_priors, parameters = copy.deepcopy(network), priors(), list(network.parameters())
    optimiser = torch.optim.AdamW(parameters, RATE, betas=(0.9, 0.99), weight_decay=DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, RATE, total_steps=steps + 1, pct_start=0.05)
    running = 0.0
    for step in range(1, steps + 1):
        value = loss(network, step, log_priors)
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
            print(f"step {step}: loss {running / 500:.4f}", file=sys.stderr, flush=True)
            running = 0.0
    return mean


def publish(network: ConceptNetwork) -> None:
    """Write the energies, frozen, and their card to the zoo: one file for all concepts."""
    energy = NoiseConditional(network, name="shapes.any").eval().requires_grad_(False)
    card = {
        "name": "shapes",
        "concepts": list(CONCEPTS),
        "event_shape": list(energy.event_shape),
        "space": "x = 2 rgb - 1 + 0.05 eps, eps ~ N(0, 1), of examples/shapes.py, 3x16x16",
        "kind": "noise-conditional energy |x - D(x, sigma, c)|^2 / 2 sigma^2, sigma from 0.05 to 10",
        "parameters": sum(p.numel() for p in energy.parameters()),
        "left_out": [list(combination) for combination in UNSEEN],
        "licence": "Apache-2.0; data: drawn by code",
        "trained_by": "examples/train_shapes.py",
    }
    print(json.dumps(card, indent=2))
    if os.environ.get("POE_FAST") != "1":
        poe.save(energy, ZOO / "shapes.safetensors")
        (ZOO / "shapes.json").write_text(json.dumps(card, indent=2) + "\n")


def main() -> None:
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    torch.manual_seed(0)
    network = ConceptNetwork((3, 16, 16), concepts=CONCEPTS, sigma_range=(SIGMA, 10.0), loc=-0.85, rough_below=2.0)
    assert math.prod(network.event_shape) == 768
    for cycle, steps in enumerate(CYCLES):
        network = train(network, 20 if os.environ.get("POE_FAST") == "1" else steps, seed=cycle)
    publish(network)


if __name__ == "__main__":
    main()
