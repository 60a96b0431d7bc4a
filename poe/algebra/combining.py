"""Posteriors and concepts that share a prior, which must count once: `combine`, `conjunction`, and
which coordinates a part is about."""

from __future__ import annotations

from collections.abc import Sequence
from functools import singledispatch

from poe.algebra import support as sets
from poe.algebra.checks import energies_of
from poe.algebra.combination import Combination, combined, combined_as
from poe.algebra.contrast import Contrast
from poe.algebra.energy import Energy
from poe.algebra.mixture import Mixture
from poe.algebra.product import Product, Term, product
from poe.algebra.pullback import is_on, on
from poe.algebra.shifted import Shifted, unshifted
from poe.algebra.text import ATOM, bracketed


def combine(posteriors: Sequence[Energy], *, prior: Energy) -> Energy:
    """Posteriors that each contain the same prior, which must count once: p1 & ... & pn / prior **
    (n - 1).

    Posteriors of some of the parameters are written `poe.on(posterior, index, event_shape)`. Then
    the prior is a product of factors over parameters that go together, `poe.on(prior_1, ...) &
    poe.on(prior_2, ...)`, and each factor is divided out as often as posteriors beyond the first
    contain it; what no posterior contains stays. Draws report how the parts agree
    (`draws.agreement`), also of a product of the result with more factors, and of the result
    shifted or normalised.

    Raises ValueError where a posterior's support does not match the prior's, or it is about some
    parameters of a factor only.
    """
    posteriors = energies_of(posteriors, "combine")
    energies_of([posteriors[0], prior], "combine")
    terms = prior.terms if isinstance(prior, Product) else ()
    split = any(len(places(term.energy)) < prior.event_shape.numel() for term in terms)
    factors = [_alone(term) for term in terms] if split else [prior]
    posteriors = [each for posterior in posteriors for each in _opened(posterior, factors)]
    for posterior in posteriors:
        foreign = [factor.support for factor in factors if not places(factor) & places(posterior)]
        if sets.covers(prior.support, sets.intersect([posterior.support, *foreign])) is False:
            raise ValueError(
                f"the support of {posterior}, {posterior.support!r}, is not inside that of the "
                f"prior {prior}, {prior.support!r}: a posterior has no mass where its prior "
                "has none; restrict it, or give the prior it was made with"
            )
    counts = []
    for factor in factors:
        own, count = places(factor), 0
        for posterior in posteriors:
            shared = own & places(posterior)
            if shared and shared != own:
                raise ValueError(
                    f"{posterior} is about some parameters of the prior's factor {factor} and not "
                    "about others: write the prior as factors over parameters that go together, "
                    "poe.on(prior_1, [0], event_shape) & poe.on(prior_2, [1], event_shape)"
                )
            count += bool(shared)
        counts.append(count)
    powers = [1.0] * len(posteriors) + [1.0 - count for count in counts]
    result = product([*posteriors, *factors], powers)
    if len(posteriors) == 1 or any(result is energy for energy in (*posteriors, *factors)):
        return result
    priors = tuple(zip(factors, counts, strict=True))
    return combined_as(result, Combination(tuple(posteriors), priors))


def conjunction(prior: Energy, concepts: Sequence[Energy]) -> Energy:
    """All of these concepts at once: prior & c1 / prior & c2 / prior ..., which is c1 & ... & cn /
    prior ** (n - 1).

    Each concept is the density p(x | c) of what has it, and contains the prior p(x), which must
    count once. Where concepts are independent given x, as those are that x decides, the product is
    p(x | c1, ..., cn):

        p(x) Π p(c_i | x) ∝ p(x) Π p(x | c_i) / p(x).

    Raises ValueError where a concept is given twice, or its support is not inside the prior's.
    """
    if isinstance(concepts, Energy):
        raise TypeError(
            f"poe.conjunction takes a list of energies: write poe.conjunction({prior}, "
            f"[{concepts}])"
        )
    concepts = list(concepts)
    energies_of([prior, *concepts], "conjunction")
    for i, concept in enumerate(concepts):
        if any(concept is other for other in concepts[:i]):
            more = f"{bracketed(concept, ATOM)} ** 2"
            raise ValueError(
                f"{concept} is given twice: a concept either holds or does not; {more} weighs it "
                "more"
            )
        if sets.covers(prior.support, concept.support) is False:
            raise ValueError(
                f"the support of {concept}, {concept.support!r}, is not inside that of the prior "
                f"{prior}, {prior.support!r}"
            )
    return product([*concepts, prior], [1.0] * len(concepts) + [1.0 - len(concepts)])


@singledispatch
def places(energy: Energy) -> set[int]:
    """The positions of the flattened event that an energy is about: those of `poe.on`, and of all
    parts of a composition; else all."""
    if is_on(energy):
        index = energy.function.index.tolist()
        return {index[place] for place in places(energy.energy)}
    return set(range(energy.event_shape.numel()))


@places.register(Product)
@places.register(Mixture)
@places.register(Contrast)
@places.register(Shifted)
def _(energy: Energy) -> set[int]:
    return set().union(*map(places, energy.parts))


def part_on(energy: Energy, index: Sequence[int]) -> Energy:
    """The same over the numbers at these positions alone, in their order, of an energy that is
    about no others."""
    if not is_on(energy) and len(index) == energy.event_shape.numel():
        return energy
    at = {place: i for i, place in enumerate(index)}

    def within(part: Energy) -> Energy:
        if not is_on(part):
            return part.rebuild([within(inner) for inner in part.parts])
        used = sorted(places(part.energy))
        inner = part_on(part.energy, used)
        there = [at[place] for place in part.function.index[used].tolist()]
        whole = there == list(range(len(at))) and inner.event_shape == (len(at),)
        return inner if whole else on(inner, there, (len(at),))

    return within(energy)


def _opened(posterior: Energy, factors: Sequence[Energy]) -> Sequence[Energy]:
    """The posteriors that were combined before, with the same prior and nothing else; else the
    one."""
    known = combined(posterior) if unshifted(posterior) is posterior else None
    if known is None or not known.has_priors(factors) or not known.is_whole(posterior):
        return (posterior,)
    return known.posteriors


def _alone(term: Term) -> Energy:
    return term.energy if term.coefficient == 1 and term.parameter is None else Product([term])
