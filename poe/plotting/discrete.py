"""Panels of discrete draws: bars of one number, discs of two, against probabilities."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from poe.algebra import support as sets
from poe.plotting import landscape, style

MAX_BARS = 80
MAX_DISCS = 900
DIAMETER = 0.7 * 300  # points of all discs in a row


def bars(axes: Any, draws: Any) -> None:
    """The share of each value of one number, and its probability where the target is known."""
    x, label = style.flat(draws), f"{len(draws):,} draws"
    points = _points(draws, x, MAX_BARS)
    if points is None:
        weights = [1 / len(x)] * len(x)
        axes.hist(x[:, 0].numpy(), bins=60, weights=weights, color=style.BARS, label=label)
    else:
        counts, p = _frequencies(draws, x, points)
        values = points[:, 0].numpy()
        axes.bar(values, counts.numpy(), 0.8, color=style.BARS, label=label)
        if p is not None:
            look = {"color": style.INK, "ms": 5, "mfc": "white", "label": "probability"}
            axes.plot(values, p.numpy(), "o", **look)
        axes.locator_params(axis="x", integer=True, nbins=min(12, len(points) + 1))
    axes.set(xlabel="x", ylabel="share")
    axes.legend(frameon=False, fontsize=8)
    style.clean(axes)


def discs(axes: Any, draws: Any) -> None:
    """Discs whose areas are the shares of two numbers, and circles of their probabilities."""
    x = style.flat(draws)
    points = _points(draws, x, MAX_DISCS)
    names = style.labels(draws.x.shape[1:])
    axes.set(xlabel=names[0], ylabel=names[1])
    style.clean(axes)
    if points is None:
        axes.plot(x[:, 0].numpy(), x[:, 1].numpy(), ".", color=style.INK, ms=3, alpha=0.35, mew=0)
        return
    counts, p = _frequencies(draws, x, points)
    largest = DIAMETER / max(len(points[:, 0].unique()), len(points[:, 1].unique()))
    scale = largest**2 / max(counts.max().item(), 0.0 if p is None else p.max().item())
    share = {"color": style.BARS, "linewidths": 0, "label": f"share of {len(x):,} draws"}
    axes.scatter(*points.T.numpy(), s=(scale * counts).numpy(), **share)
    if p is not None:
        ring = {"facecolors": "none", "edgecolors": style.INK, "linewidths": 1.2}
        axes.scatter(*points.T.numpy(), s=(scale * p).numpy(), label="probability", **ring)
    axes.locator_params(integer=True)
    axes.margins(0.2)
    keys = axes.figure.legend(loc="outside lower center", ncols=2, fontsize=8, frameon=False)
    for key in keys.legend_handles:
        key.set_sizes([60])


def _points(draws: Any, x: Tensor, most: int) -> Tensor | None:  # (n, d) -> (states, d)
    """The grid of whole numbers of d discrete coordinates: the box of the support where that is
    small, else the range of the draws; None where that has more than `most` points."""
    low, high, step = x.min(0).values, x.max(0).values, 1
    box = draws.target.support if draws.target is not None else None
    if isinstance(box, sets.Box) and box.integer:
        ends, step = (box.low.flatten().cpu().double(), box.high.flatten().cpu().double()), box.step
        room = ((ends[1] - ends[0]) / step + 1).prod().item()
        low, high = ends if room <= most else (low, high)
    if ((high - low) / step + 1).prod().item() > most:
        return None
    sides = [
        torch.arange(int(a), int(b) + 1, step, dtype=torch.float64)
        for a, b in zip(low, high, strict=True)
    ]
    return torch.cartesian_prod(*sides).reshape(-1, x.shape[1])


def _frequencies(draws: Any, x: Tensor, points: Tensor) -> tuple[Tensor, Tensor | None]:
    """The share of each point among the draws, and its probability where the target is known."""
    seen, times = torch.unique(x, dim=0, return_counts=True)
    counts = ((points.unsqueeze(1) == seen).all(-1).double() * times).sum(1) / len(x)
    if draws.target is None:
        return counts, None
    values = landscape.energies_like(draws.target, points, draws)
    known = landscape.known_log_z(draws)
    return counts, landscape.density(values, 1.0, known, counts.sum().item())
