"""What is said against the arguments of `sample`, before anything is drawn."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from poe.algebra import support as sets
from poe.algebra.checks import whole_number
from poe.algebra.energy import Energy
from poe.algebra.errors import ImproperError
from poe.algebra.simplification import is_empty
from poe.algebra.text import bracketed
from poe.kernels import Kernel
from poe.spaces.structure import Structure

# the least values of whole numbers, and which of them may be None
LEAST = {"draws": 0, "chains": 1, "thin": 1, "shards": 1, "warmup": 0, "seed": 0}
OPTIONAL = ("chains", "warmup", "seed")
STATIC = ("exact", "enumerate", "parts", "sequential", "importance", "annealed")  # without chains


def check_device(device: torch.device | str | None) -> None:
    """Raises ValueError for a device that torch cannot use here, whichever error torch raises."""
    try:
        torch.empty(0, device=device)
    except (AssertionError, NotImplementedError, RuntimeError) as error:
        raise ValueError(
            f"nothing can be drawn on device={str(device)!r} here: {str(error).splitlines()[0]}"
        ) from error


def check_counts(**counts: Any) -> dict[str, Any]:
    """The whole numbers among the arguments, numpy's included, as plain ones."""
    found: dict[str, Any] = {
        name: None if value is None and name in OPTIONAL else whole_number(name, value, LEAST[name])
        for name, value in counts.items()
    }
    chains, shards = found["chains"], found["shards"]
    if chains is not None and shards > chains:
        raise ValueError(f"{shards} shards need at least as many chains, got {chains}")
    return found


def check_limit(max_gradients: Any, checkpoint: Any = None) -> int | None:
    """`max_gradients`, a whole number of at least 1. Raises ValueError beside `checkpoint`."""
    if max_gradients is None:
        return None
    if checkpoint is not None:
        raise ValueError(
            "max_gradients= and checkpoint= exclude each other: a run that is continued does not "
            "know what was spent before"
        )
    return whole_number("max_gradients", max_gradients, 1)


def check_choices(
    energy: Any, method: str | None, kernel: Any, init: Any, warmup: Any, seed: Any, checkpoint: Any
) -> None:
    """Raises TypeError for arguments of another kind, ValueError where they contradict each
    other."""
    if not isinstance(energy, Energy):
        raise TypeError(
            f"poe.sample draws from an energy, not a {type(energy).__name__}: poe.as_energy(model) "
            "wraps a model"
        )
    if kernel is not None and not isinstance(kernel, Kernel):
        raise TypeError(f"kernel is a kernel such as poe.Langevin(), not {kernel!r}")
    if init is not None and not isinstance(init, Tensor):
        raise TypeError(
            f"init is a tensor (chains, *event), not {type(init).__name__}: torch.as_tensor(init) "
            "makes one"
        )
    if method in STATIC and not (init is None and warmup is None):
        raise ValueError(
            f"init= and warmup= are for chains, and method={method!r} has none; give "
            'method="chains" or leave them out'
        )
    if checkpoint is not None and seed is None:
        raise ValueError(
            "checkpoint= needs a seed=, so that the same call can continue the same run"
        )


def refuse_improper(structure: Structure) -> None:
    """Raises ImproperError, with the reason, where there is nothing to draw: no free number, an
    empty support, infinite mass."""
    energy = structure.energy
    if energy.event_shape.numel() == 0:
        raise ImproperError(
            f"{energy} has nothing to draw: no number of its event, of shape "
            f"{tuple(energy.event_shape)}, is free"
        )
    if structure.proper is not False:
        return
    if sets.is_empty(energy.support):
        places = "; ".join(f"{part}: {part.support!r}" for part in energy.parts)
        raise ImproperError(
            f"nothing can be drawn from {energy}: the supports of its parts are disjoint ({places})"
        )
    if is_empty(energy):
        raise ImproperError(
            f"nothing can be drawn from {energy}: wherever one of its factors has mass, another "
            "has none"
        )
    raise ImproperError(
        f"{energy} is improper: exp(-E) has infinite mass, so there is nothing to draw from; "
        "multiply it by a proper factor "
        f"that falls off faster, such as `prior & {bracketed(energy)}`"
    )
