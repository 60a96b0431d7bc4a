"""Losses for training energies: small frozen objects, `loss(energy, batch)` -> a scalar that any
torch optimiser takes.

| loss | minimises | needs |
|-----------------------------------|-----------------------------------------------|--------------------------------|
| `MaximumLikelihood` | -E_data log p(x) | log Z = const, or model draws |
| `ContrastiveDivergence` | -E_data log p(x), nearly | a kernel |
| `PersistentContrastiveDivergence` | -E_data log p(x), as chains follow | a kernel; chains that it keeps |
| `DenoisingScoreMatching` | Fisher divergence to blurred data | a gradient, twice |
| `SlicedScoreMatching` | Fisher divergence to the data | a gradient, twice |
| `NoiseContrastive` | logistic loss of telling data from noise | a noise that draws |

They apply to whole compositions too: the gradient reaches every expert that has parameters, and
learnable powers; parameters with `requires_grad=False` do not change. A batch is (n, *event); an
empty one raises ValueError.

>>> import torch, poe
>>> expert = poe.create("normal", loc=torch.zeros(2), scale=torch.ones(2), learnable=True)
>>> optimiser = torch.optim.SGD(expert.parameters(), lr=0.1)
>>> batch = torch.randn(64, 2) + 1
>>> loss = MaximumLikelihood()(expert, batch)
>>> loss.backward()
>>> optimiser.step()
"""  # noqa: E501

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import singledispatch

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from poe.algebra import support as sets
from poe.algebra.capabilities import Samples, as_a
from poe.algebra.checks import whole_number
from poe.algebra.energy import Energy
from poe.algebra.mixture import Mixture
from poe.training.divergence import (
    ContrastiveDivergence,
    PersistentContrastiveDivergence,
    check_batch,
    mean_energy,
)

__all__ = [
    "ContrastiveDivergence",
    "DenoisingScoreMatching",
    "MaximumLikelihood",
    "NoiseContrastive",
    "PersistentContrastiveDivergence",
    "SlicedScoreMatching",
]


@dataclass(frozen=True)
class MaximumLikelihood:
    """Mean of E(x) + log Z over the batch: minus the average log-likelihood, in nats.

    Arguments:
        draws: n -> n points drawn from the energy as it is now, for instance by chains that persist
            from one step to the next (Tieleman 2008). With it the loss is mean E(batch) - mean
            E(draws), whose gradient estimates that of the likelihood, E_data ∇E - E_model ∇E; its
            value is not a likelihood.

    Raises ValueError, without `draws`, where log Z is not a constant known exactly: its gradient is
    missing.
    """

    draws: Callable[[int], Tensor] | None = None

    def __call__(self, energy: Energy, batch: Tensor) -> Tensor:  # (n, *event) -> ()
        check_batch(energy, batch)
        if self.draws is not None:
            with torch.no_grad():
                model = self.draws(len(batch)).detach()
            check_batch(energy, model)
            return mean_energy(energy, batch, "the batch") - mean_energy(
                energy, model, "the draws of the model"
            )
        if not has_constant_z(energy):
            raise ValueError(
                f"log Z of {energy} changes with its parameters or is unknown, so E(x) alone is no "
                "likelihood: give MaximumLikelihood(draws=...) draws from the model, or train with "
                "PersistentContrastiveDivergence, DenoisingScoreMatching or NoiseContrastive"
            )
        assert energy.log_z is not None
        return energy(batch).mean() + energy.log_z.value


@dataclass(frozen=True)
class DenoisingScoreMatching:
    """Mean over x and ε ~ N(0, 1) of ½‖σ ∇E(x + σε) - ε‖², E at noise level σ (`energy.at(sigma)`).

    Its minimiser has the score of the data blurred by N(0, σ²): ∇E(x̃) = E[x̃ - x | x̃] / σ²
    (Vincent, A connection between score matching and denoising autoencoders, 2011, weighed by σ² as
    in Song & Ermon 2019). Dimensionless.

    Arguments:
        sigma: noise level, in units of x.
        generator: source of ε; torch's global one by default.

    Raises ValueError where sigma is not positive, TypeError where the energy has no gradient with
    respect to x.
    """

    sigma: float
    generator: torch.Generator | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        if not self.sigma > 0:
            raise ValueError(
                f"sigma is a noise level in units of x and must be positive, not {self.sigma}"
            )

    def __call__(self, energy: Energy, batch: Tensor) -> Tensor:  # (n, *event) -> ()
        _check_real(energy, batch)
        noise = torch.randn(
            batch.shape, dtype=batch.dtype, device=batch.device, generator=self.generator
        )
        _, gradient = _slope(energy.at(self.sigma), batch + self.sigma * noise)
        return 0.5 * _square(self.sigma * gradient - noise).mean()


