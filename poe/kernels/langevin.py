"""Langevin: one gradient a step, Metropolis-adjusted (MALA) or not (ULA)."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from poe.algebra.energy import Energy
from poe.kernels.base import Info, Kernel, Lesson, Noise, State
from poe.kernels.moves import decide, draw, evaluate, flat, per_event, scaled, transposed


@dataclass(frozen=True)
class Langevin(Kernel):
    """Preconditioned Langevin with step size h and preconditioner M = L Lᵀ:

        x' = x - h M ∇E(x) + sqrt(2h) L ξ,     ξ ~ N(0, I).

    With `metropolis` (MALA), x' is accepted by each chain for itself with probability min(1, exp
    a),

        a = E(x) - E(x') + ½|ξ|² - ½|ξ - sqrt(h/2) Lᵀ(∇E(x) + ∇E(x'))|²,

    which is the Metropolis-Hastings ratio with proposal variance 2h M. Without it (ULA) every
    finite x' is taken, and the law of the chain is biased by O(h): on N(0, σ²) its variance is σ² /
    (1 - h/(2σ²)).

    Arguments:
        step_size: h, in units of x² (of x² / M with a preconditioner); a number or a tensor over
            trailing batch axes. None: found in warm-up from the pooled chains, at the acceptance
            0.574; without `metropolis`, at the probability 0.95 with which MALA would
            have accepted, for the sake of the bias: that costs one more gradient a step of warm-up.
        metropolis: whether to accept or reject.
        scale: L over the flattened event: None (identity), (*b, d) for a diagonal or, with `dense`,
            (*b, d, d) lower triangular.

    References: Roberts and Tweedie 1996, Bernoulli 2(4); Roberts and Rosenthal 1998, J. R. Statist.
    Soc. B 60(1) (0.574).
    """

    step_size: float | Tensor | None = None
    metropolis: bool = True
    scale: Tensor | None = None
    dense: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.step_size, (int, float)) and not 0 < self.step_size < math.inf:
            raise ValueError(
                "the step size of Langevin is a positive number in units of x squared, got "
                f"{self.step_size}"
            )

    @property
    def exact(self) -> bool:
        return self.metropolis

    @property
    def compiles(self) -> bool:
        return True

    @property
    def target_acceptance(self) -> float:
        return 0.574 if self.metropolis else 0.95

    def guess(self, d: int) -> float:
        return 1.36 * d ** (-1 / 3)

    def init(self, energy: Energy, x: Tensor) -> State:  # x: (*batch, *event)
        return evaluate(energy, x.detach(), True)

    def noise(
        self, state: State, generator: torch.Generator | None = None, steps: int | None = None
    ) -> Noise:
        return draw(state, generator, steps)

    def step(self, energy: Energy, state: State, noise: Noise) -> tuple[State, Info]:
        if self.step_size is None:
            raise ValueError(
                "Langevin(step_size=None) is tuned by poe.sample; to step by hand give a step size "
                "in units of x squared"
            )
        event = state.x.ndim - state.energy.ndim
        h = torch.as_tensor(self.step_size, dtype=state.x.dtype, device=state.x.device).expand(
            state.energy.shape
        )
        root = per_event(h.sqrt(), event)
        pull = transposed(state.gradient, self.scale, self.dense, event)
        move = scaled(
            math.sqrt(2) * root * noise.normal - root * root * pull, self.scale, self.dense, event
        )
        proposed = evaluate(energy, state.x + move, True)
        log_ratio = None
        if self.metropolis:
            new_pull = transposed(proposed.gradient, self.scale, self.dense, event)
            back = noise.normal - root / math.sqrt(2) * (pull + new_pull)
            forward, reverse = (flat(z, event).square().sum(-1) / 2 for z in (noise.normal, back))
            log_ratio = state.energy - proposed.energy + forward - reverse
        return decide(state, proposed, log_ratio, noise.uniform, proposed.energy - state.energy)

    def learn(self, energy: Energy, state: State, noise: Noise) -> tuple[State, Info, Lesson]:
        moved, info = self.step(energy, state, noise)
        if self.metropolis:
            return moved, info, Lesson(info.acceptance)
        _, adjusted = replace(self, metropolis=True).step(energy, state, noise)
        return moved, info, Lesson(adjusted.acceptance)

    def tuned(
        self, step_size: float | Tensor, scale: Tensor | None = None, dense: bool = False
    ) -> Langevin:
        return replace(self, step_size=step_size, scale=scale, dense=dense)
