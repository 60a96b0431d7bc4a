"""The command line: closed forms through `main`, and exit statuses, pipes and interrupts through a
real shell."""

from __future__ import annotations

import json
import math
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import distributions as td

import experts
import poe
from poe.__main__ import COMMANDS, main
from poe.io.container import StorageError
from tests.poe.io.test_expression import junk

pytestmark = pytest.mark.slow  # most of them start a shell

ROOT = Path(__file__).parents[3]
POE = f"{sys.executable} -m poe"

OWN = """\
import torch, poe, experts
def right(): return experts.Normal([0.0, 1.0], [1.0, 2.0])
class Wrong(poe.Density):  # the constant of a normal density left out
    def __init__(self): super().__init__((1,), name="wrong")
    def log_prob(self, x): return -0.5 * x.square().sum(-1)
    def sample(self, n, *, generator=None): return torch.randn(*((n,) if isinstance(n, int) else n), 1, generator=generator)
def fails(): raise RuntimeError("no weights here")
number = 3
def interrupted(): exec("raise KeyboardInterrupt")  # as where Ctrl-C meets the making of a dataclass
"""  # noqa: E501


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with saved experts and a module of factories."""
    poe.save(experts.Normal([0.0], [1.0]), tmp_path / "a.safetensors")
    poe.save(experts.Normal([2.0], [1.0]), tmp_path / "b.safetensors")
    poe.save(experts.Normal([8.0], [0.5]), tmp_path / "far.safetensors")
    for name, low in (("left", 0.0), ("right", 2.0)):
        uniform = td.Uniform(torch.tensor([low]), torch.tensor([low + 1]))
        poe.save(experts.Distribution(uniform), tmp_path / f"{name}.safetensors")
    (tmp_path / "own.py").write_text(OWN)
    (tmp_path / "broken.py").write_text("\ndef (:\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    return tmp_path


def bound(*names: str) -> list[str]:
    return [word for name in names for word in ("--expert", f"{name}={name}.safetensors")]


def run(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str, str]:
    capsys.readouterr()
    try:
        status = main(argv)
    except SystemExit as stop:  # argparse
        status = int(stop.code or 0)
    return status, *capsys.readouterr()


def shell(line: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """What a user's shell does with this line, the repository being importable."""
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        ["bash", "-c", f"set -o pipefail; {line}"], cwd=cwd, env=env, capture_output=True, text=True
    )


# ---- what is reported


def test_log_z_of_a_product_is_its_closed_form(files, capsys):
    status, out, _ = run(capsys, "logz", "a & b", *bound("a", "b"), "--json")
    assert status == 0
    # the integral of N(x; 0, 1) N(x; 2, 1) is N(2; 0, 2)
    assert json.loads(out)["log_z"]["value"] == pytest.approx(
        -0.5 * math.log(4 * math.pi) - 1.0, abs=1e-6
    )
    assert json.loads(out)["log_z"]["standard_error"] == 0
    assert "-2.26551 (exact)" in run(capsys, "logz", "a & b", *bound("a", "b"))[1]


def test_draws_in_every_format_are_those_of_the_product(files, capsys):
    argv = ["sample", "a & b", *bound("a", "b"), "-n", "4000", "--seed", "1", "--json"]
    status, out, err = run(
        capsys, *argv, "--out", "d.npz", "--out", "d.safetensors", "--out", "d.png"
    )
    report = json.loads(out)
    assert status == 0 and report["trusted"] and report["draws"] == 4000 and report["seed"] == 1
    assert report["files"] == ["d.npz", "d.safetensors", "d.png"] and "d.png written" in err
    with np.load("d.npz") as file:  # no pickle
        x, evidence = file["x"], json.loads(str(file["evidence"]))
    assert evidence["verdict"] == report["verdict"]
    sd = math.sqrt(0.5)  # N(0, 1) N(2, 1) ∝ N(1, 1/2)
    assert abs(x.mean() - 1) < 5 * sd / math.sqrt(4000)
    assert abs(x.var() - 0.5) < 5 * 0.5 * math.sqrt(2 / 4000)
    loaded = poe.Draws.load("d.safetensors")
    assert np.array_equal(loaded.x.numpy(), x) and loaded.verdict == report["verdict"]
    assert Path("d.png").read_bytes().startswith(b"\x89PNG\r\n")
    assert sorted(os.listdir()) == sorted([*OF_FIXTURE, "d.npz", "d.png", "d.safetensors"])
    assert np.array_equal(poe.sample(poe.parse("a & b", load("a", "b")), 4000, seed=1).x.numpy(), x)


