"""Minima of an energy: where descents ended, clustered in the local metric, polished by Newton
steps, with the covariance and Laplace's mass of each."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from poe.smc.descent import STOP_NATS, Descent, descend
from poe.smc.flat import Flat

MAX_MINIMA = 200
NEWTON_STEPS = 8
MIN_CURVATURE = 1e-4  # of the largest along a coordinate
MAX_WIDTHS = 64  # directions without curvature that are measured
MAX_STALE = 40  # clusters in a row that are no further minimum


class Minimum(NamedTuple):
    """A minimum (d), its energy, the lower triangular root of its covariance (d, d), and Laplace's
    log mass."""

    x: Tensor
    energy: float
    root: Tensor
    log_mass: float


class Minima:
    """The minima of a target that were found so far. `unit` holds sizes of the coordinates (d)."""

    def __init__(self, flat: Flat, unit: Tensor | None = None) -> None:
        self.flat, self.unit = flat, unit
        self.found: list[Minimum] = []
        self.starts = self.skipped = 0

    def __len__(self) -> int:
        return len(self.found)

    def descend(self, x: Tensor, length: Tensor) -> None:  # (n, d), (n)
        """Descends from all, and adds the minima that are new."""
        self.starts += len(x)
        evaluate = self.flat.value_and_grad
        self.clustered(descend(evaluate, x, length, scale=self.unit, eps=self.flat.eps))

    def widths_of(self) -> Tensor:  # -> (minima)
        """The length of a step that is natural to each minimum."""
        return torch.stack([minimum.root.square().sum().sqrt() for minimum in self.found])

    def clustered(self, ended: Descent) -> None:
        """Clusters where descents ended: the lowest first, each with all that lie within its local
        metric."""
        x, energy = ended.x[ended.arrived], ended.energy[ended.arrived]
        order = energy.argsort(stable=True)
        x, energy = x[order], energy[order]
        left = torch.ones(len(x), dtype=torch.bool, device=x.device)
        for minimum in self.found:
            left &= ~_near(minimum, x, energy, self.flat.eps)
        stale = 0
        while bool(left.any()) and len(self.found) < MAX_MINIMA and stale < MAX_STALE:
            i = int(left.nonzero()[0])
            left[i] = False
            minimum, first = self.polished(x[i], float(energy[i]))
            if first is not None:
                left &= ~_near(first, x, energy, self.flat.eps)
            if minimum is None or any(_same(minimum, other) for other in self.found):
                stale += 1
                continue
            stale = 0
            self.found.append(minimum)
            left &= ~_near(minimum, x, energy, self.flat.eps)
        self.skipped += int(left.sum())

    def polished(self, x: Tensor, energy: float) -> tuple[Minimum | None, Minimum | None]:
        """Newton steps to a minimum: (the minimum, None where none is reached; the start of the
        steps with its local metric)."""
        width = torch.ones_like(x) if self.unit is None else self.unit
        first = None
        for _ in range(NEWTON_STEPS):
            root, lower = self.root(x, energy, width)
            if lower is not None:
                x, energy = self.lowered(lower)
                if not math.isfinite(energy):
                    break
                continue
            if root is None:
                break
            found = Minimum(x, energy, root, self.laplace(energy, root))
            first = found if first is None else first
            slope = self.flat.value_and_grad(x.unsqueeze(0))[1][0]
            step = -root @ (root.T @ slope)
            gain = float(-(step @ slope) / 2)
            if gain < STOP_NATS + 8 * self.flat.eps * abs(energy):
                return found, first
            width = root.square().sum(1).sqrt()
            tried = x + step * torch.tensor([1.0, 0.5, 0.1, 0.02]).to(x).unsqueeze(1)
            value = self.flat(tried)
            if not bool(value.min() < energy):
                break
            x, energy = tried[value.argmin()], float(value.min())
        return None, first

    def laplace(self, energy: float, root: Tensor) -> float:
        """log of exp(-E) (2π)^(d/2) det L."""
        return (
            -energy + self.flat.d / 2 * math.log(2 * math.pi) + float(root.diagonal().log().sum())
        )

    def lowered(self, x: Tensor) -> tuple[Tensor, float]:
        """Where a descent from a point beside a saddle ends, and its energy."""
        ended = descend(
            self.flat.value_and_grad,
            x.unsqueeze(0),
            torch.ones_like(x[:1]),
            scale=self.unit,
            eps=self.flat.eps,
        )
        return ended.x[0], float(ended.energy[0]) if bool(ended.arrived) else math.inf

    def root(self, x: Tensor, energy: float, width: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """(the root of the covariance H⁻¹ at x, a lower point): along directions without curvature
        the width is that in which the energy rises by half a nat; a lower point found there means
        that x is no minimum, and there is no root."""
        hessian = self.flat.hessian(x, width)
        if not bool(hessian.isfinite().all()):
            return None, None
        size = hessian.diagonal().abs().clamp(min=1e-30).rsqrt()
        values, vectors = torch.linalg.eigh(hessian * size * size.unsqueeze(1))
        weak = values < MIN_CURVATURE
        if bool(weak.any()):
            found, lower = self.widths(x, energy, (vectors * size.unsqueeze(1)).T[weak])
            if lower is not None:
                return None, lower
            values = values.clone()
            values[weak] = found.square().reciprocal()
            if not bool(values.isfinite().all() and (values > 0).all()):
                return None, None
        covariance = (vectors / values) @ vectors.T * size * size.unsqueeze(1)
        unit = covariance.diagonal().sqrt()
        factor, failed = torch.linalg.cholesky_ex(covariance / unit / unit.unsqueeze(1))
        return (None if failed else factor * unit.unsqueeze(1)), None

    def widths(self, x: Tensor, energy: float, directions: Tensor) -> tuple[Tensor, Tensor | None]:
        # (d), (), (k, d) -> (k), (d)
        """The multiple of each direction along which the energy rises by half a nat, to a factor of
        2, on the narrower side, infinity where it does not rise; and a lower point, if there is
        one."""
        steps = 2.0 ** torch.arange(-40.0, 41.0, dtype=x.dtype, device=x.device)
        sides = torch.cat([steps, -steps])
        found = []
        for direction in directions[:MAX_WIDTHS]:
            points = x + sides.unsqueeze(1) * direction
            rise = self.flat(points) - energy
            if bool(rise.min() < -0.1 - 16 * self.flat.eps * abs(energy)):
                return directions, points[rise.argmin()]
            rises = (rise > 0.5).unflatten(0, (2, -1)).any(0)
            found.append(steps[rises.long().argmax()] if bool(rises.any()) else steps[0] * math.inf)
        found += [found[-1]] * (len(directions) - len(found))
        return torch.stack(found), None


def distances(minimum: Minimum, x: Tensor) -> Tensor:  # (n, d) -> (n)
    """|L⁻¹(x - m)|²."""
    z = torch.linalg.solve_triangular(minimum.root, (x - minimum.x).T, upper=False)
    return z.square().sum(0)


def _near(minimum: Minimum, x: Tensor, energy: Tensor, eps: float) -> Tensor:
    """Ends of descents that belong to a minimum: their distance in its metric, and their energy
    above it, are those of a descent that has nearly arrived."""
    distance = distances(minimum, x)
    above = energy - minimum.energy
    slack = 0.2 + 16 * eps * abs(minimum.energy)
    return (distance < 1 + 2 * slack) & (above < slack + distance)


def _same(a: Minimum, b: Minimum) -> bool:
    """Whether each lies within a tenth of a standard deviation of the other."""
    one = float(distances(a, b.x.unsqueeze(0))[0])
    other = float(distances(b, a.x.unsqueeze(0))[0])
    return min(one, other) < 0.05 and max(one, other) < 4
