"""A corner plot of draws of many numbers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from poe.plotting import landscape, style

MAX_COORDINATES = 6
MAX_BINS = 40  # of a width of one, for discrete values


def corner(figure: Any, draws: Any) -> None:
    """Histograms of the first coordinates, and dots for each pair; dots of discrete values are
    spread a little."""
    event, discrete = draws.x.shape[1:], style.is_discrete(draws)
    x, names = style.flat(draws)[:, :MAX_COORDINATES], style.labels(event)
    d = x.shape[1]
    grid = figure.subplots(d, d, sharex="col", squeeze=False)
    low, high = landscape.window(x, None)
    if discrete:
        low, high = x.min(0).values - 0.7, x.max(0).values + 0.7
    ends = list(zip(low.tolist(), high.tolist(), strict=True))
    jitter = torch.rand(x.shape, generator=torch.Generator().manual_seed(0)).double() - 0.5
    dots = style.thinned(x + 0.6 * jitter if discrete else x)
    for i in range(d):
        for j in range(d):
            axes = grid[i, j]
            if j > i:
                axes.set_axis_off()
                continue
            if i == j:
                _histogram(axes, x[:, i], ends[i], discrete)
            else:
                _scatter(axes, dots[:, [j, i]], ends[i], discrete, first=j == 0)
            axes.set_xlim(*ends[j])
            axes.locator_params(axis="x", nbins=4, integer=discrete)
            style.clean(axes)
            if i == d - 1:
                axes.set_xlabel(names[j], fontsize=9)
            if j == 0 and i > 0:
                axes.set_ylabel(names[i], fontsize=9)
    if event.numel() > d:
        text = f"the first {d} of {event.numel():,}\ncoordinates"
        figure.text(0.98, 0.85, text, ha="right", va="top", fontsize=9, color="#666666")


def _histogram(axes: Any, x: Tensor, ends: tuple[float, float], discrete: bool) -> None:
    whole = discrete and ends[1] - ends[0] < MAX_BINS
    bins = torch.arange(ends[0] + 0.2, ends[1], 1.0).tolist() if whole else 30
    width = 0.8 if whole else 1.0
    axes.hist(x.numpy(), bins=bins, range=ends, color=style.BARS, rwidth=width)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)


def _scatter(
    axes: Any, pairs: Tensor, ends: tuple[float, float], discrete: bool, *, first: bool
) -> None:
    axes.plot(*pairs.T.numpy(), ".", color=style.INK, ms=2, alpha=0.3, mew=0)
    axes.set_ylim(*ends)
    axes.tick_params(labelleft=first)
    axes.locator_params(axis="y", nbins=4, integer=discrete)
