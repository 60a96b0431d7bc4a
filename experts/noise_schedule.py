"""Schedules of noise: how a denoising network that was trained elsewhere was shown noise.

The network sees u = αx₀ + sε, s = ασ, and a time t (`experts.denoiser`).
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor


class Coefficients(NamedTuple):
    """α, s, α' and s' of a schedule at one level; finite for every σ from 0 to infinity inclusive,
    except s of "exploding"."""

    alpha: float
    s: float
    alpha_rate: float
    s_rate: float


@dataclass(frozen=True)
class NoiseSchedule:
    """How a network was shown noise. Built by `exploding`, `preserving`, `linear`, `discrete` and
    `flow`.

    Arguments:
        kind: "exploding", "preserving" or "flow".
        sigma_range: lowest and highest level of training, in units of x.
        time: the t that the network is given at a level σ.
    """

    kind: str
    sigma_range: tuple[float, float]
    time: Callable[[float], float]

    def __post_init__(self) -> None:
        if self.kind not in ("exploding", "preserving", "flow"):
            raise ValueError(f"a schedule is exploding, preserving or flow, not {self.kind!r}")
        low, high = self.sigma_range
        if not 0 < low < high < math.inf:
            raise ValueError(
                "sigma_range must be (low, high) with 0 < low < high, finite, not "
                f"{self.sigma_range}"
            )

    @classmethod
    def exploding(cls, low: float, high: float, *, log: bool = False) -> NoiseSchedule:
        """u = x, and t is σ, or log σ."""
        return cls("exploding", (low, high), math.log if log else float)

    @classmethod
    def preserving(cls, low: float, high: float, time: Callable[[float], float]) -> NoiseSchedule:
        """α² + s² = 1, and t a function of σ = s/α."""
        return cls("preserving", (low, high), time)

    @classmethod
    def linear(cls, low: float = 0.1, high: float = 20.0, *, first: float = 1e-3) -> NoiseSchedule:
        """The variance-preserving diffusion whose rate rises linearly from `low` to `high`, for t
        from `first` to 1: log(1 + σ²) = low·t + (high - low)t²/2."""
        if not (0 < low <= high and 0 < first < 1):
            raise ValueError(
                f"rates must be 0 < low <= high, and 0 < first < 1, not {low}, {high} and {first}"
            )

        def time(sigma: float) -> float:
            grown = 2 * math.log1p(sigma**2)
            return grown / (low + math.sqrt(low**2 + (high - low) * grown))

        def sigma(t: float) -> float:
            return math.sqrt(math.expm1(low * t + (high - low) * t * t / 2))

        return cls("preserving", (sigma(first), sigma(1.0)), time)

    @classmethod
    def discrete(cls, alphas_cumprod: Sequence[float] | Tensor) -> NoiseSchedule:
        """A table of α² for t = 0, 1, 2, ...; between two entries t is linear in log σ. The range
        is that of the table."""
        table = torch.as_tensor(alphas_cumprod).detach().double().flatten().tolist()
        if len(table) < 2 or not all(0 < b < a < 1 for a, b in pairwise(table)):
            raise ValueError(
                "alphas_cumprod must be a table of two or more decreasing numbers between 0 and 1"
            )
        logs = [math.log1p(-a) / 2 - math.log(a) / 2 for a in table]

        def time(sigma: float) -> float:
            x = math.log(sigma)
            i = min(max(bisect_left(logs, x), 1), len(logs) - 1)
            return i - 1 + min(max((x - logs[i - 1]) / (logs[i] - logs[i - 1]), 0.0), 1.0)

        return cls("preserving", (math.exp(logs[0]), math.exp(logs[-1])), time)

    @classmethod
    def flow(cls, low: float = 1e-3, high: float = 1e3) -> NoiseSchedule:
        """u = (1 - t)x₀ + tε, σ = t/(1 - t)."""
        return cls("flow", (low, high), _share)

    def coefficients(self, sigma: float) -> Coefficients:
        """At a level σ from 0 to infinity."""
        if self.kind == "exploding":
            return Coefficients(1.0, sigma, 0.0, 1.0)
        if self.kind == "flow":
            return Coefficients(1 / (1 + sigma), _share(sigma), -1.0, 1.0)
        alpha = 1 / math.hypot(1, sigma)
        s = sigma * alpha if sigma < 1 else 1 / math.hypot(1, 1 / sigma)
        return Coefficients(alpha, s, -s, alpha)


def _share(sigma: float) -> float:
    """t = σ/(1 + σ)."""
    return sigma / (1 + sigma) if sigma < 1 else 1 / (1 + 1 / sigma)
