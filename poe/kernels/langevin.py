"""Langevin: one gradient a step, Metropolis-adjusted (MALA) or not (ULA)."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from poe.algebra.energy import Energy
from poe.kernels.base import Preconditioned
from poe.kernels.moves import (
    check_positive,
    decide,
    evaluate,
    langevin_densities,
    langevin_move,
    steps_of,
)
from poe.kernels.state import Feedback, Info, Noise, State


@dataclass(frozen=True)
class Langevin(Preconditioned):
    """Preconditioned Langevin with step size h and preconditioner M = L Lᵀ:

        x' = x - h M ∇E(x) + sqrt(2h) L ξ,     ξ ~ N(0, I).

    With `metropolis` (MALA), x' is accepted by each chain independently with probability min(1, exp
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
    compiles = True

    def __post_init__(self) -> None:
        check_positive(self.step_size, "step size of Langevin", "x squared")

    @property
    def exact(self) -> bool:
        return self.metropolis

    @property
    def target_acceptance(self) -> float:
        return 0.574 if self.metropolis else 0.95

    def guess(self, d: int) -> float:
        return 1.36 * d ** (-1 / 3)

    def step(self, energy: Energy, state: State, noise: Noise) -> tuple[State, Info]:
        h = steps_of(self.step_size, state, "Langevin", "x squared")
        metric = self.scale, self.dense
        move = langevin_move(state.gradient, noise.normal, h, *metric)
        proposed = evaluate(energy, state.x + move, True)
        log_ratio = None
        if self.metropolis:
            forward, reverse = langevin_densities(
                state.gradient, proposed.gradient, noise.normal, h, *metric
            )
            log_ratio = state.energy - proposed.energy + forward - reverse
        return decide(state, proposed, log_ratio, noise.uniform, proposed.energy - state.energy)

    def learn(self, energy: Energy, state: State, noise: Noise) -> tuple[State, Info, Feedback]:
        moved, info = self.step(energy, state, noise)
        if self.metropolis:
            return moved, info, Feedback(info.acceptance)
        _, adjusted = replace(self, metropolis=True).step(energy, state, noise)
        return moved, info, Feedback(adjusted.acceptance)
