"""(c) Langevin chains on an 8-mode mixture in the plane: compiled blocks of steps against eager
autograd.

Both sides follow the same rule (MALA: one gradient a step, accept per chain) on the same energy, in
float32 on one thread, and keep every position. Ours is the run loop, timed from step 500 on, so
that compilation (shown apart) does not count. By hand is the loop that a user writes in eager
torch.
"""

from __future__ import annotations

import math
import statistics
import time

import torch
from torch import Tensor

import poe
from poe.kernels.langevin import Langevin
from poe.mcmc.run import run, streams
from timing import seconds, table

STEP, SETTLED, LONG, TURNS = 0.2, 500, 10_500, 5
ANGLE = torch.arange(8) * (math.pi / 4)
MEANS = 4 * torch.stack([ANGLE.cos(), ANGLE.sin()], -1)


class Ring(poe.Energy):
    """Eight Gaussians of unit width on a circle of radius 4, equal weights."""

    def __init__(self) -> None:
        super().__init__((2,))
        self.register_buffer("means", MEANS)

    def forward(self, x: Tensor) -> Tensor:  # (*batch, 2) -> (*batch)
        return ring(x)


def ring(x: Tensor) -> Tensor:  # (*batch, 2) -> (*batch)
    return -torch.logsumexp(-(x.unsqueeze(-2) - MEANS).square().sum(-1) / 2, -1)


def by_hand(x: Tensor, steps: int) -> Tensor:  # (chains, 2) -> (steps, chains, 2)
    def value_and_grad(x: Tensor) -> tuple[Tensor, Tensor]:
        x = x.detach().requires_grad_()
        energy = ring(x)
        return energy.detach(), torch.autograd.grad(energy.sum(), x)[0]

    energy, gradient = value_and_grad(x)
    kept = []
    for _ in range(steps):
        normal = torch.randn_like(x)
        proposal = x - STEP * gradient + math.sqrt(2 * STEP) * normal
        new_energy, new_gradient = value_and_grad(proposal)
        back = normal - math.sqrt(STEP / 2) * (gradient + new_gradient)
        log_ratio = energy - new_energy + (normal.square() - back.square()).sum(-1) / 2
        accepted = torch.rand(len(x)).log() < log_ratio
        x = torch.where(accepted[:, None], proposal, x)
        energy = torch.where(accepted, new_energy, energy)
        gradient = torch.where(accepted[:, None], new_gradient, gradient)
        kept.append(x)
    return torch.stack(kept)


class Clock:
    """Takes the place of a checkpoint, is called after every block of steps, and records the
    time."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def resume(self, codec: object) -> None: ...

    def save(self, tree: object, codec: object, *, write: bool = True) -> None: ...

    def due(self) -> bool:
        self.times.append(time.process_time())
        return False


def ours(x: Tensor, steps: int, compiled: bool) -> tuple[float, float]:
    """Seconds of the first `SETTLED` steps, and of each of the others."""
    clock, began = Clock(), time.process_time()
    generators = streams(0, 1, x.device)
    run(
        Langevin(STEP),
        Ring(),
        x,
        draws=steps,
        generators=generators,
        compile=compiled,
        checkpoint=clock,
    )  # type: ignore[arg-type]
    settled = len(clock.times) * SETTLED // steps
    return clock.times[settled] - began, (time.process_time() - clock.times[settled]) / (
        steps - SETTLED
    )


rows = []
for chains, goal in ((100, 5.0), (1000, 2.5)):
    torch.manual_seed(0)
    x = torch.randn(chains, 2)
    compiling, _ = ours(x, 2 * SETTLED, compiled=True)
    hand, eager, compiled = [], [], []
    for _ in range(TURNS):
        hand.append(seconds(lambda x=x: by_hand(x, 1_000)) / 1_000)
        eager.append(ours(x, 2 * SETTLED, compiled=False)[1])
        compiled.append(ours(x, LONG, compiled=True)[1])
    by = {"by hand": hand, "ours, eager": eager, "ours, compiled": compiled}
    print(f"{chains} chains, first compilation {compiling:.0f} s, microseconds a step: ", end="")
    print(", ".join(f"{name} {1e6 * statistics.median(times):.0f}" for name, times in by.items()))
    speed = statistics.median(h / c for h, c in zip(hand, compiled, strict=True))
    rows.append((f"{chains} chains, by hand over compiled", speed, "x", goal))
table("MALA on 8 modes in the plane", rows, largest=False)
