"""A target over flat vectors in double precision, with a count of what was evaluated: what searches
and fits work with, whatever the event and the precision of the target."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from poe.algebra.energy import Energy, first_tensor
from poe.mcmc.progress import Progress

COUNTED_POINTS = 8  # at which the operations of a target are counted
MAX_CHUNK = 1 << 21  # numbers in the largest tensor of one evaluation


class _Operations(TorchDispatchMode):
    """Counts operations: the numbers that each writes, or the multiplications of a product of
    matrices; and the largest tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.count, self.largest = 0.0, 1

    @classmethod
    def _should_skip_dynamo(cls) -> bool:  # else the first use imports the whole of torch.compile
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        tensors = [t for t in _flat(result) if isinstance(t, Tensor)]
        counter = flop_registry.get(func._overloadpacket)
        written = sum(t.numel() for t in tensors)
        self.largest = max([self.largest, *(t.numel() for t in tensors)])
        self.count += counter(*args, **(kwargs or {}), out_val=result) / 2 if counter else written
        return result


def _flat(result: Any) -> list[Any]:
    return list(result) if isinstance(result, tuple | list) else [result]


class Flat:
    """E over (n, d) in float64. Where E is NaN it has no value: +inf here, and counted.

    `operations` of one evaluation with gradient are counted once, by dispatch: a size that is the
    same on all machines, from which populations are sized. Evaluations are counted in `progress`,
    which keeps the points of the latest gradients.
    """

    def __init__(self, target: Energy, progress: Progress | None = None) -> None:
        self.progress = Progress() if progress is None else progress
        self.target, self.event = target, tuple(target.event_shape)
        self.d = max(1, math.prod(self.event))
        like = first_tensor(target)
        self.like = like if like.is_floating_point() else like.float()
        self.eps = float(torch.finfo(self.like.dtype).eps)
        self.gradients = self.energies = 0
        self.operations, self._chunk = float("nan"), COUNTED_POINTS

    def measured(self, x: Tensor) -> Flat:  # (n, d)
        """Itself, with its operations counted at these points."""
        few = x[torch.arange(COUNTED_POINTS, device=x.device) % len(x)]
        with _Operations() as found:
            self.value_and_grad(few)
        self.operations = max(1.0, found.count / COUNTED_POINTS)
        self._chunk = max(64, int(MAX_CHUNK * COUNTED_POINTS / found.largest))
        return self

    def points(self, x: Tensor) -> Tensor:  # (n, d) -> (n, *event)
        """Points of the target."""
        return x.reshape(-1, *self.event).to(self.like)

    def __call__(self, x: Tensor) -> Tensor:  # (n, d) -> (n)
        """E in nats."""
        self.progress.spend(len(x))
        self.energies += len(x)
        with torch.no_grad():
            parts = [self.target(self.points(part)).double() for part in x.split(self._chunk)]
        return _known(torch.cat(parts)) if parts else x.new_zeros(0)

    def value_and_grad(self, x: Tensor) -> tuple[Tensor, Tensor]:  # (n, d) -> (n), (n, d)
        """E and its gradient; a gradient that is not finite makes E +inf and the gradient 0."""
        self.progress.spend(len(x))
        self.gradients += len(x)
        if not len(x):
            return x.new_zeros(0), x
        parts = [self.target.value_and_grad(self.points(part)) for part in x.split(self._chunk)]
        energy = _known(torch.cat([e for e, _ in parts]).double())
        slope = torch.cat([g for _, g in parts]).reshape(len(x), self.d).double()
        self.progress.keep(self.points(x[energy < math.inf]), rough=True)
        bad = ~(slope.isfinite().all(1) & energy.isfinite())
        return torch.where(bad, math.inf, energy), torch.where(bad.unsqueeze(1), 0, slope)

    def hessian(self, x: Tensor, scale: Tensor) -> Tensor:  # (d), (d) -> (d, d)
        """The Hessian at a point: by automatic differentiation, twice; else, where that fails or
        gives nothing, by central differences of gradients with steps of a tenth of `scale`."""
        try:
            found = self._twice(x)
        except (RuntimeError, TypeError, NotImplementedError):
            found = None
        if found is not None and bool(found.isfinite().all()) and bool((found != 0).any()):
            return (found + found.mT) / 2
        steps = torch.diag(scale / 10)
        slope = self.value_and_grad(torch.cat([x + steps, x - steps]))[1]
        found = (slope[: self.d] - slope[self.d :]) / (scale / 5).unsqueeze(1)
        return (found + found.mT) / 2

    def _twice(self, x: Tensor) -> Tensor | None:
        rows = self.points(x.expand(self.d, self.d)).detach().requires_grad_()
        self.progress.spend(2 * self.d)
        self.gradients += 2 * self.d
        with torch.enable_grad():
            energy = self.target(rows)
            (slope,) = torch.autograd.grad(energy.sum(), rows, create_graph=True)
            if not slope.requires_grad:
                return None
            diagonal = slope.reshape(self.d, self.d).diagonal().sum()
            (found,) = torch.autograd.grad(diagonal, rows, materialize_grads=True)
        return found.reshape(self.d, self.d).double()


def _known(energy: Tensor) -> Tensor:
    return torch.where(energy.isnan(), math.inf, energy)
