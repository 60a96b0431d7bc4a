"""The base class of exponential families: parameters, natural form, draws, recipes."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Self

import torch
from torch import Generator, Tensor
from torch.distributions import constraints

from experts.families import parameters as param
from poe.algebra.energy import Density

Tensors = Sequence[Tensor]


class Natural(NamedTuple):
    """log p(x) = Σ_k <parameters_k, statistics(x)_k> - log_partition + log_base(x), all in float64.

    `statistics(x)` holds one tensor (*batch, *shape of parameters_k) for each natural parameter.
    """

    parameters: tuple[Tensor, ...]
    statistics: Callable[[Tensor], tuple[Tensor, ...]]
    log_partition: Tensor
    log_base: Callable[[Tensor], Tensor]


class ExponentialFamily(Density):
    """A density of an exponential family; a subclass names its parameters and its natural form.

    Arguments:
        values: the parameters, whose shapes broadcast together.
        support: of one x; torch's intervals are spread over the event.
        event_shape: shape of one x; by default the broadcast shape.
        learnable: makes every parameter an `nn.Parameter`.
    """

    def __init__(
        self,
        values: dict[str, Any],
        *,
        support: constraints.Constraint,
        event_shape: Sequence[int] | None = None,
        learnable: bool,
        name: str | None,
    ) -> None:
        shape = param.common_shape(values) if event_shape is None else event_shape
        super().__init__(shape, support=support, name=name)
        param.hold(self, values, learnable=learnable)
        self._keys = tuple(values)

    @property
    @abstractmethod
    def natural(self) -> Natural:
        """Natural parameters, sufficient statistics, log-partition (nats) and base measure, in
        float64."""

    @classmethod
    @abstractmethod
    def from_natural(cls, parameters: Tensors, rounding: Tensors | None = None) -> Self | None:
        """The member with these natural parameters, in float64.

        Raises Improper outside the natural domain. `rounding` bounds their errors: None where it is
        unknown, within them, on which side of the border the parameters lie.
        """

    @abstractmethod
    def _draw(self, shape: tuple[int, ...], generator: Generator | None) -> Tensor:
        """Independent draws in float64, (*shape, *event)."""

    @property
    def bounded(self) -> bool | None:
        return True

    def sample(self, n: int | tuple[int, ...], *, generator: Generator | None = None) -> Tensor:
        """n independent draws, (n, *event); n an int or a shape."""
        with torch.no_grad():
            return self._draw((n,) if isinstance(n, int) else tuple(n), generator).to(self.dtype)

    def config(self) -> dict[str, Any]:
        return param.recipe({key: getattr(self, key) for key in self._keys}, self.dtype)

    @classmethod
    def from_config(
        cls, *, shapes: dict[str, list[int]], learnable: Sequence[str] = (), dtype: str = "float32"
    ) -> ExponentialFamily:
        """An expert whose parameters have these shapes, to be filled by `load_state_dict`."""
        make: Any = cls
        return make(**param.blanks(cls._blank, shapes, learnable, dtype))

    @classmethod
    def _blank(cls, key: str, shape: tuple[int, ...]) -> Tensor:
        """A valid value of a parameter, of this shape."""
        return torch.full(shape, 0.5)

    def exact(self, key: str) -> Tensor:
        """A parameter in float64, without its graph, one value for each coordinate."""
        value = getattr(self, key).detach().double()
        return value.expand(torch.broadcast_shapes(value.shape, self.event_shape))

    def _no_base(self, x: Tensor) -> Tensor:
        return x.new_zeros(x.shape[: x.ndim - len(self.event_shape)], dtype=torch.float64)

    def _sum(self, terms: Tensor) -> Tensor:  # (*batch, *event) -> (*batch)
        return sum_event(terms, len(self.event_shape))


def sum_event(terms: Tensor, event_dim: int) -> Tensor:  # (*batch, *event) -> (*batch)
    """Sum over the last `event_dim` axes."""
    return terms.flatten(terms.ndim - event_dim).sum(-1) if event_dim else terms
