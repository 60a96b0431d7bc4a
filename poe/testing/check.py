"""The laws of experts as one check, `check_expert(make)`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor

from poe.algebra.energy import Energy
from poe.algebra.errors import LawError
from poe.testing import draws as sampling
from poe.testing import laws
from poe.testing.case import Case, Skip

LAWS: dict[str, Callable[[Case], None]] = {
    "facts": laws.facts,
    "shapes": laws.shapes,
    "no side effects": laws.no_side_effects,
    "determinism": laws.determinism,
    "batch invariance": laws.batch_invariance,
    "finite inside the support": laws.finite_inside,
    "infinite outside the support": laws.infinite_outside,
    "value_and_grad": laws.value_and_grad,
    "gradient": laws.gradient,
    "eval mode": laws.eval_mode,
    "draws": sampling.draws,
    "normalisation": sampling.normalisation,
    "draws match the density": sampling.draws_match_density,
    "transport": laws.transport,
    "save and load": laws.save_and_load,
}


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
        level: probability with which a correct expert may fail any of them, all taken together.
        seed: of the points, the draws, and the global generator while `make` runs.

    Raises:
        LawError: naming the first law that is broken.
    """
    case = Case(make, points, draws, level / 8, seed)
    report = Report(str(case.expert))
    for law, check in LAWS.items():
        try:
            check(case)
        except Skip as reason:
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
