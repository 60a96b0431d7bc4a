"""Replica exchange: copies of the chains along a path swap positions, so that the last one crosses
between modes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from poe.algebra.capabilities import Samples, as_a
from poe.algebra.energy import Energy
from poe.kernels.base import Kernel
from poe.kernels.cycle import joined
from poe.kernels.langevin import Langevin
from poe.kernels.moves import has_gradient
from poe.kernels.state import Feedback, Info, State
from poe.spaces.path import Geometric, mix, take


class LadderState(NamedTuple):
    """All rungs of all chains, as one batch (chains, rungs), with the parity of the next swap and
    the mean swap acceptance (rungs - 1,) of the step that led here."""

    rungs: State
    parity: int
    swapped: Tensor


class LadderNoise(NamedTuple):
    """The inner kernel's noise of each move, uniforms (chains, rungs - 1) for the swaps, and exact
    draws for the first rung."""

    moves: tuple[Any, ...]
    swaps: Tensor
    fresh: Tensor


@dataclass(frozen=True)
class Tempered(Kernel):
    """Replica exchange over a path from `start` to the target, at inverse temperatures 0 = β_0 <
    ... < β_R = 1.

    One step: `moves` transitions of the inner kernel on every rung; the first rung is then redrawn
    exactly from `start`; then neighbours i, i + 1 (even i in one step, odd i in the next) swap with
    probability min(1, exp((β_{i+1} - β_i)(U(x_{i+1}) - U(x_i)))), U = E_1 - E_0. The joint law Π
    p_{β_i} is invariant whenever the inner kernel leaves each p_β so.

    Arguments:
        start: where the path begins; it draws exactly.
        betas: inverse temperatures (rungs,), from 0 to 1.
        kernel: moves the walkers of all rungs as one batch (chains, rungs), a step size for each;
            Langevin, Hamiltonian, RandomWalk or any other kernel with one step size whose states
            are `State`. With RandomWalk no gradient is ever asked for.
        moves: of the inner kernel, a step.
        path: builds the path from its two ends; the geometric one by default. It has `start`,
            `end`, `pair(x)` and `level(betas)`, as `poe.spaces.path.Geometric`, and its energies
            are (1 - β) E_0 + β E_1.

    Raises ValueError for inverse temperatures that do not rise from 0 to 1, TypeError for a start
    that cannot draw or a kernel that cannot move a ladder.

    References: Geyer 1991; Syed, Bouchard-Côté, Deligiannidis and Doucet 2022, J. R. Statist. Soc.
    B 84(2) (even-odd swaps, and the spacing that equalises the rejection rates, `respaced`).
    """

    start: Energy
    betas: Tensor
    kernel: Kernel = field(default_factory=Langevin)
    moves: int = 2
    path: Callable[[Energy, Energy], Any] = Geometric
    plain = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "betas", b := torch.as_tensor(self.betas))
        if b.ndim != 1 or len(b) < 2 or b[0] != 0 or b[-1] != 1 or not bool((b.diff() > 0).all()):
            raise ValueError(f"inverse temperatures rise from 0 to 1, got {b.tolist()}")
        if as_a(self.start, Samples) is None:
            raise TypeError(
                f"replica exchange starts from an energy that draws exactly, and {self.start} does "
                "not"
            )
        if not self.kernel.plain or self.kernel.parts:
            raise TypeError(
                "replica exchange moves its rungs by one kernel whose states are plain, not by "
                f"{type(self.kernel).__name__}"
            )
        if self.moves < 1:
            raise ValueError(f"each step needs at least one move, got {self.moves}")

    @property
    def exact(self) -> bool:
        return self.kernel.exact

    @property
    def needs_gradient(self) -> bool:
        return self.kernel.needs_gradient

    @property
    def ready(self) -> bool:
        return self.kernel.ready

    @property
    def step_size(self) -> float | Tensor | None:
        return self.kernel.step_size

    @property
    def scale(self) -> Tensor | None:
        return self.kernel.scale

    @property
    def dense(self) -> bool:
        return self.kernel.dense

    @property
    def target_acceptance(self) -> float | None:
        return self.kernel.target_acceptance

    @property
    def gradients_per_step(self) -> float:
        """Of the target and of the start, each; for one chain, all its rungs."""
        if not self.kernel.needs_gradient:
            return 0.0
        return len(self.betas) * (self.moves * self.kernel.gradients_per_step + 1)

    def init(self, energy: Energy, x: Tensor) -> LadderState:
        # x: (chains, *event) for all rungs, or (chains, rungs, *event)
        event = len(energy.event_shape)
        if x.ndim == event + 1:
            x = x.unsqueeze(1).repeat_interleave(len(self.betas), 1)
        rungs = self.kernel.init(self.level(energy, x), x)
        return LadderState(rungs, 0, rungs.energy.new_zeros(len(self.betas) - 1))

    def noise(
        self, state: LadderState, generator: torch.Generator | None = None, steps: int | None = None
    ) -> LadderNoise:
        if steps is not None:
            raise ValueError("replica exchange draws the noise of one step at a time")
        rungs = state.rungs
        moves = tuple(self.kernel.noise(rungs, generator) for _ in range(self.moves))
        like = rungs.energy
        swaps = torch.rand(
            len(like),
            len(self.betas) - 1,
            generator=generator,
            dtype=like.dtype,
            device=like.device,
        )
        start = as_a(self.start, Samples)
        assert start is not None
        fresh = start.sample(len(like), generator=generator)
        return LadderNoise(moves, swaps, fresh.to(rungs.x))

    def step(
        self, energy: Energy, state: LadderState, noise: LadderNoise
    ) -> tuple[LadderState, Info]:
        level, rungs, infos = self.level(energy, state.rungs.x), state.rungs, []
        for move in noise.moves:
            rungs, info = self.kernel.step(level, rungs, move)
            infos.append(info)
        return self.exchange(level, state, rungs, noise), joined(infos)

    def learn(
        self, energy: Energy, state: LadderState, noise: LadderNoise
    ) -> tuple[LadderState, Info, Feedback]:
        level, rungs, infos, signals = self.level(energy, state.rungs.x), state.rungs, [], []
        for move in noise.moves:
            rungs, info, feedback = self.kernel.learn(level, rungs, move)
            infos.append(info)
            signals.append(feedback.signal)
        signal = torch.stack(signals).mean(0)
        return self.exchange(level, state, rungs, noise), joined(infos), Feedback(signal)

    def exchange(
        self, level: Any, state: LadderState, rungs: State, noise: LadderNoise
    ) -> LadderState:
        """The first rung redrawn, and swaps of neighbours."""
        x = torch.cat([noise.fresh.unsqueeze(1), rungs.x[:, 1:]], 1)
        if has_gradient(rungs):
            pair = level.path.pair(x)
            order, probability = self.swaps(pair.end - pair.start, state.parity, noise.swaps)
            energies, gradients = pair.permuted(order).at(level.beta, len(level.event_shape))
        else:
            with torch.no_grad():
                start, end = level.path.start(x), level.path.end(x)
            order, probability = self.swaps(end - start, state.parity, noise.swaps)
            energies, gradients = (
                mix(level.beta, take(start, order), take(end, order)),
                rungs.gradient,
            )
        swapped = state.swapped.clone()
        swapped[state.parity :: 2] = probability[:, state.parity :: 2].mean(0)
        return LadderState(State(take(x, order), energies, gradients), 1 - state.parity, swapped)

    def swaps(self, gap: Tensor, parity: int, uniform: Tensor) -> tuple[Tensor, Tensor]:
        """(order of the rungs after swapping, acceptance probabilities) from U = E_1 - E_0 at each
        rung, (chains, rungs)."""
        beta = self.betas.to(gap)
        log_ratio = (beta[1:] - beta[:-1]) * (gap[:, 1:] - gap[:, :-1])
        probability = torch.where(log_ratio.isnan(), 0, log_ratio.clamp(max=0).exp())
        active = torch.arange(len(beta) - 1, device=gap.device) % 2 == parity
        swap = active & (uniform < probability)
        order = torch.arange(len(beta), device=gap.device).repeat(len(gap), 1)
        up = torch.cat([swap, torch.zeros_like(swap[:, :1])], 1).long()
        down = torch.cat([torch.zeros_like(swap[:, :1]), swap], 1).long()
        return order + up - down, probability

    def level(self, energy: Energy, x: Tensor) -> Any:
        return self.path(self.start, energy).level(self.betas.to(x))

    def statistic(self, signal: Tensor) -> Tensor:
        return self.kernel.statistic(signal)

    def target(self, d: int) -> float | None:
        return self.kernel.target(d)

    def guess(self, d: int) -> float:
        return self.kernel.guess(d)

    def check(self, energy: Energy) -> None:
        self.kernel.check(energy)

    def tuned(
        self, step_size: float | Tensor, scale: Tensor | None = None, dense: bool = False
    ) -> Tempered:
        return replace(self, kernel=self.kernel.tuned(step_size, scale, dense))

    def respaced(self, rejection: Tensor, count: int | None = None) -> Tempered:
        """The ladder of `count` rungs whose rejection rates are equal, from the measured ones
        (rungs - 1,): the cumulative rejection Λ(β) is interpolated linearly and cut into equal
        pieces. Step sizes and preconditioners follow their β.
        """
        count = len(self.betas) if count is None else count
        barrier = torch.cat([torch.zeros(1).to(rejection), (rejection + 1e-3).cumsum(0)]).double()
        wanted = torch.linspace(0, 1, count, dtype=torch.float64) * barrier[-1]
        where = torch.searchsorted(barrier, wanted).clamp(1, len(barrier) - 1)
        share = (wanted - barrier[where - 1]) / (barrier[where] - barrier[where - 1])
        old = self.betas.double()
        betas = old[where - 1] + share * (old[where] - old[where - 1])
        betas[0], betas[-1] = 0, 1
        nearest = torch.where(share > 0.5, where, where - 1)
        kernel = self.kernel
        if isinstance(kernel.step_size, Tensor) and kernel.step_size.ndim:
            scale = kernel.scale[nearest] if kernel.scale is not None else None
            kernel = kernel.tuned(kernel.step_size[nearest], scale, kernel.dense)
        return replace(self, betas=betas.to(self.betas), kernel=kernel)

    def through(self, around: Callable[[Energy], Energy]) -> Tempered:
        return replace(self, start=around(self.start), kernel=self.kernel.through(around))

    def walkers(self, state: LadderState) -> State:
        return state.rungs

    def position(self, state: LadderState) -> tuple[Tensor, Tensor]:
        return state.rungs.x[:, -1], state.rungs.energy[:, -1]


def linear_betas(rungs: int) -> Tensor:
    """0 to 1 in equal steps: what warm-up starts from before the rejection rates are known."""
    return torch.linspace(0, 1, rungs, dtype=torch.float64)
