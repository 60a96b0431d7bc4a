"""Single-site conditionals of discrete compositions: what block Gibbs and locally informed proposals are made of.

Given all other sites, site i of p ∝ exp(-E) has log weights ℓ_i(v) = -E(x with x_i = v), up to a constant. They add up in a product,
so an expert states its own (`poe.capabilities.SiteLogits`) and a composition assembles them: powers weigh them, `@ poe.fill` and `poe.on`
renumber the sites. An expert that sums over hidden units (`Hidden`) is first given a draw of these: that move leaves the joint law of
sites and hidden units invariant. Whatever states nothing is evaluated with each value of the site in turn.

Where a site has two values, ℓ is one number, the log-odds of the upper one.
"""

from __future__ import annotations

import weakref
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from poe import support as sets
from poe.capabilities import BlockGibbs, Hidden, SiteLogits, Watched
from poe.energy import Energy, Fill, Product, Pullback, Select, Shifted
from poe.path import Level


class Sites(NamedTuple):
    """The values that each site of an event may take: low, low + step, ... (n), and how many of them (n)."""

    low: Tensor
    step: int
    counts: Tensor

    @property
    def binary(self) -> bool:
        """Whether every site has two values."""
        return bool((self.counts == 2).all())

    def values(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """All values (n, most) in the type of `like`, and which of them belong to their site."""
        place = torch.arange(int(self.counts.max()), device=like.device)
        low = self.low.to(like.device).unsqueeze(-1)
        return (low + self.step * place).to(like.dtype), place < self.counts.to(like.device).unsqueeze(-1)


def sites_of(energy: Energy) -> Sites:
    """The values of the sites. Raises ValueError where nobody knows finitely many."""
    box = _box(energy)
    if box is None:
        raise ValueError(
            f"{energy} lives on {energy.support!r}: moves from value to value need a finite number of whole values for each coordinate"
        )
    return Sites(box.low.flatten(), box.step, ((box.high - box.low) / box.step + 1).floor().long().flatten())


def _box(energy: Energy) -> sets.Box | None:
    """The finite integer box in which the support lies, where one is known."""
    energy = inner(energy)
    if isinstance(energy, Level):
        boxes = [_box(energy.path.end), _box(energy.path.start)]
        return next((box for box in boxes if box is not None), None)
    support = energy.support
    parts = support.parts if isinstance(support, sets.Intersection) else [support]
    found = [part for part in parts if isinstance(part, sets.Box) and part.integer and part.is_bounded]
    return min(found, key=lambda box: -box.step, default=None)


def inner(energy: Energy) -> Energy:
    """The energy itself, where another one only watches it."""
    while energy.can(Watched):
        energy = energy.watched  # type: ignore[attr-defined]
    return energy


def redraw(low: Tensor, step: int, x: Tensor, sites: Tensor, logits: Tensor, uniforms: Tensor) -> Tensor:
    # (n), (*batch, *event), (k), (*batch, k) or (*batch, k, values), (*batch, k) -> (*batch, *event)
    """x with some sites drawn from their conditionals by inversion: the upper of two values where u < 1/(1 + e^-ℓ); else the first value
    whose cumulative probability exceeds u."""
    place = uniforms < logits.sigmoid() if logits.ndim == uniforms.ndim else pick(logits, uniforms)
    value = (low.to(x.device)[sites] + step * place).to(x.dtype)
    batch = uniforms.shape[:-1]
    return x.reshape(*batch, -1).index_copy(-1, sites, value).reshape(x.shape)


def pick(logits: Tensor, uniforms: Tensor) -> Tensor:  # (*batch, k, values), (*batch, k) -> (*batch, k)
    """Places drawn with probabilities softmax(ℓ), by inversion; a value of weight 0 is never drawn."""
    cumulative = logits.softmax(-1).double().cumsum(-1)
    return (uniforms.double().unsqueeze(-1) * cumulative[..., -1:] >= cumulative).sum(-1).clamp(max=logits.shape[-1] - 1)


class Conditionals:
    """The conditionals of one energy: blocks of sites that may be redrawn together, and their log weights."""

    def __init__(self, energy: Energy) -> None:
        self.sites = sites_of(energy)
        self.node = _node(energy)
        self.hidden = self.node.hidden

    def blocks(self, device: torch.device) -> list[Tensor]:
        """Index tensors into the flattened event: sites of one block are independent given all others and the hidden units."""
        energy = self.node.energy
        known = _blocks.get(energy)
        if known is None or known[0].device != device:
            known = [block.to(device) for block in self.node.blocks()]
            _blocks[energy] = known
        return known

    def draw(self, x: Tensor, uniforms: Tensor) -> Any:  # (*batch, *event), (*batch, hidden)
        """The hidden units of every expert that has some, in the form that `logits` takes."""
        return self.node.draw(x, uniforms)

    def logits(self, x: Tensor, sites: Tensor, drawn: Any = None) -> Tensor:
        # (*batch, *event), (k) -> (*batch, k) or (*batch, k, values)
        """ℓ of these sites, each given all others: log-odds where every site has two values, else log weights, -inf past a site's own."""
        logits = self.node.logits(x, sites, drawn)
        wide = logits.ndim > x.ndim - len(self.node.energy.event_shape) + 1
        if self.sites.binary:
            return logits[..., 1] - logits[..., 0] if wide else logits
        logits = logits if wide else torch.stack([torch.zeros_like(logits), logits], -1)
        counts = self.sites.counts.to(x.device)
        most = int(counts.max())
        inside = torch.arange(most, device=x.device) < counts[sites].unsqueeze(-1)
        return logits[..., :most].masked_fill(~inside, -torch.inf)


_blocks: weakref.WeakKeyDictionary[Energy, list[Tensor]] = weakref.WeakKeyDictionary()


# ---------------------------------------------------------------- the nodes of a composition


class _Node(ABC):
    """Conditionals of one part of an expression. `low` are the lowest values of its sites, for parts of a sum must agree on them."""

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
    """An expert that states them given its hidden units."""

    @property
    def hidden(self) -> int:  # type: ignore[override]
        return self.energy.hidden

    def draw(self, x: Tensor, uniforms: Tensor) -> Any:
        return self.energy.draw_hidden(x, uniforms)

    def logits(self, x: Tensor, sites: Tensor, drawn: Any) -> Tensor:
        return self.energy.site_logits(drawn, sites)


class _Evaluated(_Node):
    """Anything: each site by itself, the energy evaluated with each of its values."""

    def blocks(self) -> Sequence[Tensor]:
        return torch.arange(self.energy.event_shape.numel()).split(1)

    def logits(self, x: Tensor, sites: Tensor, drawn: Any) -> Tensor:
        values, inside = sites_of(self.energy).values(x)
        flat = x.reshape(*x.shape[: x.ndim - len(self.energy.event_shape)], -1)
        found = []
        for site in sites.tolist():
            tried = flat.expand(values.shape[1], *flat.shape).clone()
            tried[..., site] = values[site].reshape(-1, *[1] * (flat.ndim - 1))
            energy = self.energy(tried.reshape(-1, *x.shape))  # (values, *batch)
            found.append((-energy).movedim(0, -1).masked_fill(~inside[site], -torch.inf))
        return torch.stack(found, -2)


class _Sum(_Node):
    """A weighted sum of energies: log weights add up, and blocks are cut until no part has an edge inside one."""

    def __init__(self, energy: Energy, weights: Sequence[float | Tensor], parts: Sequence[_Node]) -> None:
        super().__init__(energy)
        self.weights, self.parts = weights, parts
        self.hidden = sum(part.hidden for part in parts)

    def blocks(self) -> Sequence[Tensor]:
        n = self.energy.event_shape.numel()
        colours, count = torch.zeros(n, dtype=torch.long), 1
        for part in self.parts:
            blocks = part.blocks()
            own = torch.empty_like(colours)
            for index, block in enumerate(blocks):
                own[block.cpu()] = index
            colours, kinds = (colours * len(blocks) + own).unique(return_inverse=True)[::-1]
            count = len(kinds)
        return colours.argsort(stable=True).split(torch.bincount(colours, minlength=count).tolist())

    def draw(self, x: Tensor, uniforms: Tensor) -> Any:
        pieces = uniforms.split([part.hidden for part in self.parts], -1)
        return [part.draw(x, piece) for part, piece in zip(self.parts, pieces, strict=True)]

    def logits(self, x: Tensor, sites: Tensor, drawn: Any) -> Tensor:
        single = x.ndim - len(self.energy.event_shape) + 1
        total = x.new_zeros(len(sites), dtype=self.energy.dtype)
        for k, (weight, part) in enumerate(zip(self.weights, self.parts, strict=True)):
            logits = part.logits(x, sites, None if drawn is None else drawn[k])
            total = _plus(total, _weighed(weight, logits, logits.ndim - single + 1), single)
        return total


class _Renumbered(_Node):
    """`@ poe.fill` and `poe.on`: a part that sees the sites of a larger or smaller event. `places`: of each site, its number there,
    or -1."""

    def __init__(self, energy: Pullback, part: _Node, places: Tensor) -> None:
        super().__init__(energy)
        self.function, self.part, self.places = energy.function, part, places
        self.hidden = part.hidden

    def blocks(self) -> Sequence[Tensor]:
        own = torch.full((self.part.energy.event_shape.numel() + 1,), -1, dtype=torch.long)  # the last one is -1's
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
        shape = [*logits.shape]
        shape[axis] = len(sites)
        return logits.new_zeros(shape).index_copy(axis, seen.nonzero().squeeze(-1), logits)


def _node(energy: Energy) -> _Node:
    """The node of an expression. Parts whose sites have other lowest values than the whole are evaluated together."""
    found = _structured(energy)
    return _Evaluated(energy) if found is None else found


def _structured(energy: Energy) -> _Node | None:
    plain = inner(energy)
    if plain.can(Hidden):
        return _Latent(plain)
    if plain.can(SiteLogits):
        return _Stated(plain)
    if isinstance(plain, Level):
        beta = plain.beta
        return _sum(plain, [1 - beta, beta], [plain.path.start, plain.path.end])
    if isinstance(plain, Product):
        terms = [term for term in plain.terms if term.coefficient]
        return _sum(plain, [term.power for term in terms], [term.energy for term in terms])
    if isinstance(plain, Shifted):
        return _sum(plain, [1.0], [plain.energy])
    if isinstance(plain, Pullback) and isinstance(plain.function, Fill):
        return _Renumbered(plain, _node(plain.energy), plain.function.free)
    if isinstance(plain, Pullback) and isinstance(plain.function, Select) and _box(plain.energy) is not None:
        places = torch.full((plain.event_shape.numel(),), -1, device=plain.function.index.device)
        places[plain.function.index] = torch.arange(len(plain.function.index), device=places.device)
        return _Renumbered(plain, _node(plain.energy), places)
    return None


def _sum(energy: Energy, weights: Sequence[float | Tensor], parts: Sequence[Energy]) -> _Node | None:
    whole, nodes = sites_of(energy), []
    for weight, part in zip(weights, parts, strict=True):
        box = _box(part)
        if box is None or box.step != whole.step or not torch.equal(box.low.flatten().to(whole.low), whole.low):
            return None
        node = _node(part)
        # hidden units are those of the expert's own power: any other one is no sum over them
        nodes.append(_Evaluated(part) if node.hidden and not (isinstance(weight, float) and weight == 1) else node)
    return _Sum(energy, weights, nodes)


def _weighed(weight: float | Tensor, logits: Tensor, trailing: int) -> Tensor:
    """weight·ℓ; what is excluded stays so, whatever the power, but for a weight of 0."""
    if isinstance(weight, Tensor):
        weight = weight.to(logits).reshape(weight.shape + (1,) * trailing)
        return torch.where(weight == 0, 0, torch.where(logits.isinf(), logits, weight * logits))
    return logits if weight == 1 else torch.where(logits.isinf(), logits, weight * logits)


def _plus(a: Tensor, b: Tensor, single: int) -> Tensor:
    """The sum of log-odds (`single` axes) or log weights; of two lists of values the shorter one counts."""
    if a.ndim <= single and b.ndim <= single:
        return a + b
    wide = [v if v.ndim > single else torch.stack([torch.zeros_like(v), v], -1) for v in (a, b)]
    most = min(wide[0].shape[-1], wide[1].shape[-1])
    return wide[0][..., :most] + wide[1][..., :most]


def opaque(energy: Energy) -> Any:
    """The energy itself where it redraws its blocks but does not state how (a stranger's, or one on continuous coordinates)."""
    plain = inner(energy)
    states = plain.can(SiteLogits) or plain.can(Hidden)
    return plain if plain.can(BlockGibbs) and not states else None
