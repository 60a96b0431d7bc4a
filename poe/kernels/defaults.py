"""The default kernel of a target."""

from __future__ import annotations

import math

from poe.algebra import support as sets
from poe.algebra.energy import Energy
from poe.kernels.base import Kernel
from poe.kernels.discrete import DiscreteLangevin
from poe.kernels.gibbs import Gibbs
from poe.kernels.langevin import Langevin
from poe.kernels.microcanonical import Microcanonical
from poe.spaces.conditionals import Conditionals, opaque
from poe.spaces.sites import sites_of

MAX_BLOCKS = (
    64  # of sites that Gibbs redraws one after the other; with more, all sites are moved at once
)


def default_kernel(energy: Energy, *, compile: bool = False) -> Kernel:
    """Adjusted microcanonical dynamics; in one dimension, or to be compiled, Langevin. On discrete
    spaces see `default_discrete_kernel`."""
    if sets.is_discrete(energy.support):
        return default_discrete_kernel(energy)
    return Langevin() if compile or math.prod(energy.event_shape) < 2 else Microcanonical()


def default_discrete_kernel(energy: Energy) -> Kernel:
    """Gibbs where the sites form few blocks that can each be redrawn together, else discrete
    Langevin."""
    if opaque(energy) is not None or not sites_of(energy).binary:
        return Gibbs()
    return (
        Gibbs()
        if len(Conditionals(energy).blocks(energy.device)) <= MAX_BLOCKS
        else DiscreteLangevin()
    )
