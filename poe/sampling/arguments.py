"""What is said against the arguments of `sample`, before anything is drawn."""

from __future__ import annotations

from numbers import Integral
from typing import Any

import torch
from torch import Tensor

from poe.algebra import support as sets
from poe.algebra.energy import Energy
from poe.algebra.errors import ImproperError
from poe.algebra.product import Product
from poe.algebra.rules import is_empty
from poe.algebra.text import bracketed
from poe.kernels import Kernel


def _check_device(device: torch.device | str | None) -> None:
    try:
        torch.empty(0, device=device)
    except (
        AssertionError,
        NotImplementedError,
        RuntimeError,
    ) as error:  # torch raises one or the other, as it was built
        raise ValueError(
            f"nothing can be drawn on device={str(device)!r} here: {str(error).splitlines()[0]}"
        ) from error


def _check_arguments(
    energy: Energy, draws: int, chains: int | None, thin: int, shards: int
) -> None:
    if not isinstance(energy, Energy):
        raise TypeError(
            f"poe.sample draws from an energy, not a {type(energy).__name__}: poe.as_energy(model) "
            "wraps a model"
        )
    for name, value, least in (
        ("draws", draws, 0),
        ("chains", chains, 1),
        ("thin", thin, 1),
        ("shards", shards, 1),
    ):
        if value is not None and (
            isinstance(value, bool) or not isinstance(value, Integral) or value < least
        ):
            raise ValueError(f"{name} is a whole number of at least {least}, got {value!r}")
    if chains is not None and shards > chains:
        raise ValueError(f"{shards} shards need at least as many chains, got {chains}")


def _check_chains(
    method: str | None, kernel: Any, warmup: Any, init: Tensor | None, seed: Any
) -> None:
    if kernel is not None and not isinstance(kernel, Kernel):
        raise TypeError(f"kernel is a kernel such as poe.Langevin(), not {kernel!r}")
    if init is not None and not isinstance(init, Tensor):
        raise TypeError(
            f"init is a tensor (chains, *event), not {type(init).__name__}: torch.as_tensor(init) "
            "makes one"
        )
    for name, value in (("warmup", warmup), ("seed", seed)):
        if value is not None and (
            isinstance(value, bool) or not isinstance(value, Integral) or value < 0
        ):
            raise ValueError(f"{name} is a whole number of at least 0, got {value!r}")
    if method in ("exact", "enumerate", "parts", "sequential", "importance", "annealed") and not (
        init is None and warmup is None
    ):
        raise ValueError(
            f"init= and warmup= are for chains, and method={method!r} has none; give "
            'method="chains" or leave them out'
        )


def refuse_improper(energy: Energy) -> None:
    """Raises ImproperError, with the reason, where there is nothing to draw: no free number, an
    empty support, infinite mass."""
    if energy.event_shape.numel() == 0:
        raise ImproperError(
            f"{energy} has nothing to draw: no number of its event, of shape "
            f"{tuple(energy.event_shape)}, is free"
        )
    if energy.proper is not False:
        return
    if sets.is_empty(energy.support):
        places = "; ".join(f"{part}: {part.support!r}" for part in energy.parts)
        raise ImproperError(
            f"nothing can be drawn from {energy}: the supports of its parts are disjoint ({places})"
        )
    if isinstance(energy, Product) and is_empty(energy):
        raise ImproperError(
            f"nothing can be drawn from {energy}: wherever one of its factors has mass, another "
            "has none"
        )
    raise ImproperError(
        f"{energy} is improper: exp(-E) has infinite mass, so there is nothing to draw from; "
        "multiply it by a proper factor "
        f"that falls off faster, such as `prior & {bracketed(energy)}`"
    )
