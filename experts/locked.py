"""Networks that stay in eval mode, so that dropout and batch statistics never make an energy
random."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Self

from torch import nn


class Locked(nn.Module):
    """A module that stays in eval mode whatever a parent does; `training_mode` lifts that.

    A base beside `Energy` or `Density`, named before it; the constructor ends with `self.eval()`.
    """

    _unlocked = False

    @contextlib.contextmanager
    def training_mode(self) -> Iterator[Self]:
        """Inside, the module is in training mode (dropout, batch statistics); after, in eval mode
        again."""
        self._unlocked = True
        try:
            yield self.train()
        finally:
            self._unlocked = False
            self.eval()

    def train(self, mode: bool = True) -> Self:
        """Stays in eval mode, except inside `training_mode`."""
        return super().train(mode and self._unlocked)
