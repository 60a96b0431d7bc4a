"""What pictures of draws show: a curve, bars, a map with level sets, discs, a corner.
`poe.plotting` makes the figures."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from poe.algebra import support as sets
from poe.algebra.energy import Energy
from poe.plotting import landscape

GRID = 200  # points a side at which a density is worked out
DOTS = 1500  # draws painted as dots; more hide what is under them
COORDINATES = 6  # of a corner plot
EXPERTS = 8  # whose level sets are painted
MASSES = (0.5, 0.9)  # of the regions that level sets bound
COLOURS = (
    "#0072b2",
    "#d55e00",
    "#009e73",
    "#cc79a7",
    "#e69f00",
    "#56b4e9",
    "#8c564b",
    "#7f7f7f",
)  # told apart by all eyes
INK, BARS = "#222222", "#9db4c8"


def paint(axes: Any, draws: Any) -> None:
    """Draws of one number or two, against the density of their target where it is known."""
    if draws.x[0].numel() == 1:
        (_bars if _is_discrete(draws) else _curve)(axes, draws)
    else:
        (_discs if _is_discrete(draws) else _map)(axes, draws)


def _is_discrete(draws: Any) -> bool:
    return not draws.x.is_floating_point() or (
        draws.target is not None and sets.is_discrete(draws.target.support)
    )


def _flat(draws: Any) -> Tensor:  # (n, d)
    return draws.x.detach().reshape(len(draws), -1).double().cpu()


def _labels(event: torch.Size) -> list[str]:
    if event.numel() == 1:
        return ["x"]
    places = torch.cartesian_prod(*(torch.arange(size) for size in event)).reshape(
        event.numel(), -1
    )
    return [f"x[{', '.join(map(str, place))}]" for place in places.tolist()]


def _energies(energy: Energy, points: Tensor, draws: Any) -> Tensor:  # (n, d) -> (n)
    """E at points given in double precision, put into the type and the shape of the draws."""
    return landscape.energies(energy, points.to(draws.x).reshape(len(points), *draws.x.shape[1:]))


def _known_log_z(draws: Any) -> float | None:
    """log Z where it is known to 5 %; a picture then shows the density that the library believes
    in."""
    return (
        float(draws.log_z)
        if draws.log_z is not None and draws.log_z.standard_error <= 0.05
        else None
    )


def _clean(axes: Any) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8, color="#999999")


# ---------------------------------------------------------------- one number


def _curve(axes: Any, draws: Any) -> None:
    x, target = _flat(draws), draws.target
    low, high = (end.item() for end in landscape.window(x, target))
    inside = x[(x >= low) & (x <= high)]
    ends = low, high
    if target is not None and isinstance(
        target.support, sets.Box
    ):  # no bar spans an edge of the support
        ends = max(low, target.support.low.item()), min(high, target.support.high.item())
    heights, edges = torch.histogram(
        inside, bins=max(10, min(80, int(2 * len(x) ** 0.4))), range=ends
    )
    width = edges[1].item() - edges[0].item()
    heights = heights / (len(x) * width)
    axes.bar(
        edges[:-1].numpy(),
        heights.numpy(),
        width,
        align="edge",
        color=BARS,
        label=f"{len(x):,} draws",
    )
    top = heights.max().item()
    if target is not None:
        grid = torch.linspace(low, high, 5 * GRID, dtype=torch.float64)
        cell = (grid[1] - grid[0]).item()
        p = landscape.density(
            _energies(target, grid, draws), cell, _known_log_z(draws), len(inside) / len(x)
        )
        parts = [f for f in landscape.factors(target) if f.energy is not target]
        for factor, colour in zip(
            parts[:EXPERTS] if len(parts) <= EXPERTS else [], COLOURS, strict=False
        ):
            known = factor.energy.log_z
            if known is not None:
                own = landscape.density(_energies(factor.energy, grid, draws), cell, float(known))
                style = "--" if factor.sign else "-"
                axes.plot(
                    grid.numpy(), own.numpy(), style, color=colour, lw=1.2, label=factor.label
                )
        axes.plot(grid.numpy(), p.numpy(), color=INK, lw=1.8, label="density")
        finite = p[p.isfinite()]
        top = max(top, min(finite.max().item(), 2.5 * top)) if len(finite) else top
    axes.set(xlabel="x", ylabel="density", xlim=(low, high), ylim=(0, 1.08 * top))
    axes.legend(frameon=False, fontsize=8)
    _clean(axes)


def _points(draws: Any, x: Tensor, most: int) -> Tensor | None:  # (n, d) -> (states, d)
    """The grid of whole numbers that a picture of d discrete coordinates spans: the box of the
    support where it is small, else what the draws reach; None where that is more than `most`
    points."""
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
    """How often each point was drawn, and its probability where the target is known."""
    seen, times = torch.unique(x, dim=0, return_counts=True)
    counts = ((points.unsqueeze(1) == seen).all(-1).double() * times).sum(1) / len(x)
    if draws.target is None:
        return counts, None
    return counts, landscape.density(
        _energies(draws.target, points, draws), 1.0, _known_log_z(draws), counts.sum().item()
    )


def _bars(axes: Any, draws: Any) -> None:
    x = _flat(draws)
    points = _points(draws, x, 80)
    if points is None:
        axes.hist(
            x[:, 0].numpy(),
            bins=60,
            weights=[1 / len(x)] * len(x),
            color=BARS,
            label=f"{len(x):,} draws",
        )
    else:
        counts, p = _frequencies(draws, x, points)
        axes.bar(points[:, 0].numpy(), counts.numpy(), 0.8, color=BARS, label=f"{len(x):,} draws")
        if p is not None:
            axes.plot(
                points[:, 0].numpy(),
                p.numpy(),
                "o",
                color=INK,
                ms=5,
                mfc="white",
                label="probability",
            )
        axes.locator_params(axis="x", integer=True, nbins=min(12, len(points) + 1))
    axes.set(xlabel="x", ylabel="share")
    axes.legend(frameon=False, fontsize=8)
    _clean(axes)


# ---------------------------------------------------------------- two numbers


def _map(axes: Any, draws: Any) -> None:
    x, target = _flat(draws), draws.target
    low, high = landscape.window(x, target)
    low, high = _square(low, high, axes, target)
    if target is not None:
        sides = [
            torch.linspace(a, b, GRID, dtype=torch.float64)
            for a, b in zip(low.tolist(), high.tolist(), strict=True)
        ]
        points = torch.cartesian_prod(*sides)

        def on_grid(energy: Energy) -> Tensor:
            # -> (rows, columns), the first coordinate to the right
            return _energies(energy, points, draws).reshape(GRID, GRID).T

        values = on_grid(target)
        least = values[values.isfinite()].min() if bool(values.isfinite().any()) else 0.0
        shown = (least - values).exp().clamp(max=1)
        extent = (low[0].item(), high[0].item(), low[1].item(), high[1].item())
        axes.imshow(
            shown.numpy(),
            origin="lower",
            extent=extent,
            cmap="Greys",
            vmax=1.6,
            aspect=axes.get_aspect(),
        )
        handles = _contours(axes, sides, landscape.factors(target), on_grid)
        if handles:
            title = (
                f"regions with {' and '.join(f'{100 * mass:.0f} %' for mass in MASSES)} of "
                "each expert"
            )
            axes.figure.legend(
                handles=handles,
                loc="outside lower center",
                ncols=4,
                fontsize=8,
                frameon=False,
                title=title,
                title_fontsize=8,
            )
    dots = x[:: -(-len(x) // DOTS)]
    axes.plot(dots[:, 0].numpy(), dots[:, 1].numpy(), ".", color=INK, ms=3, alpha=0.35, mew=0)
    names = _labels(draws.x.shape[1:])
    axes.set(
        xlabel=names[0],
        ylabel=names[1],
        xlim=(low[0].item(), high[0].item()),
        ylim=(low[1].item(), high[1].item()),
    )
    _clean(axes)


def _square(low: Tensor, high: Tensor, axes: Any, target: Energy | None) -> tuple[Tensor, Tensor]:
    """The window made square, with one scale for both axes, where its sides are alike and no box
    bounds it."""
    size, bounded = (
        high - low,
        target is not None and isinstance(target.support, sets.Box) and not target.support.is_real,
    )
    if size.max() > 2 * size.min():
        return low, high
    axes.set_aspect("equal")
    if bounded:
        return low, high
    centre, half = (low + high) / 2, size.max() / 2
    return centre - half, centre + half


def _contours(
    axes: Any, sides: Sequence[Tensor], parts: Sequence[landscape.Factor], on_grid: Any
) -> list[Any]:
    from matplotlib.lines import Line2D

    handles = []
    for factor, colour in zip(parts[:EXPERTS], COLOURS, strict=False):
        values = on_grid(factor.energy)
        levels = landscape.levels(factor.energy, values, MASSES)
        if not levels:
            continue
        gap = max(levels[-1] - levels[0], 1.0)
        if levels[-1] - levels[0] < 1e-6 * (1 + abs(levels[0])):
            levels = [levels[0] + 0.5 * gap]  # a flat density: the edge of its support
        heights = values.clamp(
            max=levels[-1] + 3 * gap
        )  # finite outside the support, so that a region ends at its edge
        style = "dashed" if factor.sign else "solid"
        if bool((heights > levels[0]).any()) and bool((heights < levels[-1]).any()):
            axes.contour(
                *(side.numpy() for side in sides),
                heights.numpy(),
                levels,
                colors=colour,
                linewidths=[1.8, 1.0][: len(levels)],
                linestyles=style,
            )
        handles.append(
            Line2D(
                [],
                [],
                color=colour,
                lw=1.8,
                ls=style,
                label=textwrap.shorten(factor.label, 30, placeholder=" ..."),
            )
        )
    if len(parts) > EXPERTS:
        handles.append(Line2D([], [], lw=0, label=f"and {len(parts) - EXPERTS} more"))
    return handles


def _discs(axes: Any, draws: Any) -> None:
    x = _flat(draws)
    points = _points(draws, x, 900)
    names = _labels(draws.x.shape[1:])
    axes.set(xlabel=names[0], ylabel=names[1])
    _clean(axes)
    if points is None:
        axes.plot(x[:, 0].numpy(), x[:, 1].numpy(), ".", color=INK, ms=3, alpha=0.35, mew=0)
        return
    counts, p = _frequencies(draws, x, points)
    largest = (
        0.7 * 300 / max(len(points[:, 0].unique()), len(points[:, 1].unique()))
    )  # points of a diameter
    scale = largest**2 / max(counts.max().item(), 0.0 if p is None else p.max().item())
    places = points.T.numpy()
    axes.scatter(
        *places,
        s=(scale * counts).numpy(),
        color=BARS,
        linewidths=0,
        label=f"share of {len(x):,} draws",
    )
    if p is not None:
        axes.scatter(
            *places,
            s=(scale * p).numpy(),
            facecolors="none",
            edgecolors=INK,
            linewidths=1.2,
            label="probability",
        )
    axes.locator_params(integer=True)
    axes.margins(0.2)
    keys = axes.figure.legend(loc="outside lower center", ncols=2, fontsize=8, frameon=False)
    for key in keys.legend_handles:
        key.set_sizes([60])


# ---------------------------------------------------------------- more numbers


def corner(figure: Any, draws: Any) -> None:
    """A corner plot of the first coordinates: histograms, and dots for each pair. Discrete values
    are spread a little."""
    event = draws.x.shape[1:]
    x, names = _flat(draws)[:, :COORDINATES], _labels(event)
    d, discrete = x.shape[1], _is_discrete(draws)
    grid = figure.subplots(d, d, sharex="col", squeeze=False)
    low, high = landscape.window(x, None)
    if discrete:
        low, high = x.min(0).values - 0.7, x.max(0).values + 0.7
    jitter = torch.rand(x.shape, generator=torch.Generator().manual_seed(0)).double() - 0.5
    dots = (x + 0.6 * jitter if discrete else x)[:: -(-len(x) // DOTS)]
    for i in range(d):
        for j in range(d):
            axes = grid[i, j]
            if j > i:
                axes.set_axis_off()
                continue
            ends = (low[j].item(), high[j].item())
            if i == j:
                whole = discrete and ends[1] - ends[0] < 40
                bins = torch.arange(ends[0] + 0.2, ends[1], 1.0).tolist() if whole else 30
                axes.hist(
                    x[:, i].numpy(), bins=bins, range=ends, color=BARS, rwidth=0.8 if whole else 1.0
                )
                axes.set_yticks([])
                axes.spines["left"].set_visible(False)
            else:
                axes.plot(
                    dots[:, j].numpy(), dots[:, i].numpy(), ".", color=INK, ms=2, alpha=0.3, mew=0
                )
                axes.set_ylim(low[i].item(), high[i].item())
                axes.tick_params(labelleft=j == 0)
                axes.locator_params(axis="y", nbins=4, integer=discrete)
            axes.set_xlim(*ends)
            axes.locator_params(axis="x", nbins=4, integer=discrete)
            _clean(axes)
            if i == d - 1:
                axes.set_xlabel(names[j], fontsize=9)
            if j == 0 and i > 0:
                axes.set_ylabel(names[i], fontsize=9)
    if event.numel() > d:
        figure.text(
            0.98,
            0.85,
            f"the first {d} of {event.numel():,}\ncoordinates",
            ha="right",
            va="top",
            fontsize=9,
            color="#666666",
        )
    return figure
