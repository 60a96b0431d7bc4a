"""The registry against real package metadata, written into temporary directories."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

import poe
from poe import registry
from poe.algebra.energy import Energy


@pytest.fixture
def table(monkeypatch):
    """The registry as it is, restored afterwards; the entry points are scanned anew."""
    for name in ("_owners", "_names", "_tried", "_converters"):
        monkeypatch.setattr(registry, name, getattr(registry, name).copy())
    registry._declared.cache_clear()
    yield registry
    registry._declared.cache_clear()


@pytest.fixture
def install(tmp_path, monkeypatch, table):
    """Puts a one-module distribution on the path: install(distribution, source, {entry: value},
    requires)."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def add(
        distribution: str, source: str, entries: dict[str, str], requires: tuple[str, ...] = ()
    ) -> None:
        module = distribution.replace("-", "_")
        monkeypatch.delitem(sys.modules, module, raising=False)
        (tmp_path / f"{module}.py").write_text(source)
        info = Path(tmp_path / f"{module}-1.0.dist-info")
        info.mkdir()
        lines = ["Metadata-Version: 2.1", f"Name: {distribution}", "Version: 1.0"]
        lines += [f"Requires-Dist: {line}" for line in requires]
        (info / "METADATA").write_text("\n".join(lines) + "\n")
        points = [f"{name} = {value}" for name, value in entries.items()]
        (info / "entry_points.txt").write_text("\n".join(["[poe.experts]", *points]) + "\n")

    return add


class Bowl(Energy):
    def __init__(self, event_shape=(2,), name=None):
        super().__init__(event_shape, name=name)

    def forward(self, x):
        return x.square().sum(-1) / 2


def test_register_and_create(table):
    table.register("test-bowl")(Bowl)
    assert isinstance(table.create("test-bowl", event_shape=(3,)), Bowl)
    assert table.create("test-bowl", name="soup").name == "soup"  # `name` belongs to the expert
    assert table.name_of(Bowl) == "test-bowl"
    assert table.name_of(Energy) is None
    assert "test-bowl" in table.available()
    assert table.available() == sorted(table.available())


def test_a_factory_registers_too(table):
    table.register("test-bowl-3")(lambda **arguments: Bowl((3,), **arguments))
    assert table.create("test-bowl-3", name="b").event_shape == (3,)


def test_a_duplicate_names_its_first_owner(table):
    table.register("test-bowl")(Bowl)
    table.register("test-bowl")(Bowl)  # the very same object

    with pytest.raises(ValueError, match=rf"'test-bowl' belongs to {Bowl.__module__}\.Bowl"):
        table.register("test-bowl")(type("Other", (Bowl,), {}))
    assert isinstance(table.create("test-bowl"), Bowl)


@pytest.mark.parametrize("name", ["Bowl", "os.system", "", "a b", "-a", "1a", "ä"])
def test_names_have_one_form(table, name):
    with pytest.raises(ValueError, match="lower-case"):
        table.register(name)


def test_an_unknown_name_suggests_near_ones(table):
    table.register("test-bowl")(Bowl)
    with pytest.raises(KeyError) as caught:
        table.create("test-bowls")
    assert "did you mean 'test-bowl'" in str(caught.value)
    with pytest.raises(ValueError, match="available: .*test-bowl"):
        table.create("zzzzzzzz")


def test_an_unknown_name_of_an_extra_gives_the_install_line(table, monkeypatch):
    monkeypatch.setattr(registry, "_extras", lambda distribution: {"flows": {"flowjax", "distrax"}})
    for name in ("flowjax", "flows"):
        with pytest.raises(KeyError) as caught:
            table.create(name)
        assert "pip install 'product-of-experts[flows]'" in str(caught.value)


def test_plugins_by_class_by_factory_and_by_module(install, table):
    source = (
        "import poe.registry\nfrom tests.poe.test_registry import Bowl\n"
        "class Cup(Bowl): pass\n"
        "def wide(): return Cup((9,))\n"
        "@poe.registry.register('test-mug')\nclass Mug(Bowl): pass\n"
    )
    source = source.replace("tests.poe.test_registry", __name__)
    install(
        "crockery",
        source,
        {"test-cup": "crockery:Cup", "test-wide": "crockery:wide", "x": "crockery"},
    )
    assert {"test-cup", "test-wide", "test-mug"} <= set(table.available())
    assert "x" not in table.available()  # a module is not an expert
    assert table.create("test-cup").event_shape == (2,)
    assert table.create("test-wide").event_shape == (9,)
    assert type(table.create("test-mug")).__name__ == "Mug"
    assert table.name_of(type(table.create("test-cup"))) == "test-cup"


