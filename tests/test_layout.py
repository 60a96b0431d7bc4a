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
from graphlib import TopologicalSorter
from pathlib import Path

import grimp
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
FOLDERS = (  # from the top down: each imports only those below it, and none beside it
    "cli",
    {"training", "testing"},
    "sampling",
    "smc",
    "mcmc",
    "diagnostics",
    {"kernels", "plotting"},
    {"io", "spaces"},
    "algebra",
    "registry",
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


def graph() -> grimp.ImportGraph:
    """All imports of both packages, those inside functions included."""
    return grimp.build_graph("poe", "experts", cache_dir=None)


def test_no_circle_of_imports() -> None:
    found = graph()
    above = {module: found.find_modules_directly_imported_by(module) for module in found.modules}
    TopologicalSorter(above).prepare()  # a CycleError names the circle


def test_each_folder_imports_only_those_below_it() -> None:
    layers = [grimp.Layer(*w) if isinstance(w, set) else grimp.Layer(w) for w in FOLDERS]
    found = graph()
    assert found.find_illegal_dependencies_for_layers(layers=layers, containers={"poe"}) == set()
    listed = {name for w in FOLDERS for name in (w if isinstance(w, set) else {w})}
    there = {child.split(".")[1] for child in found.find_children("poe")}
    assert there - listed == {"__main__", "capabilities"}  # the two doors


def test_poe_never_imports_experts() -> None:
    assert graph().find_shortest_chains("poe", "experts", as_packages=True) == set()
    guilty = [
        f"{path.relative_to(ROOT)}: {module}"
        for path in sorted((ROOT / "poe").rglob("*.py"))
        for module in imports(path)
        if module.split(".")[0] == "experts"
    ]
    assert guilty == []


def test_experts_import_what_they_may() -> None:
    """Experts use the algebra, spaces and the registry; recipes and readers of chains, training."""
    found = graph()
    allowed = ("poe.algebra", "poe.spaces", "poe.registry", "poe.training", "experts")
    guilty = {
        f"{module} -> {imported}"
        for module in found.modules
        if module.startswith("experts.")
        for imported in found.find_modules_directly_imported_by(module)
        if not imported.startswith(allowed)
    }
    assert guilty == set()


def test_no_file_above_400_lines() -> None:
    files = [path for package in ("poe", "experts") for path in (ROOT / package).rglob("*.py")]
    long = {
        str(p.relative_to(ROOT)): n for p in files if (n := len(p.read_text().splitlines())) > 400
    }
    assert long == {}


def test_no_private_name_crosses_modules() -> None:
    guilty = [
        f"{path.relative_to(ROOT)}: {alias.name}"
        for package in ("poe", "experts")
        for path in sorted((ROOT / package).rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(("poe", "experts"))
        for alias in node.names
        if alias.name.startswith("_") and not alias.name.startswith("__")
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


@pytest.mark.parametrize("group", ["poe.converters", "poe.experts", "poe.zoo"])
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
