"""The safetensors file around a recipe: its header, its checksum, and writing it whole or not at
all."""

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

_DRAWS = "poe.draws"  # the metadata key of draws
_RECIPE = "poe"  # the one metadata key, so that equal energies give equal files
_PICKLED = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")


class StorageError(PoeError, ValueError):
    """An energy that cannot be saved, or a file that cannot be loaded; the message says what is
    wrong."""


def _plain(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().clone(memory_format=torch.contiguous_format)


def _compact(recipe: Mapping[str, Any]) -> str:
    return json.dumps(recipe, separators=(",", ":"))


def _digest(recipe: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256(
        _compact({key: recipe[key] for key in recipe if key != "sha256"}).encode()
    )
    for key in sorted(tensors):
        tensor = tensors[key]
        digest.update(json.dumps([key, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _metadata(content: bytes) -> str:
    """The recipe in the header of a safetensors file, as text."""
    size = int.from_bytes(content[:8], "little")
    if content[8:9] != b"{" and content.startswith(_PICKLED):
        raise StorageError(
            "it is a pickle (as torch.save writes), which can run any code when it is opened, so "
            "it is not "
            "opened. Convert it: fill a model of your own with torch.load(..., weights_only=True), "
            "then "
            "poe.save(poe.as_energy(model), 'model.safetensors')"
        )
    if content[8:9] != b"{" or size < 2:
        raise StorageError("it is no safetensors file; poe.save writes one")
    if 8 + size > len(content):
        raise StorageError(
            f"it is truncated: it has {len(content)} bytes, its header alone asks for {8 + size}"
        )
    header = content[8 : 8 + size]
    try:
        metadata = json.loads(header).get("__metadata__", {})
    except ValueError as error:
        raise StorageError(f"its header is damaged ({error})") from error
    if not header.rstrip(b" ").endswith(b"}"):  # padding that JSON overlooks
        raise StorageError("its header is damaged")
    if not isinstance(metadata, dict) or _RECIPE not in metadata:
        if isinstance(metadata, dict) and _DRAWS in metadata:
            raise StorageError("it holds draws: poe.Draws.load reads it")
        raise StorageError(
            "it holds tensors but no recipe, so poe.save did not write it; load them into your own "
            "model"
        )
    return metadata[_RECIPE]


def write_whole(path: Path, content: bytes) -> None:
    """Replace `path` by a file with this content; whatever happens, no half of it stays."""
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
        if isinstance(error, OSError) and error.filename == str(
            draft
        ):  # its name is nobody's business
            raise OSError(error.errno, error.strerror, str(path)) from None
        raise
