"""Moments of a density without a sampler: importance weights from a Student-t law at its mode,
refitted to its own weighted points. So a wrong density is not taken for a wrong sampler."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor

import poe
from poe.spaces.reals import from_reals
from posteriors import Posterior

POINTS, ROUNDS, BLOCK = 40_000, 8, 4096
MIN_ESS = 4000  # of the weights to which the law is refitted
DEGREES, INFLATION = 6, 1.1  # of freedom of the t law, and of its scales


@dataclass(frozen=True)
class Moments:
    """Mean and standard deviation of each quantity, the standard error of each mean, and the ESS of
    the weights of so many points."""

    mean: Tensor
    sd: Tensor
    error: Tensor
    ess: float
    points: int


def moments(posterior: Posterior, seed: int = 0) -> Moments:
    """Of the posterior's quantities, self-normalised: Σ w v / Σ w, with variance Σ w² (v - mean)² /
    (Σ w)²."""
    target = posterior.make()
    low, unit = start(posterior, target)
    generator = torch.Generator().manual_seed(seed)
    to_support = from_reals(target.support)

    def energy(u: Tensor) -> Tensor:  # (n, d) -> (n), in units of `unit` about `low`
        z = low + unit * u
        x = to_support(z)
        return target(x) - to_support.log_abs_det_jacobian(z, x).reshape(len(z), -1).sum(-1)

    centre, root = at_the_mode(energy, len(low))
    for _ in range(ROUNDS):
        u, log_q = student_t(centre, root, generator)
        with torch.no_grad():
            log_p = -torch.cat([energy(block) for block in u.split(BLOCK)])
        logs = log_p.nan_to_num(-math.inf) - log_q
        weights = flattened(logs)
        centre = weights @ u
        root = torch.linalg.cholesky((weights * (u - centre).T) @ (u - centre))
    weights = logs.softmax(0)
    values = posterior.values(to_support(low + unit * u))
    mean = weights @ values
    gaps = (values - mean).square()
    return Moments(
        mean,
        (weights @ gaps).sqrt(),
        (weights.square() @ gaps).sqrt(),
        1 / float(weights.square().sum()),
        POINTS,
    )


def flattened(logs: Tensor) -> Tensor:  # (n) -> (n)
    """Weights that sum to 1, of the largest power at most 1 at which their ESS is `MIN_ESS`."""
    power = 1.0
    while 1 / float((power * logs).softmax(0).square().sum()) < MIN_ESS:
        power *= 0.9
    return (power * logs).softmax(0)


def start(posterior: Posterior, target: poe.Energy) -> tuple[Tensor, Tensor]:  # -> (d), (d)
    """A point of unconstrained space and a unit for each coordinate: the reference's mean and sd
    where the target is about these parameters, else 0 and 1."""
    (d,) = target.event_shape
    zero, one = torch.zeros(d), torch.ones(d)
    inside = from_reals(target.support)
    x = torch.tensor(list(posterior.reference().values()))[:d]
    if len(x) < d or not torch.equal(posterior.quantities(x[:, 0]), x[:, 0]):
        return zero, one
    z = inside.inv(x[:, 0])
    slope = torch.autograd.functional.jacobian(inside, z).diagonal()
    return z, x[:, 1] / slope


def at_the_mode(energy, d: int) -> tuple[Tensor, Tensor]:  # -> (d), (d, d)
    """The mode by BFGS, and the Cholesky factor of the inverse Hessian there."""

    def with_gradient(u: np.ndarray) -> tuple[float, np.ndarray]:
        point = torch.tensor(u).requires_grad_()
        value = energy(point.unsqueeze(0)).squeeze(0)
        (gradient,) = torch.autograd.grad(value, point)
        return float(value.detach()), gradient.numpy()

    found = torch.tensor(minimize(with_gradient, np.zeros(d), jac=True, method="BFGS").x)
    hessian = torch.autograd.functional.hessian(lambda u: energy(u.unsqueeze(0)).squeeze(0), found)
    variances, axes = torch.linalg.eigh(torch.linalg.inv(hessian))
    return found, torch.linalg.cholesky(axes * variances.clamp(1e-6) @ axes.T)


def student_t(centre: Tensor, root: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    # (d), (d, d) -> (n, d), (n)
    """Points of a multivariate t law, and their log densities up to a constant."""
    d = len(centre)
    normal = torch.randn(POINTS, d, generator=generator)
    chi2 = torch.randn(POINTS, DEGREES, generator=generator).square().sum(-1)
    t = normal / (chi2 / DEGREES).sqrt().unsqueeze(1)
    log_q = -(DEGREES + d) / 2 * (t.square().sum(-1) / DEGREES).log1p()
    return centre + INFLATION * t @ root.T, log_q
