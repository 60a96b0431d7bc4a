"""Starts of annealing and of importance sampling: densities that draw, weighed by importance."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from poe.algebra import support as sets
from poe.algebra.capabilities import BoundsLogProb, Samples, as_a
from poe.algebra.energy import Energy, Estimate, first_tensor
from poe.algebra.text import leaves
from poe.diagnostics.weights import hidden_share, pareto_k, weight_ess
from poe.spaces import reals
from poe.spaces.transport import Unconstrained

WEIGHED_DRAWS = 4096  # of each density that draws
MISSED_ERRORS = 3.0  # standard errors by which a start must miss mass that another meets


class Start(NamedTuple):
    """A density that draws, in the variables of the chains: its draws (n, *event), their log
    weights E_start - E_target in nats (-inf where the target has no mass or is NaN), their
    effective number, Pareto k, the number of draws at which the target is NaN, and the share of the
    mass that would lie there (`poe.diagnostics.weights.hidden_share`)."""

    density: Energy
    x: Tensor
    log_weights: Tensor
    ess: float
    pareto_k: float
    failed: int
    hidden: float = 0.0

    @property
    def share(self) -> float:
        """The effective share of the draws."""
        return self.ess / max(1, len(self.x))

    @property
    def log_mean(self) -> float:
        """log of the mean weight."""
        return float(self.log_weights.logsumexp(0)) - math.log(len(self.x))

    @property
    def log_z(self) -> Estimate | None:
        """log Z of what draws: 0 where the density draws a model whose energy is a bound of its
        -log p."""
        return Estimate(0.0) if self.density.can(BoundsLogProb) else self.density.log_z

    @property
    def interval(self) -> tuple[float, float]:
        """The estimate of log Z from the weights, minus and plus `MISSED_ERRORS` standard errors of
        Z."""
        error = MISSED_ERRORS * math.sqrt(max(1 / self.ess - 1 / len(self.x), 0.0))
        assert self.log_z is not None
        middle = self.log_mean + float(self.log_z)
        return middle + (math.log1p(-error) if error < 1 else -math.inf), middle + math.log1p(error)


def all_weighed(
    densities: Sequence[Energy | None], target: Energy, generator: torch.Generator
) -> list[Start]:
    """Each density, weighed in the variables of the target."""
    return [weigh(density, target, generator) for density in densities if density is not None]


def nearest(weighed: Sequence[Start]) -> Start | None:
    """The density with the largest effective share of its draws; None where none has any.

    A density is left out where the interval of its log Z lies below that of another: it has missed
    mass, however even its weights.
    """
    weighed = [start for start in weighed if start.ess > 0]
    known = {id(start): start.interval for start in weighed if start.density.log_z is not None}
    least = max((low for low, _ in known.values()), default=-math.inf)
    kept = [start for start in weighed if id(start) not in known or known[id(start)][1] >= least]
    return max(kept, key=lambda start: start.share, default=None)


def sampler(start: Energy, target: Energy) -> Callable[[int, torch.Generator], Tensor]:
    """Draws of a start for a target, in the dtype of the target; discrete points keep theirs."""
    source = as_a(start, Samples)
    assert source is not None

    def draw(n: int, generator: torch.Generator) -> Tensor:
        """n draws, (n, *event)."""
        x = source.sample(n, generator=generator)
        discrete = sets.is_discrete(target.support)
        return x.to(target.device if discrete else first_tensor(target))

    return draw


def weigh(
    start: Energy, target: Energy, generator: torch.Generator, n: int = WEIGHED_DRAWS
) -> Start:
    """n draws of a start with their weights. Both energies have the same variables."""
    x = sampler(start, target)(n, generator)
    with torch.no_grad():
        logs = (start(x) - target(x)).double()
    failed = logs.isnan()
    logs = torch.where(failed, -math.inf, logs)
    ess, count = float(weight_ess(logs)), int(failed.sum())
    return Start(start, x, logs, ess, pareto_k(logs), count, hidden_share(x, logs, failed))


def in_variables_of(target: Energy, start: Energy) -> Energy | None:
    """The start in the variables of the target; None where those do not cover its support."""
    if not isinstance(target, Unconstrained):
        return start
    return (
        target.around(start)
        if sets.covers(reals.image(target.energy.support), start.support)
        else None
    )


def why_no_start(target: Energy, z: Tensor) -> str:  # z (n, *reals)
    """The message where no point has finite energy, with the experts that are NaN."""
    energy = target.energy if isinstance(target, Unconstrained) else target
    x = target.to_x(z) if isinstance(target, Unconstrained) else z
    failing = []
    for part in leaves(energy):
        if part.event_shape == energy.event_shape:
            with torch.no_grad():
                bad = int(part(x).isnan().sum())
            failing += [f"{part} is NaN at {bad} of {len(x)}"] if bad else []
    why = (
        "; ".join(failing)
        if failing
        else "the energy is +inf at all of them; init= gives points where it is not"
    )
    return (
        f"found no starting point of finite energy for {energy} among {len(x)} draws of a "
        f"standard normal: {why}"
    )
