"""What every kernel has in common: the state of a batch of chains, what a step reports, and the protocol."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from poe.energy import Energy

DIVERGENT = 1000.0  # nats: a proposal whose energy rises by more is counted as divergent


class State(NamedTuple):
    """Chains at rest: positions (*batch, *event), energies (*batch) in nats, gradients (*batch, *event)."""

    x: Tensor
    energy: Tensor
    gradient: Tensor


class Info(NamedTuple):
    """What a step did, each of shape (*batch): acceptance probability in [0, 1], whether the proposal was taken, whether its energy
    or gradient was not finite (it is rejected then), whether its energy rose by more than `DIVERGENT` nats."""

    acceptance: Tensor
    accepted: Tensor
    nonfinite: Tensor
    divergent: Tensor


class Kernel(Protocol):
    """One Markov transition on a batch of chains; a frozen value. All randomness is drawn before the step, with a fixed size."""

    @property
    def exact(self) -> bool:
        """Whether the kernel leaves the target invariant."""
        ...

    @property
    def step_size(self) -> float | Tensor | None: ...

    @property
    def compiles(self) -> bool:
        """Whether `step` is one graph of tensors, and `noise` takes a number of steps for a leading axis."""
        ...

    @property
    def scale(self) -> Tensor | None: ...

    @property
    def dense(self) -> bool: ...

    @property
    def target_acceptance(self) -> float: ...

    @property
    def gradients_per_step(self) -> float: ...

    def init(self, energy: Energy, x: Tensor) -> Any: ...

    def noise(self, state: Any, generator: torch.Generator | None = None, steps: int | None = None) -> Any: ...

    def step(self, energy: Energy, state: Any, noise: Any) -> tuple[Any, Info]: ...

    def tuned(self, step_size: float | Tensor, scale: Tensor | None, dense: bool) -> Kernel:
        """The same kernel with another step size and preconditioner."""
        ...

    def walkers(self, state: Any) -> State:
        """Everything that moves, (chains, *rungs): what adaptation learns from."""
        ...

    def position(self, state: Any) -> tuple[Tensor, Tensor]:
        """The draws of the target that a state holds, and their energies: (chains, *event), (chains)."""
        ...


def per_event(values: Tensor, event: int) -> Tensor:
    # (*batch) -> (*batch, 1, ..., 1)
    """Values of the batch, ready to broadcast over `event` event axes."""
    return values.reshape(values.shape + (1,) * event)
