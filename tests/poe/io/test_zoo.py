"""Pretrained energies by name, of a package that is installed for the test."""

from __future__ import annotations

import pytest

import experts
import poe
from poe import registry
from poe.io import zoo
from poe.io.container import StorageError
from poe.io.storage import load, save


@pytest.fixture
def a_zoo(tmp_path, monkeypatch):
    """A package with one pretrained energy, `birds.owl`, and a package that is broken."""
    (tmp_path / "aviary").mkdir()
    save(experts.Normal([5.0, 5.0], [1.0, 1.0]), tmp_path / "aviary" / "birds.owl.safetensors")
    monkeypatch.syspath_prepend(str(tmp_path))
    points = [registry.EntryPoint("birds", "aviary", "poe.zoo")]
    monkeypatch.setattr(registry, "entry_points", lambda group: points)
    return points


def test_zoo_names_load(a_zoo):
    owl = load("birds.owl")
    assert isinstance(owl, poe.Density)
    assert owl.name == "birds.owl"
    assert zoo.zoo() == ["birds.owl"]
    e = poe.parse("birds.owl & birds.owl ** 2")
    assert str(e) == "birds.owl ** 3"


def test_an_unknown_zoo_name_suggests_near_ones(a_zoo):
    with pytest.raises(
        StorageError, match=r"'birds.ow' is neither a file nor in the zoo; did you mean 'birds.owl'"
    ):
        load("birds.ow")
    with pytest.raises(ValueError, match=r"did you mean 'birds.owl'"):
        poe.parse("birds.owls ** 2")


def test_a_broken_zoo_warns(a_zoo):
    a_zoo.append(registry.EntryPoint("bats", "no_such_package", "poe.zoo"))
    with pytest.warns(poe.PoeWarning, match="no_such_package"):
        assert zoo.zoo() == ["birds.owl"]


def test_a_file_goes_before_the_zoo(a_zoo, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save(experts.Normal([0.0], [1.0], name="a"), "birds.owl")
    assert load("birds.owl").name == "a"
