"""The laws that every expert obeys, as one check: `check_expert(make)`; and one-step invariance of
kernels.

Each law has a reference from outside the expert: its own rows one by one, finite differences,
quadrature, enumeration, or its draws. Statistical laws are tested at a family-wise level: a right
expert fails with at most that probability.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from scipy import stats
from torch import Tensor

from poe.algebra.energy import Energy
from poe.testing.case import LawError, _Case, _mean_pvalues, _Skip
from poe.testing.draws import _draws, _draws_match_density, _normalisation
from poe.testing.laws import (
    _batch_invariance,
    _determinism,
    _eval_mode,
    _facts,
    _finite_inside,
    _gradient,
    _infinite_outside,
    _no_side_effects,
    _save_and_load,
    _shapes,
    _transport,
    _value_and_grad,
)


@dataclass
class Report:
    """The laws that were checked, and those that could not be, each with the reason."""

    expert: str
    checked: list[str] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [f"{self.expert}: {len(self.checked)} laws hold, {len(self.skipped)} do not apply"]
        lines += [f"  holds    {law}" for law in self.checked]
        lines += [f"  skipped  {law}: {reason}" for law, reason in self.skipped.items()]
        return "\n".join(lines)


def check_expert(
    make: Callable[[], Energy],
    *,
    points: Tensor | None = None,
    draws: int = 4000,
    level: float = 1e-6,
    seed: int = 0,
) -> Report:
    """Check every law on the expert that `make()` builds; report which hold and which do not apply.

    Arguments:
        make: returns a fresh expert; called several times, each time under the same global seed.
        points: points of the support to test at, (n, *event); by default draws, else random points.
        draws: how many draws the statistical laws use.
        level: probability with which a right expert may fail any of them, all taken together.
        seed: of the points, the draws, and the global generator while `make` runs.

    Raises:
        LawError: naming the first law that is broken.
    """
    case = _Case(make, points, draws, level / 8, seed)
    report = Report(str(case.expert))
    for law, check in _LAWS.items():
        try:
            check(case)
        except _Skip as reason:
            report.skipped[law] = str(reason)
        except LawError as error:
            raise LawError(f"{report.expert} breaks the law '{law}': {error}") from error.__cause__
        except Exception as error:
            raise LawError(
                f"{report.expert} breaks the law '{law}': {type(error).__name__}: {error}"
            ) from error
        else:
            report.checked.append(law)
    return report


def invariance_pvalue(
    before: Tensor, after: Tensor, energies: tuple[Tensor, Tensor] | None = None
) -> float:
    """p-value of the hypothesis that one transition leaves the law of its exact draws as it was.

    Paired z-tests of the mean change of every coordinate, its square, and (where given) the energy
    and its square; and Kolmogorov-Smirnov tests of each, the first half before against the second
    half after, so that the two are independent. Bonferroni over all: under the hypothesis P(p <= u)
    <= u, asymptotically.

    Arguments:
        before, after: n independent draws and the states one transition later, (n, *event).
        energies: the energies at the two, each (n), in nats.
    """
    old, new = (t.detach().double().cpu().reshape(len(t), -1) for t in (before, after))
    if energies is not None:
        old, new = (
            torch.cat([x, e.detach().double().cpu()[:, None]], 1)
            for x, e in zip((old, new), energies, strict=True)
        )
    scale = old.std(0).clamp_min(1e-300)
    centred = [(x - old.mean(0)) / scale for x in (old, new)]
    change = torch.cat([centred[1] - centred[0], centred[1].square() - centred[0].square()], 1)
    half = len(old) // 2
    pvalues = [*_mean_pvalues(change)]
    for i in range(old.shape[1]):
        result: Any = stats.ks_2samp(old[:half, i], new[half:, i], method="asymp")
        pvalues.append(result.pvalue)
    return min(1.0, len(pvalues) * float(min(pvalues)))


def one_step_invariance(kernel: Any, energy: Energy, draws: Tensor, *, seed: int = 0) -> float:
    """`invariance_pvalue` of one transition of a kernel from exact draws of the energy, (n,
    *event)."""
    state = kernel.init(energy, draws)
    noise = kernel.noise(state, torch.Generator(draws.device).manual_seed(seed))
    new, _ = kernel.step(energy, state, noise)
    with torch.no_grad():
        return invariance_pvalue(draws, new.x, (energy(draws), energy(new.x)))


# ---------------------------------------------------------------- what the laws look at


# ---------------------------------------------------------------- the laws


_LAWS: dict[str, Callable[[_Case], None]] = {
    "facts": _facts,
    "shapes": _shapes,
    "no side effects": _no_side_effects,
    "determinism": _determinism,
    "batch invariance": _batch_invariance,
    "finite inside the support": _finite_inside,
    "infinite outside the support": _infinite_outside,
    "value_and_grad": _value_and_grad,
    "gradient": _gradient,
    "eval mode": _eval_mode,
    "draws": _draws,
    "normalisation": _normalisation,
    "draws match the density": _draws_match_density,
    "transport": _transport,
    "save and load": _save_and_load,
}
