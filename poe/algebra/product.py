"""Products of powers: `&`, `**`, `/` and `~` are one node, a flat sum Σ powerᵢ·Eᵢ merged by
identity; and their closed forms."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from poe.algebra import support as sets
from poe.algebra.checks import check_parameter, checked_power, energies_of, right_side
from poe.algebra.closed_forms import TABLE, Empty, Factor, Improper, Rule, count
from poe.algebra.combination import carry
from poe.algebra.energy import Energy, Estimate, together, together_with_gradients
from poe.algebra.mass import dominating, falls_off, is_proper, shaping
from poe.algebra.mixture import Mixture, mixture
from poe.algebra.operators import BUILDERS, Power
from poe.algebra.shifted import Shifted, shift
from poe.algebra.term import Same, Term, add, summed
from poe.algebra.text import AND, POWER, SLASH, child, number, wrap

# numbers in the tensors of a product that are compared before a cached closed form is used again
MOST_COMPARED = 4096
MOST_PARTS = 4096  # a mixture is distributed over a product only up to this many parts


class Product(Energy):
    """Π p_i^{w_i}: the energy Σ wᵢ·Eᵢ(x), flat, each expert evaluated once. Built by `product`,
    `&`, `**`, `/` and `~`.

    A power is a float, or a float times an `nn.Parameter` that is learnable. The support is the
    intersection over all factors, whatever the sign of their powers; a power of 0 keeps the support
    and is not evaluated. Where some factor has energy +inf the product has too (0/0 counts as 0).
    """

    def __init__(self, terms: Sequence[Term]) -> None:
        super().__init__(
            terms[0].energy.event_shape, support=sets.intersect([t.energy.support for t in terms])
        )
        self.energies = nn.ModuleList([term.energy for term in terms])
        self.coefficients = tuple(term.coefficient for term in terms)
        self.learnable = nn.ParameterList(
            [term.parameter for term in terms if term.parameter is not None]
        )
        slots = iter(range(len(self.learnable)))
        self._slots = tuple(None if term.parameter is None else next(slots) for term in terms)
        self._known: tuple[list[Any], list[Tensor], Energy] | None = None

    @property
    def terms(self) -> tuple[Term, ...]:
        """(energy, coefficient, parameter or None) of each factor; the power is coefficient times
        parameter."""
        parameters = (None if slot is None else self.learnable[slot] for slot in self._slots)
        return tuple(map(Term, self.parts, self.coefficients, parameters))

    @property
    def powers(self) -> tuple[float, ...]:
        """The powers as numbers."""
        return tuple(
            term.coefficient * (1.0 if term.parameter is None else term.parameter.item())
            for term in self.terms
        )

    @property
    def parts(self) -> tuple[Energy, ...]:
        return tuple(self.energies)  # type: ignore[return-value]

    @property
    def roles(self) -> list[str]:
        return ["" if power == 1 else f"** {number(power)}" for power in self.powers]

    def rebuild(self, parts: Sequence[Energy]) -> Energy:
        return flat(
            [
                Term(part, t.coefficient, t.parameter)
                for part, t in zip(parts, self.terms, strict=True)
            ]
        )

    def forward(self, x: Tensor) -> Tensor:  # (*batch, *event) -> (*batch)
        total = x.new_zeros((), dtype=x.dtype if x.is_floating_point() else self.dtype)
        for term, energy in zip(
            self._evaluated, together([term.energy for term in self._evaluated], x), strict=True
        ):
            total = add(total, term.weigh(energy))
        if self._evaluated or not x.is_floating_point():
            return total.expand(self._batch_shape(x))
        none = torch.where(
            torch.zeros((), dtype=torch.bool, device=x.device), x, 0
        )  # 0 at each x, with a graph of slope 0
        return none.reshape(*self._batch_shape(x), self.event_shape.numel()).sum(-1)

    def _value_and_grad(self, x: Tensor) -> tuple[Tensor, Tensor]:
        total, gradient = x.new_zeros(self._batch_shape(x)), torch.zeros_like(x)
        known = together_with_gradients([term.energy for term in self._evaluated], x)
        for term, (energy, slope) in zip(
            self._evaluated, known, strict=True
        ):  # one expert's graph alive at a time
            total = add(total, term.weigh(energy).detach())
            gradient = gradient.add_(slope.to(gradient), alpha=term.power)
        return total, gradient

    @property
    def _evaluated(self) -> list[Term]:
        return [term for term in self.terms if term.coefficient]

    @property
    def log_z(self) -> Estimate | None:
        return None if isinstance(self._closed, Product) else self._closed.log_z

    @property
    def _closed(self) -> Energy:
        """The simplified product, worked out again only after a tensor of the expression has
        changed, or the rules.

        A change in place through `.data` leaves no trace in torch's version counters, so the
        numbers themselves are compared where there are at most `MOST_COMPARED`.
        """
        tensors = [*self.parameters(), *self.buffers()]
        version: list[Any] = [count()]
        for tensor in tensors:
            version += [
                Same(tensor),
                tensor._version,
                tensor.data_ptr(),
                tensor.dtype,
                tensor.device,
            ]
        compared = tensors if sum(tensor.numel() for tensor in tensors) <= MOST_COMPARED else []
        if (
            self._known is None
            or self._known[0] != version
            or not all(map(torch.equal, self._known[1], compared))
        ):
            self._known = version, [tensor.detach().clone() for tensor in compared], simplify(self)
        return self._known[2]

    @property
    def proper(self) -> bool | None:
        """What a closed form says, or else what `poe.algebra.mass` proves of its factors."""
        if sets.is_empty(self.support):
            return False
        if self.growth:
            return self.growth > 0
        if falls_off(self):
            return True
        if not isinstance(self._closed, Product):
            return self._closed.proper
        if is_improper(self):
            return False
        if any(term.parameter is not None for term in self.terms):
            return super().proper
        known = is_proper(self)
        return super().proper if known is None else known

    @property
    def flat(self) -> bool | None:
        return (
            True
            if all(term.energy.flat or not term.coefficient for term in self.terms)
            else super().flat
        )

    @property
    def growth(self) -> float | None:
        known = [term.energy.growth for term in self.terms]
        return (
            None
            if None in known
            else math.fsum(p * g for p, g in zip(self.powers, known, strict=True))
        )  # type: ignore[operator]

    @property
    def bounded(self) -> bool | None:
        if self.growth:
            return self.growth > 0
        if falls_off(self):
            return True
        if all(t.parameter is None for t in self.terms):
            known = dominating(shaping(self))
            if all(power > 0 and e.bounded for power, e in known):
                return True
        return super().bounded if isinstance(self._closed, Product) else self._closed.bounded

    def _format(self, label: dict[int, str]) -> tuple[str, int]:
        chunks: list[tuple[str, int]] = []
        for term in self.terms:
            negative = term.coefficient < 0
            if negative and chunks:
                left, right = (
                    wrap(chunks[-1], SLASH),
                    wrap(term.format(label, divided=True), SLASH + 1),
                )
                chunks[-1] = (f"{left} / {right}", SLASH)
            else:
                chunks.append(term.format(label))
        if len(chunks) == 1:
            return chunks[0]
        joined = " & ".join(wrap(chunk, AND) for chunk in chunks)
        shared = {term.coefficient for term in self.terms}
        if len(shared) == 1 and not self.learnable and joined.count("(") > 1:
            power = shared.pop()
            factored = (
                f"({' & '.join(wrap(child(t.energy, label), AND) for t in self.terms)}) ** "
                f"{number(power)}"
            )
            if factored.count("(") <= joined.count("("):
                return factored, POWER
        return joined, AND


def product(energies: Sequence[Energy], powers: Power | Sequence[Power] | None = None) -> Energy:
    """Π p_i^{w_i}. `powers`: one for all, or one each; 1 by default.

    Flat and merged by identity, so `product([a, a])` is `a ** 2` with one evaluation, and a single
    factor of power 1 is itself. An `nn.Parameter` as a power stays its own, learnable term.
    """
    energies = energies_of(energies, "product", powers)
    if powers is None:
        powers = 1.0
    if (
        not isinstance(powers, Iterable)
        or isinstance(powers, nn.Parameter)
        or (isinstance(powers, Tensor) and powers.ndim == 0)
    ):
        powers = [powers] * len(energies)
    powers = list(powers)  # type: ignore[arg-type]
    if (
        len(energies) == 1
        and not isinstance(powers[0], Tensor)
        and powers[0] == 1
        and not isinstance(powers[0], bool)
    ):
        return energies[0]
    if len(powers) != len(energies):
        raise ValueError(f"{len(energies)} energies need as many powers, not {len(powers)}")
    terms: list[Term] = []
    for energy, power in zip(energies, powers, strict=True):
        if isinstance(power, nn.Parameter):
            check_parameter(power, energy)
            nested = (
                energy.terms
                if isinstance(energy, Product) and not energy.learnable
                else (Term(energy, 1.0),)
            )
            terms += [term._replace(parameter=power) for term in nested]
        else:
            inner = energy.terms if isinstance(energy, Product) else (Term(energy, 1.0),)
            terms += [term.scaled(checked_power(power, energy)) for term in inner]
    result = flat(terms)
    carry(result, energies, powers)
    return result


def flat(terms: Sequence[Term]) -> Energy:
    """The product of these terms: nested products opened, equal experts merged, cancelled ones
    dropped where nothing is lost."""
    opened: list[Term] = []
    for term in terms:
        if isinstance(term.energy, Product) and (
            term.parameter is None or not term.energy.learnable
        ):
            for t in term.energy.terms:
                parameter = t.parameter if term.parameter is None else term.parameter
                opened.append(t.scaled(term.coefficient)._replace(parameter=parameter))
        else:
            opened.append(term)
    merged: dict[tuple[int, int | None], list[Term]] = {}
    for term in opened:
        merged.setdefault(
            (id(term.energy), None if term.parameter is None else id(term.parameter)), []
        ).append(term)
    kept = [
        same[-1]._replace(coefficient=summed([term.coefficient for term in same]))
        for same in merged.values()
    ]
    for term in [t for t in kept if t.coefficient == 0]:
        rest = [t for t in kept if t is not term]
        if rest and sets.covers(
            term.energy.support, sets.intersect([t.energy.support for t in rest])
        ):
            kept = rest
    if len(kept) == 1 and kept[0].coefficient == 1 and kept[0].parameter is None:
        return kept[0].energy
    return Product(kept)


BUILDERS["&"] = lambda a, b: product([a, right_side(b, a, "&")])
BUILDERS["/"] = lambda a, b: product([a, right_side(b, a, "/")], [1.0, -1.0])
BUILDERS["**"] = lambda a, power: product([a], [power])


# ---------------------------------------------------------------- closed forms of products


def simplify(energy: Energy) -> Energy:
    """The expression with every closed form applied. It has the same energy at each x (to rounding)
    and the same log Z."""
    (energy,) = energies_of([energy], "simplify")
    parts = [simplify(part) for part in energy.parts]
    if any(new is not old for new, old in zip(parts, energy.parts, strict=True)):
        energy = energy.rebuild(parts)
    if not isinstance(energy, Product):
        return energy
    try:
        return _reduce(energy)
    except Improper:
        return energy


def is_improper(energy: Product) -> bool:
    """Whether a closed form shows that the product has infinite mass, or none."""
    try:
        _reduce(energy)
    except Improper:
        return True
    return False


def is_empty(energy: Product) -> bool:
    """Whether a closed form shows that the product has no mass."""
    try:
        _reduce(energy)
    except Improper as error:
        return isinstance(error, Empty)
    return False


def _reduce(energy: Product) -> Energy:
    if energy.learnable:
        return energy  # a power that is still being learned has no closed form
    terms = [(term.energy, term.coefficient) for term in energy.terms]
    constant, factors = _pull_constants(terms)
    distributed = _distribute(factors)
    if distributed is not None:
        return shift(distributed, constant)
    for kinds, rule in TABLE:
        group = [factor for factor in factors if isinstance(factor[0], kinds)]
        power_alone = len(group) == 1 and kinds[0] is kinds[1] and group[0][1] != 1
        merged = (
            _apply(rule, group, whole=len(group) == len(factors))
            if len(group) > 1 or power_alone
            else None
        )
        if merged is not None:
            more, bare = _pull_constants([(merged, 1.0)])
            constant += more
            factors = bare + [factor for factor in factors if factor not in group]
    return energy if factors == terms else shift(product(*zip(*factors, strict=True)), constant)


def _apply(rule: Rule, group: Sequence[Factor], *, whole: bool) -> Energy | None:
    """The rule's answer. That some factors alone have infinite mass says nothing of a product with
    further ones."""
    try:
        return rule(group)
    except Empty:
        raise
    except Improper:
        if whole:
            raise
        return None


def _pull_constants(factors: Sequence[Factor]) -> tuple[float, list[Factor]]:
    """Exact offsets of shifted factors, summed, and the factors without them."""
    constant, bare = 0.0, []
    for energy, power in factors:
        while isinstance(energy, Shifted) and energy.stated is None:
            constant, energy = constant + power * energy.offset, energy.energy
        bare.append((energy, power))
    return constant, bare


def _distribute(factors: Sequence[Factor]) -> Energy | None:
    """(a | b) & c as (a & c) | (b & c), where every part then has a closed form with a known log Z.

    A whole power expands by the multinomial theorem: one part for each way to share it out.
    """
    mixtures = [
        (m, int(p)) for m, p in factors if isinstance(m, Mixture) and 0 < p == int(p) <= MOST_PARTS
    ]
    parts = math.prod(math.comb(len(m.parts) + p - 1, p) for m, p in mixtures)
    if not mixtures or (len(factors) == 1 and factors[0][1] == 1) or parts > MOST_PARTS:
        return None
    (first, power), rest = mixtures[0], [f for f in factors if f[0] is not mixtures[0][0]]
    weighed = [
        (w, part) for w, part in zip(first.log_weights, first.parts, strict=True) if w > -math.inf
    ]
    opened = []
    for chosen in itertools.combinations_with_replacement(range(len(weighed)), power):
        counts = Counter(chosen)
        weight = math.lgamma(power + 1) + sum(
            k * weighed[i][0] - math.lgamma(k + 1) for i, k in counts.items()
        )
        inner = [(weighed[i][1], float(k)) for i, k in counts.items()]
        term = product(*zip(*inner, *rest, strict=True))
        try:
            closed = _reduce(term) if isinstance(term, Product) else term
        except Empty:  # adds nothing
            continue
        if isinstance(closed, Product) or closed.log_z is None:
            return None
        opened += _spread(closed, -weight)
    if not opened:
        raise Empty("no part of a mixture is left")
    return mixture(opened)


def _spread(energy: Energy, offset: float) -> list[Energy]:
    """The parts of a raw mixture, each shifted, so that mixtures of mixtures stay flat."""
    while isinstance(energy, Shifted) and energy.stated is None:
        offset, energy = offset + energy.offset, energy.energy
    parts = energy.parts if isinstance(energy, Mixture) and energy.weights is None else (energy,)
    return [shift(part, offset) for part in parts]