@dataclass(frozen=True)
class SlicedScoreMatching:
    """Mean over x and random signs v of ½‖∇E(x)‖² - vᵀ ∇²E(x) v: sliced score matching with its
    variance reduced.

    In expectation it is ½ E_data‖∇E + ∇ log p_data‖² and a constant, the Fisher divergence without
    any noise on the data (Hyvärinen 2005), as vᵀ ∇²E v has mean tr ∇²E. That needs a density p_data
    that is differentiable and vanishes where the support ends. In units of x to the power of -2.

    Arguments:
        projections: how many v for each point, each of which costs one more derivative.
        generator: source of v; torch's global one by default.

    Raises TypeError where the energy has no gradient with respect to x.

    Reference: Song, Garg, Shi and Ermon 2019, Sliced score matching, UAI.
    """

    projections: int = 1
    generator: torch.Generator | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        whole_number("projections", self.projections, 1)

    def __call__(self, energy: Energy, batch: Tensor) -> Tensor:  # (n, *event) -> ()
        _check_real(energy, batch)
        x, gradient = _slope(energy, batch)
        loss = 0.5 * _square(gradient).mean()
        for _ in range(self.projections):
            signs = (
                torch.randint(2, x.shape, generator=self.generator, dtype=x.dtype, device=x.device)
                * 2
                - 1
            )
            with torch.enable_grad():
                (curvature,) = torch.autograd.grad(
                    (gradient * signs).sum(), x, create_graph=True, materialize_grads=True
                )
                loss = loss - (curvature * signs).sum() / (self.projections * len(x))
        return loss


@dataclass(frozen=True)
class NoiseContrastive:
    """-E_data log s(u) - ν E_noise log s(-u), u = log p(x) - log q(x) - log ν, s the logistic
    function.

    Where the loss is least, p is the density of the data, whatever the noise q, as long as q > 0
    wherever the data are (Gutmann & Hyvärinen, Noise-contrastive estimation, 2010). Log p(x) is
    -E(x) - log_z where `log_z` is given; else -E(x) - energy.log_z where that is exact and
    constant; else -E(x), and the energy must have an offset to learn. In nats, per data point; 2
    log 2 at chance with ν = 1.

    Arguments:
        noise: an energy with draws and a known log_z: a flow, a Gaussian, a mixture of those.
        ratio: ν, noise points for each data point.
        log_z: the log-normaliser, a parameter that is learned beside those of the energy.
        generator: source of the noise points.

    Raises TypeError where the noise is no energy, ValueError where it has no draws or no known
    log_z, or ratio is not a positive integer.
    """

    noise: Energy
    ratio: int = 1
    log_z: nn.Parameter | None = field(default=None, compare=False)
    generator: torch.Generator | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        whole_number("ratio", self.ratio, 1)
        if not isinstance(self.noise, Energy):
            raise TypeError(
                "the noise must be an energy that draws samples, such as a flow or a Gaussian, not "
                f"a {type(self.noise).__name__}; poe.as_energy wraps a model"
            )
        if as_a(self.noise, Samples) is None:
            raise ValueError(
                f"the noise {self.noise} draws no samples; use a density such as a flow or a "
                "Gaussian"
            )
        if self.noise.log_z is None:
            raise ValueError(
                f"log Z of the noise {self.noise} is unknown; poe.normalize estimates it"
            )

    def __call__(self, energy: Energy, batch: Tensor) -> Tensor:  # (n, *event) -> ()
        check_batch(energy, batch)
        source = as_a(self.noise, Samples)
        assert source is not None
        with torch.no_grad():
            noise = source.sample(self.ratio * len(batch), generator=self.generator).to(batch)
        data, other = self._log_ratio(energy, batch), self._log_ratio(energy, noise)
        return -logsigmoid(data).mean() - self.ratio * logsigmoid(-other).mean()

    def _log_ratio(self, energy: Energy, x: Tensor) -> Tensor:  # (n, *event) -> (n)
        assert self.noise.log_z is not None
        with torch.no_grad():
            log_q = -self.noise(x) - self.noise.log_z.value
        log_p = -energy(x)
        if self.log_z is not None:
            log_p = log_p - self.log_z
        elif has_constant_z(energy) and energy.log_z is not None:
            log_p = log_p - energy.log_z.value
        return log_p - log_q - math.log(self.ratio)


@singledispatch
def has_constant_z(energy: Energy) -> bool:
    """Whether log_z is exact and does not change with the parameters: experts of log_z 0, and raw
    mixtures of them."""
    return not energy.parts and energy.log_z == (0.0, 0.0)


@has_constant_z.register
def _(energy: Mixture) -> bool:
    return all(map(has_constant_z, energy.parts))


def _check_real(energy: Energy, batch: Tensor) -> None:
    """Raises TypeError where score matching does not apply to the points."""
    check_batch(energy, batch)
    if not batch.is_floating_point():
        raise TypeError(
            f"score matching needs real points, and the batch is {batch.dtype}; dequantise it first"
        )
    if sets.is_discrete(energy.support):
        raise TypeError(
            f"score matching needs real points, and {energy} is on {energy.support!r}: train it "
            "with PersistentContrastiveDivergence"
        )


def _slope(energy: Energy, x: Tensor) -> tuple[Tensor, Tensor]:
    # (n, *event) -> (n, *event), (n, *event)
    """x, and ∇E(x) with its graph. Raises where E does not depend on x, or is not finite."""
    x = x.detach().requires_grad_()
    with torch.enable_grad():
        value = energy(x)
        if not value.requires_grad:
            raise TypeError(
                f"the energy {energy} does not depend on x through torch operations: it has no "
                "score"
            )
        bad = ~value.detach().isfinite()
        if bool(bad.any()):
            raise ValueError(
                f"{energy} is {value.detach()[bad][0].item()} at {int(bad.sum())} of {len(x)} "
                f"points, where it has no score: its support is {energy.support!r}"
            )
        (gradient,) = torch.autograd.grad(value.sum(), x, create_graph=True, materialize_grads=True)
    return x, gradient


def _square(v: Tensor) -> Tensor:  # (n, *event) -> (n)
    """Squared norm of each event."""
    return v.square().reshape(len(v), -1).sum(1)
