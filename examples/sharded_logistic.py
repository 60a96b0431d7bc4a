"""Bayes in eight pieces: a logistic regression whose data lie on eight machines, put together again by multiplying.

Each machine k knows its own data and the prior to the power 1/8, p_k ∝ prior^(1/8) L_k, so that the product of the pieces is the
posterior of all data. The pieces are multiplied as what they are, functions; then as densities that were fitted to nothing but each
machine's draws; and then refined: each machine draws once more within a window around the first answer, and the window is divided out.

    python examples/sharded_logistic.py     about ten minutes; POE_FAST=1 the exact pieces alone
"""

from __future__ import annotations

import os
import warnings

import torch
from sklearn.datasets import load_breast_cancer
from sklearn.decomposition import PCA
from sklearn.preprocessing import StandardScaler
from torch import Tensor
from torch.nn.functional import softplus

import poe
from poe.plan import ImproperWarning

SHARDS, DIMENSIONS, PRIOR_SD = 8, 7, 5.0
FAST = bool(os.environ.get("POE_FAST"))


def data() -> tuple[Tensor, Tensor]:  # (n, 7), (n)
    """Six principal components and an intercept; 1 where the tumour is benign."""
    table = load_breast_cancer()
    x = PCA(6).fit_transform(StandardScaler().fit_transform(table.data))
    x = torch.as_tensor(x / x.std(0), dtype=torch.float32)
    return torch.cat([x, torch.ones(len(x), 1)], 1), torch.as_tensor(table.target, dtype=torch.float32)


def posterior(x: Tensor, y: Tensor, share: float, name: str) -> poe.Energy:
    """prior^share times the likelihood of these data, over the seven coefficients."""

    def energy(w: Tensor) -> Tensor:  # (*batch, 7) -> (*batch)
        logits = w @ x.T
        return softplus(logits).sum(-1) - (logits * y).sum(-1) + share * w.square().sum(-1) / (2 * PRIOR_SD**2)

    return poe.as_energy(energy, event_shape=(DIMENSIONS,), bounded=True, proper=True, name=name)


def worst(mean: Tensor, truth: poe.Draws) -> float:
    """The largest error of a mean, in posterior standard deviations."""
    return float(((mean - truth.x.mean(0)) / truth.x.std(0)).abs().max())


def fitted(pieces: list[poe.Energy], window: poe.Energy | None) -> list[poe.Energy]:
    """Ensembles of flows for the draws of each machine, within a window that is divided out again."""
    found = []
    for k, piece in enumerate(pieces):
        draws = poe.sample(piece if window is None else piece & window, 8000, seed=k)
        flow = poe.fit_density(draws.x, copies=4, seed=k, name=f"flow{k}")
        found.append(flow if window is None else flow / window)
    return found


def main() -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", ImproperWarning)  # of products of fitted densities
    x, y = data()
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    parts = order.tensor_split(SHARDS)
    whole = posterior(x, y, 1.0, "whole")
    truth = poe.sample(whole, 20_000, kernel=poe.Hamiltonian(), chains=32, seed=0)
    print(truth.report())

    pieces = [posterior(x[rows], y[rows], 1 / SHARDS, f"shard{k}") for k, rows in enumerate(parts)]
    exact = poe.sample(poe.product(pieces), 4000 if FAST else 20_000, seed=1)
    print(f"\nexact pieces: worst error of a mean {worst(exact.x.mean(0), truth):.3f} posterior sd")
    if FAST:
        return

    own = [poe.sample(piece, 8000, seed=k).x.double() for k, piece in enumerate(pieces)]
    inverses = [torch.linalg.inv(draws.T.cov()) for draws in own]
    pooled = torch.stack([inverse @ draws.T for inverse, draws in zip(inverses, own, strict=True)]).sum(0)
    consensus = torch.linalg.solve(torch.stack(inverses).sum(0), pooled).mean(1).float()
    print(f"consensus Monte Carlo: {worst(consensus, truth):.2f}")

    first = poe.sample(poe.product(fitted(pieces, None)), 4000, seed=2)
    print(f"fitted pieces: {worst(first.x.mean(0), truth):.2f}; trusted: {first.trusted}")
    window = poe.create("normal", loc=first.x.mean(0), covariance=9 * first.x.T.cov(), name="window")
    second = poe.sample(poe.product(fitted(pieces, window)), 4000, seed=3)
    print(f"refined: {worst(second.x.mean(0), truth):.2f}; trusted: {second.trusted}")


if __name__ == "__main__":
    main()
