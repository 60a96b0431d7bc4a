"""Langevin moves whose size follows the curvature of the target, for the necks of funnels.

    x' = x - h(x) g(x) + √(2h(x)) ξ,   h_i(x) = ε exp(-a_i - b_i·(x @ D)),   ξ ~ N(0, I),

accepted by Metropolis and Hastings with the densities of both steps, so that the kernel is
reversible. a and b by regression of log g_i² + 1.27 (E log χ²_1 = -1.27) on x along the directions
D: E[g_i²] = E[∂²E/∂x_i²], g the gradient (by parts), also given any other coordinate.

References: Roberts and Stramer 2002, Methodology and Computing in Applied Probability 4 (Langevin
proposals whose size depends on the place); Roberts and Rosenthal 1998, J. R. Statist. Soc. B 60(1)
(ε ∝ d^(-1/3), acceptance .574).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from poe.algebra.energy import Energy

PILOT_STEPS, ACCEPTANCE = 15, 0.55  # that tune ε on a quarter of the chains; what they aim at
LOG_CHI2 = -1.2704  # E log χ²_1


class Steps(NamedTuple):
    """h_i(x) = scale·exp(-constant_i - slope_i·(x @ directions)), in squared units of x."""

    scale: float
    constant: Tensor  # (d)
    slope: Tensor  # (k, d)
    directions: Tensor  # (d, k)

    def at(self, x: Tensor) -> Tensor:  # (m, d) -> (m, d)
        """The steps of chains there."""
        return self.scale * (-self.constant - x @ self.directions @ self.slope).exp()


class Chains(NamedTuple):
    """Chains: positions (m, d), energies in nats (m), gradients (m, d)."""

    x: Tensor
    energy: Tensor
    gradient: Tensor

    def taken(self, chosen: Tensor) -> Chains:
        """Some of them."""
        return Chains(self.x[chosen], self.energy[chosen], self.gradient[chosen])


@dataclass
class LocalMoves:
    """The target, the random numbers, and the gradients spent. Points are (m, d), in float64."""

    target: Energy
    generator: torch.Generator
    gradients: float = 0.0

    def evaluate(self, x: Tensor) -> Chains:  # (m, d)
        """Energies and gradients, in float64."""
        event = x.to(self.target.dtype).reshape(len(x), *self.target.event_shape)
        energy, gradient = self.target.value_and_grad(event)
        self.gradients += len(x)
        return Chains(x, energy.double(), gradient.double().reshape(x.shape))

    def finite(self, x: Tensor) -> tuple[Chains, Tensor]:
        """Chains at those points of finite energy, and which these are."""
        chains = self.evaluate(x)
        good = chains.energy.isfinite() & chains.gradient.isfinite().all(1)
        return chains.taken(good), good

    def event(self, x: Tensor) -> Tensor:
        """Points (m, d) as the target takes them."""
        return x.to(self.target.dtype).reshape(len(x), *self.target.event_shape)

    def tuned(self, chains: Chains, steps: Steps) -> Steps:
        """The steps with the scale that a pilot on every fourth chain found."""
        pilot = chains.taken(torch.arange(0, len(chains.x), 4, device=chains.x.device))
        for _ in range(PILOT_STEPS):
            pilot, moved = self.move(pilot, steps)
            change = float(moved.double().mean()) - ACCEPTANCE
            steps = steps._replace(scale=steps.scale * math.exp(change))
        return steps

    def move(self, chains: Chains, steps: Steps) -> tuple[Chains, Tensor]:
        """One Metropolis-adjusted Langevin move of every chain, and which were accepted."""
        step = steps.at(chains.x)
        options: Any = {"dtype": step.dtype, "device": step.device, "generator": self.generator}
        noise, uniform = torch.randn(step.shape, **options), torch.rand(len(step), **options)
        x = chains.x - step * chains.gradient + (2 * step).sqrt() * noise
        valid = x.isfinite().all(1)
        there = self.evaluate(torch.where(valid[:, None], x, chains.x))
        back = steps.at(there.x)
        forth = -(noise.square() + step.log()).sum(1) / 2
        drift = chains.x - there.x + back * there.gradient
        return_ = -(drift.square() / (4 * back) + back.log() / 2).sum(1)
        log_ratio = chains.energy - there.energy + return_ - forth
        accepted = valid & (uniform.log() < log_ratio)  # NaN is rejected
        pairs = zip(there, chains, strict=True)
        mask = accepted[:, None]
        moved = [torch.where(mask if a.ndim > 1 else accepted, a, b) for a, b in pairs]
        return Chains(*moved), accepted


def fitted(chains: Chains, directions: Tensor, variance: Tensor) -> Steps:
    """Steps by regression of log g_i² on x along the directions. Gradients count as at least .01
    standard deviations⁻¹."""
    n, d = chains.x.shape
    floor = 1e-4 / variance.clamp(min=1e-300)
    curvature = (chains.gradient.square() + floor).log() - LOG_CHI2
    along = chains.x @ directions
    centre, scale = along.mean(0), along.std(0).clamp(min=1e-300)
    features = torch.cat([along.new_ones(n, 1), (along - centre) / scale], 1)
    found = torch.linalg.lstsq(features, curvature, driver="gelsd").solution
    slope = found[1:] / scale[:, None]
    return Steps(d ** (-1 / 3), found[0] - centre @ slope, slope, directions)
