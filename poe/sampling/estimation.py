"""What one call of `poe.log_z` asks of a method, and the warnings that estimates share."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property

import torch

from poe.algebra.capabilities import Samples
from poe.algebra.energy import Energy, Estimate
from poe.mcmc.run import streams
from poe.registry import PoeWarning
from poe.sampling.job import Space
from poe.smc.resampling import estimate
from poe.smc.starts import WEIGHED_DRAWS, Start, all_weighed, in_variables_of, nearest, weigh

POPULATIONS = 16  # independent ones, whose spread gives the standard error
MAX_STANDARD_ERROR = 0.5  # nats, beyond which few populations decide


class EstimateWarning(PoeWarning):
    """An estimate of log Z whose weights have too heavy a tail for its standard error to be
    believed."""


class EstimatePhase(IntEnum):
    """The phases of an estimate that have random streams of their own."""

    START = 0
    TUNING = 1  # and the weights of a start, and particles along an order
    POPULATIONS = 2
    REVERSE = 3  # of a bracket


@dataclass(frozen=True, eq=False, kw_only=True)
class Estimation(Space):
    """An estimate of log Z, in the space where particles move: the arguments of `poe.log_z`.
    `forced` says that the method was named by the caller, and `branch(index)` is the log Z of one
    branch of the expression, None where it has no point of finite energy."""

    particles: int
    proposal: Energy | None = None
    forced: bool = False
    branch: Callable[[int], Estimate | None] | None = None

    @cached_property
    def streams(self) -> list[torch.Generator]:
        """The random stream of each phase; methods that follow each other go on with them."""
        return streams(self.seed, len(EstimatePhase), self.energy.device)

    @property
    def each(self) -> int:
        """Particles of each population."""
        return -(-self.particles // POPULATIONS)

    @cached_property
    def start(self) -> Start | None:
        """A normalised start in the space of the target, weighed: the given proposal, else the
        nearest of the samplable parts; None where there is none."""
        if self.proposal is not None:
            generator, proposed = self.streams[EstimatePhase.START], self._proposed(self.proposal)
            self.progress.spend(WEIGHED_DRAWS)
            return self._kept(weigh(proposed, self.target, generator))
        fitted = [] if self.found is None or self.found.start is None else [self.found.start]
        return self._kept(nearest([*self.weighed, *fitted]))

    def _kept(self, start: Start | None) -> Start | None:
        """The start, its estimate of log Z kept for a call that ends early."""
        if start is not None and start.ess > 0:
            self.progress.log_z = total(estimate(start.log_weights), start.log_z)
        return start

    @cached_property
    def weighed(self) -> list[Start]:
        """The parts that draw samples and whose log Z is known, weighed."""
        known = [start for start in self.structure.starts if start.log_z is not None]
        moved = [in_variables_of(self.target, start) for start in known]
        self.progress.spend(WEIGHED_DRAWS * len(moved))
        found = all_weighed(moved, self.target, self.streams[EstimatePhase.START])
        self._kept(nearest(found))
        return found

    def _proposed(self, proposal: Energy) -> Energy:
        if not proposal.can(Samples) or proposal.log_z is None:
            raise TypeError(
                f"the proposal {proposal} must draw exact samples and know its log Z; a Density "
                "does"
            )
        if proposal.event_shape != self.energy.event_shape:
            raise ValueError(
                f"the proposal {proposal} has event shape {tuple(proposal.event_shape)}, not "
                f"{tuple(self.energy.event_shape)}"
            )
        density = in_variables_of(self.target, proposal)
        if density is None:
            raise ValueError(
                f"draws of {proposal} may lie outside the support {self.energy.support!r} of "
                f"{self.energy}"
            )
        return density


def checked(energy: Energy, result: Estimate) -> Estimate:
    """An estimate from populations, with a warning where it rests on few of them."""
    if not result.standard_error < MAX_STANDARD_ERROR:
        warn(
            f"log Z of {energy} rests on few of {POPULATIONS} populations (standard error "
            f"{result.standard_error:.2g})"
        )
    return result


def total(ratio: Estimate, known: Estimate | None) -> Estimate | None:
    """log Z from log(Z / Z_start) and the log Z of the start; None where that is unknown."""
    if known is None:
        return None
    error = math.hypot(ratio.standard_error, known.standard_error)
    return Estimate(ratio.value + known.value, error)


def warn(message: str) -> None:
    """An EstimateWarning with what to try."""
    warnings.warn(
        f"{message}; give a nearer proposal= or more draws=", EstimateWarning, stacklevel=3
    )
