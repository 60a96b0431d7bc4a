"""What experts that wrap models of other libraries share: seeded global randomness, and rows that
hold a NaN or an infinity."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor


def seed_of(generator: torch.Generator | None) -> int:
    """A seed from the generator; from torch's global one where there is none."""
    device = "cpu" if generator is None else generator.device
    return int(torch.randint(2**62, (), generator=generator, device=device))


@contextlib.contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Inside, torch's global randomness starts from this seed; after, it is as before."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def where_finite(function: Callable[[Tensor], Tensor], rows: Tensor) -> Tensor:
    # (n, *event) -> (n)
    """The function of each row, NaN for a row that holds a NaN or an infinity: other rows keep
    their gradients."""
    if not len(rows):
        return rows.flatten(1).sum(1)
    finite = rows.flatten(1).isfinite().all(1)
    rows = torch.where(finite.reshape(-1, *[1] * (rows.ndim - 1)), rows, 0.0)
    return torch.where(finite, function(rows), math.nan)
