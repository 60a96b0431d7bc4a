"""Metropolis moves between values of discrete coordinates: many sites at once by gradients, one
site by gradients, random flips."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from poe.algebra.energy import Energy
from poe.kernels.base import Kernel
from poe.kernels.moves import check_positive, decide, evaluate, has_gradient, per_event, steps_of
from poe.kernels.state import Info, State
from poe.spaces.conditionals import Conditionals
from poe.spaces.sites import Sites, pick, sites_of, vectors


class SiteNoise(NamedTuple):
    """Uniform numbers for what is proposed, (*batch, ...), and for the decisions, (*batch)."""

    proposal: Tensor
    decision: Tensor


class Neighbourhood(NamedTuple):
    """A state; the index of the value of each site, (*batch, n); and the energy that changing a
    site to each of its values would add, to first order or exactly, (*batch, n, values), +inf where
    there is no such value."""

    state: State
    place: Tensor
    rise: Tensor


def neighbourhood(energy: Energy, state: State, sites: Sites) -> Neighbourhood:
    """The energies of neighbours of a state. For floating-point x: the slope of E along each site
    times the change, from one gradient. For whole numbers: the exact change, from the conditionals
    of the sites."""
    event = state.x.ndim - state.energy.ndim
    place = sites.places(state.x, event)
    if state.x.is_floating_point():
        if not has_gradient(state):
            state = State(state.x, *energy.value_and_grad(state.x))
        values, inside = sites.values(state.x)
        rise = vectors(state.gradient, event).unsqueeze(-1) * (
            values - vectors(state.x, event).unsqueeze(-1)
        )
        return Neighbourhood(state, place, rise.masked_fill(~inside, math.inf))
    known = Conditionals(energy)
    with torch.no_grad():
        logits = known.logits(state.x, torch.arange(place.shape[-1], device=place.device))
    if known.sites.binary:
        logits = torch.stack([torch.zeros_like(logits), logits], -1)
    return Neighbourhood(state, place, logits.gather(-1, place.unsqueeze(-1)) - logits)


def at(values: Tensor, place: Tensor) -> Tensor:  # (*batch, n, values), (*batch, n) -> (*batch, n)
    """The entry of each site's own value."""
    return values.gather(-1, place.unsqueeze(-1)).squeeze(-1)


class Informed(Kernel):
    """Base of both gradient-based kernels, which evaluate the gradients that they need themselves,
    once a step, at x'."""

    needs_gradient = False

    def check(self, energy: Energy) -> None:
        """Raises ValueError where a coordinate has no finite number of whole values."""
        sites_of(energy)

    def init(self, energy: Energy, x: Tensor) -> State:  # x: (*batch, *event)
        self.check(energy)
        return evaluate(energy, x.detach(), x.is_floating_point())


@dataclass(frozen=True)
class DiscreteLangevin(Informed):
    """Langevin proposals on a discrete space, Metropolis-adjusted (DMALA), with step size h. All
    sites move at once, each from

        q_i(v | x) ∝ exp(-½ d_i(v) - (v - x_i)²/(2h)),     d_i(v) = ∂E/∂x_i · (v - x_i),

    over the values v of site i, for points that are floating numbers (bits, spins). For whole
    numbers, which have no slopes, d_i(v) is the exact change of E, from the conditionals of the
    sites, and (v - x_i)²/(2h) is 1/h for each v ≠ x_i, the distance of one-hot vectors. x' is taken
    by each chain independently with probability

        min(1, exp(E(x) - E(x')) Π_i q_i(x_i | x') / q_i(x'_i | x)).

    Both products are worked out in full, from the gradient at the point that each starts from. What
    a site cannot be, by its range or because the others exclude it (d_i(v) = +inf), has probability
    0 in the forward and in the reverse proposal.

    Arguments:
        step_size: h, in units of x²; a number or a tensor over trailing batch axes. None: found in
            warm-up from the pooled chains, at the acceptance 0.574.

    References: Zhang, Liu and Liu 2022, ICML (DMALA); Zanella 2020, JASA 115 (the ½ that balances).
    """

    step_size: float | Tensor | None = None
    target_acceptance = 0.574

    def __post_init__(self) -> None:
        check_positive(self.step_size, "step size of DiscreteLangevin", "x squared")

    def guess(self, d: int) -> float:
        return 1.0

    def noise(
        self, state: State, generator: torch.Generator | None = None, steps: int | None = None
    ) -> SiteNoise:
        return _uniforms(state, (state.x.shape[state.energy.ndim :].numel(),), generator, steps)

    def step(self, energy: Energy, state: State, noise: SiteNoise) -> tuple[State, Info]:
        sites, event = sites_of(energy), state.x.ndim - state.energy.ndim
        here = neighbourhood(energy, state, sites)
        forward = self.log_proposal(here, sites)
        place = pick(forward, noise.proposal)
        x = sites.put(state.x, torch.arange(place.shape[-1], device=place.device), place, event)
        there = neighbourhood(energy, evaluate(energy, x, x.is_floating_point()), sites)
        reverse = self.log_proposal(there, sites)
        log_q = at(reverse, here.place).sum(-1) - at(forward, place).sum(-1)
        return decide(
            here.state, there.state, here.state.energy - there.state.energy + log_q, noise.decision
        )

    def log_proposal(self, local: Neighbourhood, sites: Sites) -> Tensor:  # -> (*batch, n, values)
        """log q_i(v | x)."""
        x, like = local.state.x, local.rise
        h = steps_of(self.step_size, local.state, "DiscreteLangevin", "x squared", like.dtype)
        gap = torch.arange(sites.max_count, device=x.device) - local.place.unsqueeze(-1)
        distance = (
            (sites.step * gap).square() / 2 if x.is_floating_point() else (gap != 0).to(like.dtype)
        )
        return (-0.5 * like - distance / per_event(h, 2)).log_softmax(-1)

    def tuned(
        self, step_size: float | Tensor, scale: Tensor | None = None, dense: bool = False
    ) -> DiscreteLangevin:
        return replace(self, step_size=step_size)


