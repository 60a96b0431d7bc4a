"""Microcanonical dynamics: trajectories of unit speed that bend along the gradient,
Metropolis-adjusted or not."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from poe.algebra.energy import Energy
from poe.kernels.base import Preconditioned
from poe.kernels.moves import (
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

# nats² a dimension: the mean square energy error of a step that the unadjusted form is tuned to
ENERGY_ERROR = 5e-4


class DirectedState(NamedTuple):
    """Chains on their way: `State`, and directions (*batch, d) of unit length, 0 before the first
    step."""

    x: Tensor
    energy: Tensor
    gradient: Tensor
    direction: Tensor


@dataclass(frozen=True)
class Microcanonical(Preconditioned):
    """Microcanonical Hamiltonian or Langevin dynamics with step size h and preconditioner M = L Lᵀ,
    for a direction u, |u| = 1, in d dimensions, at least 2. A step turns u for h/2, moves x ← x + h
    L u, and turns u for h/2 again. The turn for a time s is exact at fixed g = Lᵀ∇E(x), e = -g/|g|,
    δ = s|g|/(d - 1):

        u ← (u + e (sinh δ + e·u (cosh δ - 1))) / (cosh δ + e·u sinh δ),     K ← K + (d - 1)
        log(cosh δ + e·u sinh δ),

    the change of K, in nats, being minus the log-determinant of the turn on the sphere.

    With `metropolis`, u is drawn anew, uniformly, for each trajectory of n = ⌈w T / h⌉ moves, at
    most `most_steps` (w ~ U(0, 1) part of the noise, one number for all chains of a batch), whose
    end is taken by each chain independently with probability min(1, exp(-ΔE - ΔK)). A step takes n
    gradients.

    Without it, each step is one move and one gradient, after u ← (u + ν ξ)/|u + ν ξ|, ξ ~ N(0, I),
    ν² = (exp(2h / T) - 1)/d. Every
    finite move is taken, so the law of the chain has a bias and the kernel is not exact: the
    variance of a whitened normal is too large by about h²/(12 d) of itself, 3 % at the step size
    found in warm-up.

    Arguments:
        step_size: h, a distance in units of x (of whitened x, with a preconditioner); a number, or
            with `metropolis` a tensor over trailing batch axes. None: found in warm-up from the
            pooled chains, at the mean acceptance 0.9; without `metropolis` so that the mean over
            the chains of (ΔE + ΔK)² is 0.0005 d.
        length: T, in the units of h: the longest trajectory or, without `metropolis`, the distance
            over which the direction is forgotten. None: found in warm-up, as for `Hamiltonian`,
            from 1.9283 sqrt(d), which is best for a whitened normal; that length itself where there
            is no warm-up, and for step sizes over rungs; without `metropolis` sqrt(d).
        metropolis: whether to accept or reject.
        most_steps: the longest trajectory, in steps.
        scale: L over the flattened event: None (identity), (*b, d) for a diagonal or, with `dense`,
            (*b, d, d) lower triangular.

    References: Robnik, De Luca, Silverstein and Seljak 2023, JMLR 24 (the dynamics, ν, sqrt(d) and
    0.0005, theirs for an integrator of two gradients a step); Robnik, Cohn-Gordon and Seljak 2025,
    arXiv 2503.01707 (the adjusted form, 0.9); Ver Steeg and Galstyan 2021, NeurIPS (the turn).
    """

    step_size: float | Tensor | None = None
    length: float | None = None
    metropolis: bool = True
    most_steps: int = 256
    scale: Tensor | None = None
    dense: bool = False

    def __post_init__(self) -> None:
        check_positive(self.step_size, "step size of Microcanonical")
        check_positive(self.length, "length of Microcanonical's trajectories")
        if self.most_steps < 1:
            raise ValueError(
                f"a trajectory has at least one step, got most_steps={self.most_steps}"
            )

    @property
    def exact(self) -> bool:
        return self.metropolis

    @property
    def compiles(self) -> bool:
        return not self.metropolis

    @property
    def plain(self) -> bool:
        return self.metropolis

    @property
    def target_acceptance(self) -> float:
        return 0.9 if self.metropolis else 0.5

    @property
    def gradients_per_step(self) -> float:
        """With `metropolis`, in the dimension of the preconditioner, or in two where there is
        none."""
        if not self.metropolis or self.step_size is None:
            return 1.0
        return mean_step_count(
            self._longest(2 if self.scale is None else self.scale.shape[-1]), self.most_steps
        )

    @property
    def learns_length(self) -> bool:
        return self.metropolis and self.length is None

    def guess(self, d: int) -> float:
        return 1.6 * d ** (1 / 4) if self.metropolis else 0.6 * math.sqrt(d)

    def guess_length(self, d: int) -> float:
        return (NORMAL_LENGTH if self.metropolis else 1.0) * math.sqrt(d)

    def check(self, energy: Energy) -> None:
        if energy.event_shape.numel() < 2:
            raise ValueError(
                f"microcanonical dynamics needs two dimensions or more, and {energy} has one: use "
                "Hamiltonian()"
            )

    def init(self, energy: Energy, x: Tensor) -> Any:  # x: (*batch, *event)
        self.check(energy)
        state = evaluate(energy, x.detach(), True)
        still = state.x.new_zeros(*state.energy.shape, energy.event_shape.numel())
        return state if self.metropolis else DirectedState(*state, still)

    def noise(
        self, state: Any, generator: torch.Generator | None = None, steps: int | None = None
    ) -> TrajectoryNoise:
        return draw_jittered(state, generator, steps)

    def step(self, energy: Energy, state: Any, noise: TrajectoryNoise) -> tuple[Any, Info]:
        return self.learn(energy, state, noise)[:2]

    def learn(
        self, energy: Energy, state: Any, noise: TrajectoryNoise
    ) -> tuple[Any, Info, Feedback]:
        here = State(*state[:3])
        event = here.x.ndim - here.energy.ndim
        h = steps_of(self.step_size, here, "Microcanonical")
        normal = flat(noise.normal, event)
        d = normal.shape[-1]
        if self.metropolis:
            n = step_count(noise.jitter, self._longest(d), self.most_steps)
            proposed, ahead, kinetic = self.drift(energy, here, _unit(normal), h, n)
            error = proposed.energy - here.energy + kinetic
            # where u is -e to the last digit, rounding loses K: it is no number then
            moved, info = decide(
                here, proposed, (-error).where(kinetic != -math.inf, math.nan), noise.uniform, error
            )
            return (
                moved,
                info,
                Feedback(info.acceptance, Trajectory(here.x, proposed.x, ahead, n * h)),
            )
        nu = ((2 * h / (self.length or self.guess_length(d))).expm1() / d).sqrt()
        direction = _unit(state.direction + nu.unsqueeze(-1) * normal)
        proposed, ahead, kinetic = self.drift(energy, here, direction, h, 1)
        error = proposed.energy - here.energy + kinetic
        moved, info = decide(here, proposed, None, noise.uniform, error)
        turned = torch.where(info.accepted.unsqueeze(-1), ahead, -direction)
        signal = torch.where(
            info.accepted & error.isfinite(), error.square() / (d * ENERGY_ERROR), 1e6
        )
        return DirectedState(*moved, turned), info, Feedback(signal)

    def drift(
        self, energy: Energy, state: State, direction: Tensor, h: Tensor, n: int
    ) -> tuple[State, Tensor, Tensor]:
        # direction (*batch, d), h (*batch)
        """State, direction and change of K after n steps."""
        event = state.x.ndim - state.energy.ndim
        kinetic = torch.zeros_like(state.energy)
        for i in range(n + 1):
            gradient = flat(transposed(state.gradient, self.scale, self.dense, event), event)
            direction, change = turn(direction, gradient, h if 0 < i < n else h / 2)
            kinetic = kinetic + change
            if i < n:
                move = (per_event(h, 1) * direction).reshape(state.x.shape)
                state = evaluate(
                    energy, state.x + scaled(move, self.scale, self.dense, event), True
                )
        return state, direction, kinetic

    def statistic(self, signal: Tensor) -> Tensor:
        """Without `metropolis`, 1/(1 + m^(1/6)) for the mean square error m in units of its target:
        the error grows as h³."""
        return signal if self.metropolis else 1 / (1 + signal ** (1 / 6))

    def slope(self, trajectory: Trajectory, acceptance: Tensor) -> Tensor:
        return chees_slope(trajectory, acceptance, self.scale, self.dense)

    def lengthened(self, length: float) -> Microcanonical:
        return replace(self, length=length)

    def walkers(self, state: Any) -> State:
        return State(*state[:3])

    def _longest(self, d: int) -> float:
        assert self.step_size is not None
        return (self.length or self.guess_length(d)) / float(torch.as_tensor(self.step_size).mean())


def turn(direction: Tensor, gradient: Tensor, time: Tensor) -> tuple[Tensor, Tensor]:
    # (*batch, d), (*batch, d), (*batch) -> (*batch, d), (*batch)
    """The direction after the turn, and the change of K in nats; no exponential grows, however
    steep the gradient."""
    d = gradient.shape[-1]
    norm = gradient.norm(dim=-1, keepdim=True)
    away = -gradient / norm.clamp(min=torch.finfo(norm.dtype).tiny)
    delta = time.unsqueeze(-1) * norm / (d - 1)
    along = (direction * away).sum(-1, keepdim=True).clamp(-1, 1)
    decay = (-delta).exp()
    turned = 2 * decay * direction + away * (1 - decay) * (1 + decay + along * (1 - decay))
    change = (d - 1) * (delta + ((1 - along) / 2 * (-2 * delta).expm1()).log1p())
    return _unit(turned), change.squeeze(-1)


def _unit(v: Tensor) -> Tensor:
    return v / v.norm(dim=-1, keepdim=True).clamp(min=torch.finfo(v.dtype).tiny)
