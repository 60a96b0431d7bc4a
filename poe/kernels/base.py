"""The interface of kernels."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Self

import torch
from torch import Tensor

from poe.algebra.energy import Energy
from poe.kernels.moves import close, draw, evaluate
from poe.kernels.state import Feedback, Info, State, Trajectory


class Kernel(ABC):
    """One Markov transition on a batch of chains; a frozen value. All randomness is drawn before
    the step, with a fixed size.

    A new kernel subclasses this and has `step` and, where it has a step size, `tuned` and `guess`;
    `init` and `noise` where its states or its randomness are others than `State` and `Noise`. The
    rest has defaults. What is fixed for a kernel is a class attribute, and
    a property where it depends on the kernel's fields.

    Attributes:
        exact: whether the kernel leaves the target invariant.
        step_size: number or tensor over trailing batch axes; None where there is none, or warm-up
            has yet to find it.
        scale, dense: L over the flattened event, the preconditioner being L Lᵀ; whether L is a
            matrix (*b, d, d) rather than a diagonal (*b, d).
        compiles: whether `step` is one graph of tensors, and `noise` takes a number of steps for a
            leading axis.
        plain: whether its states are `State` and hold all that a step needs, so that other kernels
            can continue from them.
        parts: the kernels it is made of, each tuned separately.
        needs_gradient: whether `init` and `step` evaluate the gradient of the target.
        target_acceptance: what warm-up leads `statistic` to, in many dimensions; None where there
            is no step size to find.
        learns_length: whether warm-up finds the length of its trajectories, from `slope`.
        gradients_per_step: gradients of the target per step and chain, the mean over the kernel's
            own randomness.
    """

    exact: bool = True
    step_size: float | Tensor | None = None
    scale: Tensor | None = None
    dense: bool = False
    compiles: bool = False
    plain: bool = True
    parts: tuple[Kernel, ...] = ()
    needs_gradient: bool = True
    target_acceptance: float | None = None
    learns_length: bool = False
    gradients_per_step: float = 1.0

    @property
    def ready(self) -> bool:
        """Whether it can step without a warm-up."""
        return self.step_size is not None or self.target_acceptance is None

    def check(self, energy: Energy) -> None:  # noqa: B027 (most have nothing to check)
        """Raises ValueError where the kernel does not apply to this energy."""

    def init(self, energy: Energy, x: Tensor) -> Any:  # x: (*batch, *event)
        """The state at x. Raises ValueError where the kernel does not apply to this energy."""
        self.check(energy)
        return evaluate(energy, x.detach(), self.needs_gradient)

    def noise(
        self, state: Any, generator: torch.Generator | None = None, steps: int | None = None
    ) -> Any:
        """All randomness of one step, of a fixed size; of `steps` steps, along a leading axis."""
        return draw(state, generator, steps)

    @abstractmethod
    def step(self, energy: Energy, state: Any, noise: Any) -> tuple[Any, Info]:
        """The next state, a pure function of the state and the noise."""

    def learn(self, energy: Energy, state: Any, noise: Any) -> tuple[Any, Info, Feedback]:
        """A step of warm-up: what `step` returns, and feedback for adaptation."""
        state, info = self.step(energy, state, noise)
        return state, info, Feedback(info.acceptance)

    def statistic(self, signal: Tensor) -> Tensor:
        """A number in [0, 1] that decreases with the step size, from the mean signal over the
        chains, (*rungs)."""
        return signal

    def target(self, d: int) -> float | None:
        """`target_acceptance` in d dimensions."""
        return self.target_acceptance

    def guess(self, d: int) -> float:
        """A step size for a standard normal of d dimensions, at which adaptation restarts after
        each new preconditioner."""
        raise NotImplementedError(f"{type(self).__name__} has no step size")

    def guess_length(self, d: int) -> float:
        """The length of trajectories that is best for a standard normal of d dimensions."""
        raise NotImplementedError(f"{type(self).__name__} has no trajectories")

    def slope(self, trajectory: Trajectory, acceptance: Tensor) -> Tensor:
        """The derivative, by the logarithm of the length of trajectories, of the criterion that the
        length maximises; a number, from all chains."""
        raise NotImplementedError(f"{type(self).__name__} has no trajectories")

    def tuned(
        self, step_size: float | Tensor, scale: Tensor | None = None, dense: bool = False
    ) -> Self:
        """The same kernel with another step size and preconditioner."""
        return self

    def lengthened(self, length: float) -> Self:
        """The same kernel with trajectories of another length."""
        return self

    def rebuilt(self, parts: tuple[Kernel, ...]) -> Self:
        """The same kernel made of other parts."""
        return self

    def through(self, around: Callable[[Energy], Energy]) -> Self:
        """The same kernel in other variables: energies that it holds, such as a proposal, are
        transformed by `around`."""
        return self

    def walkers(self, state: Any) -> State:
        """All positions of a state, (chains, *rungs), from which adaptation learns."""
        return state

    def position(self, state: Any) -> tuple[Tensor, Tensor]:
        """The draws of the target that a state holds, and their energies: (chains, *event),
        (chains)."""
        return state.x, state.energy

    def agrees(self, energy: Energy, state: Any) -> bool:
        """Whether the energies that a state holds are those of the target, up to rounding."""
        x, held = self.position(state)
        with torch.no_grad():
            return close(energy(x), held)


class Preconditioned(Kernel):
    """A kernel whose fields are a step size and a preconditioner M = L Lᵀ: `step_size`, `scale` and
    `dense`."""

    def tuned(
        self, step_size: float | Tensor, scale: Tensor | None = None, dense: bool = False
    ) -> Self:
        fields: Any = self  # every subclass is a dataclass
        return replace(fields, step_size=step_size, scale=scale, dense=dense)
