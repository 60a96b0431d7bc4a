"""Checkpoints: the progress of a run in a file, from which the same call continues, bit for bit.

A run is a sequence of stages, each the same for the same arguments. The file holds the result of
every finished stage and the progress of the current one: states, random streams, adaptation, kept
draws. A call that finds its file reads finished stages from it and continues in the middle of the
last one. The clock decides when the file is written, never what is drawn.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from poe.algebra.energy import Energy
from poe.io.container import StorageError, checksum, plain, write_atomically
from poe.io.records import Codec
from poe.mcmc import parallel

FORMAT = 2
MIN_INTERVAL = 30.0  # seconds between two writes
MIN_COST_FACTOR = 20.0  # and as a multiple of the seconds that the last write took
_KEY = "poe.mcmc.checkpoint"


class Checkpoint:
    """The stages of one run, and the file that they are kept in.

    With several processes all make the same calls; the first reads and writes.

    Arguments:
        path: the file; read if it exists, and replaced as a whole at each write.
        run: what distinguishes this run from others: its expression and arguments. All of them
            must agree with the file's.

    Raises:
        StorageError: the file is truncated, changed, not a checkpoint or of another run; or its
            directory does not exist.
    """

    def __init__(self, path: str | Path, run: Mapping[str, Any]) -> None:
        self.path = Path(path)
        self.run = {name: _fingerprint(value) for name, value in run.items()} | {
            "torch": torch.__version__
        }
        self._stages: dict[
            int, tuple[Any, list[Tensor]]
        ] = {}  # a stage that raised an error is not kept: it will raise again
        self._current, self._frozen = -1, False
        self._written, self._cost = time.monotonic(), 0.0
        if not self.path.parent.is_dir():
            raise StorageError(
                f"cannot write checkpoints to {self.path}: {self.path.parent} does not exist"
            )
        content = (
            b"\0" + self.path.read_bytes() if parallel.rank() == 0 and self.path.exists() else b""
        )
        content = parallel.agreed(content)
        if content:
            try:
                self._read(content[1:])
            except StorageError as error:
                raise StorageError(f"cannot resume from {self.path}: {error}") from error

    def resume(self, codec: Codec) -> Any | None:
        """Enters the next stage: what the file holds of it, or None."""
        self._current += 1
        if self._current not in self._stages:
            return None
        form, tensors = self._stages[self._current]
        try:
            return codec.decode(form, tensors.__getitem__)
        except (LookupError, TypeError, ValueError) as error:
            raise StorageError(
                f"cannot resume from {self.path}: stage {self._current} does not fit this run "
                f"({error})"
            ) from error

    def due(self) -> bool:
        """Whether it is time to save."""
        late = time.monotonic() - self._written >= max(MIN_INTERVAL, MIN_COST_FACTOR * self._cost)
        return parallel.agreed(b"late" if late else b"") == b"late"

    def save(self, tree: Any, codec: Codec, *, write: bool = True) -> None:
        """Stores the progress of the current stage, and writes the file. The tensors of the tree
        must not change afterwards."""
        if self._frozen:
            return
        self._stages[self._current] = codec.encode(tree)
        if write:
            self.write()

    def stage(
        self, compute: Callable[[], Any], *known: Any, generators: Sequence[torch.Generator] = ()
    ) -> Any:
        """The result of a stage that is computed as a whole: from the file, or by `compute`.

        `generators` are the random streams that it draws from; `Codec` states what the result may
        consist of, and the meaning of `known`.
        """
        codec = Codec(*known, device=generators[0].device if generators else "cpu")
        saved = self.resume(codec)
        if saved is None:
            saved = {
                "result": compute(),
                "streams": [generator.get_state() for generator in generators],
            }
            self.save(saved, codec, write=self.due())
        for generator, stream in zip(generators, saved["streams"], strict=True):
            generator.set_state(stream)
        return saved["result"]

    def freeze(self) -> None:
        """Writes the file for the last time: what follows an interrupt is not part of the run, and
        a later call continues from before it."""
        if not self._frozen:
            self.write()
        self._frozen = True

    def write(self) -> None:
        """Replaces the file."""
        if self._frozen or parallel.rank() > 0:
            return
        started = time.monotonic()
        tensors = {
            f"{i}:{k}": plain(t)
            for i, (_, stage) in self._stages.items()
            for k, t in enumerate(stage)
        }
        facts = {
            "format": FORMAT,
            "run": self.run,
            "stages": [[i, form, len(stage)] for i, (form, stage) in self._stages.items()],
        }
        text = json.dumps(facts)
        content = safetensors.torch.save(
            tensors, {_KEY: text, "sha256": checksum({"facts": text}, tensors)}
        )
        write_atomically(self.path, content)
        self._written = time.monotonic()
        self._cost = self._written - started

    def _read(self, content: bytes) -> None:
        try:
            tensors = safetensors.torch.load(content)
            header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        except (safetensors.SafetensorError, ValueError) as error:
            raise StorageError(
                f"it is truncated, damaged or not a safetensors file ({error})"
            ) from error
        metadata = header.get("__metadata__", {})
        if _KEY not in metadata:
            raise StorageError(
                "it is not a checkpoint, and is left unchanged; give checkpoint= another path"
            )
        if checksum({"facts": metadata[_KEY]}, tensors) != metadata.get("sha256"):
            raise StorageError("its checksum does not match: it was changed after it was written")
        facts = json.loads(metadata[_KEY])
        if facts["format"] != FORMAT:
            raise StorageError(
                f"it has format {facts['format']}, and this version of poe reads format {FORMAT}: "
                "delete it to start again"
            )
        differ = [
            name for name in self.run | facts["run"] if self.run.get(name) != facts["run"].get(name)
        ]
        if differ:
            what = "; ".join(
                f"{name} was {facts['run'].get(name)}, is {self.run.get(name)}" for name in differ
            )
            raise StorageError(
                f"it is of another run: {what}. Give the arguments that it was started with, or "
                "delete it to start again"
            )
        self._stages = {
            i: (form, [tensors[f"{i}:{k}"] for k in range(n)]) for i, form, n in facts["stages"]
        }


def stage(
    checkpoint: Checkpoint | None,
    compute: Callable[[], Any],
    *known: Any,
    generators: Sequence[torch.Generator],
) -> Any:
    """`Checkpoint.stage`, or just the result where no checkpoint is kept."""
    if checkpoint is None:
        return compute()
    return checkpoint.stage(compute, *known, generators=generators)


def _fingerprint(value: Any) -> str:
    """A short text that distinguishes values: of an energy, its expression and a digest of its
    parameters."""
    if value is None or isinstance(value, bool | int | float | str | torch.device):
        return str(value)
    codec = Codec(value)
    form, tensors = codec.encode(value)
    held = {str(number): plain(tensor) for number, tensor in enumerate(tensors)}
    for place, part in enumerate(codec.parts):
        state = part.state_dict() if isinstance(part, nn.Module) else {}
        held |= {
            f"{place}:{key}": plain(tensor)
            for key, tensor in state.items()
            if isinstance(tensor, Tensor)
        }
    digest = checksum({"form": form, "parts": [str(part) for part in codec.parts]}, held)
    return f"{value if isinstance(value, Energy) else type(value).__name__} ({digest[:12]})"
