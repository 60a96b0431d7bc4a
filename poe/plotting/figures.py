"""Figures of draws. Needs matplotlib (extra `plot`), imported on first use."""

from __future__ import annotations

import functools
import io
import math
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from poe.io.container import write_atomically
from poe.plotting import continuous, discrete, style
from poe.plotting.corner import MAX_COORDINATES, corner

SMOOTH_BELOW = 16  # pixels a side: smaller images are enlarged by interpolation


@functools.cache
def _figure_class() -> type:
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ImportError(
            "pictures need matplotlib: pip install 'product-of-experts[plot]'", name=error.name
        ) from error

    class Picture(Figure):
        """A figure outside pyplot's global state, which a notebook shows."""

        def _repr_png_(self) -> bytes:
            return rendered(self, "png")

    return Picture


def require() -> None:
    """Raises ImportError, with the install line, where matplotlib is missing."""
    _figure_class()


def _figure(width: float, height: float) -> Any:
    return _figure_class()(figsize=(width, height), layout="constrained")


def rendered(figure: Any, kind: str, *, dpi: int = 150) -> bytes:
    """The figure as the content of a file: "png", "pdf", "svg"."""
    content = io.BytesIO()
    figure.savefig(content, format=kind, dpi=dpi, bbox_inches="tight")
    return content.getvalue()


def save(figure: Any, path: str | Path) -> None:
    """Writes the figure in the format that the end of the path names, whole or not at all. Raises
    ValueError for an unknown one."""
    path, kinds = Path(path), figure.canvas.get_supported_filetypes()
    kind = path.suffix.removeprefix(".").lower()
    if kind not in kinds:
        raise ValueError(f"{path} does not end in a format of pictures: {', '.join(sorted(kinds))}")
    write_atomically(path, rendered(figure, kind))


def is_picture(event_shape: torch.Size) -> bool:
    """Whether events look like images: (H, W), (1, H, W) or (3, H, W) with at least 4 by 4
    pixels."""
    return (
        len(event_shape) in (2, 3)
        and min(event_shape[-2:]) >= 4
        and (len(event_shape) == 2 or event_shape[0] in (1, 3))
    )


def plot(draws: Any, path: str | Path | None = None, *, most: int = 64) -> Any:
    """A matplotlib figure of draws, written to `path` where one is given.

    Images as a grid of at most `most`. One number: a histogram against the density, bars against
    probabilities where it is discrete. Two: the density in grey, draws as dots, and for each expert
    the smallest regions that hold 50 and 90 % of its mass (of its mass in the picture, where the
    expert does not draw samples); discs against circles where they are discrete. More: a corner
    plot of the first six coordinates. The density and the experts need `draws.target`, which draws
    from a file lack.

    Raises:
        ValueError: there are no draws.
        ImportError: matplotlib is missing.
    """
    event = draws.x.shape[1:]
    if len(draws) == 0 or event.numel() == 0:
        raise ValueError(
            "there is nothing to plot: no draws, or draws of no numbers; try poe.sample(..., 1000)"
        )
    if is_picture(event):
        figure = _images(draws, most)
    else:
        figure = _numbers(draws)
        lines = textwrap.wrap(draws.expression, 64)[:3]
        figure.suptitle("\n".join(lines), fontsize=11, family="monospace")
    if not draws.trusted:
        warn = figure.axes[0].set_title if event.numel() <= 2 else figure.supxlabel
        warn("\n".join(textwrap.wrap(draws.verdict, 80)[:3]), fontsize=8, color="#b00020")
    if path is not None:
        save(figure, path)
    return figure


def _images(draws: Any, most: int) -> Any:
    if most < 1:
        raise ValueError(f"most is the number of images that are shown, at least 1, not {most}")
    shown = draws.x[:most]
    return rows({draws.expression: shown}, width=min(16, math.ceil(math.sqrt(len(shown)))))


def _numbers(draws: Any) -> Any:
    d = draws.x[0].numel()
    if d > 2:
        side = 1.6 * min(d, MAX_COORDINATES) + 0.5
        figure = _figure(side, side)
        corner(figure, draws)
        return figure
    figure = _figure(6, 4 if d == 1 else 6)
    if style.is_discrete(draws):
        paint = discrete.bars if d == 1 else discrete.discs
    else:
        paint = continuous.curve if d == 1 else continuous.plane
    paint(figure.subplots(), draws)
    return figure


def rows(pictures: Mapping[str, Tensor], path: str | Path | None = None, *, width: int = 16) -> Any:
    """One titled block of images for each entry, (n, *event) each, `width` a row; every block has
    its own grey scale."""
    blocks = [_canvas(x.detach().cpu().float(), width) for x in pictures.values()]
    heights = [len(canvas) // width for canvas in blocks]
    lines = ["\n".join(textwrap.wrap(title, max(24, 7 * width))[:3]) for title in pictures]
    figure = _figure(
        max(2.4, 0.62 * width),
        0.62 * sum(heights) + 0.2 * sum(2 + line.count("\n") for line in lines),
    )
    axes = figure.subplots(
        len(blocks), 1, squeeze=False, gridspec_kw={"height_ratios": [h + 0.3 for h in heights]}
    )[:, 0]
    for ax, line, canvas in zip(axes, lines, blocks, strict=True):
        image = _tiled(_greys(canvas), width)
        ax.imshow(image.numpy(), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        ax.set_title(line, fontsize=9, family="monospace", loc="left")
        ax.axis("off")
    if path is not None:
        save(figure, path)
    return figure


def _canvas(x: Tensor, width: int) -> Tensor:
    # (n, *event) -> (rows * width, channels, H, W)
    """Images in full rows, the empty places NaN."""
    x = x if x.ndim == 4 else x.unsqueeze(1)
    count = -(-len(x) // width) if len(x) else 1
    canvas = x.new_full((count * width, *x.shape[1:]), float("nan"))
    canvas[: len(x)] = x
    return canvas


def _greys(canvas: Tensor) -> Tensor:  # (n, channels, H, W) -> same, or enlarged
    """Values between 0 and 1 on one scale, from the first to the last percentile; NaN is white."""
    finite = canvas[canvas.isfinite()]
    finite = finite[:: 1 + len(finite) // 10**6]  # torch's quantiles take at most 16 million values
    low, high = (finite.quantile(q).item() for q in (0.01, 0.99)) if len(finite) else (0.0, 1.0)
    scaled = ((canvas - low) / max(high - low, 1e-6)).clamp(0, 1)
    shown = torch.where(canvas.isfinite(), scaled, 1.0)
    if max(shown.shape[-2:]) >= SMOOTH_BELOW:
        return shown
    return torch.nn.functional.interpolate(shown, scale_factor=8, mode="bicubic").clamp(0, 1)


def _tiled(shown: Tensor, width: int) -> Tensor:
    # (rows * width, channels, H, W) -> (height, width), or (height, width, 3)
    """One image of all, with margins."""
    padded = torch.nn.functional.pad(shown, [max(1, shown.shape[-1] // 10)] * 4, value=1.0)
    image = rearrange(padded, "(r c) k h w -> (r h) (c w) k", c=width)
    return image[..., 0] if image.shape[-1] == 1 else image
