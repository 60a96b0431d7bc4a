"""Losses for energies (`losses`), contrastive divergence (`divergence`), and densities fitted to
samples (`fitting`). It may use all folders below `sampling`, and `sampling`; it reaches experts
through the registry only."""

from poe.training.divergence import ContrastiveDivergence, PersistentContrastiveDivergence
from poe.training.fitting import Fit, fit_density
from poe.training.losses import (
    DenoisingScoreMatching,
    MaximumLikelihood,
    NoiseContrastive,
    SlicedScoreMatching,
)

__all__ = [
    "ContrastiveDivergence",
    "DenoisingScoreMatching",
    "Fit",
    "MaximumLikelihood",
    "NoiseContrastive",
    "PersistentContrastiveDivergence",
    "SlicedScoreMatching",
    "fit_density",
]
