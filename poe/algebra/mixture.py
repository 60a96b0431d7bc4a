"""Sums of densities: `|`, and `mixture` with weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor, nn

from poe.algebra import evaluation
from poe.algebra import support as sets
from poe.algebra.capabilities import Samples
from poe.algebra.checks import energies_of, known_log_z, one_measure, right_side
from poe.algebra.energy import Energy, with_parts
from poe.algebra.operators import BUILDERS
from poe.algebra.shifted import shift


class Mixture(Energy):
    """Sum of densities, built by `|` and `mixture`.

    Raw (weights None): E = -log Σ exp(-E_i). Weighted: E = -log Σ w_i exp(-E_i) / Z_i, over the
    normalised parts, log Z = 0.
    """

    def __init__(self, energies: Sequence[Energy], weights: Sequence[float] | None) -> None:
        super().__init__(energies[0].event_shape, support=sets.union([e.support for e in energies]))
        self.energies = nn.ModuleList(energies)
        self.weights = None if weights is None else tuple(weights)

    @property
    def parts(self) -> tuple[Energy, ...]:
        return tuple(self.energies)  # type: ignore[return-value]

    def rebuild(self, parts: Sequence[Energy]) -> Energy:
        return mixture(parts, self.weights)

    def at(self, sigma: float) -> Energy:
        """The mixture at noise level sigma. Where a part's log Z is unknown there, the parts of a
        weighted mixture keep the factors w_i / Z_i that they have here, and the mixture's log Z is
        unknown."""
        parts = [part.at(sigma) for part in self.parts]
        if self.weights is None or all(part.log_z is not None for part in parts):
            return with_parts(self, parts)
        return mixture(
            [shift(e, -w) for w, e in zip(self.log_weights, parts, strict=True) if w > -math.inf]
        )

    @property
    def log_weights(self) -> tuple[float, ...]:
        """What each exp(-E_i) is multiplied by, on the log scale: 0 for a raw mixture, log(w_i /
        Z_i) for a weighted one."""
        if self.weights is None:
            return (0.0,) * len(self.parts)
        return tuple(
            (math.log(w) if w else -math.inf) - float(known_log_z(e))
            for w, e in zip(self.weights, self.parts, strict=True)
        )

    @property
    def weighted(self) -> list[tuple[float, Energy]]:
        """(log weight, part) of each part that weighs anything."""
        return [(w, e) for w, e in zip(self.log_weights, self.parts, strict=True) if w > -math.inf]

    @cached_property
    def _groups(self) -> tuple[evaluation.Group, ...]:
        return evaluation.sharing([part for _, part in self.weighted])

    @property
    def shares(self) -> tuple[float, ...] | None:
        """The probability of each part, summing to 1; None where a log Z is unknown."""
        if self.weights is not None:
            return self.weights
        found = [part.log_z for part in self.parts]
        known = [float(log_z) for log_z in found if log_z is not None]
        if len(known) < len(found):
            return None
        return tuple(torch.tensor(known, dtype=torch.float64).softmax(0).tolist())

    def forward(self, x: Tensor) -> Tensor:  # (*batch, *event) -> (*batch)
        weighted = self.weighted
        found = evaluation.together(
            [part for _, part in weighted], x, self._groups, evaluation.masked
        )
        logs = torch.stack([w - energy for (w, _), energy in zip(weighted, found, strict=True)])
        top = logs.detach().amax(0)
        # all parts at -inf: keep the graph free of inf - inf
        top = torch.where(top.isfinite(), top, 0)
        total = (logs - top).exp().sum(0)
        energy = -(torch.where(total > 0, total, 1).log() + top)
        return torch.where(total > 0, energy, math.inf).where(~total.isnan(), total)

    def _value_and_grad(self, x: Tensor) -> tuple[Tensor, Tensor]:
        # the running log-sum-exp L and ∇E = Σ softmax_i ∇E_i are updated part by part, so memory
        # does not grow with their number
        axes = (1,) * len(self.event_shape)
        log_p: Tensor | None = None
        gradient = torch.zeros_like(x)
        weighted = self.weighted
        known = evaluation.together_with_gradients(
            [part for _, part in weighted], x, self._groups, evaluation.masked_with_gradient
        )
        for (weight, _), (energy, slope) in zip(weighted, known, strict=True):
            new = weight - energy
            log_p = torch.full_like(new, -math.inf) if log_p is None else log_p
            # inf - inf where both densities are 0, or both infinite
            odds = torch.where(new == log_p, 0, new - log_p)
            odds = odds.reshape(odds.shape + axes)
            # each to full precision: 1 - share would lose a small rest
            share, rest = odds.sigmoid(), (-odds).sigmoid()
            gradient = torch.where(rest > 0, rest * gradient, 0)
            gradient = gradient + torch.where(share > 0, share * slope, 0)
            gradient = gradient.where(~share.isnan(), share)
            log_p = torch.logaddexp(log_p, new)
        assert log_p is not None
        return -log_p, gradient

    def can(self, capability: type) -> bool:
        if capability is Samples:
            return self.shares is not None and all(part.can(Samples) for part in self.parts)
        return super().can(capability)

    def sample(
        self, n: int | tuple[int, ...], *, generator: torch.Generator | None = None
    ) -> Tensor:
        """Exact ancestral draws, (n, *event): first the part, then a draw from it. Raises TypeError
        where a part cannot draw."""
        shares = self.shares
        if shares is None or not self.can(Samples):
            raise TypeError(
                f"{self} has no exact draws: each part must draw and know its log Z; use poe.sample"
            )
        shape = torch.Size([n] if isinstance(n, int) else n)
        which = torch.multinomial(
            torch.tensor(shares, dtype=torch.float64, device=self.device),
            max(shape.numel(), 1),
            replacement=True,
            generator=generator,
        )[: shape.numel()]
        drawn = [
            part.sample(int((which == i).sum()), generator=generator)  # type: ignore[operator]
            for i, part in enumerate(self.parts)
        ]
        # drawn part by part, then put back at the places of `which`
        order = which.argsort(stable=True).argsort()
        return torch.cat(drawn)[order].reshape(shape + self.event_shape)


def raw_parts(energy: Energy) -> tuple[Energy, ...]:
    """The parts of a raw mixture; of others, themselves."""
    return energy.parts if isinstance(energy, Mixture) and energy.weights is None else (energy,)


def mixture(energies: Sequence[Energy], weights: Sequence[float] | None = None) -> Energy:
    """Without weights, Σ exp(-E_i), as `|`. With weights, Σ w_i p_i / Z_i over the normalised
    parts, weights scaled to sum to 1.

    Raises ValueError where weights are given and some log Z is unknown: `poe.normalize` estimates
    it.
    """
    energies = energies_of(energies, "mixture", weights)
    one_measure(energies, "|")
    if weights is None:
        flat = [part for energy in energies for part in raw_parts(energy)]
        return flat[0] if len(flat) == 1 else Mixture(flat, None)
    numbers = [float(w) for w in weights]
    if len(numbers) != len(energies):
        raise ValueError(f"{len(energies)} energies need as many weights, not {len(numbers)}")
    total = math.fsum(numbers)
    if not math.isfinite(total) or total <= 0 or any(w < 0 for w in numbers):
        raise ValueError(f"weights must be finite, not negative, and not all 0, got {numbers}")
    for energy in energies:
        known_log_z(energy)
    scaled = numbers if math.isclose(total, 1.0, rel_tol=1e-15) else [w / total for w in numbers]
    return Mixture(energies, scaled)


BUILDERS["|"] = lambda a, b: mixture([a, right_side(b, a, "|")])
