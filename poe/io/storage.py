"""`poe.save` and `poe.load`: compositions in files.

One safetensors file holds the tensors, and in its metadata the recipe. A SHA-256 over both is
verified when it is loaded; no pickle is opened, and a file is written whole or not at all.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from poe.algebra.checks import energies_of
from poe.algebra.energy import Energy
from poe.io.container import StorageError, write_atomically
from poe.io.recipe import from_bytes, read_file, to_bytes
from poe.io.zoo import SUFFIX, pretrained

_LABEL = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*")


def save(energy: Energy, path: str | os.PathLike[str]) -> None:
    """Write an energy, its experts and their learned values to one file, whole or not at all.

    An expert is stored by its registry name, its `config()` and its `state_dict()`, once however
    often the expression contains it; so is a network that several experts share, and they share it
    again when loaded. Before anything is written the file's content is read back.

    Raises:
        StorageError: a part of the expression cannot be stored; the message names it and what it
            lacks.
    """
    (energy,), path = energies_of([energy], "save"), Path(path)
    content = to_bytes(energy)
    try:
        from_bytes(content)
    except Exception as error:
        raise StorageError(
            f"{energy} cannot be saved, because it would not load again: {error}"
        ) from error
    write_atomically(path, content)


def load(source: str | os.PathLike[str]) -> Energy:
    """The energy in a file, or a pretrained one by its zoo name ("digits.even"); in eval mode, on
    the CPU.

    The energies of one conditional expert of the zoo ("shapes.red", "shapes.circle") share its
    network while any of them is in use.

    Raises:
        FileNotFoundError: there is no such file.
        StorageError: the file is truncated, changed, or was not written by `save`; or no zoo entry
            has this name.
        ImportError: an expert needs a library that is not installed.
    """
    path = Path(source)
    named = isinstance(source, str) and _LABEL.fullmatch(source) and not source.endswith(SUFFIX)
    if named and not path.exists():
        return pretrained(str(source))
    return read_file(path, str(path))
