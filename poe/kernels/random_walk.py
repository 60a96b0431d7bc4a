"""Random-walk Metropolis: energies only, no gradients."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from poe.algebra.energy import Energy
from poe.kernels.base import Preconditioned
from poe.kernels.moves import (
    check_positive,
    decide,
    evaluate,
    has_gradient,
    per_event,
    scaled,
    steps_of,
)
from poe.kernels.state import Info, Noise, State


@dataclass(frozen=True)
class RandomWalk(Preconditioned):
    """Random-walk Metropolis with step size h and preconditioner M = L Lᵀ:

        x' = x + h L ξ,     ξ ~ N(0, I),     taken by each chain independently with probability
        min(1, exp(E(x) - E(x'))).

    One energy a step and no gradient, so it needs none to exist. (From a state that holds a
    gradient, as within `Cycle`, it evaluates the gradient at x' too.)

    Arguments:
        step_size: h, in units of x (of whitened x, with a preconditioner); a number or a tensor
            over trailing batch axes. None: found in warm-up from the pooled chains, at the
            acceptance 0.234 + 0.206 / d, which is within 0.02 of the best in d dimensions for a
            normal target.
        scale: L over the flattened event: None (identity), (*b, d) for a diagonal or, with `dense`,
            (*b, d, d) lower triangular.

    References: Metropolis et al. 1953, J. Chem. Phys. 21(6); Gelman, Roberts and Gilks 1996,
    Bayesian Statistics 5 (acceptance by dimension); Roberts, Gelman and Gilks 1997, Annals of
    Applied Probability 7(1) (0.234).
    """

    step_size: float | Tensor | None = None
    scale: Tensor | None = None
    dense: bool = False
    compiles = True
    needs_gradient = False
    target_acceptance = 0.234
    gradients_per_step = 0.0

    def __post_init__(self) -> None:
        check_positive(self.step_size, "step size of RandomWalk")

    def target(self, d: int) -> float:
        return 0.234 + 0.206 / d

    def guess(self, d: int) -> float:
        return 2.38 * d**-0.5

    def step(self, energy: Energy, state: State, noise: Noise) -> tuple[State, Info]:
        event = state.x.ndim - state.energy.ndim
        h = per_event(steps_of(self.step_size, state, "RandomWalk"), event)
        proposal = state.x + scaled(h * noise.normal, self.scale, self.dense, event)
        proposed = evaluate(energy, proposal, has_gradient(state))
        return decide(state, proposed, state.energy - proposed.energy, noise.uniform)
