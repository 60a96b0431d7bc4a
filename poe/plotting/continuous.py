"""Panels of continuous draws: one number against the curve of its density, two numbers over a map
with the regions of each expert."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from poe.algebra import support as sets
from poe.algebra.energy import Energy
from poe.plotting import landscape, style

GRID = 200  # points a side at which a density is evaluated
MAX_EXPERTS = 8  # whose curves or regions are painted
MASSES = (0.5, 0.9)  # of the regions of an expert


def curve(axes: Any, draws: Any) -> None:
    """A histogram of one number, and the density of the target and of its experts."""
    x, target = style.flat(draws), draws.target
    low, high = (end.item() for end in landscape.window(x, target))
    inside = x[(x >= low) & (x <= high)]
    top = _histogram(axes, inside, len(x), _bar_ends(target, low, high))
    if target is not None:
        grid = torch.linspace(low, high, 5 * GRID, dtype=torch.float64)
        highest = _densities(axes, draws, grid, len(inside) / len(x))
        top = top if highest is None else max(top, min(highest, 2.5 * top))
    axes.set(xlabel="x", ylabel="density", xlim=(low, high), ylim=(0, 1.08 * top))
    axes.legend(frameon=False, fontsize=8)
    style.clean(axes)


def _bar_ends(target: Energy | None, low: float, high: float) -> tuple[float, float]:
    """The ends of the histogram: no bar crosses an edge of the support."""
    if target is None or not isinstance(target.support, sets.Box):
        return low, high
    return max(low, target.support.low.item()), min(high, target.support.high.item())


def _histogram(axes: Any, inside: Tensor, n: int, ends: tuple[float, float]) -> float:
    """Bars of the draws in the window, of n in all; returns the height of the highest."""
    bins = max(10, min(80, int(2 * n**0.4)))
    heights, edges = torch.histogram(inside, bins=bins, range=ends)
    width = edges[1].item() - edges[0].item()
    heights = heights / (n * width)
    bars = {"align": "edge", "color": style.BARS, "label": f"{n:,} draws"}
    axes.bar(edges[:-1].numpy(), heights.numpy(), width, **bars)
    return heights.max().item()


def _densities(axes: Any, draws: Any, grid: Tensor, share: float) -> float | None:
    """Curves of the target and of the experts whose log Z is known; returns the highest density of
    the target."""
    target, cell = draws.target, (grid[1] - grid[0]).item()
    values = landscape.energies_like(target, grid, draws)
    p = landscape.density(values, cell, landscape.known_log_z(draws), share)
    parts = [c for c in landscape.components(target) if c.energy is not target]
    parts = parts if len(parts) <= MAX_EXPERTS else []
    for part, colour in zip(parts, style.COLOURS, strict=False):
        known = part.energy.log_z
        if known is not None:
            values = landscape.energies_like(part.energy, grid, draws)
            own = landscape.density(values, cell, float(known))
            line = "--" if part.sign else "-"
            axes.plot(grid.numpy(), own.numpy(), line, color=colour, lw=1.2, label=part.label)
    axes.plot(grid.numpy(), p.numpy(), color=style.INK, lw=1.8, label="density")
    finite = p[p.isfinite()]
    return finite.max().item() if len(finite) else None


def plane(axes: Any, draws: Any) -> None:
    """Two numbers: the density in grey, regions of the experts, draws as dots."""
    x, target = style.flat(draws), draws.target
    low, high = _square(*landscape.window(x, target), axes, target)
    if target is not None:
        _density_map(axes, draws, low, high)
    dots = style.thinned(x)
    axes.plot(dots[:, 0].numpy(), dots[:, 1].numpy(), ".", color=style.INK, ms=3, alpha=0.35, mew=0)
    names = style.labels(draws.x.shape[1:])
    (left, bottom), (right, top) = low.tolist(), high.tolist()
    axes.set(xlabel=names[0], ylabel=names[1], xlim=(left, right), ylim=(bottom, top))
    style.clean(axes)


def _square(low: Tensor, high: Tensor, axes: Any, target: Energy | None) -> tuple[Tensor, Tensor]:
    """The window made square, with one scale for both axes, where its sides are similar and no box
    bounds it."""
    size = high - low
    if size.max() > 2 * size.min():
        return low, high
    axes.set_aspect("equal")
    if target is not None and isinstance(target.support, sets.Box) and not target.support.is_real:
        return low, high
    centre, half = (low + high) / 2, size.max() / 2
    return centre - half, centre + half


def _density_map(axes: Any, draws: Any, low: Tensor, high: Tensor) -> None:
    (left, bottom), (right, top) = low.tolist(), high.tolist()
    ends = ((left, right), (bottom, top))
    sides = [torch.linspace(a, b, GRID, dtype=torch.float64) for a, b in ends]
    points = torch.cartesian_prod(*sides)

    def on_grid(energy: Energy) -> Tensor:
        # -> (rows, columns), the first coordinate to the right
        return landscape.energies_like(energy, points, draws).reshape(GRID, GRID).T

    values = on_grid(draws.target)
    least = values[values.isfinite()].min() if bool(values.isfinite().any()) else 0.0
    shown = (least - values).exp().clamp(max=1)
    look = {"cmap": "Greys", "vmax": 1.6, "aspect": axes.get_aspect()}
    axes.imshow(shown.numpy(), origin="lower", extent=(left, right, bottom, top), **look)
    handles = _contours(axes, sides, landscape.components(draws.target), on_grid)
    if handles:
        masses = " and ".join(f"{100 * mass:.0f} %" for mass in MASSES)
        title = {"title": f"regions with {masses} of each expert", "title_fontsize": 8}
        look = {"loc": "outside lower center", "ncols": 4, "fontsize": 8, "frameon": False}
        axes.figure.legend(handles=handles, **look, **title)


def _contours(
    axes: Any,
    sides: Sequence[Tensor],
    parts: Sequence[landscape.Component],
    on_grid: Callable[[Energy], Tensor],
) -> list[Any]:
    """Draws the regions of each expert; returns the entries of a legend."""
    from matplotlib.lines import Line2D

    handles = []
    for part, colour in zip(parts[:MAX_EXPERTS], style.COLOURS, strict=False):
        values = on_grid(part.energy)
        levels = landscape.levels(part.energy, values, MASSES)
        if not levels:
            continue
        line = "dashed" if part.sign else "solid"
        _contour(axes, sides, values, levels, colors=colour, linestyles=line)
        label = textwrap.shorten(part.label, 30, placeholder=" ...")
        handles.append(Line2D([], [], color=colour, lw=1.8, ls=line, label=label))
    if len(parts) > MAX_EXPERTS:
        handles.append(Line2D([], [], lw=0, label=f"and {len(parts) - MAX_EXPERTS} more"))
    return handles


def _contour(
    axes: Any, sides: Sequence[Tensor], values: Tensor, levels: list[float], **look: Any
) -> None:
    gap = max(levels[-1] - levels[0], 1.0)
    if levels[-1] - levels[0] < 1e-6 * (1 + abs(levels[0])):
        levels = [levels[0] + 0.5 * gap]  # a flat density: the edge of its support
    # finite outside the support, so that a region ends at its edge
    heights = values.clamp(max=levels[-1] + 3 * gap)
    if bool((heights > levels[0]).any()) and bool((heights < levels[-1]).any()):
        look |= {"linewidths": [1.8, 1.0][: len(levels)]}
        axes.contour(*(side.numpy() for side in sides), heights.numpy(), levels, **look)
