"""The shape of the repository: which package may import which, what an import costs, what is
documented."""

from __future__ import annotations

import ast
import importlib
import importlib.metadata
import inspect
import pkgutil
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

import experts
import poe

ROOT = Path(__file__).parent.parent
HEAVY = (
    "experts",
    "nflows",
    "matplotlib",
    "sklearn",
    "scipy",
    "tensorboard",
    "transformers",
    "zuko",
    "arviz",
)
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def imports(path: Path) -> Iterator[str]:
    """Every module that a file imports, anywhere in its syntax tree, import_module("...")
    included."""
    for node in ast.walk(ast.parse(path.read_text())):
        match node:
            case ast.Import(names=names):
                yield from (alias.name for alias in names)
            case ast.ImportFrom(module=str(module), level=0):
                yield module
            case ast.Call(
                func=ast.Name(id="import_module" | "__import__")
                | ast.Attribute(attr="import_module"),
                args=[ast.Constant(value=str(module)), *_],
            ):
                yield module


def modules() -> list[str]:
    return [
        info.name
        for package in (poe, experts)
        for info in pkgutil.walk_packages(package.__path__, package.__name__ + ".")
        if not info.name.endswith("__main__")
    ]


def test_poe_never_imports_experts() -> None:
    guilty = [
        f"{path.relative_to(ROOT)}: {module}"
        for path in sorted((ROOT / "poe").rglob("*.py"))
        for module in imports(path)
        if module.split(".")[0] == "experts"
    ]
    assert guilty == []


def test_import_walk_sees_every_kind_of_import(tmp_path: Path) -> None:
    source = tmp_path / "guilty.py"
    source.write_text(
        "import experts.flow\ndef f():\n    from experts import flow\n"
        "    importlib.import_module('experts.neural')\n    from . import energy\n"
    )
    assert sorted(imports(source)) == ["experts", "experts.flow", "experts.neural"]


@pytest.mark.parametrize("module", ["poe", "experts"])
def test_import_is_light(module: str) -> None:
    code = f"import sys, {module}; print(*sorted({{m.split('.')[0] for m in sys.modules}}))"
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    heavy = set(HEAVY) - {module}
    assert heavy & set(run.stdout.split()) == set()


def test_public_names_are_documented() -> None:
    bare = [name for name in poe.__all__ if not inspect.getdoc(getattr(poe, name))]
    for name in modules():
        module = importlib.import_module(name)
        if not module.__doc__:
            bare.append(name)
        bare += [
            f"{name}.{key}"
            for key, value in vars(module).items()
            if not key.startswith("_")
            and (inspect.isclass(value) or inspect.isfunction(value))
            and value.__module__ == name
            and not value.__doc__
        ]
    assert bare == []


def test_no_machine_paths() -> None:
    listing = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if listing.returncode != 0:
        pytest.skip("not a git checkout")
    absolute = re.compile(rb"(?<![\w.])/(?:work|farm|root|tmp|home)/[a-z]")
    files = [path for line in listing.stdout.splitlines() if (path := ROOT / line).is_file()]
    guilty = [str(path.relative_to(ROOT)) for path in files if absolute.search(path.read_bytes())]
    assert files
    assert guilty == []


def test_declared_packages_are_all_packages() -> None:
    found = {
        str(path.parent.relative_to(ROOT)).replace("/", ".")
        for package in ("poe", "experts")
        for path in (ROOT / package).rglob("__init__.py")
    }
    assert found == set(PYPROJECT["tool"]["setuptools"]["packages"])


@pytest.mark.parametrize("group", ["poe.experts", "poe.zoo"])
def test_entry_points_load(group: str) -> None:
    for name, value in PYPROJECT["project"]["entry-points"][group].items():
        entry = importlib.metadata.EntryPoint(name, value, group)
        assert entry.load() is not None


def test_the_version_is_one() -> None:
    citation = re.search(r"^version: (\S+)$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)
    assert citation is not None
    assert poe.__version__ == PYPROJECT["project"]["version"] == citation[1]


def test_constraints_pin_every_direct_dependency() -> None:
    pinned = {
        re.split(r"==", line)[0].lower()
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if not line.startswith("#")
    }
    project = PYPROJECT["project"]
    wanted = [
        *project["dependencies"],
        *(d for extra in project["optional-dependencies"].values() for d in extra),
    ]
    names = {re.split(r"[\[<>=]", requirement)[0].lower() for requirement in wanted}
    assert names - {project["name"]} <= pinned
