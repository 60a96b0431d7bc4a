"""One energy for one context: what a conditional expert gives, kept so that products merge it."""

from __future__ import annotations

import weakref
from typing import Any, TypeVar

import torch
from torch import Tensor

Bound = TypeVar("Bound")


class Bindings:
    """The energies that one conditional expert has given and that are still in use, by context.

    `f.given(c)` is p(x | c) however often it is written: of equal contexts of one precision and
    device the first energy is given again, so that `f.given(c) & f.given(c)` is `f.given(c) ** 2`,
    evaluated once. One that was renamed since stays apart, as does a context that carries a graph.
    A copy of the expert begins with none, for it has parameters of its own.
    """

    def __init__(self) -> None:
        self._known: weakref.WeakValueDictionary[Any, Any] = weakref.WeakValueDictionary()

    def first(self, bound: Bound, context: Any) -> Bound:
        """`bound`, or what was given for an equal context, a tensor or a tuple, before."""
        if isinstance(context, Tensor):
            if context.requires_grad:
                return bound
            values = tuple(context.flatten().tolist())
            key: Any = (context.dtype, context.device, context.shape, values)
        else:
            key = context
        known = self._known.setdefault(key, bound)
        if not _same(known, bound):  # renamed, moved or changed in place since
            self._known[key] = known = bound
        return known

    def __deepcopy__(self, memo: dict[int, Any]) -> Bindings:
        return Bindings()

    def __reduce__(self) -> tuple[type[Bindings], tuple[()]]:
        return Bindings, ()


def _same(known: Any, bound: Any) -> bool:
    """Whether two energies of one expert still have one name and one context."""
    if known is bound:
        return True
    a, b = known.context, bound.context
    if not isinstance(b, Tensor):
        return known.name == bound.name and a == b
    same = known.name == bound.name and a.dtype == b.dtype and a.device == b.device
    return same and torch.equal(a, b)
