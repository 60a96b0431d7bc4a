"""(k) The accuracy of the guides of `shapes`: by how much E[x₀ | x, c] reduces the squared error of
D, c a concept of the picture.

At each level of noise, the mean of (‖m_c - x₀‖² - ‖D - x₀‖²) / σ² over pictures, in each factor: of
m_c = D + σ²∇log p(c | x; σ) by the gradient of the classifier, of m_c = D + Δ_c by the guide, and
of the exact E[x₀ | x, c] over the exact E[x₀ | x], by enumeration of all combinations and of places
on a grid of 0.25 pixels. Its mean over log σ, halved, is what a path of reverse diffusion loses, in
nats (Girsanov), where the concept is not followed. Levels lie above 0.8, where the grid is fine
enough.

    python tests/benchmarks/bench_guidance.py
"""

from __future__ import annotations

import math
import sys
from pathlib import Path

import torch
from torch import Tensor

import poe
import timing  # noqa: F401
from experts.noise import ConceptNetwork

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples"))
from shapes import CELLS, FACTORS, combinations, pictures, render

SIGMAS = [7.0, 5.0, 3.5, 2.5, 1.8, 1.3, 0.9]
PICTURES, GRID = 512, 11  # places a side within each cell


def squares(m: Tensor, clean: Tensor, sigma: float) -> Tensor:  # (n, *event), (n, *event) -> ()
    return ((m - clean) / sigma).square().flatten(1).sum(1).mean()


def templates() -> tuple[Tensor, Tensor]:  # -> (m, 768), (m, 5)
    """All pictures without noise on the grid, each as likely as every other, and their factors."""
    low, high = torch.tensor(CELLS).unbind(1)
    at = torch.linspace(0, 1, GRID + 1)[:-1] + 0.5 / GRID  # midpoints
    grid, seen = torch.cartesian_prod(at, at), combinations()
    cells = seen[:, None, 2:4]
    factors = seen[:, None].expand(-1, len(grid), -1)
    return render(factors, low[cells] + (high - low)[cells] * grid).flatten(0, 1).flatten(
        1
    ), factors.flatten(0, 1)


def exact(
    x: Tensor, clean: Tensor, truth: Tensor, sigma: float, known: tuple[Tensor, Tensor]
) -> list[float]:
    points, factors = known
    logs = (2 * x.flatten(1) @ points.T - points.square().sum(1)) / (2 * sigma**2)
    plain = squares((logs.softmax(1) @ points).view_as(x), clean, sigma)
    saved = []
    for i in range(len(FACTORS)):
        given = logs.masked_fill(factors[:, i] != truth[:, i, None], -math.inf)
        saved.append(float(squares((given.softmax(1) @ points).view_as(x), clean, sigma) - plain))
    return saved


def learned(
    network: ConceptNetwork, x: Tensor, clean: Tensor, truth: Tensor, sigma: float
) -> tuple[list[float], list[float]]:
    """By the gradient of the classifier, and by the guide."""
    level, first = torch.full((len(x),), sigma), torch.tensor([0, *network.sizes[:-1]]).cumsum(0)
    x = x.clone().requires_grad_()
    gains = network.log_ratios(x, level).gather(1, first + truth)
    slopes = [
        torch.autograd.grad(gains[:, i].sum(), x, retain_graph=True)[0] for i in range(len(FACTORS))
    ]
    with torch.no_grad():
        features = network.features(x, level)
        d = network.point(features)
        plain = squares(d, clean, sigma)
        shifts = [
            network.shift(features, first[i] + truth[:, i], gains[:, i])
            for i in range(len(FACTORS))
        ]
        return tuple(
            [float(squares(d + by, clean, sigma) - plain) for by in way]
            for way in ([sigma**2 * s for s in slopes], shifts)
        )  # type: ignore[return-value]


def main() -> None:
    network: ConceptNetwork = poe.load("shapes.any").network  # type: ignore[attr-defined, assignment]
    generator, known, rows = torch.Generator().manual_seed(0), templates(), []
    print("saved, nats per unit of log σ:", *FACTORS)
    for sigma in SIGMAS:
        clean, truth = pictures(PICTURES, generator=generator)
        x = clean + sigma * torch.randn(clean.shape, generator=generator)
        rows.append(
            [*learned(network, x, clean, truth, sigma), exact(x, clean, truth, sigma, known)]
        )
        for name, saved in zip(("gradient", "guide", "exact"), rows[-1], strict=True):
            print(f"  σ {sigma:4.1f} {name:8s}", *(f"{value:7.3f}" for value in saved), flush=True)
    means = torch.tensor(rows).mean(0)  # the levels are nearly even in log σ
    for name, saved in zip(("gradient", "guide", "exact"), means.tolist(), strict=True):
        print(
            f"  mean   {name:8s}",
            *(f"{value:7.3f}" for value in saved),
            f" all {sum(saved) / len(saved):7.3f}",
        )


if __name__ == "__main__":
    main()
