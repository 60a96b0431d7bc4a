"""Markov transitions, one kernel a file: a frozen value with `init(energy, x)`, `noise(state,
generator)` and a pure `step(energy, state, noise)`; and how its tuning is learned (`adapt`). It may
use `algebra` and `spaces`, and `io`."""

from poe.kernels.base import Kernel
from poe.kernels.cycle import Cycle
from poe.kernels.discrete import DiscreteLangevin, Flip, GibbsWithGradients
from poe.kernels.gibbs import Gibbs
from poe.kernels.hamiltonian import Hamiltonian
from poe.kernels.independent import IndependentMetropolis
from poe.kernels.langevin import Langevin
from poe.kernels.line_integral import LineIntegral
from poe.kernels.microcanonical import Microcanonical
from poe.kernels.random_walk import RandomWalk
from poe.kernels.state import Info, State
from poe.kernels.tempered import Tempered

__all__ = [
    "Cycle",
    "DiscreteLangevin",
    "Flip",
    "Gibbs",
    "GibbsWithGradients",
    "Hamiltonian",
    "IndependentMetropolis",
    "Info",
    "Kernel",
    "Langevin",
    "LineIntegral",
    "Microcanonical",
    "RandomWalk",
    "State",
    "Tempered",
]
