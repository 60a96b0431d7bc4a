"""`compile=True`: blocks of steps as one compiled function of a state and of the noise of all its
steps."""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from poe.algebra.energy import Energy
from poe.kernels.base import Kernel
from poe.kernels.state import Info

BLOCK = 10  # steps of a compiled block


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


def compiled(
    kernel: Kernel, energy: Energy
) -> Callable[[Any, Any], tuple[Any, Tensor, Tensor, Tensor]]:
    """`BLOCK` steps as one compiled function of the state and of the noise, which has a leading
    axis of steps.

    It returns the last state, the positions (steps, chains, *event), the energies (steps, chains),
    and the `sums` of the infos.
    """
    functional = _Functional(energy)

    def block(state: Any, noise: Any) -> tuple[Any, Tensor, Tensor, Tensor]:
        positions, energies, infos = [], [], []
        for step in range(BLOCK):
            state, info = kernel.step(
                functional, state, type(noise)(*(part[step] for part in noise))
            )
            x, value = kernel.position(state)
            positions.append(x)
            energies.append(value)
            infos.append(info)
        stacked = Info(*(torch.stack(parts) for parts in zip(*infos, strict=True)))
        energies = torch.stack(energies)
        return state, torch.stack(positions), energies, sums(stacked, energies.ndim)

    # torch.compile limits the number of versions of one code object: each block gets its own
    own = types.FunctionType(block.__code__.replace(), block.__globals__, closure=block.__closure__)
    return torch.compile(own, dynamic=False)


def sums(info: Info, batch: int) -> Tensor:
    # -> (4,)
    """Sums over steps and chains: acceptance and non-finite proposals, of the target's own rung
    where infos have an axis of rungs beyond `batch`; divergent proposals; and the number of
    terms."""
    own = info.acceptance.ndim == batch
    acceptance = info.acceptance if own else info.acceptance[..., -1]
    nonfinite = info.nonfinite if own else info.nonfinite[..., -1]
    counts = [acceptance.double().sum(), nonfinite.sum(), info.divergent.sum()]
    return torch.stack(
        [part.double() for part in counts] + [counts[0].new_tensor(acceptance.numel())]
    )
