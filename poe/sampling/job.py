"""What one call of `poe.sample` asks of a method of drawing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import KW_ONLY, dataclass, field
from enum import IntEnum
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from poe.algebra.energy import Energy, Estimate, first_tensor
from poe.diagnostics.comparison import Seen
from poe.diagnostics.draws import Draws
from poe.diagnostics.raw import Cost, Raw
from poe.kernels import Kernel
from poe.mcmc.checkpoint import Checkpoint
from poe.mcmc.progress import Progress
from poe.mcmc.run import streams
from poe.smc.discrete_search import search as search_phases
from poe.smc.mode_search import Found, search
from poe.smc.phases import Phases
from poe.smc.starts import (
    WEIGHED_DRAWS,
    Start,
    all_weighed,
    in_variables_of,
    nearest,
    sampler,
)
from poe.spaces.points import points, uniform_points
from poe.spaces.structure import Structure
from poe.spaces.transport import Unconstrained

CHAINS = 4  # of independent draws
PROBED_DECADES = 8.0  # of sizes around 1, at which a branch without mass is probed
# a part whose weights are as even as this is near, and the search has a tenth of its starts
NEAR_PARETO_K, NEAR_SHARE, SHARE_WHERE_NEAR = 0.5, 0.1, 0.1


class MethodNotApplicable(Exception):
    """The method does not apply to this target, as was measured: why, what chains that disagreed
    have seen, and what this cost."""

    def __init__(self, why: str, *, seen: Seen | None = None, **cost: float) -> None:
        super().__init__(why)
        self.seen = seen
        self.cost = Cost(**cost)


class Phase(IntEnum):
    """The phases of a run that have random streams of their own."""

    START = 0  # candidates of a start, and exact draws
    POPULATIONS = 1
    TUNING = 2  # of annealing, and resampling at the end: what all shards share
    CHAINS = 3
    CHAIN_STARTS = 4
    FITTED_START = 5
    AGREEMENT = 6  # own draws of the posteriors of `poe.combine`
    SEARCH = 7  # for modes
    NARROW_END = 8
    REACHED = 9  # whether a branch has any point of finite energy


@dataclass(frozen=True, eq=False)
class Space:
    """The space where methods work, R^n wherever the support is not discrete, the start nearest to
    the target there, and the progress of the call that works in it."""

    structure: Structure
    seed: int
    searches: bool = False  # whether modes are searched for
    _: KW_ONLY
    progress: Progress = field(default_factory=Progress)
    share: float = 1.0  # of the usual number of starts of a search

    @property
    def energy(self) -> Energy:
        """The target."""
        return self.structure.energy

    @cached_property
    def unconstrained(self) -> Unconstrained | None:
        """The target over R^n, where its support is not all of it."""
        moves_in_x = self.structure.real or self.structure.discrete
        return None if moves_in_x else Unconstrained(self.energy)

    @cached_property
    def target(self) -> Energy:
        """The energy in this space."""
        return self.energy if self.unconstrained is None else self.unconstrained

    def x(self, z: Tensor) -> Tensor:
        """Points of the event from points of this space."""
        return z if self.unconstrained is None else self.unconstrained.to_x(z)

    def z(self, x: Tensor) -> Tensor:
        """Points of this space from points of the event."""
        return x if self.unconstrained is None else self.unconstrained.to_z(x)

    def phase(self, phase: int) -> torch.Generator:
        """The random stream of a phase that all shards share."""
        return streams(self.seed, phase + 1, self.target.device)[phase]

    @cached_property
    def weighed(self) -> list[Start]:
        """The parts that draw samples, weighed."""
        moved = [in_variables_of(self.target, start) for start in self.structure.starts]
        self.progress.spend(WEIGHED_DRAWS * len(moved))
        found = all_weighed(moved, self.target, self.phase(Phase.START))
        best = nearest(found)
        if best is not None:
            self.progress.keep(best.x, best.log_weights)
        return found

    @cached_property
    def found(self) -> Found | Phases | None:
        """What a search for modes finds, with a tenth of its starts where a part is near enough to
        resample; None where none is made, and where the energy has no gradient."""
        if not self.searches or not self.structure.searchable:
            return None
        known = nearest(self.weighed)
        near = known is not None and known.pareto_k <= NEAR_PARETO_K and known.share >= NEAR_SHARE
        parts = [in_variables_of(self.target, part) for part in self.structure.scouts]
        densities = [part for part in parts if part is not None]
        share = self.share * (SHARE_WHERE_NEAR if near else 1.0)
        if self.structure.discrete:
            return self._phases(densities, share)
        if not self._differentiable():
            return None
        return search(
            self.target,
            densities,
            self.phase(Phase.SEARCH),
            share=share,
            progress=self.progress,
        )

    def _differentiable(self) -> bool:
        """Whether the target has a gradient, from one point."""
        point = first_tensor(self.target).new_zeros(1, *self.target.event_shape)
        try:
            self.target.value_and_grad(point)
        except TypeError:
            return False
        return True

    def _phases(self, densities: list[Energy], share: float) -> Phases:
        """What a search for the phases of a discrete target finds. It is counted as a whole."""
        even = uniform_points(self.target, WEIGHED_DRAWS, self.phase(Phase.SEARCH))
        self.progress.keep(even, rough=True)  # all there is before the search has ended
        found = search_phases(self.target, densities, self.phase(Phase.SEARCH), share=share)
        self.progress.spend(found.record.energies)
        return found

    @cached_property
    def start(self) -> Start | None:
        """The start nearest to the target (`poe.smc.starts.nearest`), a part or what the search
        fitted; None where none has any effective draw."""
        fitted = [] if self.found is None or self.found.start is None else [self.found.start]
        return nearest([*self.weighed, *fitted])

    @cached_property
    def reached(self) -> bool:
        """Whether any point has finite energy, of the draws of all parts that draw and of normals
        of all sizes from 10⁻⁸ to 10⁸ around 0; of a discrete target, of values drawn evenly, and of
        all points where these are few."""
        with torch.no_grad():
            return any(bool(self.target(x).isfinite().any()) for x in self._probes())

    def _probes(self) -> Iterator[Tensor]:
        target, generator = self.target, self.phase(Phase.REACHED)
        for part in self.structure.scouts:
            if (moved := in_variables_of(target, part)) is not None:
                yield sampler(moved, target)(WEIGHED_DRAWS, generator)
        if not self.structure.discrete:
            like = first_tensor(target)
            shape, options = target.event_shape, {"dtype": like.dtype, "device": like.device}
            z = torch.randn(WEIGHED_DRAWS, *shape, generator=generator, **options)
            yield z
            size = 10 ** torch.linspace(-PROBED_DECADES, PROBED_DECADES, len(z), **options)
            yield z * size.reshape(-1, *[1] * len(shape))
        elif self.structure.obstacle is None:
            yield uniform_points(target, WEIGHED_DRAWS, generator)
            if self.structure.states is not None:
                yield points(target)


@dataclass(frozen=True, eq=False, kw_only=True)
class Job:
    """What is to be drawn: the target in its space, and the arguments of `poe.sample`.

    `forced` says that no other method follows, `annealed` what annealed particles gave where that
    was not enough, `lacking` draws that lack mass at the narrow end, and `branch(index, draws)`
    draws from one branch of a mixture (an index beyond their number draws anew, from another
    stream); None where it has no point of finite energy.
    """

    space: Space
    draws: int
    kernel: Kernel | None = None
    chains: int | None = None
    warmup: int | None = None
    thin: int = 1
    init: Tensor | None = None
    shards: int = 1
    compile: bool = False
    checkpoint: Checkpoint | None = None
    annealed: Raw | None = None
    lacking: Draws | None = None
    forced: bool = False
    branch: Callable[[int, int], Draws | None] | None = None

    @property
    def progress(self) -> Progress:
        """The bars of the call, the evaluations that it may take, and the points that it has."""
        return self.space.progress

    @property
    def structure(self) -> Structure:
        """What is known of the target."""
        return self.space.structure

    @property
    def energy(self) -> Energy:
        """The target."""
        return self.space.structure.energy

    @property
    def target(self) -> Energy:
        """The energy in the space where methods work."""
        return self.space.target

    @property
    def start(self) -> Start | None:
        """The start nearest to the target."""
        return self.space.start

    def streams(self, phase: Phase) -> list[torch.Generator]:
        """One random stream for each shard, others for each phase."""
        found = streams(self.space.seed, (phase + 1) * self.shards, self.energy.device)
        return found[phase * self.shards :]

    @property
    def weighing(self) -> int:
        """Energies evaluated to weigh the parts that draw."""
        return WEIGHED_DRAWS * len(self.structure.starts)

    @property
    def independent(self) -> tuple[int, int]:
        """(chains, draws of each) into which independent draws are cut."""
        chains = self.chains or min(CHAINS, max(1, self.draws))
        return chains, -(-self.draws // chains)


@dataclass(frozen=True)
class Method:
    """A way of drawing.

    Attributes:
        name: as `method=` takes it.
        words: what it does.
        draw: what it draws. Raises MethodNotApplicable where it measured that it does not apply.
        applies: why it cannot draw from a target of this structure, in words that follow the name
            of the target; None where it can: by default, wherever points can move.
        log_z: its estimate of log Z; None where it measured that another method should follow, and
            where it has none (None in place of the function).
        moves: whether it moves points by a kernel.
    """

    name: str
    words: str
    draw: Callable[[Job], Raw]
    applies: Callable[[Structure], str | None] = lambda structure: structure.obstacle
    log_z: Callable[[Any], Estimate | None] | None = None
    moves: bool = False
