"""Checks of arguments of the algebra; messages repeat the expression that was written."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor, nn

from poe.algebra.energy import Energy, Estimate
from poe.algebra.support import measure
from poe.algebra.text import ATOM, bracketed, shown


def whole_number(name: str, value: Any, least: int) -> int:
    """The value of an argument, as a plain int. Raises ValueError unless it is a whole number of at
    least so much; numpy's are."""
    if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
        raise ValueError(f"{name} is a whole number of at least {least}, got {value!r}")
    return int(value)


def one_measure(energies: Sequence[Energy], sign: str) -> None:
    """Raises where densities that are added or compared are known to be of different measures:
    their ratio means nothing."""
    first = energies[0]
    for energy in energies[1:]:
        known, other = measure(first.support), measure(energy.support)
        if known is None:
            first = energy
        elif other is not None and other != known:
            raise ValueError(
                f"`{sign}` compares densities of one measure: {first} on {first.support!r} has "
                f"{known}, and {energy} on {energy.support!r} has {other}; give both one support, "
                "or multiply with `&`"
            )


def known_log_z(energy: Energy) -> Estimate:
    """log Z of a part that is weighted. Raises ValueError where it is unknown."""
    if energy.log_z is None:
        raise ValueError(
            f"weights need the log Z of every part, and that of {energy} is unknown: estimate it "
            f"with poe.normalize({energy}), or write `|` for the raw sum"
        )
    return energy.log_z


def checked_power(power: Any, energy: Energy) -> float:
    """A power as a plain number. Raises TypeError or ValueError for what is not a finite one."""
    number = power
    if isinstance(power, Tensor):
        if power.requires_grad:
            raise TypeError(
                f"({energy}) ** {shown(power)}: a power that is learned is an nn.Parameter, and "
                "any other one is a plain number"
            )
        if power.ndim == 0:
            number = power.item()
    if isinstance(number, bool) or not isinstance(number, Real):
        raise TypeError(
            f"({energy}) ** {shown(power)}: a power is a number or an nn.Parameter; for a product "
            "of energies write `a & b`"
        )
    try:
        number = float(number)
    except OverflowError:  # a whole number of hundreds of digits
        number = math.inf
    if not math.isfinite(number):
        raise ValueError(f"({energy}) ** {shown(power)}: a power must be finite")
    return number


def check_parameter(power: nn.Parameter, energy: Energy) -> None:
    """Raises where a learnable power is not one floating number."""
    if power.numel() != 1:
        raise ValueError(
            f"({energy}) ** Parameter of shape {tuple(power.shape)}: a power is one number, "
            "nn.Parameter(torch.tensor(1.0)); poe.product(energies, powers) takes one for each "
            "energy"
        )
    if not power.is_floating_point():
        raise TypeError(
            f"({energy}) ** Parameter of {power.dtype}: only a floating power can learn; write "
            f"nn.Parameter(torch.tensor({power.item()}.0)), or the number {power.item()}"
            if not power.is_complex() and power.dtype != torch.bool
            else (
                f"({energy}) ** Parameter of {power.dtype}: a learnable power is one real number, "
                "nn.Parameter(torch.tensor(1.0))"
            )
        )


def right_side(other: Any, left: Energy, sign: str) -> Energy:
    """The right operand. Raises TypeError where it is no energy."""
    if isinstance(other, Energy):
        return other
    number = sign == "/" and isinstance(other, Real) and other
    hint = f"{bracketed(left, ATOM)} ** {1 / float(other):g}" if number else "poe.as_energy(it)"
    raise TypeError(
        f"`{sign}` composes energies, and its right side is of type {type(other).__name__}: "
        f"did you mean {hint}?"
    )


def energies_of(energies: Iterable[Energy], function: str, second: Any = None) -> list[Energy]:
    """The energies as a list, checked to live on one event. `second` is what was given after them,
    which may be a forgotten one."""
    if isinstance(energies, Energy) or isinstance(second, Energy):
        listed = [energies] if isinstance(energies, Energy) else list(energies)
        listed += [second] if isinstance(second, Energy) else []
        more = ", prior=..." if function == "combine" else ""
        inside = f"[{', '.join(map(shown, listed))}]{more}"
        raise TypeError(f"poe.{function} takes a list of energies: write poe.{function}({inside})")
    energies = list(energies)
    if not energies:
        raise ValueError(f"poe.{function} needs at least one energy")
    for energy in energies:
        if not isinstance(energy, Energy):
            raise TypeError(
                f"poe.{function} takes energies, not {type(energy).__name__}: poe.as_energy(model) "
                "wraps a model"
            )
    first = energies[0]
    for energy in energies[1:]:
        if energy.event_shape != first.event_shape:
            raise ValueError(
                f"{first} has event shape {tuple(first.event_shape)} and {energy} has "
                f"{tuple(energy.event_shape)}: factors live on the same event; poe.on(energy, "
                "index, event_shape) places one on part of a larger event, and energy @ f changes "
                "its variables"
            )
    said = [(energy, energy.vocabulary) for energy in energies if energy.vocabulary is not None]
    for energy, vocabulary in said[1:]:
        if vocabulary != said[0][1]:
            raise ValueError(
                f"{said[0][0]} is over {said[0][1]} and {energy} over {vocabulary}: one number "
                "means different things to them; factors share one vocabulary"
            )
    return energies
