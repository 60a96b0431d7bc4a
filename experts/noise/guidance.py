"""The change of a composition's log-density along a step of reverse diffusion: of one expert by its
score, of all others relative to it.

Let p_k be the density of data under noise σ_k, q(x | x') = N(x; x', δ) what takes it back to level
k - 1, δ = σ²_{k-1} - σ²_k, and r the reverse of q. By Bayes' rule p_{k-1}(x) r(x' | x) = p_k(x')
q(x | x'), and to first order in δ

    r(x' | x) = N(x'; x - δ g, v),     g = -∇log p_{k-1}(x),     v = δ σ²_k / σ²_{k-1},

so that log p_k(x') - log p_{k-1}(x) = log r(x' | x) - log q(x | x') needs no value of log p: a
single expert, whose r proposes, has weight 1, which is plain reverse diffusion. In a product Π
p_i^w_i with Σ w_i = 1 the reference takes this: the first expert that is divided by (the prior of a
conjunction), else the first one, without its concept. The others differ from it by energies at both
ends, as the two sides of a contrast do. Below the level of noise at which an expert's energies are
too rough (`Rough`), when the content of a picture is settled, it has weight 1: particles far from
all data would win by energies there.

Where the reference's own energy has another Z than the density that its score belongs to
(`Scored`), log Z is that of the composition of densities: of a conjunction of concepts, how much
more often they occur together than independent ones.

Why not by energies throughout: D, what a network takes for the picture behind the noise, is wrong
by |D - x₀| in all, and then the energy by about |D - x₀| √(Σε²/n) / σ: some ten nats for pictures
at little noise, and particles that are weighed by them end as the picture with the luckiest error.
Scores suffer less, and energies of concepts of one network, at one x, share that error.

Reference: Skreta, Akhound-Sadegh, Ohanesian et al. 2025, ICML (Feynman-Kac correctors: weights of
products from scores alone).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import singledispatch
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.nn.functional import softplus

from poe.algebra.capabilities import NoiseConditional, as_a
from poe.algebra.contrast import Contrast
from poe.algebra.energy import Energy
from poe.algebra.evaluation import together_with_gradients
from poe.algebra.product import Product
from poe.algebra.shifted import Shifted
from poe.spaces.noise import noise_range
from poe.spaces.spread import spread

Values = tuple[Tensor, Tensor]  # energy and gradient


@runtime_checkable
class Concept(Protocol):
    """A noise-conditional energy of a concept: `unconditional` is the same network's without it, at
    the same level and on its scale."""

    unconditional: Any


@runtime_checkable
class Scored(Protocol):
    """A noise-conditional energy that knows the score of noised data better than by its own
    gradient: `scored` is the same energy with minus that score for the gradient of
    `value_and_grad`."""

    scored: Any


@runtime_checkable
class Rough(Protocol):
    """A noise-conditional energy whose values are too inaccurate to be compared with those of
    others below a level of noise, in units of x."""

    rough_below: float


@dataclass(frozen=True)
class Guidance:
    """How particles of a composition follow scores down its levels of noise, and what their weights
    are: the protocol `poe.algebra.capabilities.Guidance`."""

    target: Energy
    follows_scores: bool

    @classmethod
    def of(cls, target: Energy) -> Guidance | None:
        """The guidance of a composition: of products, shifts and contrasts of experts whose own
        spread of noise is that of the whole, so that powers sum to 1, and of experts without noise;
        None for others."""
        ends = [(target.at(sigma), sigma) for sigma in noise_range(target)]
        if not all(_diffuses(energy, spread(energy, sigma) or math.inf) for energy, sigma in ends):
            return None
        return cls(target, any(expert.can(Scored) for expert in _experts(ends[1][0])))

    @property
    def reference(self) -> Energy | None:
        """The expert whose change follows from its score, at the noisiest level; None where that is
        the gradient of its energy."""
        return self.level(max(noise_range(self.target))).reference if self.follows_scores else None

    def level(self, sigma: float) -> GuidedLevel:
        """The composition at a level, by energies at the target."""
        low = min(noise_range(self.target))
        return GuidedLevel(
            self.target.at(sigma), max(sigma, low), scores=self.follows_scores and sigma > 0
        )


class GuidedLevel(Energy):
    """A composition at level σ, whose experts that share a network are evaluated together. With
    `scores`, gradients are minus scores where experts know better ones (`Scored`)."""

    reference: Energy

    def __init__(self, composition: Energy, sigma: float, *, scores: bool = False) -> None:
        super().__init__(composition.event_shape, support=composition.support)
        self.composition = scored(composition) if scores else composition
        self.sigma, self.metropolis = sigma, not scores
        reference = _reference(self.composition)
        assert reference is not None
        concept = as_a(reference, Concept)
        self.reference = reference if concept is None else concept.unconditional
        experts = [*_experts(self.composition), self.reference]
        self._experts = list({id(expert): expert for expert in experts}.values())
        rough = [found.rough_below for e in self._experts if (found := as_a(e, Rough)) is not None]
        self.rough_below = max(rough, default=0.0)

    @property
    def energy(self) -> Energy:
        """What kernels move on: this energy."""
        return self

    def forward(self, x: Tensor) -> Tensor:  # (*batch, *event) -> (*batch)
        return self.composition(x)

    def _value_and_grad(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.evaluate(x)[:2]

    def evaluate(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        # (*batch, *event) -> (*batch), (*batch, *event), (*batch, k), (*batch, *event)
        """Energy and gradient, and what `log_density_change` needs: the energies of the experts,
        and the gradient of the reference."""
        evaluated = together_with_gradients(self._experts, x.detach())
        known = dict(zip(map(id, self._experts), evaluated, strict=True))

        def expert(energy: Energy) -> Values:
            return known[id(energy)] if id(energy) in known else energy.value_and_grad(x)

        energy, gradient = _composed(self.composition, expert)
        void = (energy == math.inf).reshape(energy.shape + (1,) * len(self.event_shape))
        values = torch.stack([known[id(expert)][0] for expert in self._experts], -1)
        return energy, torch.where(void, 0, gradient), values, known[id(self.reference)][1]

    def log_density_change(self, lower: GuidedLevel, high: Any, low: Any) -> Tensor:  # -> (*batch)
        """log p_k(x') - log p_{k-1}(x) in nats, from this level at the particles `high` to a lower
        one at `low`: both have x and `memory`, the last two of `evaluate`."""
        (values, slope), (values_there, _) = high.memory, low.memory
        change = _reversal(self.reference, lower.reference, low.x - high.x, slope)
        return change - (lower.relative(values_there, low.x) - self.relative(values, high.x))

    def unnoised_log_weight(
        self, lower: GuidedLevel, high: Any, low: Any
    ) -> Tensor | None:  # -> (*batch)
        """The log weight of a step to a level at which energies are too rough: that of experts
        without noise. None at other levels."""
        if lower.sigma >= self.rough_below:
            return None
        nothing = torch.zeros_like(high.memory[0])
        return self.relative(nothing, high.x) - lower.relative(nothing, low.x)

    def relative(self, values: Tensor, x: Tensor) -> Tensor:
        # (*batch, k), (*batch, *event) -> (*batch)
        """The energy less that of the reference, in double precision."""
        columns = zip(self._experts, values.unbind(-1), strict=True)
        known = {id(expert): value.double() for expert, value in columns}
        base, no_slope = known[id(self.reference)], values.new_zeros(())

        def expert(energy: Energy) -> Values:
            if id(energy) in known:
                return known[id(energy)] - base, no_slope
            with torch.no_grad():
                return energy(x).double(), no_slope

        return _composed(self.composition, expert)[0]


def scored(energy: Energy) -> Energy:
    """The same energy, its experts with minus their scores for gradients where they know better
    ones (`Scored`)."""
    if energy.parts:
        return energy.rebuild([scored(part) for part in energy.parts])
    expert = as_a(energy, Scored)
    return energy if expert is None else expert.scored


def _reversal(above: Energy, below: Energy, moved: Tensor, gradient: Tensor) -> Tensor:
    """log r - log q of an expert for a step `moved` = x' - x."""
    assert above.growth is not None and below.growth is not None
    event = len(above.event_shape)
    drop, ratio = 0.5 / above.growth - 0.5 / below.growth, above.growth / below.growth
    squares = [
        part.double().flatten(part.ndim - event).square().sum(-1)
        for part in (moved, moved + drop * gradient)
    ]
    return (
        squares[0] / (2 * drop)
        - squares[1] / (2 * drop * ratio)
        - above.event_shape.numel() / 2 * math.log(ratio)
    )


def _experts(energy: Energy) -> list[Energy]:
    """All experts with noise levels."""
    if energy.parts:
        return [expert for part in energy.parts for expert in _experts(part)]
    return [energy] if energy.can(NoiseConditional) else []


@singledispatch
def _diffuses(energy: Energy, spread: float) -> bool:
    """Whether changes of an energy at one level follow from scores; `spread` in units of x."""
    if not energy.can(NoiseConditional):
        return not energy.parts  # a mixture or pullback is no single diffusion
    return energy.growth is not None and math.isclose(energy.growth, 0.5 / spread**2, rel_tol=1e-6)


@_diffuses.register(Product)
@_diffuses.register(Shifted)
@_diffuses.register(Contrast)
def _(energy: Energy, spread: float) -> bool:
    return all(_diffuses(part, spread) for part in energy.parts)


@singledispatch
def _composed(energy: Energy, expert: Callable[[Energy], Values]) -> Values:
    """Energy and gradient of a composition, from those of its experts."""
    return expert(energy)


@_composed.register
def _(energy: Product, expert: Callable[[Energy], Values]) -> Values:
    parts = [_composed(term.energy, expert) for term in energy.terms]
    values = [p * value for p, (value, _) in zip(energy.powers, parts, strict=True)]
    slopes = [p * slope for p, (_, slope) in zip(energy.powers, parts, strict=True)]
    return sum(values[1:], values[0]), sum(slopes[1:], slopes[0])


@_composed.register
def _(energy: Shifted, expert: Callable[[Energy], Values]) -> Values:
    value, slope = _composed(energy.energy, expert)
    return value + energy.offset, slope


@_composed.register
def _(energy: Contrast, expert: Callable[[Energy], Values]) -> Values:
    (value, slope), *unwanted = (_composed(part, expert) for part in energy.parts)
    for strength, (other, down) in zip(energy.strengths, unwanted, strict=True):
        pull = strength * (value - other).sigmoid()
        value = value + strength * softplus(value - other, threshold=40)
        slope = slope + pull.reshape(pull.shape + (1,) * len(energy.event_shape)) * (slope - down)
    return value, slope


@singledispatch
def _reference(energy: Energy) -> Energy | None:
    """The expert whose change follows from its score."""
    return energy if energy.can(NoiseConditional) else None


@_reference.register
def _(energy: Product) -> Energy | None:
    divided_first = sorted(
        zip(energy.powers, energy.terms, strict=True), key=lambda pair: pair[0] >= 0
    )
    found = (_reference(term.energy) for _, term in divided_first)
    return next((expert for expert in found if expert is not None), None)


@_reference.register(Shifted)
@_reference.register(Contrast)
def _(energy: Energy) -> Energy | None:
    return _reference(energy.parts[0])
