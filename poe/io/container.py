"""The safetensors file around a recipe: its header, its checksum, and atomic writes."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from poe.registry import PoeError

# keys of the metadata, one in a file, so that equal contents give equal files
RECIPE_KEY = "poe"
DRAWS_KEY = "poe.draws"
_PICKLED = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")


class StorageError(PoeError, ValueError):
    """An energy that cannot be saved, or a file that cannot be loaded; the message says what is
    wrong."""


def plain(tensor: Tensor) -> Tensor:
    """A contiguous copy on the CPU, without a graph: what a file holds."""
    return tensor.detach().cpu().clone(memory_format=torch.contiguous_format)


def compact(recipe: Mapping[str, Any]) -> str:
    """JSON without spaces, the one form in which a recipe is written."""
    return json.dumps(recipe, separators=(",", ":"))


def checksum(recipe: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of the recipe (but for its own "sha256") and of the tensors' names, types, shapes and
    bytes."""
    described = {key: value for key, value in recipe.items() if key != "sha256"}
    digest = hashlib.sha256(compact(described).encode())
    for key in sorted(tensors):
        tensor = tensors[key]
        digest.update(json.dumps([key, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def recipe_text(content: bytes) -> str:
    """The recipe in the header of a safetensors file, as text. Raises StorageError where there is
    none."""
    header = _header(content)
    try:
        metadata = json.loads(header).get("__metadata__", {})
    except ValueError as error:
        raise StorageError(f"its header is damaged ({error})") from error
    if not header.rstrip(b" ").endswith(b"}"):  # padding that JSON overlooks
        raise StorageError("its header is damaged")
    if not isinstance(metadata, dict) or RECIPE_KEY not in metadata:
        if isinstance(metadata, dict) and DRAWS_KEY in metadata:
            raise StorageError("it holds draws: poe.Draws.load reads it")
        raise StorageError(
            "it holds tensors but no recipe, so poe.save did not write it; load them into your own "
            "model"
        )
    return metadata[RECIPE_KEY]


def _header(content: bytes) -> bytes:
    size = int.from_bytes(content[:8], "little")
    if content[8:9] != b"{" and content.startswith(_PICKLED):
        raise StorageError(
            "it is a pickle (as torch.save writes), which can run any code when it is opened, so "
            "it is not opened. Convert it: fill a model of your own with torch.load(..., "
            "weights_only=True), then poe.save(poe.as_energy(model), 'model.safetensors')"
        )
    if content[8:9] != b"{" or size < 2:
        raise StorageError("it is not a safetensors file; poe.save writes one")
    if 8 + size > len(content):
        raise StorageError(
            f"it is truncated: it has {len(content)} bytes, its header alone needs {8 + size}"
        )
    return content[8 : 8 + size]


def write_atomically(path: Path, content: bytes) -> None:
    """Replace `path` by a file with this content; after an error or an interrupt the old file is
    there, and no part of the new one."""
    draft = path.with_name(f".{path.name}.{secrets.token_hex(6)}")
    try:
        with open(draft, "xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            draft.unlink()
        if isinstance(error, OSError) and error.filename == str(draft):
            # the user gave `path`; the name of the draft would tell nothing
            raise OSError(error.errno, error.strerror, str(path)) from None
        raise
