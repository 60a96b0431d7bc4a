"""The pretrained energies by name, as expressions read them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from poe.algebra.energy import Energy
from poe.io import expression, storage


class Zoo(Mapping[str, Energy]):
    """The pretrained energies by name, each loaded when it is asked for; what `parse` looks names
    up in by default."""

    def __init__(self) -> None:
        self._names, self._load = storage.zoo(), storage._load_zoo

    def __getitem__(self, name: str) -> Energy:
        if name not in self._names:
            raise KeyError(name)
        return self._load(name)

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


expression.NAMES.append(Zoo)
