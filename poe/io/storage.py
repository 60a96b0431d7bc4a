"""Compositions in files: one safetensors file holds the tensors, and in its metadata the recipe.

The recipe names registry entries, gives them plain JSON arguments, and writes the composition as an
expression over their labels. A SHA-256 over the recipe and the tensors is verified at load; no
pickle is opened, nothing is imported by path, and a file is written whole or not at all.
"""

from __future__ import annotations

import contextlib
import importlib.resources
import json
import os
import re
import warnings
import weakref
from collections.abc import Iterator, Mapping
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from poe import registry
from poe.algebra.checks import energies_of
from poe.algebra.combination import Combination, combined
from poe.algebra.energy import Energy
from poe.algebra.maps import Fill, Select
from poe.algebra.product import Product
from poe.algebra.pullback import Pullback
from poe.algebra.shifted import Shifted
from poe.algebra.text import function_name
from poe.io.container import (
    _RECIPE,
    StorageError,
    _compact,
    _digest,
    _metadata,
    _plain,
    write_whole,
)
from poe.io.expression import parse

FORMAT = 1
SUFFIX = ".safetensors"
ZOO = "poe.zoo"
_LABEL = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*")


def save(energy: Energy, path: str | os.PathLike[str]) -> None:
    """Write an energy, its experts and their learned values to one file, whole or not at all.

    An expert is stored by its registry name, its `config()` and its `state_dict()`, once however
    often it stands in the expression; so is a network that several experts share, and they share it
    again when loaded. Before anything is written the file's content is read back.

    Raises:
        StorageError: a part of the expression cannot be stored; the message names it and what it
            lacks.
    """
    (energy,), path = energies_of([energy], "save"), Path(path)
    recipe, tensors = _describe(energy)
    recipe["sha256"] = _digest(recipe, tensors)
    content = safetensors.torch.save(tensors, metadata={_RECIPE: _compact(recipe)})
    try:
        _read(content)
    except Exception as error:
        raise StorageError(
            f"{energy} cannot be saved, for it would not load again: {error}"
        ) from error
    write_whole(path, content)


def load(source: str | os.PathLike[str]) -> Energy:
    """The energy in a file, or a pretrained one by its zoo name ("digits.even"); in eval mode, on
    the CPU.

    What one conditional expert brings to the zoo ("shapes.red", "shapes.circle") shares its network
    while any of it is in use.

    Raises:
        FileNotFoundError: there is no such file.
        StorageError: the file is truncated, changed, or not ours; or no zoo entry has this name.
        ImportError: an expert needs a library that is not installed.
    """
    path = Path(source)
    if (
        isinstance(source, str)
        and _LABEL.fullmatch(source)
        and not source.endswith(SUFFIX)
        and not path.exists()
    ):
        return _load_zoo(source)
    return _load(path, str(path))


def zoo() -> list[str]:
    """Names of the pretrained energies that installed packages bring, sorted; `load` takes them."""
    known = _zoo()
    return sorted({*known, *_concepts(known)})


def _load_zoo(name: str) -> Energy:
    known = _zoo()
    concepts = _concepts(known)
    if name in known and f"{name}.any" not in concepts:
        energy = _load(known[name], f"{name} of the zoo")
        energy.name = energy.name or name
        return energy
    if name not in concepts and name not in known:
        every = {*known, *concepts}
        hint = (
            registry.near(name, every)
            or f"; the zoo has {', '.join(sorted(every)) or 'no entries'}"
        )
        raise StorageError(f"{name!r} is neither a file nor in the zoo{hint}")
    file, concept = concepts[name] if name in concepts else (known[name], None)
    root = _roots.get(str(file))
    if root is None:
        root = _roots[str(file)] = _load(file, f"{name} of the zoo")
    return root.given(concept)


# files of many concepts that are in use: what is loaded from one shares its network
_roots: weakref.WeakValueDictionary[str, Energy] = weakref.WeakValueDictionary()


def _concepts(files: Mapping[str, Traversable]) -> dict[str, tuple[Traversable, str | None]]:
    """`stem.concept` for the files of one conditional expert, whose cards list "concepts", and
    `stem.any` for none of them."""
    found: dict[str, tuple[Traversable, str | None]] = {}
    for point in registry.entry_points(ZOO):
        for stem in (name for name in files if "." not in name):
            with contextlib.suppress(OSError, ValueError, ImportError):
                card = json.loads(
                    importlib.resources.files(point.value).joinpath(f"{stem}.json").read_text()
                )
                found |= {
                    f"{stem}.{concept or 'any'}": (files[stem], concept)
                    for concept in (None, *card.get("concepts", []))
                }
    return found


def _zoo() -> dict[str, Traversable]:
    found: dict[str, Traversable] = {}
    for point in registry.entry_points(ZOO):
        try:
            for file in importlib.resources.files(point.value).iterdir():
                if file.name.endswith(SUFFIX):
                    found.setdefault(file.name.removesuffix(SUFFIX), file)
        except Exception as error:  # a broken package of a stranger must not hide the others
            warnings.warn(
                f"the zoo {point.value!r} cannot be read: {error}", RuntimeWarning, stacklevel=2
            )
    return found


