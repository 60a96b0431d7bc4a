"""What a composition's log-density gains along a step of reverse diffusion: of one expert by its
score, of all others against it.

Let p_k be the density of data under noise σ_k, q(x | x') = N(x; x', δ) what takes it back to level
k - 1, δ = σ²_{k-1} - σ²_k, and r the reverse of q. By Bayes' rule p_{k-1}(x) r(x' | x) = p_k(x')
q(x | x'), and to first order in δ

    r(x' | x) = N(x'; x - δ g, v),     g = -∇log p_{k-1}(x),     v = δ σ²_k / σ²_{k-1},

so that log p_k(x') - log p_{k-1}(x) = log r(x' | x) - log q(x | x') needs no value of log p: a
single expert, whose r proposes, has weight 1, which is plain reverse diffusion. In a product Π
p_i^w_i with Σ w_i = 1 the first expert that is divided by (the prior of a conjunction), or else the
first, or what that is without its concept, takes this, and the others differ from it by energies at
both ends, as the two sides of a contrast do. Where an expert says that its differences are too
rough (`Rough`: at little noise, when what a picture shows is settled, particles far from all data
would win by them), it is not weighed any more, and the rest of the way is reverse diffusion with
Metropolis moves.

Where the reference's own energy has another Z than the density that its score belongs to
(`Scored`), log Z is that of the composition
of densities: of a conjunction of concepts, how much oftener than independent ones they occur
together.

Why not by energies throughout: D, what a network takes for the picture behind the noise, is wrong
by |D - x₀| in all, and then the energy by about |D - x₀| √(Σε²/n) / σ: some ten nats for pictures
at little noise, and particles that are weighed by them end as the picture with the luckiest error.
Scores suffer less, and energies of concepts of one network, at one x, share that error.

Reference: Skreta, Akhound-Sadegh, Ohanesian et al. 2025, ICML (Feynman-Kac correctors: weights of
products from scores alone).
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn.functional import softplus

from poe.algebra.capabilities import Concept, NoiseConditional, Rough, Scored
from poe.algebra.contrast import Contrast
from poe.algebra.energy import Energy
from poe.algebra.evaluation import together_with_gradients
from poe.algebra.product import Product
from poe.algebra.shifted import Shifted


def diffuses(energy: Energy, spread: float) -> bool:
    """Whether gains of an energy at one level are found so: products, shifts and contrasts of
    experts whose own spread of noise is that of the whole, so that powers sum to 1, and of experts
    without noise. `spread` in units of x."""
    if isinstance(energy, Product):
        return all(diffuses(term.energy, spread) for term in energy.terms)
    if isinstance(energy, (Shifted, Contrast)):
        return all(diffuses(part, spread) for part in energy.parts)
    if not energy.can(NoiseConditional):
        return not energy.parts  # a mixture or pullback is no single diffusion
    return energy.growth is not None and math.isclose(energy.growth, 0.5 / spread**2, rel_tol=1e-6)


class Followed(Energy):
    """An energy at one level, which remembers of its last evaluation what gains follow from: the
    energies of its experts (*batch, k) and the gradient of the reference (*batch, *event), from one
    call of a network that they share. `guided`: experts that know the score of noised data better
    than by their gradients (`Scored`) have it for a gradient, if there are any."""

    def __init__(self, energy: Energy, *, guided: bool = False) -> None:
        super().__init__(energy.event_shape, support=energy.support)
        self.guided = guided and any(expert.can(Scored) for expert in _experts(energy))
        self.energy = energy = scored(energy) if self.guided else energy
        reference = _reference(energy)
        if reference is not None and reference.can(Concept):
            reference = reference.unconditional  # type: ignore[attr-defined]
        self._reference: Energy | None = reference  # type: ignore[assignment]
        experts = (
            _experts(energy) if self._reference is None else [*_experts(energy), self._reference]
        )
        self._experts = list({id(expert): expert for expert in experts}.values())
        self.rough_below = max(
            (expert.rough_below for expert in self._experts if expert.can(Rough)), default=0.0
        )  # type: ignore[attr-defined]
        self._last: tuple[Tensor, Tensor] | None = None

    def forward(self, x: Tensor) -> Tensor:  # (*batch, *event) -> (*batch)
        return self.energy(x)

    def _value_and_grad(self, x: Tensor) -> tuple[Tensor, Tensor]:
        known = dict(
            zip(map(id, self._experts), together_with_gradients(self._experts, x), strict=True)
        )
        values = torch.stack([known[id(expert)][0] for expert in self._experts], -1)
        self._last = values, known[id(self._reference)][1]
        return _assembled(self.energy, known, x)

    def remembered(self) -> tuple[Tensor, Tensor] | None:  # (*batch, k), (*batch, *event)
        """What is remembered, once: levels are many, and particles of many numbers."""
        last, self._last = self._last, None
        return last

    def relative(self, values: Tensor, x: Tensor) -> Tensor:
        # (*batch, k), (*batch, *event) -> (*batch)
        """The energy less that of the reference."""
        known = {
            id(expert): value.double()
            for expert, value in zip(self._experts, values.unbind(-1), strict=True)
        }
        base = known[id(self._reference)]
        return _relative(self.energy, {key: value - base for key, value in known.items()}, x)

    @property
    def reference(self) -> Energy:
        """The expert whose gains follow from its score."""
        assert self._reference is not None
        return self._reference


def gain(
    above: Followed,
    below: Followed,
    x: Tensor,
    values: Tensor,
    slope: Tensor,
    to: Tensor,
    values_there: Tensor,
) -> Tensor:
    # (*batch, *event), (*batch, k), (*batch, *event), (*batch, *event), (*batch, k) -> (*batch)
    """log p_k(to) - log p_{k-1}(x) in nats, for the same expression at two levels, from what was
    remembered at both points."""
    gained = _followed(above.reference, below.reference, to - x, slope)
    return gained - (below.relative(values_there, to) - above.relative(values, x))


def rest(above: Followed, below: Followed, x: Tensor, values: Tensor, to: Tensor) -> Tensor:
    # (*batch, *event), (*batch, k), (*batch, *event) -> (*batch)
    """What experts without noise levels gain: all that there is to weigh by where the others are
    too rough."""
    nothing = torch.zeros_like(values)
    return above.relative(nothing, x) - below.relative(nothing, to)


def scored(energy: Energy) -> Energy:
    """The same, its experts with minus their scores for gradients where they know better ones
    (`Scored`)."""
    if energy.parts:
        return energy.rebuild([scored(part) for part in energy.parts])
    return energy.scored if energy.can(Scored) else energy  # type: ignore[attr-defined]


def _followed(above: Energy, below: Energy, moved: Tensor, gradient: Tensor) -> Tensor:
    """log r - log q for a move x' - x of an expert."""
    assert above.growth is not None and below.growth is not None
    event = len(above.event_shape)
    fall, ratio = 0.5 / above.growth - 0.5 / below.growth, above.growth / below.growth
    squares = [
        part.double().flatten(part.ndim - event).square().sum(-1)
        for part in (moved, moved + fall * gradient)
    ]
    return (
        squares[0] / (2 * fall)
        - squares[1] / (2 * fall * ratio)
        - above.event_shape.numel() / 2 * math.log(ratio)
    )


