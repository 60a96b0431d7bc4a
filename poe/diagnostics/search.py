"""The record of a search for modes, which every verdict on a target with many modes rests on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

NO_SEARCH = "no mode lies elsewhere"  # the condition of trust where no search was made
UNSEARCHED = (
    "no search for modes was made (method=, kernel= or init= was given, or the energy has no "
    "gradient): a mode that no draw is near is not seen"
)


@dataclass(frozen=True)
class ModeSearch:
    """What a search for modes found, and whether draws have it.

    Attributes:
        starts: how many descents were made.
        minima: distinct minima of the energy in which they ended.
        counted: those whose mass a small importance run confirms.
        gradients: of the target, that the search took.
        energies: of the target without a gradient.
        missed: reasons not to trust draws: what was found, and they lack.
    """

    starts: int
    minima: int
    counted: int
    gradients: float = 0.0
    energies: float = 0.0
    missed: tuple[str, ...] = ()

    @property
    def unseen(self) -> float:
        """The share of the starts below which a basin is likely to be unseen: none of n starts
        ends in one of share 3/n with probability e^-3 = .05."""
        return min(1.0, 3 / max(self.starts, 1))

    def line(self) -> str:
        """The search in words, for verdicts and reports."""
        found = f"{self.minima:,} minima" if self.minima != 1 else "1 minimum"
        near = "all of them" if self.counted == self.minima else f"the {self.counted:,} with mass"
        if self.counted == self.minima == 1:
            near = "it"
        ends = "some have no draws" if self.missed else f"draws are near {near}"
        if self.counted == 0:
            ends = "a small importance run confirms the mass of none"
        least = max(1, round(1 / self.unseen))
        return (
            f"{self.starts:,} starts ended in {found}; {ends}; a basin met by fewer than 1 start "
            f"in {least:,} is unseen"
        )


def together(found: Sequence[ModeSearch]) -> ModeSearch | None:
    """The record of searches of the branches of one target; None where there is none. A basin of
    one branch that fewer than 3 of all starts meet is unseen as in one search. What draws of a
    branch miss is a reason of that branch."""
    if not found:
        return None
    names = ("starts", "minima", "counted", "gradients", "energies")
    counts: dict[str, Any] = {name: sum(getattr(each, name) for each in found) for name in names}
    return ModeSearch(**counts)
