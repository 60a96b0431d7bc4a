"""Products of experts: write down what you want from the models you already have; get draws you can trust, or be told why not."""

from poe.anomaly import anomaly_score
from poe.draws import Draws
from poe.energy import (
    Density,
    Energy,
    Estimate,
    combine,
    conjunction,
    contrast,
    fill,
    leaves,
    mixture,
    names,
    on,
    product,
    pullback,
    shift,
)
from poe.expression import parse
from poe.fitting import fit_density
from poe.kernels import (
    Cycle,
    DiscreteLangevin,
    Flip,
    Gibbs,
    GibbsWithGradients,
    Hamiltonian,
    IndependentMetropolis,
    Langevin,
    LineIntegral,
    Microcanonical,
    RandomWalk,
    Tempered,
)
from poe.modes import mode
from poe.partition import bracket, log_z, normalize
from poe.plan import Plan, plan, sample
from poe.registry import as_energy, available, converter, create, register
from poe.rules import closed_form, simplify
from poe.stein import SteinTest, stein_test
from poe.storage import load, save

__version__ = "0.1.0"

__all__ = [
    "Cycle",
    "Density",
    "DiscreteLangevin",
    "Draws",
    "Energy",
    "Estimate",
    "Flip",
    "Gibbs",
    "GibbsWithGradients",
    "Hamiltonian",
    "IndependentMetropolis",
    "Langevin",
    "LineIntegral",
    "Microcanonical",
    "Plan",
    "RandomWalk",
    "SteinTest",
    "Tempered",
    "anomaly_score",
    "as_energy",
    "available",
    "bracket",
    "closed_form",
    "combine",
    "conjunction",
    "contrast",
    "converter",
    "create",
    "fill",
    "fit_density",
    "leaves",
    "load",
    "log_z",
    "mixture",
    "mode",
    "names",
    "normalize",
    "on",
    "parse",
    "plan",
    "product",
    "pullback",
    "register",
    "sample",
    "save",
    "shift",
    "simplify",
    "stein_test",
]