def _assembled(
    energy: Energy, known: Mapping[int, tuple[Tensor, Tensor]], x: Tensor
) -> tuple[Tensor, Tensor]:
    """Energy and gradient from those of the experts with noise levels."""
    if isinstance(energy, Product):
        parts = [
            (p, *_assembled(term.energy, known, x))
            for p, term in zip(energy.powers, energy.terms, strict=True)
        ]
        return sum(p * value for p, value, _ in parts), sum(p * slope for p, _, slope in parts)  # type: ignore[return-value]
    if isinstance(energy, Shifted):
        value, slope = _assembled(energy.energy, known, x)
        return value + energy.offset, slope
    if isinstance(energy, Contrast):
        (value, slope), *unwanted = (_assembled(part, known, x) for part in energy.parts)
        for strength, (other, down) in zip(energy.strengths, unwanted, strict=True):
            pull = strength * (value - other).sigmoid()
            value = value + strength * softplus(value - other, threshold=40)
            slope = slope + pull.reshape(pull.shape + (1,) * len(energy.event_shape)) * (
                slope - down
            )
        return value, slope
    return known[id(energy)] if id(energy) in known else energy.value_and_grad(x)


def _relative(energy: Energy, known: Mapping[int, Tensor], x: Tensor) -> Tensor:
    """The energy less that of the reference, from those of its experts."""
    if isinstance(energy, Product):
        return sum(
            p * _relative(term.energy, known, x)
            for p, term in zip(energy.powers, energy.terms, strict=True)
        )  # type: ignore[return-value]
    if isinstance(energy, Shifted):
        return _relative(energy.energy, known, x) + energy.offset
    if isinstance(energy, Contrast):
        value, *unwanted = (_relative(part, known, x) for part in energy.parts)
        for strength, other in zip(energy.strengths, unwanted, strict=True):
            value = value + strength * softplus(value - other, threshold=40)
        return value
    if id(energy) in known:
        return known[id(energy)]
    with torch.no_grad():
        return energy(x).double()


def _reference(energy: Energy) -> Energy | None:
    """The expert whose gains follow from its score."""
    if isinstance(energy, Product):
        found = [
            (power >= 0, _reference(term.energy))
            for power, term in zip(energy.powers, energy.terms, strict=True)
        ]
        return next(
            (expert for _, expert in sorted(found, key=lambda pair: pair[0]) if expert is not None),
            None,
        )
    if isinstance(energy, (Shifted, Contrast)):
        return _reference(energy.parts[0])
    return energy if energy.can(NoiseConditional) else None


def _experts(energy: Energy) -> list[Energy]:
    """All experts with noise levels."""
    if energy.parts:
        return [expert for part in energy.parts for expert in _experts(part)]
    return [energy] if energy.can(NoiseConditional) else []
