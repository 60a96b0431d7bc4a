"""What a method of drawing returns, before it is judged, and its evidence."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from poe.algebra.energy import Estimate
from poe.diagnostics.evidence import Diagnostics, diagnose
from poe.diagnostics.search import ModeSearch
from poe.diagnostics.stein import stein_test
from poe.spaces.structure import Structure

STEIN_DRAWS = 500  # that the Stein test uses, one score each


class Branch(NamedTuple):
    """One branch of a mixture that was drawn by itself: its share of the draws, its evidence, its
    warnings, the conditions of those that have one, and the standard error of its log Z in nats."""

    share: float
    evidence: Diagnostics
    warnings: tuple[str, ...]
    conditions: dict[str, str]
    error: float = 0.0


class Cost(NamedTuple):
    """Evaluations of gradients and of energies, and seconds."""

    gradients: float = 0.0
    energies: float = 0.0
    seconds: float = 0.0

    def plus(self, other: Cost | Diagnostics) -> Cost:
        """The sum of two, or of this and what the evidence says of a run."""
        gradients, energies = self.gradients + other.gradients, self.energies + other.energies
        return Cost(gradients, energies, self.seconds + other.seconds)


@dataclass(frozen=True)
class Raw:
    """Points and counts from one method. `Draws.of` makes draws with evidence of it.

    Attributes:
        x: points, (chain, draw, *event); of populations all particles.
        energy: E of each, (chain, draw), in nats.
        draws: how many were asked for.
        log_z: log Z as the method estimates it, or None.
        method: how they were drawn, in words; empty for the words of the plan.
        independent: whether they are exact, independent draws.
        exact: whether the method has no bias of its own.
        partial: whether it was interrupted.
        populations: whether chains are independent populations, all of whose particles are
            diagnosed, and of which evenly spaced ones are kept: copies are neighbours.
        stein: whether the Stein test applies.
        reasons: reasons of the method's own not to trust the draws.
        branches: those of a mixture that were drawn one by one.
        counts: acceptance, gradients and other figures of the run, named as in `Diagnostics`.
        earlier: cost of methods that were tried before.
        evidence: the evidence, where the method has already computed it.
        search: the record of the searches for modes that the method itself has made.
    """

    x: Tensor
    energy: Tensor
    draws: int
    log_z: Estimate | None = None
    method: str = ""
    independent: bool = False
    exact: bool = True
    partial: bool = False
    populations: bool = False
    stein: bool = False
    reasons: tuple[str, ...] = ()
    branches: tuple[Branch, ...] = ()
    counts: dict[str, float] = field(default_factory=dict)
    earlier: Cost = field(default_factory=Cost)
    evidence: Diagnostics | None = None
    search: ModeSearch | None = None

    @cached_property
    def kept(self) -> Tensor:  # -> (draws of each chain)
        """Which points of each chain are handed out."""
        count = self.x.shape[1]
        if not self.populations:
            return torch.arange(count, device=self.x.device)
        each = -(-self.draws // len(self.x))
        return torch.linspace(0, count - 1, each).round().long().to(self.x.device)

    @property
    def first(self) -> Tensor:  # -> (draws, *event)
        """The draws that were asked for, draw by draw over the chains: as many from each chain as
        possible."""
        return interleaved(self.x[:, self.kept], self.draws)


def interleaved(chains: Tensor, n: int) -> Tensor:
    # (chain, draw, *event) -> (n, *event)
    """The first n draws, draw by draw over the chains: as many from each chain as possible."""
    return torch.transpose(chains, 0, 1).flatten(0, 1)[:n]


def evidence_of(raw: Raw, structure: Structure) -> Diagnostics:
    """The evidence of points; their Stein test, and its scores, included. No effective number is
    above that of the draws that are handed out."""
    if raw.evidence is not None:
        return raw.evidence
    handed_out = min(raw.draws, len(raw.x) * len(raw.kept))
    return (_of_branches(raw) if raw.branches else _of_points(raw, structure)).bounded(handed_out)


def _of_points(raw: Raw, structure: Structure) -> Diagnostics:
    event, counts = len(structure.energy.event_shape), {"independent": raw.independent} | raw.counts
    d = diagnose(raw.x, raw.energy, event, discrete=structure.discrete, **counts)
    if not raw.stein:
        return d
    statistic, pvalue = stein_test(structure.energy, raw.x, draws=STEIN_DRAWS)
    gradients = d.gradients + min(STEIN_DRAWS, raw.energy.numel())
    return replace(d, stein=statistic, stein_pvalue=pvalue, gradients=gradients)


def _of_branches(raw: Raw) -> Diagnostics:
    """The weakest evidence of any branch; the n effective draws of a branch of share s stand for
    n / s of the mixture, and no more are effective than the errors of the shares allow."""
    drawn, total = [branch for branch in raw.branches if branch.share > 0], raw.energy.numel()
    found = [branch.evidence for branch in drawn]
    most = shares_ess([b.share for b in drawn], [b.error for b in drawn])
    counts = ("stuck", "divergent", "nonfinite", "gradients", "energies", "seconds")
    sums: dict[str, Any] = {
        name: sum(getattr(b.evidence, name) for b in raw.branches) + raw.counts.get(name, 0)
        for name in counts
    }
    sums["energies"] += total  # of the draws under the mixture

    def least(name: str) -> float:
        return min(most, total, *(getattr(b.evidence, name) / b.share for b in drawn))

    def worst(name: str) -> float:
        return max((v for v in (getattr(d, name) for d in found) if v == v), default=math.nan)

    return Diagnostics(
        rhat=worst("rhat"),
        rhat_energy=worst("rhat_energy"),
        ess_bulk=least("ess_bulk"),
        ess_tail=least("ess_tail"),
        weight_ess=most if most < total else math.nan,
        acceptance=min(d.acceptance for d in found),
        nonfinite_share=worst("nonfinite_share"),
        invalid=int((~raw.energy.isfinite()).sum()),
        independent=most == math.inf and all(d.independent for d in found),
        chance=max(d.chance for d in found),
        **sums,
    )


def shares_ess(shares: Sequence[float], errors: Sequence[float]) -> float:
    """How many independent draws know the shares of branches as well as their log Z do, of these
    standard errors; infinity where all are exact.

    Shares s = softmax(log w + log Z) err in the mean Σ s_i m_i of branches of means m_i by
    Σ s_i² e_i² (m_i - m)² (delta method), n draws by Σ s_i (m_i - m)² / n. The least n over all m
    is 1 / λ, λ the largest eigenvalue of P D P, D = diag(s_i e_i²) and P the projection orthogonal
    to the vector of √s_i. Of two branches, λ = s_1 s_2 (e_1² + e_2²).
    """
    s = torch.tensor(shares, dtype=torch.float64)
    s = s / s.sum()
    errors_squared = torch.tensor(errors, dtype=torch.float64).square()
    root = s.sqrt().unsqueeze(1)
    project = torch.eye(len(s), dtype=torch.float64) - root @ root.T
    largest = float(torch.linalg.eigvalsh(project @ torch.diag(s * errors_squared) @ project)[-1])
    return 1 / largest if largest > 1e-300 else math.inf
