"""Bayes in eight pieces: a logistic regression whose data lie on eight machines, combined by
multiplication.

Machine k has its own data and the prior π: p_k ∝ π L_k. Their product with the prior counted
once, Π p_k / π^7, is the posterior of all data. The pieces are multiplied as exact
functions, and as densities fitted only to each machine's draws, by flows in ensembles whose
spread is the error bar. There the product lies in tails that few draws reach, and a single flow for
each machine may miss by a posterior standard deviation. So each machine draws once more, within a
window w around the first answer, p_k w, and the window is counted once too:

    Π (π L_k w) · π / (π w)^8 = π Π L_k      poe.combine([*fitted, prior], prior=window), the window
    being π w

    python examples/sharded_logistic.py     minutes; POE_FAST=1 the exact pieces alone

References: Scott et al. 2016, Bayes and big data: the consensus Monte Carlo algorithm; Neiswanger,
Wang & Xing 2014, Asymptotically exact, embarrassingly parallel MCMC; Gelman et al. 2014,
Expectation propagation as a way of life (windows that are divided out).
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
from poe import ImproperWarning

SHARDS, DIMENSIONS, PRIOR_SD = 8, 7, 5.0
FITTED = 4000  # draws of a machine
FAST = bool(os.environ.get("POE_FAST"))


def data() -> tuple[Tensor, Tensor]:  # (n, 7), (n)
    """Six principal components and an intercept; 1 where the tumour is benign."""
    table, benign = load_breast_cancer(return_X_y=True)
    x = PCA(6).fit_transform(StandardScaler().fit_transform(table))
    x = torch.as_tensor(x / x.std(0), dtype=torch.float32)
    return torch.cat([x, torch.ones(len(x), 1)], 1), torch.as_tensor(benign, dtype=torch.float32)


def posterior(x: Tensor, y: Tensor, share: float, name: str) -> poe.Energy:
    """prior^share times the likelihood of these data, over the seven coefficients."""

    def energy(w: Tensor) -> Tensor:  # (*batch, 7) -> (*batch)
        logits = w @ x.T
        return (
            softplus(logits).sum(-1)
            - (logits * y).sum(-1)
            + share * w.square().sum(-1) / (2 * PRIOR_SD**2)
        )

    return poe.as_energy(energy, event_shape=(DIMENSIONS,), bounded=True, proper=True, name=name)


def drawn(energy: poe.Energy, draws: int, seed: int) -> poe.Draws:
    return poe.sample(energy, draws, kernel=poe.Hamiltonian(), chains=32, seed=seed)


def fitted(pieces: list[poe.Energy]) -> list[poe.Energy]:
    """Geometric ensembles of four flows for the draws of each machine."""
    flows = {"kind": "realnvp", "layers": 6, "hidden": 32}
    return [
        poe.fit_density(drawn(piece, FITTED, k).x, copies=4, seed=k, name=f"flow{k}", **flows)
        for k, piece in enumerate(pieces)
    ]


def line(name: str, mean: Tensor, truth: poe.Draws, bar: Tensor | None = None) -> str:
    """The largest error of a mean, in posterior standard deviations; and errors in units of their
    error bars."""
    sd = truth.x.std(0)
    error = (mean - truth.x.mean(0)).abs()
    text = f"{name:40s} worst error of a mean {(error / sd).max():.3f} sd"
    if bar is None:
        return text
    inside, most = int((error <= 2 * bar).sum()), (error / bar).max()
    return (
        f"{text}; bars up to {(bar / sd).max():.3f} sd, {inside} of {len(error)} means within "
        f"two of them, the worst {most:.1f}"
    )


def combined(target: poe.Energy, name: str, truth: poe.Draws, seed: int) -> poe.Draws:
    """Draws of fitted pieces; the error bar is the spread over retrained copies, and that of the
    draws themselves."""
    draws = poe.sample(target, 4000, seed=seed)
    assert draws.agreement is not None
    bar = (
        torch.tensor(draws.agreement.ensemble).square()
        + draws.x.var(0) / draws.diagnostics.ess_bulk
    )
    print(line(name, draws.x.mean(0), truth, bar.sqrt()))
    print(f"    {'trusted' if draws.trusted else 'not trusted: ' + draws.reasons[0]}", flush=True)
    return draws


def main() -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", ImproperWarning)  # of products of fitted densities
    x, y = data()
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    parts = order.tensor_split(SHARDS)
    truth = drawn(posterior(x, y, 1.0, "whole"), 20_000, 0)
    print(truth.report())

    shares = [posterior(x[rows], y[rows], 1 / SHARDS, f"share{k}") for k, rows in enumerate(parts)]
    exact = poe.sample(poe.product(shares), 4000 if FAST else 20_000, seed=1)
    print()
    print(line("exact pieces, multiplied", exact.x.mean(0), truth), flush=True)
    if FAST:
        return

    own = [drawn(share, FITTED, k).x.double() for k, share in enumerate(shares)]
    inverses = [torch.linalg.inv(draws.T.cov()) for draws in own]
    pooled = torch.stack(
        [inverse @ draws.T for inverse, draws in zip(inverses, own, strict=True)]
    ).sum(0)
    consensus = torch.linalg.solve(torch.stack(inverses).sum(0), pooled).mean(1).float()
    print(line("consensus Monte Carlo", consensus, truth), flush=True)

    prior = poe.create(
        "normal", loc=torch.zeros(DIMENSIONS), scale=PRIOR_SD * torch.ones(DIMENSIONS), name="prior"
    )
    pieces = [posterior(x[rows], y[rows], 1.0, f"shard{k}") for k, rows in enumerate(parts)]
    first = combined(poe.combine(fitted(pieces), prior=prior), "fitted pieces", truth, 2)
    around = poe.create(
        "normal", loc=first.x.mean(0), covariance=2 * first.x.T.cov(), name="around"
    )
    window = poe.simplify(prior & around)
    again = fitted([piece & around for piece in pieces])
    combined(
        poe.combine([*again, prior], prior=window),
        "refitted within a window around the first",
        truth,
        3,
    )


if __name__ == "__main__":
    main()