OF_FIXTURE = [
    "a.safetensors",
    "b.safetensors",
    "broken.py",
    "far.safetensors",
    "left.safetensors",
    "own.py",
    "right.safetensors",
]


def load(*names: str) -> dict[str, poe.Energy]:
    return {name: poe.load(f"{name}.safetensors") for name in names}


def test_show_gives_facts_plan_and_tree(files, capsys):
    expression = "a ** 0.5 & b - far"
    status, out, _ = run(capsys, "show", expression, *bound("a", "b", "far"), "--json")
    report = json.loads(out)
    assert (
        status == 0
        and report["event_shape"] == [1]
        and report["proper"] is True
        and report["log_z"] is None
    )
    assert report["methods"][0] == poe.plan(poe.parse(expression, load("a", "b", "far"))).method
    first, second = report["tree"]["parts"]
    assert (first["role"], first["expression"], first["kind"]) == ("** 0.5", "a", "normal")
    assert [(part["role"], part["expression"]) for part in second["parts"]] == [
        ("wanted", "b"),
        ("unwanted", "far"),
    ]
    text = run(capsys, "show", expression, *bound("a", "b", "far"))[1]
    assert (
        text.startswith(expression + "\n")
        and "└─ b - far" in text
        and "   └─ unwanted  far" in text
    )
    assert "none: ~a is improper" in run(capsys, "show", "~a", *bound("a"))[1]
    assert run(capsys, "show", "a.safetensors")[0] == 0


@pytest.mark.parametrize("word", ["experts", "list"])
def test_experts_lists_the_registry_and_the_zoo_with_their_cards(capsys, word):
    report = json.loads(run(capsys, word, "--json")[1])
    assert [entry["name"] for entry in report["registered"]] == poe.available()
    assert all(entry["kind"] for entry in report["registered"])
    zoo = {entry["name"]: entry for entry in report["zoo"]}
    card = json.loads((ROOT / "experts/zoo/digits.even.json").read_text())
    assert (
        zoo["digits.even"]["bytes"] == (ROOT / "experts/zoo/digits.even.safetensors").stat().st_size
    )
    assert all(
        zoo["digits.even"][key] == card[key]
        for key in ("kind", "event_shape", "parameters", "licence")
    )
    text = run(capsys, word)[1]
    assert all(name in text for name in [*poe.available(), *zoo, "(8, 8)", "Apache-2.0"])


def test_check_tells_right_experts_from_wrong_ones(files, capsys):
    status, out, _ = run(capsys, "check", "own:right", "--json")
    assert status == 0 and "normalisation" in json.loads(out)["holds"]
    status, out, _ = run(capsys, "check", "own:Wrong")
    assert (
        status == 1 and "breaks the law 'normalisation'" in out and "0.91894" in out
    )  # log sqrt(2 pi)


# ---- failures: one message, an exit status, never a traceback


