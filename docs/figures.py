"""The pictures and colours of the documentation, made from draws while it is built: a hook of
mkdocs. `python docs/figures.py` makes the picture of the README, docs/readme.png."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from mkdocs.structure.files import File, Files
from PIL import Image
from pygments.formatters import HtmlFormatter
from torch import Tensor

import poe
from experts import Normal
from poe.plotting import figures

STYLE = """
.rst-content .codehilite { border: 1px solid #e1e4e5; margin: 1px 0 24px; padding: 0; overflow-x: auto }
.rst-content .codehilite pre { border: 0; margin: 0; padding: 12px; font-size: 12px; line-height: 1.4 }
.rst-content .codehilite, .rst-content .codehilite pre, .rst-content .codehilite code { background: #f8f8f8 }
.rst-content .codehilite code { border: 0; padding: 0; font-size: 12px; color: inherit }
.rst-content table.docutils td, .rst-content table td, .rst-content table th { white-space: normal }
.wy-nav-content { max-width: 960px }
"""  # noqa: E501


GREYS = 24  # of the picture of the README, for a small file


def digits() -> Figure:
    names = {"even": "0 2 4 6 8", "loops": "0 6 8 9", "high": "5 6 7 8 9"}
    parts = {name: poe.load(f"digits.{name}") for name in names}
    blocks = {}
    for name, trained in names.items():
        method = "annealed" if name == "high" else None
        blocks[f"{name}, trained on {trained}"] = poe.sample(
            parts[name], 64, method=method, seed=0
        ).x[::4]
    target = (parts["even"] & parts["loops"] & parts["high"]) ** (1 / 3)
    blocks["(even & loops & high) ** (1/3)"] = poe.sample(target, 32, seed=0).x[::2]
    return figures.rows(blocks)


def ring() -> Figure:
    wide = Normal(torch.zeros(2), torch.ones(2), name="wide")
    ring = poe.as_energy(
        lambda x: 8 * (x.norm(dim=-1) - 1) ** 2, event_shape=(2,), bounded=True, name="ring"
    )
    right = poe.as_energy(
        lambda x: 6 * (-x[..., 0]).relu(), event_shape=(2,), bounded=True, name="right"
    )
    targets = (wide & ring, wide & ring & right, poe.contrast(wide, ring, 4))
    return scatter(
        {str(target): {"draws": poe.sample(target, 1000, seed=0).x} for target in targets}, 2.6
    )


def posteriors() -> Figure:
    prior = Normal(torch.zeros(2), 3 * torch.ones(2), name="prior")
    first = Normal(torch.tensor([1.0, -0.5]), torch.tensor([0.2, 0.5]), name="first")
    panels = {}
    for name, loc in {"agreeing": [0.8, -0.2], "in tension": [-0.8, 1.4]}.items():
        second = Normal(torch.tensor(loc), torch.tensor([0.5, 0.2]), name="second")
        draws = poe.sample(poe.combine([first, second], prior=prior), 600, seed=0)
        generator = torch.Generator().manual_seed(0)
        panels[name] = {str(e): e.sample(600, generator=generator) for e in (first, second)} | {
            "combined": draws.x
        }
    return scatter(panels, 3.0)


def scatter(panels: dict[str, dict[str, Tensor]], reach: float) -> Figure:
    """Points in the plane, one panel an entry."""
    figure = Figure(figsize=(3.0 * len(panels), 3.2), layout="constrained")
    for axis, (title, sets) in zip(figure.subplots(1, len(panels)), panels.items(), strict=True):
        for label, x in sets.items():
            axis.scatter(x[:, 0], x[:, 1], s=4, alpha=0.5, label=label, linewidths=0)
        axis.set(xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal")
        axis.set_title(title, fontsize=9, family="monospace")
        if len(sets) > 1:
            axis.legend(fontsize=7, markerscale=3)
    return figure


PICTURES: dict[str, Callable[[], Figure]] = {
    "digits": digits,
    "ring": ring,
    "posteriors": posteriors,
}
made: dict[str, bytes] = {}  # a second build of one process, as `mkdocs serve` makes, draws nothing


def on_files(files: Files, config: Any) -> Files:
    """Adds the pictures, and the colours of code, to the files of the site."""
    colours = HtmlFormatter(style="friendly").get_style_defs(".codehilite")
    files.append(File.generated(config, "css/poe.css", content=colours + STYLE))
    torch.set_num_threads(1)
    for name, paint in PICTURES.items():
        if name not in made:
            made[name] = figures.rendered(paint(), "png", dpi=110)
        files.append(File.generated(config, f"img/{name}.png", content=made[name]))
    return files


def readme() -> None:
    """Writes the picture of the README, in few greys."""
    torch.set_num_threads(1)
    picture = Image.open(io.BytesIO(figures.rendered(digits(), "png", dpi=84))).convert("L")
    picture.quantize(GREYS).save(Path(__file__).with_name("readme.png"), optimize=True)


if __name__ == "__main__":
    readme()
