"""Markov transitions, one file each: `init(energy, x)`, `noise(state, generator)`, and a pure `step(energy, state, noise)`."""

from poe.kernels.base import Info, Kernel, State
from poe.kernels.langevin import Langevin
from poe.kernels.tempered import Tempered

__all__ = ["Info", "Kernel", "Langevin", "State", "Tempered"]
