"""Independence Metropolis: global moves drawn from another energy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from poe.algebra import support as sets
from poe.algebra.capabilities import Samples, as_a
from poe.algebra.energy import Energy
from poe.kernels.base import Kernel
from poe.kernels.moves import decide, evaluate, has_gradient
from poe.kernels.state import Info, State


class ProposalNoise(NamedTuple):
    """Draws of the proposal (*batch, *event), and uniform numbers (*batch) for the decisions."""

    fresh: Tensor
    uniform: Tensor


@dataclass(frozen=True)
class IndependentMetropolis(Kernel):
    """Independence Metropolis with a proposal q that draws exactly: x' ~ q, whatever x is, taken by
    each chain independently with probability

        min(1, w(x') / w(x)),     w = exp(-E) / q,

    so q need be known only up to a constant. A step takes one energy of the target (with its
    gradient, from a state that holds one) and two of the proposal. Nothing is tuned. Where
    q / exp(-E) is at least ε everywhere, a chain forgets its start at the rate (1 - ε) per step;
    where it is not bounded below, chains stay for a long time where w is large.

    The proposal must cover the target: points with exp(-E) > 0 and q = 0 are never proposed, and a
    chain that starts there stays. `init` refuses a proposal whose support is known to be too small;
    in general it is unknown.

    Reference: Tierney 1994, Annals of Statistics 22(4).

    Raises TypeError where the proposal cannot draw.
    """

    proposal: Energy
    needs_gradient = False
    gradients_per_step = 0.0

    def __post_init__(self) -> None:
        if as_a(self.proposal, Samples) is None:
            raise TypeError(
                f"IndependentMetropolis needs a proposal that draws exactly, and {self.proposal} "
                "does not: give a Density, such as a flow or a normal, or a composition with a "
                "closed form through poe.simplify"
            )

    def check(self, energy: Energy) -> None:
        if self.proposal.event_shape != energy.event_shape:
            raise ValueError(
                f"the proposal {self.proposal} has event shape {tuple(self.proposal.event_shape)}, "
                f"not {tuple(energy.event_shape)} as {energy}"
            )
        if sets.covers(self.proposal.support, energy.support) is False:
            raise ValueError(
                f"the proposal {self.proposal} draws from {self.proposal.support!r} only, and "
                f"{energy} is on {energy.support!r}"
            )

    def noise(
        self, state: State, generator: torch.Generator | None = None, steps: int | None = None
    ) -> ProposalNoise:
        shape = state.energy.shape if steps is None else (steps, *state.energy.shape)
        proposal = as_a(self.proposal, Samples)
        assert proposal is not None
        fresh = proposal.sample(tuple(shape), generator=generator)
        like = state.energy
        return ProposalNoise(
            fresh.to(state.x),
            torch.rand(shape, generator=generator, dtype=like.dtype, device=like.device),
        )

    def step(self, energy: Energy, state: State, noise: ProposalNoise) -> tuple[State, Info]:
        proposed = evaluate(energy, noise.fresh, has_gradient(state))
        with torch.no_grad():
            here, there = self.proposal(state.x), self.proposal(noise.fresh)
        return decide(
            state, proposed, (there - proposed.energy) - (here - state.energy), noise.uniform
        )

    def through(self, around: Callable[[Energy], Energy]) -> IndependentMetropolis:
        return replace(self, proposal=around(self.proposal))
