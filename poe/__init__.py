"""Products of experts: write down what you want from the models you already have; get draws you can
trust, or be told why not."""

from poe.algebra.closed_forms import closed_form
from poe.algebra.combining import combine, conjunction
from poe.algebra.contrast import contrast
from poe.algebra.energy import Density, Energy, Estimate
from poe.algebra.errors import ImproperError, ImproperWarning, LawError
from poe.algebra.maps import fill
from poe.algebra.mixture import mixture
from poe.algebra.product import product
from poe.algebra.pullback import on, pullback
from poe.algebra.shifted import shift
from poe.algebra.simplification import simplify
from poe.algebra.text import leaves, names
from poe.diagnostics.anomaly import anomaly_score
from poe.diagnostics.draws import Draws
from poe.diagnostics.stein import SteinTest, stein_test
from poe.io.container import StorageError
from poe.io.expression import parse
from poe.io.storage import load, save
from poe.io.syntax import ExpressionError
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
from poe.registry import (
    PoeError,
    PoeWarning,
    RegistryError,
    as_energy,
    available,
    converter,
    create,
    register,
)
from poe.sampling.estimation import EstimateWarning
from poe.sampling.log_partition import bracket, log_z, normalize
from poe.sampling.modes import mode
from poe.sampling.planning import Plan, plan
from poe.sampling.sampler import sample
from poe.smc.tuning import StalledError
from poe.training.fitting import fit_density

__version__ = "0.1.0"

__all__ = [
    "Cycle",
    "Density",
    "DiscreteLangevin",
    "Draws",
    "Energy",
    "Estimate",
    "EstimateWarning",
    "ExpressionError",
    "Flip",
    "Gibbs",
    "GibbsWithGradients",
    "Hamiltonian",
    "ImproperError",
    "ImproperWarning",
    "IndependentMetropolis",
    "Langevin",
    "LawError",
    "LineIntegral",
    "Microcanonical",
    "Plan",
    "PoeError",
    "PoeWarning",
    "RandomWalk",
    "RegistryError",
    "StalledError",
    "SteinTest",
    "StorageError",
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