@dataclass(frozen=True)
class GibbsWithGradients(Informed):
    """One site at a time, chosen with its new value by gradients: (i, v) is drawn from

        q(i, v | x) ∝ exp(-½ d_i(v)),     v ≠ x_i,     d_i as for `DiscreteLangevin`,

    and taken by each chain independently with probability min(1, exp(E(x) - E(x')) q(i, x_i | x') /
    q(i, v | x)). Nothing to tune.

    Reference: Grathwohl, Swersky, Hashemi, Duvenaud and Maddison 2021, ICML.
    """

    def noise(
        self, state: State, generator: torch.Generator | None = None, steps: int | None = None
    ) -> SiteNoise:
        return _uniforms(state, (1,), generator, steps)

    def step(self, energy: Energy, state: State, noise: SiteNoise) -> tuple[State, Info]:
        sites, event = sites_of(energy), state.x.ndim - state.energy.ndim
        here = neighbourhood(energy, state, sites)
        forward = self.log_proposal(here)
        # one number for each pair (site, value)
        chosen = pick(forward.unsqueeze(-2), noise.proposal)
        site, value = chosen // sites.max_count, chosen % sites.max_count
        place = here.place.scatter(-1, site, value)
        x = sites.put(state.x, torch.arange(place.shape[-1], device=place.device), place, event)
        there = neighbourhood(energy, evaluate(energy, x, x.is_floating_point()), sites)
        back = site * sites.max_count + here.place.gather(-1, site)
        log_q = (self.log_proposal(there).gather(-1, back) - forward.gather(-1, chosen)).squeeze(-1)
        return decide(
            here.state, there.state, here.state.energy - there.state.energy + log_q, noise.decision
        )

    def log_proposal(self, local: Neighbourhood) -> Tensor:  # -> (*batch, n · values)
        """log q(i, v | x), flattened over sites and values."""
        rise = local.rise.scatter(-1, local.place.unsqueeze(-1), math.inf)
        return (-0.5 * rise).flatten(-2).log_softmax(-1)


@dataclass(frozen=True)
class Flip(Kernel):
    """Random-walk Metropolis on a discrete space: `count` times in a row a site is chosen
    uniformly, and changed to one of its other values, uniformly too; the result is taken by each
    chain independently with probability min(1, exp(E(x) - E(x'))). A site may be chosen again. One
    energy a step, no gradient, nothing to tune.

    Reference: Metropolis et al. 1953, J. Chem. Phys. 21(6).
    """

    count: int = 1
    needs_gradient = False
    gradients_per_step = 0.0

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ValueError(f"Flip changes at least one site, got count={self.count}")

    def check(self, energy: Energy) -> None:
        """Raises ValueError where a coordinate has no finite number of whole values."""
        sites_of(energy)

    def noise(
        self, state: State, generator: torch.Generator | None = None, steps: int | None = None
    ) -> SiteNoise:
        return _uniforms(state, (self.count, 2), generator, steps)

    def step(self, energy: Energy, state: State, noise: SiteNoise) -> tuple[State, Info]:
        sites, event = sites_of(energy), state.x.ndim - state.energy.ndim
        place = sites.places(state.x, event)
        counts = sites.counts.to(place.device)
        for uniform in noise.proposal.unbind(-2):
            site = (uniform[..., :1] * len(counts)).long().clamp(max=len(counts) - 1)
            others = (counts[site] - 1).clamp(min=1)
            jump = 1 + torch.minimum((uniform[..., 1:] * others).long(), others - 1)
            place = place.scatter(-1, site, (place.gather(-1, site) + jump) % counts[site])
        x = sites.put(state.x, torch.arange(place.shape[-1], device=place.device), place, event)
        proposed = evaluate(energy, x, has_gradient(state))
        return decide(state, proposed, state.energy - proposed.energy, noise.decision)


def _uniforms(
    state: State, shape: tuple[int, ...], generator: torch.Generator | None, steps: int | None
) -> SiteNoise:
    """Uniform numbers (*batch, *shape) and (*batch), of one step or of `steps` along a leading
    axis."""
    like, lead = state.energy, () if steps is None else (steps,)
    sizes = ((*lead, *like.shape, *shape), (*lead, *like.shape))
    return SiteNoise(
        *(
            torch.rand(size, generator=generator, dtype=like.dtype, device=like.device)
            for size in sizes
        )
    )
