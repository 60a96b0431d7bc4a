"""Losses for training energies: small frozen objects, `loss(energy, batch)` -> a scalar that any torch
optimiser takes.

| loss                     | minimises                                     | needs                           |
|--------------------------|-----------------------------------------------|---------------------------------|
| `MaximumLikelihood`      | -E_data log p(x)                              | log Z = const, or model draws   |
| `DenoisingScoreMatching` | Fisher divergence to data blurred by N(0, σ²) | a gradient, twice               |
| `NoiseContrastive`       | logistic loss of telling data from noise      | a noise with density and draws  |

They work on whole compositions too: the gradient reaches every expert that has parameters, and learnable
powers.

>>> import torch, poe
>>> expert = poe.create("normal", loc=torch.zeros(2), scale=torch.ones(2), learnable=True)
>>> optimiser = torch.optim.SGD(expert.parameters(), lr=0.1)
>>> batch = torch.randn(64, 2) + 1
>>> loss = MaximumLikelihood()(expert, batch)
>>> loss.backward()
>>> optimiser.step()
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from poe.capabilities import Samples
from poe.energy import Energy, Mixture


@dataclass(frozen=True)
class MaximumLikelihood:
    """Mean of E(x) + log Z over the batch: minus the average log-likelihood, in nats.

    Arguments:
        draws: n -> n points drawn from the energy as it is now, for instance by chains that persist from one
            step to the next (Tieleman 2008). With it the loss is mean E(batch) - mean E(draws), whose
            gradient estimates that of the likelihood, E_data ∇E - E_model ∇E; its value is no likelihood.

    Raises ValueError, without `draws`, where log Z is not a constant known exactly: its gradient is missing.
    """

    draws: Callable[[int], Tensor] | None = None

    def __call__(self, energy: Energy, batch: Tensor) -> Tensor:  # (n, *event) -> ()
        if self.draws is not None:
            with torch.no_grad():
                model = self.draws(len(batch))
            return energy(batch).mean() - energy(model.detach()).mean()
        if not _has_constant_z(energy):
            raise ValueError(
                f"log Z of {energy} changes with its parameters or is unknown, so E(x) alone is no "
                "likelihood: give MaximumLikelihood(draws=...) draws from the model, or train with "
                "DenoisingScoreMatching or NoiseContrastive"
            )
        assert energy.log_z is not None
        return energy(batch).mean() + energy.log_z.value


@dataclass(frozen=True)
class DenoisingScoreMatching:
    """Mean over x and ε ~ N(0, 1) of ½‖σ ∇E(x + σε) - ε‖², E at noise level σ (`energy.at(sigma)`).

    Its minimiser has the score of the data blurred by N(0, σ²): ∇E(x̃) = E[x̃ - x | x̃] / σ² (Vincent, A
    connection between score matching and denoising autoencoders, 2011, weighed by σ² as in Song & Ermon
    2019). Dimensionless.

    Arguments:
        sigma: noise level, in units of x.
        generator: source of ε; torch's global one by default.

    Raises ValueError where sigma is not positive, TypeError where the energy has no gradient with respect to
    x.
    """

    sigma: float
    generator: torch.Generator | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        if not self.sigma > 0:
            raise ValueError(f"sigma is a noise level in units of x and must be positive, not {self.sigma}")

    def __call__(self, energy: Energy, batch: Tensor) -> Tensor:  # (n, *event) -> ()
        if not batch.is_floating_point():
            raise TypeError(f"denoising needs real points, and the batch is {batch.dtype}; dequantise it first")
        noise = torch.randn(batch.shape, dtype=batch.dtype, device=batch.device, generator=self.generator)
        x = (batch + self.sigma * noise).detach().requires_grad_()
        with torch.enable_grad():
            value = energy.at(self.sigma)(x).sum()
            if not value.requires_grad:
                raise TypeError(f"the energy {energy} does not depend on x through torch operations: it has no score")
            (gradient,) = torch.autograd.grad(value, x, create_graph=True, materialize_grads=True)
            return 0.5 * (self.sigma * gradient - noise).square().flatten(1).sum(1).mean()


@dataclass(frozen=True)
class NoiseContrastive:
    """-E_data log s(u) - ν E_noise log s(-u), u = log p(x) - log q(x) - log ν, s the logistic function.

    Where the loss is least, p is the density of the data, whatever the noise q, as long as q > 0 wherever the
    data are (Gutmann & Hyvärinen, Noise-contrastive estimation, 2010). Log p(x) is -E(x) - log_z where
    `log_z` is given; else -E(x) - energy.log_z where that is exact and constant; else -E(x), and the energy
    must have an offset to learn. In nats, per data point; 2 log 2 at chance with ν = 1.

    Arguments:
        noise: an energy with draws and a known log_z: a flow, a Gaussian, a mixture of those.
        ratio: ν, noise points for each data point.
        log_z: the log-normaliser, a parameter that is learned beside those of the energy.
        generator: source of the noise points.

    Raises ValueError where the noise has no draws or no known log_z, or ratio is not a positive integer.
    """

    noise: Energy
    ratio: int = 1
    log_z: nn.Parameter | None = field(default=None, compare=False)
    generator: torch.Generator | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        if isinstance(self.ratio, bool) or not isinstance(self.ratio, int) or self.ratio < 1:
            raise ValueError(f"ratio counts noise points for each data point, a positive integer, not {self.ratio!r}")
        if not self.noise.can(Samples):
            raise ValueError(f"the noise {self.noise} draws no samples; use a density such as a flow or a Gaussian")
        if self.noise.log_z is None:
            raise ValueError(f"log Z of the noise {self.noise} is unknown; poe.normalize estimates it")

    def __call__(self, energy: Energy, batch: Tensor) -> Tensor:  # (n, *event) -> ()
        with torch.no_grad():
            noise = self.noise.sample(self.ratio * len(batch), generator=self.generator).to(batch)  # type: ignore[attr-defined]
        data, other = self._log_ratio(energy, batch), self._log_ratio(energy, noise)
        return -logsigmoid(data).mean() - self.ratio * logsigmoid(-other).mean()

    def _log_ratio(self, energy: Energy, x: Tensor) -> Tensor:  # (n, *event) -> (n)
        with torch.no_grad():
            log_q = -self.noise(x) - float(self.noise.log_z)  # type: ignore[arg-type]
        log_p = -energy(x)
        if self.log_z is not None:
            log_p = log_p - self.log_z
        elif _has_constant_z(energy):
            log_p = log_p - float(energy.log_z)  # type: ignore[arg-type]
        return log_p - log_q - math.log(self.ratio)


def _has_constant_z(energy: Energy) -> bool:
    """Whether log_z is exact and does not move with the parameters: experts of log_z 0, and raw mixtures of
    them."""
    if energy.parts:
        return isinstance(energy, Mixture) and all(map(_has_constant_z, energy.parts))
    return energy.log_z is not None and energy.log_z == (0.0, 0.0)
