"""Where a density may be non-zero: constraints of torch.distributions, with the few set operations
a composition needs.

Every support here acts on whole events: its `event_dim` equals the number of event axes. Products
of intervals are kept as `Box`, whose intersections and inclusions are exact; anything else is
combined lazily, and "unknown" is an answer (`None`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor
from torch.distributions import biject_to, constraints, transform_to

Constraint = constraints.Constraint


# measures, as in messages
POINTS, SIMPLEX = "sums over points", "integrals over the simplex"
VOLUME = "integrals over volume"
MAX_PIECES = 64  # unions of more boxes are intersected lazily


_FROM_INTEGER = type(constraints.nonnegative_integer)
INTERVALS = (
    constraints.interval,
    constraints.half_open_interval,
    constraints.integer_interval,
    constraints.greater_than,
    constraints.greater_than_eq,
    constraints.less_than,
    _FROM_INTEGER,
)


class Box(Constraint):
    """A product of intervals, low <= x <= high coordinate by coordinate; infinite ends allowed.

    Arguments:
        low, high: tensors of the event's shape (units of x). Ends belong to the box, and have
            measure zero.
        integer: whether only whole numbers belong to it.
        step: of an integer box, the distance between neighbouring points, low, low + step, ...,
            high; 2 for spins {-1, 1}.

    `is_real`: it is all of R^n. `is_bounded`: both ends of every interval are finite. `is_empty`:
    it has no volume (continuous) or no point (integer).
    """

    def __init__(self, low: Tensor, high: Tensor, *, integer: bool = False, step: int = 1) -> None:
        self.low, self.high = torch.broadcast_tensors(low.detach(), high.detach())
        self.integer, self.step = integer, step
        self.event_dim = self.low.ndim  # type: ignore[assignment]
        self.is_discrete = integer  # type: ignore[assignment]
        # two points a coordinate
        self._two = integer and bool((self.high - self.low == step).all())
        self._ends: dict[tuple[torch.device, torch.dtype], tuple[Tensor, Tensor]] = {}
        low, high = self.low, self.high
        self.is_real = not integer and bool((low == -math.inf).all() and (high == math.inf).all())
        self.is_bounded = bool(low.isfinite().all() and high.isfinite().all())
        self.is_empty = bool((low.ceil() > high.floor()).any() if integer else (low >= high).any())

    def ends(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """(low, high) on the device and, for floats, in the precision of `like`."""
        dtype = like.dtype if like.is_floating_point() else torch.get_default_dtype()
        key = (like.device, dtype)
        if key not in self._ends:
            self._ends[key] = (self.low.to(*key), self.high.to(*key))
        return self._ends[key]

    def check(self, value: Tensor) -> Tensor:
        low, high = self.ends(value)
        if self._two:
            return _all_event((value == low) | (value == high), self.event_dim)
        inside = (value >= low) & (value <= high)
        if self.step > 1:
            inside = inside & ((value - low) % self.step == 0)
        elif self.integer and value.is_floating_point():
            inside = inside & (value == value.floor())
        return _all_event(inside, self.event_dim)

    @property
    def event_shape(self) -> torch.Size:
        return self.low.shape

    def __repr__(self) -> str:
        shape = tuple(self.event_shape)
        if self.is_real:
            return f"real{shape}"
        lows, highs = self.low.unique(), self.high.unique()
        if len(lows) == len(highs) == 1:
            if self.step > 1:
                points = torch.arange(int(lows.item()), int(highs.item()) + 1, self.step).tolist()
                return f"{{{', '.join(map(str, points))}}}{shape}"
            kind = "integers" if self.integer else "interval"
            return f"{kind}[{lows.item():g}, {highs.item():g}]{shape}"
        return f"box{shape}"


class _Joined(Constraint):
    """Several supports; `decide` says of how many parts a fact must hold, `any` or `all`."""

    sign: str
    decide: Callable[[Iterable[bool]], bool]

    def __init__(self, parts: Sequence[Constraint]) -> None:
        self.parts = tuple(parts)
        self.event_dim = parts[0].event_dim  # type: ignore[assignment]
        self.is_discrete = self.decide(map(is_discrete, parts))  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f" {self.sign} ".join(map(repr, self.parts))


class Intersection(_Joined):
    """The points that lie in every part."""

    sign, decide = "∩", any

    def check(self, value: Tensor) -> Tensor:
        return torch.stack([contains(part, value) for part in self.parts]).all(0)


class Union(_Joined):
    """The points that lie in at least one part."""

    sign, decide = "∪", all

    def check(self, value: Tensor) -> Tensor:
        return torch.stack([contains(part, value) for part in self.parts]).any(0)


def real(event_shape: Sequence[int]) -> Box:
    """All of R^n, as a support of events of this shape."""
    return Box(torch.full(tuple(event_shape), -math.inf), torch.full(tuple(event_shape), math.inf))


def box(low: float | Tensor, high: float | Tensor, event_shape: Sequence[int] | None = None) -> Box:
    """The box [low, high]; numbers are spread over `event_shape`."""
    low, high = _tensor(low), _tensor(high)
    if event_shape is not None:
        low, high = low.expand(tuple(event_shape)), high.expand(tuple(event_shape))
    return Box(low, high)


def canonical(support: Constraint | None, event_shape: Sequence[int]) -> Constraint:
    """`support` as a constraint on events of `event_shape`: products of intervals become a
    `Box`."""
    shape = tuple(event_shape)
    if support is None:
        return real(shape)
    if isinstance(support, Box):
        same = support.event_shape == torch.Size(shape)
        return support if same else box(support.low, support.high, shape)
    if isinstance(support, _Joined):
        return support
    ends = _interval(_base(support))
    if ends is not None:
        low, high, integer = ends
        return Box(low.expand(shape), high.expand(shape), integer=integer)
    missing = len(shape) - support.event_dim
    return support if missing <= 0 else constraints.independent(support, missing)


def _interval(base: Constraint) -> tuple[Tensor, Tensor, bool] | None:
    """(low, high, whole numbers only) of torch's interval-like constraints; None for any other."""
    infinity = torch.tensor(math.inf)
    if base in (constraints.real, constraints.real_vector):
        return -infinity, infinity, False
    if base is constraints.boolean:
        return torch.tensor(0.0), torch.tensor(1.0), True
    if not isinstance(base, INTERVALS):
        return None
    integer = isinstance(base, (constraints.integer_interval, _FROM_INTEGER))
    low = _tensor(getattr(base, "lower_bound", -infinity))
    return low, _tensor(getattr(base, "upper_bound", infinity)), integer


