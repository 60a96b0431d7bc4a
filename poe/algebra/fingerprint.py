"""Whether tensors have changed since something was worked out from them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

MAX_COMPARED = 4096  # numbers of all tensors up to which they are compared one by one


class Fingerprint:
    """Tensors as they are now. They are the same later if they are the same objects in the same
    memory (which is kept, so that no other tensor takes its place), with equal version counters.

    Arguments:
        tensors: parameters and buffers.
        compare: also compares the numbers, where there are few: a change through `.data` leaves no
            trace in torch's version counters.

    A copy matches no tensors.
    """

    def __init__(self, tensors: Iterable[Tensor] = (), *, compare: bool = False) -> None:
        self._seen = [(tensor, tensor.detach(), tensor._version) for tensor in tensors]
        few = compare and sum([tensor.numel() for tensor, *_ in self._seen]) <= MAX_COMPARED
        self._numbers = [tensor.detach().clone() for tensor, *_ in self._seen] if few else []

    def matches(self, tensors: Iterable[Tensor]) -> bool:
        """Whether these are the same tensors, unchanged."""
        now = list(tensors)
        if len(now) != len(self._seen):
            return False
        for tensor, (old, memory, version) in zip(now, self._seen, strict=True):
            if tensor is not old or version != tensor._version:
                return False
            if not memory.is_set_to(tensor.detach()):
                return False
        return all(map(torch.equal, self._numbers, now))

    def __deepcopy__(self, memo: dict[int, Any]) -> Fingerprint:
        return Fingerprint()

    def __reduce__(self) -> tuple[type[Fingerprint], tuple[()]]:
        return Fingerprint, ()
