"""Contrastive divergence: losses whose negative points are moved by chains, which start from the
data or continue.

| loss | chains start | references |
|-----------------------------------|-------------------------------------------|-------------------------------------|
| `ContrastiveDivergence` | at the batch | Hinton 2002 |
| `PersistentContrastiveDivergence` | where they ended, or in a buffer | Tieleman 2008; Du and Mordatch 2019 |

Both are mean E(batch) - mean E(x_k), x_k the points after k steps of a kernel. The value has no
meaning; its gradient, E_data ∇E - E_chains ∇E, estimates that of -log p(data), the better the
closer the law of the chains is to the model.
"""  # noqa: E501

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, field

import torch
from torch import Tensor

from poe.algebra import support as sets
from poe.algebra.capabilities import Samples, as_a
from poe.algebra.checks import whole_number
from poe.algebra.energy import Energy
from poe.algebra.frozen import frozen
from poe.algebra.points import batch_shape
from poe.kernels import DiscreteLangevin, Gibbs, Kernel, Langevin
from poe.kernels.defaults import default_kernel
from poe.registry import PoeWarning
from poe.spaces.conditionals import opaque
from poe.spaces.sites import sites_of, vectors

# that step sizes are adapted to (Roberts and Rosenthal 1998; Sun, Dai and Schuurmans 2022)
TARGET_ACCEPTANCE = 0.574
MIN_SEARCH_ACCEPTANCE = 0.4  # at which the search for an initial step size ends
MIN_ACCEPTANCE = 0.01  # below which a warning says that chains hardly move
MAX_TRIES = 20  # of the search for an initial step size


@dataclass(frozen=True)
class ContrastiveDivergence:
    """CD-k: mean E(batch) - mean E(x_k), x_k after k steps of a kernel from the batch itself; the
    steps are not differentiated.

    Cheap and biased: the gradient vanishes where k steps leave the law of the data invariant. That
    is the optimum of the likelihood if the model contains the law of the data, and close to it
    otherwise.

    Arguments:
        k: steps, at least 1.
        kernel: moves the points, with a step size where it has one; None: see `mover`, which
            finds one in each call.
        generator: source of its randomness; torch's global one by default.

    Raises ValueError where the batch is empty, or has points of energy +inf or NaN.

    Reference: Hinton 2002, Training products of experts by minimizing contrastive divergence,
    Neural Computation 14(8).
    """

    k: int = 1
    kernel: Kernel | None = None
    generator: torch.Generator | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        whole_number("k", self.k, 1)

    def __call__(self, energy: Energy, batch: Tensor) -> Tensor:  # (n, *event) -> ()
        check_batch(energy, batch)
        data = mean_energy(energy, batch, "the batch")
        kernel = mover(energy, batch, batch, self.generator) if self.kernel is None else self.kernel
        points, _ = advanced(energy, batch, kernel, self.k, self.generator)
        return data - mean_energy(energy, points, "the chains")


