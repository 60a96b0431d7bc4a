from __future__ import annotations

import multiprocessing
import random
import signal
import time
from pathlib import Path

import pytest
import safetensors.torch
import torch

from poe.io.container import StorageError
from poe.kernels import Langevin
from poe.mcmc import checkpoint as files
from poe.mcmc.checkpoint import Checkpoint
from poe.mcmc.run import run, streams
from tests.poe.longrun import SLOW, long_run, main, sampled
from tests.poe.targets import Gauss, Raw

CPU = torch.device("cpu")
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["tests.poe.longrun"])


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """A write after every step."""
    monkeypatch.setattr(files, "MIN_INTERVAL", 0.0)
    monkeypatch.setattr(files, "MIN_COST_FACTOR", 0.0)


def chains(
    path: Path, energy, *, seed: int = 0, draws: int = 20, evaluations: int | None = None
) -> torch.Tensor:
    """A short run of two stages; it is interrupted after so many evaluations."""
    made = 0

    def counted(x: torch.Tensor) -> torch.Tensor:
        nonlocal made
        made += 1
        if made == evaluations:
            raise KeyboardInterrupt
        return energy(x)

    target, generators = Raw(counted, name="counted"), streams(seed, 2, CPU)
    checkpoint = Checkpoint(path, {"energy": energy, "seed": seed, "draws": draws})
    x = torch.ones(5, 2)
    pilot = run(
        Langevin(), target, x, draws=10, warmup=30, generators=generators, checkpoint=checkpoint
    )
    trace = run(
        pilot.kernel,
        target,
        pilot.states,
        draws=draws,
        generators=generators,
        checkpoint=checkpoint,
    )
    checkpoint.write()
    return trace.x


def same(whole: dict[str, torch.Tensor], resumed: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(whole[name], resumed[name]) for name in whole if name != "calls")


def killed_until_done(
    tmp_path: Path, kills: list[int | float], method: str | None = None
) -> tuple[dict[str, torch.Tensor], int]:
    """The results of a run that is killed at each of these evaluations (whole numbers) or seconds
    and called again; how many of the kills met it running."""
    path, out, met = tmp_path / "checkpoint", tmp_path / "out", 0
    for kill in [*kills, None]:
        process = PROCESSES.Process(
            target=main, args=(str(path), str(out), kill if isinstance(kill, int) else None, method)
        )
        process.start()
        if isinstance(kill, float):
            time.sleep(kill)
            process.kill()
        process.join()
        assert process.exitcode in ((0,) if kill is None else (0, -signal.SIGKILL))
        met += process.exitcode != 0
    return safetensors.torch.load_file(out), met


def test_a_killed_run_goes_on_to_the_same_draws(tmp_path: Path) -> None:
    whole = long_run(None)
    resumed, met = killed_until_done(
        tmp_path, [40, 333, 250]
    )  # in warm-up, in the chains, in replica exchange
    assert met == 3 and same(whole, resumed)
    assert resumed["calls"] < whole["calls"] / 2  # it did not begin anew
    assert not same(long_run(None, seed=1), resumed)


@pytest.mark.parametrize(
    "method", ["annealed", *(pytest.param(method, marks=pytest.mark.slow) for method in SLOW)]
)
def test_killed_sampling_goes_on_to_the_same_draws(method: str, tmp_path: Path) -> None:
    whole = sampled(None, method)
    half = int(whole["calls"]) // 2
    resumed, met = killed_until_done(tmp_path, [half, half], method)
    assert met >= 1 and same(whole, resumed)
    assert resumed["calls"] < 0.7 * whole["calls"]


@pytest.mark.slow
def test_twenty_kills_at_random_moments_change_no_draw(tmp_path: Path) -> None:
    whole, dice = long_run(None), random.Random(0)
    kills = [dice.randint(2, 60) for _ in range(10)] + [dice.uniform(0.01, 0.3) for _ in range(10)]
    resumed, met = killed_until_done(tmp_path, kills)
    assert met >= 10 and same(
        whole, resumed
    )  # ten evaluations are sure to be reached; the clock may come too late, or in a write


def test_an_interrupted_run_goes_on_to_the_same_draws(tmp_path: Path, often: None) -> None:
    energy = Gauss(1.0)
    whole = chains(tmp_path / "whole", energy)
    chains(tmp_path / "cut", energy, evaluations=40)  # in warm-up: from where the chains are then
    partial = chains(tmp_path / "cut", energy, evaluations=80)  # in the draws
    assert 0 < partial.shape[1] < whole.shape[1]
    assert torch.equal(chains(tmp_path / "cut", energy), whole)


def test_a_finished_run_is_read_back(tmp_path: Path) -> None:
    energy = Gauss(1.0)
    whole = chains(tmp_path / "run", energy)
    assert torch.equal(
        chains(tmp_path / "run", energy, evaluations=10), whole
    )  # no step is left to interrupt


