"""Energies of a `ConceptNetwork` at one level of noise, with or without a concept."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from experts.noise.guidance import Guidance
from experts.noise.layers import Features
from experts.noise.network import ConceptNetwork
from poe.algebra.capabilities import Conditional
from poe.algebra.energy import Energy, checked_level
from poe.algebra.points import batch_shape
from poe.registry import near, register

MIN_ABSENCE = 1e-5  # 1 - p(c | x), below which Δ_c is taken to be 0
# pictures in one call of a network: with gradients 0.6 MB each in the network of `shapes`; larger
# calls are not faster
MAX_PICTURES = 512


@register("noise-conditional")
class NoiseConditional(Energy):
    """-log p_σ(x | c) of a `ConceptNetwork`, up to a constant, at one level of noise and for one
    concept.

    Arguments:
        network: the network, shared by all energies that are made from it; or its arguments, as
            `config()` gives them.
        concept: one of `network.concepts`, or None for the unconditional energy.
        sigma: the level of noise, in units of x; None for the target.

    The target, `at(0)`, is the lowest level of `sigma_range`: the data with that much noise, not
    the data themselves, which need not have a density. `given(concept)` and `at(sigma)` return
    energies on the same network, one object for each (concept, sigma), and products and mixtures of
    them evaluate it once, on one batch (`fused`). Only the unconditional energy takes a context.

    log Z of compositions is that of the densities that the energies stand for
    (`experts.noise.guidance`): log of the integral of exp(-E) differs from it by a constant of the
    network.

    Raises ValueError for a concept that the network does not know, and for a level outside
    `sigma_range`.
    """

    takes_context = True

    def __init__(
        self,
        network: ConceptNetwork | dict[str, Any],
        *,
        concept: str | None = None,
        sigma: float | None = None,
        name: str | None = None,
    ) -> None:
        network = ConceptNetwork(**network) if isinstance(network, dict) else network
        low, high = network.sigma_range
        if concept is not None and concept not in network.concepts:
            known = (
                near(str(concept), network.concepts)
                or f"; it knows {', '.join(network.concepts) or 'none'}"
            )
            raise ValueError(f"the network does not know the concept {concept!r}{known}")
        if sigma is not None and not low <= sigma <= high:
            raise ValueError(
                f"the network knows noise levels from {low:g} to {high:g} (units of x), and 0 for "
                f"the lowest, not {sigma}"
            )
        super().__init__(network.event_shape, name=name)
        self.network, self.concept = network, concept
        self.sigma = float(low if sigma is None else sigma)
        self._scored = False
        self._index = None if concept is None else network.concepts.index(concept)
        # one object for each concept, level and kind of gradient, so that products merge them
        self._siblings: dict[tuple[str | None, float, bool], NoiseConditional] = {
            (concept, self.sigma, False): self
        }

    @property
    def sigma_range(self) -> tuple[float, float]:
        """Lowest and highest level of noise, in units of x."""
        return self.network.sigma_range

    @property
    def rough_below(self) -> float:
        """The level of noise, in units of x, below which energies of concepts are too inaccurate to
        be compared."""
        return self.network.rough_below

    @property
    def unconditional(self) -> NoiseConditional:
        """The energy without its concept, at the same level."""
        return self.given(None)

    @property
    def scored(self) -> NoiseConditional:
        """The same energy, but with minus the score, (x - D - Δ_c) / σ², where `value_and_grad` has
        a gradient."""
        return self._sibling(self.concept, self.sigma, scored=True)

    def guidance(self, target: Energy) -> Guidance | None:
        """How particles of a composition follow scores (`experts.noise.guidance`)."""
        return Guidance.of(target)

    @property
    def growth(self) -> float:
        """1 / 2σ²: D is bounded."""
        return 0.5 / self.sigma**2

    @property
    def proper(self) -> bool:
        return True

    @property
    def bounded(self) -> bool:
        return True

    def can(self, capability: type) -> bool:
        return self.concept is None if capability is Conditional else super().can(capability)

    def given(self, context: str | None) -> NoiseConditional:
        """The energy of a concept at this level; `given(None)` is the unconditional one."""
        if context is not None and not isinstance(context, str):
            raise ValueError(
                f"a concept is a name, not {context!r}; poe.conjunction makes the product of "
                "several"
            )
        return self._sibling(context, self.sigma, self._scored)

    def at(self, sigma: float) -> NoiseConditional:
        """The energy at level sigma (units of x); at 0, and at the lowest level, the target's."""
        return self._sibling(
            self.concept, checked_level(self, sigma) or self.sigma_range[0], self._scored
        )

    def _sibling(self, concept: str | None, sigma: float, scored: bool) -> NoiseConditional:
        key = concept, sigma, scored
        if key not in self._siblings:
            stem = None if self.name is None else self.name.rpartition(".")[0]
            energy = NoiseConditional(
                self.network,
                concept=concept,
                sigma=sigma,
                name=f"{stem}.{concept or 'any'}" if stem else None,
            )
            energy.training, energy._scored = self.training, scored
            energy._siblings = self._siblings
            self._siblings[key] = energy
        return self._siblings[key]

    def forward(self, x: Tensor) -> Tensor:  # (*batch, *event) -> (*batch)
        return self.fused([self], x)[0]

    def fused(self, energies: Sequence[NoiseConditional], x: Tensor) -> Tensor:
        # (*batch, *event) -> (k, *batch)
        """The energies of k terms that share this network: one evaluation of it for each level of
        noise among them."""
        rows, shape = x.reshape(-1, *self.event_shape), (len(energies), *batch_shape(self, x))
        if not len(rows):
            return x.new_zeros(shape)
        if not torch.is_grad_enabled() and len(rows) > MAX_PICTURES:
            return torch.cat(
                [self.fused(energies, part) for part in rows.split(MAX_PICTURES)], 1
            ).reshape(shape)
        values = {}
        for (sigma, _), concepts in _by_level(energies).items():
            level = rows.new_full((len(rows),), sigma)
            unconditional = self.network.unconditional(rows, level)
            ratios = self.network.log_ratios(rows, level) if concepts - {None} else rows
            for c in concepts:
                values[sigma, c] = unconditional if c is None else unconditional - ratios[:, c]
        return torch.stack([values[e.sigma, e._index] for e in energies]).reshape(shape)

    def fused_value_and_grad(
        self, energies: Sequence[NoiseConditional], x: Tensor
    ) -> tuple[Tensor, Tensor]:
        # (*batch, *event) -> (k, *batch), (k, *batch, *event)
        """`value_and_grad` of k terms, in calls of at most `MAX_PICTURES` pictures: for each of
        their levels of noise a gradient of the denoising network, and of the classifier for each
        concept; by scores a call of both, and of the guide for each concept."""
        shape, slope_shape = (len(energies), *batch_shape(self, x)), (len(energies), *x.shape)
        if not x.numel():
            return x.new_zeros(shape), x.new_zeros(slope_shape)
        values, slopes = [], []
        for rows in x.detach().reshape(-1, *self.event_shape).split(MAX_PICTURES):
            known = {
                key: self._at_level(rows, *key, concepts)
                for key, concepts in _by_level(energies).items()
            }
            pairs = [known[e.sigma, e._scored][e._index] for e in energies]
            values.append(torch.stack([value for value, _ in pairs]))
            slopes.append(torch.stack([slope for _, slope in pairs]))
        return torch.cat(values, 1).reshape(shape), torch.cat(slopes, 1).reshape(slope_shape)

    def _at_level(
        self, rows: Tensor, sigma: float, scored: bool, concepts: set[int | None]
    ) -> dict[int | None, tuple[Tensor, Tensor]]:
        """Values and gradients at one level: of the unconditional energy (None), and of concepts by
        their indices."""
        if scored:
            return self._by_scores(rows, sigma, concepts)
        level = rows.new_full((len(rows),), sigma)
        with torch.enable_grad():
            rows = rows.clone().requires_grad_()
            value = self.network.unconditional(rows, level)
            (slope,) = torch.autograd.grad(value.sum(), rows)
            known: dict[int | None, tuple[Tensor, Tensor]] = {None: (value.detach(), slope)}
            ratios = self.network.log_ratios(rows, level) if concepts - {None} else rows
            for c in concepts - {None}:
                (steeper,) = torch.autograd.grad(ratios[:, c].sum(), rows, retain_graph=True)
                known[c] = value.detach() - ratios[:, c].detach(), slope - steeper
        return known

    @torch.no_grad()
    def _by_scores(
        self, rows: Tensor, sigma: float, concepts: set[int | None]
    ) -> dict[int | None, tuple[Tensor, Tensor]]:
        """The same with minus the scores for gradients."""
        network, level = self.network, rows.new_full((len(rows),), sigma)
        features = network.features(rows, level)
        off = rows - network.point(features)
        value = network.distance(off, level)
        known: dict[int | None, tuple[Tensor, Tensor]] = {None: (value, off / sigma**2)}
        ratios = network.log_ratios(rows, level) if concepts - {None} else rows
        for c in [c for c in concepts if c is not None]:
            unsettled = ~((network.log_prior[c] + ratios[:, c]).exp() >= 1 - MIN_ABSENCE)  # NaN too
            some = Features(*(part[unsettled] for part in features))
            which = torch.full((len(some.level),), c, device=rows.device)
            shift = torch.zeros_like(off).masked_scatter(
                unsettled[:, None, None, None], network.shift(some, which, ratios[unsettled, c])
            )
            known[c] = value - ratios[:, c], (off - shift) / sigma**2
        return known

    def _value_and_grad(self, x: Tensor) -> tuple[Tensor, Tensor]:
        value, slope = self.fused_value_and_grad([self], x)
        return value[0], slope[0]

    def config(self) -> dict[str, Any]:
        if self._scored:
            raise TypeError(
                f"{self} has scores for gradients, which files do not hold: save the energy whose "
                "`scored` it is"
            )
        return {"network": self.network.arguments, "concept": self.concept, "sigma": self.sigma}


def _by_level(energies: Sequence[NoiseConditional]) -> dict[tuple[float, bool], set[int | None]]:
    """The indices of the concepts that are asked for at each level of noise, by gradient or score;
    None for no concept."""
    asked: dict[tuple[float, bool], set[int | None]] = {}
    for energy in energies:
        asked.setdefault((energy.sigma, energy._scored), set()).add(energy._index)
    return asked
