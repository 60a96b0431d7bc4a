"""Annealing on discrete spaces: sites that are independent, from whose base rates it starts, and
the kernel that moves there."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from poe.algebra.capabilities import Augmented, SiteLogits
from poe.algebra.energy import Density, Energy
from poe.kernels.base import Kernel
from poe.kernels.defaults import default_discrete_kernel
from poe.smc.tuning import TunedSchedule
from poe.spaces.path import Geometric
from poe.spaces.points import point_dtype
from poe.spaces.sites import pick, sites_of

PARTICLES, NUMBERS = (
    1024,
    1 << 18,
)  # of a pilot, and sites of them all, where that is fewer; but at least 64
FORGET, MOST = (
    0.1,
    64,
)  # correlation of the energy before and after the sweeps of a level, and how many they are at most
# levels for each that the effective size asks for: copies of particles need the sweeps between them
# to part
FINER = 3


class Independent(Density):
    """p(x) = Π_i p_i(x_i) over the sites of a discrete event, from log weights (n, values), -inf
    past the values of a site."""

    log_rates: Tensor

    def __init__(self, like: Energy, log_rates: Tensor) -> None:
        super().__init__(like.event_shape, support=like.support)
        self.sites, self._type = sites_of(like), point_dtype(like)
        self.register_buffer("log_rates", log_rates.log_softmax(-1).to(like._like()))
        self.register_buffer(
            "_all", torch.arange(len(log_rates), device=like.device), persistent=False
        )

    @classmethod
    def even(cls, like: Energy) -> Independent:
        """Every value of a site is as likely as any other."""
        return cls(like, sites_of(like).mask(like.device).double().log())

    @classmethod
    def fitted(cls, like: Energy, x: Tensor) -> Independent:  # x (n, *event)
        """The base rates of x, half a count added to each value."""
        sites = sites_of(like)
        places = sites.places(x, len(like.event_shape))
        counts = torch.nn.functional.one_hot(places, sites.max_count).sum(0).double() + 0.5
        return cls(like, counts.log().masked_fill(~sites.mask(x.device), -math.inf))

    @property
    def bounded(self) -> bool:
        return True

    @property
    def blocks(self) -> tuple[Tensor, ...]:
        """All sites: they are independent."""
        return (self._all,)  # type: ignore[return-value]

    def log_prob(self, x: Tensor) -> Tensor:  # (*batch, *event) -> (*batch)
        places = self.sites.places(x, len(self.event_shape))
        return (
            self.log_rates.expand(*places.shape, -1)
            .gather(-1, places.unsqueeze(-1))
            .squeeze(-1)
            .sum(-1)
        )

    def sample(
        self, n: int | tuple[int, ...], *, generator: torch.Generator | None = None
    ) -> Tensor:
        shape = (n,) if isinstance(n, int) else tuple(n)
        uniform = torch.rand(
            *shape, len(self.log_rates), generator=generator, device=self.log_rates.device
        )
        places = pick(self.log_rates.expand(*uniform.shape, -1), uniform)
        x = torch.zeros(*shape, *self.event_shape, dtype=self._type, device=places.device)
        return self.sites.put(x, self.blocks[0], places, len(self.event_shape))

    def site_logits(self, x: Tensor, sites: Tensor) -> Tensor:
        # (*batch, *event), (k) -> (*batch, k) or (*batch, k, values)
        """Log-odds of the upper value, or log weights of the values."""
        logs = self.log_rates[sites]
        logs = logs[:, 1] - logs[:, 0] if self.sites.binary else logs
        return logs.expand(*x.shape[: x.ndim - len(self.event_shape)], *logs.shape)


def joint(energy: Energy) -> Energy:
    """The energy with its hidden units, over one vector whose first numbers are x, where it can
    state that; else itself. Its conditionals stay exact at every temperature, those of x alone do
    not."""
    return energy.joint if energy.can(Augmented) else energy  # type: ignore[return-value]


def visible(energy: Energy, z: Tensor) -> Tensor:  # (*batch, n + hidden) -> (*batch, *event)
    """x of points of `joint(energy)`."""
    if not energy.can(Augmented):
        return z
    return z[..., : energy.event_shape.numel()].reshape(*z.shape[:-1], *energy.event_shape)


def pilot(
    energy: Energy,
    near: Energy | None,
    tuned: Callable[[Geometric, Kernel, int], TunedSchedule],
    kernel: Kernel | None = None,
) -> TunedSchedule:
    """A schedule to the energy from independent sites: those of `near` where it draws such, else
    even ones; or, where that is no longer way, from the base rates of the particles that came of
    it."""
    target = joint(energy)
    particles = max(64, min(PARTICLES, NUMBERS // target.event_shape.numel()))

    def go(start: Energy) -> TunedSchedule:
        path = Geometric(start, target, gradients=False)
        half: Any = path.level(torch.tensor(0.5, dtype=energy.dtype, device=energy.device))
        return tuned(path, default_discrete_kernel(half) if kernel is None else kernel, particles)

    states = near is not None and target is energy and near.can(SiteLogits)
    first = go(near if near is not None and states else Independent.even(target))
    second = go(Independent.fitted(target, first.x))
    best = second if second.schedule.work <= first.schedule.work else first
    spent = {
        "gradients": first.gradients + second.gradients,
        "energies": first.energies + second.energies,
    }
    return best._replace(schedule=best.schedule.refined(FINER), **spent)