@pytest.mark.parametrize(
    ("argv", "status", "said"),
    [
        (["sample", "~a", *bound("a")], 1, "improper"),
        (["logz", "~a", *bound("a")], 1, "improper"),
        (["sample", "left & right", *bound("left", "right")], 1, "disjoint"),
        (
            ["sample", "a & b - far", "--method", "exact", *bound("a", "b", "far")],
            1,
            "has no exact draws",
        ),
        (["show", "a & & b", *bound("a", "b")], 2, "invalid syntax"),
        (["show", "a & evn", *bound("a")], 2, "unknown name 'evn'"),
        (["show", "digits.evn"], 2, "did you mean 'digits.even'"),
        (["show", ""], 2, "empty"),
        (["show", "own"], 2, "unknown name"),
        (["show", "\0.safetensors"], 2, "null"),
        (["show", "x" * 5000 + ".safetensors"], 2, "too long"),
        (["show", "a", "--expert", "a=own.py"], 2, "not a safetensors file"),
        (["show", "a", "--expert", "a=nothing"], 2, "neither a file"),
        (["show", "a", "--expert", "a=."], 2, "directory"),
        (["show", "a", "--expert", "1=a.safetensors"], 2, "NAME=FILE"),
        (["sample", "a", *bound("a"), "--out", "no/where.png"], 2, "no directory"),
        (["sample", "a", *bound("a"), "--out", "a.doc"], 2, "does not end in one of .png"),
        (
            ["sample", "a", *bound("a"), "--out", "a.safetensors"],
            2,
            "a.safetensors is read by this command",
        ),
        (
            ["sample", "a.safetensors", "--out", "./a.safetensors"],
            2,
            "a.safetensors is read by this command",
        ),
        (
            ["show", "a", *bound("a"), "--expert", "a=b.safetensors"],
            2,
            "--expert a= is given twice",
        ),
        (["show", "(a ** 1e200) ** 1e200", *bound("a")], 2, "these powers multiply to more"),
        (["sample", "a", *bound("a"), "-n", "0"], 2, "at least 1"),
        (["sample", "a", *bound("a"), "--seed", "-1"], 2, "at least 0"),
        (["check", "own:fails"], 2, "own.py:7: RuntimeError: no weights here"),
        (["check", "own:number"], 2, "is a int"),
        (["check", "own:nothing"], 2, "no attribute 'nothing'"),
        (["check", "broken:x"], 2, "broken.py:2: SyntaxError"),
        (["check", "no_such_module:x"], 2, "No module named"),
        (["check", "own"], 2, "MODULE:FACTORY is needed"),
        (["nonsense"], 2, "invalid choice"),
        ([], 2, "COMMAND"),
    ],
)
def test_failures_say_what_is_wrong(files, capsys, argv, status, said):
    got, out, err = run(capsys, *argv)
    assert (got, out) == (status, "") and said in err and "Traceback" not in err
    assert sorted(set(os.listdir()) - {"__pycache__"}) == sorted(OF_FIXTURE)


def test_an_error_in_an_expression_has_its_place(files, capsys):
    status, out, err = run(capsys, "show", "  a & evn & a", *bound("a"), "--json")
    assert (
        status == 2
        and json.loads(out)["column"] == "  a & evn & a".index("evn")
        and json.loads(out)["status"] == 2
    )
    _, shown, caret = err.rstrip("\n").split("\n")
    assert shown[caret.index("^") :].startswith("evn")


