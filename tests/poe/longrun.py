"""A run of several stages, as `poe.sample` makes them, for tests that kill it or spread it over
processes."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

import poe
from poe.io.records import Codec
from poe.kernels import Langevin, Tempered
from poe.mcmc import checkpoint as files
from poe.mcmc import parallel
from poe.mcmc.checkpoint import Checkpoint
from poe.mcmc.run import run, streams
from poe.spaces.path import StandardNormal
from tests.poe.targets import Gauss

SLOW = ("chains", "tempered")  # methods of many short steps


class Mortal(poe.Energy):
    """An energy that kills its process, as a power cut would, at a chosen evaluation; `None` lets
    it live."""

    def __init__(self, energy: poe.Energy, dies_at: int | None) -> None:
        super().__init__(energy.event_shape, name="mortal")
        self.energy, self.dies_at, self.calls = energy, dies_at, 0

    @property
    def proper(self) -> bool | None:
        return True

    def forward(self, x: Tensor) -> Tensor:  # (*batch, *event) -> (*batch)
        self.calls += 1
        if self.calls == self.dies_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return self.energy(x)


def long_run(
    path: Path | None, dies_at: int | None = None, *, shards: int = 3, seed: int = 0
) -> dict[str, Tensor]:
    """Starts, adapted chains, then replica exchange from what they found; everything that comes of
    it, with a count of evaluations."""
    energy = Mortal(Gauss(-2.0) | Gauss(2.0), dies_at)
    *generators, shared = streams(seed, shards + 1, torch.device("cpu"))
    checkpoint = (
        None
        if path is None
        else Checkpoint(path, {"energy": energy, "shards": shards, "seed": seed})
    )

    def starts() -> list[Tensor]:
        return parallel.spread(
            lambda shard: 3 * torch.randn(2 + (shard == 0), 2, generator=generators[shard]),
            generators,
            Codec(),
        )

    x = torch.cat(
        starts() if checkpoint is None else checkpoint.stage(starts, generators=generators)
    )  # shards differ in size
    chains = run(
        Langevin(),
        energy,
        x,
        draws=60,
        warmup=80,
        thin=2,
        generators=generators,
        checkpoint=checkpoint,
    )
    found = chains.x.flatten(0, 1)
    start = StandardNormal(found.mean(0) + 0.1 * torch.randn(2, generator=shared), 2 * found.std(0))
    ladder = Tempered(start, torch.tensor([0.0, 0.3, 1.0]), chains.kernel)
    tempered = run(
        ladder,
        energy,
        chains.x[:, -1],
        draws=20,
        warmup=10,
        generators=generators,
        checkpoint=checkpoint,
    )
    last = run(
        tempered.kernel,
        energy,
        tempered.states,
        draws=20,
        generators=generators,
        checkpoint=checkpoint,
    )
    if checkpoint is not None:
        checkpoint.write()
    counts = torch.tensor(
        [part for trace in (chains, tempered, last) for part in trace.counts[:-1]],
        dtype=torch.float64,
    )
    result = {
        "chains": chains.x,
        "tempered": tempered.x,
        "last": last.x,
        "energy": last.energy,
        "counts": counts,
    }
    result["uniform"] = torch.stack(
        [torch.rand(3, generator=generator) for generator in [*generators, shared]]
    )
    return {name: tensor.contiguous() for name, tensor in result.items()} | {
        "calls": torch.tensor(energy.calls)
    }


def sampled(path: Path | None, method: str, dies_at: int | None = None) -> dict[str, Tensor]:
    """Draws of `poe.sample` by a method, and its count of evaluations."""
    energy = Mortal(Gauss(-2.0) | Gauss(2.0), dies_at)
    warmup = 40 if method == "chains" else None
    kept = None if path is None else str(path)
    draws = poe.sample(energy, 100, method=method, warmup=warmup, seed=0, shards=3, checkpoint=kept)
    return {
        "x": draws.x,
        "gradients": torch.tensor(draws.diagnostics.gradients),
        "calls": torch.tensor(energy.calls),
    }


def main(path: str, out: str, dies_at: int | None = None, method: str | None = None) -> None:
    """A long run with a write after every step, or draws by a method; the results are written to
    `out`."""
    torch.set_num_threads(1)
    files.MIN_INTERVAL, files.MIN_COST_FACTOR = (0.0 if method is None else 0.02), 0.0
    result = (
        long_run(Path(path), dies_at) if method is None else sampled(Path(path), method, dies_at)
    )
    safetensors.torch.save_file(result, out)


if __name__ == "__main__":  # torchrun starts it: one file of results for each process
    torch.set_num_threads(1)
    parallel.start(torch.device("cpu"), 3)
    files.MIN_INTERVAL, files.MIN_COST_FACTOR = 0.02, 0.0
    folder = Path(sys.argv[1])
    plain = long_run(None)
    safetensors.torch.save_file(plain, folder / f"plain-{parallel.rank()}.safetensors")
    safetensors.torch.save_file(
        long_run(folder / "checkpoint"), folder / f"kept-{parallel.rank()}.safetensors"
    )
    for method in sys.argv[2:]:
        safetensors.torch.save_file(
            sampled(None, method), folder / f"{method}-{parallel.rank()}.safetensors"
        )
