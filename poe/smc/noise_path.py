"""The path of a target down its levels of noise: whether there is one, from which normal it starts,
and what the target is at each level."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from poe.algebra import support as sets
from poe.algebra.capabilities import Guidance, Guided, as_a
from poe.algebra.energy import Energy, first_tensor
from poe.algebra.text import leaves
from poe.smc.gaussians import MAX_DIMENSIONS
from poe.spaces.noise import noise_levels, noise_range
from poe.spaces.path import Geometric, StandardNormal
from poe.spaces.spread import spread

MAX_EXPENSIVE_PARTICLES = 1024  # of an expensive target; at least 4 for each draw up to this many
EXPENSIVE_POPULATIONS = 4  # of those particles
CENTRE_STEPS, CENTRE_POINTS = 3, 64  # by which the centre of the noisiest level is found
MASS_POINTS = 256  # by which log Z of a guide's reference is estimated


def diffusible(target: Energy) -> bool:
    """Whether particles reach it by reverse diffusion: it has levels of noise, all of them proper
    and with a known spread."""
    if not sets.is_real(target.support) or noise_levels(target) is None:
        return False
    return all(spread(target.at(sigma), sigma) is not None for sigma in noise_range(target))


def expensive(target: Energy) -> bool:
    """Whether reverse diffusion is in many dimensions, where networks give the energies and no
    other method draws."""
    return target.event_shape.numel() > MAX_DIMENSIONS and diffusible(target)


def guidance(target: Energy) -> Guidance | None:
    """How an expert guides the reverse diffusion of an expensive target (`Guided`); None where
    weights are those of the energies."""
    if not expensive(target):
        return None
    experts = (as_a(leaf, Guided) for leaf in leaves(target))
    found = (expert.guidance(target) for expert in experts if expert is not None)
    return next((guide for guide in found if guide is not None), None)


@dataclass(frozen=True)
class PlainLevel:
    """The target at a level, weighed by its energies."""

    energy: Energy
    metropolis: bool = True  # whether Metropolis moves apply

    def evaluate(self, x: Tensor) -> tuple[Tensor, ...]:
        # (*batch, *event) -> (*batch), (*batch, *event)
        """Energy and gradient; further tensors (*batch, ...) go to the `memory` of particles."""
        return self.energy.value_and_grad(x)

    def log_density_change(self, lower: Any, high: Any, low: Any) -> Tensor:  # -> (*batch)
        """log p_k(x') - log p_{k-1}(x) in nats, up to the ratio of Z, from this level at the
        particles `high` to a lower one at `low`."""
        return high.energy.double() - low.energy.double()

    def unnoised_log_weight(self, lower: Any, high: Any, low: Any) -> Tensor | None:  # -> (*batch)
        """Log weights of a step that is exact but for experts without noise; None of one that is
        weighed by `log_density_change`."""
        return None


@dataclass(frozen=True)
class NoisePath:
    """The path of a target down its levels of noise, from a normal that draws the noisiest one
    nearly; `approach` leads from that to this. `mass`: log Z in nats of the reference of the
    guidance (`poe.algebra.capabilities.Guidance`), which is subtracted; else 0."""

    start: StandardNormal
    end: Energy
    approach: Geometric
    guidance: Guidance | None = None
    mass: float = 0.0
    known: dict = field(default_factory=dict, init=False, repr=False, compare=False)

    @classmethod
    def to(cls, target: Energy, generator: torch.Generator) -> NoisePath:
        """The path to a target that is `diffusible`. Raises ValueError where the noisiest level has
        no finite gradient."""
        high = max(noise_range(target))
        top, guide = target.at(high), guidance(target)
        wide = spread(top, high) or math.inf
        start = _around(top, wide, generator)
        reference = None if guide is None else guide.reference
        mass = 0.0 if reference is None else _mass(reference, wide, generator)
        return cls(start, target, Geometric(start, top), guide, mass)

    @property
    def follows_scores(self) -> bool:
        """Whether particles follow scores that are not the gradients of the energies."""
        return self.guidance is not None and self.guidance.follows_scores

    def level(self, sigma: float) -> tuple[PlainLevel, float | None]:
        """The target at a level, as the guidance has it where there is one, and its spread of
        noise. Each is made once."""
        if sigma not in self.known:
            energy = self.end.at(sigma)
            level = PlainLevel(energy) if self.guidance is None else self.guidance.level(sigma)
            self.known[sigma] = level, spread(energy, sigma)
        return self.known[sigma]


def _around(top: Energy, wide: float, generator: torch.Generator) -> StandardNormal:
    """A normal near the noisiest level: spread as its noise, about the mean of what is behind it, x
    - s²∇E."""
    like = first_tensor(top)
    centre, more = like.new_zeros(top.event_shape), like.new_zeros(top.event_shape)
    for _ in range(CENTRE_STEPS):
        noise = torch.randn(
            CENTRE_POINTS,
            *top.event_shape,
            generator=generator,
            dtype=like.dtype,
            device=like.device,
        )
        x = centre + (wide**2 + more).sqrt() * noise
        behind = x - wide**2 * top.value_and_grad(x)[1]
        if not bool(behind.isfinite().all()):
            raise ValueError(
                f"{top} has no finite gradient at "
                f"{int((~behind.isfinite()).flatten(1).any(1).sum())} of {CENTRE_POINTS} points"
            )
        centre, more = behind.mean(0), behind.var(0)
    return StandardNormal(centre, (wide**2 + more).sqrt())


def _mass(expert: Energy, wide: float, generator: torch.Generator) -> float:
    """log ∫ exp(-E) dx, in nats, of an expert at the noisiest level, by importance sampling from
    the normal around it."""
    normal = _around(expert, wide, generator)
    x = normal.sample(MASS_POINTS, generator=generator)
    with torch.no_grad():
        logs = -expert(x).double() - normal.log_prob(x).double()
    return float(logs.logsumexp(0)) - math.log(len(x))
