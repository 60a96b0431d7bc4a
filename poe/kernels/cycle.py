"""Kernels run one after another."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from poe.algebra.energy import Energy
from poe.kernels.base import Kernel
from poe.kernels.state import Feedback, Info, State


@dataclass(frozen=True)
class Cycle(Kernel):
    """Kernels run one after another in each step, always in the same order: it leaves invariant
    what all of them do.

    Each kernel is tuned independently in warm-up, at its own acceptance; what a step reports is the
    mean acceptance over the kernels, and whether any of them moved or failed. Where one of the
    kernels needs gradients, the others evaluate them as well, so that every step starts from a
    complete state.

    Raises TypeError for kernels whose states hold more than `State` (replica exchange, unadjusted
    microcanonical dynamics): they cannot continue from the state of another kernel.
    """

    kernels: Sequence[Kernel]

    def __post_init__(self) -> None:
        object.__setattr__(self, "kernels", tuple(self.kernels))
        if not self.kernels:
            raise ValueError("a cycle needs at least one kernel")
        for kernel in self.kernels:
            if not kernel.plain:
                raise TypeError(
                    f"{type(kernel).__name__} keeps a state of its own, so that it cannot be part "
                    "of a cycle"
                )

    @property
    def parts(self) -> tuple[Kernel, ...]:
        return tuple(self.kernels)

    @property
    def exact(self) -> bool:
        return all(kernel.exact for kernel in self.kernels)

    @property
    def ready(self) -> bool:
        return all(kernel.ready for kernel in self.kernels)

    @property
    def needs_gradient(self) -> bool:
        return any(kernel.needs_gradient for kernel in self.kernels)

    @property
    def gradients_per_step(self) -> float:
        if not self.needs_gradient:
            return 0.0
        return sum(
            kernel.gradients_per_step if kernel.needs_gradient else 1.0 for kernel in self.kernels
        )

    def check(self, energy: Energy) -> None:
        for kernel in self.kernels:
            kernel.check(energy)

    def noise(
        self, state: State, generator: torch.Generator | None = None, steps: int | None = None
    ) -> tuple[Any, ...]:
        return tuple(kernel.noise(state, generator, steps) for kernel in self.kernels)

    def step(self, energy: Energy, state: State, noise: tuple[Any, ...]) -> tuple[State, Info]:
        infos = []
        for kernel, numbers in zip(self.kernels, noise, strict=True):
            state, info = kernel.step(energy, state, numbers)
            infos.append(info)
        return state, joined(infos)

    def learn(
        self, energy: Energy, state: State, noise: tuple[Any, ...]
    ) -> tuple[State, Info, Feedback]:
        infos, feedbacks = [], []
        for kernel, numbers in zip(self.kernels, noise, strict=True):
            state, info, feedback = kernel.learn(energy, state, numbers)
            infos.append(info)
            feedbacks.append(feedback)
        info = joined(infos)
        return state, info, Feedback(info.acceptance, parts=tuple(feedbacks))

    def rebuilt(self, parts: tuple[Kernel, ...]) -> Cycle:
        return replace(self, kernels=parts)

    def through(self, around: Callable[[Energy], Energy]) -> Cycle:
        return replace(self, kernels=tuple(kernel.through(around) for kernel in self.kernels))


def joined(infos: Sequence[Info]) -> Info:
    """The mean acceptance of several moves, and whether any of them was taken or failed."""
    acceptance = torch.stack([info.acceptance for info in infos]).mean(0)
    return Info(acceptance, *(torch.stack([info[k] for info in infos]).any(0) for k in (1, 2, 3)))