def _load(file: Traversable, shown: str) -> Energy:
    content = file.read_bytes()
    try:
        return _read(content)
    except ImportError:
        raise
    except Exception as error:
        raise StorageError(f"cannot load {shown}: {error}") from error


# ---------------------------------------------------------------- an energy as a recipe and tensors


def _describe(energy: Energy) -> tuple[dict[str, Any], dict[str, Tensor]]:
    parts = _parts(energy)
    labels = {id(part): label for label, part in parts.items()}
    tensors: dict[str, Tensor] = {}
    owners: dict[int, str] = {}  # of the modules inside experts: where a shared one is stored
    entries = []
    for label, part in parts.items():
        entry: dict[str, Any] = {
            "label": label,
            "name": part.name if isinstance(part, Energy | Fill) else None,
        }
        if isinstance(part, Energy) and part.parts:
            entry |= _composed(part, labels)
        else:
            entry |= _ingredients(part, label)
            places = {
                name: owners.setdefault(id(child), f"{label}:{name}")
                for name, child in part.named_children()
            }
            shared = {name: place for name, place in places.items() if place != f"{label}:{name}"}
            entry |= {"shared": shared} if shared else {}
            tensors |= {
                k: v
                for k, v in _state(part, label).items()
                if not k.startswith(tuple(f"{label}:{n}." for n in shared))
            }
        entries.append(entry)
    learned = _learned(energy)
    unique = {id(parameter): parameter for parameter in learned}
    order = list(unique)
    for index, parameter in enumerate(unique.values()):
        tensors[f"powers:{index}"] = _plain(parameter)
    recipe = {
        "format": FORMAT,
        "parts": entries,
        **(_composed(energy, labels) if energy.parts else {"expression": labels[id(energy)]}),
        "name": energy.name,
        "powers": [order.index(id(parameter)) for parameter in learned],
    }
    return recipe, tensors


def _parts(energy: Energy) -> dict[str, Any]:
    """Everything the expression names, parts of named parts included, each after what it is made
    of."""
    found: dict[int, tuple[Any, str]] = {}

    def visit(node: Energy) -> None:
        if id(node) in found:
            return
        for part in node.parts:
            visit(part)
        if isinstance(node, Pullback) and not isinstance(node.function, Select):
            found.setdefault(id(node.function), (node.function, function_name(node.function)))
        if not node.parts or (node.name and node is not energy):
            found[id(node)] = node, node.name or type(node).__name__.lower()

    visit(energy)
    labels: dict[str, Any] = {}
    for part, base in found.values():
        label, count = base, 1
        while label in labels:
            count += 1
            label = f"{base}_{count}"
        labels[label] = part
    return labels


def _composed(node: Energy, labels: Mapping[int, str]) -> dict[str, Any]:
    """The expression of a composition, and what `poe.combine` put together in it."""
    known = combined(node)
    entry: dict[str, Any] = {"expression": _text(node, labels)}
    inner = node
    while isinstance(inner, Shifted):
        inner = inner.energy
    if known is not None and not inner.learnable:  # type: ignore[union-attr]
        entry["combination"] = {
            "posteriors": [_within(part, labels) for part in known.posteriors],
            "priors": [[_within(part, labels), count] for part, count in known.priors],
        }
    return entry


def _within(part: Energy, labels: Mapping[int, str]) -> str:
    return labels[id(part)] if id(part) in labels else _text(part, labels)


def _parsed(entry: Mapping[str, Any], known: Mapping[str, Any]) -> Energy:
    """The inverse of `_composed`."""
    energy = parse(entry["expression"], known)
    if "combination" in entry:
        posteriors = tuple(parse(text, known) for text in entry["combination"]["posteriors"])
        priors = tuple(
            (parse(text, known), int(count)) for text, count in entry["combination"]["priors"]
        )
        vars(energy)["combination"] = Combination(posteriors, priors)
    return energy


def _text(node: Energy, labels: Mapping[int, str]) -> str:
    return node._format({key: label for key, label in labels.items() if key != id(node)})[0]


def _ingredients(part: Any, label: str) -> dict[str, Any]:
    """What rebuilds an expert or a map: its registry name and plain JSON arguments."""
    if isinstance(part, Fill):
        return {"map": "fill"}
    kind = type(part)
    name = registry.name_of(kind)
    if name is None or not isinstance(part, nn.Module):
        raise StorageError(
            f"{label} cannot be saved: its type {kind.__module__}.{kind.__qualname__} is not "
            "registered; "
            "make it a class with config(), which returns plain JSON arguments that rebuild it, "
            "and decorate "
            "the class with @poe.register('a-name')"
        )
    try:
        config = part.config()  # type: ignore[operator]
        text = json.dumps(config, allow_nan=False)
    except (AttributeError, TypeError, ValueError) as error:
        wanted = f"{kind.__qualname__}.config() must return plain JSON arguments that rebuild it"
        raise StorageError(f"{label} cannot be saved: {wanted}; {error}") from error
    if not isinstance(config, dict):
        raise StorageError(
            f"{label} cannot be saved: {kind.__qualname__}.config() must return a dict, not "
            f"{config!r}"
        )
    return {"expert": name, "config": json.loads(text)}


