"""How a composition evaluates its parts: without the checks that were made at the outermost call,
masked only where the points may lie outside a part's support, those that share a network in one
call of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from poe.algebra.capabilities import SharesNetwork
from poe.algebra.energy import Energy
from poe.algebra.points import moved_inside, wrong_shape
from poe.algebra.support import is_real

Evaluate = Callable[[Energy, Tensor], Tensor]
Differentiate = Callable[[Energy, Tensor], tuple[Tensor, Tensor]]
# positions of energies that share a network; each energy with all positions where it stands
Group = tuple[tuple[int, ...], ...]


def inner(part: Energy, x: Tensor) -> Tensor:  # (*batch, *event) -> (*batch)
    """The energy at points of its support, of which only its shape is checked: one of another
    shape would be broadcast."""
    if type(part).__call__ is not Energy.__call__:
        return part(x)
    energy = nn.Module.__call__(part, x)
    if energy.shape != x.shape[: x.ndim - len(part.event_shape)]:
        raise wrong_shape(part, energy, x)
    return energy


def masked(part: Energy, x: Tensor) -> Tensor:  # (*batch, *event) -> (*batch)
    """The energy at any points, unchecked: +inf outside its support."""
    if is_real(part.support):
        return inner(part, x)
    inside, safe = moved_inside(part.support, part.event_shape, x)
    return torch.where(inside, inner(part, safe), math.inf)


def inner_with_gradient(part: Energy, x: Tensor) -> tuple[Tensor, Tensor]:
    # (*batch, *event) -> (*batch), (*batch, *event)
    """The energy and its gradient at points of its support, of which only shapes are checked."""
    if type(part).value_and_grad is not Energy.value_and_grad:
        return part.value_and_grad(x)
    energy, gradient = part._value_and_grad(x)
    if energy.shape != x.shape[: x.ndim - len(part.event_shape)]:
        raise wrong_shape(part, energy, x)
    return energy, gradient


def masked_with_gradient(part: Energy, x: Tensor) -> tuple[Tensor, Tensor]:
    # (*batch, *event) -> (*batch), (*batch, *event)
    """The energy and its gradient at any points, unchecked: +inf and 0 outside its support."""
    if is_real(part.support):
        return inner_with_gradient(part, x)
    inside, safe = moved_inside(part.support, part.event_shape, x)
    energy, gradient = inner_with_gradient(part, safe)
    energy = torch.where(inside, energy, math.inf)
    void = (energy == math.inf).reshape(energy.shape + (1,) * len(part.event_shape))
    return energy, torch.where(void, 0, gradient)


def together(
    energies: Sequence[Energy],
    x: Tensor,
    groups: Sequence[Group] | None = None,
    evaluate: Evaluate = Energy.__call__,
) -> list[Tensor]:  # (*batch, *event) -> k times (*batch)
    """The energy of each at x; those that share a network (`groups`, found where not given) in one
    call of it, each other one by `evaluate`."""
    known: dict[int, Tensor] = {}
    for group in sharing(energies) if groups is None else groups:
        members = [energies[places[0]] for places in group]
        for places, energy in zip(group, members[0].fused(members, x), strict=True):  # type: ignore[operator]
            for place in places:
                known[place] = energy
    return [known[i] if i in known else evaluate(energy, x) for i, energy in enumerate(energies)]


def together_with_gradients(
    energies: Sequence[Energy],
    x: Tensor,
    groups: Sequence[Group] | None = None,
    evaluate: Differentiate = Energy.value_and_grad,
) -> Iterator[tuple[Tensor, Tensor]]:
    # (*batch, *event) -> k times (*batch), (*batch, *event)
    """`value_and_grad` of each at x, one after the other; those that share a network in one call of
    it."""
    known: dict[int, tuple[Tensor, Tensor]] = {}
    for group in sharing(energies) if groups is None else groups:
        members = [energies[places[0]] for places in group]
        pairs = zip(*members[0].fused_value_and_grad(members, x), strict=True)  # type: ignore[operator]
        for places, pair in zip(group, pairs, strict=True):
            for place in places:
                known[place] = pair
    for i, energy in enumerate(energies):
        yield known[i] if i in known else evaluate(energy, x)


def sharing(energies: Sequence[Energy]) -> tuple[Group, ...]:
    """Positions of the energies that share a network, where two or more different ones do.
    Positions stay right when the energies are copied, moved or loaded."""
    networks: dict[int, dict[int, list[int]]] = {}
    for i, energy in enumerate(energies):
        if energy.can(SharesNetwork):
            members = networks.setdefault(id(energy.network), {})
            members.setdefault(id(energy), []).append(i)
    return tuple(
        tuple(map(tuple, members.values())) for members in networks.values() if len(members) > 1
    )
