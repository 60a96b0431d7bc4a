"""Block Gibbs: blocks of coordinates redrawn from their exact conditionals, in turn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from poe.algebra.capabilities import TakesUniforms
from poe.algebra.energy import Energy
from poe.kernels.base import Kernel
from poe.kernels.moves import evaluate, has_gradient, per_event
from poe.kernels.state import Info, State
from poe.spaces.conditionals import Conditionals, opaque

SCANS = ("systematic", "random")


class SweepNoise(NamedTuple):
    """Uniform numbers (*batch, sweeps, coordinates and hidden units), and those that order the
    blocks, (sweeps, coordinates); of a systematic scan the latter are empty, (sweeps, 0)."""

    uniform: Tensor
    order: Tensor


@dataclass(frozen=True)
class Gibbs(Kernel):
    """Gibbs sampling: every block B of coordinates in turn is redrawn from its exact conditional,
    by inversion of given uniforms:

        x_B ~ p(x_B | x_rest) = exp(-E(x_B, x_rest)) / Σ_B exp(-E(x_B, x_rest)).

    Sites of one block are independent given all others, so that one pass redraws them together: the
    colours of a checkerboard, the layers of a Boltzmann machine. Where experts sum over hidden
    units h (an RBM), a sweep begins with h ~ p(h | x), and then x_B ~ p(x_B | x_rest, h), which
    leaves p(x) invariant too. Blocks and conditionals are assembled from the experts of a
    composition (`poe.spaces.conditionals`); any other discrete energy is evaluated with each value
    of a site in turn: as many energies per coordinate as it has values. Nothing is rejected or
    tuned; where a conditional is NaN, the block does not change, which is counted as not finite.

    Arguments:
        scan: "systematic", always in the same order; or "random", in a new random order each sweep,
            which makes the step reversible.
        sweeps: over all blocks, per step; the energy is evaluated once per step.
        hidden: uniforms that a sweep takes beyond one per coordinate. None: what the energy needs,
            found by `init`. To be given only in a `Cycle`, whose states do not hold it.

    References: Geman and Geman 1984, IEEE PAMI 6(6); Hinton 2002, Neural Computation 14(8) (layers
    of an RBM).
    """

    scan: str = "systematic"
    sweeps: int = 1
    hidden: int | None = None
    needs_gradient = False
    gradients_per_step = 0.0

    def __post_init__(self) -> None:
        if self.scan not in SCANS:
            raise ValueError(
                f'scan={self.scan!r} is unknown: blocks are visited in a "systematic" or a '
                '"random" order'
            )
        if self.sweeps < 1:
            raise ValueError(f"a step has at least one sweep, got {self.sweeps}")

    def check(self, energy: Energy) -> None:
        """Raises ValueError where the energy has neither blocks that it redraws nor finitely many
        values for each coordinate."""
        _extra(energy)

    def init(self, energy: Energy, x: Tensor) -> State:  # x: (*batch, *event)
        extra = _extra(energy)
        state = evaluate(energy, x.detach(), False)
        return state._replace(gradient=state.energy.new_empty(0, extra)) if extra else state

    def noise(
        self, state: State, generator: torch.Generator | None = None, steps: int | None = None
    ) -> SweepNoise:
        if steps is not None:
            raise ValueError("Gibbs draws the noise of one step at a time")
        like, n = state.energy, state.x.shape[state.energy.ndim :].numel()
        extra = self.hidden
        if extra is None:
            extra = (
                0 if has_gradient(state) or state.gradient.ndim != 2 else state.gradient.shape[1]
            )
        uniform = torch.rand(
            (*like.shape, self.sweeps, n + extra),
            generator=generator,
            dtype=like.dtype,
            device=like.device,
        )
        random = n if self.scan == "random" else 0
        return SweepNoise(
            uniform,
            torch.rand(
                self.sweeps, random, generator=generator, dtype=torch.float64, device=like.device
            ),
        )

    def step(self, energy: Energy, state: State, noise: SweepNoise) -> tuple[State, Info]:
        x, own = state.x, opaque(energy)
        how: Any = _Own(own) if own is not None else _Stated(Conditionals(energy), x.device)
        needed = how.hidden + x.shape[state.energy.ndim :].numel()
        if noise.uniform.shape[-1] != needed:
            raise ValueError(
                f"a sweep over {energy} takes {needed} uniforms, {how.hidden} of them for hidden "
                f"units, and the noise has {noise.uniform.shape[-1]}: in a Cycle give "
                f"Gibbs(hidden={how.hidden})"
            )
        failed = torch.zeros(state.energy.shape, dtype=torch.bool, device=x.device)
        with torch.no_grad():
            for uniform, order in zip(noise.uniform.unbind(-2), noise.order, strict=True):
                ranks: Sequence[int] = range(how.blocks)
                ranks = order[: how.blocks].argsort().tolist() if len(order) else ranks
                x, wrong = how.sweep(x, uniform, ranks, state.energy.ndim)
                failed = failed | wrong
        moved = evaluate(energy, x, has_gradient(state))
        gradient = moved.gradient if has_gradient(state) else state.gradient
        good = ~failed & moved.energy.isfinite()
        return moved._replace(gradient=gradient), Info(
            good.to(moved.energy), good, ~good, torch.zeros_like(good)
        )


def _extra(energy: Energy) -> int:
    """How many uniforms a sweep takes beyond one per coordinate."""
    own = opaque(energy)
    return _Own(own).hidden if own is not None else Conditionals(energy).hidden


class _Own:
    """Sweeps of an energy that redraws its own blocks."""

    def __init__(self, energy: Any) -> None:
        self.energy, self.blocks = energy, len(energy.blocks)
        sizes = [len(block) for block in energy.blocks]
        self.widths = list(energy.uniforms) if energy.can(TakesUniforms) else sizes
        self.hidden = sum(self.widths) - energy.event_shape.numel()

    def sweep(
        self, x: Tensor, uniform: Tensor, order: Sequence[int], batch: int
    ) -> tuple[Tensor, Tensor]:
        pieces = uniform.split(self.widths, -1)
        for block in order:
            x = self.energy.sample_block(x, block, pieces[block])
        return x, ~x.isfinite().flatten(batch).all(-1) if x.ndim > batch else ~x.isfinite()


class _Stated:
    """Sweeps by conditionals that experts state, or that are evaluated."""

    def __init__(self, conditionals: Conditionals, device: torch.device) -> None:
        self.conditionals, self.hidden = conditionals, conditionals.hidden
        self.sites = conditionals.blocks(device)
        self.blocks = len(self.sites)

    def sweep(
        self, x: Tensor, uniform: Tensor, order: Sequence[int], batch: int
    ) -> tuple[Tensor, Tensor]:
        c, event = self.conditionals, x.ndim - batch
        own, hidden = uniform.split([uniform.shape[-1] - self.hidden, self.hidden], -1)
        drawn = c.draw(x, hidden)
        failed = torch.zeros(x.shape[:batch], dtype=torch.bool, device=x.device)
        pieces = own.split([len(sites) for sites in self.sites], -1)
        for block in order:
            sites = self.sites[block]
            logits = c.logits(x, sites, drawn)
            new = c.sites.redraw(x, sites, logits, pieces[block], event)
            if not bool(logits.sum().isfinite()):  # a NaN, or legitimate infinities
                wrong = logits.isnan().flatten(batch).any(-1)
                new, failed = torch.where(per_event(wrong, event), x, new), failed | wrong
            x = new
        return x, failed
