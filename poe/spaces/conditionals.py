"""Single-site conditionals of discrete compositions, for block Gibbs and locally informed
proposals.

Given all other sites, site i of p ∝ exp(-E) has log weights ℓ_i(v) = -E(x with x_i = v), up to a
constant. They add up in a product, so an expert states its own
(`poe.algebra.capabilities.SiteLogits`) and a composition assembles them: powers weigh them, `@
poe.fill` and `poe.on` renumber the sites. An expert that sums over hidden units (`Hidden`) is first
given a draw of these, which leaves the joint law of sites and hidden units invariant. An energy
that states none is evaluated with each value of a site in turn.

Where a site has two values, ℓ is one number, the log-odds of the upper one.
"""

from __future__ import annotations

import weakref
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import singledispatch
from typing import Any

import torch
from torch import Tensor

from poe.algebra.capabilities import BlockGibbs, Hidden, SiteLogits
from poe.algebra.energy import Energy
from poe.algebra.evaluation import inner
from poe.algebra.maps import Fill, Select
from poe.algebra.product import Product
from poe.algebra.pullback import Pullback
from poe.algebra.shifted import Shifted
from poe.spaces.path import PathEnergy
from poe.spaces.sites import Sites, box_of, sites_of, unwatched, vectors


class Conditionals:
    """The conditionals of one energy: blocks of sites that may be redrawn together, and their log
    weights.

    `hidden` counts the uniforms that `draw` takes. Raises ValueError where the sites have no finite
    number of values.
    """

    def __init__(self, energy: Energy) -> None:
        self.sites, self.part = sites_of(energy), _part(energy)
        self.hidden, self.event = self.part.hidden, len(energy.event_shape)

    def blocks(self, device: torch.device) -> list[Tensor]:
        """Index tensors into the flattened event: sites of one block are independent given all
        others and the hidden units."""
        energy = self.part.energy
        if energy not in _blocks or _blocks[energy][0].device != device:
            _blocks[energy] = [block.to(device) for block in self.part.blocks()]
        return _blocks[energy]

    def draw(self, x: Tensor, uniforms: Tensor) -> Any:  # (*batch, *event), (*batch, hidden)
        """The hidden units of all experts that have some, in the form that `logits` takes."""
        return self.part.draw(x, uniforms)

    def logits(self, x: Tensor, sites: Tensor, drawn: Any = None) -> Tensor:
        # (*batch, *event), (k) -> (*batch, k) or (*batch, k, values)
        """ℓ of these sites: log-odds where every site has two values, else log weights, -inf past a
        site's own values."""
        logits = self.part.logits(x, sites, drawn)
        wide = logits.ndim > x.ndim - self.event + 1
        if self.sites.binary:
            return logits[..., 1] - logits[..., 0] if wide else logits
        logits = logits if wide else _widened(logits)
        inside = self.sites.mask(x.device)[sites]
        return logits[..., : self.sites.max_count].masked_fill(~inside, -torch.inf)


_blocks: weakref.WeakKeyDictionary[Energy, list[Tensor]] = weakref.WeakKeyDictionary()


def opaque(energy: Energy) -> Any:
    """The energy itself where it redraws its blocks without stating their conditionals (a third
    party's, or one on continuous coordinates); else None."""
    plain = unwatched(energy)
    states = plain.can(SiteLogits) or plain.can(Hidden)
    return plain if plain.can(BlockGibbs) and not states else None


MAX_VALUES = 1 << 14  # of all sites, of an event with few sites
MAX_BLOCKS = 128  # that are redrawn one after the other, of an event with few sites


def few_sites(energy: Energy) -> bool:
    """Whether a sweep over the sites, block by block, is a matter of few evaluations."""
    if opaque(energy) is not None:
        return False
    sites = sites_of(energy)
    few = 0 < int(sites.counts.sum()) <= MAX_VALUES
    return few and len(Conditionals(energy).part.blocks()) <= MAX_BLOCKS


# ---------------------------------------------------------------- the parts of a composition


class _Part(ABC):
    """Conditionals of one part of an expression."""

    hidden = 0

    def __init__(self, energy: Energy) -> None:
        self.energy = energy

    @abstractmethod
    def blocks(self) -> Sequence[Tensor]:
        """Sites that are independent given all others and the hidden units."""

    def draw(self, x: Tensor, uniforms: Tensor) -> Any:
        """The hidden units given x; None where there are none."""
        return None

    @abstractmethod
    def logits(self, x: Tensor, sites: Tensor, drawn: Any) -> Tensor:
        """ℓ of these sites, log-odds or log weights, given the hidden units."""


