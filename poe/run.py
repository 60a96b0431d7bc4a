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
        advance = _compiled(kernel, energy) if compile else None
        partial = False
        try:
            while keeper.steps < draws * thin:
                if advance is not None and draws * thin - keeper.steps >= BLOCK:
                    for index, generator in enumerate(generators):
                        noise = [kernel.noise(states[index], generator) for _ in range(BLOCK)]
                        history = advance(states[index], noise)
                        states[index] = history[-1][0]
                        keeper.add(index, [kernel.position(s) for s, _ in history], [info for _, info in history])
                    keeper.steps += BLOCK
                    bar.update(BLOCK)
                else:
                    states, infos = _step_all(kernel, energy, states, generators)
                    for index, (state, info) in enumerate(zip(states, infos, strict=True)):
                        keeper.add(index, [kernel.position(state)], [info])
                    keeper.steps += 1
                    bar.update()
        except KeyboardInterrupt:
            if keeper.steps < thin:
                raise
            partial = True
    kept = keeper.collect()
    gradients = (gradients + keeper.steps * kernel.gradients_per_step) * kept[0].shape[0]
    counts = Counts(keeper.acceptance(), keeper.nonfinite, keeper.divergent, gradients, time.perf_counter() - started)
    return Trace(*kept, kernel, tuple(states), counts, partial)


class _Keeper:
    """Collects every thin-th position of each shard, and the counts of all steps."""

    def __init__(self, draws: int, thin: int) -> None:
        self.draws, self.thin, self.steps = draws, thin, 0
        self.nonfinite = self.divergent = 0
        self._seen: dict[int, int] = {}
        self._kept: dict[int, list[tuple[Tensor, Tensor]]] = {}
        self._accepted: list[float] = []

    def add(self, shard: int, positions: Sequence[tuple[Tensor, Tensor]], infos: Sequence[Info]) -> None:
        for position, info in zip(positions, infos, strict=True):
            self._seen[shard] = self._seen.get(shard, 0) + 1
            if self._seen[shard] % self.thin == 0:
                self._kept.setdefault(shard, []).append(position)
            acceptance = info.acceptance if info.acceptance.ndim == 1 else info.acceptance[:, -1]
            self._accepted.append(acceptance.mean().item())
            self.nonfinite += int(info.nonfinite.sum())
            self.divergent += int(info.divergent.sum())

    def acceptance(self) -> float:
        return float(np.mean(self._accepted)) if self._accepted else float("nan")

    def collect(self) -> tuple[Tensor, Tensor]:
        """(chains, draws, *event), (chains, draws); after an interrupt, what every shard has."""
        least = min(len(kept) for kept in self._kept.values())
        shards = [self._kept[index][:least] for index in sorted(self._kept)]
        x = torch.cat([torch.stack([x for x, _ in kept], 1) for kept in shards])
        return x, torch.cat([torch.stack([e for _, e in kept], 1) for kept in shards])


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


def _compiled(kernel: Kernel, energy: Energy) -> Callable[[Any, Sequence[Any]], list[tuple[Any, Info]]]:
    """`BLOCK` steps as one compiled function of the state and the noise drawn beforehand."""
    functional = _Functional(energy)

    def block(state: Any, noises: Sequence[Any]) -> list[tuple[Any, Info]]:
        history = []
        for noise in noises:
            state, info = kernel.step(functional, state, noise)
            history.append((state, info))
        return history

    return torch.compile(block, dynamic=False)
