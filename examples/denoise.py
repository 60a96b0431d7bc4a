"""A noisy binary picture, made clean by a product: an Ising prior, which favours equal
neighbours, & the evidence of each pixel.

    target = prior & evidence

The most likely picture is searched for by cooled chains (`poe.mode`) and, since all couplings are
positive, known exactly as a minimum cut (Greig, Porteous & Seheult 1989, J. R. Statist. Soc. B
51(2)). The mean of draws, cut at one half, has the fewest wrong pixels.
"""

from __future__ import annotations

import math
import os
from pathlib import Path

import numpy as np
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import breadth_first_order, maximum_flow
from sklearn.datasets import load_sample_images
from torch import Tensor

import poe
from experts import Bernoulli, Ising

SIDE = 32 if os.environ.get("POE_FAST") else 64
FLIPPED, COUPLING = 0.2, 0.6
SCALE = 100_000  # capacities of the cut are whole numbers
OUT = Path("out") / "denoise.png"


def picture() -> Tensor:  # -> (SIDE, SIDE)
    """The flower of scikit-learn's two photographs, in two tones."""
    grey = load_sample_images().images[1].mean(-1)
    block = grey.shape[0] // SIDE
    left = (grey.shape[1] - SIDE * block) // 2
    grey = (
        grey[: SIDE * block, left : left + SIDE * block]
        .reshape(SIDE, block, SIDE, block)
        .mean((1, 3))
    )
    return torch.tensor(grey > np.median(grey)).float()


def minimum_cut(energy: Ising) -> Tensor:  # -> (SIDE, SIDE)
    """The exact minimum of an Ising energy over bits with positive couplings."""
    n = energy.event_shape.numel()
    fields = (2 * energy.fields.double().flatten() * SCALE).round().int().numpy()
    bonds = (2 * energy.edge_couplings.double() * SCALE).round().int().numpy()
    a, b = energy.edges.T.numpy()
    up, down = np.flatnonzero(fields > 0), np.flatnonzero(fields < 0)
    rows = np.concatenate([a, b, np.full(len(up), n), down])
    columns = np.concatenate([b, a, up, np.full(len(down), n + 1)])
    graph = coo_array(
        (np.concatenate([bonds, bonds, fields[up], -fields[down]]), (rows, columns)),
        shape=(n + 2, n + 2),
    ).tocsr()
    left = graph - maximum_flow(graph, n, n + 1).flow
    left.data[left.data < 0] = 0
    left.eliminate_zeros()
    side = breadth_first_order(left, n, return_predecessors=False)
    x = torch.zeros(n + 2)
    x[torch.from_numpy(side.astype(np.int64))] = 1
    return x[:n].reshape(energy.event_shape)


def main() -> None:
    torch.set_num_threads(1)
    clean = picture()
    noisy = torch.where(
        torch.rand(clean.shape, generator=torch.Generator().manual_seed(0)) < FLIPPED,
        1 - clean,
        clean,
    )
    prior = Ising((SIDE, SIDE), COUPLING, periodic=False, bits=True, name="prior")
    evidence = Bernoulli(
        logits=(2 * noisy - 1) * math.log((1 - FLIPPED) / FLIPPED), name="evidence"
    )
    target = prior & evidence

    one = poe.simplify(target)  # a field on each pixel: one Ising model again
    ising = one if isinstance(one, Ising) else one.energy
    best, found = minimum_cut(ising), poe.mode(target, seed=0)
    gap = float(target(found) - target(best))
    print(
        f"energy of the mode found {float(target(found)):.2f} nats, {gap:.2f} above the exact "
        "minimum"
    )

    draws = poe.sample(target, 100 if os.environ.get("POE_FAST") else 400, seed=0)
    print(draws.report())
    pictures = {
        "clean": clean,
        "noisy": noisy,
        "mode found": found,
        "minimum cut": best,
        "mean of draws": draws.mean(),
    }
    for name, x in pictures.items():
        print(
            f"{name:<14} {100 * float(((x > 0.5).float() != clean).float().mean()):5.2f} % of the "
            "pixels are wrong"
        )

    from matplotlib import pyplot as plt  # an extra

    figure, axes = plt.subplots(1, len(pictures), figsize=(2.2 * len(pictures), 2.5))
    for axis, (name, x) in zip(axes, pictures.items(), strict=True):
        axis.imshow(x, cmap="gray", vmin=0, vmax=1)
        axis.set_title(name, fontsize=9)
        axis.axis("off")
    OUT.parent.mkdir(exist_ok=True)
    figure.savefig(OUT, dpi=150, bbox_inches="tight")
    print(f"{OUT} written")


if __name__ == "__main__":
    main()