def _tensor(value: float | Tensor) -> Tensor:
    return torch.as_tensor(value, dtype=torch.float64)


def _all_event(inside: Tensor, event_dim: int) -> Tensor:
    return inside if event_dim == 0 else inside.flatten(inside.ndim - event_dim).all(-1)


def is_real(support: Constraint) -> bool:
    """Whether the support is known to be all of R^n, so that no point needs a check."""
    return isinstance(support, Box) and support.is_real


def is_discrete(support: Constraint) -> bool:
    """Whether the support is a set of isolated points."""
    return bool(support.is_discrete)


def is_bounded(support: Constraint) -> bool:
    """Whether the support is known to have finite volume (or finitely many points)."""
    if isinstance(support, Box):
        return support.is_bounded
    if isinstance(support, Intersection):
        return any(map(is_bounded, support.parts))
    if isinstance(support, Union):
        return all(map(is_bounded, support.parts))
    return _base(support) in (constraints.simplex, constraints.one_hot)


def is_infinite(support: Constraint) -> bool:
    """Whether the support is known to have infinite volume (or infinitely many points)."""
    if isinstance(support, Union):
        return any(map(is_infinite, support.parts))
    return isinstance(support, Box) and not support.is_bounded and not support.is_empty


def is_empty(support: Constraint) -> bool:
    """Whether the support is known to have no volume."""
    if isinstance(support, Box):
        return support.is_empty
    if isinstance(support, Intersection):
        return any(map(is_empty, support.parts))
    return isinstance(support, Union) and all(map(is_empty, support.parts))


def _base(support: Constraint) -> Constraint:
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    return support


def contains(support: Constraint, x: Tensor) -> Tensor:
    # (*batch, *event) -> (*batch) bool
    """Which points of a batch lie in the support; a NaN lies in none."""
    if is_real(support):
        return _all_event(x == x, support.event_dim)
    if x.numel() == 0:  # some of torch's checks reduce over an empty axis
        return x.new_ones(x.shape[: x.ndim - support.event_dim], dtype=torch.bool)
    return support.check(x)


def covers(outer: Constraint, inner: Constraint) -> bool | None:
    """Whether `outer` contains `inner`: True, False, or None where it is unknown."""
    if outer is inner or is_real(outer):
        return True
    if isinstance(inner, Union):
        return every(covers(outer, part) for part in inner.parts)
    if isinstance(outer, Intersection):
        return every(covers(part, inner) for part in outer.parts)
    if isinstance(inner, Intersection) and any(covers(outer, part) for part in inner.parts):
        return True
    if isinstance(outer, Union) and any(covers(part, inner) for part in outer.parts):
        return True
    if isinstance(outer, Box) and isinstance(inner, Box):
        if outer.integer and not inner.integer:
            return False
        if outer.step > 1 and (
            inner.step % outer.step
            or bool(((inner.low - outer.low.to(inner.low)) % outer.step != 0).any())
        ):
            return None
        return bool((outer.low <= inner.low).all() and (outer.high >= inner.high).all())
    unit = _base(inner) in (constraints.simplex, constraints.one_hot)
    if unit and isinstance(outer, Box) and not outer.integer:
        return bool((outer.low <= 0).all() and (outer.high >= 1).all()) or None
    return True if _base(outer) is _base(inner) and outer.event_dim == inner.event_dim else None