def test_nothing_is_imported_before_it_is_asked_for(install, table):
    install("crockery-a", "def cup(): return 'cup'", {"test-cup": "crockery_a:cup"})
    install("crockery-b", "raise RuntimeError('too early')", {"test-mug": "crockery_b:mug"})
    assert table.create("test-cup") == "cup"
    assert "crockery_b" not in sys.modules


def test_a_broken_plugin_warns_and_does_not_crash_the_host(install, table):
    table.register("test-bowl")(Bowl)
    install("cracked-crockery", "1 / 0", {"test-cup": "cracked_crockery:Cup"})
    with pytest.warns(
        poe.PoeWarning, match="'test-cup' of the plug-in 'cracked-crockery'.*ZeroDivisionError"
    ):
        names = table.available()
    assert "test-bowl" in names
    assert "test-cup" not in names
    assert isinstance(table.create("test-bowl"), Bowl)
    with pytest.raises(
        registry.RegistryError, match="cracked-crockery.*ZeroDivisionError"
    ) as caught:
        table.create("test-cup")
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_a_missing_library_surfaces_as_itself(install, table):
    requires = ("torch", "no-such-library>=2; extra == 'kiln'")
    install("crockery", "import no_such_library", {"test-cup": "crockery:Cup"}, requires)
    with pytest.raises(ModuleNotFoundError) as caught:
        table.create("test-cup")
    assert caught.value.name == "no_such_library"
    assert str(caught.value).startswith("No module named 'no_such_library'")
    assert "pip install 'crockery[kiln]'" in str(caught.value)


def test_a_library_missing_at_construction_surfaces_as_itself(install, table):
    install("crockery", "def cup():\n    import no_such_library", {"test-cup": "crockery:cup"})
    with pytest.raises(ModuleNotFoundError, match="no_such_library"):
        table.create("test-cup")


def test_two_plugins_of_one_name_warn(install, table):
    install("crockery-a", "def cup(): return 'a'", {"test-cup": "crockery_a:cup"})
    install("crockery-b", "def cup(): return 'b'", {"test-cup": "crockery_b:cup"})
    with pytest.warns(poe.PoeWarning, match="both offer 'test-cup'"):
        assert table.create("test-cup") in ("a", "b")


def test_unreadable_metadata_warns(table, monkeypatch):
    def fail(group):
        raise OSError("disk on fire")

    monkeypatch.setattr(registry.importlib.metadata, "entry_points", fail)
    table.register("test-bowl")(Bowl)
    with pytest.warns(poe.PoeWarning, match="disk on fire"):
        table.available()


# ---- as_energy


@pytest.fixture
def stand_ins(table, monkeypatch):
    """Experts that only remember what they were given, so that the choice by type shows."""
    for name in ("flow", "distribution", "function"):
        monkeypatch.setitem(
            registry._owners, name, lambda obj, _name=name, **arguments: (_name, obj, arguments)
        )


def test_as_energy_chooses_by_type(stand_ins, table):
    normal, linear = torch.distributions.Normal(0.0, 1.0), torch.nn.Linear(2, 1)
    assert table.as_energy(normal) == ("distribution", normal, {})
    assert table.as_energy(linear, event_shape=(2,)) == ("function", linear, {"event_shape": (2,)})
    assert table.as_energy(abs) == ("function", abs, {})
    bowl = Bowl()
    assert table.as_energy(bowl) is bowl


def test_as_energy_goes_by_name_without_the_library(stand_ins, table):
    class Flow(torch.nn.Module):
        __module__, __qualname__ = "nflows.flows.base", "Flow"

    class Mine(Flow):
        pass

    mine = Mine()
    assert table.as_energy(mine) == ("flow", mine, {})


def test_converters_teach_further_types(table):
    class Grid:
        pass

    path = f"{Grid.__module__}.{Grid.__qualname__}"
    table.converter(path)(lambda grid: ("grid", grid))
    grid = type("Finer", (Grid,), {})()
    assert table.as_energy(grid) == ("grid", grid)
    with pytest.raises(ValueError, match="converted by .* already"):
        table.converter(path)(lambda grid: None)


def test_as_energy_refuses_what_it_cannot_read(table):
    with pytest.raises(TypeError, match=r"builtins\.int.*poe\.converter"):
        table.as_energy(3)
    with pytest.raises(TypeError, match="is a class: pass an instance"):
        table.as_energy(torch.distributions.Normal)
