"""How posteriors that were combined agree, as draws report it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

MAX_OUTSIDE = 0.2  # share of the draws outside the bulk of a posterior, without a warning
MIN_TENSION = 3.0  # sigmas from which on a pair is reported


class Baseline(NamedTuple):
    """A simpler answer: mean and standard deviation of each number of the event, flattened; NaN
    where it has none."""

    mean: tuple[float, ...]
    sd: tuple[float, ...]


@dataclass(frozen=True)
class Agreement:
    """How the parts of `poe.combine` agree, as far as they draw samples.

    Attributes:
        names: the posteriors, as they print.
        tension: (i, j, sigmas) of each pair that shares parameters; NaN where the prior decides
            what the pair has in common.
        at_least: whether that is a lower bound: the prior draws no samples, and is taken as wide.
        unknown: posteriors that share parameters with others, and of which no tension is known:
            they have no draws of their own, or none with a variance.
        outside: the share of the combined draws outside the bulk (99 %) of each posterior's own
            draws; NaN where it cannot draw.
        pareto_k: of the weights of each posterior's own draws against the result: above 0.7 they
            cannot represent it; NaN likewise.
        ensemble: error bar (one sd) of the mean of each number of the event, flattened: its spread
            over retrained copies of posteriors that are geometric ensembles, `poe.product(copies,
            powers=1/n)`; empty where none is. It is not divided by √n: copies on bootstrap samples
            spread as one fit does from sample to sample, and that is in common to all of them.
        baselines: simpler answers, where nothing but the combination was drawn: "Gaussian product"
            of means and covariances, the prior counted once; "consensus Monte Carlo", own draws
            averaged with weights C_i⁻¹, which counts the prior n times; and "reweighting" of the
            own draws of the nearest posterior.
    """

    names: tuple[str, ...]
    tension: tuple[tuple[int, int, float], ...]
    outside: tuple[float, ...]
    pareto_k: tuple[float, ...]
    ensemble: tuple[float, ...]
    baselines: dict[str, Baseline]
    at_least: bool = False
    unknown: tuple[str, ...] = ()

    @property
    def tensions(self) -> list[str]:
        """Pairs that disagree."""
        return [
            f"{self.names[i]} and {self.names[j]} are in tension by {self._bound}{sigmas:.1f} "
            "sigmas: it is unlikely that they share parameters; try each alone, or look for what "
            "one of them leaves out"
            for i, j, sigmas in self.tension
            if sigmas >= MIN_TENSION
        ]

    @property
    def _bound(self) -> str:
        return "at least " if self.at_least else ""

    @property
    def unchecked(self) -> list[str]:
        """Posteriors of which it is unknown whether they agree with the others."""
        return [
            f"it is unknown whether {name} agrees with the others: it has no draws of its own, or "
            "none with a variance"
            for name in self.unknown
        ]

    @property
    def extrapolations(self) -> list[str]:
        """Posteriors on whose tails the answer rests."""
        return [
            f"{100 * share:.0f} % of the draws lie outside the bulk of the own draws of {name}: "
            "the answer rests on its extrapolated tails; try to retrain it with draws from there"
            for name, share in zip(self.names, self.outside, strict=True)
            if share > MAX_OUTSIDE
        ]

    @classmethod
    def read(cls, facts: dict[str, Any]) -> Agreement:
        """From the plain values that a file holds."""
        lists: dict[str, Any] = {
            name: _tuples(fact) for name, fact in facts.items() if name != "baselines"
        }
        baselines = {
            name: Baseline(tuple(mean), tuple(sd))
            for name, (mean, sd) in facts["baselines"].items()
        }
        return cls(**lists, baselines=baselines)

    def lines(self) -> list[str]:
        """The lines of a report."""
        found = []
        for i, j, sigmas in self.tension:
            known = (
                "unknown: the prior decides, not the data,"
                if math.isnan(sigmas)
                else f"{self._bound}{sigmas:.1f} sigmas"
            )
            found.append(f"  tension        {known} between {self.names[i]} and {self.names[j]}")
        for name, share, k in zip(self.names, self.outside, self.pareto_k, strict=True):
            known = (
                "no draws of its own: not checked"
                if math.isnan(share)
                else f"{100 * share:.1f} % of the draws are outside its bulk"
            )
            found.append(
                f"  part           {name}: {known}"
                + ("" if math.isnan(k) else f"; Pareto k {k:.2f} of reweighting it")
            )
        if self.ensemble:
            found.append(
                "  ensembles      error of the means by the spread over copies: "
                f"{_numbers(self.ensemble)}"
            )
        for name, (mean, sd) in self.baselines.items():
            found.append(f"  {name:<14} mean {_numbers(mean)}; sd {_numbers(sd)}")
        return found


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def _numbers(values: Sequence[float], count: int = 6) -> str:
    return " ".join(f"{value:.4g}" for value in values[:count]) + (
        " ..." if len(values) > count else ""
    )
