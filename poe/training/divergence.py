"""Contrastive divergence: losses whose negative points are moved by chains, from the data or from
where they were last.

| loss | chains start | references |
|-----------------------------------|-------------------------------------------|-------------------------------------|
| `ContrastiveDivergence` | at the batch | Hinton 2002 |
| `PersistentContrastiveDivergence` | where they ended, or in a buffer | Tieleman 2008; Du and Mordatch 2019 |

Both are mean E(batch) - mean E(x_k), x_k the points after k steps of a kernel: no number of
interest, but a gradient, E_data ∇E - E_chains ∇E, that estimates the one of -log p(data) as well as
the chains follow the model.
"""  # noqa: E501

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, field

import torch
from torch import Tensor

from poe.algebra import support as sets
from poe.algebra.capabilities import Samples
from poe.algebra.energy import Energy
from poe.algebra.frozen import frozen
from poe.kernels import DiscreteLangevin, Gibbs, Kernel, Langevin
from poe.kernels.defaults import default_kernel
from poe.spaces.conditionals import opaque
from poe.spaces.sites import sites_of, vectors

# acceptance to which step sizes are led (Roberts and Rosenthal 1998; Sun, Dai and Schuurmans 2022)
TARGET = 0.574
ENOUGH = 0.4  # acceptance at which the search for a first one ends
FEW = 0.01  # acceptance below which chains are said to stand still
MOST_TRIES = 20


@dataclass(frozen=True)
class ContrastiveDivergence:
    """CD-k: mean E(batch) - mean E(x_k), x_k after k steps of a kernel from the batch itself; the
    step is not differentiated.

    Cheap, and biased: the gradient vanishes where k steps leave the data's law as it is, which is
    the likelihood's optimum where the model can be the data's law, and near it else.

    Arguments:
        k: steps, at least 1.
        kernel: what moves the points, with a step size where it has one; None: see `mover`, which
            looks for one in each call.
        generator: source of its randomness; torch's global one by default.

    Raises ValueError where the batch is empty, or has points of energy +inf or NaN.

    Reference: Hinton 2002, Training products of experts by minimizing contrastive divergence,
    Neural Computation 14(8).
    """

    k: int = 1
    kernel: Kernel | None = None
    generator: torch.Generator | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        _check_steps(self.k)

    def __call__(self, energy: Energy, batch: Tensor) -> Tensor:  # (n, *event) -> ()
        check_batch(energy, batch)
        data = mean_energy(energy, batch, "the batch")
        kernel = mover(energy, batch, batch, self.generator) if self.kernel is None else self.kernel
        moved, _ = _moved(energy, batch, kernel, self.k, self.generator)
        return data - mean_energy(energy, moved, "the chains")


