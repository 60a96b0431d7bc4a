"""Hamiltonian Monte Carlo: leapfrog trajectories of jittered length, one length for all chains of a
batch."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from poe.algebra.energy import Energy
from poe.kernels.base import Preconditioned
from poe.kernels.moves import (
    DIVERGENT,
    check_positive,
    decide,
    evaluate,
    flat,
    per_event,
    scaled,
    steps_of,
    transposed,
)
from poe.kernels.state import Feedback, Info, State, Trajectory
from poe.kernels.trajectory import (
    NORMAL_LENGTH,
    TrajectoryNoise,
    chees_slope,
    draw_jittered,
    mean_step_count,
    step_count,
)

DEFAULT_MAX_STEPS = 8  # steps of a trajectory whose length is neither given nor found in warm-up


@dataclass(frozen=True)
class Hamiltonian(Preconditioned):
    """Hamiltonian Monte Carlo with step size h and preconditioner M = L Lᵀ, for a velocity v ~ N(0,
    I) drawn anew each time:

        v ← v - h/2 Lᵀ∇E(x),    x ← x + h L v,    v ← v - h/2 Lᵀ∇E(x),      n times (leapfrog),

    accepted by each chain independently with probability min(1, exp(E(x) + ½|v|² - E(x') -
    ½|v'|²)). The number of steps is n = ⌈u T / h⌉, at most `most_steps`, where u ~ U(0, 1) is part
    of the
    noise and one number for all chains of a batch: they all take n gradients, that at the end being
    the first of the next trajectory. Step sizes over rungs share n, found from their mean.

    The length is found in warm-up from the pooled chains. ChEES, the change in the squared distance
    from the centre,

        C(T) = ¼ E[D²],     D = |z' - μ'|² - |z - μ|²,     z = L⁻¹x,

    is to be large for its cost: T maximises C(T)/√T. Adam (rate 0.025, β₁ = 0, β₂ = 0.95) ascends
    on log T along the mean over the chains, weighted by their acceptance probabilities α, of

        √T ∂(C/√T)/∂log T = t D (z' - μ')·v' - D²/8,     t = n h,

    μ the mean over the chains and μ' the mean weighted by α. It needs at least two chains. For a
    standard normal, where z(t) = z cos t + v sin t and C ∝ sin² t, the optimum over u is T =
    1.9283. (C alone, as in the paper, gives 2.2467 there, but far
    longer trajectories on curved targets: on a Rosenbrock density of 36 dimensions they cost five
    times what they gain.)

    Arguments:
        step_size: h, in units of x (of whitened x, with a preconditioner); a number or a tensor
            over trailing batch axes. None: found in warm-up from the pooled chains, at the mean
            acceptance 0.651.
        length: T, in the units of h; kept where it is given. None: found in warm-up; where there is
            none, and for step sizes over rungs, trajectories have ⌈8 u⌉ steps.
        most_steps: the longest trajectory, in steps.
        scale: L over the flattened event: None (identity), (*b, d) for a diagonal or, with `dense`,
            (*b, d, d) lower triangular.

    References: Neal 2011, Handbook of Markov Chain Monte Carlo, chapter 5; Hoffman, Radul and
    Sountsov 2021, AISTATS (ChEES; they maximise C, and take the harmonic mean acceptance and a
    quasi-random u); Beskos et al. 2013, Bernoulli 19(5A) (0.651).
    """

    step_size: float | Tensor | None = None
    length: float | None = None
    most_steps: int = 256
    scale: Tensor | None = None
    dense: bool = False
    target_acceptance = 0.651

    def __post_init__(self) -> None:
        check_positive(self.step_size, "step size of Hamiltonian")
        check_positive(self.length, "length of Hamiltonian's trajectories")
        if self.most_steps < 1:
            raise ValueError(
                f"a trajectory has at least one step, got most_steps={self.most_steps}"
            )

    @property
    def learns_length(self) -> bool:
        return self.length is None

    @property
    def gradients_per_step(self) -> float:
        return mean_step_count(self._longest, self.most_steps)

    @property
    def _longest(self) -> float:
        if self.length is None or self.step_size is None:
            return DEFAULT_MAX_STEPS
        return self.length / float(torch.as_tensor(self.step_size).mean())

    def guess(self, d: int) -> float:
        return 1.7 * d ** (-1 / 4)

    def guess_length(self, d: int) -> float:
        return NORMAL_LENGTH

    def noise(
        self, state: State, generator: torch.Generator | None = None, steps: int | None = None
    ) -> TrajectoryNoise:
        return draw_jittered(state, generator, steps)

    def step(self, energy: Energy, state: State, noise: TrajectoryNoise) -> tuple[State, Info]:
        return self.learn(energy, state, noise)[:2]

    def learn(
        self, energy: Energy, state: State, noise: TrajectoryNoise
    ) -> tuple[State, Info, Feedback]:
        event = state.x.ndim - state.energy.ndim
        h = steps_of(self.step_size, state, "Hamiltonian")
        n = step_count(noise.jitter, self._longest, self.most_steps)
        proposed, velocity = self.leapfrog(energy, state, noise.normal, per_event(h, event), n)
        before, after = (flat(v, event).square().sum(-1) / 2 for v in (noise.normal, velocity))
        log_ratio = state.energy - proposed.energy + before - after
        moved, info = decide(state, proposed, log_ratio, noise.uniform, -log_ratio)
        # a trajectory that runs off to infinity ends at energy +inf, but not because it left the
        # support: it has been kicked
        lost = (proposed.energy == math.inf) & ~(after - before < DIVERGENT)
        info = info._replace(divergent=info.divergent | lost)
        return (
            moved,
            info,
            Feedback(
                info.acceptance, Trajectory(state.x, proposed.x, flat(velocity, event), n * h)
            ),
        )

    def leapfrog(
        self, energy: Energy, state: State, velocity: Tensor, h: Tensor, n: int
    ) -> tuple[State, Tensor]:
        # velocity (*batch, *event), h broadcast against it
        """State and velocity after n steps."""
        event = state.x.ndim - state.energy.ndim
        velocity = velocity - h / 2 * transposed(state.gradient, self.scale, self.dense, event)
        for i in range(n):
            state = evaluate(
                energy, state.x + scaled(h * velocity, self.scale, self.dense, event), True
            )
            kick = h if i < n - 1 else h / 2
            velocity = velocity - kick * transposed(state.gradient, self.scale, self.dense, event)
        return state, velocity

    def slope(self, trajectory: Trajectory, acceptance: Tensor) -> Tensor:
        return chees_slope(trajectory, acceptance, self.scale, self.dense)

    def lengthened(self, length: float) -> Hamiltonian:
        return replace(self, length=length)
