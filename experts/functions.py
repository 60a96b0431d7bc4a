"""Any function as an energy: four ways of making a function non-negative, so that it is a density
up to its constant.

| link       | density        | energy               |
|------------|----------------|----------------------|
| "exp"      | exp(-g)        | g                    |
| "square"   | g²             | -2 log|g|            |
| "abs"      | |g|            | -log|g|              |
| "softplus" | log(1 + e^g)   | -log softplus(g)     |
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.distributions.constraints import Constraint
from torch.nn.functional import softplus

from experts.locked import Locked
from poe.algebra.energy import Energy
from poe.registry import register

Link = Literal["exp", "square", "abs", "softplus"]


def _log_softplus(g: Tensor) -> Tensor:
    """log log(1 + e^g): g - e^g/2 + ... far below 0, where softplus itself would underflow."""
    low = g < -20
    return torch.where(
        low, g - g.clamp(max=0).exp() / 2, softplus(torch.where(low, -20, g), threshold=40).log()
    )


_ENERGY: dict[str, Callable[[Tensor], Tensor]] = {
    "exp": lambda g: g,
    "square": lambda g: -2 * g.abs().log(),
    "abs": lambda g: -g.abs().log(),
    "softplus": lambda g: -_log_softplus(g),
}


class Stated(Energy):
    """An energy made of code, whose facts are what the caller states; a file cannot hold it."""

    instead = "save what made it, and wrap it again"

    def __init__(
        self,
        event_shape: Sequence[int],
        *,
        support: Constraint | None = None,
        proper: bool | None = None,
        bounded: bool | None = None,
        name: str | None = None,
    ) -> None:
        super().__init__(event_shape, support=support, name=name)
        self._proper, self._bounded = proper, bounded

    @property
    def proper(self) -> bool | None:
        return super().proper if self._proper is None else self._proper

    @property
    def bounded(self) -> bool | None:
        return super().bounded if self._bounded is None else self._bounded

    def config(self) -> dict[str, Any]:
        raise TypeError(f"{self} wraps code, which a file cannot hold: {self.instead}")


@register("function")
class Function(Locked, Stated):
    """The energy of a function g through a link: p ∝ exp(-g), g², |g| or log(1 + e^g), in nats.

    Arguments:
        g: maps x, (n, *event), to n numbers; whatever batch axes the energy is given, it sees one.
            An `nn.Module` is put in eval mode and kept there, so that the energy is a function; its
            parameters can still be trained.
        event_shape: shape of one x; may be left out where g states its own.
        link: "exp", "square", "abs" or "softplus".
        support: where the density may be non-zero, a constraint of `torch.distributions`; all of
            R^n by default.
        proper, bounded: what is known about the density; None for unknown.

    Raises ValueError where g returns another shape than (n).

    >>> well = Function(lambda x: x**2 / 2, ())
    >>> well(torch.tensor(2.0)).item()
    2.0
    """

    instead = (
        "write the function as a class derived from poe.Energy with a method config(), and "
        "register it with @poe.register"
    )

    def __init__(
        self,
        g: Callable[[Tensor], Tensor],
        event_shape: Sequence[int] | None = None,
        *,
        link: Link = "exp",
        support: Constraint | None = None,
        proper: bool | None = None,
        bounded: bool | None = None,
        name: str | None = None,
    ) -> None:
        if not callable(g):
            raise TypeError(f"a Function takes a callable x -> number, not {g!r}")
        if link not in _ENERGY:
            known = ", ".join(map(repr, _ENERGY))
            raise ValueError(f"unknown link {link!r}; choose one of {known}")
        if event_shape is None:
            event_shape = getattr(g, "event_shape", None)
        if event_shape is None:
            raise TypeError(
                "state the shape of one x, such as event_shape=(2,): a function does not state it"
            )
        super().__init__(event_shape, support=support, proper=proper, bounded=bounded, name=name)
        self.g, self.link = g, link
        self.eval()

    def forward(self, x: Tensor) -> Tensor:  # (*batch, *event) -> (*batch)
        batch = x.shape[: x.ndim - len(self.event_shape)]
        n = batch.numel()
        rows = x if len(batch) == 1 else x.reshape(n, *self.event_shape)
        value = self.g(rows)
        if not isinstance(value, Tensor):
            raise TypeError(
                f"the function of {self} returned {type(value).__name__}, not a tensor of one "
                "number for each x; a log-density outside torch is "
                'poe.create("black-box", log_prob=..., event_shape=...)'
            )
        if value.shape != (n,):
            drop = ": drop its last axis, lambda x: g(x).squeeze(-1)"
            raise ValueError(
                f"the function of {self} returned shape {tuple(value.shape)} for x of shape "
                f"{tuple(rows.shape)}, where it must give one number for each event of shape "
                f"{tuple(self.event_shape)}{drop if value.shape == (n, 1) else ''}"
            )
        return _ENERGY[self.link](value).reshape(batch)


def function(
    g: Callable[[Tensor], Tensor],
    event_shape: Sequence[int] | None = None,
    *,
    link: Link = "exp",
    support: Constraint | None = None,
    proper: bool | None = None,
    bounded: bool | None = None,
    name: str | None = None,
) -> Function:
    """`Function(g, ...)`, named after g where g is a named function: p ∝ exp(-g), g², |g| or log(1
    + e^g)."""
    own = getattr(g, "__name__", "<lambda>") if not isinstance(g, nn.Module) else "<module>"
    return Function(
        g,
        event_shape,
        link=link,
        support=support,
        proper=proper,
        bounded=bounded,
        name=name or (own if own.isidentifier() and own != "function" else None),
    )