@dataclass(eq=False)
class PersistentContrastiveDivergence:
    """PCD-k: mean E(batch) - mean E(x), x the points of chains that go on from call to call, k
    steps of a kernel in each.

    With a learning rate that is small next to their mixing, the chains stay near the model's law
    and the gradient near the likelihood's. Call i moves `chains` of the `buffer` points, drawn from
    it without replacement, after each of them started anew with probability `restart`; what they
    become is put back.

    Arguments:
        chains: how many points are moved in a call.
        k: steps in a call, at least 1.
        kernel: what moves them, with a step size where it has one; None: see `mover`. In each call
            its step size is then multiplied by exp(a - 0.574), a the acceptance, so that it follows
            the energy.
        buffer: how many points are kept; None: as many as move.
        restart: probability with which a chain starts anew, in a call.
        start: an energy whose draws chains start from, then and at first; None: points of the
            batch, drawn with replacement.
        generator: source of all this; torch's global one by default.

    Attributes:
        points: (buffer, *event), where the chains are; None before the first call.
        step_size: of the kernel that was found; None before the first call, and where it needs
            none.
        acceptance: of the last call, the mean over chains and steps; None before it.

    `state_dict` and `load_state_dict` hold points, step size and the generator's state: training
    that goes on from them, and from the states of the energy and of the optimiser, is what it would
    have been.

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
        _check_steps(self.k)
        if self.chains < 1 or (self.buffer is not None and self.buffer < self.chains):
            raise ValueError(
                f"a buffer of {self.buffer} points cannot give {self.chains} chains: 1 <= chains "
                "<= buffer"
            )
        if not 0 <= self.restart <= 1:
            raise ValueError(
                "restart is the probability that a chain starts anew, between 0 and 1, not "
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
        """Moves some of the points, and returns what they become. The batch is where points are
        taken from, and their scale."""
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
        moved, self.acceptance = _moved(energy, x, kernel, self.k, self.generator)
        if self.kernel is None and kernel.step_size is not None:
            self.step_size = float(kernel.step_size) * math.exp(self.acceptance - TARGET)
        self.points = self.points.index_copy(0, chosen, moved)
        return moved

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
        """Goes on from what `state_dict` gave. Raises ValueError where that was another number of
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
        if self.start is not None:
            with torch.no_grad():
                return self.start.sample(n, generator=self.generator).to(batch)  # type: ignore[attr-defined]
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
    """The kernel of chains at x that were given none.

    Where the energy redraws blocks itself, or is discrete and few blocks of sites can be redrawn
    together: `Gibbs`. Any other
    discrete energy: `DiscreteLangevin`. Real points: Metropolis-adjusted `Langevin`, preconditioned
    by the standard deviations of the batch, which the model is to have in the end. Their step size
    is, unless given, the first of h, h/4, h/16, ... at which steps from x are accepted in 4 cases
    of 10, h = δ² with δ the distance between neighbouring values (1 for bits), or 1.36 d^(-1/3).

    Raises ValueError where a real coordinate is the same all over the batch, which gives it no
    scale.
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
                f"{int((scale <= 0).sum())} of {len(scale)} coordinates do not vary over the "
                f"{len(batch)} points of the batch, "
                "which gives them no scale: give kernel=poe.Langevin(step_size), in units of x "
                "squared"
            )
    return kernel.tuned(
        _first(energy, x, kernel, first, scale, generator) if step_size is None else step_size,
        scale,
    )


def _first(
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
        for _ in range(MOST_TRIES):
            _, info = kernel.tuned(size, scale).step(energy, state, kernel.noise(state, generator))
            if float(info.acceptance.mean()) >= ENOUGH:
                break
            size /= 4
    return size


def check_batch(energy: Energy, batch: Tensor) -> None:
    """Raises ValueError where a batch is not (n, *event) with n >= 1."""
    shape = energy._batch_shape(batch)
    if len(shape) != 1:
        raise ValueError(
            f"a batch is (n, *event), here with event shape {tuple(energy.event_shape)}; got "
            f"{tuple(batch.shape)}"
        )
    if not shape[0]:
        raise ValueError(
            f"the batch of shape {tuple(batch.shape)} is empty: a loss is a mean over at least one "
            "point"
        )


def mean_energy(energy: Energy, x: Tensor, what: str) -> Tensor:  # (n, *event) -> ()
    """mean E(x), in nats. Raises ValueError, naming what x are, where a point's energy is not
    finite."""
    values = energy(x)
    bad = ~values.detach().isfinite()
    if bool(bad.any()):
        raise ValueError(
            f"{int(bad.sum())} of {len(bad)} points of {what} have energy "
            f"{values.detach()[bad][0].item()} under {energy}: they "
            f"lie outside its support {energy.support!r}, or an expert fails there"
        )
    return values.mean()


def _moved(
    energy: Energy, x: Tensor, kernel: Kernel, k: int, generator: torch.Generator | None
) -> tuple[Tensor, float]:
    # (n, *event) -> (n, *event)
    """The points after k steps, and the mean acceptance. The energy is in eval mode meanwhile:
    dropout is no part of a model."""
    acceptance = 0.0
    with frozen(energy):
        state = kernel.init(energy, x.detach())
        for _ in range(k):
            state, info = kernel.step(energy, state, kernel.noise(state, generator))
            acceptance += float(info.acceptance.mean()) / k
    if acceptance < FEW:
        warnings.warn(
            f"chains of {energy} hardly move: {type(kernel).__name__} accepts {acceptance:.2g} of "
            "its steps; give it a smaller step "
            "size, or more steps k",
            stacklevel=3,
        )
    return kernel.position(state)[0].detach(), acceptance


def _check_steps(k: int) -> None:
    if isinstance(k, bool) or not isinstance(k, int) or k < 1:
        raise ValueError(f"k counts the steps that move the points, a positive integer, not {k!r}")