def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "run"
    chains(path, Gauss(1.0, name="a"))
    content = path.read_bytes()
    for match, change in {
        r"another run: energy was a \(.*\), is b \(.*\)": {"energy": Gauss(1.0, name="b")},
        "another run: seed was 0, is 1. Give the arguments": {"seed": 1},
        "another run: draws was 20, is 21": {"draws": 21},
        "other energies under counted": {
            "energy": Gauss(1.1, name="a")
        },  # the same to the eye, and to its state_dict
    }.items():
        with pytest.raises(StorageError, match=match):
            chains(path, **{"energy": Gauss(1.0, name="a")} | change)
    assert path.read_bytes() == content


def test_learned_values_and_kernels_tell_runs_apart(tmp_path: Path) -> None:
    layer = torch.nn.Linear(2, 1)
    expert = Raw(lambda x: x.square().sum(-1), name="a")
    expert.add_module("layer", layer)

    def held(kernel: Langevin) -> dict[str, str]:
        return Checkpoint(
            tmp_path / "none", {"energy": expert, "kernel": kernel, "init": torch.zeros(2)}
        ).run

    first = held(Langevin(0.1))
    assert first == held(Langevin(0.1))
    assert (
        first["kernel"] != held(Langevin(0.2))["kernel"]
        and first["energy"] == held(Langevin(0.2))["energy"]
    )
    layer.weight.data += 1e-3
    assert first["energy"] != held(Langevin(0.1))["energy"]


def test_a_damaged_file_is_refused(tmp_path: Path, generator: torch.Generator) -> None:
    path, energy = tmp_path / "run", Gauss(1.0)
    whole = chains(path, energy)
    content = path.read_bytes()
    for length in [0, 7, 8, 100, len(content) // 2, len(content) - 1]:
        path.write_bytes(content[:length])
        with pytest.raises(StorageError, match=f"cannot resume from {path}: it is truncated"):
            chains(path, energy)
    for at in torch.randint(len(content), (100,), generator=generator).tolist():
        path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        with pytest.raises(StorageError, match=f"cannot resume from {path}: "):
            chains(path, energy)
    path.write_bytes(safetensors.torch.save({"x": torch.zeros(2)}))
    with pytest.raises(StorageError, match="it is not a checkpoint, and is left unchanged"):
        chains(path, energy)
    path.write_bytes(content)
    assert torch.equal(chains(path, energy), whole)
    with pytest.raises(StorageError, match="does not exist"):
        chains(tmp_path / "nowhere" / "run", energy)


def test_a_stage_is_computed_once_and_its_streams_go_on(tmp_path: Path) -> None:
    def go() -> tuple[dict, torch.Tensor, int]:
        stream, calls = torch.Generator().manual_seed(3), 0

        def compute() -> dict:
            nonlocal calls
            calls += 1
            return {
                "x": torch.randn(4, generator=stream),
                "facts": (1.5, [None, True, "a", float("inf")]),
                "same": energy,
            }

        checkpoint = Checkpoint(tmp_path / "run", {"seed": 3})
        result = checkpoint.stage(compute, energy, generators=[stream])
        checkpoint.write()
        return result, torch.randn(4, generator=stream), calls

    energy = Gauss(0.0)
    (first, after, once), (second, again, none) = go(), go()
    assert (once, none) == (1, 0)
    assert torch.equal(first["x"], second["x"]) and torch.equal(after, again)
    assert first["facts"] == second["facts"] and second["same"] is energy
    with pytest.raises(
        TypeError, match="a Gauss can be written neither to a checkpoint nor to another process"
    ):
        Checkpoint(tmp_path / "other", {}).stage(lambda: Gauss(0.0), energy)


def test_a_stage_that_fails_fails_again(tmp_path: Path) -> None:
    def go() -> tuple[int, list[str]]:
        made: list[str] = []

        def fail() -> None:
            made.append("fail")
            raise ArithmeticError

        def work() -> int:
            made.append("work")
            return 7

        checkpoint = Checkpoint(tmp_path / "run", {})
        with pytest.raises(ArithmeticError):
            checkpoint.stage(fail)
        result = checkpoint.stage(work)
        checkpoint.write()
        return result, made

    assert go() == (7, ["fail", "work"])
    assert go() == (7, ["fail"])


def test_memory_and_file_grow_with_what_is_kept_not_with_the_steps(tmp_path: Path) -> None:
    def size(thin: int) -> int:
        path = tmp_path / f"thin{thin}"
        checkpoint = Checkpoint(path, {"thin": thin})
        trace = run(
            Langevin(0.3),
            Gauss(1.0),
            torch.zeros(4, 2),
            draws=10,
            thin=thin,
            generators=streams(0, 1, CPU),
            checkpoint=checkpoint,
        )
        assert trace.x.untyped_storage().nbytes() == 10 * 4 * 2 * 4
        checkpoint.write()
        return path.stat().st_size

    assert abs(size(1) - size(20)) < 64  # digits of the counts
