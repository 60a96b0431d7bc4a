"""What is known of an energy: log Z, whether its mass is finite and its density bounded, whether it
is flat, how it grows. One function a fact, with "unknown" (None) for an answer; each kind of node
registers its own in `poe.algebra.node_facts`, and an expert overrides the property of that name."""

from __future__ import annotations

from functools import singledispatch
from typing import Any

from poe.algebra import support as sets


@singledispatch
def log_z(energy: Any) -> Any:
    """log of the integral (or sum) of exp(-E), an `Estimate`."""
    return None


@singledispatch
def proper(energy: Any) -> bool | None:
    """Whether 0 < Z < infinity."""
    return is_finite(energy)


@singledispatch
def bounded(energy: Any) -> bool | None:
    """Whether the density is bounded above."""
    return is_finite(energy)


@singledispatch
def flat(energy: Any) -> bool | None:
    """Whether the density is one finite number above 0 all over its support."""
    return None


@singledispatch
def growth(energy: Any) -> float | None:
    """The c for which E(x) = c‖x‖² + O(‖x‖) far out, E finite everywhere."""
    return None


def is_finite(energy: Any) -> bool | None:
    """True on finitely many points, where each sum and each density is finite; None elsewhere."""
    return True if sets.is_discrete(energy.support) and sets.is_bounded(energy.support) else None
