"""The numbers behind the picture of a density: the window, the experts by name, energies on a grid,
regions of given mass."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from poe.algebra import support as sets
from poe.algebra.capabilities import Samples
from poe.algebra.contrast import Contrast
from poe.algebra.energy import Energy
from poe.algebra.product import Product
from poe.algebra.pullback import Pullback, is_on
from poe.algebra.text import child, labels

CHUNK = 1 << 14  # points evaluated at a time
OWN_DRAWS = 4096  # of an expert alone, which show where it has its mass
MAX_LOG_Z_ERROR = 0.05  # nats; a picture shows the density with the known log Z up to here


class Component(NamedTuple):
    """An expert of a composition, as a function of the whole event; `sign` is "", "not " (behind a
    `-`) or "1/" (a negative power)."""

    label: str
    energy: Energy
    sign: str = ""


def components(energy: Energy) -> list[Component]:
    """The experts of a composition, each once, in the order in which they are written. A named part
    and what stands under an `@` stay whole, as they print."""
    label = labels(energy)
    found: dict[int, Component] = {}

    def visit(node: Energy, sign: str) -> None:
        text = label[id(node)] if id(node) in label else _whole(node, label)
        if text is not None:
            found.setdefault(id(node), Component(sign + text, node, sign))
            return
        for part, its_sign in _signed(node, sign):
            visit(part, its_sign)

    visit(energy, "")
    return list(found.values())


@functools.singledispatch
def _whole(node: Energy, label: dict[int, str]) -> str | None:
    """The text of a node whose parts are not shown by themselves; None for others."""
    return None


@_whole.register
def _(node: Pullback, label: dict[int, str]) -> str:
    if is_on(node):
        return f"{child(node.energy, label)[0]} on {node.function.index.tolist()}"
    return child(node, label)[0]


@functools.singledispatch
def _signed(node: Energy, sign: str) -> Iterable[tuple[Energy, str]]:
    """The parts of a node, each with its sign; what stands twice behind a sign has none."""
    return [(part, sign) for part in node.parts]


@_signed.register
def _(node: Product, sign: str) -> Iterable[tuple[Energy, str]]:
    inverse = "" if sign else "1/"
    return [(term.energy, sign if term.coefficient >= 0 else inverse) for term in node.terms]


@_signed.register
def _(node: Contrast, sign: str) -> Iterable[tuple[Energy, str]]:
    return [(node.wanted, sign), *((part, "" if sign else "not ") for part in node.parts[1:])]


def energies(energy: Energy, points: Tensor) -> Tensor:  # (n, *event) -> (n)
    """E of each point in nats, in double precision and without a graph; +inf outside the
    support."""
    with torch.no_grad():
        return torch.cat([energy(chunk).double().cpu() for chunk in points.split(CHUNK)])


def energies_like(energy: Energy, points: Tensor, draws: Any) -> Tensor:  # (n, d) -> (n)
    """E at points given in double precision, converted to the type and the shape of the draws."""
    return energies(energy, points.to(draws.x).reshape(len(points), *draws.x.shape[1:]))


def known_log_z(draws: Any) -> float | None:
    """log Z of the target in nats where its error is small, so that a picture shows the density
    with that constant."""
    known = draws.log_z
    return None if known is None or known.standard_error > MAX_LOG_Z_ERROR else float(known)


def window(x: Tensor, target: Energy | None) -> tuple[Tensor, Tensor]:
    # (n, d) -> (d), (d)
    """The ends of the box to show: 99 % of the draws with a margin, the bulk of each expert as far
    as it is near, and nothing outside a support that is a box."""
    low, high = _quantiles(x, 0.005, 0.995)
    size = torch.where(high > low, high - low, low.abs().clamp(min=1.0))
    low, high = low - 0.2 * size, high + 0.2 * size
    nearest, farthest = low - 0.6 * size, high + 0.6 * size
    for part in [] if target is None else components(target):
        if not part.sign and part.energy.can(Samples):
            first, last = _quantiles(_own(part.energy).reshape(OWN_DRAWS, -1), 0.02, 0.98)
            low = torch.minimum(low, first.maximum(nearest))
            high = torch.maximum(high, last.minimum(farthest))
    if target is not None and isinstance(target.support, sets.Box):
        margin = 0.02 * (high - low)
        low = torch.maximum(low, target.support.low.flatten().cpu().double() - margin)
        high = torch.minimum(high, target.support.high.flatten().cpu().double() + margin)
    return low, high


def _quantiles(x: Tensor, first: float, last: float) -> tuple[Tensor, Tensor]:  # (n, d) -> (d), (d)
    ordered = x.double().cpu().sort(0).values
    return ordered[int(first * (len(x) - 1))], ordered[math.ceil(last * (len(x) - 1))]


def _own(energy: Energy) -> Tensor:  # -> (OWN_DRAWS, *event)
    return energy.sample(OWN_DRAWS, generator=torch.Generator(energy.device).manual_seed(0))  # type: ignore[operator]


def levels(energy: Energy, values: Tensor, masses: Sequence[float]) -> list[float]:
    """The energies that bound the smallest regions of these masses, in nats: quantiles of E over
    the expert's own draws where it draws samples, else from `values`, its energies on an even
    grid."""
    if not energy.can(Samples):
        return regions(values, masses)
    found = energies(energy, _own(energy))
    return [found.quantile(mass).item() for mass in masses]


def regions(values: Tensor, masses: Sequence[float]) -> list[float]:
    """The energies that bound the smallest regions of these masses, from the energies of points on
    an even grid, in nats. NaN values are ignored."""
    ordered = values[values < math.inf].flatten().sort().values
    if not len(ordered):
        return []
    share, finite = ordered, ordered[ordered.isfinite()]
    if len(finite):
        share = (finite.min() - ordered).exp().cumsum(0)
    places = [int(torch.searchsorted(share, mass * share[-1])) for mass in masses]
    return [ordered[min(place, len(ordered) - 1)].item() for place in places]


def density(values: Tensor, cell: float, log_z: float | None, share: float = 1.0) -> Tensor:
    """exp(-E - log Z) on an even grid. Where log Z is not known the density is scaled to have mass
    `share` on the grid, whose cells have volume `cell`."""
    if log_z is None:
        total = torch.logsumexp(-values[~values.isnan()].flatten(), 0).item()
        log_z = total + math.log(cell) - math.log(max(share, 1e-300))
    return (-values - log_z).exp()
