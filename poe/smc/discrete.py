"""Annealing on discrete spaces, which starts from independent sites."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from poe.algebra.capabilities import Augmented, SiteLogits, as_a
from poe.algebra.energy import Density, Energy, first_tensor
from poe.kernels.base import Kernel
from poe.kernels.defaults import default_discrete_kernel
from poe.smc.tuning import TunedSchedule
from poe.spaces.path import Geometric
from poe.spaces.points import point_dtype
from poe.spaces.sites import pick, sites_of

MIN_PARTICLES, MAX_PARTICLES = 64, 1024  # of a tuning
MAX_SITES = 1 << 18  # of all particles of a tuning
MAX_CORRELATION = 0.1  # of the energies before and after the sweeps of a level
MAX_SWEEPS = 64  # of a level
# levels for each that the effective size asks for: resampled copies need the sweeps to separate
LEVEL_FACTOR = 3


class Independent(Density):
    """p(x) = Π_i p_i(x_i) over the sites of a discrete event, from log weights (n, values), -inf
    beyond the values of a site."""

    log_rates: Tensor
    _all: Tensor

    def __init__(self, like: Energy, log_rates: Tensor) -> None:
        super().__init__(like.event_shape, support=like.support)
        self.sites, self._type = sites_of(like), point_dtype(like)
        self.register_buffer("log_rates", log_rates.log_softmax(-1).to(first_tensor(like)))
        self.register_buffer(
            "_all", torch.arange(len(log_rates), device=like.device), persistent=False
        )

    @classmethod
    def even(cls, like: Energy) -> Independent:
        """Each site uniform over its values."""
        return cls(like, sites_of(like).mask(like.device).double().log())

    @classmethod
    def fitted(cls, like: Energy, x: Tensor) -> Independent:  # x (n, *event)
        """The base rates of x, with half a count added to each value."""
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
        return (self._all,)

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
    """The energy with its hidden units, over one vector whose first entries are x, where it states
    that; else itself. Its conditionals are exact at every temperature, those of x alone are not."""
    augmented = as_a(energy, Augmented)
    return energy if augmented is None else augmented.joint


def visible(energy: Energy, z: Tensor) -> Tensor:  # (*batch, n + hidden) -> (*batch, *event)
    """x from points of `joint(energy)`."""
    if not energy.can(Augmented):
        return z
    return z[..., : energy.event_shape.numel()].reshape(*z.shape[:-1], *energy.event_shape)


def find_schedule(
    energy: Energy,
    start: Energy | None,
    tune: Callable[..., TunedSchedule],
    kernel: Kernel | None = None,
) -> TunedSchedule:
    """A schedule to the energy from independent sites: those of `start` where its sites are, else
    uniform ones; or, where that is shorter, from the base rates of the particles that the first
    schedule ended with. `tune(path, particles, kernel, ...)` tunes the schedule of a path."""
    target = joint(energy)
    most = min(MAX_PARTICLES, MAX_SITES // target.event_shape.numel())

    def tuned(start: Energy) -> TunedSchedule:
        """The schedule from a start."""
        path = Geometric(start, target, gradients=False)
        half = path.level(torch.tensor(0.5, dtype=energy.dtype, device=energy.device))
        mover = default_discrete_kernel(half) if kernel is None else kernel
        limits = {"max_correlation": MAX_CORRELATION, "max_moves": MAX_SWEEPS}
        return tune(path, max(MIN_PARTICLES, most), mover, **limits)

    independent = start is not None and target is energy and start.can(SiteLogits)
    first = tuned(start if start is not None and independent else Independent.even(target))
    second = tuned(Independent.fitted(target, first.x))
    best = second if second.schedule.work <= first.schedule.work else first
    return best._replace(
        schedule=best.schedule.refined(LEVEL_FACTOR),
        gradients=first.gradients + second.gradients,
        energies=first.energies + second.energies,
    )