class _Stated(_Part):
    """An expert that states its conditionals."""

    energy: Any

    def blocks(self) -> Sequence[Tensor]:
        return self.energy.blocks

    def logits(self, x: Tensor, sites: Tensor, drawn: Any) -> Tensor:
        return self.energy.site_logits(x, sites)


class _Latent(_Stated):
    """An expert that states them given its hidden units; without a draw of these, it is
    evaluated."""

    def __init__(self, energy: Any) -> None:
        super().__init__(energy)
        self.hidden = energy.hidden

    def draw(self, x: Tensor, uniforms: Tensor) -> Any:
        return self.energy.draw_hidden(x, uniforms)

    def logits(self, x: Tensor, sites: Tensor, drawn: Any) -> Tensor:
        return (
            _Evaluated(self.energy).logits(x, sites, None)
            if drawn is None
            else self.energy.site_logits(drawn, sites)
        )


class _Evaluated(_Part):
    """Any energy, evaluated with each value of a site, by default those of its own support; each
    site is a block."""

    def __init__(self, energy: Energy, sites: Sites | None = None) -> None:
        super().__init__(energy)
        self.sites = sites
        # where all sites have as many values, points with a site at another of its values need no
        # check against the support
        whole = sites is None and energy.support is box_of(energy)
        whole = whole and len(sites_of(energy).counts.unique()) == 1
        self.evaluate = inner if whole else Energy.__call__

    def blocks(self) -> Sequence[Tensor]:
        return torch.arange(self.energy.event_shape.numel()).split(1)

    def logits(self, x: Tensor, sites: Tensor, drawn: Any) -> Tensor:
        values, inside = (self.sites or sites_of(self.energy)).values(x)
        flat, found = vectors(x, len(self.energy.event_shape)), []
        for site in sites.tolist():
            tried = flat.expand(values.shape[1], *flat.shape).clone()
            tried[..., site] = values[site].reshape(-1, *[1] * (flat.ndim - 1))
            energy = self.evaluate(self.energy, tried.reshape(-1, *x.shape))  # (values, *batch)
            found.append((-energy).movedim(0, -1).masked_fill(~inside[site], -torch.inf))
        return torch.stack(found, -2)


class _Sum(_Part):
    """A weighted sum of energies: log weights add up, and blocks are split until the sites of each
    are independent in every part."""

    def __init__(
        self, energy: Energy, weights: Sequence[float | Tensor], parts: Sequence[_Part]
    ) -> None:
        super().__init__(energy)
        self.weights, self.parts = weights, parts
        self.hidden = sum(part.hidden for part in parts)

    def blocks(self) -> Sequence[Tensor]:
        n = self.energy.event_shape.numel()
        cut = [blocks for part in self.parts if len(blocks := part.blocks()) > 1]
        if len(cut) < 2:
            return cut[0] if cut else [torch.arange(n)]
        colours = torch.zeros(n, dtype=torch.long)
        for blocks in cut:
            own = torch.empty_like(colours)
            for index, block in enumerate(blocks):
                own[block.cpu()] = index
            colours = (colours * len(blocks) + own).unique(return_inverse=True)[1]
        return colours.argsort(stable=True).split(torch.bincount(colours).tolist())

    def draw(self, x: Tensor, uniforms: Tensor) -> Any:
        pieces = uniforms.split([part.hidden for part in self.parts], -1)
        return [part.draw(x, piece) for part, piece in zip(self.parts, pieces, strict=True)]

    def logits(self, x: Tensor, sites: Tensor, drawn: Any) -> Tensor:
        batch = x.ndim - len(self.energy.event_shape)
        total: Tensor | None = None
        for k, (weight, part) in enumerate(zip(self.weights, self.parts, strict=True)):
            logits = part.logits(x, sites, None if drawn is None else drawn[k])
            logits = _weighed(weight, logits, logits.ndim - batch)
            total = logits if total is None else _plus(total, logits, batch + 1)
        return (
            x.new_zeros((*x.shape[:batch], len(sites)), dtype=self.energy.dtype)
            if total is None
            else total
        )


class _Renumbered(_Part):
    """`@ poe.fill` and `poe.on`: a part over the sites of a larger or smaller event. `places` has
    the number of each site there, or -1."""

    def __init__(self, energy: Pullback, part: _Part, places: Tensor) -> None:
        super().__init__(energy)
        self.function, self.part, self.places = energy.function, part, places
        self.hidden = part.hidden

    def blocks(self) -> Sequence[Tensor]:
        own = torch.full(
            (self.part.energy.event_shape.numel() + 1,), -1, dtype=torch.long
        )  # the last one is that of -1
        for index, block in enumerate(self.part.blocks()):
            own[block.cpu()] = index
        kinds = own[self.places.cpu()]
        return [(kinds == k).nonzero().squeeze(-1) for k in kinds.unique()]

    def draw(self, x: Tensor, uniforms: Tensor) -> Any:
        return self.part.draw(self.function(x), uniforms)

    def logits(self, x: Tensor, sites: Tensor, drawn: Any) -> Tensor:
        places = self.places.to(x.device)[sites]
        seen = places >= 0
        logits = self.part.logits(self.function(x), places[seen], drawn)
        if bool(seen.all()):
            return logits
        axis = x.ndim - len(self.energy.event_shape)
        shape = (*logits.shape[:axis], len(sites), *logits.shape[axis + 1 :])
        return logits.new_zeros(shape).index_copy(axis, seen.nonzero().squeeze(-1), logits)


def _part(energy: Energy) -> _Part:
    """The conditionals of an expression: stated, assembled from those of its parts, or else from
    evaluations of the energy."""
    plain = unwatched(energy)
    if plain.can(Hidden):
        return _Latent(plain)
    if plain.can(SiteLogits):
        return _Stated(plain)
    return _assembled(plain) or _Evaluated(energy)


@singledispatch
def _assembled(energy: Energy) -> _Part | None:
    """The conditionals that a part assembles from those of its parts; None where it does not."""
    return None


@_assembled.register
def _(energy: PathEnergy) -> _Part:
    weights = [1 - energy.beta, energy.beta]
    return _sum(energy, weights, [energy.path.start, energy.path.end])


@_assembled.register
def _(energy: Product) -> _Part:
    terms = [term for term in energy.terms if term.coefficient]
    return _sum(energy, [term.power for term in terms], [term.energy for term in terms])


@_assembled.register
def _(energy: Shifted) -> _Part:
    return _part(energy.energy)


@_assembled.register
def _(energy: Pullback) -> _Part | None:
    places = None if box_of(energy.energy) is None else _places(energy.function, energy)
    return None if places is None else _Renumbered(energy, _part(energy.energy), places)


@singledispatch
def _places(function: Any, energy: Energy) -> Tensor | None:
    """The number that each site of the event of `energy` has in the value of a function, or -1;
    None where the function does more than renumber sites."""
    return None


@_places.register
def _(function: Fill, energy: Energy) -> Tensor:
    return function.free


@_places.register
def _(function: Select, energy: Energy) -> Tensor:
    index = function.index
    places = torch.full((energy.event_shape.numel(),), -1, device=index.device)
    places[index] = torch.arange(len(index), device=index.device)
    return places


def _sum(energy: Energy, weights: Sequence[float | Tensor], parts: Sequence[Energy]) -> _Sum:
    """The sum of these parts. Hidden units are those of an expert, not of its powers, which are
    evaluated."""
    sites, found = sites_of(energy), []
    for weight, each in zip(weights, parts, strict=True):
        part = _part(each)
        whole = not part.hidden or (isinstance(weight, float) and weight == 1)
        found.append(part if whole and _aligned(part, sites) else _Evaluated(each, sites))
    return _Sum(energy, weights, found)


def _aligned(part: _Part, sites: Sites) -> bool:
    """Whether the values of a part begin where those of the sum do, so that log weights add up."""
    renumbered = isinstance(part, _Renumbered)
    box = box_of(part.part.energy if renumbered else part.energy)
    if box is None or box.step != sites.step or isinstance(part, _Evaluated):
        return False
    low, own = sites.low, box.low.flatten().to(sites.low)
    if renumbered:
        places = part.places.to(low.device)
        low, own = low[places >= 0], own[places[places >= 0]]
    return torch.equal(low, own)


def _weighed(weight: float | Tensor, logits: Tensor, trailing: int) -> Tensor:
    """weight·ℓ; an excluded value stays excluded at every weight but 0."""
    if isinstance(weight, Tensor):
        weight = weight.to(logits).reshape(weight.shape + (1,) * trailing)
        return torch.where(weight == 0, 0, torch.where(logits.isinf(), logits, weight * logits))
    return logits if weight == 1 else torch.where(logits.isinf(), logits, weight * logits)


def _plus(a: Tensor, b: Tensor, single: int) -> Tensor:
    """The sum of log-odds (`single` axes) or log weights; of two numbers of values the lower one
    holds."""
    if a.ndim <= single and b.ndim <= single:
        return a + b
    a, b = (v if v.ndim > single else _widened(v) for v in (a, b))
    most = min(a.shape[-1], b.shape[-1])
    return a[..., :most] + b[..., :most]


def _widened(odds: Tensor) -> Tensor:
    """Log-odds as log weights of the two values."""
    return torch.stack([torch.zeros_like(odds), odds], -1)
