"""Single-site conditionals of discrete compositions: what block Gibbs and locally informed
proposals are made of.

Given all other sites, site i of p ∝ exp(-E) has log weights ℓ_i(v) = -E(x with x_i = v), up to a
constant. They add up in a product, so an expert states its own
(`poe.algebra.capabilities.SiteLogits`) and a composition assembles them: powers weigh them, `@
poe.fill` and `poe.on` renumber the sites. An expert that sums over hidden units (`Hidden`) is first
given a draw of these, which leaves the joint law of sites and hidden units invariant. What states
nothing is evaluated with each value of a site in turn.

Where a site has two values, ℓ is one number, the log-odds of the upper one.
"""

from __future__ import annotations

import weakref
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from poe.algebra.capabilities import BlockGibbs, Hidden, SiteLogits
from poe.algebra.energy import Energy
from poe.algebra.maps import Fill, Select
from poe.algebra.product import Product
from poe.algebra.pullback import Pullback
from poe.algebra.shifted import Shifted
from poe.spaces.path import Level
from poe.spaces.sites import Sites, box_of, inner, sites_of, vectors


class Conditionals:
    """The conditionals of one energy: blocks of sites that may be redrawn together, and their log
    weights.

    `hidden` counts the uniforms that `draw` takes. Raises ValueError where the sites have no finite
    number of values.
    """

    def __init__(self, energy: Energy) -> None:
        self.sites, self.node = sites_of(energy), _node(energy)
        self.hidden, self.event = self.node.hidden, len(energy.event_shape)

    def blocks(self, device: torch.device) -> list[Tensor]:
        """Index tensors into the flattened event: sites of one block are independent given all
        others and the hidden units."""
        energy = self.node.energy
        if energy not in _blocks or _blocks[energy][0].device != device:
            _blocks[energy] = [block.to(device) for block in self.node.blocks()]
        return _blocks[energy]

    def draw(self, x: Tensor, uniforms: Tensor) -> Any:  # (*batch, *event), (*batch, hidden)
        """The hidden units of every expert that has some, in the form that `logits` takes."""
        return self.node.draw(x, uniforms)

    def logits(self, x: Tensor, sites: Tensor, drawn: Any = None) -> Tensor:
        # (*batch, *event), (k) -> (*batch, k) or (*batch, k, values)
        """ℓ of these sites: log-odds where every site has two values, else log weights, -inf past a
        site's own values."""
        logits = self.node.logits(x, sites, drawn)
        wide = logits.ndim > x.ndim - self.event + 1
        if self.sites.binary:
            return logits[..., 1] - logits[..., 0] if wide else logits
        logits = logits if wide else _widened(logits)
        inside = torch.arange(self.sites.most, device=x.device) < self.sites.counts.to(x.device)[
            sites
        ].unsqueeze(-1)
        return logits[..., : self.sites.most].masked_fill(~inside, -torch.inf)


_blocks: weakref.WeakKeyDictionary[Energy, list[Tensor]] = weakref.WeakKeyDictionary()


def opaque(energy: Energy) -> Any:
    """The energy itself where it redraws its blocks but does not state how (a stranger's, or one on
    continuous coordinates)."""
    plain = inner(energy)
    states = plain.can(SiteLogits) or plain.can(Hidden)
    return plain if plain.can(BlockGibbs) and not states else None


# ---------------------------------------------------------------- the nodes of a composition


class _Node(ABC):
    """Conditionals of one part of an expression."""

    hidden = 0

    def __init__(self, energy: Energy) -> None:
        self.energy = energy

    @abstractmethod
    def blocks(self) -> Sequence[Tensor]: ...

    def draw(self, x: Tensor, uniforms: Tensor) -> Any:
        return None

    @abstractmethod
    def logits(self, x: Tensor, sites: Tensor, drawn: Any) -> Tensor: ...


class _Stated(_Node):
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


class _Evaluated(_Node):
    """Anything: each site by itself, the energy evaluated with each of its values, by default those
    of its own support."""

    def __init__(self, energy: Energy, sites: Sites | None = None) -> None:
        super().__init__(energy)
        self.sites = sites

    def blocks(self) -> Sequence[Tensor]:
        return torch.arange(self.energy.event_shape.numel()).split(1)

    def logits(self, x: Tensor, sites: Tensor, drawn: Any) -> Tensor:
        values, inside = (self.sites or sites_of(self.energy)).values(x)
        flat, found = vectors(x, len(self.energy.event_shape)), []
        for site in sites.tolist():
            tried = flat.expand(values.shape[1], *flat.shape).clone()
            tried[..., site] = values[site].reshape(-1, *[1] * (flat.ndim - 1))
            energy = self.energy(tried.reshape(-1, *x.shape))  # (values, *batch)
            found.append((-energy).movedim(0, -1).masked_fill(~inside[site], -torch.inf))
        return torch.stack(found, -2)


