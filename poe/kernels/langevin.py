"""Langevin: one gradient a step, Metropolis-adjusted (MALA) or not (ULA)."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from poe.energy import Energy
from poe.kernels.base import DIVERGENT, Info, State, per_event


class Noise(NamedTuple):
    """Standard normal numbers (*batch, *event) and uniform ones (*batch): all randomness of one step."""

    normal: Tensor
    uniform: Tensor


@dataclass(frozen=True)
class Langevin:
    """Preconditioned Langevin with step size h and preconditioner M = L Lᵀ:

        x' = x - h M ∇E(x) + sqrt(2h) L ξ,     ξ ~ N(0, I).

    With `metropolis` (MALA), x' is accepted by each chain for itself with probability min(1, exp a),

        a = E(x) - E(x') + ½|ξ|² - ½|ξ - sqrt(h/2) Lᵀ(∇E(x) + ∇E(x'))|²,

    which is the Metropolis-Hastings ratio with proposal variance 2h M. Without it (ULA) every finite x' is taken, and the law of
    the chain is biased by O(h): on N(0, σ²) its variance is σ² / (1 - h/(2σ²)).

    Arguments:
        step_size: h, in units of x² (of x² / M with a preconditioner); a number or a tensor over trailing batch axes. None: found in
            warm-up from the pooled chains, at the acceptance 0.574.
        metropolis: whether to accept or reject.
        scale: L over the flattened event: None (identity), (*b, d) for a diagonal or, with `dense`, (*b, d, d) lower triangular.

    References: Roberts and Tweedie 1996, Bernoulli 2(4); Roberts and Rosenthal 1998, J. R. Statist. Soc. B 60(1) (0.574).
    """

    step_size: float | Tensor | None = None
    metropolis: bool = True
    scale: Tensor | None = None
    dense: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.step_size, (int, float)) and not 0 < self.step_size < math.inf:
            raise ValueError(f"the step size of Langevin is a positive number in units of x squared, got {self.step_size}")

    @property
    def exact(self) -> bool:
        return self.metropolis

    @property
    def compiles(self) -> bool:
        return True

    @property
    def target_acceptance(self) -> float:
        return 0.574

    @property
    def gradients_per_step(self) -> float:
        return 1.0

    def init(self, energy: Energy, x: Tensor) -> State:  # x: (*batch, *event)
        return State(x.detach(), *energy.value_and_grad(x))

    def noise(self, state: State, generator: torch.Generator | None = None, steps: int | None = None) -> Noise:
        def draw(sampler, like: Tensor) -> Tensor:
            shape = like.shape if steps is None else (steps, *like.shape)
            return sampler(shape, generator=generator, dtype=like.dtype, device=like.device)

        return Noise(draw(torch.randn, state.x), draw(torch.rand, state.energy))

    def step(self, energy: Energy, state: State, noise: Noise) -> tuple[State, Info]:
        if self.step_size is None:
            raise ValueError(
                "Langevin(step_size=None) is tuned by poe.sample; to step by hand give a step size in units of x squared"
            )
        event = state.x.ndim - state.energy.ndim
        h = torch.as_tensor(self.step_size, dtype=state.x.dtype, device=state.x.device).expand(state.energy.shape)
        root = per_event(h.sqrt(), event)
        pull = self._transposed(state.gradient, event)
        proposal = state.x + self._scaled(math.sqrt(2) * root * noise.normal - root * root * pull, event)
        new_energy, new_gradient = energy.value_and_grad(proposal)
        finite = new_energy.isfinite() & _flat(new_gradient, event).isfinite().all(-1)
        back = noise.normal - root / math.sqrt(2) * (pull + self._transposed(new_gradient, event))
        if self.metropolis:
            forward, reverse = (_flat(z, event).square().sum(-1) / 2 for z in (noise.normal, back))
            log_ratio = state.energy - new_energy + forward - reverse
            finite = finite & ~log_ratio.isnan()
            acceptance = torch.where(finite, log_ratio.clamp(max=0).exp(), 0)
            accepted = finite & (noise.uniform < acceptance)
        else:
            acceptance, accepted = finite.to(state.energy), finite
        taken = per_event(accepted, event)
        moved = State(
            torch.where(taken, proposal, state.x),
            torch.where(accepted, new_energy, state.energy),
            torch.where(taken, new_gradient, state.gradient),
        )
        # an energy of +inf is what the outside of the support has: rejected like any other, and no divergence
        nonfinite = ~finite & (new_energy != math.inf)
        return moved, Info(acceptance, accepted, nonfinite, finite & (new_energy - state.energy > DIVERGENT))

    def tuned(self, step_size: float | Tensor, scale: Tensor | None = None, dense: bool = False) -> Langevin:
        return replace(self, step_size=step_size, scale=scale, dense=dense)

    def walkers(self, state: State) -> State:
        return state

    def position(self, state: State) -> tuple[Tensor, Tensor]:
        return state.x, state.energy

    def _scaled(self, v: Tensor, event: int) -> Tensor:
        """L v."""
        if self.scale is None:
            return v
        flat, scale = _flat(v, event), self.scale.to(v)
        flat = torch.einsum("...ij,...j->...i", scale, flat) if self.dense else scale * flat
        return flat.reshape(v.shape)

    def _transposed(self, v: Tensor, event: int) -> Tensor:
        """Lᵀ v."""
        if self.scale is None or not self.dense:
            return self._scaled(v, event)
        return torch.einsum("...ji,...j->...i", self.scale.to(v), _flat(v, event)).reshape(v.shape)


def _flat(v: Tensor, event: int) -> Tensor:
    return v.unsqueeze(-1) if event == 0 else v.flatten(v.ndim - event)
