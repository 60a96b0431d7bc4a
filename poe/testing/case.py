"""What the laws are checked on: an expert, its points and draws, its copy in double precision,
quadrature and states."""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Any

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from poe.algebra import support as sets
from poe.algebra.capabilities import Enumerates, Samples, as_a
from poe.algebra.energy import Energy
from poe.algebra.errors import LawError
from poe.spaces import reals

MAX_STATES = 2**16


class Skip(Exception):
    """A law does not apply; the reason goes into the report."""


class Case:
    """One expert under test: its points and draws, its copy in double precision, its support as
    the image of R^m."""

    def __init__(
        self, make: Callable[[], Energy], points: Tensor | None, draws: int, level: float, seed: int
    ) -> None:
        self.make, self.given, self.n, self.level, self.seed = make, points, draws, level, seed
        self.expert = self.fresh()

    def fresh(self) -> Energy:
        """Another instance, in eval mode."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            return self.make().eval()

    def generator(self, offset: int = 0) -> torch.Generator:
        """A random stream of the case."""
        return torch.Generator(self.expert.device).manual_seed(self.seed + offset)

    @property
    def discrete(self) -> bool:
        """Whether the support is discrete."""
        return sets.is_discrete(self.expert.support)

    @cached_property
    def draws(self) -> Tensor:  # (n, *event)
        """Draws of the expert."""
        return self.sample(self.n)

    def sample(self, n: int | tuple[int, ...], offset: int = 0) -> Tensor:  # (n, *event)
        """Fresh draws, from the generator with this offset."""
        expert = as_a(self.expert, Samples)
        if expert is None:
            raise Skip("it does not draw")
        return expert.sample(n, generator=self.generator(offset))

    @cached_property
    def x(self) -> Tensor:  # (24, *event)
        """Points of the support."""
        if self.given is not None:
            return self.given[torch.arange(24) % len(self.given)].detach()
        if self.expert.can(Samples):
            return self.draws[:24].detach()
        e, g = self.expert, torch.Generator().manual_seed(self.seed)
        if self.discrete and isinstance(e.support, sets.Box):
            low, step = e.support.low, e.support.step
            most = (torch.minimum(e.support.high, low + 4) - low) // step
            x = low + step * (torch.rand((24, *e.event_shape), generator=g) * (most + 1)).floor()
            return x.to(e.dtype if bool((e.support.high == 1).all()) else torch.long)
        if self.discrete:
            raise LawError(
                f"pass points=, a tensor (n, *event): no points of {e.support!r} are known"
            )
        transform = _from_reals(e.support)
        shape = transform.inverse_shape(e.event_shape)
        return transform(torch.randn((24, *shape), generator=g, dtype=torch.float64)).to(
            e.device, e.dtype
        )

    def differentiable(self) -> Tensor:  # (24, *event)
        """The points, where the expert has a gradient."""
        if self.discrete or not self.x.is_floating_point():
            raise Skip("the support is discrete")
        try:
            self.expert.value_and_grad(self.x)
        except TypeError as error:
            raise Skip(f"it has no gradient: {error}") from error
        return self.x

    @cached_property
    def twin(self) -> Energy:
        """The expert in double precision, on the CPU."""
        if self.discrete:
            raise Skip("the support is discrete")
        twin = self.fresh()
        twin = (copy.deepcopy(twin) if twin is self.expert else twin).double().cpu()
        if twin(self.x.double().cpu()).dtype != torch.float64:
            raise Skip("it does not compute in float64")
        return twin

    @cached_property
    def transform(self) -> Any:
        """A bijection from R^m onto the support."""
        return _from_reals(self.twin.support)

    def free(self, x: Tensor) -> Tensor:  # (*batch, *event) -> (*batch, *free)
        """Points of the support as points of R^m."""
        return self.transform.inv(x.double().cpu())

    def onto(self, z: Tensor) -> tuple[Tensor, Tensor]:
        # (*batch, *free) -> (*batch, *event), (*batch)
        """Points of R^m as points of the support, and the log-determinant of the map, in nats."""
        x = self.transform(z)
        batch = x.shape[: x.ndim - len(self.expert.event_shape)]
        return x, self.transform.log_abs_det_jacobian(z, x).reshape(*batch, -1).sum(-1)

    def log_density(self, z: Tensor) -> Tensor:  # (*batch, *free) -> (*batch)
        """The unnormalised log-density of the double-precision twin in R^m, in nats."""
        x, logdet = self.onto(z)
        return logdet - self.twin(x)

    @cached_property
    def grid(self) -> tuple[Tensor, Tensor]:
        """In one or two dimensions: nodes in R^m, (k, *free), and log(density · quadrature weight),
        (k).

        z = centre + scale·sinh(u) along each axis, the trapezoidal rule in u.
        """
        z = self.free(self.x)
        if self.expert.event_shape.numel() > 3 or z[0].numel() > 2:
            raise Skip("quadrature needs one or two dimensions")
        flat = z.reshape(len(z), -1)
        centre = flat.median(0).values
        scale = (flat.quantile(0.9, 0) - flat.quantile(0.1, 0)).clamp_min(1e-3) / 2
        u = torch.linspace(-11, 11, 40_001 if flat.shape[1] == 1 else 501, dtype=torch.float64)
        axes = [c + s * u.sinh() for c, s in zip(centre, scale, strict=True)]
        weights = [s.log() + u.cosh().log() + (u[1] - u[0]).log() for s in scale]
        nodes = torch.cartesian_prod(*axes).reshape(-1, *z.shape[1:])
        weight = torch.cartesian_prod(*weights).reshape(len(nodes), -1).sum(-1)
        with torch.no_grad():
            log_mass = (
                torch.cat([self.log_density(chunk) for chunk in nodes.split(20_000)]) + weight
            )
        # the far ends, where the map saturates
        return nodes, log_mass.where(log_mass.isfinite(), -math.inf)

    @cached_property
    def states(self) -> Tensor:
        """Every point of a small discrete support, (k, *event); of an unbounded one, those that
        hold all but 1e-5 of the mass."""
        e = self.expert
        known = as_a(e, Enumerates)
        if known is not None:
            return known.enumerate()
        if not isinstance(e.support, sets.Box):
            raise Skip(f"{e.support!r} cannot be enumerated")
        low, high = e.support.low.flatten(), e.support.high.flatten()
        if not bool(low.isfinite().all()):
            raise Skip(f"{e.support!r} cannot be enumerated")
        bounded = high.isfinite()
        high = torch.where(bounded, high, low + 4 * (self.x.max() - low.min()) + 60)
        if float(((high - low) / e.support.step + 1).log().sum()) > math.log(MAX_STATES):
            raise Skip(f"the support has more than {MAX_STATES} points")
        axes = [
            torch.arange(int(a), int(b) + 1, e.support.step) for a, b in zip(low, high, strict=True)
        ]
        flat = torch.cartesian_prod(*axes).reshape(-1, len(axes))
        states = flat.reshape(-1, *e.event_shape).to(self.x)
        if not bool(bounded.all()):
            far = ((flat > (low + high) / 2) & ~bounded).any(-1)
            if float((-e(states).double()).softmax(0)[far].sum()) > 1e-5:
                raise Skip("the tail is too heavy to be enumerated")
        return states


def _from_reals(support: sets.Constraint) -> Any:
    """A bijection from R^m onto a support."""
    try:
        return reals.from_reals(support)
    except NotImplementedError:
        raise Skip(f"no map from R^m onto {support!r} is known") from None


def require(holds: Any, message: str) -> None:
    """Raises LawError with the message unless all of it holds."""
    if not bool(holds):
        raise LawError(message)


def close(a: Tensor, b: Tensor) -> bool:
    """Equal up to the rounding of a long computation: √ε relative to the larger value."""
    tolerance = math.sqrt(torch.finfo(a.dtype).eps) if a.is_floating_point() else 0.0
    return bool(
        ((a - b).abs() <= tolerance * (1 + torch.maximum(a.abs(), b.abs())))
        .logical_or(a == b)
        .all()
    )


def mean_pvalues(values: Tensor) -> np.ndarray:  # (n, k) -> (k)
    """Two-sided p-values of the hypotheses that the columns have mean 0; 1 or 0 for constant
    columns."""
    mean, error = values.mean(0), values.std(0) / math.sqrt(len(values))
    z = torch.where(
        error > 0, mean / error.clamp_min(1e-300), torch.where(mean == 0, 0.0, math.inf)
    )
    return 2 * stats.norm.sf(z.abs().numpy())


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """The global random generator at a seed, and as it was afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield
