"""What a picture of a density is made of: where to look, the experts by name, energies on a grid,
regions of given mass.

Numbers alone: `poe.plotting` paints them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from poe.algebra import support as sets
from poe.algebra.capabilities import Samples
from poe.algebra.contrast import Contrast
from poe.algebra.energy import Energy
from poe.algebra.maps import Select
from poe.algebra.product import Product
from poe.algebra.pullback import Pullback
from poe.algebra.text import child, names

CHUNK = 1 << 14  # points whose energies are worked out at a time
OWN = 4096  # draws of an expert alone, which say where it lives


class Factor(NamedTuple):
    """An expert of a composition, as a function of the whole event; `sign` is "", "not " (behind a
    `-`) or "1/" (a negative power)."""

    label: str
    energy: Energy
    sign: str = ""


def factors(energy: Energy) -> list[Factor]:
    """The experts of a composition, each once, in the order in which they are written. A named part
    and what stands under an `@` stay whole, as they print."""
    label = {id(thing): text for text, thing in names(energy).items()}
    found: dict[int, Factor] = {}

    def visit(node: Energy, sign: str) -> None:
        if id(node) in label:
            found.setdefault(id(node), Factor(sign + label[id(node)], node, sign))
        elif isinstance(node, Product):
            for term in node.terms:
                visit(term.energy, sign if term.coefficient >= 0 else "" if sign else "1/")
        elif isinstance(node, Contrast):
            visit(node.wanted, sign)
            visit(node.unwanted, "" if sign else "not ")
        elif isinstance(node, Pullback):
            where = (
                f" on {node.function.index.tolist()}" if isinstance(node.function, Select) else None
            )
            text = child(node, label)[0] if where is None else child(node.energy, label)[0] + where
            found.setdefault(id(node), Factor(sign + text, node, sign))
        else:
            for part in node.parts:
                visit(part, sign)

    visit(energy, "")
    return list(found.values())


def energies(energy: Energy, points: Tensor) -> Tensor:  # (n, *event) -> (n)
    """E of each point in nats, in double precision and without a graph; +inf outside the
    support."""
    with torch.no_grad():
        return torch.cat([energy(chunk).double().cpu() for chunk in points.split(CHUNK)])


def window(x: Tensor, target: Energy | None) -> tuple[Tensor, Tensor]:
    # (n, d) -> (d), (d)
    """The ends of the box to look at: 99 % of the draws with a margin, what the experts call their
    own as far as that is near, and nothing outside a support that is a box."""
    low, high = _quantiles(x, 0.005, 0.995)
    size = torch.where(high > low, high - low, low.abs().clamp(min=1.0))
    low, high = low - 0.2 * size, high + 0.2 * size
    nearest, farthest = low - 0.6 * size, high + 0.6 * size
    for factor in [] if target is None else factors(target):
        if not factor.sign and factor.energy.can(Samples):
            first, last = _quantiles(_own(factor.energy).reshape(OWN, -1), 0.02, 0.98)
            low, high = (
                torch.minimum(low, first.maximum(nearest)),
                torch.maximum(high, last.minimum(farthest)),
            )
    if target is not None and isinstance(target.support, sets.Box):
        margin = 0.02 * (high - low)
        low = torch.maximum(low, target.support.low.flatten().cpu().double() - margin)
        high = torch.minimum(high, target.support.high.flatten().cpu().double() + margin)
    return low, high


def _quantiles(x: Tensor, first: float, last: float) -> tuple[Tensor, Tensor]:  # (n, d) -> (d), (d)
    ordered = x.double().cpu().sort(0).values
    return ordered[int(first * (len(x) - 1))], ordered[math.ceil(last * (len(x) - 1))]


def _own(energy: Energy) -> Tensor:  # -> (OWN, *event)
    return energy.sample(OWN, generator=torch.Generator(energy.device).manual_seed(0))  # type: ignore[operator]


def levels(energy: Energy, values: Tensor, masses: Sequence[float]) -> list[float]:
    """The energies below which lie the smallest regions of these masses, in nats: quantiles of E
    over the expert's own draws where it draws, else from `values`, its energies on an even grid."""
    if not energy.can(Samples):
        return regions(values, masses)
    found = energies(energy, _own(energy))
    return [found.quantile(mass).item() for mass in masses]


def regions(values: Tensor, masses: Sequence[float]) -> list[float]:
    """The energies below which lie the smallest regions of these masses, from the energies of
    points on an even grid, in nats. A NaN counts for nothing."""
    ordered = values[values < math.inf].flatten().sort().values
    if not len(ordered):
        return []
    share = (
        (ordered[ordered.isfinite()].min() - ordered).exp().cumsum(0)
        if bool(ordered.isfinite().any())
        else ordered
    )
    places = [int(torch.searchsorted(share, mass * share[-1])) for mass in masses]
    return [ordered[min(place, len(ordered) - 1)].item() for place in places]


def density(values: Tensor, cell: float, log_z: float | None, share: float = 1.0) -> Tensor:
    """exp(-E - log Z) on an even grid. Where log Z is not known the density is scaled to have mass
    `share` on the grid, whose cells have volume `cell`."""
    if log_z is None:
        log_z = (
            torch.logsumexp(-values[~values.isnan()].flatten(), 0).item()
            + math.log(cell)
            - math.log(max(share, 1e-300))
        )
    return (-values - log_z).exp()
