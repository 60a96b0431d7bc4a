from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch

from poe.mcmc import parallel
from tests.poe.longrun import SLOW, long_run, sampled
from tests.poe.mcmc.test_checkpoint import same

ROOT = Path(__file__).parents[3]


def torchrun(processes: int, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        f"--nproc-per-node={processes}",
        *arguments,
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120
    )


@pytest.mark.slow
def test_two_processes_give_the_draws_of_one(tmp_path: Path) -> None:
    whole = long_run(None)  # three shards: one process has two of them
    done = torchrun(2, "-m", "tests.poe.longrun", str(tmp_path), "annealed")
    assert done.returncode == 0, done.stderr
    for rank in (0, 1):
        for name in ("plain", "kept"):
            result = safetensors.torch.load_file(tmp_path / f"{name}-{rank}.safetensors")
            assert same(whole, result), (rank, name)
            assert result["calls"] < 0.9 * whole["calls"]  # and each made only its share of them
        assert same(
            sampled(None, "annealed"),
            safetensors.torch.load_file(tmp_path / f"annealed-{rank}.safetensors"),
        )
    assert same(
        whole, long_run(tmp_path / "checkpoint")
    )  # one process goes on from what two have written
    assert not same(long_run(None, shards=2), whole)


@pytest.mark.slow
def test_two_processes_give_the_draws_of_one_by_every_method(tmp_path: Path) -> None:
    done = torchrun(2, "-m", "tests.poe.longrun", str(tmp_path), *SLOW)
    assert done.returncode == 0, done.stderr
    for method in SLOW:
        whole = sampled(None, method)
        for rank in (0, 1):
            assert same(
                whole, safetensors.torch.load_file(tmp_path / f"{method}-{rank}.safetensors")
            ), (rank, method)


def test_more_processes_than_shards_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel, "size", lambda: 4)
    with pytest.raises(
        ValueError, match="4 processes cannot share 3 shards: give shards=4 or more"
    ):
        parallel.start(torch.device("cpu"), 3)


@pytest.mark.parametrize(("processes", "shards"), [(1, 5), (2, 5), (3, 7), (4, 4), (3, 2)])
def test_every_shard_belongs_to_one_process_in_order(
    processes: int, shards: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parallel, "size", lambda: processes)
    shares = []
    for rank in range(processes):
        monkeypatch.setattr(parallel, "rank", lambda rank=rank: rank)
        shares.append(parallel.share(shards))
    if shards < processes:
        assert shares == [range(shards)] * processes  # nothing to share out
    else:
        assert [shard for share in shares for shard in share] == list(range(shards))
        assert max(map(len, shares)) - min(map(len, shares)) <= 1
