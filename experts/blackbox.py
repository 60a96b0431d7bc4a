"""Log-densities computed outside torch: numpy code, compiled simulators, JAX. E(x) = -log p(x)
in nats.

With a gradient of log p, every kernel can be used. Without one, a request for a gradient raises
TypeError (also in the backward pass of a composition, which would otherwise leave its share out
silently), and draws come from `kernel=poe.RandomWalk()` or by importance.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.distributions.constraints import Constraint

from experts.functions import Stated
from poe.algebra.energy import Estimate
from poe.algebra.points import batch_shape
from poe.registry import register

Batched = Callable[[np.ndarray], Any]


class External(Stated):
    """An energy computed outside torch: a subclass gives energies, and gradients where it has them,
    of numpy rows in float64."""

    reason = "it is computed outside torch"

    def energies(self, rows: np.ndarray) -> Any:  # (n, *event) -> (n)
        """E of each row, in nats."""
        raise NotImplementedError

    def gradients(self, rows: np.ndarray) -> Any:  # (n, *event) -> (n, *event)
        """∇E of each row; TypeError where there is none."""
        raise TypeError(
            f"the energy {self} has no gradient: {self.reason}. Draw with a kernel that needs "
            "none: poe.sample(..., kernel=poe.RandomWalk())"
        )

    def forward(self, x: Tensor) -> Tensor:  # (*batch, *event) -> (*batch)
        return _Through.apply(x, self)

    def _value_and_grad(self, x: Tensor) -> tuple[Tensor, Tensor]:
        gradient = self.called(self.gradients, x, self.event_shape)
        return self.called(self.energies, x, ()), gradient

    def called(self, function: Batched, x: Tensor, each: Sequence[int]) -> Tensor:
        # (*batch, *event) -> (*batch, *each)
        """A numpy function of rows, at x, its results checked and brought to the precision and
        device of x."""
        batch = batch_shape(self, x)
        rows = x.detach().double().cpu().numpy().reshape(batch.numel(), *self.event_shape)
        found = np.asarray(function(rows.copy())) if len(rows) else np.zeros((0, *each))
        if found.shape != (len(rows), *each):
            raise ValueError(
                f"the function of {self} returned shape {found.shape} for {len(rows)} rows of "
                f"event shape {tuple(self.event_shape)}: it must return {(len(rows), *each)}; wrap "
                "a function of one x in a loop over rows"
            )
        return torch.as_tensor(found).to(device=x.device, dtype=x.dtype).reshape((*batch, *each))


class _Through(torch.autograd.Function):
    """The energy, with its own gradient in the backward pass; once differentiable."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, energy: External) -> Tensor:
        ctx.save_for_backward(x)
        ctx.energy = energy
        return energy.called(energy.energies, x, ())

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *upstream: Any) -> Any:
        (x,) = ctx.saved_tensors
        gradient = ctx.energy.called(ctx.energy.gradients, x, ctx.energy.event_shape)
        shape = upstream[0].shape + (1,) * len(ctx.energy.event_shape)
        return upstream[0].reshape(shape) * gradient, None


@register("black-box")
class BlackBox(External):
    """E(x) = -log p(x) of a numpy function that takes rows.

    Arguments:
        log_prob: (n, *event) -> (n), float64, in nats, up to a constant; -inf where the density is
            0.
        event_shape: shape of one x.
        gradient: (n, *event) -> (n, *event), ∇ log p; None where there is none.
        support: where the density may be non-zero; all of R^n by default. The functions are
            called only at points of it.
        log_z: log ∫ exp(log_prob), where it is known: 0 of a normalised density.
        proper, bounded: what is known about the density; None for unknown.

    Raises ValueError where a function returns another shape, TypeError where a gradient is needed
    and there is none.

    >>> bell = BlackBox(lambda x: -(x**2).sum(-1) / 2, (2,), gradient=lambda x: -x)
    >>> bell.score(torch.tensor([1.0, 2.0]))
    tensor([-1., -2.])
    """

    reason = "no gradient= was given beside log_prob"

    def __init__(
        self,
        log_prob: Batched,
        event_shape: Sequence[int],
        *,
        gradient: Batched | None = None,
        support: Constraint | None = None,
        log_z: float | Estimate | None = None,
        proper: bool | None = None,
        bounded: bool | None = None,
        name: str | None = None,
    ) -> None:
        if not callable(log_prob) or not (gradient is None or callable(gradient)):
            raise TypeError(
                "a BlackBox takes functions of numpy rows: log_prob and, optionally, gradient"
            )
        proper = True if log_z is not None else proper
        super().__init__(event_shape, support=support, proper=proper, bounded=bounded, name=name)
        self._log_prob, self._gradient = log_prob, gradient
        if log_z is not None and not isinstance(log_z, Estimate):
            log_z = Estimate(float(log_z))
        self._log_z = log_z

    def energies(self, rows: np.ndarray) -> Any:  # (n, *event) -> (n)
        return -np.asarray(self._log_prob(rows), dtype=float)

    def gradients(self, rows: np.ndarray) -> Any:  # (n, *event) -> (n, *event)
        if self._gradient is None:
            return super().gradients(rows)
        return -np.asarray(self._gradient(rows), dtype=float)

    @property
    def log_z(self) -> Estimate | None:
        return self._log_z


@register("jax")
def from_jax(log_prob: Callable[..., Any], event_shape: Sequence[int], **facts: Any) -> BlackBox:
    """A JAX function of one x, event -> log p (in nats), with its gradient by `jax.grad`; `facts`
    as in `BlackBox`.

    It is compiled over rows; batches are filled up to a power of two, so that few sizes are
    compiled. JAX computes in float32 unless `jax.config.update("jax_enable_x64", True)` was called.
    """
    jax: Any = importlib.import_module("jax")
    value = jax.jit(jax.vmap(log_prob))
    slope = jax.jit(jax.vmap(jax.grad(log_prob)))
    shape = tuple(event_shape)
    found = jax.eval_shape(log_prob, jax.ShapeDtypeStruct(shape, jax.numpy.zeros(()).dtype)).shape
    if found != ():
        raise ValueError(
            f"the JAX function returned shape {found} for one x of shape {shape}: it must return "
            "one number"
        )

    def filled(function: Callable[..., Any]) -> Batched:
        def rowwise(rows: np.ndarray) -> np.ndarray:
            size = 2 ** math.ceil(math.log2(len(rows)))
            padded = np.concatenate([rows, np.repeat(rows[:1], size - len(rows), axis=0)])
            return np.asarray(function(padded))[: len(rows)]

        return rowwise

    return BlackBox(filled(value), event_shape, gradient=filled(slope), **facts)