def test_an_error_of_the_system_is_a_message(files, capsys, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device", "d.npz")

    monkeypatch.setattr("os.replace", full)
    status, _, err = run(capsys, "sample", "a", *bound("a"), "--out", "d.npz")
    assert status == 2 and "No space left on device: d.npz" in err
    assert sorted(os.listdir()) == sorted(OF_FIXTURE)


def test_a_damaged_file_of_the_zoo_is_a_message(files, capsys, monkeypatch):
    def damaged(_: str) -> poe.Energy:
        raise StorageError("cannot load digits.even of the zoo: it is truncated")

    monkeypatch.setattr(poe, "load", damaged)
    status, out, err = run(capsys, "demo", "--out", "p.png")
    assert (status, out) == (
        2,
        "",
    ) and err == "poe: error: cannot load digits.even of the zoo: it is truncated\n"


def test_random_expressions_end_in_a_status(files, capsys):
    rng, seen = random.Random(0), set()
    names = ["a", "b", "far", "left"]
    for _ in range(150):
        text = junk(rng, names)
        status, out, err = run(capsys, "show", text, *bound(*names))
        assert status in (0, 2) and bool(out) == (status == 0), text
        assert "Traceback" not in err, text
        seen.add(status)
    assert seen == {0, 2}


def test_an_untrusted_estimate_has_a_status_of_its_own(files, capsys):
    # draws of a | b for a target of 7 times their spread: with w = p^-0.98, E[w^s] is infinite from
    # s = 1 / 0.98 on
    status, out, _ = run(
        capsys, "logz", "(a | b) ** 0.02", *bound("a", "b"), "--method", "importance", "--json"
    )
    assert status == 3 and json.loads(out)["warnings"] and json.loads(out)["trusted"] is False


# ---- through a real shell


def test_the_shell_sees_statuses_files_and_pipes(files):
    bad = shell(f"{POE} show 'a & & b'", files)
    assert bad.returncode == 2 and bad.stdout == ""
    assert bad.stderr.splitlines()[-2:] == ["    a & & b", "        ^"]
    argv = f"{' '.join(bound('a', 'far'))} --method chains -n 60"  # too few to tell
    doubtful = shell(
        f"echo 'a & far' | {POE} sample - {argv} --out d.npz --json | tee d.json", files
    )
    assert doubtful.returncode == 3 and json.loads((files / "d.json").read_text())[
        "verdict"
    ].startswith("NOT TRUSTED")
    assert (files / "d.npz").exists() and "d.npz written" in doubtful.stderr
    closed = shell(f"{POE} experts | true", files)  # gone long before the list is there
    assert closed.returncode == 141 and closed.stdout == closed.stderr == ""


@pytest.mark.parametrize(
    ("line", "status", "said"),
    [
        ("experts", 0, "digits.even"),
        ("list --json", 0, '"registered"'),
        ("show 'digits.even & digits.loops'", 0, "└─ digits.loops"),
        (
            "sample 'digits.even | digits.loops' -n 64 --seed 0 --out d.png",
            0,
            "TRUSTED: 64 independent draws",
        ),
        ("logz digits.rbm", 0, "(exact)"),
        ("check own:right", 0, "normalisation"),
        ("check own:Wrong", 1, "breaks the law"),
        ("sample '~digits.even'", 1, ""),
        ("demo --draws 16", 0, "out/demo.png written"),
        ("--help", 0, "exit status:"),
        ("--version", 0, f"poe {poe.__version__}"),
    ],
)
def test_every_command_through_a_shell(files, line, status, said):
    done = shell(f"{POE} {line}", files)
    assert done.returncode == status and said in done.stdout and "Traceback" not in done.stderr


def test_an_interrupt_in_text_that_python_runs_ends_by_a_status(files):
    # Python itself would end by the signal, which a shell cannot tell from 130, but a program that
    # waits for it can
    command = [sys.executable, "-m", "poe", "check", "own:interrupted"]
    done = subprocess.run(
        command,
        cwd=files,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert (
        done.returncode == 130
        and done.stderr.endswith("poe: error: interrupted\n")
        and done.stdout == ""
    )


@pytest.mark.parametrize(
    "then", [0.0, 2.0]
)  # seconds after the line that says it draws: in a pilot, and when chains run
def test_an_interrupt_ends_a_run_and_leaves_no_file(files, then):
    # in a process group of its own, as a terminal starts one; a signal that whoever runs the tests
    # ignores is heard again; exec, for bash itself may end by the signal
    heard = (
        "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); "
        "os.execvp(sys.argv[1], sys.argv[1:])"
    )
    line = (
        f"{POE} sample 'a & b - far' {' '.join(bound('a', 'b', 'far'))} --method chains -n "
        "5000000 --out d.npz"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with open(files / "out", "wb") as out, open(files / "err", "wb") as err:
        command = [sys.executable, "-c", heard, "bash", "-c", f"exec {line} --out d.safetensors"]
        child = subprocess.Popen(
            command, cwd=files, env=environment, stdout=out, stderr=err, start_new_session=True
        )
    try:
        patience = time.monotonic() + 120
        while (
            "drawing" not in (files / "err").read_text()
            and child.poll() is None
            and time.monotonic() < patience
        ):
            time.sleep(0.05)
        time.sleep(then)
        os.killpg(child.pid, signal.SIGINT)
        status = child.wait(timeout=120)
    finally:
        if child.poll() is None:
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()
    said = (files / "err").read_text()
    assert (
        status == 130 and said.endswith("poe: error: interrupted\n") and "Traceback" not in said
    ), said
    assert (files / "out").read_text() == ""
    assert sorted(os.listdir(files)) == sorted([*OF_FIXTURE, "out", "err"])


def test_every_command_has_help_and_json(capsys):
    for command in COMMANDS:
        status, out, _ = run(capsys, command.name, "--help")
        assert status == 0 and "--json" in out
