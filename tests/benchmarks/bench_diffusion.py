"""(h) Compositions in the plane with exact noised experts, the tasks of Du et al. 2023 (ICML,
section 4): a ring of 8 Gaussians of radius .5 and sd .03, and a box [-.2, .2] x [-1, 1], as
product, mixture and contrast.

The figure is the mean log-likelihood of the draws under the normalised target, seen through noise
of .002 (quadrature on a grid), beside that of exact draws; and the share of the upper half plane
(exactly .5). Du et al. report -2.95 for reverse diffusion and 1.81 for their annealed Hamiltonian
Monte Carlo on the product.
"""

from __future__ import annotations

import math
import time

import torch
from torch import Tensor

import poe
import timing  # noqa: F401
from baselines import annealed_chains, hmc, mala, reverse_diffusion, ula

LOW, HIGH, DRAWS = 0.002, 2.0, 2000


class Noised(poe.Energy):
    """An expert over the plane that is known exactly at each level of noise."""

    sigma_range = (LOW, HIGH)

    def __init__(self, sigma: float = LOW, name: str | None = None) -> None:
        super().__init__((2,), name=name)
        self.sigma = max(sigma, LOW)

    @property
    def proper(self) -> bool:
        return True

    @property
    def bounded(self) -> bool:
        return True

    @property
    def log_z(self) -> poe.Estimate:
        return poe.Estimate(0.0)

    def at(self, sigma: float) -> Noised:
        return type(self)(sigma, self.name)


class Ring(Noised):
    def forward(self, x: Tensor) -> Tensor:  # (*batch, 2) -> (*batch)
        angle = torch.arange(8) * (math.pi / 4)
        means, variance = (
            torch.stack([angle.cos(), angle.sin()], -1).to(x) / 2,
            0.03**2 + self.sigma**2,
        )
        squares = (x.unsqueeze(-2) - means).square().sum(-1)
        return math.log(16 * math.pi * variance) - (-squares / (2 * variance)).logsumexp(-1)


class Box(Noised):
    def forward(self, x: Tensor) -> Tensor:  # (*batch, 2) -> (*batch)
        half = torch.tensor([0.2, 1.0]).to(x)
        far, near = (x.abs() - half) / self.sigma, (-x.abs() - half) / self.sigma
        upper, lower = (
            torch.special.log_ndtr(-far),
            torch.special.log_ndtr(near),
        )  # both in the lower tail, where logs are exact
        return ((2 * half).log() - upper - torch.log1p(-(lower - upper).exp())).sum(-1)


def grid(energy: poe.Energy) -> tuple[float, float]:
    """(log Z, mean log-density of exact draws), by quadrature."""
    axis = torch.linspace(-1.6, 1.6, 1601, dtype=torch.float64)
    logs = -energy(torch.cartesian_prod(axis, axis))
    log_z = float(logs.logsumexp(0)) + 2 * math.log(float(axis[1] - axis[0]))
    p = logs.softmax(0)
    return log_z, float((p * torch.where(p > 0, logs - log_z, 0)).sum())


def main() -> None:
    ring, box = Ring(name="ring"), Box(name="box")
    for target in (ring & box, ring | box, poe.contrast(ring, box, strength=8)):
        log_z, exact = grid(target)
        print(f"{target}: exact draws {exact:.3f}, log Z {log_z:.3f}")

        def row(
            name: str, x: Tensor, seconds: float, target: poe.Energy = target, log_z: float = log_z
        ) -> None:
            logs = -target(x) - log_z
            print(
                f"  {name:36s} {logs.mean():8.3f}   upper half {(x[:, 1] > 0).float().mean():.3f}  "
                f" {seconds:.1f} s"
            )

        for name, draw in {
            "reverse diffusion, 100 levels": lambda g, e=target: reverse_diffusion(
                e, DRAWS, 100, g
            ),
            "ULA, 100 levels of 10": lambda g, e=target: annealed_chains(
                e, DRAWS, 100, 10, ula(0.1), g
            ),
            "MALA, 100 levels of 10": lambda g, e=target: annealed_chains(
                e, DRAWS, 100, 10, mala(0.5), g
            ),
            "HMC after reverse diffusion, 100 of 1": lambda g, e=target: annealed_chains(
                e, DRAWS, 100, 1, hmc(0.3, 3.0), g, diffuse=True
            ),
        }.items():
            started = time.process_time()
            x = draw(torch.Generator().manual_seed(0))
            row(name, x, time.process_time() - started)
        for seed in range(3):
            started = time.process_time()
            draws = poe.sample(target, DRAWS, seed=seed)
            row(f"poe.sample, seed {seed}", draws.x, time.process_time() - started)
            print(f"    log Z {draws.log_z}; {draws.method}; {draws.verdict}")


if __name__ == "__main__":
    main()
