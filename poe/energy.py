"""The algebra of energies: one base class, five kinds of composition, and the functions that build them.

An energy is E(x) in nats; its density is p(x) = exp(-E(x)) / Z. With densities that need not be normalised:

| you write | density                   | energy                      | node          |
|-----------|---------------------------|-----------------------------|---------------|
| `a & b`   | p_a p_b                   | E_a + E_b                   | Product       |
| `a \\| b`  | exp(-E_a) + exp(-E_b)     | -logsumexp(-E_a, -E_b)      | Mixture       |
| `a ** t`  | p_a^t                     | t E_a                       | Product       |
| `a / b`   | p_a / p_b                 | E_a - E_b                   | Product       |
| `~a`      | 1 / p_a                   | -E_a                        | Product       |
| `a - b`   | p_a · p_a / (p_a + p_b)   | E_a + softplus(E_a - E_b)   | Contrast      |
| `a @ f`   | exp(-E_a(f(x)))           | E_a(f(x)), no Jacobian      | Pullback      |

The whole algebra stands in this one file so that its laws hold by construction: a product is always a flat
sum Σ powerᵢ·Eᵢ merged by identity, whatever operators built it.
"""

from __future__ import annotations

import keyword
import math
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from fractions import Fraction
from numbers import Real
from types import BuiltinFunctionType, FunctionType, MethodType
from typing import Any, NamedTuple, NoReturn, TypeGuard

import torch
from torch import Tensor, nn
from torch.distributions import Transform, biject_to, constraints
from torch.distributions.transforms import identity_transform
from torch.nn.functional import softplus

from poe import support as sets
from poe.capabilities import Conditional, NoiseConditional, Samples, SharesNetwork

Power = float | Real | Tensor | nn.Parameter

_POINTS, _SIMPLEX, _VOLUME = "sums over points", "integrals over the simplex", "integrals over volume"  # measures, as in messages
_MOST_COMPARED = 4096  # numbers in the tensors of a product that are compared before a cached closed form is used again


class Estimate(NamedTuple):
    """A number with its standard error, 0 where the number is exact. `float(estimate)` is the number."""

    value: float
    standard_error: float = 0.0

    def __float__(self) -> float:
        return float(self.value)

    def __str__(self) -> str:
        return f"{self.value:.6g}" + (f" ± {self.standard_error:.2g}" if self.standard_error else " (exact)")


class ImproperWarning(UserWarning):
    """Nobody knows whether the target has finite mass."""


