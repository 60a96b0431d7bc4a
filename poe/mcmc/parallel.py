"""Several processes: the shards of a run, distributed over the ranks that `torchrun` started.

Outside of `run` every process holds the same values: what a process computes for its own shards is
sent to all of them, in block order, so that sums over all shards have the same bits for any number
of processes. With one process nothing is sent. Bit-equal results also need the same number of
threads in each process (`torchrun` sets OMP_NUM_THREADS=1; set it for a single process too).
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist

from poe.io.records import Codec

_TORCHRUN = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def start(device: torch.device, shards: int) -> None:
    """Joins the processes that `torchrun` started, if any: over gloo, or nccl where `device` is a
    GPU. "cuda" without a number is then the GPU of the local rank.

    Every process must make the same calls. Raises ValueError where there are more processes than
    shards.
    """
    if (
        dist.is_available()
        and not dist.is_initialized()
        and all(os.environ.get(name) for name in _TORCHRUN)
    ):
        if device.type == "cuda":
            torch.cuda.set_device(
                int(os.environ.get("LOCAL_RANK", 0)) if device.index is None else device.index
            )
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
        atexit.register(_leave)
    if size() > shards:
        raise ValueError(
            f"{size()} processes cannot share {shards} shards: give shards={size()} or more, or "
            "fewer processes"
        )


def size() -> int:
    """How many processes there are."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Which of them this one is, from 0."""
    return dist.get_rank() if size() > 1 else 0


def share(shards: int) -> range:
    """The shards of this process: consecutive, the first processes with one more where they do not
    divide evenly. A run of fewer shards than processes is not distributed: each process computes
    all of it."""
    if shards < size():
        return range(shards)
    each, more = divmod(shards, size())
    first = rank() * each + min(rank(), more)
    return range(first, first + each + (rank() < more))


def gather(own: list[Any], shards: int, codec: Codec) -> list[Any]:
    """The items of all shards, in order; `own` are those of this process."""
    if size() == 1 or shards < size():
        return own
    messages = _exchange(codec.pack(own))
    return [
        item
        for r, message in enumerate(messages)
        for item in (own if r == rank() else codec.unpack(message))
    ]


def spread(
    compute: Callable[[int], Any], generators: Sequence[torch.Generator], codec: Codec
) -> list[Any]:
    """`compute(shard)` for every shard, in order; each process computes its share. It may draw from
    `generators[shard]` only; afterwards the streams of all shards agree in all processes."""
    own = [(compute(shard), generators[shard].get_state()) for shard in share(len(generators))]
    results = gather(own, len(generators), codec)
    for generator, (_, stream) in zip(generators, results, strict=True):
        generator.set_state(stream)
    return [result for result, _ in results]


def agreed(content: bytes) -> bytes:
    """The content that the first process gives."""
    return content if size() == 1 else _exchange(content if rank() == 0 else b"")[0]


def _exchange(message: bytes) -> list[bytes]:
    """The messages of all processes, in the order of their ranks."""
    messages = [b""] * size()
    dist.all_gather_object(messages, message)
    return messages


def _leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()
