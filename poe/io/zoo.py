"""The pretrained energies that installed packages bring, by name: entry points in group `poe.zoo`
name packages that hold NAME.safetensors files, each with its card, NAME.json, beside it."""

from __future__ import annotations

import contextlib
import importlib.resources
import json
import warnings
import weakref
from collections.abc import Iterator, Mapping
from importlib.resources.abc import Traversable
from typing import Any

from poe import registry
from poe.algebra.energy import Energy
from poe.io.container import StorageError
from poe.io.recipe import read_file

SUFFIX = ".safetensors"
GROUP = "poe.zoo"

# files of many concepts that are in use: what is loaded from one shares its network
_roots: weakref.WeakValueDictionary[str, Energy] = weakref.WeakValueDictionary()


def zoo() -> list[str]:
    """Names of the pretrained energies that installed packages bring, sorted; `load` takes them."""
    known = files()
    return sorted({*known, *_concepts(known)})


def pretrained(name: str) -> Energy:
    """The energy with this name, in eval mode. Raises StorageError for an unknown name and for a
    damaged file."""
    known = files()
    concepts = _concepts(known)
    if name in known and f"{name}.any" not in concepts:
        energy = read_file(known[name], f"{name} of the zoo")
        energy.name = energy.name or name
        return energy
    if name not in concepts and name not in known:
        every = {*known, *concepts}
        listed = f"; the zoo has {', '.join(sorted(every)) or 'no entries'}"
        raise StorageError(
            f"{name!r} is neither a file nor in the zoo{registry.near(name, every) or listed}"
        )
    file, concept = concepts[name] if name in concepts else (known[name], None)
    root = _roots.get(str(file))
    if root is None:
        root = _roots[str(file)] = read_file(file, f"{name} of the zoo")
    return root.given(concept)


class Zoo(Mapping[str, Energy]):
    """The pretrained energies by name, each loaded when it is looked up; the names that `parse`
    knows by default."""

    def __init__(self) -> None:
        self._names = zoo()

    def __getitem__(self, name: str) -> Energy:
        if name not in self._names:
            raise KeyError(name)
        return pretrained(name)

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def files() -> dict[str, Traversable]:
    """The files of all zoos by name; of two with one name the first."""
    found: dict[str, Traversable] = {}
    for point in registry.entry_points(GROUP):
        try:
            for file in importlib.resources.files(point.value).iterdir():
                if file.name.endswith(SUFFIX):
                    found.setdefault(file.name.removesuffix(SUFFIX), file)
        except Exception as error:  # a broken package must not hide the others
            warnings.warn(
                f"the zoo {point.value!r} cannot be read: {error}",
                registry.PoeWarning,
                stacklevel=2,
            )
    return found


def card(name: str) -> dict[str, Any]:
    """What NAME.json says of a pretrained energy; empty where no package has a readable one."""
    for point in registry.entry_points(GROUP):
        with contextlib.suppress(OSError, ValueError, ImportError):
            file = importlib.resources.files(point.value).joinpath(f"{name}.json")
            return json.loads(file.read_text())
    return {}


def _concepts(known: Mapping[str, Traversable]) -> dict[str, tuple[Traversable, str | None]]:
    """`stem.concept` for the files of one conditional expert, whose cards list "concepts", and
    `stem.any` for the expert without a concept."""
    return {
        f"{stem}.{concept or 'any'}": (file, concept)
        for stem, file in known.items()
        if "." not in stem and (facts := card(stem))
        for concept in (None, *facts.get("concepts", []))
    }
