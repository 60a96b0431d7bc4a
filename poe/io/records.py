"""Trees of records as JSON and tensors, and back: what checkpoints hold and what processes send
each other. No pickle."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable, Mapping
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from poe.io.container import plain

_SCALARS = (bool, int, float, str, type(None))


class Codec:
    """Writes trees down, and reads them, in terms of what the calling code holds already.

    A tree is made of tensors, numbers, texts, None, lists, tuples, dicts with text keys, and
    records: named tuples and dataclasses. A record is written as its class's name and its fields.
    Anything else, such as an energy inside a kernel, must be a part of `known`, and is written as
    its place there. Reading imports nothing, and builds only records whose classes `known` reaches:
    those it contains, and those that their modules name.

    Arguments:
        known: trees, and classes of records.
        device: where tensors that do not lie on the CPU are put when they are read.
    """

    def __init__(self, *known: Any, device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)
        self.classes: dict[str, type] = {}
        self.parts: list[Any] = []
        for tree in known:
            self._learn(tree)

    def encode(self, tree: Any) -> tuple[Any, list[Tensor]]:
        """(a form that JSON holds, the tensors that it numbers). Raises TypeError for what cannot
        be written."""
        tensors: list[Tensor] = []
        return self._encode(tree, tensors), tensors

    def decode(self, form: Any, tensor: Callable[[int], Tensor]) -> Any:
        """The tree of a form; `tensor` gives each by its number. Raises LookupError or TypeError
        for a form that does not fit."""
        match form:
            case ["tensor", int(number), bool(away)]:
                return tensor(number).to(self.device) if away else tensor(number)
            case ["record", str(name), dict(fields)]:
                decoded = {key: self.decode(value, tensor) for key, value in fields.items()}
                return self.classes[name](**decoded)
            case ["dict", dict(items)]:
                return {key: self.decode(value, tensor) for key, value in items.items()}
            case ["list", list(items)]:
                return [self.decode(value, tensor) for value in items]
            case ["tuple", list(items)]:
                return tuple(self.decode(value, tensor) for value in items)
            case ["known", int(place)]:
                return self.parts[place]
            case list() | dict():
                raise LookupError(f"unknown form {form!r:.60}")
        return form

    def pack(self, tree: Any) -> bytes:
        """The tree as one message."""
        form, tensors = self.encode(tree)
        named = {str(number): plain(tensor) for number, tensor in enumerate(tensors)}
        named["form"] = torch.frombuffer(bytearray(json.dumps(form).encode()), dtype=torch.uint8)
        return safetensors.torch.save(named)

    def unpack(self, message: bytes) -> Any:
        """The tree of a message."""
        named = safetensors.torch.load(message)
        form = json.loads(named["form"].numpy().tobytes())
        return self.decode(form, lambda number: named[str(number)])

    def _learn(self, tree: Any) -> None:
        if isinstance(tree, type):
            self._learn_class(tree)
            self.parts.append(tree)
        elif _is_record(type(tree)):
            self._learn_class(type(tree))
            self._learn(_fields(tree))
        elif isinstance(tree, Mapping):
            self._learn(list(tree.values()))
        elif isinstance(tree, list | tuple):
            for value in tree:
                self._learn(value)
        elif not (isinstance(tree, (*_SCALARS, Tensor)) or any(p is tree for p in self.parts)):
            self.parts.append(tree)

    def _learn_class(self, cls: type) -> None:
        if _is_record(cls) and _name(cls) not in self.classes:
            self.classes[_name(cls)] = cls
            for value in list(vars(sys.modules[cls.__module__]).values()):
                if isinstance(value, type):
                    self._learn_class(value)

    def _encode(self, tree: Any, tensors: list[Tensor]) -> Any:
        if isinstance(tree, _SCALARS):
            return tree
        if isinstance(tree, Tensor):
            tensors.append(tree.detach())
            return ["tensor", len(tensors) - 1, tree.device.type != "cpu"]
        if _name(type(tree)) in self.classes:
            fields = {key: self._encode(value, tensors) for key, value in _fields(tree).items()}
            return ["record", _name(type(tree)), fields]
        if isinstance(tree, dict) and all(isinstance(key, str) for key in tree):
            return ["dict", {key: self._encode(value, tensors) for key, value in tree.items()}]
        if type(tree) in (list, tuple):
            return [type(tree).__name__, [self._encode(value, tensors) for value in tree]]
        for place, part in enumerate(self.parts):
            if part is tree:
                return ["known", place]
        raise TypeError(
            f"a {type(tree).__name__} can be written neither to a checkpoint nor to another process"
        )


def _is_record(cls: type) -> bool:
    return dataclasses.is_dataclass(cls) or (issubclass(cls, tuple) and "_fields" in vars(cls))


def _fields(record: Any) -> dict[str, Any]:
    if isinstance(record, tuple):
        return record._asdict()  # type: ignore[attr-defined]
    fields = (field.name for field in dataclasses.fields(record) if field.init)
    return {name: getattr(record, name) for name in fields}


def _name(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"