class Energy(nn.Module, ABC):
    """A function E(x) in nats that stands for the density exp(-E(x)) / Z.

    Arguments:
        event_shape: shape of one x.
        support: where the density may be non-zero, a constraint of `torch.distributions`; all of R^n by default.
        name: how the energy prints inside expressions.

    A subclass implements `forward(x)`, which is only ever called through `energy(x)` and then sees points of the
    support alone: outside it the energy is +inf. Calling an energy raises ValueError where the trailing axes of
    x are not the event shape.
    """

    def __init__(
        self,
        event_shape: Sequence[int],
        *,
        support: sets.Constraint | None = None,
        name: str | None = None,
    ) -> None:
        super().__init__()
        self._event_shape = _shape(event_shape)
        self._support = sets.canonical(support, self._event_shape)
        self._name: str | None = None
        self.name = name

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:  # (*batch, *event) -> (*batch)
        """The energy of each point, in nats, with its graph."""

    # ---- facts, propagated from the leaves; None means unknown

    @property
    def event_shape(self) -> torch.Size:
        """Shape of one x."""
        return self._event_shape

    @property
    def support(self) -> sets.Constraint:
        """Where the density may be non-zero; acts on whole events."""
        return self._support

    @property
    def log_z(self) -> Estimate | None:
        """log of the integral (or sum) of exp(-E), or None where nobody knows it."""
        return None

    @property
    def proper(self) -> bool | None:
        """Whether 0 < Z < infinity; None where unknown."""
        return True if sets.is_discrete(self.support) and sets.is_bounded(self.support) else None

    @property
    def bounded(self) -> bool | None:
        """Whether the density is bounded above (the energy below); None where unknown."""
        return True if sets.is_discrete(self.support) and sets.is_bounded(self.support) else None

    @property
    def flat(self) -> bool | None:
        """Whether the density is one finite number above 0 all over its support; None where unknown. To multiply or divide by it only
        cuts the support."""
        return None

    @property
    def growth(self) -> float | None:
        """The c for which E(x) = c‖x‖² + O(‖x‖) far out, E finite everywhere; None where unknown. Of a product it is the weighted sum,
        and decides whether it is proper and bounded, whatever the signs of the powers."""
        return None

    @property
    def name(self) -> str | None:
        """How the energy prints inside expressions; a dotted Python name."""
        return self._name

    @name.setter
    def name(self, name: str | None) -> None:
        if name is not None and (
            not re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", name) or any(map(keyword.iskeyword, name.split(".")))
        ):
            raise ValueError(f"{name!r} cannot stand in an expression; give a dotted Python name such as 'digits.even'")
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
        """What the whole numbers of an event stand for, such as the words of a text; None where nobody says.

        Energies whose vocabularies differ (`!=`) do not compose.
        """
        return next((part.vocabulary for part in self.parts if part.vocabulary is not None), None)

    @property
    def dtype(self) -> torch.dtype:
        """Precision in which the energy works: that of its first floating tensor."""
        return self._like().dtype

    @property
    def device(self) -> torch.device:
        """Device of its first floating tensor."""
        return self._like().device

    def _like(self) -> Tensor:
        for group in (self.parameters(), self.buffers()):
            for tensor in group:
                if tensor.is_floating_point():
                    return tensor
        return torch.empty(())

    # ---- evaluation

    def __call__(self, x: Tensor) -> Tensor:  # (*batch, *event) -> (*batch)
        batch = self._batch_shape(x)
        try:
            if sets.is_real(self._support):
                energy = super().__call__(x)
            else:
                inside, safe = self._inside(x)
                energy = torch.where(inside, super().__call__(safe), math.inf)
        except RuntimeError as error:
            self._check_precision(x, error)
            raise
        if energy.shape != batch:
            raise ValueError(
                f"the energy {self} returned shape {tuple(energy.shape)} for x of shape {tuple(x.shape)}: forward must give one "
                f"number for each event of shape {tuple(self.event_shape)}, here {tuple(batch)}"
            )
        return energy

    def value_and_grad(self, x: Tensor) -> tuple[Tensor, Tensor]:
        # (*batch, *event) -> (*batch), (*batch, *event)
        """E(x) in nats and its gradient, without a graph. Where the density is 0: +inf and 0.

        Raises TypeError where E does not depend on x through differentiable operations.
        """
        self._batch_shape(x)
        if not x.is_floating_point():
            raise TypeError(f"the energy {self} has no gradient on {x.dtype} points; x.float() gives points that have one")
        x = x.detach()
        try:
            if sets.is_real(self._support):
                energy, gradient = self._value_and_grad(x)
            else:
                inside, safe = self._inside(x)
                energy, gradient = self._value_and_grad(safe)
                energy = torch.where(inside, energy, math.inf)
        except RuntimeError as error:
            self._check_precision(x, error)
            raise
        void = (energy == math.inf).reshape(energy.shape + (1,) * len(self.event_shape))
        return energy, torch.where(void, 0, gradient)

    def score(self, x: Tensor) -> Tensor:  # (*batch, *event) -> (*batch, *event)
        """-∇E(x) = ∇ log p(x), in nats per unit of x."""
        return -self.value_and_grad(x)[1]

    def _value_and_grad(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """What `value_and_grad` calls, x inside the support and detached; an expert with its own gradient overrides it."""
        with torch.enable_grad():
            x = x.requires_grad_() if x.is_leaf else x.detach().requires_grad_()
            energy = nn.Module.__call__(self, x)
            if not energy.requires_grad and torch.is_inference_mode_enabled():
                raise RuntimeError(f"{self} has no gradient under torch.inference_mode(); torch.no_grad() may stand around it")
            if not energy.requires_grad:
                raise TypeError(
                    f"the energy {self} does not depend on x through torch operations, so it has no gradient here; "
                    "use a kernel that needs none, or override _value_and_grad"
                )
            (gradient,) = torch.autograd.grad(energy.sum(), x, materialize_grads=True)
        return energy.detach(), gradient

    def _batch_shape(self, x: Tensor) -> torch.Size:
        k = len(self._event_shape)
        if not isinstance(x, Tensor):
            raise TypeError(f"the energy {self} takes a torch tensor, not {type(x).__name__}; torch.as_tensor(x) makes one")
        if x.ndim < k or x.shape[x.ndim - k :] != self._event_shape:
            raise ValueError(
                f"x has shape {tuple(x.shape)}, but {self} takes (*batch, *event) with event shape {tuple(self._event_shape)}"
            )
        return x.shape[: x.ndim - k]

    def _check_precision(self, x: Tensor, error: RuntimeError) -> None:
        """Raises TypeError where an evaluation failed on x of another precision than the energy's."""
        if x.is_floating_point() and x.dtype != self.dtype:
            raise TypeError(
                f"{self} works in {self.dtype}, x is {x.dtype}: x.to({self.dtype}), or .to({x.dtype}) the energy ({error})"
            ) from error

    def _inside(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Which points lie in the support, and x with the others moved to a point of it, so that no NaN arises."""
        inside = sets.contains(self._support, x)
        anchor = sets.inside_point(self._support, x, self._event_shape)
        if anchor is None:
            return inside, x
        mask = inside.reshape(inside.shape + (1,) * len(self._event_shape))
        return inside, torch.where(mask, x, anchor)

    # ---- capabilities and bindings

    def can(self, capability: type) -> bool:
        """Whether this energy has a capability of `poe.capabilities`."""
        return isinstance(self, capability)

    def given(self, context: Any) -> Energy:
        """Binds a context: a composition binds it in every part that takes one. Raises TypeError where none does."""
        if not any(leaf.can(Conditional) for leaf in leaves(self)):
            raise TypeError(f"no expert in {self} takes a context; .given() needs a conditional expert")
        bind = lambda part: part.given(context) if any(leaf.can(Conditional) for leaf in leaves(part)) else part  # noqa: E731
        bound, known = self.rebuild([bind(part) for part in self.parts]), vars(self).get("combination")
        if known is not None:
            priors = tuple((bind(factor), count) for factor, count in known.priors)
            vars(bound)["combination"] = Combination(tuple(bind(posterior) for posterior in known.posteriors), priors)
        return bound

    def at(self, sigma: float) -> Energy:
        """The energy at noise level sigma (units of x). Unnoised experts are the same at every level.

        Raises ValueError for a level that is no finite number of at least 0.
        """
        checked_level(self, sigma)
        parts = [part.at(sigma) for part in self.parts]
        return self if all(a is b for a, b in zip(parts, self.parts, strict=True)) else self.rebuild(parts)

    def config(self) -> dict[str, Any]:
        """Plain JSON arguments from which `from_config` rebuilds an expert of this shape, to be filled by `load_state_dict`."""
        raise TypeError(
            f"{type(self).__name__} cannot be saved: give it a method config() that returns plain JSON arguments "
            "and register the class with @poe.register"
        )

    @classmethod
    def from_config(cls, **config: Any) -> Energy:
        """An expert of the shape that `config()` of another one states."""
        return cls(**config)

    # ---- the algebra

    def __and__(self, other: Energy) -> Energy:
        return product([self, _energy(other, self, "&")])

    def __or__(self, other: Energy) -> Energy:
        return mixture([self, _energy(other, self, "|")])

    def __pow__(self, power: Power) -> Energy:
        return product([self], [power])

    def __truediv__(self, other: Energy) -> Energy:
        return product([self, _energy(other, self, "/")], [1.0, -1.0])

    def __invert__(self) -> Energy:
        return product([self], [-1.0])

    def __sub__(self, other: Energy) -> Energy:
        return contrast(self, _energy(other, self, "-"))

    def __matmul__(self, function: Callable[[Tensor], Tensor]) -> Energy:
        return pullback(self, function)

    # ---- what is refused because it could mean two things

    def __bool__(self) -> bool:
        raise TypeError(
            f"the truth of an energy is ambiguous ({self}): write `a & b` for a product, `a | b` for a mixture, `a - b` for "
            "a but not b, `~a` for 1/p_a; Python's `and`, `or`, `not` and `if` do not compose energies"
        )

    def __add__(self, other: Any) -> Energy:
        raise TypeError(
            f"{self} + {other} is ambiguous: write `a & b` for the product (energies add) or `a | b` for the mixture "
            "(densities add); of a list, poe.product(energies) or poe.mixture(energies)"
        )

    __radd__ = __add__

    def __mul__(self, other: Any) -> Energy:
        self._refuse_times(other, f"{bracketed(self, _SLASH)} * {other}")

    def __rmul__(self, other: Any) -> Energy:
        self._refuse_times(other, f"{other} * {bracketed(self, _SLASH)}")

    def _refuse_times(self, other: Any, said: str) -> NoReturn:
        power = f"{bracketed(self, _POWER + 1)} ** {other}" if isinstance(other, Real) else "a ** 2"
        raise TypeError(
            f"{said} is ambiguous: write `a & b` for the product of densities, `{power}` to weigh an energy by a number, or "
            "poe.mixture([a, b], weights=[0.3, 0.7]) to weigh densities"
        )

    def __neg__(self) -> Energy:
        raise TypeError(f"-({self}) is ambiguous: write `~a` for 1/p_a (the energy negated), or `b - a` for b but not a")

    def __rsub__(self, other: Any) -> Energy:
        raise TypeError(f"{other!r} - {self}: both sides of `-` must be energies; poe.as_energy(model) wraps a model")

    def __xor__(self, other: Any) -> Energy:
        raise TypeError(f"{self} ^ {other} is ambiguous: write `a ** 2` for a power, `(a - b) | (b - a)` for either but not both")

    def __rand__(self, other: Any) -> Energy:
        raise TypeError(f"{other!r} & {self}: both sides of `&` must be energies; poe.as_energy(model) wraps a model")

    def __ror__(self, other: Any) -> Energy:
        raise TypeError(f"{other!r} | {self}: both sides of `|` must be energies; poe.as_energy(model) wraps a model")

    def __rtruediv__(self, other: Any) -> Energy:
        raise TypeError(f"{other!r} / {self}: both sides of `/` must be energies; write `~a` for 1/p_a")

    def __rpow__(self, other: Any) -> Energy:
        raise TypeError(f"{other!r} ** {self}: a power stands on the right, and is a number; write `a ** 2` for p_a squared")

    def __rmatmul__(self, other: Any) -> Energy:
        raise TypeError(f"{other!r} @ {self}: the energy stands on the left of `@`; write `a @ f` for the factor p_a(f(x))")

    def __floordiv__(self, other: Any) -> Energy:
        raise TypeError(
            f"{self} // {_shown(other)} means nothing: write `a / b` for p_a / p_b, or `a ** 0.5` for the root of p_a"
        )

    def __mod__(self, other: Any) -> Energy:
        raise TypeError(f"{self} % {_shown(other)} means nothing: write `a / b` for p_a / p_b, or `a - b` for a but not b")

    def __pos__(self) -> Energy:
        raise TypeError(f"+({self}) means nothing: write `a` alone, or `a & b` for a product")

    # ---- printing: str is the algebra, repr the facts

    def _format(self, label: dict[int, str]) -> tuple[str, int]:
        """(text, precedence) with the given labels of leaves."""
        return label[id(self)], _ATOM

    def __str__(self) -> str:
        return self._format({id(leaf): label for label, leaf in names(self).items()})[0]

    def __repr__(self) -> str:
        log_z = "unknown" if self.log_z is None else str(self.log_z)
        lines = [
            str(self),
            f"  event_shape  {tuple(self.event_shape)}",
            f"  support      {self.support!r}",
            f"  log_z        {log_z}",
            f"  proper       {'unknown' if self.proper is None else self.proper}",
            f"  parameters   {sum(p.numel() for p in self.parameters()):,}",
        ]
        if self.can(NoiseConditional) and isinstance(getattr(self, "sigma", None), float):
            lines.append(f"  noise        {self.sigma:g} (units of x)")
        lines += [f"  note         {note}" for note in caveats(self)]
        return "\n".join([*lines, f"  plan         {_plan_line(self)}"])

    def _repr_html_(self) -> str:
        from poe import html  # notebooks alone ask for it

        return html.of_energy(self)


def checked_level(energy: Energy, sigma: Any) -> float:
    """A level of noise. Raises ValueError for what is no finite number of at least 0."""
    if isinstance(sigma, Tensor) and sigma.numel() == 1 and not sigma.is_complex():
        sigma = sigma.item()
    if not isinstance(sigma, Real) or isinstance(sigma, bool) or not 0 <= float(sigma) < math.inf:
        raise ValueError(f"a level of noise is a finite number of at least 0, in units of x; {energy} got {sigma!r}")
    return float(sigma)


class Density(Energy):
    """An energy that is normalised, log_z = 0 exactly, and that draws independent samples: a base class for authors.

    A subclass implements `log_prob` and `sample`.
    """

    @abstractmethod
    def log_prob(self, x: Tensor) -> Tensor:  # (*batch, *event) -> (*batch)
        """log p(x) in nats, x inside the support."""

    @abstractmethod
    def sample(self, n: int | tuple[int, ...], *, generator: torch.Generator | None = None) -> Tensor:
        """n independent draws, (n, *event); n an int or a shape."""

    def forward(self, x: Tensor) -> Tensor:  # (*batch, *event) -> (*batch)
        return -self.log_prob(x)

    @property
    def log_z(self) -> Estimate | None:
        return Estimate(0.0)

    @property
    def proper(self) -> bool | None:
        return True


# ---------------------------------------------------------------- compositions


class Product(Energy):
    """Π p_i^{w_i}: the energy Σ wᵢ·Eᵢ(x), flat, each expert evaluated once. Built by `product`, `&`, `**`, `/` and `~`.

    A power is a float, or a float times an `nn.Parameter` that is learnable. The support is the intersection over all
    factors, whatever the sign of their powers; a power of 0 keeps the support and is not evaluated. Where some factor
    has energy +inf the product has too (0/0 counts as 0).
    """

    def __init__(self, terms: Sequence[_Term]) -> None:
        super().__init__(terms[0].energy.event_shape, support=sets.intersect([t.energy.support for t in terms]))
        self.energies = nn.ModuleList([term.energy for term in terms])
        self.coefficients = tuple(term.coefficient for term in terms)
        self.learnable = nn.ParameterList([term.parameter for term in terms if term.parameter is not None])
        slots = iter(range(len(self.learnable)))
        self._slots = tuple(None if term.parameter is None else next(slots) for term in terms)
        self._known: tuple[list[Any], list[Tensor], Energy] | None = None

    @property
    def terms(self) -> tuple[_Term, ...]:
        """(energy, coefficient, parameter or None) of each factor; the power is coefficient times parameter."""
        parameters = (None if slot is None else self.learnable[slot] for slot in self._slots)
        return tuple(map(_Term, self.parts, self.coefficients, parameters))

    @property
    def powers(self) -> tuple[float, ...]:
        """The powers as numbers."""
        return tuple(term.coefficient * (1.0 if term.parameter is None else term.parameter.item()) for term in self.terms)

    @property
    def parts(self) -> tuple[Energy, ...]:
        return tuple(self.energies)  # type: ignore[return-value]

    def rebuild(self, parts: Sequence[Energy]) -> Energy:
        return _flat([_Term(part, t.coefficient, t.parameter) for part, t in zip(parts, self.terms, strict=True)])

    def forward(self, x: Tensor) -> Tensor:  # (*batch, *event) -> (*batch)
        total = x.new_zeros((), dtype=x.dtype if x.is_floating_point() else self.dtype)
        for term, energy in zip(self._evaluated, together([term.energy for term in self._evaluated], x), strict=True):
            total = _add(total, term.weigh(energy))
        if self._evaluated or not x.is_floating_point():
            return total.expand(self._batch_shape(x))
        none = torch.where(torch.zeros((), dtype=torch.bool, device=x.device), x, 0)  # 0 at each x, with a graph of slope 0
        return none.reshape(*self._batch_shape(x), self.event_shape.numel()).sum(-1)

    def _value_and_grad(self, x: Tensor) -> tuple[Tensor, Tensor]:
        total, gradient = x.new_zeros(self._batch_shape(x)), torch.zeros_like(x)
        known = together_with_gradients([term.energy for term in self._evaluated], x)
        for term, (energy, slope) in zip(self._evaluated, known, strict=True):  # one expert's graph alive at a time
            total = _add(total, term.weigh(energy).detach())
            gradient = gradient.add_(slope.to(gradient), alpha=term.power)
        return total, gradient

    @property
    def _evaluated(self) -> list[_Term]:
        return [term for term in self.terms if term.coefficient]

    @property
    def log_z(self) -> Estimate | None:
        return None if isinstance(self._closed, Product) else self._closed.log_z

    @property
    def _closed(self) -> Energy:
        """The simplified product, worked out again only after a tensor of the expression has changed, or the rules.

        A change in place through `.data` leaves no trace in torch's version counters, so the numbers themselves are
        compared where there are at most `_MOST_COMPARED`.
        """
        tensors = [*self.parameters(), *self.buffers()]
        version: list[Any] = [_rules().count()]
        for tensor in tensors:
            version += [_Same(tensor), tensor._version, tensor.data_ptr(), tensor.dtype, tensor.device]
        compared = tensors if sum(tensor.numel() for tensor in tensors) <= _MOST_COMPARED else []
        if self._known is None or self._known[0] != version or not all(map(torch.equal, self._known[1], compared)):
            self._known = version, [tensor.detach().clone() for tensor in compared], _rules().simplify(self)
        return self._known[2]

    @property
    def proper(self) -> bool | None:
        """True where Hölder's inequality bounds Z: powers are positive once mixtures in denominators are taken out against their own
        parts, those of proper factors sum to 1 or more, and what exceeds 1 falls on factors bounded above; also where factors of `on`
        tile the event. A flat factor that is divided out only cuts the support, ∫_S f/c = (1/c) ∫_S f. False where a closed form
        diverges, the support is empty, or every power is negative on a support of infinite volume. None otherwise.
        """
        if sets.is_empty(self.support):
            return False
        if self.growth:
            return self.growth > 0
        if self._falls_off:
            return True
        if not isinstance(self._closed, Product):
            return self._closed.proper
        if _rules().is_improper(self):
            return False
        if any(term.parameter is not None for term in self.terms):
            return super().proper
        known = self._shaping
        if all(power < 0 for power, _ in known) and sets.is_infinite(self.support):
            # 1/p has infinite mass on infinite volume: vol <= (∫p)^(w/(1+w)) (∫p^-w)^(1/(1+w)), and zero powers add nothing
            return False if all(self._is_mass(e) for _, e in known) else None
        known = _dominating(known)
        if any(power < 0 for power, _ in known):
            return super().proper
        loose = [power for power, e in known if not e.bounded]
        if all(self._is_mass(e) or e.bounded for _, e in known):
            anchored = sum(power for power, e in known if self._is_mass(e))
            if sets.is_bounded(self.support) and sum(loose) <= 1:
                return True
            if anchored >= 1 - 1e-12 and sum(loose) <= 1 + 1e-12:
                return True
        return True if self._is_tiled(known) else super().proper

    def _is_tiled(self, factors: list[tuple[float, Energy]]) -> bool:
        """Whether factors of `on` with finite mass on disjoint coordinates fill the event, and all others are bounded above:
        the integral is then at most a constant times the product of theirs. Factors that overlap bound nothing, as the marginal
        of a bounded density may be unbounded."""
        measure = _POINTS if sets.is_discrete(self.support) else _VOLUME
        free, rest = (
            set(range(self.event_shape.numel())),
            len(self.terms) - len(factors),
        )  # those of power 0 still cut the support
        for power, e in sorted(factors, key=lambda factor: bool(factor[1].bounded)):  # an unbounded one must be a tile
            tile = set(e.function.index.tolist()) if isinstance(e, Pullback) and isinstance(e.function, Select) else set()
            part = e.parts[0] if tile else e
            mass = part.proper and _measure(part.support) == measure and (power == 1 or (power > 1 and part.bounded))
            if tile and tile <= free and mass:
                free -= tile
            elif e.bounded:
                rest += 1
            else:
                return False
        return not free and (not rest or isinstance(self.support, sets.Box))  # the emptiness of a box is known exactly

    @property
    def _shaping(self) -> list[tuple[float, Energy]]:
        """(power, factor) of the factors that do more than cut the support: no power of 0, nothing flat that is divided out."""
        return [(t.coefficient, t.energy) for t in self.terms if t.coefficient > 0 or (t.coefficient and not t.energy.flat)]

    def _is_mass(self, energy: Energy) -> bool:
        """Whether a factor is known to be proper in the measure of the product: a continuous one says nothing about sums."""
        return energy.proper is True and sets.is_discrete(energy.support) == sets.is_discrete(self.support)

    @property
    def _falls_off(self) -> bool:
        """Whether the factors whose growth is known fall off as a Gaussian together, and all others are bounded above."""
        grown = [
            (power, term.energy) for power, term in zip(self.powers, self.terms, strict=True) if term.energy.growth is not None
        ]
        rest = [(power, term.energy) for power, term in zip(self.powers, self.terms, strict=True) if term.energy.growth is None]
        fall = math.fsum(p * e.growth for p, e in grown)  # type: ignore[operator]
        return fall > 0 and all((p > 0 and e.bounded) or e.flat for p, e in rest)

    @property
    def flat(self) -> bool | None:
        return True if all(term.energy.flat or not term.coefficient for term in self.terms) else super().flat

    @property
    def growth(self) -> float | None:
        known = [term.energy.growth for term in self.terms]
        return None if None in known else math.fsum(p * g for p, g in zip(self.powers, known, strict=True))  # type: ignore[operator]

    @property
    def bounded(self) -> bool | None:
        if self.growth:
            return self.growth > 0
        if self._falls_off:
            return True
        if all(t.parameter is None for t in self.terms):
            known = _dominating(self._shaping)
            if all(power > 0 and e.bounded for power, e in known):
                return True
        return super().bounded if isinstance(self._closed, Product) else self._closed.bounded

    def _format(self, label: dict[int, str]) -> tuple[str, int]:
        chunks: list[tuple[str, int]] = []
        for term in self.terms:
            negative = term.coefficient < 0
            if negative and chunks:
                left, right = _wrap(chunks[-1], _SLASH), _wrap(term.format(label, divided=True), _SLASH + 1)
                chunks[-1] = (f"{left} / {right}", _SLASH)
            else:
                chunks.append(term.format(label))
        if len(chunks) == 1:
            return chunks[0]
        joined = " & ".join(_wrap(chunk, _AND) for chunk in chunks)
        shared = {term.coefficient for term in self.terms}
        if len(shared) == 1 and not self.learnable and joined.count("(") > 1:
            power = shared.pop()
            factored = f"({' & '.join(_wrap(_child(t.energy, label), _AND) for t in self.terms)}) ** {_number(power)}"
            if factored.count("(") <= joined.count("("):
                return factored, _POWER
        return joined, _AND


def _dominating(factors: list[tuple[float, Energy]]) -> list[tuple[float, Energy]]:
    """Factors (power, energy) whose product bounds that of the given ones up to a constant, with mixtures taken out of denominators:
    a part is at most a constant times its mixture, so a^w / (a | b)^s <= c·a^(w - s)."""
    powers = {id(e): (power, e) for power, e in factors}
    for power, mixed in factors:
        if power > 0 or not isinstance(mixed, Mixture):
            continue
        for weight, part in zip(mixed.log_weights, mixed.parts, strict=True):
            have = powers.get(id(part), (0.0, part))[0]
            if weight > -math.inf and have >= -power:
                powers[id(part)] = have + power, part
                del powers[id(mixed)]
                break
    return [(power, e) for power, e in powers.values() if power]


def together(energies: Sequence[Energy], x: Tensor) -> list[Tensor]:  # (*batch, *event) -> k times (*batch)
    """The energy of each at x; those that share a network in one call of it."""
    known: dict[int, Tensor] = {}
    for group in _sharing(energies):
        known |= zip(map(id, group), group[0].fused(group, x), strict=True)  # type: ignore[operator]
    return [known[id(energy)] if id(energy) in known else energy(x) for energy in energies]


def together_with_gradients(energies: Sequence[Energy], x: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    # (*batch, *event) -> k times (*batch), (*batch, *event)
    """`value_and_grad` of each at x, one after the other; those that share a network in one call of it."""
    known: dict[int, tuple[Tensor, Tensor]] = {}
    for group in _sharing(energies):
        known |= zip(map(id, group), zip(*group[0].fused_value_and_grad(group, x), strict=True), strict=True)  # type: ignore[operator]
    for energy in energies:
        yield known[id(energy)] if id(energy) in known else energy.value_and_grad(x)


def _sharing(energies: Sequence[Energy]) -> list[list[Energy]]:
    """Those of the energies that share a network, each once, where two or more do."""
    groups: dict[int, dict[int, Energy]] = {}
    for energy in energies:
        if energy.can(SharesNetwork):
            groups.setdefault(id(energy.network), {})[id(energy)] = energy
    return [list(group.values()) for group in groups.values() if len(group) > 1]


def _add(a: Tensor, b: Tensor) -> Tensor:
    """a + b of energies, where +inf wins over -inf: a density that is 0 stays 0, whatever multiplies it."""
    clash = ((a == math.inf) & (b == -math.inf)) | ((a == -math.inf) & (b == math.inf))
    return torch.where(clash, math.inf, a + b)


class _Same:
    """Equal only for one and the same object, which it keeps alive so that no other can take its place in memory."""

    def __init__(self, thing: Any) -> None:
        self.thing = thing

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and other.thing is self.thing

    __hash__ = None  # type: ignore[assignment]


class _Term(NamedTuple):
    """One factor of a product: p ** (coefficient · parameter)."""

    energy: Energy
    coefficient: float
    parameter: nn.Parameter | None = None

    @property
    def power(self) -> float:
        return self.coefficient if self.parameter is None else self.coefficient * self.parameter.item()

    def weigh(self, energy: Tensor) -> Tensor:
        """power · E, and +inf where E is, whatever the sign."""
        if self.parameter is None and self.coefficient == 1:
            return energy
        if self.parameter is None and self.coefficient > 0:
            return energy * self.coefficient
        void = energy == math.inf  # no inf meets a power, whose gradient it would spoil
        power = self.coefficient if self.parameter is None else self.coefficient * self.parameter.reshape(())
        return torch.where(void, math.inf, torch.where(void, 0, energy) * power)

    def scaled(self, factor: float) -> _Term:
        coefficient = self.coefficient * factor
        if not math.isfinite(coefficient) or (coefficient == 0 and self.coefficient and factor):
            raise ValueError(
                f"(({self.energy}) ** {self.coefficient:g}) ** {factor:g}: these powers multiply to more, or less, than a number holds"
            )
        return self._replace(coefficient=coefficient)

    def format(self, label: dict[int, str], *, divided: bool = False) -> tuple[str, int]:
        child, coefficient = _child(self.energy, label), self.coefficient
        if self.parameter is not None:
            text = f"{_wrap(child, _POWER + 1)} ** Parameter(tensor({self.parameter.item()!r}))"
            if coefficient in (1.0, -1.0):
                return (text if divided or coefficient > 0 else f"~{text}"), _POWER if divided or coefficient > 0 else _TILDE
            return f"({text}) ** {_number(abs(coefficient) if divided else coefficient)}", _POWER
        if coefficient == 1 or (divided and coefficient == -1):
            return child
        if coefficient == -1:
            return f"~{_wrap(child, _TILDE)}", _TILDE
        return f"{_wrap(child, _POWER + 1)} ** {_number(abs(coefficient) if divided else coefficient)}", _POWER


class Mixture(Energy):
    """Sum of densities, built by `|` and `mixture`.

    Raw (weights None): E = -log Σ exp(-E_i). Weighted: E = -log Σ w_i exp(-E_i) / Z_i, over the normalised parts, log Z = 0.
    """

    def __init__(self, energies: Sequence[Energy], weights: Sequence[float] | None) -> None:
        super().__init__(energies[0].event_shape, support=sets.union([e.support for e in energies]))
        self.energies = nn.ModuleList(energies)
        self.weights = None if weights is None else tuple(weights)

    @property
    def parts(self) -> tuple[Energy, ...]:
        return tuple(self.energies)  # type: ignore[return-value]

    def rebuild(self, parts: Sequence[Energy]) -> Energy:
        return mixture(parts, self.weights)

    def at(self, sigma: float) -> Energy:
        """The mixture at noise level sigma. Where a part's log Z is unknown there, the parts of a weighted mixture keep the factors
        w_i / Z_i that they have here, and the mixture's log Z is unknown."""
        parts = [part.at(sigma) for part in self.parts]
        if all(a is b for a, b in zip(parts, self.parts, strict=True)):
            return self
        if self.weights is None or all(part.log_z is not None for part in parts):
            return self.rebuild(parts)
        return mixture([shift(e, -w) for w, e in zip(self.log_weights, parts, strict=True) if w > -math.inf])

    @property
    def log_weights(self) -> tuple[float, ...]:
        """What each exp(-E_i) is multiplied by, on the log scale: 0 for a raw mixture, log(w_i / Z_i) for a weighted one."""
        if self.weights is None:
            return (0.0,) * len(self.parts)
        return tuple(
            (math.log(w) if w else -math.inf) - float(_known_log_z(e)) for w, e in zip(self.weights, self.parts, strict=True)
        )

    @property
    def _weighted(self) -> list[tuple[float, Energy]]:
        """(log weight, part) of each part that weighs anything."""
        return [(w, e) for w, e in zip(self.log_weights, self.parts, strict=True) if w > -math.inf]

    @property
    def shares(self) -> tuple[float, ...] | None:
        """The probability of each part, summing to 1; None where a log Z is unknown."""
        if self.weights is not None:
            return self.weights
        known = [part.log_z for part in self.parts]
        if any(z is None for z in known):
            return None
        return tuple(torch.tensor([float(z) for z in known], dtype=torch.float64).softmax(0).tolist())  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:  # (*batch, *event) -> (*batch)
        parts = together([part for _, part in self._weighted], x)
        logs = torch.stack([w - energy for (w, _), energy in zip(self._weighted, parts, strict=True)])
        top = logs.detach().amax(0)
        top = torch.where(top.isfinite(), top, 0)  # all parts at -inf: keep the graph free of inf - inf
        total = (logs - top).exp().sum(0)
        return torch.where(total > 0, -(torch.where(total > 0, total, 1).log() + top), math.inf).where(~total.isnan(), total)

    def _value_and_grad(self, x: Tensor) -> tuple[Tensor, Tensor]:
        # the running log-sum-exp L and ∇E = Σ softmax_i ∇E_i are updated part by part, so memory does not grow with their number
        axes = (1,) * len(self.event_shape)
        log_p: Tensor | None = None
        gradient = torch.zeros_like(x)
        known = together_with_gradients([part for _, part in self._weighted], x)
        for (weight, _), (energy, slope) in zip(self._weighted, known, strict=True):
            new = weight - energy
            log_p = torch.full_like(new, -math.inf) if log_p is None else log_p
            odds = torch.where(new == log_p, 0, new - log_p)  # inf - inf where both densities are 0, or both infinite
            odds = odds.reshape(odds.shape + axes)
            share, rest = odds.sigmoid(), (-odds).sigmoid()  # each to full precision: 1 - share would lose a small rest
            gradient = torch.where(rest > 0, rest * gradient, 0) + torch.where(share > 0, share * slope, 0)
            gradient = gradient.where(~share.isnan(), share)
            log_p = torch.logaddexp(log_p, new)
        assert log_p is not None
        return -log_p, gradient

    @property
    def log_z(self) -> Estimate | None:
        known = [part.log_z for part in self.parts]
        shares = self.shares
        if shares is None or any(z is None for z in known):
            return None
        errors: dict[int, float] = {}  # a part that stands twice errs twice the same way
        for part, share, z in zip(self.parts, shares, known, strict=True):
            errors[id(part)] = errors.get(id(part), 0.0) + share * z.standard_error  # type: ignore[union-attr]
        error = math.hypot(*errors.values())
        if self.weights is not None:
            return Estimate(0.0, error)
        return Estimate(torch.tensor([float(z) for z in known], dtype=torch.float64).logsumexp(0).item(), error)  # type: ignore[arg-type]

    @property
    def proper(self) -> bool | None:
        if sets.is_empty(self.support):
            return False
        return _all(part.proper for part in self.parts if not sets.is_empty(part.support))  # an empty part adds no mass

    @property
    def bounded(self) -> bool | None:
        return True if all(part.bounded for part in self.parts) else super().bounded

    def can(self, capability: type) -> bool:
        if capability is Samples:
            return self.shares is not None and all(part.can(Samples) for part in self.parts)
        return super().can(capability)

    def sample(self, n: int | tuple[int, ...], *, generator: torch.Generator | None = None) -> Tensor:
        """Exact ancestral draws, (n, *event): first the part, then a draw from it. Raises TypeError where a part cannot draw."""
        shares = self.shares
        if shares is None or not self.can(Samples):
            raise TypeError(f"{self} has no exact draws: each part must draw and know its log Z; use poe.sample")
        shape = torch.Size([n] if isinstance(n, int) else n)
        which = torch.multinomial(
            torch.tensor(shares, dtype=torch.float64, device=self.device),
            max(shape.numel(), 1),
            replacement=True,
            generator=generator,
        )[: shape.numel()]
        drawn = [
            part.sample(int((which == i).sum()), generator=generator)  # type: ignore[operator]
            for i, part in enumerate(self.parts)
        ]
        # drawn part by part, then put back at the places of `which`
        order = which.argsort(stable=True).argsort()
        return torch.cat(drawn)[order].reshape(shape + self.event_shape)

    def _format(self, label: dict[int, str]) -> tuple[str, int]:
        texts = [_child(part, label) for part in self.parts]
        if self.weights is None and len(texts) > 1:
            wrapped = [_wrap(texts[0], _OR)] + [_wrap(text, _OR + 1) for text in texts[1:]]
            return " | ".join(wrapped), _OR
        inner = ", ".join(text for text, _ in texts)
        weights = "" if self.weights is None else f", weights=[{', '.join(repr(w) for w in self.weights)}]"
        return f"poe.mixture([{inner}]{weights})", _ATOM


class Contrast(Energy):
    """a but not b: E = E_a + s·softplus(E_a - E_b), density p_a (p_a / (p_a + p_b))^s <= p_a. Built by `-` and `contrast`."""

    def __init__(self, wanted: Energy, unwanted: Energy, strength: float) -> None:
        super().__init__(wanted.event_shape, support=wanted.support)
        self.wanted, self.unwanted, self.strength = wanted, unwanted, strength

    @property
    def parts(self) -> tuple[Energy, ...]:
        return self.wanted, self.unwanted

    def rebuild(self, parts: Sequence[Energy]) -> Energy:
        return contrast(parts[0], parts[1], self.strength)

    def forward(self, x: Tensor) -> Tensor:  # (*batch, *event) -> (*batch)
        wanted, unwanted = together(self.parts, x)
        void, gap = self._gap(wanted, unwanted)
        return wanted + torch.where(void, 0, self.strength * softplus(gap, threshold=40))

    def _gap(self, wanted: Tensor, unwanted: Tensor) -> tuple[Tensor, Tensor]:
        """E_a - E_b, and where it decides nothing: p_a = 0, strength 0, or both densities infinite. No inf - inf arises."""
        void = (wanted == math.inf) | ((wanted == -math.inf) & (unwanted == -math.inf))
        if self.strength == 0:
            void = torch.ones_like(void)
        return void, torch.where(void, 0, wanted) - torch.where(void, 0, unwanted)

    def _value_and_grad(self, x: Tensor) -> tuple[Tensor, Tensor]:
        (wanted, slope_a), (unwanted, slope_b) = together_with_gradients(self.parts, x)
        void, gap = self._gap(wanted, unwanted)
        energy = wanted + torch.where(void, 0, self.strength * softplus(gap, threshold=40))
        pull = torch.where(void, 0, self.strength * gap.sigmoid()).reshape(gap.shape + (1,) * len(self.event_shape))
        return energy, slope_a + torch.where(pull == 0, 0, pull * (slope_a - slope_b))

    @property
    def proper(self) -> bool | None:
        return False if sets.is_empty(self.support) else True if self.wanted.proper else super().proper

    @property
    def bounded(self) -> bool | None:
        return True if self.wanted.bounded else super().bounded

    def _format(self, label: dict[int, str]) -> tuple[str, int]:
        wanted, unwanted = _child(self.wanted, label), _child(self.unwanted, label)
        if self.strength == 1:
            return f"{_wrap(wanted, _MINUS)} - {_wrap(unwanted, _MINUS + 1)}", _MINUS
        return f"poe.contrast({wanted[0]}, {unwanted[0]}, strength={_number(self.strength)})", _ATOM


class Pullback(Energy):
    """A factor on f(x): E(x) = E_a(f(x)), with no Jacobian. Built by `@`, `pullback` and `on`."""

    def __init__(self, energy: Energy, function: Callable[[Tensor], Tensor], event_shape: Sequence[int]) -> None:
        super().__init__(event_shape, support=_preimage(energy.support, function, event_shape))
        self.energy, self.function = energy, function

    @property
    def parts(self) -> tuple[Energy, ...]:
        return (self.energy,)

    def rebuild(self, parts: Sequence[Energy]) -> Energy:
        return pullback(parts[0], self.function, self.event_shape)

    @property
    def vocabulary(self) -> Any:
        return None  # that of the part is about f(x)

    def forward(self, x: Tensor) -> Tensor:  # (*batch, *event) -> (*batch)
        y, outside = self._image(x)
        return torch.where(outside, math.inf, self.energy(y))

    def _image(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """f(x), and where a plain function is NaN: x lies outside its domain, and 0 stands for f(x). A module has no such domain: its
        NaN is a failure, and stays for the report to count."""
        y = self.function(x)
        if isinstance(self.function, nn.Module) or not y.is_floating_point():
            return y, torch.zeros(self._batch_shape(x), dtype=torch.bool, device=x.device)
        outside = y.isnan()
        each = outside.flatten(y.ndim - len(self.energy.event_shape)).any(-1) if self.energy.event_shape else outside
        return torch.where(outside, 0, y), each

    def _value_and_grad(self, x: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            y, outside = self._image(x)
        energy, slope = self.energy.value_and_grad(y.detach())
        if not y.requires_grad:
            raise TypeError(f"{_function_name(self.function)} in {self} does not depend on x through torch operations")
        (gradient,) = torch.autograd.grad(y, x, slope, materialize_grads=True)
        return torch.where(outside, math.inf, energy), gradient

    @property
    def proper(self) -> bool | None:
        if sets.is_empty(self.support):
            return False
        finite = sets.is_bounded(self.support) and self.energy.bounded
        loose = isinstance(self.function, Select) and len(self.function.index) < self.event_shape.numel()
        if loose and self.energy.proper and _measure(self.support) == _VOLUME:
            return False  # even over numbers that it does not look at, without end
        return True if finite else super().proper

    @property
    def bounded(self) -> bool | None:
        return True if self.energy.bounded else super().bounded

    @property
    def flat(self) -> bool | None:
        return self.energy.flat

    def _format(self, label: dict[int, str]) -> tuple[str, int]:
        child = _child(self.energy, label)
        if isinstance(self.function, Select):
            return f"poe.on({child[0]}, {self.function.index.tolist()}, {tuple(self.event_shape)})", _ATOM
        function = label[id(self.function)]
        if _stated_shape(self.function) is None and self.event_shape != self.energy.event_shape:
            return f"poe.pullback({child[0]}, {function}, {tuple(self.event_shape)})", _ATOM
        return f"{_wrap(child, _SLASH)} @ {function}", _SLASH


class Shifted(Energy):
    """The same density with another constant: E + offset. Built by `shift` and by `normalize`.

    `log_z` is that of the energy less the offset, or what is stated: `normalize` states 0 with the standard error of its estimate.
    """

    def __init__(self, energy: Energy, offset: float, log_z: Estimate | None) -> None:
        super().__init__(energy.event_shape, support=energy.support)
        self.energy, self.offset, self.stated = energy, offset, log_z

    @property
    def parts(self) -> tuple[Energy, ...]:
        return (self.energy,)

    def rebuild(self, parts: Sequence[Energy]) -> Energy:
        return shift(parts[0], self.offset, log_z=self.stated)

    def given(self, context: Any) -> Energy:
        """The part with this context, shifted likewise: what was stated of log Z was not said of that."""
        return shift(self.energy.given(context), self.offset)

    def at(self, sigma: float) -> Energy:
        """The part at this noise level, shifted likewise; what was stated of log Z holds where that is the same energy."""
        part = self.energy.at(sigma)
        return self if part is self.energy else shift(part, self.offset)

    def forward(self, x: Tensor) -> Tensor:  # (*batch, *event) -> (*batch)
        return self.energy(x) + self.offset

    def _value_and_grad(self, x: Tensor) -> tuple[Tensor, Tensor]:
        energy, gradient = self.energy.value_and_grad(x)
        return energy + self.offset, gradient

    @property
    def log_z(self) -> Estimate | None:
        known = self.energy.log_z
        if self.stated is not None or known is None:
            return self.stated
        return Estimate(known.value - self.offset, known.standard_error)

    @property
    def proper(self) -> bool | None:
        return True if self.stated is not None else self.energy.proper

    @property
    def bounded(self) -> bool | None:
        return self.energy.bounded

    @property
    def flat(self) -> bool | None:
        return self.energy.flat

    def can(self, capability: type) -> bool:
        return self.energy.can(Samples) if capability is Samples else super().can(capability)

    def sample(self, n: int | tuple[int, ...], *, generator: torch.Generator | None = None) -> Tensor:
        """Exact draws of the energy that was shifted. Raises TypeError where it has none."""
        if not self.can(Samples):
            raise TypeError(f"{self.energy} has no exact draws; use poe.sample")
        return self.energy.sample(n, generator=generator)  # type: ignore[operator]

    def _format(self, label: dict[int, str]) -> tuple[str, int]:
        log_z = "" if self.stated is None else f", log_z=poe.Estimate({self.stated.value!r}, {self.stated.standard_error!r})"
        return f"poe.shift({_child(self.energy, label)[0]}, {self.offset!r}{log_z})", _ATOM


# ---------------------------------------------------------------- functions that build them


def product(energies: Sequence[Energy], powers: Power | Sequence[Power] | None = None) -> Energy:
    """Π p_i^{w_i}. `powers`: one for all, or one each; 1 by default.

    Flat and merged by identity, so `product([a, a])` is `a ** 2` with one evaluation, and a single factor of power 1 is itself.
    An `nn.Parameter` as a power stays its own, learnable term.
    """
    energies = _energies(energies, "product", powers)
    if powers is None:
        powers = 1.0
    if not isinstance(powers, Iterable) or isinstance(powers, nn.Parameter) or (isinstance(powers, Tensor) and powers.ndim == 0):
        powers = [powers] * len(energies)
    powers = list(powers)  # type: ignore[arg-type]
    if len(energies) == 1 and not isinstance(powers[0], Tensor) and powers[0] == 1 and not isinstance(powers[0], bool):
        return energies[0]
    if len(powers) != len(energies):
        raise ValueError(f"{len(energies)} energies need as many powers, not {len(powers)}")
    terms: list[_Term] = []
    for energy, power in zip(energies, powers, strict=True):
        if isinstance(power, nn.Parameter):
            _check_parameter(power, energy)
            nested = energy.terms if isinstance(energy, Product) and not energy.learnable else (_Term(energy, 1.0),)
            terms += [term._replace(parameter=power) for term in nested]
        else:
            inner = energy.terms if isinstance(energy, Product) else (_Term(energy, 1.0),)
            terms += [term.scaled(_checked_power(power, energy)) for term in inner]
    result = _flat(terms)
    _carry(result, energies, powers)
    return result


def _flat(terms: Sequence[_Term]) -> Energy:
    """The product of these terms: nested products opened, equal experts merged, cancelled ones dropped where nothing is lost."""
    opened: list[_Term] = []
    for term in terms:
        if isinstance(term.energy, Product) and (term.parameter is None or not term.energy.learnable):
            for t in term.energy.terms:
                parameter = t.parameter if term.parameter is None else term.parameter
                opened.append(t.scaled(term.coefficient)._replace(parameter=parameter))
        else:
            opened.append(term)
    merged: dict[tuple[int, int | None], list[_Term]] = {}
    for term in opened:
        merged.setdefault((id(term.energy), None if term.parameter is None else id(term.parameter)), []).append(term)
    kept = [same[-1]._replace(coefficient=_sum([term.coefficient for term in same])) for same in merged.values()]
    for term in [t for t in kept if t.coefficient == 0]:
        rest = [t for t in kept if t is not term]
        if rest and sets.covers(term.energy.support, sets.intersect([t.energy.support for t in rest])):
            kept = rest
    if len(kept) == 1 and kept[0].coefficient == 1 and kept[0].parameter is None:
        return kept[0].energy
    return Product(kept)


def _sum(coefficients: Sequence[float]) -> float:
    """The sum, and the round number that was meant where rounding alone separates them: 0.1 + 0.2 - 0.3 is 0."""
    try:
        total = math.fsum(coefficients)
    except OverflowError as error:
        raise ValueError(
            f"powers {', '.join(f'{c:g}' for c in coefficients)} of one energy add to more than a number holds"
        ) from error
    if len(coefficients) == 1 or not math.isfinite(total):
        return total
    slack = 4 * len(coefficients) * math.ulp(math.fsum(map(abs, coefficients)))
    meant = (float(round(total)), float(f"{total:.12g}"))
    return next((value for value in meant if abs(value - total) <= slack), total)


def mixture(energies: Sequence[Energy], weights: Sequence[float] | None = None) -> Energy:
    """Without weights, Σ exp(-E_i), as `|`. With weights, Σ w_i p_i / Z_i over the normalised parts, weights scaled to sum to 1.

    Raises ValueError where weights are given and some log Z is unknown: `poe.normalize` estimates it.
    """
    energies = _energies(energies, "mixture", weights)
    _one_measure(energies, "|")
    if weights is None:
        flat: list[Energy] = []
        for energy in energies:
            flat += energy.parts if isinstance(energy, Mixture) and energy.weights is None else (energy,)
        return flat[0] if len(flat) == 1 else Mixture(flat, None)
    numbers = [float(w) for w in weights]
    if len(numbers) != len(energies):
        raise ValueError(f"{len(energies)} energies need as many weights, not {len(numbers)}")
    total = math.fsum(numbers)
    if not math.isfinite(total) or total <= 0 or any(w < 0 for w in numbers):
        raise ValueError(f"weights must be finite, not negative, and not all 0, got {numbers}")
    for energy in energies:
        _known_log_z(energy)
    scaled = numbers if math.isclose(total, 1.0, rel_tol=1e-15) else [w / total for w in numbers]
    return Mixture(energies, scaled)


def contrast(a: Energy, b: Energy, strength: float = 1.0) -> Energy:
    """a but not b: E_a + strength·softplus(E_a - E_b), strength >= 0; `a - b` is strength 1."""
    a, b = _energies([a, b], "contrast")
    _one_measure([a, b], "-")
    if isinstance(strength, bool) or not isinstance(strength, (int, float)) or not 0 <= strength < math.inf:
        raise ValueError(f"the strength of a contrast is a finite number >= 0, got {strength!r}")
    return Contrast(a, b, float(strength))


def combine(posteriors: Sequence[Energy], *, prior: Energy) -> Energy:
    """Posteriors that each contain the same prior, which must count once: p1 & ... & pn / prior ** (n - 1).

    Posteriors of some of the parameters are written `poe.on(posterior, index, event_shape)`. Then the prior is a product of factors
    over parameters that go together, `poe.on(prior_1, ...) & poe.on(prior_2, ...)`, and each factor is divided out as often as
    posteriors beyond the first contain it; what no posterior contains stays. Draws report how the parts agree (`draws.agreement`), also
    of a product of the result with more factors, and of the result shifted or normalised.

    Raises ValueError where a posterior's support does not match the prior's, or it is about some parameters of a factor only.
    """
    posteriors = _energies(posteriors, "combine")
    _energies([posteriors[0], prior], "combine")
    split = isinstance(prior, Product) and any(len(places(t.energy)) < prior.event_shape.numel() for t in prior.terms)
    factors = [_alone(term) for term in prior.terms] if isinstance(prior, Product) and split else [prior]
    posteriors = [each for posterior in posteriors for each in _opened(posterior, factors)]
    for posterior in posteriors:
        foreign = [factor.support for factor in factors if not places(factor) & places(posterior)]
        if sets.covers(prior.support, sets.intersect([posterior.support, *foreign])) is False:
            raise ValueError(
                f"the support of {posterior}, {posterior.support!r}, is not inside that of the prior {prior}, {prior.support!r}: "
                "a posterior lives where its prior does; restrict it, or give the prior it was made with"
            )
    counts = []
    for factor in factors:
        own, count = places(factor), 0
        for posterior in posteriors:
            shared = own & places(posterior)
            if shared and shared != own:
                raise ValueError(
                    f"{posterior} is about some parameters of the prior's factor {factor} and not about others: write the prior as "
                    "factors over parameters that go together, poe.on(prior_1, [0], event_shape) & poe.on(prior_2, [1], event_shape)"
                )
            count += bool(shared)
        counts.append(count)
    result = product([*posteriors, *factors], [1.0] * len(posteriors) + [1.0 - count for count in counts])
    if len(posteriors) > 1 and not any(result is energy for energy in (*posteriors, *factors)):
        vars(result)["combination"] = Combination(tuple(posteriors), tuple(zip(factors, counts, strict=True)))
    return result


def conjunction(prior: Energy, concepts: Sequence[Energy]) -> Energy:
    """All of these concepts at once: prior & c1 / prior & c2 / prior ..., which is c1 & ... & cn / prior ** (n - 1).

    Each concept is the density p(x | c) of what has it, and contains the prior p(x), which must count once. Where concepts are
    independent given x, as those are that x decides, the product is p(x | c1, ..., cn):

        p(x) Π p(c_i | x) ∝ p(x) Π p(x | c_i) / p(x).

    Raises ValueError where a concept is given twice, or its support is not inside the prior's.
    """
    if isinstance(concepts, Energy):
        raise TypeError(f"poe.conjunction takes a list of energies: write poe.conjunction({prior}, [{concepts}])")
    concepts = list(concepts)
    _energies([prior, *concepts], "conjunction")
    for i, concept in enumerate(concepts):
        if any(concept is other for other in concepts[:i]):
            more = f"{bracketed(concept, _ATOM)} ** 2"
            raise ValueError(f"{concept} is given twice: a concept either holds or does not; {more} weighs it more")
        if sets.covers(prior.support, concept.support) is False:
            raise ValueError(
                f"the support of {concept}, {concept.support!r}, is not inside that of the prior {prior}, {prior.support!r}"
            )
    return product([*concepts, prior], [1.0] * len(concepts) + [1.0 - len(concepts)])


class Combination(NamedTuple):
    """What `combine` put together: the posteriors, and the factors of the prior, each with the number of posteriors that contain it."""

    posteriors: tuple[Energy, ...]
    priors: tuple[tuple[Energy, int], ...]

    def is_whole(self, energy: Energy) -> bool:
        """Whether an energy is this combination, up to a constant, and nothing was multiplied with it afterwards."""
        while isinstance(energy, Shifted):
            energy = energy.energy
        powers = [1.0] * len(self.posteriors) + [1.0 - count for _, count in self.priors]
        return _alike(product([*self.posteriors, *(factor for factor, _ in self.priors)], powers), energy)

    def has_priors(self, factors: Sequence[Energy]) -> bool:
        return len(factors) == len(self.priors) and all(_alike(a, b) for (a, _), b in zip(self.priors, factors, strict=True))


def places(energy: Energy) -> set[int]:
    """The positions of the flattened event that an energy is about: those of `poe.on`, and of all parts of a composition; else all."""
    if is_on(energy):
        index = energy.function.index.tolist()
        return {index[place] for place in places(energy.energy)}
    if isinstance(energy, (Product, Mixture, Contrast, Shifted)):
        return set().union(*(places(part) for part in energy.parts))
    return set(range(energy.event_shape.numel()))


def is_on(energy: Energy) -> TypeGuard[Pullback]:
    """Whether `on` made it."""
    return isinstance(energy, Pullback) and isinstance(energy.function, Select)


def part_on(energy: Energy, index: Sequence[int]) -> Energy:
    """The same over the numbers at these positions alone, in their order, of an energy that is about no others."""
    if not is_on(energy) and len(index) == energy.event_shape.numel():
        return energy
    at = {place: i for i, place in enumerate(index)}

    def within(part: Energy) -> Energy:
        if not is_on(part):
            return part.rebuild([within(inner) for inner in part.parts])
        used = sorted(places(part.energy))
        inner, there = part_on(part.energy, used), [at[place] for place in part.function.index[used].tolist()]
        whole = there == list(range(len(at))) and inner.event_shape == (len(at),)
        return inner if whole else on(inner, there, (len(at),))

    return within(energy)


def combined(energy: Energy) -> Combination | None:
    """What `combine` put together in an energy, which may be shifted, or multiplied by more factors; None where it did not."""
    known: Combination | None = vars(energy).get("combination")
    return combined(energy.energy) if known is None and isinstance(energy, Shifted) else known


def _opened(posterior: Energy, factors: Sequence[Energy]) -> Sequence[Energy]:
    """The posteriors that were combined before, with the same prior and nothing else; else the one."""
    known: Combination | None = vars(posterior).get("combination")
    if known is None or not known.has_priors(factors) or not known.is_whole(posterior):
        return (posterior,)
    return known.posteriors


def _alike(a: Energy, b: Energy) -> bool:
    """Whether two energies are the same product of the same factors."""
    terms = [{(id(t.energy), t.power) for t in e.terms} if isinstance(e, Product) else {(id(e), 1.0)} for e in (a, b)]
    return terms[0] == terms[1]


def _carry(result: Energy, energies: Sequence[Energy], powers: Sequence[Any]) -> None:
    """What was combined in factors is known of their product, but for posteriors that are divided out again."""
    signs = [1.0 if isinstance(power, Tensor) else power for power in powers]
    known = [combined(energy) for energy, sign in zip(energies, signs, strict=True) if sign == 1]
    found = [combination for combination in known if combination is not None]
    divided = {id(energy) for energy, sign in zip(energies, signs, strict=True) if sign < 0}
    if not found or not isinstance(result, Product) or any(result is energy for energy in energies):
        return
    priors = [factor for factor, _ in found[0].priors]
    posteriors = [p for combination in found if combination.has_priors(priors) for p in combination.posteriors]
    if not divided & set(map(id, posteriors)):
        vars(result)["combination"] = Combination(tuple(posteriors), found[0].priors)


def _alone(term: _Term) -> Energy:
    return term.energy if term.coefficient == 1 and term.parameter is None else Product([term])


def pullback(energy: Energy, function: Callable[[Tensor], Tensor], event_shape: Sequence[int] | None = None) -> Energy:
    """The factor exp(-E(f(x))) on f(x): no Jacobian. The event shape is the stated one, else f's, else that of the energy."""
    if isinstance(function, Energy) or not callable(function):
        raise TypeError(f"`@` takes a function of x on its right, not {function}; for a product of energies write `a & b`")
    (energy,) = _energies([energy], "pullback")
    shape = _shape(event_shape) if event_shape is not None else _stated_shape(function)
    return Pullback(energy, function, energy.event_shape if shape is None else shape)


def on(energy: Energy, index: Sequence[int] | Tensor, event_shape: Sequence[int]) -> Energy:
    """A factor on part of a larger event: E(x[index]), x flattened, the selected values taking the energy's event shape."""
    (energy,) = _energies([energy], "on")
    return pullback(energy, Select(index, event_shape, energy.event_shape), event_shape)


def fill(x_known: Tensor, mask: Tensor) -> Fill:
    """A map for `energy @ fill(x_known, mask)`: clamps x to `x_known` where `mask` is True, and leaves the rest free."""
    return Fill(x_known, mask)


def shift(energy: Energy, offset: float, *, log_z: Estimate | None = None) -> Energy:
    """E + offset: the same density with another constant. `log_z` states that of the result where it is known from elsewhere."""
    (energy,) = _energies([energy], "shift")
    if not math.isfinite(offset):
        raise ValueError(f"an energy can be shifted by a finite number of nats only, got {offset}")
    if isinstance(energy, Shifted) and log_z is None:
        total = energy.offset + float(offset)
        if energy.stated is None:
            return shift(energy.energy, total)
        return Shifted(energy.energy, total, Estimate(energy.stated.value - offset, energy.stated.standard_error))
    if log_z is not None:
        log_z = Estimate(float(log_z[0]), float(log_z[1]))
    return energy if offset == 0 and log_z is None else Shifted(energy, float(offset), log_z)


class Select(nn.Module):
    """x -> x.flatten()[index], shaped as the part's event: the map of `on`."""

    index: Tensor

    def __init__(self, index: Sequence[int] | Tensor, event_shape: Sequence[int], part_shape: Sequence[int]) -> None:
        super().__init__()
        self.event_shape, self.part_shape = _shape(event_shape), _shape(part_shape)
        size = self.event_shape.numel()
        positions = torch.as_tensor(index).flatten()
        if positions.numel() and (positions.is_floating_point() or positions.is_complex() or positions.dtype == torch.bool):
            raise TypeError(f"positions are whole numbers, not {positions.dtype}: mask.flatten().nonzero() gives those of a mask")
        positions = positions.long()
        if len(positions) != self.part_shape.numel():
            raise ValueError(f"{len(positions)} positions cannot fill an event of shape {tuple(part_shape)}")
        if bool((positions < -size).any() or (positions >= size).any()) or len((positions % size).unique()) != len(positions):
            raise ValueError(f"positions {positions.tolist()} must be distinct and lie in an event of {size} numbers")
        self.register_buffer("index", positions % size, persistent=False)

    def forward(self, x: Tensor) -> Tensor:  # (*batch, *event) -> (*batch, *part)
        batch = x.shape[: x.ndim - len(self.event_shape)]
        return x.reshape((*batch, self.event_shape.numel()))[..., self.index].reshape(batch + self.part_shape)

    def preimage(self, support: sets.Constraint) -> sets.Constraint | None:
        """The box of all x whose selected part lies in the box `support`."""
        if not isinstance(support, sets.Box) or support.integer:
            return None
        low, high = (torch.full((self.event_shape.numel(),), end, dtype=torch.float64) for end in (-math.inf, math.inf))
        low[self.index], high[self.index] = support.low.flatten().to(low), support.high.flatten().to(high)
        return sets.Box(low.reshape(self.event_shape), high.reshape(self.event_shape))


class Fill(nn.Module):
    """(*batch, free) -> (*batch, *event): the free numbers in reading order where the mask is False, known values elsewhere."""

    x_known: Tensor
    mask: Tensor
    free: Tensor

    def __init__(self, x_known: Tensor, mask: Tensor, *, name: str | None = None) -> None:
        super().__init__()
        x_known, mask = torch.as_tensor(x_known), torch.as_tensor(mask)
        if mask.dtype != torch.bool or mask.shape != x_known.shape:
            raise ValueError(
                f"fill takes a boolean mask of the shape of x_known, {tuple(x_known.shape)}, True where x is known; "
                f"got {mask.dtype} of shape {tuple(mask.shape)}"
            )
        self.name = name
        self.event_shape = torch.Size([int((~mask).sum())])
        self.register_buffer("x_known", x_known.detach().clone())
        self.register_buffer("mask", mask.detach().clone())
        self.register_buffer("free", (~mask).flatten().nonzero().squeeze(-1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:  # (*batch, free) -> (*batch, *event)
        batch = x.shape[:-1]
        known = torch.where(self.mask, self.x_known, 0).to(x).flatten().expand((*batch, self.mask.numel()))
        return known.index_copy(-1, self.free, x).reshape(batch + self.mask.shape)

    def preimage(self, support: sets.Constraint) -> sets.Constraint | None:
        """The box of the free coordinates, empty where a known value lies outside the box `support`."""
        if not isinstance(support, sets.Box):
            return None
        low, high = support.low.flatten()[self.free], support.high.flatten()[self.free]
        known, mask = self.x_known, self.mask
        if not bool((((known >= support.low.to(known)) & (known <= support.high.to(known))) | ~mask).all()):
            low, high = torch.full_like(low, math.inf), torch.full_like(high, -math.inf)
        return sets.Box(low, high, integer=support.integer, step=support.step)


class Preimage(sets.Constraint):
    """The points that a function maps into a support."""

    def __init__(self, support: sets.Constraint, function: Callable[[Tensor], Tensor], event_dim: int) -> None:
        self.target, self.function = support, function
        self.event_dim = event_dim  # type: ignore[assignment]
        self.is_discrete = sets.is_discrete(support)  # type: ignore[assignment]

    def check(self, value: Tensor) -> Tensor:
        with torch.no_grad():
            return sets.contains(self.target, self.function(value))

    def __repr__(self) -> str:
        return f"{{x: {_function_name(self.function)}(x) in {self.target!r}}}"


@biject_to.register(Preimage)
def _moved_as_it_is(support: Preimage) -> Transform:
    """Points of a preimage move in R^n, where its outside is rejected; one without volume would never be met."""
    if _measure(support.target) != _VOLUME:
        raise NotImplementedError(f"{support!r} has no volume")
    return identity_transform


def _preimage(support: sets.Constraint, function: Callable, event_shape: Sequence[int]) -> sets.Constraint:
    if sets.is_real(support):
        return sets.real(event_shape)
    known = function.preimage(support) if isinstance(function, (Select, Fill)) else None
    return Preimage(support, function, len(tuple(event_shape))) if known is None else known


# ---------------------------------------------------------------- looking at expressions


def leaves(energy: Energy) -> list[Energy]:
    """The experts of an expression, each once, in the order in which they are written."""
    found: dict[int, Energy] = {}
    stack = [energy]
    while stack:
        node = stack.pop()
        if node.parts:
            stack += reversed(node.parts)
        else:
            found.setdefault(id(node), node)
    return list(found.values())


def names(energy: Energy) -> dict[str, Any]:
    """A label for everything that `str(energy)` names: experts, named parts and maps. `poe.parse(str(e), poe.names(e))` is e.

    A label is the `name`, else the class name in lower case; different things with one name get `_2`, `_3`, ...
    """
    found: dict[int, tuple[Any, str]] = {}

    def visit(node: Energy, top: bool) -> None:
        if id(node) in found:
            return
        if not node.parts or (node.name and not top):
            found[id(node)] = node, node.name or type(node).__name__.lower()
            return
        for part in node.parts:
            visit(part, False)
        if isinstance(node, Pullback) and not isinstance(node.function, Select):
            found[id(node.function)] = node.function, _function_name(node.function)

    visit(energy, True)
    labels: dict[str, Any] = {}
    for thing, base in found.values():
        label, count = base, 1
        while label in labels:
            count += 1
            label = f"{base}_{count}"
        labels[label] = thing
    return labels


def caveats(energy: Energy) -> list[str]:
    """Where a `|` or `-` rests on parts whose log Z is unknown, so that their balance is arbitrary."""
    notes: dict[str, None] = {}
    label = {id(thing): text for text, thing in names(energy).items()}
    stack = [energy]
    while stack:
        node = stack.pop()
        stack += node.parts
        unknown = [part for part in node.parts if part.log_z is None]
        if isinstance(node, (Mixture, Contrast)) and unknown:
            sign = "|" if isinstance(node, Mixture) else "-"
            parts = ", ".join(_child(part, label)[0] for part in unknown)
            notes[
                f"`{sign}` rests on raw energies: log Z unknown for {parts}; poe.normalize makes the balance mean what it says"
            ] = None
    return list(notes)


_OR, _AND, _MINUS, _SLASH, _TILDE, _POWER, _ATOM = range(7)  # Python's precedence, loosest first


def _wrap(text: tuple[str, int], least: int) -> str:
    return text[0] if text[1] >= least else f"({text[0]})"


def bracketed(energy: Energy, least: int = _AND) -> str:
    """The text of an energy as it stands in a product, or with another least precedence, in brackets where it must."""
    return _wrap(energy._format({id(thing): text for text, thing in names(energy).items()}), least)


def _child(energy: Energy, label: dict[int, str]) -> tuple[str, int]:
    return (label[id(energy)], _ATOM) if id(energy) in label else energy._format(label)


def _number(value: float) -> str:
    """The shortest text that Python reads back as the same float: 2, 0.5, (1/3)."""
    text = repr(int(value)) if value == int(value) and abs(value) < 1e15 else repr(value)
    if len(text) > 6:
        fraction = Fraction(value).limit_denominator(99)
        if fraction.numerator / fraction.denominator == value:
            return f"({fraction.numerator}/{fraction.denominator})"
    return text


def _function_name(function: Any) -> str:
    if isinstance(function, BuiltinFunctionType) and getattr(torch, function.__name__, None) is function:
        return f"torch.{function.__name__}"
    own = function.name if isinstance(function, Fill) else None
    named = isinstance(function, (FunctionType, BuiltinFunctionType, MethodType))
    text = own or (function.__name__ if named else type(function).__name__.lower())
    return text if text.isidentifier() else "f"


def _stated_shape(function: Any) -> torch.Size | None:
    shape = getattr(function, "event_shape", None)
    return None if shape is None else torch.Size(shape)


def _all(answers: Iterable[bool | None]) -> bool | None:
    answers = list(answers)
    return False if False in answers else None if None in answers else True


def _measure(support: sets.Constraint) -> str | None:
    """What a density on this support is a density of; None where nobody can tell, as on the preimage under a map."""
    if isinstance(support, sets.Box):
        return _POINTS if support.integer else _VOLUME
    if isinstance(support, (sets.Intersection, sets.Union)):
        found = {_measure(part) for part in support.parts}
        if None in found:
            return None
        return next(measure for measure in (_POINTS, _SIMPLEX, _VOLUME) if measure in found)  # the thinnest
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    return {id(constraints.simplex): _SIMPLEX, id(constraints.one_hot): _POINTS}.get(id(support))


def _one_measure(energies: Sequence[Energy], sign: str) -> None:
    """Raises where densities that are added or compared are known to be of different measures: their ratio means nothing."""
    first = energies[0]
    for energy in energies[1:]:
        known, other = _measure(first.support), _measure(energy.support)
        if known is None:
            first = energy
        elif other is not None and other != known:
            raise ValueError(
                f"`{sign}` compares densities of one measure: {first} on {first.support!r} has {known}, and {energy} on "
                f"{energy.support!r} has {other}; give both one support, or multiply with `&`"
            )


def _known_log_z(energy: Energy) -> Estimate:
    if energy.log_z is None:
        raise ValueError(
            f"weights need the log Z of every part, and that of {energy} is unknown: estimate it with poe.normalize({energy}), "
            "or write `|` for the raw sum"
        )
    return energy.log_z


def _checked_power(power: Any, energy: Energy) -> float:
    written = f"({energy}) ** {_shown(power)}"
    if isinstance(power, Tensor):
        if power.requires_grad:
            raise TypeError(f"{written}: a power that is learned is an nn.Parameter, and any other one is a plain number")
        if power.ndim == 0:
            power = power.item()
    if isinstance(power, bool) or not isinstance(power, Real):
        raise TypeError(f"{written}: a power is a number or an nn.Parameter; for a product of energies write `a & b`")
    try:
        number = float(power)
    except OverflowError:  # a whole number of hundreds of digits
        number = math.inf
    if not math.isfinite(number):
        raise ValueError(f"{written}: a power must be finite")
    return number


def _check_parameter(power: nn.Parameter, energy: Energy) -> None:
    """Raises where a learnable power is not one floating number."""
    if power.numel() != 1:
        raise ValueError(
            f"({energy}) ** Parameter of shape {tuple(power.shape)}: a power is one number, nn.Parameter(torch.tensor(1.0)); "
            "poe.product(energies, powers) takes one for each energy"
        )
    if not power.is_floating_point():
        raise TypeError(
            f"({energy}) ** Parameter of {power.dtype}: only a floating power can learn; write "
            f"nn.Parameter(torch.tensor({power.item()}.0)), or the number {power.item()}"
            if not power.is_complex() and power.dtype != torch.bool
            else f"({energy}) ** Parameter of {power.dtype}: a learnable power is one real number, nn.Parameter(torch.tensor(1.0))"
        )


def _shown(thing: Any) -> str:
    """What the user wrote, as it reads in an expression."""
    return str(thing) if isinstance(thing, Energy) else repr(thing)


def _shape(event_shape: Sequence[int]) -> torch.Size:
    if isinstance(event_shape, int):
        raise TypeError(f"an event shape is a tuple of sizes, not {event_shape!r}: write ({event_shape},)")
    return torch.Size(event_shape)


def _energy(other: Any, left: Energy, sign: str) -> Energy:
    if isinstance(other, Energy):
        return other
    number = sign == "/" and isinstance(other, Real) and other
    hint = f"{bracketed(left, _ATOM)} ** {1 / float(other):g}" if number else "poe.as_energy(it)"
    raise TypeError(f"`{sign}` composes energies, and its right side is a {type(other).__name__}: did you mean {hint}?")


def _energies(energies: Iterable[Energy], function: str, second: Any = None) -> list[Energy]:
    """The energies as a list, checked to live on one event. `second` is what was given after them, which may be a forgotten one."""
    if isinstance(energies, Energy) or isinstance(second, Energy):
        listed = [*([energies] if isinstance(energies, Energy) else energies), *([second] if isinstance(second, Energy) else [])]
        inside = f"[{', '.join(map(_shown, listed))}]" + (", prior=..." if function == "combine" else "")
        raise TypeError(f"poe.{function} takes a list of energies: write poe.{function}({inside})")
    energies = list(energies)
    if not energies:
        raise ValueError(f"poe.{function} needs at least one energy")
    for energy in energies:
        if not isinstance(energy, Energy):
            raise TypeError(f"poe.{function} takes energies, not {type(energy).__name__}: poe.as_energy(model) wraps a model")
    first = energies[0]
    for energy in energies[1:]:
        if energy.event_shape != first.event_shape:
            raise ValueError(
                f"{first} has event shape {tuple(first.event_shape)} and {energy} has {tuple(energy.event_shape)}: "
                "factors live on the same event; poe.on(energy, index, event_shape) places one on part of a larger event, and "
                "energy @ f changes its variables"
            )
    said = [(energy, energy.vocabulary) for energy in energies if energy.vocabulary is not None]
    for energy, vocabulary in said[1:]:
        if vocabulary != said[0][1]:
            raise ValueError(
                f"{said[0][0]} is over {said[0][1]} and {energy} over {vocabulary}: one number means different things to them; factors "
                "share one vocabulary"
            )
    return energies


def _rules() -> Any:
    from poe import rules  # rules build on energies; only the two facts log_z and proper ask back

    return rules


def _plan_line(energy: Energy) -> str:
    from poe.outline import drawing  # the plan builds on everything; a repr only quotes its first line

    return drawing(energy)[1].splitlines()[0]
