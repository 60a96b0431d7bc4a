"""Products of powers: `&`, `**`, `/` and `~` are one node, a flat sum Σ powerᵢ·Eᵢ merged by
identity."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from functools import cached_property, partial
from operator import is_
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from poe.algebra import evaluation
from poe.algebra import support as sets
from poe.algebra.checks import check_parameter, checked_power, energies_of, right_side
from poe.algebra.combination import Combination, combined, combined_as, kept, powers_by_factor
from poe.algebra.energy import Energy, bound
from poe.algebra.fingerprint import Fingerprint
from poe.algebra.operators import BUILDERS, Power
from poe.algebra.points import all_move_inside


class Term(NamedTuple):
    """One factor of a product: p ** (coefficient · parameter)."""

    energy: Energy
    coefficient: float
    parameter: nn.Parameter | None = None

    @property
    def power(self) -> float:
        return self.coefficient * (1.0 if self.parameter is None else self.parameter.item())

    def weigh(self, energy: Tensor) -> Tensor:
        """power · E, and +inf where E is, whatever the sign."""
        if self.parameter is None and self.coefficient == 1:
            return energy
        if self.parameter is None and self.coefficient > 0:
            return energy * self.coefficient
        void = energy == math.inf  # no inf meets a power, whose gradient it would spoil
        power: float | Tensor = self.coefficient
        if self.parameter is not None:
            power = self.coefficient * self.parameter.reshape(())
        return torch.where(void, math.inf, torch.where(void, 0, energy) * power)

    def scaled(self, factor: float) -> Term:
        coefficient = self.coefficient * factor
        if not math.isfinite(coefficient) or (coefficient == 0 and self.coefficient and factor):
            raise ValueError(
                f"(({self.energy}) ** {self.coefficient:g}) ** {factor:g}: these powers multiply "
                "to more, or less, than a number holds"
            )
        return self._replace(coefficient=coefficient)


class Product(Energy):
    """Π p_i^{w_i}: the energy Σ wᵢ·Eᵢ(x), flat, each expert evaluated once. Built by `product`,
    `&`, `**`, `/` and `~`.

    A power is a float, or a float times an `nn.Parameter` that is learnable. The support is the
    intersection over all factors, whatever the sign of their powers; a power of 0 keeps the support
    and is not evaluated. Where some factor has energy +inf the product has too (0/0 counts as 0).
    """

    def __init__(
        self,
        terms: Sequence[Term],
        *,
        support: sets.Constraint | None = None,
        combination: Combination | None = None,
    ) -> None:
        if support is None:
            support = sets.intersect([term.energy.support for term in terms])
        super().__init__(terms[0].energy.event_shape, support=support)
        energies, coefficients, parameters = zip(*terms, strict=True)
        self.energies = nn.ModuleList()  # filled as ModuleList(...) does, which takes far longer
        self.energies._modules.update(zip(map(str, range(len(energies))), energies, strict=True))
        self.coefficients: tuple[float, ...] = coefficients
        self.learnable, self._slots = nn.ParameterList(), (None,) * len(terms)
        if parameters.count(None) < len(terms):
            slots = itertools.count()
            self._slots = tuple(None if known is None else next(slots) for known in parameters)
            self.learnable.extend(known for known in parameters if known is not None)
        self.combination = combination
        # what `poe.algebra.simplification` found of the factors as they are now
        self.reduced: tuple[Fingerprint, int, Any] | None = None

    @property
    def terms(self) -> tuple[Term, ...]:
        """(energy, coefficient, parameter or None) of each factor; the power is coefficient times
        parameter."""
        parameters: Iterable[nn.Parameter | None] = itertools.repeat(None)
        if len(self.learnable):
            parameters = [None if slot is None else self.learnable[slot] for slot in self._slots]
        fields = zip(self.energies._modules.values(), self.coefficients, parameters)  # noqa: B905
        return tuple(map(tuple.__new__, itertools.repeat(Term), fields))  # Term(*fields), faster

    @property
    def powers(self) -> tuple[float, ...]:
        """The powers as numbers."""
        return tuple(term.power for term in self.terms)

    @property
    def parts(self) -> tuple[Energy, ...]:
        return tuple(self.energies._modules.values())  # type: ignore[arg-type]

    def given(self, context: Any) -> Energy:
        """The product with a context bound in every factor that takes one, and in what was
        combined."""
        whole, known = super().given(context), self.combination
        if known is None:
            return whole
        return combined_as(whole, known.mapped(partial(bound, context=context)))

    def rebuild(self, parts: Sequence[Energy]) -> Energy:
        terms = [t._replace(energy=part) for part, t in zip(parts, self.terms, strict=True)]
        known = self.combination
        return flat(terms, None if known is None else known.replaced(self.parts, parts))

    def forward(self, x: Tensor) -> Tensor:  # (*batch, *event) -> (*batch)
        batch = x.shape[: x.ndim - len(self._event_shape)]
        total = x.new_zeros((), dtype=x.dtype if x.is_floating_point() else self.dtype)
        terms = self._evaluated
        evaluate = evaluation.inner if self._moves_inside else evaluation.masked
        found = evaluation.together([t.energy for t in terms], x, self._groups, evaluate)
        for term, energy in zip(terms, found, strict=True):
            total = add(total, term.weigh(energy))
        if terms or not x.is_floating_point():
            return total.expand(batch)
        # 0 at each x, with a graph of slope 0
        none = torch.where(torch.zeros((), dtype=torch.bool, device=x.device), x, 0)
        return none.reshape(*batch, self.event_shape.numel()).sum(-1)

    def _value_and_grad(self, x: Tensor) -> tuple[Tensor, Tensor]:
        total = x.new_zeros(x.shape[: x.ndim - len(self._event_shape)])
        gradient = torch.zeros_like(x)
        terms = self._evaluated
        inside, anywhere = evaluation.inner_with_gradient, evaluation.masked_with_gradient
        known = evaluation.together_with_gradients(
            [t.energy for t in terms], x, self._groups, inside if self._moves_inside else anywhere
        )
        # one expert's graph alive at a time
        for term, (energy, slope) in zip(terms, known, strict=True):
            total = add(total, term.weigh(energy).detach())
            gradient = gradient.add_(slope.to(gradient), alpha=term.power)
        return total, gradient

    @property
    def _evaluated(self) -> Sequence[Term]:
        terms = self.terms
        return terms if all(self.coefficients) else [term for term in terms if term.coefficient]

    @cached_property
    def _groups(self) -> tuple[evaluation.Group, ...]:
        return evaluation.sharing([term.energy for term in self._evaluated])

    @cached_property
    def _moves_inside(self) -> bool:
        return all_move_inside(self._support, self._event_shape)


@combined.register
def _(energy: Product) -> Combination | None:
    return energy.combination


@combined_as.register
def _(energy: Product, combination: Combination) -> Energy:
    return Product(energy.terms, support=energy.support, combination=combination)


@powers_by_factor.register
def _(energy: Product) -> set[tuple[int, float]]:
    return {(id(term.energy), term.power) for term in energy.terms}


def product(energies: Sequence[Energy], powers: Power | Sequence[Power] | None = None) -> Energy:
    """Π p_i^{w_i}. `powers`: one for all, or one each; 1 by default.

    Flat and merged by identity, so `product([a, a])` is `a ** 2` with one evaluation, and a single
    factor of power 1 is itself. An `nn.Parameter` as a power stays its own, learnable term.
    """
    energies = energies_of(energies, "product", powers)
    powers = 1.0 if powers is None else powers
    scalar = isinstance(powers, nn.Parameter) or (isinstance(powers, Tensor) and powers.ndim == 0)
    each: list[Any] = (
        [powers] * len(energies) if scalar or not isinstance(powers, Iterable) else list(powers)
    )
    if len(energies) == 1 and not isinstance(each[0], Tensor | bool) and each[0] == 1:
        return energies[0]
    if len(each) != len(energies):
        raise ValueError(f"{len(energies)} energies need as many powers, not {len(each)}")
    return flat(list(map(raised, energies, each)), kept(energies, each))


def raised(energy: Energy, power: Power) -> Term:
    """The factor energy ** power; a parameter is kept as such."""
    if isinstance(power, nn.Parameter):
        check_parameter(power, energy)
        return Term(energy, 1.0, power)
    return Term(energy, checked_power(power, energy))


def flat(terms: Sequence[Term], combination: Combination | None = None) -> Energy:
    """The product of these terms: nested products opened, equal experts merged, cancelled ones
    dropped where nothing is lost. `combination` is what `combine` put together in it."""
    opened: list[Term] = []
    for term in terms:
        nested = term.energy if isinstance(term.energy, Product) else None
        if nested is None or (nested.learnable and term.parameter is not None):
            opened.append(term)
            continue
        for t in nested.terms:
            parameter = t.parameter if term.parameter is None else term.parameter
            opened.append(t.scaled(term.coefficient)._replace(parameter=parameter))
    merged: dict[tuple[int, int], list[Term]] = {}
    for term in opened:
        merged.setdefault((id(term.energy), id(term.parameter)), []).append(term)
    left = [
        same[-1]._replace(coefficient=summed([term.coefficient for term in same]))
        for same in merged.values()
    ]
    for term in [t for t in left if t.coefficient == 0]:
        rest = [t for t in left if t is not term]
        supports = [t.energy.support for t in rest]
        if rest and sets.covers(term.energy.support, sets.intersect(supports)):
            left = rest
    if len(left) == 1 and left[0].coefficient == 1 and left[0].parameter is None:
        return left[0].energy
    return Product(left, combination=combination)


def both(a: Energy, b: Energy) -> Energy:
    """a & b. A further expert joins a product without a new look at all its factors, so that a
    chain of `&` costs about what `product` does."""
    known = right_side(b, a, "&")
    if (
        isinstance(a, Product)
        and not known.parts
        and not a.learnable
        and a.combination is None
        and known.event_shape == a.event_shape
        and known.vocabulary is None
        and sets.is_real(known.support)
        and all(a.coefficients)
        and not any(map(partial(is_, known), a.parts))
    ):
        return Product([*a.terms, Term(known, 1.0)], support=a.support)
    return product([a, known])


def add(a: Tensor, b: Tensor) -> Tensor:
    """a + b of energies, where +inf wins over -inf: a density that is 0 stays 0, whatever
    multiplies it."""
    clash = ((a == math.inf) & (b == -math.inf)) | ((a == -math.inf) & (b == math.inf))
    return torch.where(clash, math.inf, a + b)


def summed(coefficients: Sequence[float]) -> float:
    """The sum, and the round number that was meant where rounding alone separates them: 0.1 + 0.2 -
    0.3 is 0."""
    try:
        total = math.fsum(coefficients)
    except OverflowError as error:
        raise ValueError(
            f"powers {', '.join(f'{c:g}' for c in coefficients)} of one energy add to more than a "
            "number holds"
        ) from error
    if len(coefficients) == 1 or not math.isfinite(total):
        return total
    slack = 4 * len(coefficients) * math.ulp(math.fsum(map(abs, coefficients)))
    meant = (float(round(total)), float(f"{total:.12g}"))
    return next((value for value in meant if abs(value - total) <= slack), total)


BUILDERS["&"] = both
BUILDERS["/"] = lambda a, b: product([a, right_side(b, a, "/")], [1.0, -1.0])
BUILDERS["**"] = lambda a, power: product([a], [power])