def _state(part: nn.Module, label: str) -> dict[str, Tensor]:
    state = part.state_dict()
    odd = [key for key, value in state.items() if not isinstance(value, Tensor)]
    if odd:
        raise StorageError(
            f"{label} cannot be saved: {', '.join(odd)} of its state_dict() is no tensor"
        )
    return {f"{label}:{key}": _plain(value) for key, value in state.items()}


def _learned(energy: Energy) -> list[nn.Parameter]:
    """The learnable powers, in the order in which the expression is read."""
    found: list[nn.Parameter] = []
    for product in _products(energy):
        found += product.learnable
    return found


def _products(energy: Energy) -> Iterator[Product]:
    seen: set[int] = set()
    stack = [energy]
    while stack:
        node = stack.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        stack += reversed(node.parts)
        if isinstance(node, Product):
            yield node


# ---------------------------------------------------------------- and back


def _read(content: bytes) -> Energy:
    text = _metadata(content)
    try:
        tensors = safetensors.torch.load(content)
    except Exception as error:
        raise StorageError(f"it is truncated or damaged ({error})") from error
    recipe = _recipe(text)
    if _digest(recipe, tensors) != recipe.get("sha256"):
        raise StorageError("its checksum does not match: it was changed after it was saved")
    known: dict[str, Any] = {}
    for entry in recipe["parts"]:
        known[entry["label"]] = _rebuild(entry, known, tensors)
    energy = _parsed(recipe, known)
    _restore_learned(energy, recipe["powers"], tensors)
    if recipe["name"] is not None:
        energy.name = recipe["name"]
    return energy.eval()


def _recipe(text: str) -> dict[str, Any]:
    try:
        recipe = json.loads(text)
        if recipe["format"] != FORMAT:
            raise StorageError(
                f"its recipe has format {recipe['format']!r}, this version reads format {FORMAT}: "
                "upgrade poe"
            )
        names = [entry["expert"] for entry in recipe["parts"] if "expert" in entry]
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise StorageError(f"its recipe is damaged ({type(error).__name__}: {error})") from error
    for name in names:
        if not (isinstance(name, str) and registry.NAME.fullmatch(name)):
            raise StorageError(
                f"its recipe asks for {name!r}: a recipe names registry entries, never an import "
                "path"
            )
    if text != _compact(recipe):
        raise StorageError("its recipe is damaged: it is not as poe.save writes it")
    return recipe


def _rebuild(
    entry: Mapping[str, Any], known: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> Any:
    label, name = entry["label"], entry["name"]
    prefix = f"{label}:"
    state = {
        key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)
    }
    shared = entry.get("shared", {})
    for child, place in shared.items():
        state |= {
            child + key.removeprefix(place): value
            for key, value in tensors.items()
            if key.startswith(f"{place}.")
        }
    if "expression" in entry:
        part = _parsed(entry, known)
    elif "map" in entry:
        return Fill(state["x_known"], state["mask"], name=name)
    else:
        owner: Any = registry.lookup(entry["expert"])
        with torch.random.fork_rng(
            devices=[]
        ):  # a model's initial weights are about to be replaced
            part = owner.from_config(**entry["config"])
        _fill_state(part, state, label)
        for child, place in shared.items():
            owner, _, attribute = place.partition(":")
            setattr(part, child, getattr(known[owner], attribute))
    if isinstance(part, Energy):
        part.name = name
    return part


def _fill_state(part: nn.Module, state: Mapping[str, Tensor], label: str) -> None:
    """`load_state_dict`, strict, with the precision of the file."""
    for key, value in part.state_dict(keep_vars=True).items():
        if key in state and isinstance(value, Tensor) and value.dtype != state[key].dtype:
            value.data = value.data.to(state[key].dtype)
    try:
        part.load_state_dict(dict(state), strict=True)
    except RuntimeError as error:
        raise StorageError(f"the tensors of {label} do not fit its config: {error}") from error


def _restore_learned(energy: Energy, indices: list[int], tensors: Mapping[str, Tensor]) -> None:
    parameters = {index: nn.Parameter(tensors[f"powers:{index}"]) for index in sorted(set(indices))}
    slots = [
        (product, slot) for product in _products(energy) for slot in range(len(product.learnable))
    ]
    if len(slots) != len(indices):
        raise StorageError(
            f"its expression has {len(slots)} learnable powers, and the recipe {len(indices)}"
        )
    for (product, slot), index in zip(slots, indices, strict=True):
        product.learnable[slot] = parameters[index]
