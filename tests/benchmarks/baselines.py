"""What `poe.sample` is compared with on noise-conditional energies: the usual methods of the field,
which
draw approximately from the composition.

All go down the same levels σ_0 > σ_1 > ... of a composition, whose score at a level is the weighted
sum of its experts' scores: those that they know best (`experts.noise.guidance.scored`), except for
tests by energies, which take the gradient.
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor

from experts.noise.guidance import scored
from poe.algebra.energy import Energy
from poe.kernels import Hamiltonian, Kernel, Langevin
from poe.spaces.noise import noise_range


def ladder(energy: Energy, levels: int) -> list[float]:
    """Levels of noise in units of x, evenly spaced on a log scale over the range that the experts
    share."""
    low, high = noise_range(energy)
    return [high * (low / high) ** (k / (levels - 1)) for k in range(levels)]


def reverse_diffusion(energy: Energy, n: int, levels: int, generator: torch.Generator) -> Tensor:
    # -> (n, *event)
    """x' = x - δ ∇E(x) + σ_k √δ / σ_{k-1} ξ, δ = σ²_{k-1} - σ²_k: ancestral sampling (Ho et al.
    2020) with the composed score."""
    sigmas = ladder(energy, levels)
    x = sigmas[0] * torch.randn(n, *energy.event_shape, generator=generator)
    for high, low in pairwise(sigmas):
        fall = high**2 - low**2
        noise = torch.randn(x.shape, generator=generator)
        x = (
            x
            - fall * scored(energy.at(high)).value_and_grad(x)[1]
            + low * math.sqrt(fall) / high * noise
        )
    return x


def annealed_chains(
    energy: Energy,
    n: int,
    levels: int,
    steps: int,
    kernel: Kernel,
    generator: torch.Generator,
    *,
    diffuse: bool = False,
) -> Tensor:
    # -> (n, *event)
    """`steps` of a kernel at each level, its step size in units of the level's noise; no weights.
    With `diffuse` a level is reached by a step of reverse diffusion, as Du et al. 2023 do; else
    from where the chains are, as Song and Ermon 2019."""
    sigmas = ladder(energy, levels)
    x = sigmas[0] * torch.randn(n, *energy.event_shape, generator=generator)
    before = sigmas[0]
    for sigma in sigmas:
        if diffuse and sigma < before:
            fall = before**2 - sigma**2
            noise = torch.randn(x.shape, generator=generator)
            x = (
                x
                - fall * scored(energy.at(before)).value_and_grad(x)[1]
                + sigma * math.sqrt(fall) / before * noise
            )
        before, here = (
            sigma,
            energy.at(sigma) if getattr(kernel, "metropolis", True) else scored(energy.at(sigma)),
        )
        scale = torch.full((x[0].numel(),), sigma)
        moved = kernel.tuned(kernel.step_size, scale)  # type: ignore[arg-type]
        state = moved.init(here, x)
        for _ in range(steps):
            state, _ = moved.step(here, state, moved.noise(state, generator))
        x = moved.walkers(state).x
    return x


def ula(step: float) -> Kernel:
    """Unadjusted Langevin; the step size in units of σ²."""
    return Langevin(step, metropolis=False)


def mala(step: float) -> Kernel:
    """Metropolis-adjusted Langevin; the step size in units of σ²."""
    return Langevin(step)


def hmc(step: float, length: float) -> Kernel:
    """Hamiltonian Monte Carlo, with trajectories of fixed length in units of σ."""
    return Hamiltonian(step, length)