def every(answers: Iterable[bool | None]) -> bool | None:
    """Whether all answers are yes; None where some are unknown and none is no."""
    answers = list(answers)
    return False if False in answers else None if None in answers else True


def intersect(supports: Sequence[Constraint]) -> Constraint:
    """The intersection; one `Box` where every part is one, and a union of boxes where the parts are
    such."""
    kept = _drop_covered(supports, wider=True)
    if len(kept) == 1:
        return kept[0]
    unions = [part for part in kept if isinstance(part, Union) and _boxes(part.parts)]
    if unions and len(unions[0].parts) <= MAX_PIECES:
        rest = [part for part in kept if part is not unions[0]]
        return union([intersect([piece, *rest]) for piece in unions[0].parts])
    boxes = _boxes(kept)
    if not boxes or any(part.step > 1 for part in boxes):
        return Intersection(kept)
    low, high = boxes[0].low, boxes[0].high
    for part in boxes[1:]:
        low, high = torch.maximum(low, part.low.to(low)), torch.minimum(high, part.high.to(high))
    return Box(low, high, integer=any(part.integer for part in boxes))


def _boxes(supports: Sequence[Constraint]) -> list[Box]:
    """The supports where each is a box; else none."""
    boxes = [part for part in supports if isinstance(part, Box)]
    return boxes if len(boxes) == len(supports) else []


def union(supports: Sequence[Constraint]) -> Constraint:
    """The union; an empty part, and one that another covers, is dropped."""
    some = [part for part in supports if not is_empty(part)] or supports[:1]
    kept = _drop_covered(some, wider=False)
    return kept[0] if len(kept) == 1 else Union(kept)


def _drop_covered(supports: Sequence[Constraint], *, wider: bool) -> list[Constraint]:
    """Without the parts that another part makes redundant (the wider ones of an intersection, the
    narrower of a union)."""
    kept: list[Constraint] = []
    for new in supports:
        redundant = [covers(new, old) if wider else covers(old, new) for old in kept]
        if True not in redundant:
            kept = [old for old in kept if not (covers(old, new) if wider else covers(new, old))]
            kept.append(new)
    return kept


def inside_point(support: Constraint, like: Tensor, event_shape: Sequence[int]) -> Tensor | None:
    """Some interior point of the support, (*event); None where none is known."""
    if isinstance(support, Box):
        low, high = support.ends(like)
        centre = torch.where(
            low.isfinite() & high.isfinite(),
            (low + high) / 2,
            torch.where(low.isfinite(), low + 1, torch.where(high.isfinite(), high - 1, 0)),
        )
        return (low if support.step > 1 else centre.floor() if support.integer else centre).to(like)
    if isinstance(support, _Joined):
        for part in support.parts:
            point = inside_point(part, like, event_shape)
            if point is not None and bool(contains(support, point)):
                return point
        return None
    if _base(support) is constraints.simplex:
        return like.new_full(tuple(event_shape), 1 / event_shape[-1])
    if _base(support) is constraints.one_hot:
        return torch.eye(event_shape[-1]).to(like)[0].expand(tuple(event_shape))
    for registry in (biject_to, transform_to):
        try:
            transform = registry(support)
        except NotImplementedError:
            continue
        return transform(like.new_zeros(transform.inverse_shape(torch.Size(event_shape))))
    return None  # torch knows no map onto it: the caller then evaluates as it is


def measure(support: Constraint) -> str | None:
    """What a density on this support is a density of; None where it is unknown, as on the
    preimage under a map."""
    if isinstance(support, Box):
        return POINTS if support.integer else VOLUME
    if isinstance(support, _Joined):
        found = {measure(part) for part in support.parts}
        if None in found:
            return None
        return next(known for known in (POINTS, SIMPLEX, VOLUME) if known in found)  # the thinnest
    return {id(constraints.simplex): SIMPLEX, id(constraints.one_hot): POINTS}.get(
        id(_base(support))
    )


def shape_of(event_shape: Sequence[int]) -> torch.Size:
    """The event shape as a `torch.Size`. Raises TypeError for a number."""
    if isinstance(event_shape, int):
        raise TypeError(
            f"an event shape is a tuple of sizes, not {event_shape!r}: write ({event_shape},)"
        )
    return torch.Size(event_shape)
