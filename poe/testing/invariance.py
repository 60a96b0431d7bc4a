"""Invariance of kernels: whether one transition leaves the law of exact draws as it is."""

from __future__ import annotations

from typing import Any

import torch
from scipy import stats
from torch import Tensor

from poe.algebra.energy import Energy
from poe.testing.case import mean_pvalues


def invariance_pvalue(
    before: Tensor, after: Tensor, energies: tuple[Tensor, Tensor] | None = None
) -> float:
    """p-value of the hypothesis that one transition leaves the law of its exact draws invariant.

    Paired z-tests of the mean change of every coordinate, its square, and (where given) the energy
    and its square; and Kolmogorov-Smirnov tests of each, the first half before against the second
    half after, so that the two are independent. Bonferroni over all: under the hypothesis P(p <= u)
    <= u, asymptotically.

    Arguments:
        before, after: n independent draws and the states one transition later, (n, *event).
        energies: the energies at the two, each (n), in nats.
    """
    old, new = (t.detach().double().cpu().reshape(len(t), -1) for t in (before, after))
    if energies is not None:
        old, new = (
            torch.cat([x, e.detach().double().cpu()[:, None]], 1)
            for x, e in zip((old, new), energies, strict=True)
        )
    scale = old.std(0).clamp_min(1e-300)
    centred = [(x - old.mean(0)) / scale for x in (old, new)]
    change = torch.cat([centred[1] - centred[0], centred[1].square() - centred[0].square()], 1)
    half = len(old) // 2
    pvalues = [*mean_pvalues(change)]
    for i in range(old.shape[1]):
        result: Any = stats.ks_2samp(old[:half, i], new[half:, i], method="asymp")
        pvalues.append(result.pvalue)
    return min(1.0, len(pvalues) * float(min(pvalues)))


def one_step_invariance(kernel: Any, energy: Energy, draws: Tensor, *, seed: int = 0) -> float:
    """`invariance_pvalue` of one transition of a kernel from exact draws of the energy, (n,
    *event)."""
    state = kernel.init(energy, draws)
    noise = kernel.noise(state, torch.Generator(draws.device).manual_seed(seed))
    new, _ = kernel.step(energy, state, noise)
    with torch.no_grad():
        return invariance_pvalue(draws, new.x, (energy(draws), energy(new.x)))
