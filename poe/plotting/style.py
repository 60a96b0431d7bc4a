"""What all panels share: colours, axes, and draws as rows of numbers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from poe.algebra import support as sets

MAX_DOTS = 1500  # draws painted as dots; more hide what is under them
# distinct for colour-blind readers too
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c564b", "#7f7f7f")
INK, BARS = "#222222", "#9db4c8"


def is_discrete(draws: Any) -> bool:
    """Whether draws are of a discrete event."""
    return not draws.x.is_floating_point() or (
        draws.target is not None and sets.is_discrete(draws.target.support)
    )


def flat(draws: Any) -> Tensor:  # (n, d)
    """The draws in double precision, an event a row."""
    return draws.x.detach().reshape(len(draws), -1).double().cpu()


def thinned(x: Tensor) -> Tensor:  # (n, d) -> (at most MAX_DOTS, d)
    """As many evenly spaced draws as are painted as dots."""
    return x[:: -(-len(x) // MAX_DOTS)]


def labels(event: torch.Size) -> list[str]:
    """The name of each coordinate: x, or x[i, j]."""
    if event.numel() == 1:
        return ["x"]
    places = torch.cartesian_prod(*(torch.arange(size) for size in event)).reshape(
        event.numel(), -1
    )
    return [f"x[{', '.join(map(str, place))}]" for place in places.tolist()]


def clean(axes: Any) -> None:
    """Axes without a frame, with small labels."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8, color="#999999")