class _Sum(_Node):
    """A weighted sum of energies: log weights add up, and blocks are cut until no part has an edge
    inside one."""

    def __init__(
        self, energy: Energy, weights: Sequence[float | Tensor], parts: Sequence[_Node]
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


class _Renumbered(_Node):
    """`@ poe.fill` and `poe.on`: a part that sees the sites of a larger or smaller event. `places`:
    of each site, its number there, or -1."""

    def __init__(self, energy: Pullback, part: _Node, places: Tensor) -> None:
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


def _node(energy: Energy) -> _Node:
    """The node of an expression: the structure that states conditionals where there is one, else
    the energy to be evaluated."""
    plain = inner(energy)
    if plain.can(Hidden):
        return _Latent(plain)
    if plain.can(SiteLogits):
        return _Stated(plain)
    if isinstance(plain, Level):
        return _sum(plain, [1 - plain.beta, plain.beta], [plain.path.start, plain.path.end])
    if isinstance(plain, Product):
        terms = [term for term in plain.terms if term.coefficient]
        return _sum(plain, [term.power for term in terms], [term.energy for term in terms])
    if isinstance(plain, Shifted):
        return _node(plain.energy)
    if isinstance(plain, Pullback) and box_of(plain.energy) is not None:
        if isinstance(plain.function, Fill):
            return _Renumbered(plain, _node(plain.energy), plain.function.free)
        if isinstance(plain.function, Select):
            index = plain.function.index
            places = torch.full((plain.event_shape.numel(),), -1, device=index.device)
            places[index] = torch.arange(len(index), device=index.device)
            return _Renumbered(plain, _node(plain.energy), places)
    return _Evaluated(energy)


def _sum(energy: Energy, weights: Sequence[float | Tensor], parts: Sequence[Energy]) -> _Sum:
    """The sum of these parts. Hidden units belong to an expert itself, not to its powers: those are
    evaluated."""
    sites, nodes = sites_of(energy), []
    for weight, part in zip(weights, parts, strict=True):
        node = _node(part)
        whole = not node.hidden or (isinstance(weight, float) and weight == 1)
        nodes.append(node if whole and _aligned(node, sites) else _Evaluated(part, sites))
    return _Sum(energy, weights, nodes)


def _aligned(node: _Node, sites: Sites) -> bool:
    """Whether the values of a part begin where those of the whole do, so that their log weights can
    be added."""
    renumbered = isinstance(node, _Renumbered)
    box = box_of(node.part.energy if renumbered else node.energy)
    if box is None or box.step != sites.step or isinstance(node, _Evaluated):
        return False
    low, own = sites.low, box.low.flatten().to(sites.low)
    if renumbered:
        places = node.places.to(low.device)
        low, own = low[places >= 0], own[places[places >= 0]]
    return torch.equal(low, own)


def _weighed(weight: float | Tensor, logits: Tensor, trailing: int) -> Tensor:
    """weight·ℓ; what is excluded stays so, whatever the power, but for a weight of 0."""
    if isinstance(weight, Tensor):
        weight = weight.to(logits).reshape(weight.shape + (1,) * trailing)
        return torch.where(weight == 0, 0, torch.where(logits.isinf(), logits, weight * logits))
    return logits if weight == 1 else torch.where(logits.isinf(), logits, weight * logits)


def _plus(a: Tensor, b: Tensor, single: int) -> Tensor:
    """The sum of log-odds (`single` axes) or log weights; of two lists of values the shorter one
    counts."""
    if a.ndim <= single and b.ndim <= single:
        return a + b
    a, b = (v if v.ndim > single else _widened(v) for v in (a, b))
    most = min(a.shape[-1], b.shape[-1])
    return a[..., :most] + b[..., :most]


def _widened(odds: Tensor) -> Tensor:
    """Log-odds as log weights of the two values."""
    return torch.stack([torch.zeros_like(odds), odds], -1)
