"""Short Metropolis-adjusted Langevin chains at several temperatures, whose ends are starts of
descents and points that mixtures are fitted to."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from poe.smc.flat import Flat

Metrics = Sequence[tuple[Tensor, int]]  # (L, the number of chains that move in its metric)

GROWTH, SHRINKAGE = 1.15, 0.77  # of a step size after a proposal: an acceptance of about .65


def hot_chains(
    flat: Flat,
    x: Tensor,
    metrics: Metrics,
    temperature: Tensor,
    steps: int,
    generator: torch.Generator,
) -> Tensor:
    # (n, d), (n) -> (n, d)
    """Metropolis-adjusted Langevin steps at temperatures T: x' = x - h²/2 L Lᵀ ∇E/T +
    h L ξ, with a step size h of each chain that grows by 1.15 when a proposal is accepted and
    shrinks by .77 when not: an acceptance of about .65."""
    step = 0.6 * flat.d ** (-1 / 6) * temperature.sqrt().expand(len(x))
    energy, slope = flat.value_and_grad(x)
    heat = temperature.unsqueeze(-1)
    for _ in range(steps):
        noise = torch.randn(x.shape, generator=generator, dtype=x.dtype, device=x.device)
        h = step.unsqueeze(1)
        z = h * noise - h.square() / 2 * _through(metrics, slope, transposed=True) / heat
        new = x + _through(metrics, z)
        new_energy, new_slope = flat.value_and_grad(new)
        back = _through(metrics, new_slope, transposed=True) / heat
        reverse = h / 2 * back - z / h
        drift = (noise.square() - reverse.square()).sum(1) / 2
        ratio = (energy - new_energy) / temperature + drift
        uniform = torch.rand(len(x), generator=generator, dtype=x.dtype, device=x.device)
        ok = uniform.log() < torch.where(ratio.isnan(), -math.inf, ratio)
        x = torch.where(ok.unsqueeze(1), new, x)
        energy = torch.where(ok, new_energy, energy)
        slope = torch.where(ok.unsqueeze(1), new_slope, slope)
        step = step * torch.where(ok, GROWTH, SHRINKAGE)
    return x


def _through(metrics: Metrics, z: Tensor, *, transposed: bool = False) -> Tensor:
    """L z for each point, or Lᵀ z."""
    parts = z.split([count for _, count in metrics])
    return torch.cat(
        [
            part @ (root if transposed else root.T)
            for part, (root, _) in zip(parts, metrics, strict=True)
        ]
    )
