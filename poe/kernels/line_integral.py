"""Line-integral Metropolis: Langevin where some experts have a score and no energy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import singledispatch
from typing import Any, NamedTuple

import torch
from torch import Tensor

from poe.algebra.capabilities import Counts, ScoreOnly, Watched, as_a
from poe.algebra.energy import Energy
from poe.algebra.product import Product, product
from poe.algebra.text import leaves
from poe.kernels.base import Preconditioned
from poe.kernels.moves import (
    check_positive,
    close,
    decide,
    flat,
    langevin_densities,
    langevin_move,
    per_event,
    steps_of,
)
from poe.kernels.state import Info, Noise, State

# interior nodes on [0, 1] with their weights, and the weight of either end: Gauss-Lobatto rules,
# exact to degree 2·interior + 1
LOBATTO: tuple[tuple[float, tuple[tuple[float, float], ...]], ...] = (
    (1 / 2, ()),
    (1 / 6, ((1 / 2, 2 / 3),)),
    (1 / 12, ((1 / 2 - 0.05**0.5, 5 / 12), (1 / 2 + 0.05**0.5, 5 / 12))),
    (
        1 / 20,
        ((1 / 2 - 21**0.5 / 14, 49 / 180), (1 / 2, 16 / 45), (1 / 2 + 21**0.5 / 14, 49 / 180)),
    ),
)
REFERENCE_PANELS = 8  # panels of the line from the origin, each by the rule with one interior node


class ScoreState(NamedTuple):
    """Positions, energies up to a constant and gradients, as `State`; the gradient of the experts
    without an energy, (*batch, *event); and the energy of the others, (*batch), in nats."""

    x: Tensor
    energy: Tensor
    gradient: Tensor
    scored: Tensor
    known: Tensor


@dataclass(frozen=True)
class LineIntegral(Preconditioned):
    """Preconditioned Langevin, accepted without an energy: E = K + S, where K is known and of S
    only the gradient,

        x' = x - h M ∇E(x) + sqrt(2h) L ξ,     ξ ~ N(0, I),     M = L Lᵀ,
        a = -ΔK - ΔS + ½|ξ|² - ½|ξ - sqrt(h/2) Lᵀ(∇E(x) + ∇E(x'))|²,     ΔK = K(x') - K(x),
        ΔS = (x' - x)·Σ_k w_k ∇S(x + τ_k(x' - x)),     accepted with probability min(1, exp a).

    τ and w are a Gauss-Lobatto rule on [0, 1] with both ends and `nodes` interior nodes. ΔS changes
    sign with the direction. For a score that is a gradient it is the difference of S up to a
    derivative of S somewhere along the line, d = |x' - x|:

    | nodes | rule        | ΔS is too large by  |
    |-------|-------------|---------------------|
    | 0     | trapezium   | S⁽³⁾ d³ / 12        |
    | 1     | Simpson     | S⁽⁵⁾ d⁵ / 2880      |
    | 2     | four points | S⁽⁷⁾ d⁷ / 1512000   |
    | 3     | five points | S⁽⁹⁾ d⁹ / 1422489600 |

    It is never exact: that error biases the law of the chain, and so does the part of a network's
    score that is not a gradient. Without experts that have only a score it is
    `Langevin(metropolis=True)`.

    The energy of a state is K plus the line integral of ∇S from the origin to the start of the
    chain and then along its moves: that of the target up to a constant, where the score is a
    gradient. R-hat of the energies is large where it is not.

    Arguments:
        step_size: h, as of `Langevin`; None: found in warm-up at the acceptance 0.574.
        nodes: from 0 to 3, one evaluation each; all evaluations of a step are one batch for the
            network.
        scale, dense: as of `Langevin`.

    Raises TypeError for a mixture or contrast over an expert that has only a score, whose gradient
    needs energies too; ValueError on a constrained support.

    References: Sjöberg, Lindqvist, Önnheim, Jirstrand and Svensson 2026, Entropy 28(3) (tests by
    line integrals of scores); Abramowitz and Stegun 1964, 25.4.32 (the rules); Roberts and
    Rosenthal 1998, J. R. Statist. Soc. B 60(1) (0.574).
    """

    step_size: float | Tensor | None = None
    nodes: int = 1
    scale: Tensor | None = None
    dense: bool = False
    exact = False
    plain = False
    target_acceptance = 0.574

    def __post_init__(self) -> None:
        check_positive(self.step_size, "step size of LineIntegral", "x squared")
        if isinstance(self.nodes, bool) or self.nodes not in range(len(LOBATTO)):
            raise ValueError(
                f"a line integral has from 0 to {len(LOBATTO) - 1} nodes between its ends, not "
                f"{self.nodes}"
            )

    @property
    def gradients_per_step(self) -> float:
        return 1.0 + self.nodes

    def guess(self, d: int) -> float:
        return 1.36 * d ** (-1 / 3)

    def through(self, around: Callable[[Energy], Energy]) -> LineIntegral:
        raise ValueError(
            "LineIntegral moves on all of R^n: a target with a constrained support needs an expert "
            "with an energy"
        )

    def walkers(self, state: ScoreState) -> State:
        return State(*state[:3])

    def agrees(self, energy: Energy, state: ScoreState) -> bool:
        """Whether the gradients that a state holds are those of the target, up to rounding."""
        return close(energy.value_and_grad(state.x)[1], state.gradient)

    def init(self, energy: Energy, x: Tensor) -> ScoreState:  # x: (*batch, *event)
        known, scored = divided(energy)
        x = x.detach()
        value, slope = _evaluated(known, x, len(energy.event_shape))
        if scored is None:
            return ScoreState(x, value, slope, torch.zeros_like(x), value)
        event, panels = len(energy.event_shape), 2 * REFERENCE_PANELS
        score = scored.value_and_grad(x)[1]
        line = torch.zeros_like(value)
        # composite Simpson from the origin; one node at a time, as x may be large
        for i in range(panels + 1):
            weight = (1 if i in (0, panels) else 4 if i % 2 else 2) / (3 * panels)
            at = score if i == panels else scored.value_and_grad(i / panels * x)[1]
            line = line + weight * flat(at * x, event).sum(-1)
        return ScoreState(x, value + line, slope + score, score, value)

    def step(self, energy: Energy, state: ScoreState, noise: Noise) -> tuple[ScoreState, Info]:
        event, metric = state.x.ndim - state.energy.ndim, (self.scale, self.dense)
        h = steps_of(self.step_size, state, "LineIntegral", "x squared")
        move = langevin_move(state.gradient, noise.normal, h, *metric)
        known, scored = divided(energy)
        value, slope = _evaluated(known, state.x + move, event)
        rise, score = value - state.known, state.scored
        if scored is not None:
            score, change = self.integrate(scored, state, move)
            rise, slope = rise + change, slope + score
        counter = as_a(energy, Counts)
        if counter is not None:
            counter.count(state.energy.numel(), self)
        forward, reverse = langevin_densities(state.gradient, slope, noise.normal, h, *metric)
        proposed = State(state.x + move, state.energy + rise, slope)
        moved, info = decide(
            State(*state[:3]), proposed, forward - reverse - rise, noise.uniform, rise
        )
        taken = per_event(info.accepted, event)
        return ScoreState(
            *moved,
            torch.where(taken, score, state.scored),
            torch.where(info.accepted, value, state.known),
        ), info

    def integrate(self, scored: Energy, state: ScoreState, move: Tensor) -> tuple[Tensor, Tensor]:
        # (*batch, *event) -> (*batch, *event), (*batch)
        """∇S at the end of the move, and ΔS along it, from one batch."""
        end, inner = LOBATTO[self.nodes]
        points = torch.stack([state.x + at * move for at in (*(at for at, _ in inner), 1.0)])
        scores = scored.value_and_grad(points)[1]
        total = end * (state.scored + scores[-1])
        for (_, weight), score in zip(inner, scores, strict=False):
            total = total + weight * score
        return scores[-1], flat(total * move, state.x.ndim - state.energy.ndim).sum(-1)


def divided(energy: Energy) -> tuple[Energy | None, Energy | None]:
    """The factors with an energy, and those with only a score; None where there are none.

    Raises TypeError where a mixture or contrast rests on an expert that has only a score.
    """
    while (watcher := as_a(energy, Watched)) is not None:
        energy = watcher.watched
    lacking = [leaf for leaf in leaves(energy) if leaf.can(ScoreOnly)]
    if not lacking:
        return energy, None
    if energy is lacking[0]:
        return None, energy
    return _divided(energy, lacking[0])


@singledispatch
def _divided(energy: Energy, lacking: Energy) -> tuple[Energy | None, Energy | None]:
    """`divided` for a composition in which an expert lacks an energy."""
    if len(energy.parts) == 1:  # a shift or a change of variables
        known, scored = (
            None if part is None else energy.rebuild([part]) for part in divided(energy.parts[0])
        )
        return known, scored
    raise TypeError(
        f"{energy} weighs its parts by their energies, and {lacking} has only a score: `|` and `-` "
        "need experts with an energy, while `&`, `/` and `**` do not"
    )


@_divided.register
def _(energy: Product, lacking: Energy) -> tuple[Energy | None, Energy | None]:
    parts = [(term.power, divided(term.energy)) for term in energy.terms if term.power]
    known, scored = (
        [(power, both[side]) for power, both in parts if both[side] is not None] for side in (0, 1)
    )
    return _product(known), _product(scored)


def _product(factors: list[tuple[float, Any]]) -> Energy | None:
    """The product of (power, energy), None of none."""
    powers, energies = [power for power, _ in factors], [energy for _, energy in factors]
    return product(energies, powers) if energies else None


def _evaluated(known: Energy | None, x: Tensor, event: int) -> tuple[Tensor, Tensor]:
    # (*batch, *event) -> (*batch), (*batch, *event)
    """K and its gradient; 0 where there is none."""
    if known is None:
        return x.new_zeros(x.shape[: x.ndim - event]), torch.zeros_like(x)
    return known.value_and_grad(x)
