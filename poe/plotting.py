"""Pictures of draws. Needs matplotlib (extra `plot`), imported on first use."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

SMALL = 16  # pixels a side: smaller images are enlarged smoothly, as eyes read them better than as blocks


def _pyplot() -> Any:
    try:
        import matplotlib
    except ImportError as error:
        raise ImportError("pictures need matplotlib: pip install 'product-of-experts[plot]'") from error
    from matplotlib.figure import Figure

    return Figure if matplotlib else None


def _finish(figure: Any, path: str | Path | None) -> Any:
    if path is not None:
        figure.savefig(path, dpi=150, bbox_inches="tight")
    return figure


def is_picture(event_shape: torch.Size) -> bool:
    """Whether events look like images: (H, W), (1, H, W) or (3, H, W) with at least 4 by 4 pixels."""
    return len(event_shape) in (2, 3) and min(event_shape[-2:]) >= 4 and (len(event_shape) == 2 or event_shape[0] in (1, 3))


def plot(draws: Any, path: str | Path | None = None, *, most: int = 64) -> Any:
    """Images as a grid of at most `most`, 1-D a histogram, 2-D a scatter, more dimensions a corner plot of the first five."""
    x = draws.x.detach().cpu().float()
    event = x.shape[1:]
    if is_picture(event):
        return rows({draws.expression: x[:most]}, path, width=min(16, max(1, len(x))))
    flat = x.reshape(len(x), -1)[:, :5].numpy()
    figure = _pyplot()(figsize=(5, 4) if flat.shape[1] <= 2 else (8, 8), layout="constrained")
    d = flat.shape[1]
    if d == 1:
        axes = figure.subplots()
        axes.hist(flat[:, 0], bins="auto", density=True)
        axes.set(xlabel="x", ylabel="density")
    elif d == 2:
        axes = figure.subplots()
        axes.scatter(flat[:, 0], flat[:, 1], s=4, alpha=0.5)
        axes.set(xlabel="x[0]", ylabel="x[1]")
    else:
        grid = figure.subplots(d, d)
        for i in range(d):
            for j in range(d):
                if j > i:
                    grid[i, j].axis("off")
                elif i == j:
                    grid[i, j].hist(flat[:, i], bins="auto")
                else:
                    grid[i, j].scatter(flat[:, j], flat[:, i], s=2, alpha=0.4)
    figure.suptitle("\n".join(textwrap.wrap(draws.expression, 70)), fontsize=9)
    return _finish(figure, path)


def rows(pictures: Mapping[str, Tensor], path: str | Path | None = None, *, width: int = 16) -> Any:
    """One titled block of images for each entry, (n, *event) each, `width` a row; every block has its own grey scale."""
    blocks = []
    for title, x in pictures.items():
        x = x.detach().cpu().float()
        x = x if x.ndim == 4 else x.unsqueeze(1)
        count = -(-len(x) // width) if len(x) else 1
        canvas = x.new_full((count * width, *x.shape[1:]), float("nan"))
        canvas[: len(x)] = x
        blocks.append((title, canvas, count))
    heights = [count for _, _, count in blocks]
    figure = _pyplot()(figsize=(0.62 * width, 0.62 * sum(heights) + 0.42 * len(blocks)), layout="constrained")
    axes = figure.subplots(len(blocks), 1, squeeze=False, gridspec_kw={"height_ratios": [h + 0.3 for h in heights]})[:, 0]
    for ax, (title, canvas, count) in zip(axes, blocks, strict=True):
        finite = canvas[canvas.isfinite()]
        low, high = (finite.quantile(q).item() for q in (0.01, 0.99)) if len(finite) else (0.0, 1.0)
        shown = torch.where(canvas.isfinite(), ((canvas - low) / max(high - low, 1e-6)).clamp(0, 1), 1.0)
        if max(shown.shape[-2:]) < SMALL:
            shown = torch.nn.functional.interpolate(shown, scale_factor=8, mode="bicubic").clamp(0, 1)
        padded = torch.nn.functional.pad(shown, [max(1, shown.shape[-1] // 10)] * 4, value=1.0)
        _, channels, h, w = padded.shape
        image = padded.reshape(count, width, channels, h, w).permute(0, 3, 1, 4, 2).reshape(count * h, width * w, channels)
        ax.imshow(image[..., 0] if channels == 1 else image, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        ax.set_title(title, fontsize=9, family="monospace", loc="left")
        ax.axis("off")
    return _finish(figure, path)
