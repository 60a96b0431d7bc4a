"""Exact noised experts in the plane and in 64 dimensions, where all answers are known."""

from __future__ import annotations

import math

import torch
from torch import Tensor

import poe
from experts.noise.guidance import Guidance

D, SIGMA = 64, 0.1


class Points(poe.Energy):
    """The law of equally likely points under noise: exact at every level, normalised. Points lie
    many σ apart at the lowest. They are `Guided`, so that weights follow from scores."""

    sigma_range = (SIGMA, 8.0)
    rough_below = 0.0

    def __init__(self, points: Tensor, sigma: float = SIGMA, name: str | None = None) -> None:
        super().__init__(points.shape[1:], name=name)
        self.points, self.sigma = points, max(sigma, SIGMA)

    @property
    def proper(self) -> bool:
        return True

    @property
    def bounded(self) -> bool:
        return True

    @property
    def growth(self) -> float:
        return 0.5 / self.sigma**2

    def at(self, sigma: float) -> Points:
        return Points(self.points, sigma, self.name)

    def guidance(self, target: poe.Energy) -> Guidance | None:
        return Guidance.of(target)

    def forward(self, x: Tensor) -> Tensor:  # (*batch, d) -> (*batch)
        squares = (x.unsqueeze(-2) - self.points).square().sum(-1)
        constant = math.log(len(self.points)) + self.points.shape[1] / 2 * math.log(
            2 * math.pi * self.sigma**2
        )
        return constant - (-squares / (2 * self.sigma**2)).logsumexp(-1)


def corners(*which: int) -> Tensor:
    """Some of 12 points of 64 dimensions, each with entries ±1."""
    generator = torch.Generator().manual_seed(5)
    return torch.randn(12, D, generator=generator).sign()[list(which)]


EVERY = Points(corners(*range(12)), name="every")
FIRST = Points(corners(0, 1, 2, 3, 4, 5, 6, 7), name="first")
LAST = Points(corners(5, 6, 7, 8, 9, 10, 11), name="last")


def nearest(x: Tensor) -> Tensor:  # (n, d) -> (n)
    return torch.cdist(x, corners(*range(12))).argmin(1)


class Scores(Points):
    """Exact at every level by its `scored` alone: above the target, gradients of its own point
    away, and its mass is e^1.5."""

    by_score = False

    @property
    def scored(self) -> Scores:
        other = Scores(self.points, self.sigma, self.name)
        other.by_score = True
        return other

    def at(self, sigma: float) -> Scores:
        return Scores(self.points, sigma, self.name)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) - 1.5

    def _value_and_grad(self, x: Tensor) -> tuple[Tensor, Tensor]:
        value, gradient = super()._value_and_grad(x)
        return value, gradient if self.by_score or self.sigma in (
            SIGMA,
            self.sigma_range[1],
        ) else -gradient
