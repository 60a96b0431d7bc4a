"""One batched descent for many starts: L-BFGS with backtracking.

Each start has its own history and step. With s_i = x_{i+1} - x_i, y_i = g_{i+1} - g_i and
ρ_i = 1 / s_iᵀy_i, the direction -H g is the two-loop recursion over the last `HISTORY` pairs with
s_iᵀy_i > 0 from H_0 = (sᵀy / yᵀy) I, in coordinates divided by `scale`; a step t halves twice until
E(x + t p) <= E(x) + 1e-4 t gᵀp (Armijo). The first step is that of the curvature along the
gradient, by one difference of gradients.

Reference: Nocedal and Wright 2006, Numerical Optimization, chapters 3 and 7.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

HISTORY = 6  # pairs (s, y) of each start
ITERATIONS = 60  # at most
BACKTRACKS = 6  # of a step, each a quarter of the one before
STOP_NATS = 0.01  # predicted decrease, below which a descent has arrived
CALM_STEPS = 2  # in a row below it: one alone may be a valley seen across
MAX_COORDINATE = 1e15  # beyond which a descent is a runaway


class Descent(NamedTuple):
    """Where descents ended: points (n, d), their energies (n) and gradients (n, d), and which have
    arrived: runaways, and those that walls of +inf or cusps stopped, have not."""

    x: Tensor
    energy: Tensor
    gradient: Tensor
    arrived: Tensor


def descend(
    evaluate: Callable[[Tensor], tuple[Tensor, Tensor]],
    x: Tensor,
    length: Tensor,
    *,
    scale: Tensor | None = None,
    eps: float = 1e-15,
    iterations: int = ITERATIONS,
) -> Descent:
    # x (n, d), length (n), scale (d)
    """Descends from all starts at once. `length` is the natural size of each first step, `eps` the
    resolution of an energy relative to its size."""
    unit = torch.ones_like(x[0]) if scale is None else scale

    def inner(u: Tensor) -> tuple[Tensor, Tensor]:
        energy, slope = evaluate(u * unit)
        return energy, slope * unit

    state = _State(inner, x / unit, length, eps)
    for _ in range(iterations):
        if not state.step():
            break
    return Descent(state.x * unit, state.energy, state.gradient / unit, state.arrived)


class _State:
    """All starts, and the compact history of those that are still on their way."""

    def __init__(
        self,
        evaluate: Callable[[Tensor], tuple[Tensor, Tensor]],
        x: Tensor,
        length: Tensor,
        eps: float,
    ) -> None:
        self.evaluate, self.x, self.eps = evaluate, x.clone(), eps
        self.energy, self.gradient = evaluate(x)
        self.arrived = torch.zeros(len(x), dtype=torch.bool, device=x.device)
        alive = self.energy.isfinite()
        self.index = alive.nonzero().squeeze(1)
        self.s: list[Tensor] = []
        self.y: list[Tensor] = []
        self.failures = torch.zeros(len(self.index), dtype=torch.long, device=x.device)
        self.first = self._first_step(length[self.index])
        self.curved = torch.ones(len(self.index), dtype=torch.bool, device=x.device)
        self.calm = torch.zeros_like(self.failures)  # steps in a row that gained next to nothing

    def _first_step(self, length: Tensor) -> Tensor:  # (m) -> (m)
        """g's multiplier: that of the curvature along g, and at most a step of `length`."""
        x, g = self.x[self.index], self.gradient[self.index]
        norm = g.norm(dim=1).clamp(min=1e-300)
        probe = 1e-3 * length / norm
        shifted = self.evaluate(x - probe.unsqueeze(1) * g)[1] if len(x) else g
        curvature = ((g - shifted) * g).sum(1) / (probe * norm.square())
        most = length / norm
        return torch.where(
            curvature > 0, torch.minimum(1 / curvature.clamp(min=1e-300), most), most
        )

    def step(self) -> bool:
        """One step of all that are on their way; False where none is left."""
        if not len(self.index):
            return False
        i = self.index
        x, e, g = self.x[i], self.energy[i], self.gradient[i]
        p = self._direction(g)
        slope = (p * g).sum(1)
        uphill = ~(slope < 0)
        steepest = uphill | ~self.curved  # without curvature: twice the step before
        p = torch.where(steepest.unsqueeze(1), -g * self.first.unsqueeze(1), p)
        slope = torch.where(steepest, (p * g).sum(1), slope)
        new_x, new_e, new_g, ok = self._search(x, e, g, p, slope)
        self.x[i], self.energy[i], self.gradient[i] = new_x, new_e, new_g
        s, y = new_x - x, new_g - g
        size = s.norm(dim=1)
        good = (s * y).sum(1) > 1e-12 * size * y.norm(dim=1)
        self.s = [*self.s, torch.where(good.unsqueeze(1), s, 0)][-HISTORY:]
        self.y = [*self.y, torch.where(good.unsqueeze(1), y, 0)][-HISTORY:]
        grown = 2 * size / new_g.norm(dim=1).clamp(min=1e-300)
        calm = self.calm > 0  # where rounding hides the curvature
        self.first = torch.where(ok & ~good & ~calm, grown, self.first)
        curved, self.curved = good | calm, good | ~ok | calm
        resolution = 8 * self.eps * new_e.abs()
        small = -slope / 2 < torch.maximum(torch.full_like(slope, STOP_NATS), resolution)
        still = (
            small & curved & (e - new_e < torch.maximum(torch.full_like(e, STOP_NATS), resolution))
        )
        self.calm = torch.where(still, self.calm + 1, 0)
        still = self.calm >= CALM_STEPS
        self.failures = torch.where(ok, 0, self.failures + 1)
        runaway = (new_x.abs().amax(1) > MAX_COORDINATE) | (new_e == -math.inf)
        self.arrived[i[still & ~runaway]] = True
        self._keep(~(still | runaway | (self.failures >= 2)), ok)
        return True

    def _search(
        self, x: Tensor, e: Tensor, g: Tensor, p: Tensor, slope: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Backtracking along p from x: the new points, and which of them moved."""
        new_x, new_e, new_g = x.clone(), e.clone(), g.clone()
        todo, t = torch.arange(len(x), device=x.device), torch.ones_like(e)
        for _ in range(BACKTRACKS):
            at = x[todo] + t[todo].unsqueeze(1) * p[todo]
            value, gradient = self.evaluate(at)
            slack = 4 * self.eps * e[todo].abs()
            good = value <= e[todo] + 1e-4 * t[todo] * slope[todo] + slack
            done = todo[good]
            new_x[done], new_e[done], new_g[done] = at[good], value[good], gradient[good]
            todo = todo[~good]
            if not len(todo):
                break
            t[todo] /= 4
        moved = torch.ones(len(x), dtype=torch.bool, device=x.device)
        moved[todo] = False
        return new_x, new_e, new_g, moved

    def _direction(self, g: Tensor) -> Tensor:
        """-H g by the two-loop recursion."""
        if not self.s:
            return -g * self.first.unsqueeze(1)
        q, stored = g.clone(), []
        products = [(s * y).sum(1) for s, y in zip(self.s, self.y, strict=True)]
        for s, y, sy in reversed(list(zip(self.s, self.y, products, strict=True))):
            a = torch.where(sy > 0, (s * q).sum(1) / sy.clamp(min=1e-300), 0)
            q -= a.unsqueeze(1) * y
            stored.append(a)
        gamma = self.first.clone()
        for y, sy in zip(self.y, products, strict=True):
            gamma = torch.where(sy > 0, sy / y.square().sum(1).clamp(min=1e-300), gamma)
        q *= gamma.unsqueeze(1)
        for s, y, sy, a in zip(self.s, self.y, products, reversed(stored), strict=True):
            b = torch.where(sy > 0, (y * q).sum(1) / sy.clamp(min=1e-300), 0)
            q += s * torch.where(sy > 0, a - b, 0).unsqueeze(1)
        return -q

    def _keep(self, left: Tensor, ok: Tensor) -> None:
        """Drops what has ended, and forgets the history of what could not move."""
        self.s = [torch.where(ok.unsqueeze(1), s, 0) for s in self.s] if not ok.all() else self.s
        if bool(left.all()):
            return
        self.index, self.first = self.index[left], self.first[left]
        self.failures, self.curved = self.failures[left], self.curved[left]
        self.calm = self.calm[left]
        self.s, self.y = [s[left] for s in self.s], [y[left] for y in self.y]
