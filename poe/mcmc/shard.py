"""One shard: a fixed block of chains with its own random stream and batch."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from poe.algebra.energy import Energy
from poe.kernels.base import Kernel
from poe.kernels.state import Feedback
from poe.mcmc.compiled import BLOCK, sums


class Saved(NamedTuple):
    """A shard as it is stored and sent: its last state, its random stream, what it kept, (kept,
    chains, *event) and (kept, chains), the `sums` of its steps, (4,), and its evaluations of the
    target, with gradient and without."""

    state: Any
    stream: Tensor
    x: Tensor
    energy: Tensor
    sums: Tensor
    evaluations: tuple[float, float]


class Shard:
    """A block of chains of one kernel. It keeps the position after every `thin`-th step, `draws` of
    them, and counts evaluations."""

    def __init__(self, energy: Energy, generator: torch.Generator, draws: int, thin: int) -> None:
        self.target, self.generator = Counted(energy), generator
        self.draws, self.thin, self.steps = draws, thin, 0
        self.state: Any = None

    def start(self, kernel: Kernel, state: Any) -> None:
        """Starts at a state of the kernel."""
        x, energy = kernel.position(state)
        self.state = state
        self.x, self.energy = (
            x.new_empty(self.draws, *x.shape),
            energy.new_empty(self.draws, *energy.shape),
        )
        self.sums = torch.zeros(4, dtype=torch.float64, device=x.device)

    @property
    def kept(self) -> int:
        """How many positions are kept so far."""
        return self.steps // self.thin

    def learn(self, kernel: Kernel) -> tuple[Any, Feedback]:
        """A step of warm-up: the new state, and feedback for adaptation."""
        self.state, _, feedback = kernel.learn(
            self.target, self.state, kernel.noise(self.state, self.generator)
        )
        return self.state, feedback

    def step(self, kernel: Kernel) -> None:
        """One step after warm-up."""
        state, info = kernel.step(self.target, self.state, kernel.noise(self.state, self.generator))
        x, energy = kernel.position(state)
        self.add(state, x.unsqueeze(0), energy.unsqueeze(0), sums(info, energy.ndim))

    def block(self, kernel: Kernel, compiled: Any) -> None:
        """`BLOCK` steps by the compiled function."""
        state, x, energy, total = compiled(
            self.state, kernel.noise(self.state, self.generator, BLOCK)
        )
        self.target.count(energy.numel(), kernel)
        self.add(state, x, energy, total)

    def add(self, state: Any, x: Tensor, energy: Tensor, total: Tensor) -> None:
        # (steps, chains, *event), (steps, chains), (4,)
        """Adds a block of steps that ends in `state`."""
        first, at = (-self.steps - 1) % self.thin, self.kept
        self.state, self.steps, self.sums = state, self.steps + len(x), self.sums + total
        if self.kept > at:
            self.x[at : self.kept] = x[first :: self.thin]
            self.energy[at : self.kept] = energy[first :: self.thin]

    def saved(self) -> Saved:
        """The shard as it is stored."""
        counted = (self.target.gradients, self.target.energies)
        kept = slice(0, self.kept)
        return Saved(
            self.state,
            self.generator.get_state(),
            self.x[kept],
            self.energy[kept],
            self.sums,
            counted,
        )

    def restore(self, saved: Saved, steps: int) -> None:
        """Continues from a stored shard, that many steps after warm-up."""
        self.state, self.sums, self.steps = saved.state, saved.sums, steps
        self.generator.set_state(saved.stream)
        self.x[: self.kept], self.energy[: self.kept] = saved.x, saved.energy
        self.target.gradients, self.target.energies = saved.evaluations


class Counted(Energy):
    """The same energy, counting how often it and its gradient are evaluated."""

    def __init__(self, energy: Energy) -> None:
        super().__init__(energy.event_shape, support=energy.support)
        self.energy = energy
        self.gradients, self.energies = 0.0, 0.0

    @property
    def watched(self) -> Energy:
        """The energy itself."""
        return self.energy

    def __call__(self, x: Tensor) -> Tensor:  # (*batch, *event) -> (*batch)
        value = self.energy(x)
        self.energies += value.numel()
        return value

    def forward(self, x: Tensor) -> Tensor:  # (*batch, *event) -> (*batch)
        return self.energy.forward(x)

    def value_and_grad(self, x: Tensor) -> tuple[Tensor, Tensor]:
        value, gradient = self.energy.value_and_grad(x)
        self.gradients += value.numel()
        return value, gradient

    def count(self, steps: int, kernel: Kernel) -> None:
        """Counts steps of a kernel whose evaluations were not observed, each at its mean cost."""
        self.gradients += steps * kernel.gradients_per_step
        self.energies += 0 if kernel.needs_gradient else steps

    def __str__(self) -> str:
        return str(self.energy)
