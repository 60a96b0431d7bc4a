"""An energy as a recipe and tensors, and back: the content of a file of `poe.save`.

The recipe names registry entries, gives them plain JSON arguments, and writes the composition as an
expression over their labels. Nothing is imported by path.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Mapping
from importlib.resources.abc import Traversable
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from poe import registry
from poe.algebra.combination import Combination, combined, combined_as
from poe.algebra.energy import Energy
from poe.algebra.maps import Fill
from poe.algebra.product import Product
from poe.algebra.shifted import unshifted
from poe.algebra.text import child, function_name, function_of, labelled
from poe.io.container import RECIPE_KEY, StorageError, checksum, compact, plain, recipe_text
from poe.io.syntax import read

FORMAT = 2
# format -> its names of experts that are registered under other names now
FORMER_NAMES = {1: {"made": "mixture-made", "discrete-made": "made"}}


def to_bytes(energy: Energy) -> bytes:
    """The content of a file that holds an energy. Raises StorageError."""
    recipe, tensors = _describe(energy)
    recipe["sha256"] = checksum(recipe, tensors)
    return safetensors.torch.save(tensors, metadata={RECIPE_KEY: compact(recipe)})


def _describe(energy: Energy) -> tuple[dict[str, Any], dict[str, Tensor]]:
    parts = _parts(energy)
    labels = {id(part): label for label, part in parts.items()}
    tensors: dict[str, Tensor] = {}
    owners: dict[int, str] = {}  # of the modules inside experts: where a shared one is stored
    entries = []
    for label, part in parts.items():
        entry = {"label": label, "name": part.name if isinstance(part, Energy | Fill) else None}
        if isinstance(part, Energy) and part.parts:
            entry |= _composed(part, labels)
        else:
            entry |= _ingredients(part, label)
            shared = _shared(part, label, owners)
            entry |= {"shared": shared} if shared else {}
            elsewhere = tuple(f"{label}:{module}." for module in shared)
            state = _state(part, label)
            tensors |= {k: v for k, v in state.items() if not k.startswith(elsewhere)}
        entries.append(entry)
    learned = [parameter for powers in _learnable_powers(energy) for parameter in powers]
    unique = {id(parameter): parameter for parameter in learned}
    order = list(unique)
    tensors |= {f"powers:{i}": plain(parameter) for i, parameter in enumerate(unique.values())}
    recipe = {
        "format": FORMAT,
        "parts": entries,
        **(_composed(energy, labels) if energy.parts else {"expression": labels[id(energy)]}),
        "name": energy.name,
        "powers": [order.index(id(parameter)) for parameter in learned],
    }
    return recipe, tensors


def _parts(energy: Energy) -> dict[str, Any]:
    """All that the expression names, parts of named parts included, each after what it is made
    of."""
    found: dict[int, tuple[Any, str]] = {}
    seen: set[int] = set()
    stack = [(energy, False)]
    while stack:  # no recursion: compositions may be many levels deep
        node, are_parts_found = stack.pop()
        if not are_parts_found:
            if id(node) not in seen:
                seen.add(id(node))
                stack.append((node, True))
                stack += [(part, False) for part in reversed(node.parts)]
            continue
        function = function_of(node)
        if function is not None:
            found.setdefault(id(function), (function, function_name(function)))
        if not node.parts or (node.name and node is not energy):
            found.setdefault(id(node), (node, node.name or type(node).__name__.lower()))
    return labelled(found.values())


def _composed(node: Energy, labels: dict[int, str]) -> dict[str, Any]:
    """The expression of a composition, and what `poe.combine` put together in it."""
    above = {key: label for key, label in labels.items() if key != id(node)}
    entry: dict[str, Any] = {"expression": child(node, above)[0]}
    known = combined(node)
    if known is not None and not _powers(unshifted(node)):
        entry["combination"] = {
            "posteriors": [child(part, labels)[0] for part in known.posteriors],
            "priors": [[child(part, labels)[0], count] for part, count in known.priors],
        }
    return entry


def _parsed(entry: Mapping[str, Any], known: Mapping[str, Any]) -> Energy:
    """The inverse of `_composed`."""
    energy = read(entry["expression"], known)
    if "combination" in entry:
        posteriors = tuple(read(text, known) for text in entry["combination"]["posteriors"])
        factors = entry["combination"]["priors"]
        priors = tuple((read(text, known), int(count)) for text, count in factors)
        energy = combined_as(energy, Combination(posteriors, priors))
    return energy


def _shared(part: nn.Module, label: str, owners: dict[int, str]) -> dict[str, str]:
    """Modules of an expert that an earlier one holds already, with the place where they are
    stored."""
    places = {
        name: owners.setdefault(id(module), f"{label}:{name}")
        for name, module in part.named_children()
    }
    return {name: place for name, place in places.items() if place != f"{label}:{name}"}


def _ingredients(part: Any, label: str) -> dict[str, Any]:
    """What rebuilds an expert or a map: its registry name and plain JSON arguments."""
    if isinstance(part, Fill):
        return {"map": "fill"}
    kind = type(part)
    name = registry.name_of(kind)
    if name is None or not isinstance(part, nn.Module):
        raise StorageError(
            f"{label} cannot be saved: its type {kind.__module__}.{kind.__qualname__} is not "
            "registered; make it a class with config(), which returns plain JSON arguments that "
            "rebuild it, and decorate the class with @poe.register('a-name')"
        )
    rebuildable: Any = part
    try:
        config = rebuildable.config()
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
            f"{label} cannot be saved: {', '.join(odd)} of its state_dict() is not a tensor"
        )
    return {f"{label}:{key}": plain(value) for key, value in state.items()}


@functools.singledispatch
def _powers(node: Energy) -> nn.ParameterList:
    """The learnable powers of a node."""
    return nn.ParameterList()


@_powers.register
def _(node: Product) -> nn.ParameterList:
    return node.learnable


def _learnable_powers(energy: Energy) -> Iterator[nn.ParameterList]:
    """The learnable powers of each node, in the order in which the expression is read."""
    seen: set[int] = set()
    stack = [energy]
    while stack:
        node = stack.pop()
        if id(node) not in seen:
            seen.add(id(node))
            stack += reversed(node.parts)
            yield _powers(node)


# ---------------------------------------------------------------- and back


def from_bytes(content: bytes) -> Energy:
    """The energy that a file holds, in eval mode. Raises StorageError."""
    text = recipe_text(content)
    try:
        tensors = safetensors.torch.load(content)
    except Exception as error:
        raise StorageError(f"it is truncated or damaged ({error})") from error
    recipe = _recipe(text)
    if checksum(recipe, tensors) != recipe.get("sha256"):
        raise StorageError("its checksum does not match: it was changed after it was saved")
    known: dict[str, Any] = {}
    former = FORMER_NAMES.get(recipe["format"], {})
    for entry in recipe["parts"]:
        known[entry["label"]] = _rebuild(entry, known, tensors, former)
    energy = _parsed(recipe, known)
    _restore_learned(energy, recipe["powers"], tensors)
    if recipe["name"] is not None:
        energy.name = recipe["name"]
    return energy.eval()


def read_file(file: Traversable, shown: str) -> Energy:
    """The energy in a file; errors name it `shown`."""
    content = file.read_bytes()
    try:
        return from_bytes(content)
    except ImportError:
        raise
    except Exception as error:
        raise StorageError(f"cannot load {shown}: {error}") from error


def _recipe(text: str) -> dict[str, Any]:
    try:
        recipe = json.loads(text)
        if recipe["format"] != FORMAT and recipe["format"] not in FORMER_NAMES:
            raise StorageError(
                f"its recipe has format {recipe['format']!r}, this version reads formats up to "
                f"{FORMAT}: upgrade poe"
            )
        names = [entry["expert"] for entry in recipe["parts"] if "expert" in entry]
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise StorageError(f"its recipe is damaged ({type(error).__name__}: {error})") from error
    for name in names:
        if not (isinstance(name, str) and registry.NAME.fullmatch(name)):
            raise StorageError(
                f"its recipe names {name!r}: a recipe names registry entries, never an import path"
            )
    if text != compact(recipe):
        raise StorageError("its recipe is damaged: it is not as poe.save writes it")
    return recipe


def _rebuild(
    entry: Mapping[str, Any],
    known: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    former: Mapping[str, str],
) -> Any:
    label, name = entry["label"], entry["name"]
    state = _below(f"{label}:", tensors)
    shared = entry.get("shared", {})
    for module, place in shared.items():
        state |= {f"{module}.{key}": value for key, value in _below(f"{place}.", tensors).items()}
    if "expression" in entry:
        part = _parsed(entry, known)
    elif "map" in entry:
        return Fill(state["x_known"], state["mask"], name=name)
    else:
        owner: Any = registry.lookup(former.get(entry["expert"], entry["expert"]))
        with torch.random.fork_rng(devices=[]):  # initial weights, which are replaced below
            part = owner.from_config(**entry["config"])
        _fill_state(part, state, label)
        for module, place in shared.items():
            owner, _, attribute = place.partition(":")
            setattr(part, module, getattr(known[owner], attribute))
    if isinstance(part, Energy):
        part.name = name
    return part


def _below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose keys begin so, by what follows."""
    return {key.removeprefix(prefix): tensors[key] for key in tensors if key.startswith(prefix)}


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
    slots = [(powers, slot) for powers in _learnable_powers(energy) for slot in range(len(powers))]
    if len(slots) != len(indices):
        raise StorageError(
            f"its expression has {len(slots)} learnable powers, and the recipe {len(indices)}"
        )
    for (powers, slot), index in zip(slots, indices, strict=True):
        powers[slot] = parameters[index]
