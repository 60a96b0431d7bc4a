"""Experts that plug into `poe`: one family a module, imported when first asked for.

>>> import experts
>>> experts.Normal(0.0, 1.0).log_z
Estimate(value=0.0, standard_error=0.0)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

# at once, so that `experts.function` is the helper whatever has been imported: a module has the
# same name
from experts.function import Function, function

if TYPE_CHECKING:
    from experts.autoregressive import MADE, Causal
    from experts.boltzmann import RBM, GaussianRBM
    from experts.classifier import Classifier
    from experts.dbm import DBM
    from experts.denoiser import Denoiser, NoiseSchedule
    from experts.distribution import Distribution
    from experts.exponential import (
        Bernoulli,
        Beta,
        Categorical,
        Dirichlet,
        Exponential,
        Gamma,
        Normal,
        Poisson,
        VonMises,
    )
    from experts.flow import Flow
    from experts.ising import Ising, Potts
    from experts.language import LanguageModel, NGram
    from experts.latent import GAN, VAE, Decoder, Discriminator, Generator
    from experts.mixture_made import MixtureMADE
    from experts.neural import ConvEnergy, MLPEnergy
    from experts.noise import ConceptNetwork, NoiseConditional
    from experts.normflows import NormFlow
    from experts.pixelcnn import PixelCNN
    from experts.vocabulary import Vocabulary
    from experts.zuko import Zuko

__all__ = [
    "DBM",
    "GAN",
    "MADE",
    "RBM",
    "VAE",
    "Bernoulli",
    "Beta",
    "Categorical",
    "Causal",
    "Classifier",
    "ConceptNetwork",
    "ConvEnergy",
    "Decoder",
    "Denoiser",
    "Dirichlet",
    "Discriminator",
    "Distribution",
    "Exponential",
    "Flow",
    "Function",
    "Gamma",
    "GaussianRBM",
    "Generator",
    "Ising",
    "LanguageModel",
    "MLPEnergy",
    "MixtureMADE",
    "NGram",
    "NoiseConditional",
    "NoiseSchedule",
    "NormFlow",
    "Normal",
    "PixelCNN",
    "Poisson",
    "Potts",
    "Vocabulary",
    "VonMises",
    "Zuko",
    "function",
]

_MODULES = {
    "DBM": "dbm",
    "GAN": "latent",
    "MADE": "autoregressive",
    "RBM": "boltzmann",
    "VAE": "latent",
    "Causal": "autoregressive",
    "Classifier": "classifier",
    "ConceptNetwork": "noise",
    "ConvEnergy": "neural",
    "Decoder": "latent",
    "Denoiser": "denoiser",
    "Discriminator": "latent",
    "Distribution": "distribution",
    "Flow": "flow",
    "GaussianRBM": "boltzmann",
    "Generator": "latent",
    "Ising": "ising",
    "LanguageModel": "language",
    "MLPEnergy": "neural",
    "MixtureMADE": "mixture_made",
    "NGram": "language",
    "NoiseConditional": "noise",
    "NoiseSchedule": "denoiser",
    "NormFlow": "normflows",
    "PixelCNN": "pixelcnn",
    "Potts": "ising",
    "Vocabulary": "vocabulary",
    "Zuko": "zuko",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"experts.{_MODULES.get(name, 'exponential')}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
