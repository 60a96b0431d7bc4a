"""Losses that fit a `ConceptNetwork` to noised pictures and their concepts."""

from __future__ import annotations

import torch
from torch import Tensor

from experts.noise.layers import Features
from experts.noise.network import ConceptNetwork


def denoising(network: ConceptNetwork, clean: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
    # (n, *event), (n, *event), (n) -> (n)
    """λ_σ ‖D(x₀ + σ ε, σ) - x₀‖² / nσ², λ_σ = 1 + σ² / spread²: the regression of D on the data,
    for each picture."""
    sigma_ = sigma[:, None, None, None]
    off = (network.denoise(clean + sigma_ * noise, sigma) - clean) / sigma_
    return off.square().flatten(1).mean(1) * (1 + (sigma / network.spread).square())


def concept_denoising(
    network: ConceptNetwork, clean: Tensor, noise: Tensor, sigma: Tensor, concepts: Tensor
) -> tuple[Tensor, Tensor]:
    # (n, *event), (n, *event), (n), (n, m) -> (n), (n)
    """`denoising`, and what concepts save of it, λ_σ (‖D + Δ_c - x₀‖² - ‖D - x₀‖²) / nσ² as a mean
    over m concepts c of each picture, indices into `network.concepts`: the regression of Δ_c on the
    data. Its gradient does not change D, but the features of f. The classifier is left as it is:
    `concept_matching` fits it.

    Raises ValueError for a network without concepts.
    """
    if network.guide is None:
        raise ValueError(
            "the network has no concepts to learn: ConceptNetwork(..., concepts=[...]) names some"
        )
    x, m = clean + sigma[:, None, None, None] * noise, concepts.shape[1]
    features = network.features(x, sigma)
    off = network.point(features) - clean
    with torch.no_grad():
        ratios = network.log_ratios(x, sigma).gather(1, concepts)
    many = Features(*(part.repeat_interleave(m, 0) for part in features))
    guided = off.detach().repeat_interleave(m, 0) + network.shift(
        many, concepts.flatten(), ratios.flatten()
    )
    scale = (1 / sigma.square() + 1 / network.spread**2) / off[0].numel()
    plain = off.square().flatten(1).sum(1)
    return scale * plain, scale * (
        guided.square().flatten(1).sum(1).unflatten(0, (-1, m)).mean(1) - plain.detach()
    )


def concept_matching(network: ConceptNetwork, x: Tensor, sigma: Tensor, truth: Tensor) -> Tensor:
    # (n, *event), (n), (n, factors) -> (n)
    """-Σ log p(c | x; σ) over the factors, the cross-entropy of noised pictures, in nats.

    `truth` has the index of the value of each factor among its values; for a single name 0 where it
    is present and 1 where it is not.
    """
    chosen = [
        log_p.gather(1, truth[:, i, None]).squeeze(1)
        for i, log_p in enumerate(network.log_posteriors(x, sigma))
    ]
    return -sum(chosen[1:], chosen[0])
