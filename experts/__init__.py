"""Experts that plug into `poe`: one family a module, imported when first asked for.

>>> import experts
>>> experts.Normal(0.0, 1.0).log_z
Estimate(value=0.0, standard_error=0.0)
"""
# ruff: noqa: F401 (imports for type checkers; the table below says the same at run time)

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from experts.autoregressive import MADE, Causal
    from experts.boltzmann.dbm import DBM
    from experts.boltzmann.gaussian import GaussianRBM
    from experts.boltzmann.ising import Ising, Potts
    from experts.boltzmann.rbm import RBM
    from experts.classifier import Classifier
    from experts.denoiser import Denoiser
    from experts.distribution import Distribution
    from experts.families.beta import Beta, Dirichlet
    from experts.families.discrete import Bernoulli, Categorical, Poisson
    from experts.families.gamma import Exponential, Gamma
    from experts.families.normal import Normal
    from experts.families.von_mises import VonMises
    from experts.flow import Flow
    from experts.functions import Function, function
    from experts.language import LanguageModel, NGram
    from experts.latent.decoder import Decoder, Generator
    from experts.latent.gan import GAN, Discriminator
    from experts.latent.vae import VAE
    from experts.mixture_made import MixtureMADE
    from experts.neural import ConvEnergy, MLPEnergy
    from experts.noise.energy import NoiseConditional
    from experts.noise.network import ConceptNetwork
    from experts.noise_schedule import NoiseSchedule
    from experts.normflows import NormFlow
    from experts.pixelcnn import PixelCNN
    from experts.vocabulary import Vocabulary
    from experts.zuko import Zuko

_NAMES = {  # module of experts -> its public names
    "autoregressive": ("Causal", "MADE"),
    "boltzmann.dbm": ("DBM",),
    "boltzmann.gaussian": ("GaussianRBM",),
    "boltzmann.ising": ("Ising", "Potts"),
    "boltzmann.rbm": ("RBM",),
    "classifier": ("Classifier",),
    "denoiser": ("Denoiser",),
    "distribution": ("Distribution",),
    "families.beta": ("Beta", "Dirichlet"),
    "families.discrete": ("Bernoulli", "Categorical", "Poisson"),
    "families.gamma": ("Exponential", "Gamma"),
    "families.normal": ("Normal",),
    "families.von_mises": ("VonMises",),
    "flow": ("Flow",),
    "functions": ("Function", "function"),
    "language": ("LanguageModel", "NGram"),
    "latent.decoder": ("Decoder", "Generator"),
    "latent.gan": ("Discriminator", "GAN"),
    "latent.vae": ("VAE",),
    "mixture_made": ("MixtureMADE",),
    "neural": ("ConvEnergy", "MLPEnergy"),
    "noise.energy": ("NoiseConditional",),
    "noise.network": ("ConceptNetwork",),
    "noise_schedule": ("NoiseSchedule",),
    "normflows": ("NormFlow",),
    "pixelcnn": ("PixelCNN",),
    "vocabulary": ("Vocabulary",),
    "zuko": ("Zuko",),
}
_MODULES = {name: module for module, names in _NAMES.items() for name in names}
__all__ = sorted(_MODULES)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"experts.{_MODULES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES})
