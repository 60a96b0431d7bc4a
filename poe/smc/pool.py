"""All weighed draws of a search, and the refits of a mixture to them.

References: Veach and Guibas 1995, SIGGRAPH (deterministic mixture weights); Ionides 2008, J.
Comput. Graph. Statist. 17 (truncated weights); Raftery and Bao 2010, Biometrics 66 (incremental
mixture importance sampling).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from poe.smc.flat import Flat
from poe.smc.gaussians import Gaussians
from poe.smc.scales import Scales

NEW_SHAPES = 4  # of a refit
MAX_FITTED = 4096  # of the heaviest draws, to which shapes are fitted
LOG_FITTED = math.log(4.0)  # nats: weight of fitted shapes over that of all before


class Pool:
    """All draws of several mixtures, weighed by the mean of these (deterministic mixture weights,
    Veach and Guibas 1995)."""

    def __init__(self, flat: Flat) -> None:
        self.flat = flat
        self.mixtures: list[Scales] = []
        self.x = torch.zeros(0, flat.d, dtype=torch.float64, device=flat.like.device)
        self.energy = self.proposed = self.x.new_zeros(0)

    def add(self, mixture: Scales, x: Tensor, energy: Tensor) -> None:
        """Adds draws of a mixture with their energies."""
        self.proposed = torch.logaddexp(self.proposed, mixture.log_prob(self.points(self.x)))
        of_new = [known.log_prob(self.points(x)) for known in [*self.mixtures, mixture]]
        self.mixtures.append(mixture)
        self.x, self.energy = torch.cat([self.x, x]), torch.cat([self.energy, energy])
        self.proposed = torch.cat([self.proposed, torch.stack(of_new).logsumexp(0)])

    def points(self, x: Tensor) -> Tensor:
        """Points of the event, in double precision."""
        return x.reshape(-1, *self.flat.event)

    def refitted(self, mixture: Scales, *, new_shapes: bool) -> Scales:
        """The mixture refitted to all draws; with shapes where the largest weights are."""
        x, logs = self.weighed()
        if new_shapes:
            mixture = self.extended(mixture, x, logs)
        return mixture.refitted(x, logs)

    def weighed(self) -> tuple[Tensor, Tensor]:  # -> (n, d), (n)
        """The draws that have weight, and their log weights, truncated (Ionides 2008)."""
        logs = -self.energy - self.proposed + math.log(len(self.mixtures))
        good = logs > -math.inf
        x, logs = self.x[good], logs[good]
        return x, logs.clamp(max=float(logs.logsumexp(0)) - math.log(len(logs)) / 2)

    def fitted(self, mixture: Scales, generator: torch.Generator) -> Scales:
        """The mixture with shapes fitted to all draws, by expectation maximisation."""
        x, logs = self.weighed()
        heavy = logs.topk(min(MAX_FITTED, len(logs))).indices
        x, logs = x[heavy], logs[heavy]
        found = Gaussians.fitted(x, generator, logs)
        if found is None:
            return self.refitted(mixture, new_shapes=True)
        return mixture.joined(found.means, found.roots, found.log_weights.double() + LOG_FITTED)

    def extended(self, mixture: Scales, x: Tensor, logs: Tensor) -> Scales:
        """With up to `NEW_SHAPES` further shapes: each at the heaviest draw that is left, of the
        covariance of the draws nearest to it (incremental mixture importance sampling)."""
        weights = logs.softmax(0)
        center = weights @ x
        spread = (weights @ (x - center).square()).sqrt().clamp(min=1e-300)
        count = min(len(x) // 2, max(100, 8 * self.flat.d))
        even = (weights + 1 / len(x)) / 2
        left, means, roots, shares = weights.clone(), [], [], []
        for _ in range(NEW_SHAPES):
            at = x[left.argmax()]
            near = ((x - at) / spread).square().sum(1).topk(count, largest=False).indices
            w = even[near] / even[near].sum()
            z = (x[near] - at) / spread
            scatter = (z * w.unsqueeze(1)).T @ z + 1e-8 * torch.eye(self.flat.d).to(z)
            factor, failed = torch.linalg.cholesky_ex(scatter)
            share = float(weights[near].sum())
            left[near] = 0
            if failed or share <= 0:
                continue
            means.append(at)
            roots.append(spread.unsqueeze(1) * factor)
            shares.append(math.log(share))
        if not means:
            return mixture
        return mixture.joined(torch.stack(means), torch.stack(roots), x.new_tensor(shares))
