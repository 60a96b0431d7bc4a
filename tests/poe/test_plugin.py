"""A stranger's package, installed with pip: its expert is composed by name and obeys the laws."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import poe

FILES = {
    "pyproject.toml": """
        [build-system]
        requires = ["setuptools"]
        build-backend = "setuptools.build_meta"

        [project]
        name = "strangers-lattice"
        version = "1.0"

        [project.entry-points."poe.experts"]
        lattice = "strangers_lattice:Lattice"
        cracked = "strangers_cracked:Cracked"

        [tool.setuptools]
        py-modules = ["strangers_lattice", "strangers_cracked"]
    """,
    "strangers_cracked.py": """
        import a_library_that_nobody_has
    """,
    "strangers_lattice.py": '''
        import torch
        from poe import Density

        class Lattice(Density):
            """The Laplace density exp(-|x| / scale) / (2 scale) on R^n."""

            def __init__(self, scale: float = 1.0, size: int = 2):
                super().__init__((size,))
                self.scale = scale

            def log_prob(self, x):
                return torch.distributions.Laplace(0.0, self.scale).log_prob(x).sum(-1)

            def sample(self, n, *, generator=None):
                shape = (n,) if isinstance(n, int) else tuple(n)
                u = torch.rand((*shape, *self.event_shape), generator=generator)
                u = u.clamp(1e-7, 1 - 1e-7) - 0.5
                return -self.scale * u.sign() * (1 - 2 * u.abs()).log()

            def config(self):
                return {"scale": self.scale, "size": self.event_shape[0]}
    ''',
}

USE = """
    import warnings
    import torch
    import poe
    from poe.io.storage import load, save
    from poe.testing import check_expert

    a, b = poe.create("lattice"), poe.create("lattice", scale=2.0)
    x = torch.randn(7, 2)
    target = a & b ** 0.5
    assert torch.allclose(target(x), a(x) + 0.5 * b(x))
    save(target, "target.safetensors")
    assert torch.equal(load("target.safetensors")(x), target(x))
    report = check_expert(lambda: poe.create("lattice", size=1))
    assert "save and load" in report.checked and "draws match the density" in report.checked
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert "lattice" in poe.available()
    assert any("strangers-lattice" in str(w.message) for w in caught), caught
    try:
        poe.create("cracked")
    except ModuleNotFoundError as error:
        assert error.name == "a_library_that_nobody_has"
    else:
        raise AssertionError("a missing library must surface")
    print("composed", target)
"""


def dedent(text: str) -> str:
    lines = text.strip("\n").splitlines()
    indent = len(lines[0]) - len(lines[0].lstrip())
    return "\n".join(line[indent:] for line in lines) + "\n"


def test_a_strangers_plugin(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "site"
    source.mkdir()
    for name, text in FILES.items():
        (source / name).write_text(dedent(text))
    pip = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        "--no-deps",
    ]
    pip += ["--no-index", "--no-build-isolation", "--target", str(target), str(source)]
    built = subprocess.run(pip, capture_output=True, text=True)
    if "No module named pip" in built.stderr:
        pytest.skip("this environment has no pip")
    assert built.returncode == 0, built.stderr
    root = str(Path(poe.__file__).parent.parent)
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(target), root]),
        "OMP_NUM_THREADS": "1",
    }
    used = subprocess.run(
        [sys.executable, "-c", dedent(USE)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert used.returncode == 0, used.stderr
    assert used.stdout == "composed lattice & lattice_2 ** 0.5\n"
