"""The one run loop: warm-up with adaptation, then draws with everything frozen.

Chains run in `shards` fixed blocks, each with its own random stream and its own batch; what is pooled is summed in block order. So
the draws depend on the seed and the number of shards only.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from poe.adapt import Adaptation
from poe.energy import Energy
from poe.kernels.base import Info, Kernel

BLOCK = 10  # steps that `compile=True` runs as one compiled block


class Counts(NamedTuple):
    """What the steps of all chains added up to."""

    acceptance: float  # mean over chains and steps, of the target's own rung
    nonfinite: int
    divergent: int
    gradients: float
    seconds: float


@dataclass(frozen=True)
class Trace:
    """What a run gives: positions (chains, draws, *event), their energies (chains, draws) in nats, the kernel as it was frozen, the
    last states in block order, and whether it was interrupted."""

    x: Tensor
    energy: Tensor
    kernel: Kernel
    states: tuple[Any, ...]
    counts: Counts
    partial: bool = False


def streams(seed: int, shards: int, device: torch.device) -> list[torch.Generator]:
    """One random stream a shard, all from one seed."""
    children = np.random.SeedSequence(seed).spawn(shards)
    numbers = [int(child.generate_state(1, np.uint64)[0] >> np.uint64(1)) for child in children]
    return [torch.Generator(device).manual_seed(number) for number in numbers]


def run(
    kernel: Kernel,
    energy: Energy,
    x: Tensor | Sequence[Any],
    *,
    draws: int,
    warmup: int = 0,
    thin: int = 1,
    generators: Sequence[torch.Generator],
    progress: str | None = None,
    compile: bool = False,
) -> Trace:
    """Runs chains from `x` (chains, *event), or from the states of an earlier run, and keeps every `thin`-th state after warm-up.

    With `warmup` the step size and preconditioner are adapted for so many steps and then frozen. `compile` runs the steps after
    warm-up in compiled blocks. An interrupt (Ctrl-C) after the first kept state returns what there is, marked partial.
    Raises ValueError where a chain starts at an energy that is not finite.
    """
    started = time.perf_counter()
    bar = tqdm(total=warmup + draws * thin, desc=progress, disable=progress is None, leave=False, mininterval=0.2)
    if isinstance(x, Tensor):
        states = [kernel.init(energy, block) for block in x.tensor_split(len(generators))]
        _check_start(kernel, energy, states)
    else:
        states = list(x)
    gradients = 0.0
    with bar:
        if warmup:
            adaptation = Adaptation.start(kernel, energy, states, warmup, generators)
            for _ in range(warmup):
                kernel = adaptation.kernel
                states, infos = _step_all(kernel, energy, states, generators)
                adaptation = adaptation.update(states, torch.cat([info.acceptance for info in infos]).mean(0))
                gradients += kernel.gradients_per_step
                bar.update()
            kernel = adaptation.kernel
        keeper = _Keeper(draws, thin)
        advance = _compiled(kernel, energy) if compile and kernel.compiles else None
        partial = False
        try:
            while keeper.steps < draws * thin:
                block = BLOCK if advance is not None and draws * thin - keeper.steps >= BLOCK else 1
                for index, generator in enumerate(generators):
                    if block > 1 and advance is not None:
                        noise = kernel.noise(states[index], generator, block)
                        states[index], x_block, energies, info = advance(states[index], noise)
                    else:
                        states[index], info = kernel.step(energy, states[index], kernel.noise(states[index], generator))
                        x_block, energies = (part.unsqueeze(0) for part in kernel.position(states[index]))
                        info = Info(*(part.unsqueeze(0) for part in info))
                    keeper.add(index, x_block, energies, info)
                keeper.steps += block
                bar.update(block)
        except KeyboardInterrupt:
            if keeper.steps < thin:
                raise
            partial = True
    kept = keeper.collect()
    gradients = (gradients + keeper.steps * kernel.gradients_per_step) * kept[0].shape[0]
    counts = Counts(*keeper.counts(), gradients, time.perf_counter() - started)
    return Trace(*kept, kernel, tuple(states), counts, partial)


class _Keeper:
    """Collects every thin-th position of each shard, and adds up what all steps report."""

    def __init__(self, draws: int, thin: int) -> None:
        self.draws, self.thin, self.steps = draws, thin, 0
        self._seen: dict[int, int] = {}
        self._kept: dict[int, list[tuple[Tensor, Tensor]]] = {}
        self._totals: list[Tensor] = []

    def add(self, shard: int, x: Tensor, energy: Tensor, info: Info) -> None:
        """A block of steps: positions (steps, chains, *event), energies (steps, chains), and the infos (steps, chains, *rungs)."""
        seen = self._seen.get(shard, 0)
        self._seen[shard] = seen + len(x)
        first = (-seen - 1) % self.thin
        if first < len(x):
            self._kept.setdefault(shard, []).append((x[first :: self.thin], energy[first :: self.thin]))
        acceptance = info.acceptance if info.acceptance.ndim == energy.ndim else info.acceptance[..., -1]
        self._totals.append(torch.stack([acceptance.mean(), info.nonfinite.sum(), info.divergent.sum()]))

    def counts(self) -> tuple[float, int, int]:
        """(mean acceptance, non-finite proposals, divergent proposals)."""
        totals = torch.stack(self._totals).double()
        return totals[:, 0].mean().item(), int(totals[:, 1].sum()), int(totals[:, 2].sum())

    def collect(self) -> tuple[Tensor, Tensor]:
        """(chains, draws, *event), (chains, draws); after an interrupt, what every shard has."""
        shards = [[torch.cat(parts) for parts in zip(*self._kept[index], strict=True)] for index in sorted(self._kept)]
        least = min(len(x) for x, _ in shards)
        x, energy = (torch.cat([parts[k][:least] for parts in shards], 1) for k in (0, 1))
        return x.transpose(0, 1).contiguous(), energy.transpose(0, 1).contiguous()


def _step_all(
    kernel: Kernel, energy: Energy, states: Sequence[Any], generators: Sequence[torch.Generator]
) -> tuple[list[Any], list[Info]]:
    stepped = [kernel.step(energy, s, kernel.noise(s, g)) for s, g in zip(states, generators, strict=True)]
    return [state for state, _ in stepped], [info for _, info in stepped]


def _check_start(kernel: Kernel, energy: Energy, states: Sequence[Any]) -> None:
    for state in states:
        walkers = kernel.walkers(state)
        bad = ~walkers.energy.isfinite()
        if bool(bad.any()):
            raise ValueError(
                f"{int(bad.sum())} of {bad.numel()} chains of {energy} start where the energy is "
                f"{walkers.energy[bad][0].item()}: give init= points with finite energy"
            )


class _Functional(Energy):
    """The same energy, its gradient taken through `torch.func`, which compiles as one graph."""

    def __init__(self, energy: Energy) -> None:
        super().__init__(energy.event_shape)
        self.energy = energy

    def forward(self, x: Tensor) -> Tensor:  # (*batch, *event) -> (*batch)
        return self.energy(x)

    def value_and_grad(self, x: Tensor) -> tuple[Tensor, Tensor]:
        def total(x: Tensor) -> tuple[Tensor, Tensor]:
            energy = self.energy(x)
            return energy.sum(), energy

        gradient, energy = torch.func.grad(total, has_aux=True)(x)
        return energy.detach(), gradient.detach()


def _compiled(kernel: Kernel, energy: Energy) -> Callable[[Any, Any], tuple[Any, Tensor, Tensor, Info]]:
    """`BLOCK` steps as one compiled function of the state and of the noise, drawn beforehand with a leading axis of steps.

    It returns the last state, the positions (steps, chains, *event), the energies (steps, chains) and the infos, stacked.
    """
    functional = _Functional(energy)

    def block(state: Any, noise: Any) -> tuple[Any, Tensor, Tensor, Info]:
        positions, energies, infos = [], [], []
        for step in range(BLOCK):
            state, info = kernel.step(functional, state, type(noise)(*(part[step] for part in noise)))
            x, value = kernel.position(state)
            positions.append(x)
            energies.append(value)
            infos.append(info)
        stacked = Info(*(torch.stack(parts) for parts in zip(*infos, strict=True)))
        return state, torch.stack(positions), torch.stack(energies), stacked

    return torch.compile(block, dynamic=False)
