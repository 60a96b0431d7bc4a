"""An expression as the sum of its branches: what `|` adds up, distributed over all that is
multiplied with it; and densities whose draws reach each of them."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import singledispatch
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Transform

from poe.algebra import support as sets
from poe.algebra.capabilities import Proposes, Samples, as_a
from poe.algebra.contrast import Contrast
from poe.algebra.energy import Energy, Estimate
from poe.algebra.mixture import Mixture, mixture
from poe.algebra.product import Product, Term, flat, product
from poe.algebra.pullback import Pullback, is_on, pullback
from poe.algebra.shifted import Shifted
from poe.algebra.simplification import simplify

MAX_BRANCHES = 64  # that are told apart; of more, each gets about one start
Branches = list[tuple[float, Energy]]  # log weights in nats, and what they multiply


class TooMany(Exception):
    """The expression has more branches than `MAX_BRANCHES`."""


def branches(energy: Energy) -> Branches | None:
    """(log w_k, E_k) with exp(-E(x)) = Σ_k w_k exp(-E_k(x)) at each x: the expression distributed
    over its `|`, through products, shifts, `@`, and the wanted side of `-`; None where there are
    more than `MAX_BRANCHES`.

    A whole positive power is expanded by the multinomial theorem,
    (Σ w_i p_i)^n = Σ_{|c| = n} n! / Π c_i! · Π (w_i p_i)^{c_i}; other powers stay as factors of
    each branch. Of `a - b`, whose density is p_a (p_a / (p_a + p_b))^s, a branch p_k of a becomes
    p_k · (a - b) / a. Branches whose supports show that they have no mass are left out; an expert
    of several branches is the same object in each.
    """
    try:
        found = _opened(energy)
    except TooMany:
        return None
    return [(w, e) for w, e in found if not sets.is_empty(e.support)]


@singledispatch
def _opened(energy: Energy) -> Branches:
    """The branches of a node. Raises TooMany."""
    return [(0.0, energy)]


@_opened.register
def _(energy: Mixture) -> Branches:
    return _limited([(w + weight, e) for w, part in energy.weighted for weight, e in _opened(part)])


@_opened.register
def _(energy: Shifted) -> Branches:
    found = _opened(energy.energy)
    if len(found) == 1:
        return [(0.0, energy)]
    return [(weight - energy.offset, e) for weight, e in found]


@_opened.register
def _(energy: Pullback) -> Branches:
    found = _opened(energy.energy)
    if len(found) == 1:
        return [(0.0, energy)]
    return [(w, pullback(e, energy.function, energy.event_shape)) for w, e in found]


@_opened.register
def _(energy: Contrast) -> Branches:
    found = _opened(energy.wanted)
    if len(found) == 1:
        return [(0.0, energy)]
    return [(w, product([e, energy, energy.wanted], [1.0, 1.0, -1.0])) for w, e in found]


@_opened.register
def _(energy: Product) -> Branches:
    divided = {id(term.energy) for term in energy.terms if term.power < 0}
    choices = [
        [(0.0, [term])] if _is_opened(term.energy, divided) else _powers(term)
        for term in energy.terms
    ]
    if math.prod(map(len, choices)) > MAX_BRANCHES:
        raise TooMany
    if all(len(found) == 1 for found in choices):
        return [(0.0, energy)]
    return [
        (sum(w for w, _ in chosen), flat([term for _, terms in chosen for term in terms]))
        for chosen in itertools.product(*choices)
    ]


def _is_opened(energy: Energy, divided: set[int]) -> bool:
    """Whether a factor is what a branch of `a - b` keeps of it: (a - b) / a."""
    return isinstance(energy, Contrast) and id(energy.wanted) in divided


def _powers(term: Term) -> list[tuple[float, list[Term]]]:
    """What one factor of a product adds to each branch: log weights, and the factors of each."""
    power = term.coefficient
    if term.parameter is not None or power != round(power) or not 0 < power <= MAX_BRANCHES:
        return [(0.0, [term])]
    found, n = _opened(term.energy), int(power)
    if len(found) == 1:
        return [(0.0, [term])]
    if math.comb(len(found) + n - 1, n) > MAX_BRANCHES:
        raise TooMany
    opened = []
    for chosen in itertools.combinations_with_replacement(range(len(found)), n):
        counts = Counter(chosen)
        weight = math.lgamma(n + 1) + sum(
            k * found[i][0] - math.lgamma(k + 1) for i, k in counts.items()
        )
        opened.append((weight, [Term(found[i][1], float(k)) for i, k in counts.items()]))
    return opened


def _limited(found: Branches) -> Branches:
    if len(found) > MAX_BRANCHES:
        raise TooMany
    return found


# ---- densities that draw


def scouts(energy: Energy, closed: Energy | None = None) -> list[Energy]:
    """Densities that draw, in the variables of x, and whose draws show where each branch may have
    its mass: the closed form of the branch, else its samplable factors, through `@ f` where f can
    be inverted, and factors of `on` that fill the event together.

    Of up to `MAX_BRANCHES` branches each stands for itself; beyond, the samplable parts of all are
    one mixture with equal weights. No draw need be near the mass of a branch: where a narrow part
    is seen through a map without inverse, draws come from the other factors. `closed` is the
    closed form of the energy, where it is known.
    """
    known = branches(energy)
    if known is not None and len(known) == 1 and closed is not None:
        return [closed] if closed.can(Samples) else _reaching(energy)
    each = _reaching(energy) if known is None else [e for _, b in known for e in _of_branch(b)]
    found = [e for e in {id(e): e for e in each}.values() if e.event_shape == energy.event_shape]
    if len(found) <= MAX_BRANCHES or known is not None:
        return found
    normalised = [e for e in found if e.log_z is not None]
    others = [e for e in found if e.log_z is None][:MAX_BRANCHES]
    return [mixture(normalised, [1.0] * len(normalised)), *others] if normalised else others


def _of_branch(energy: Energy) -> list[Energy]:
    closed = simplify(energy) if energy.parts else energy
    return [closed] if closed.can(Samples) else _reaching(energy)


@singledispatch
def _reaching(energy: Energy) -> list[Energy]:
    """The samplable parts of an expression, as densities over its event."""
    if energy.can(Samples):
        return [energy]
    proposing = as_a(energy, Proposes)
    proposal = None if proposing is None else proposing.proposal()
    return [] if proposal is None else [proposal]


@_reaching.register
def _(energy: Product) -> list[Energy]:
    wanted = [term.energy for term in energy.terms if term.power > 0]
    return [*_of_all(wanted), *_tiled(energy, wanted)]


@_reaching.register(Mixture)
@_reaching.register(Shifted)
def _(energy: Energy) -> list[Energy]:
    return _of_all(energy.parts)


@_reaching.register
def _(energy: Contrast) -> list[Energy]:
    return _reaching(energy.wanted)


@_reaching.register
def _(energy: Pullback) -> list[Energy]:
    if is_on(energy):
        return _tiled(energy, [energy])
    if not isinstance(energy.function, Transform) or not energy.function.bijective:
        return []
    return [Inverted(e, energy.function) for e in _reaching(energy.energy)]


def _of_all(parts: Iterable[Energy]) -> list[Energy]:
    return [start for part in parts for start in _reaching(part)]


def _tiled(energy: Energy, factors: Sequence[Energy]) -> list[Energy]:
    """Factors of `on` that draw, on disjoint parts that fill the event together: the first of each
    part, and where they have several starts, one density for each."""
    free, tiles = set(range(energy.event_shape.numel())), []
    for factor in factors:
        if not is_on(factor) or not (index := factor.function.index.tolist()):
            continue
        if set(index) <= free and (starts := _of_branch(factor.energy)):
            free -= set(index)
            tiles.append([(factor.function.index, start) for start in starts])
    if free or not tiles:
        return []
    rounds = max(map(len, tiles))
    chosen = [[tile[k % len(tile)] for tile in tiles] for k in range(rounds)]
    return [Tiled(energy.event_shape, each) for each in chosen]


class Inverted(Energy):
    """The law of x = f⁻¹(y), y drawn from an energy: E(x) = E_y(f(x)) - log|det df/dx|."""

    def __init__(self, energy: Energy, function: Any) -> None:
        super().__init__(function.inverse_shape(energy.event_shape))
        self.energy, self.function = energy, function

    def forward(self, x: Tensor) -> Tensor:  # (*batch, *event) -> (*batch)
        y, batch = self.function(x), x.ndim - len(self.event_shape)
        log_det = self.function.log_abs_det_jacobian(x, y)
        axes = tuple(range(batch, log_det.ndim))
        return self.energy(y) - (log_det.sum(axes) if axes else log_det)

    @property
    def log_z(self) -> Estimate | None:
        return self.energy.log_z

    @property
    def proper(self) -> bool | None:
        return self.energy.proper

    def sample(
        self, n: int | tuple[int, ...], *, generator: torch.Generator | None = None
    ) -> Tensor:
        """Exact draws of x."""
        source = as_a(self.energy, Samples)
        assert source is not None
        return self.function.inv(source.sample(n, generator=generator))


class Tiled(Energy):
    """Independent parts of an event, each drawn by an energy of its own: Σ E_i(x[index_i])."""

    def __init__(self, event_shape: Sequence[int], tiles: Sequence[tuple[Tensor, Energy]]) -> None:
        super().__init__(event_shape)
        self.indices = [index for index, _ in tiles]
        self.energies = torch.nn.ModuleList([energy for _, energy in tiles])

    @property
    def parts(self) -> tuple[Energy, ...]:
        return tuple(self.energies)  # type: ignore[return-value]

    def forward(self, x: Tensor) -> Tensor:  # (*batch, *event) -> (*batch)
        batch = x.shape[: x.ndim - len(self.event_shape)]
        flat_x = x.reshape(*batch, -1)
        total = x.new_zeros(batch)
        for index, part in zip(self.indices, self.parts, strict=True):
            total = total + part(flat_x[..., index].reshape(*batch, *part.event_shape))
        return total

    @property
    def log_z(self) -> Estimate | None:
        known = [part.log_z for part in self.parts]
        found = [z for z in known if z is not None]
        if len(found) < len(known):
            return None
        error = math.hypot(*(z.standard_error for z in found))
        return Estimate(math.fsum(z.value for z in found), error)

    @property
    def proper(self) -> bool | None:
        return sets.every(part.proper for part in self.parts)

    def sample(
        self, n: int | tuple[int, ...], *, generator: torch.Generator | None = None
    ) -> Tensor:
        """Exact draws, the parts independent of each other."""
        shape = torch.Size([n] if isinstance(n, int) else n)
        drawn = [part.sample(shape, generator=generator) for part in self.parts]  # type: ignore[attr-defined]
        x = drawn[0].new_empty((*shape, self.event_shape.numel()))
        for index, values in zip(self.indices, drawn, strict=True):
            x[..., index] = values.reshape(*shape, -1).to(x)
        return x.reshape(shape + self.event_shape)
