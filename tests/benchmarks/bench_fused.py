"""(j) Terms that share a network: `shapes` conjunctions of 5 concepts, in one call of the network
or one call a term; and what drawing costs beside the bare network.

Unfused over fused is measured on the gradient of the conjunction, and on its score, at 1, 16 and 64
pictures. The sampler's time is that of populations carried down the noise levels by a frozen
schedule, over that of as many bare fused scores, one a level, and
gradients of the same batch, at points where every concept is uncertain: on the way down most are
certain, and their guides are not evaluated.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import replace

import torch

import poe
from experts.noise.guidance import scored
from poe.algebra.energy import Energy
from poe.mcmc.run import streams
from poe.smc.diffusion_tuning import tune_diffusion
from poe.smc.noise_path import NoisePath
from poe.smc.population import anneal
from timing import in_turns, median_ratio

CONCEPTS = ("red", "circle", "left", "top", "small")


def main() -> None:
    prior = poe.load("shapes.any")
    target = poe.conjunction(prior, [prior.given(concept) for concept in CONCEPTS])  # type: ignore[operator]
    for of, energy in (("gradient", target), ("score", scored(target))):
        terms = [
            (power, term.energy) for power, term in zip(energy.powers, energy.terms, strict=True)
        ]  # type: ignore[attr-defined]
        for n in (1, 16, 64):
            x = torch.randn(n, *target.event_shape)

            def unfused(x: torch.Tensor = x, terms: list = terms) -> torch.Tensor:
                return sum(power * term.value_and_grad(x)[1] for power, term in terms)  # type: ignore[return-value]

            def fused(x: torch.Tensor = x, energy: Energy = energy) -> torch.Tensor:
                return energy.value_and_grad(x)[1]

            together, apart = fused(), unfused()
            assert torch.allclose(together, apart, atol=1e-4 * together.abs().max().item())
            times = in_turns([unfused, fused], turns=15)
            print(
                f"{of}, {n} pictures: unfused / fused "
                f"{median_ratio(times, slice(0, 1), slice(1, 2)):.2f}"
            )
    two = poe.conjunction(prior, [prior.given(concept) for concept in CONCEPTS[:2]])  # type: ignore[operator]
    generators = streams(0, 2, torch.device("cpu"))
    schedule = replace(
        tune_diffusion(NoisePath.to(two, generators[0]), generators[0]).schedule, oversampling=1
    )
    x = torch.randn(1, 64, *two.event_shape)
    bare = in_turns([lambda: scored(two).value_and_grad(x), lambda: two.value_and_grad(x)], turns=9)
    score, gradient = (statistics.median(turn[i] for turn in bare) for i in range(2))
    started = time.process_time()
    anneal(
        schedule, lambda n, g: schedule.path.start.sample(n, generator=g), [1], 64, [generators[1]]
    )
    taken = time.process_time() - started
    levels = len(schedule.steps)  # type: ignore[attr-defined]
    cost = levels * score + (schedule.gradients - levels) * gradient
    print(
        f"two concepts, 64 particles, {len(schedule.levels)} levels: sampler / bare network "
        f"{taken / cost:.2f}"
    )
    print(f"{64 / taken:.2f} draws a second, pilot not counted")


if __name__ == "__main__":
    main()
