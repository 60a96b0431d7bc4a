"""Minima of an energy: where descents ended, clustered in the local metric, polished by Newton
steps, with the covariance and Laplace's mass of each."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from poe.smc.descent import ITERATIONS, STOP_NATS, Descent, descend
from poe.smc.flat import Flat

MAX_MINIMA = 200
FIRST = 512  # descents, after which the others know the metric of a single minimum
NEWTON_STEPS = 8
MIN_CURVATURE = 1e-4  # of the largest along a coordinate
MAX_WIDTHS = 64  # directions without curvature that are measured
NEGLIGIBLE = 60.0  # nats by which the mass of a minimum is smaller, and it is none
MAX_WIDER = 20.0  # nats for each coordinate
MAX_STALE = 15  # clusters in a row that are no further minimum
MAX_TOGETHER = 8  # points that are polished at once


class Minimum(NamedTuple):
    """A minimum (d), its energy, the lower triangular root of its covariance (d, d), and Laplace's
    log mass."""

    x: Tensor
    energy: float
    root: Tensor
    log_mass: float


@dataclass
class _Way:
    """A point (d) with its energy on its way to a minimum by Newton steps, and the widths (d) of
    its differences."""

    x: Tensor
    energy: float
    width: Tensor
    first: Minimum | None = None
    minimum: Minimum | None = None
    ended: bool = False


class Minima:
    """The minima of a target that were found so far. `unit` holds sizes of the coordinates (d); in
    all, points are polished for `max_gradients`, and those that are left are no minima."""

    def __init__(
        self, flat: Flat, unit: Tensor | None = None, max_gradients: float = math.inf
    ) -> None:
        self.flat, self.unit, self.max_gradients = flat, unit, max_gradients
        self.polishing = 0.0  # gradients
        self.found: list[Minimum] = []
        self.starts = self.skipped = 0

    def __len__(self) -> int:
        return len(self.found)

    def descend(self, x: Tensor, length: Tensor) -> None:  # (n, d), (n)
        """Descends from all, and adds the minima that are new. A few go first: where they find one
        minimum, the others descend in its metric, which for a normal takes one step."""
        self.starts += len(x)
        most = max(1, int(min(ITERATIONS, self.max_gradients / max(1, len(x)))))
        few = torch.zeros(len(x), dtype=torch.bool, device=x.device)
        if not self.found:
            few[torch.linspace(0, len(x) - 1, min(FIRST, len(x))).long()] = True
        for part in (few, ~few):
            if len(self.found) == 1 and bool(part.any()):
                self.clustered(self.descended_within(self.found[0], x[part], most))
            elif bool(part.any()):
                evaluate, unit, eps = self.flat.value_and_grad, self.unit, self.flat.eps
                ended = descend(
                    evaluate, x[part], length[part], scale=unit, eps=eps, iterations=most
                )
                self.clustered(ended)

    def widths_of(self) -> Tensor:  # -> (minima)
        """The length of a step that is natural to each minimum."""
        return torch.stack([minimum.root.square().sum().sqrt() for minimum in self.found])

    def clustered(self, ended: Descent) -> None:
        """Clusters where descents ended: the lowest first, each with all that lie within its local
        metric. Once one leads to a minimum that is known, what is left descends on in the metric
        of the lowest: descents that stopped in a curved valley arrive there."""
        x, energy = _sorted(ended.x[ended.arrived], ended.energy[ended.arrived])
        left = self._elsewhere(x, energy) & self._relevant(x, energy)
        stale, size, moved = 0, 1, False
        while bool(left.any()) and len(self.found) < MAX_MINIMA and stale < MAX_STALE:
            each = 4 * self.flat.d  # gradients of two Newton steps
            affordable = int(min((self.max_gradients - self.polishing) / each, MAX_TOGETHER))
            if affordable < 1:
                break
            before = self.flat.gradients
            if stale and self.found and not moved:
                x, energy = _sorted(*self.descended_on(x[left], energy[left]))
                left, moved = self._elsewhere(x, energy) & self._relevant(x, energy), True
                continue
            chosen = left.nonzero().squeeze(1)[: min(size, affordable)]
            left[chosen] = False
            size = min(2 * size, MAX_TOGETHER, affordable)
            known = len(self.found)
            for i, (minimum, first) in zip(
                chosen.tolist(), self.polished(x[chosen], energy[chosen]), strict=True
            ):
                if any(_has(new, x[i], energy[i], self.flat.eps) for new in self.found[known:]):
                    continue
                if first is not None:
                    left &= ~_near(first, x, energy, self.flat.eps)
                if minimum is None or any(_same(minimum, other) for other in self.found):
                    stale += 1
                    continue
                stale = 0
                self.found.append(minimum)
                left &= ~_near(minimum, x, energy, self.flat.eps)
            self.polishing += self.flat.gradients - before
        self.skipped += int(left.sum())

    def _relevant(self, x: Tensor, energy: Tensor) -> Tensor:  # (n, d), (n) -> (n)
        """Which points are low enough: above the lowest by no more than the mass of a minimum can
        make up for that is e^`MAX_WIDER` times as wide along every coordinate."""
        lowest = [*(minimum.energy for minimum in self.found), *energy[:1].tolist()]
        return energy <= min(lowest, default=0.0) + NEGLIGIBLE + MAX_WIDER * x.shape[1]

    def _elsewhere(self, x: Tensor, energy: Tensor) -> Tensor:  # (n, d), (n) -> (n)
        """Which ends of descents belong to no minimum that is known."""
        left = torch.ones(len(x), dtype=torch.bool, device=x.device)
        for minimum in self.found:
            left &= ~_near(minimum, x, energy, self.flat.eps)
        return left

    def descended_on(self, x: Tensor, energy: Tensor) -> tuple[Tensor, Tensor]:
        # (n, d), (n) -> (n, d), (n)
        """Where one further descent of all ends, in coordinates u, x = m + L u, of the lowest
        minimum; of those that do not arrive, the points as they were."""
        lowest = min(self.found, key=lambda minimum: minimum.energy)
        ended = self.descended_within(lowest, x)
        return (
            torch.where(ended.arrived.unsqueeze(1), ended.x, x),
            torch.where(ended.arrived, ended.energy, energy),
        )

    def descended_within(
        self, minimum: Minimum, x: Tensor, iterations: int = ITERATIONS
    ) -> Descent:  # (n, d)
        """Where descents end in coordinates u, x = m + L u, of a minimum."""

        def within(u: Tensor) -> tuple[Tensor, Tensor]:
            value, slope = self.flat.value_and_grad(minimum.x + u @ minimum.root.T)
            return value, slope @ minimum.root

        u = torch.linalg.solve_triangular(minimum.root, (x - minimum.x).T, upper=False).T
        length, eps = u.norm(dim=1).clamp(min=1.0), self.flat.eps
        ended = descend(within, u, length, eps=eps, iterations=iterations)
        return ended._replace(x=minimum.x + ended.x @ minimum.root.T)

    def polished(
        self, x: Tensor, energy: Tensor
    ) -> list[tuple[Minimum | None, Minimum | None]]:  # (k, d), (k)
        """Newton steps from each point to a minimum: (the minimum, None where none is reached; the
        start of the steps with its local metric). Those beside a saddle descend together."""
        unit = torch.ones_like(x[0]) if self.unit is None else self.unit
        ways = [_Way(x[i], float(energy[i]), unit) for i in range(len(x))]
        for _ in range(NEWTON_STEPS):
            lower = [(way, low) for way in ways if (low := self._stepped(way)) is not None]
            if lower:
                ends = self.lowered(torch.stack([low for _, low in lower]))
                for (way, _), point, value, arrived in zip(
                    lower, ends.x, ends.energy, ends.arrived, strict=True
                ):
                    way.x, way.energy, way.ended = point, float(value), not bool(arrived)
        return [(way.minimum, way.first) for way in ways]

    def _stepped(self, way: _Way) -> Tensor | None:
        """One Newton step; a lower point where x is no minimum, from which to descend."""
        if way.ended:
            return None
        root, lower = self.root(way.x, way.energy, way.width)
        if root is None:
            way.ended = lower is None
            return lower
        found = Minimum(way.x, way.energy, root, self.laplace(way.energy, root))
        way.first = found if way.first is None else way.first
        slope = self.flat.value_and_grad(way.x.unsqueeze(0))[1][0]
        step = -root @ (root.T @ slope)
        if float(-(step @ slope) / 2) < STOP_NATS + 8 * self.flat.eps * abs(way.energy):
            way.minimum, way.ended = found, True
            return None
        way.width = root.square().sum(1).sqrt()
        tried = way.x + step * torch.tensor([1.0, 0.5, 0.1, 0.02]).to(step).unsqueeze(1)
        value = self.flat(tried)
        way.ended = not bool(value.min() < way.energy)
        if not way.ended:
            way.x, way.energy = tried[value.argmin()], float(value.min())
        return None

    def laplace(self, energy: float, root: Tensor) -> float:
        """log of exp(-E) (2π)^(d/2) det L."""
        return (
            -energy + self.flat.d / 2 * math.log(2 * math.pi) + float(root.diagonal().log().sum())
        )

    def lowered(self, x: Tensor) -> Descent:  # (k, d)
        """Where descents from points beside a saddle end."""
        one = torch.ones_like(x[:, 0])
        return descend(self.flat.value_and_grad, x, one, scale=self.unit, eps=self.flat.eps)

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


def _sorted(x: Tensor, energy: Tensor) -> tuple[Tensor, Tensor]:
    """By energy, the lowest first."""
    order = energy.argsort(stable=True)
    return x[order], energy[order]


def _has(minimum: Minimum, x: Tensor, energy: Tensor, eps: float) -> bool:
    """Whether a point (d) belongs to a minimum."""
    return bool(_near(minimum, x.unsqueeze(0), energy, eps))


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
