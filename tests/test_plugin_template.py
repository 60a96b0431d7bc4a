"""The plug-in to copy, built with pip into a folder of its own: its tests pass there, and its
README's code runs."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PLUGIN = ROOT / "examples" / "plugin"


@pytest.mark.slow
def test_the_template_builds_and_passes_its_tests(tmp_path: Path) -> None:
    pytest.importorskip("pocketsphinx")
    source, site = tmp_path / "source", tmp_path / "site"
    shutil.copytree(
        PLUGIN, source, ignore=shutil.ignore_patterns("build", "*.egg-info", "__pycache__")
    )
    pip = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        "--no-deps",
    ]
    built = subprocess.run(
        [*pip, "--no-index", "--no-build-isolation", "--target", str(site), str(source)],
        capture_output=True,
        text=True,
    )
    if "No module named pip" in built.stderr:
        pytest.skip("this environment has no pip")
    assert built.returncode == 0, built.stderr
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(site), str(ROOT)]),
        "OMP_NUM_THREADS": "1",
    }
    code = re.search(
        r"^```python\n(.*?)^```$", (PLUGIN / "README.md").read_text(), re.MULTILINE | re.DOTALL
    )
    assert code is not None
    pytest_ = [
        "-m",
        "pytest",
        "-q",
        "-W",
        "error",
        "-p",
        "no:cacheprovider",
        "--rootdir",
        str(source),
        str(source / "tests"),
    ]
    for arguments in (pytest_, ["-W", "error", "-c", code[1]]):
        run = subprocess.run(
            [sys.executable, *arguments],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert run.returncode == 0, run.stdout + run.stderr
    assert len(run.stdout.splitlines()) == 5 and all(
        len(line.split()) >= 7 for line in run.stdout.splitlines()
    )
