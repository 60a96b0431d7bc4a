"""What adapters of flow libraries share: log p(x) = log b(u) + log|det du/dx| with u = f(x) and a
base density b, in nats.

| method          | quantity                                                              |
|-----------------|-----------------------------------------------------------------------|
| `log_prob(x)`   | log p(x), (*batch)                                                    |
| `sample(n)`     | f⁻¹(u), u ~ b                                                         |
| `to_noise(x)`   | z = (f(x) - m)/s, log\\|det dz/dx\\|, where b = N(m, diag s²)           |
| `from_noise(z)` | f⁻¹(m + s z), log\\|det dx/dz\\|                                        |
| `given(c)`      | the density p(x | c), of a conditional flow                           |
"""

from __future__ import annotations

import contextlib
import math
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Self

import torch
from torch import Generator, Tensor, nn

from experts.libraries import seed_of, seeded, where_finite
from experts.locked import Locked
from poe.algebra import support as sets
from poe.algebra.bindings import Bindings
from poe.algebra.capabilities import Transport
from poe.algebra.energy import Density
from poe.registry import name_of


class WrappedFlow(Locked, Density):
    """A flow of another library as a density; a subclass says how that library evaluates it.

    Arguments:
        flow: the flow; then no `architecture` is given.
        event_shape: shape of one x; by default that of the flow's features, which it may reshape.
        context_shape: shape of one context, for a conditional flow.
        support: (low, high), each a number or an array of the event's shape, or a constraint; all
            of R^n by default.
        bounded: whether the density is known to be bounded above, where the adapter cannot tell.
        architecture: with no flow, the arguments of `build`.

    The flow stays in eval mode except inside `training_mode`. Draws are decided by the generator;
    where the base is not a Gaussian they are made by the library, under torch's global
    randomness seeded from the generator and restored after.

    Raises TypeError where the flow does not evaluate on a point or gives another value the second
    time, ValueError for shapes that do not fit.
    """

    context: Tensor | None
    LIBRARY = ""  # what messages call it

    def __init__(
        self,
        flow: Any = None,
        *,
        event_shape: Sequence[int] | None = None,
        context_shape: Sequence[int] | None = None,
        support: Any = None,
        bounded: bool | None = None,
        name: str | None = None,
        **architecture: Any,
    ) -> None:
        bound = None if context_shape is None else torch.Size(context_shape)
        plain: dict[str, Any] | None = None
        if flow is None:
            if event_shape is None:
                raise TypeError(
                    f"a new flow of {self.LIBRARY} needs event_shape, for instance event_shape=(2,)"
                )
            width = 0 if bound is None else bound.numel()
            flow = self.build(math.prod(event_shape), context=width, **architecture)
            plain = architecture
        elif architecture:
            raise TypeError(
                f"{', '.join(architecture)} describe a new flow, but a flow is given: pass only "
                "one of them"
            )
        mixed = {str(p.dtype) for p in flow.parameters() if p.is_floating_point()}
        if len(mixed) > 1:
            raise TypeError(
                f"the flow of {self.LIBRARY} mixes {' and '.join(sorted(mixed))}: call "
                "flow.float() or flow.double()"
            )
        self._prepare(flow)
        flow.eval()
        shape = self._features(flow, bound)
        shape = torch.Size(event_shape or ()) if shape is None else shape
        event = shape if event_shape is None else torch.Size(event_shape)
        if not shape:
            raise TypeError(
                f"this flow of {self.LIBRARY} does not state the shape of its events: give "
                "event_shape=..."
            )
        if shape.numel() != event.numel():
            raise ValueError(
                f"the flow has {shape.numel()} features of shape {tuple(shape)}, which do not fill "
                f"events of shape {tuple(event)}"
            )
        stated = self._own_support(flow) if support is None else support
        super().__init__(event, support=_constraint(stated, event), name=name)
        self._architecture, self._noise_shape, self._context_shape = plain, shape, bound
        self._known_bounded, self._counted, self._bindings = bounded, None, Bindings()
        self._stated_support = support
        self.flow = flow
        self.register_buffer("context", None)
        if bound is not None:
            self.takes_context = True
        self.eval()
        if bound is None:
            self._probe()

    # ---- what a library's adapter says; `rows` are (n, *features), a context (*context) or None

    @staticmethod
    @abstractmethod
    def build(features: int, *, context: int = 0, **architecture: Any) -> nn.Module:
        """A new flow of plain arguments."""

    @staticmethod
    def _prepare(flow: Any) -> None:
        """Changes that a flow needs before it is wrapped."""

    @staticmethod
    @abstractmethod
    def _features(flow: Any, context_shape: torch.Size | None) -> torch.Size | None:
        """Shape of the flow's events, None where it does not say. Raises TypeError for a flow that
        is not a density."""

    @abstractmethod
    def _log_prob(self, rows: Tensor, context: Tensor | None) -> Tensor:  # (n, *features) -> (n)
        """log p of each row."""

    @abstractmethod
    def _draw(self, n: int, context: Tensor | None) -> Tensor:  # -> (n, *features)
        """Draws from torch's global randomness."""

    @abstractmethod
    def _encode(self, rows: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        # (n, *features), (n)
        """u = f(x) and log|det du/dx|."""

    @abstractmethod
    def _decode(self, rows: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        # (n, *features), (n)
        """x = f⁻¹(u) and log|det dx/du|."""

    def _invert(self, rows: Tensor, context: Tensor | None) -> Tensor:
        # (n, *features) -> (n, *features)
        """x = f⁻¹(u) alone, where that is cheaper than with its determinant."""
        return self._decode(rows, context)[0]

    @abstractmethod
    def _gaussian(self, context: Tensor | None) -> tuple[Tensor, Tensor] | None:
        """Mean and standard deviation of the base, each (*features) or (1, *features); None where
        it is not a diagonal Gaussian."""

    def _own_support(self, flow: Any) -> Any:
        """Where the flow itself is non-zero, as `support` above."""
        return None

    def _as_context(self, context: Any) -> Tensor:
        return torch.as_tensor(context, dtype=self.dtype, device=self.device)

    # ---- the density

    def log_prob(self, x: Tensor) -> Tensor:  # (*batch, *event) -> (*batch)
        """log p(x) in nats. A row that holds a NaN or an infinity gives NaN and leaves the others
        alone."""
        rows, batch = self._pack(x)
        return where_finite(lambda r: self._log_prob(r, self._bound()), rows).reshape(batch)

    @torch.no_grad()
    def sample(self, n: int | tuple[int, ...], *, generator: Generator | None = None) -> Tensor:
        """n independent draws, (n, *event), in the flow's own dtype; `generator` decides them
        all."""
        batch, context = (n,) if isinstance(n, int) else tuple(n), self._bound()
        total, base, like = math.prod(batch), self._gaussian(context), self._like()
        if total == 0:
            return like.new_empty(*batch, *self.event_shape)
        if base is not None:
            size, device = (total, *self._noise_shape), like.device
            noise = torch.randn(size, dtype=like.dtype, generator=generator, device=device)
            rows = self._invert(base[0] + base[1] * noise, context)
        else:
            with seeded(seed_of(generator), self.device):
                rows = self._draw(total, context)
        return rows.reshape(*batch, *self.event_shape)

    # ---- Transport

    def to_noise(self, x: Tensor) -> tuple[Tensor, Tensor]:
        # (*batch, *event) -> (*batch, *event), (*batch)
        """z, standard normal if x is a draw, and log|det dz/dx| in nats. Raises TypeError where the
        base is not a diagonal Gaussian."""
        mean, scale = self._standard()
        rows, batch = self._pack(x)
        if not len(rows):
            return x, rows.flatten(1).sum(1).reshape(batch)
        u, log_det = self._encode(rows, self._bound())
        log_det = log_det - self._log_scale(scale)
        return ((u - mean) / scale).reshape(x.shape), log_det.reshape(batch)

    def from_noise(self, z: Tensor) -> tuple[Tensor, Tensor]:
        # (*batch, *event) -> (*batch, *event), (*batch)
        """x of noise z and log|det dx/dz| in nats. Raises as `to_noise` does."""
        mean, scale = self._standard()
        rows, batch = self._pack(z)
        if not len(rows):
            return z, rows.flatten(1).sum(1).reshape(batch)
        x, log_det = self._decode(mean + scale * rows, self._bound())
        return x.reshape(z.shape), (log_det + self._log_scale(scale)).reshape(batch)

    def can(self, capability: type) -> bool:
        if capability is Transport and self._ready():
            return self._gaussian(self.context) is not None
        return super().can(capability)

    @property
    def passes(self) -> int:
        """How often x = f⁻¹(u) calls the network that is called most, counted on one point; the
        determinant may take one call more."""
        if self._counted is None:
            with torch.no_grad(), _counting(self.flow) as calls:
                self._invert(self._zeros(), self._bound())
            self._counted = max([1, *calls.values()])
        return self._counted

    # ---- conditional flows

    def given(self, context: Any) -> Self:
        """The density p(x | context), sharing this flow's parameters; context has `context_shape`.

        Raises TypeError for a flow without context, ValueError for a context of another shape.
        """
        if self._context_shape is None:
            raise TypeError(
                f"{self} takes no context; wrap a conditional flow with context_shape=..."
            )
        context = self._as_context(context)
        if context.shape != self._context_shape:
            raise ValueError(
                f"{self} takes one context of shape {tuple(self._context_shape)}, not "
                f"{tuple(context.shape)}; for several contexts bind each one with .given()"
            )
        bound = type(self)(
            self.flow,
            event_shape=self.event_shape,
            context_shape=self._context_shape,
            support=self._stated_support,
            bounded=self._known_bounded,
            name=self.name,
        )
        bound._architecture = self._architecture
        bound.context = context
        del bound.takes_context
        bound._probe()
        return self._bindings.first(bound, context)

    # ---- training, files, facts

    @property
    def bounded(self) -> bool | None:
        """As stated; None where nothing is known."""
        return self._known_bounded

    def config(self) -> dict[str, Any]:
        if self._architecture is None:
            raise TypeError(
                f"{type(self).__name__} wraps a flow object, whose architecture has no plain "
                "description: build it from plain arguments, "
                f'poe.create("{name_of(type(self))}", event_shape=..., kind=...), and '
                "load_state_dict its weights into .flow"
            )
        context = None if self._context_shape is None else list(self._context_shape)
        facts = {"event_shape": list(self.event_shape), "context_shape": context}
        bound = {} if self.context is None else {"bound": True}
        return facts | bound | self._architecture

    @classmethod
    def from_config(cls, *, bound: bool = False, **config: Any) -> Self:
        flow = cls(**config)
        return flow.given(torch.zeros(flow._context_shape or ())) if bound else flow

    # ---- inside

    def _pack(self, x: Tensor) -> tuple[Tensor, torch.Size]:
        if x.dtype != self.dtype:
            raise TypeError(
                f"{self} works in {self.dtype}, x is {x.dtype}: x.to({self.dtype}), or change the "
                "expert by .double() or .float()"
            )
        batch = x.shape[: x.ndim - len(self.event_shape)]
        return x.reshape(math.prod(batch), *self._noise_shape), batch

    def _ready(self) -> bool:
        return self._context_shape is None or self.context is not None

    def _bound(self) -> Tensor | None:
        if not self._ready():
            raise TypeError(
                f"{self} is conditional: bind a context of shape "
                f"{tuple(self._context_shape or ())} with .given(context)"
            )
        return self.context

    def _standard(self) -> tuple[Tensor, Tensor]:
        base = self._gaussian(self._bound())
        if base is None:
            raise TypeError(
                f"the base of {self} is not known to be a diagonal Gaussian, so it has no "
                "Transport to standard normal noise"
            )
        return base

    def _log_scale(self, scale: Tensor) -> Tensor:
        return scale.expand(1, *self._noise_shape).log().sum()

    def _zeros(self) -> Tensor:  # -> (1, *features)
        return self._like().new_zeros(1, *self._noise_shape)

    def _probe(self) -> None:
        """Two evaluations, so that a flow that cannot answer, or answers at random, says so when it
        is wrapped."""
        zeros, context = self._zeros(), self.context
        try:
            with torch.no_grad():
                first, second = (self._log_prob(zeros, context) for _ in range(2))
        except Exception as error:
            shape = None if context is None else tuple(context.shape)
            what = "" if shape is None else f" given a context of shape {shape}"
            raise TypeError(
                f"the flow of {self.LIBRARY} does not evaluate on one point of shape "
                f"{tuple(self._noise_shape)}{what} ({type(error).__name__}: {error}); a "
                "conditional flow needs context_shape=..., and .given(context) before it is used"
            ) from error
        if not torch.equal(first, second) and not first.isnan().any():
            raise TypeError(
                f"the flow of {self.LIBRARY} gives two values of log p at one point, "
                f"{first.item():.6g} and {second.item():.6g}: its density is only estimated, at "
                "random, and no kernel is exact with it"
            )


def _constraint(support: Any, event_shape: Sequence[int]) -> sets.Constraint | None:
    if support is None or isinstance(support, sets.Constraint):
        return support
    low, high = support
    low, high = -math.inf if low is None else low, math.inf if high is None else high
    return sets.box(torch.as_tensor(low), torch.as_tensor(high), event_shape)


@contextlib.contextmanager
def _counting(module: nn.Module) -> Iterator[dict[int, int]]:
    """How often each module with parameters of its own is called."""
    calls: dict[int, int] = {}

    def count(key: int) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            calls[key] = calls.get(key, 0) + 1

        return hook

    counted = [m for m in module.modules() if any(True for _ in m.parameters(recurse=False))]
    handles = [m.register_forward_hook(count(id(m))) for m in counted]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()
