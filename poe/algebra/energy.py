"""What an energy is: a function E(x) in nats that stands for the density exp(-E(x)) / Z, its facts,
and how it is evaluated."""

from __future__ import annotations

import keyword
import math
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from itertools import chain
from numbers import Real
from operator import attrgetter, is_
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from poe.algebra import facts, outline, points
from poe.algebra import support as sets
from poe.algebra.capabilities import Conditional
from poe.algebra.operators import BUILDERS, Power, Refusals
from poe.algebra.support import shape_of
from poe.algebra.text import labels, leaves, written


class Estimate(NamedTuple):
    """A number with its standard error, 0 where the number is exact. `float(estimate)` is the
    number."""

    value: float
    standard_error: float = 0.0

    def __float__(self) -> float:
        return float(self.value)

    def __str__(self) -> str:
        error = f"± {self.standard_error:.2g}" if self.standard_error else "(exact)"
        return f"{self.value:.6g} {error}"


class Energy(Refusals, nn.Module, ABC):
    """A function E(x) in nats that stands for the density exp(-E(x)) / Z.

    Arguments:
        event_shape: shape of one x.
        support: where the density may be non-zero, a constraint of `torch.distributions`; all of
            R^n by default.
        name: how the energy prints inside expressions.

    A subclass implements `forward(x)`, which is only ever called through `energy(x)` and then sees
    points of the support alone:
    outside it the energy is +inf. Calling an energy raises ValueError where the trailing axes of x
    are not the event shape.
    """

    def __init__(
        self,
        event_shape: Sequence[int],
        *,
        support: sets.Constraint | None = None,
        name: str | None = None,
    ) -> None:
        super().__init__()
        self._event_shape = shape_of(event_shape)
        self._support = sets.canonical(support, self._event_shape)
        self._name: str | None = None
        self.name = name

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:  # (*batch, *event) -> (*batch)
        """The energy of each point, in nats, with its graph."""

    # ---- facts, propagated from the leaves; None means unknown

    # read with each evaluation, so without a Python call
    event_shape = cast(torch.Size, property(attrgetter("_event_shape"), doc="Shape of one x."))
    support = cast(
        sets.Constraint,
        property(attrgetter("_support"), doc="Where the density may be non-zero, of whole events."),
    )

    @property
    def log_z(self) -> Estimate | None:
        """log of the integral (or sum) of exp(-E), or None where it is unknown."""
        return facts.log_z(self)

    @property
    def proper(self) -> bool | None:
        """Whether 0 < Z < infinity; None where unknown."""
        return facts.proper(self)

    @property
    def bounded(self) -> bool | None:
        """Whether the density is bounded above (the energy below); None where unknown."""
        return facts.bounded(self)

    @property
    def flat(self) -> bool | None:
        """Whether the density is one finite number above 0 all over its support; None where
        unknown. To multiply or divide by it only cuts the support."""
        return facts.flat(self)

    @property
    def growth(self) -> float | None:
        """The c for which E(x) = c‖x‖² + O(‖x‖) far out, E finite everywhere; None where unknown.
        Of a product it is the weighted sum, and decides whether it is proper and bounded, whatever
        the signs of the powers."""
        return facts.growth(self)

    @property
    def name(self) -> str | None:
        """How the energy prints inside expressions; a dotted Python name."""
        return self._name

    @name.setter
    def name(self, name: str | None) -> None:
        dotted = name is None or re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", name)
        if not dotted or any(map(keyword.iskeyword, (name or "").split("."))):
            raise ValueError(
                f"{name!r} cannot stand in an expression; give a dotted Python name such as "
                "'digits.even'"
            )
        self._name = name

    @property
    def parts(self) -> tuple[Energy, ...]:
        """The energies this one is composed of; none for an expert."""
        return ()

    def rebuild(self, parts: Sequence[Energy]) -> Energy:
        """The same composition over other parts."""
        return self

    @property
    def vocabulary(self) -> Any:
        """What the whole numbers of an event stand for, such as the words of a text; None where
        that is not stated.

        Energies whose vocabularies differ (`!=`) do not compose.
        """
        return next((part.vocabulary for part in self.parts if part.vocabulary is not None), None)

    @property
    def dtype(self) -> torch.dtype:
        """Precision in which the energy works: that of its first floating tensor."""
        return first_tensor(self).dtype

    @property
    def device(self) -> torch.device:
        """Device of its first floating tensor."""
        return first_tensor(self).device

    def _like(self) -> Tensor:
        return first_tensor(self)

    # ---- evaluation

    def __call__(self, x: Tensor) -> Tensor:  # (*batch, *event) -> (*batch)
        batch = points.batch_shape(self, x)
        try:
            if sets.is_real(self._support):
                energy = super().__call__(x)
            else:
                inside, safe = points.moved_inside(self._support, self._event_shape, x)
                energy = torch.where(inside, super().__call__(safe), math.inf)
            if energy.shape != batch:
                raise points.wrong_shape(self, energy, x)
        except Exception as error:
            found = points.at_fault(self, x, error, Energy.__call__)
            if found is error:
                raise
            raise found from found.__cause__
        return energy

    def value_and_grad(self, x: Tensor) -> tuple[Tensor, Tensor]:
        # (*batch, *event) -> (*batch), (*batch, *event)
        """E(x) in nats and its gradient, without a graph. Where the density is 0: +inf and 0.

        Raises TypeError where E does not depend on x through differentiable operations.
        """
        batch = points.batch_shape(self, x)
        if not x.is_floating_point():
            raise TypeError(
                f"the energy {self} has no gradient on {x.dtype} points; x.float() gives points "
                "that have one"
            )
        x = x.detach()
        try:
            if sets.is_real(self._support):
                energy, gradient = self._value_and_grad(x)
            else:
                inside, safe = points.moved_inside(self._support, self._event_shape, x)
                energy, gradient = self._value_and_grad(safe)
                energy = torch.where(inside, energy, math.inf)
            if energy.shape != batch:
                raise points.wrong_shape(self, energy, x)
        except Exception as error:
            found = points.at_fault(self, x, error, Energy.value_and_grad)
            if found is error:
                raise
            raise found from found.__cause__
        void = (energy == math.inf).reshape(batch + (1,) * len(self._event_shape))
        return energy, torch.where(void, 0, gradient)

    def score(self, x: Tensor) -> Tensor:  # (*batch, *event) -> (*batch, *event)
        """-∇E(x) = ∇ log p(x), in nats per unit of x."""
        return -self.value_and_grad(x)[1]

    def _value_and_grad(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """What `value_and_grad` calls, x inside the support and detached; an expert with its own
        gradient overrides it."""
        with torch.enable_grad():
            x = x.requires_grad_() if x.is_leaf else x.detach().requires_grad_()
            energy = nn.Module.__call__(self, x)
            if not energy.requires_grad and torch.is_inference_mode_enabled():
                raise RuntimeError(
                    f"{self} has no gradient under torch.inference_mode(); torch.no_grad() may "
                    "stand around it"
                )
            if not energy.requires_grad:
                raise TypeError(
                    f"the energy {self} does not depend on x through torch operations, so it has "
                    "no gradient here; use a kernel that needs none, or override _value_and_grad"
                )
            (gradient,) = torch.autograd.grad(energy.sum(), x, materialize_grads=True)
        return energy.detach(), gradient

    def _seen_by_parts(self, x: Tensor) -> Tensor:
        """The points at which the parts are evaluated for x."""
        return x

    # ---- capabilities and bindings

    def can(self, capability: type) -> bool:
        """Whether this energy has a capability of `poe.algebra.capabilities`."""
        return isinstance(self, capability)

    def given(self, context: Any) -> Energy:
        """Binds a context: a composition binds it in every part that takes one. Raises TypeError
        where none does."""
        if not takes_context(self):
            raise TypeError(
                f"no expert in {self} takes a context; .given() needs a conditional expert"
            )
        return self.rebuild([bound(part, context) for part in self.parts])

    def at(self, sigma: float) -> Energy:
        """The energy at noise level sigma (units of x). Unnoised experts are the same at every
        level.

        Raises ValueError for a level that is no finite number of at least 0.
        """
        checked_level(self, sigma)
        return with_parts(self, [part.at(sigma) for part in self.parts])

    def config(self) -> dict[str, Any]:
        """Plain JSON arguments from which `from_config` rebuilds an expert of this shape, to be
        filled by `load_state_dict`."""
        raise TypeError(
            f"{type(self).__name__} cannot be saved: give it a method config() that returns plain "
            "JSON arguments and register the class with @poe.register"
        )

    @classmethod
    def from_config(cls, **config: Any) -> Energy:
        """An expert of the shape that `config()` of another one states."""
        return cls(**config)

    # ---- the algebra; files of nodes say what builds each

    def __and__(self, other: Energy) -> Energy:
        return BUILDERS["&"](self, other)

    def __or__(self, other: Energy) -> Energy:
        return BUILDERS["|"](self, other)

    def __pow__(self, power: Power) -> Energy:
        return BUILDERS["**"](self, power)

    def __truediv__(self, other: Energy) -> Energy:
        return BUILDERS["/"](self, other)

    def __invert__(self) -> Energy:
        return BUILDERS["**"](self, -1.0)

    def __sub__(self, other: Energy) -> Energy:
        return BUILDERS["-"](self, other)

    def __matmul__(self, function: Callable[[Tensor], Tensor]) -> Energy:
        return BUILDERS["@"](self, function)

    # ---- printing: str is the algebra, repr the facts

    def __str__(self) -> str:
        return written(self, labels(self))[0]

    def __repr__(self) -> str:
        return outline.page(self)

    def _repr_html_(self) -> str:
        return outline.html(self)


def takes_context(energy: Energy) -> bool:
    """Whether an expert of the expression does."""
    return any(leaf.can(Conditional) for leaf in leaves(energy))


def bound(energy: Energy, context: Any) -> Energy:
    """The energy with a context, where it takes one."""
    return energy.given(context) if takes_context(energy) else energy


def checked_level(energy: Energy, sigma: Any) -> float:
    """A level of noise. Raises ValueError for what is no finite number of at least 0."""
    if isinstance(sigma, Tensor) and sigma.numel() == 1 and not sigma.is_complex():
        sigma = sigma.item()
    if not isinstance(sigma, Real) or isinstance(sigma, bool) or not 0 <= float(sigma) < math.inf:
        raise ValueError(
            f"a level of noise is a finite number of at least 0, in units of x; {energy} got "
            f"{sigma!r}"
        )
    return float(sigma)


def first_tensor(energy: Energy) -> Tensor:
    """The first floating tensor of an energy, in whose precision and on whose device it works; an
    empty one where it has none."""
    for tensor in chain(energy.parameters(), energy.buffers()):
        if tensor.is_floating_point():
            return tensor
    return torch.empty(())


def with_parts(energy: Energy, parts: Sequence[Energy]) -> Energy:
    """The same composition over these parts; the energy itself where they are its own."""
    return energy if all(map(is_, parts, energy.parts)) else energy.rebuild(parts)


class Density(Energy):
    """An energy that is normalised, log_z = 0 exactly, and that draws independent samples: a base
    class for authors.

    A subclass implements `log_prob` and `sample`.
    """

    @abstractmethod
    def log_prob(self, x: Tensor) -> Tensor:  # (*batch, *event) -> (*batch)
        """log p(x) in nats, x inside the support."""

    @abstractmethod
    def sample(
        self, n: int | tuple[int, ...], *, generator: torch.Generator | None = None
    ) -> Tensor:
        """n independent draws, (n, *event); n an int or a shape."""

    def forward(self, x: Tensor) -> Tensor:  # (*batch, *event) -> (*batch)
        return -self.log_prob(x)

    @property
    def log_z(self) -> Estimate | None:
        return Estimate(0.0)

    @property
    def proper(self) -> bool | None:
        return True
