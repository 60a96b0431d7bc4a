"""The public names of `experts`, the modules that hold them, and the entry points say the same."""

from __future__ import annotations

import ast
import importlib.metadata
from pathlib import Path

import experts
from poe import registry


def test_every_name_is_there() -> None:
    assert {getattr(experts, name).__name__ for name in experts.__all__} == set(experts.__all__)
    assert set(experts.__all__) <= set(dir(experts))


def test_type_checkers_see_the_same_table() -> None:
    tree = ast.parse(Path(experts.__file__).read_text())
    seen = {
        alias.name: node.module
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("experts.")
        for alias in node.names
    }
    assert seen == {name: getattr(experts, name).__module__ for name in experts.__all__}


def test_entry_points_name_the_same_classes() -> None:
    """A registered class that is public stands in the module that the entry point names."""
    points = importlib.metadata.entry_points(group="poe.experts")
    named = {p.attr: p for p in points if p.attr in experts.__all__}
    for attribute, point in named.items():
        owner = getattr(experts, attribute)
        assert (owner, owner.__module__) == (point.load(), point.module)
        assert registry.name_of(owner) is not None
    unnamed = set(experts.__all__) - set(named)
    assert unnamed == {"ConceptNetwork", "NoiseSchedule", "Vocabulary", "function"}


def test_no_module_hides_behind_a_name() -> None:
    modules = {path.stem for path in Path(experts.__file__).parent.iterdir()}
    assert modules & set(experts.__all__) == set()