@dataclass(eq=False)
class PersistentContrastiveDivergence:
    """PCD-k: mean E(batch) - mean E(x), x the points of chains that continue from call to call, k
    steps of a kernel in each.

    With a learning rate that is small compared to their mixing rate, the chains stay close to the
    law of the model, and the gradient close to that of the likelihood. Each call moves `chains`
    points, drawn from the `buffer` without replacement and restarted with probability `restart`,
    and puts them back.

    Arguments:
        chains: how many points are moved in a call.
        k: steps in a call, at least 1.
        kernel: moves them, with a step size where it has one; None: see `mover`. In each call its
            step size is then multiplied by exp(a - 0.574), a the acceptance, so that it adapts to
            the energy.
        buffer: how many points are kept; None: `chains`.
        restart: probability with which a chain restarts, in each call.
        start: an energy from whose draws chains start and restart; None: points of the batch, drawn
            with replacement.
        generator: source of all randomness; torch's global one by default.

    Attributes:
        points: (buffer, *event), the positions of the chains; None before the first call.
        step_size: of the kernel that was found; None before the first call, and where it has none.
        acceptance: of the last call, the mean over chains and steps; None before the first call.

    `state_dict` and `load_state_dict` hold points, step size and the generator's state: training
    that resumes from them, and from the states of the energy and of the optimiser, gives the same
    result as training without interruption.

    Raises ValueError where the batch is empty, or where points have energy +inf or NaN.

    References: Tieleman 2008, Training restricted Boltzmann machines using approximations to the
    likelihood gradient, ICML; Du and Mordatch 2019, Implicit generation and modeling with
    energy-based models, NeurIPS (buffer and restarts).
    """

    chains: int = 100
    k: int = 1
    kernel: Kernel | None = None
    buffer: int | None = None
    restart: float = 0.0
    start: Energy | None = None
    generator: torch.Generator | None = None
    points: Tensor | None = field(default=None, init=False)
    step_size: float | None = field(default=None, init=False)
    acceptance: float | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        whole_number("k", self.k, 1)
        if self.chains < 1 or (self.buffer is not None and self.buffer < self.chains):
            raise ValueError(
                f"a buffer of {self.buffer} points cannot give {self.chains} chains: 1 <= chains "
                "<= buffer"
            )
        if not 0 <= self.restart <= 1:
            raise ValueError(
                "restart is the probability that a chain restarts, between 0 and 1, not "
                f"{self.restart}"
            )
        if self.start is not None and not (
            isinstance(self.start, Energy) and self.start.can(Samples)
        ):
            raise ValueError(
                f"chains start from draws, and {self.start} has none; give a density, or None for "
                "points of the batch"
            )

    def __call__(self, energy: Energy, batch: Tensor) -> Tensor:  # (n, *event) -> ()
        check_batch(energy, batch)
        data = mean_energy(energy, batch, "the batch")
        return data - mean_energy(energy, self.move(energy, batch), "the chains")

    def move(self, energy: Energy, batch: Tensor) -> Tensor:  # (n, *event) -> (chains, *event)
        """Moves some of the points, and returns their new positions. The batch gives starts, and
        the scale of the step."""
        if self.points is None:
            self.points = self._fresh(self.chains if self.buffer is None else self.buffer, batch)
        self.points = self.points.to(batch.device)
        chosen = self._chosen(batch.device)
        x = self.points[chosen]
        if self.restart:
            again = (
                torch.rand(self.chains, generator=self.generator, device=batch.device)
                < self.restart
            )
            x = torch.where(
                again.reshape(-1, *[1] * (x.ndim - 1)), self._fresh(self.chains, batch), x
            )
        kernel = (
            mover(energy, batch, x, self.generator, self.step_size)
            if self.kernel is None
            else self.kernel
        )
        points, self.acceptance = advanced(energy, x, kernel, self.k, self.generator)
        if self.kernel is None and kernel.step_size is not None:
            self.step_size = float(kernel.step_size) * math.exp(self.acceptance - TARGET_ACCEPTANCE)
        self.points = self.points.index_copy(0, chosen, points)
        return points

    def state_dict(self) -> dict[str, Tensor]:
        """The points and the step size, once there are any, and the state of the generator, where
        there is one."""
        found = {
            "points": self.points,
            "step_size": None
            if self.step_size is None
            else torch.tensor(self.step_size, dtype=torch.float64),
            "generator": None if self.generator is None else self.generator.get_state(),
        }
        return {key: value for key, value in found.items() if value is not None}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Resumes from what `state_dict` returned. Raises ValueError for another number of
        points."""
        points, size = state.get("points"), self.chains if self.buffer is None else self.buffer
        if points is not None and len(points) != size:
            raise ValueError(
                f"the state holds {len(points)} points, and this loss keeps {size}: build it with "
                f"buffer={len(points)}"
            )
        self.points, self.step_size = (
            points,
            float(state["step_size"]) if "step_size" in state else None,
        )
        if self.generator is not None and "generator" in state:
            self.generator.set_state(state["generator"].cpu())

    def _chosen(self, device: torch.device) -> Tensor:
        """Which points move."""
        if self.buffer is None or self.buffer == self.chains:
            return torch.arange(self.chains, device=device)
        return torch.randperm(self.buffer, generator=self.generator, device=device)[: self.chains]

    def _fresh(self, n: int, batch: Tensor) -> Tensor:  # (n, *event)
        start = None if self.start is None else as_a(self.start, Samples)
        if start is not None:
            with torch.no_grad():
                return start.sample(n, generator=self.generator).to(batch)
        return batch.detach()[
            torch.randint(len(batch), (n,), generator=self.generator, device=batch.device)
        ]


def mover(
    energy: Energy,
    batch: Tensor,
    x: Tensor,
    generator: torch.Generator | None = None,
    step_size: float | None = None,
) -> Kernel:
    # batch and x: (n, *event)
    """The default kernel of chains at x.

    Where the energy redraws blocks itself, or is discrete and few blocks of sites can be redrawn
    together: `Gibbs`. Any other discrete energy: `DiscreteLangevin`. Real points:
    Metropolis-adjusted `Langevin`, preconditioned by the standard deviations of the batch. The step
    size is, unless given, the first of h, h/4, h/16, ... at which the mean acceptance of steps from
    x is at least 0.4, h = δ² with δ the distance between neighbouring values (1 for bits), or
    1.36 d^(-1/3).

    Raises ValueError where a real coordinate is constant over the batch, which leaves its scale
    unknown.
    """
    if opaque(energy) is not None:
        return Gibbs()
    kernel: Kernel = default_kernel(energy) if sets.is_discrete(energy.support) else Langevin()
    if kernel.ready:
        return kernel
    if isinstance(kernel, DiscreteLangevin):
        first, scale = float(sites_of(energy).step ** 2), None
    else:
        scale = vectors(batch.detach(), len(energy.event_shape)).std(0, correction=0)
        first = kernel.guess(len(scale))
        if not bool((scale > 0).all()):
            raise ValueError(
                f"{int((scale <= 0).sum())} of {len(scale)} coordinates are constant over the "
                f"{len(batch)} points of the batch, so that their scale is unknown: give "
                "kernel=poe.Langevin(step_size), in units of x squared"
            )
    return kernel.tuned(
        _first_step_size(energy, x, kernel, first, scale, generator)
        if step_size is None
        else step_size,
        scale,
    )


def _first_step_size(
    energy: Energy,
    x: Tensor,
    kernel: Kernel,
    size: float,
    scale: Tensor | None,
    generator: torch.Generator | None,
) -> float:
    # x: (n, *event)
    """The first step size of size, size/4, size/16, ... that is small enough."""
    with frozen(energy):
        state = kernel.init(energy, x.detach())
        for _ in range(MAX_TRIES):
            _, info = kernel.tuned(size, scale).step(energy, state, kernel.noise(state, generator))
            if float(info.acceptance.mean()) >= MIN_SEARCH_ACCEPTANCE:
                break
            size /= 4
    return size


def check_batch(energy: Energy, batch: Tensor) -> None:
    """Raises ValueError where a batch is not (n, *event) with n >= 1."""
    shape = batch_shape(energy, batch)
    if len(shape) != 1:
        raise ValueError(
            f"a batch is (n, *event), here with event shape {tuple(energy.event_shape)}; got "
            f"{tuple(batch.shape)}"
        )
    if not shape[0]:
        raise ValueError(
            f"the batch of shape {tuple(batch.shape)} is empty: a loss needs at least one point"
        )


def mean_energy(energy: Energy, x: Tensor, what: str) -> Tensor:  # (n, *event) -> ()
    """mean E(x), in nats. Raises ValueError, with the name of x, where a point's energy is not
    finite."""
    values = energy(x)
    bad = ~values.detach().isfinite()
    if bool(bad.any()):
        raise ValueError(
            f"{int(bad.sum())} of {len(bad)} points of {what} have energy "
            f"{values.detach()[bad][0].item()} under {energy}: they lie outside its support "
            f"{energy.support!r}, or an expert fails there"
        )
    return values.mean()


def advanced(
    energy: Energy, x: Tensor, kernel: Kernel, k: int, generator: torch.Generator | None
) -> tuple[Tensor, float]:
    # (n, *event) -> (n, *event)
    """The points after k steps, and the mean acceptance. The energy is in eval mode during the
    steps: dropout is not part of the model."""
    acceptance = 0.0
    with frozen(energy):
        state = kernel.init(energy, x.detach())
        for _ in range(k):
            state, info = kernel.step(energy, state, kernel.noise(state, generator))
            acceptance += float(info.acceptance.mean()) / k
    if acceptance < MIN_ACCEPTANCE:
        warnings.warn(
            f"chains of {energy} hardly move: {type(kernel).__name__} accepts {acceptance:.2g} of "
            "its steps; give it a smaller step size, or more steps k",
            PoeWarning,
            stacklevel=3,
        )
    return kernel.position(state)[0].detach(), acceptance
