"""Schedules of normals, for tests of annealing."""

from __future__ import annotations

import torch

from poe.kernels import Langevin
from poe.smc.schedule import Level, Schedule
from poe.spaces.path import Geometric
from tests.poe.targets import Gauss

CPU = torch.device("cpu")


def started(start: Gauss):
    return lambda n, generator: start.sample(n, generator=generator)


def frozen(start: Gauss, end, betas: list[float], step: float, moves: int) -> Schedule:
    return Schedule(
        Geometric(start, end), tuple(Level(beta, Langevin(step), moves) for beta in betas)
    )
