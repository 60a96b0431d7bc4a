"""An expert as it is used for drawing: in eval mode, its parameters needing no gradient."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from poe.algebra.energy import Energy


@contextmanager
def frozen(energy: Energy) -> Iterator[Energy]:
    """Eval mode, so that dropout and batch statistics do not make the density random, and no graph
    over parameters; both as before afterwards."""
    training = [module for module in energy.modules() if module.training]
    learning = [parameter for parameter in energy.parameters() if parameter.requires_grad]
    for module in training:
        module.training = False
    for parameter in learning:
        parameter.requires_grad_(False)
    try:
        yield energy
    finally:
        for module in training:
            module.training = True
        for parameter in learning:
            parameter.requires_grad_(True)
