from __future__ import annotations

import pytest
import torch

import poe
from poe.draws import first
from tests.poe.targets import Gauss


def test_chains_and_draws_are_the_same_numbers() -> None:
    draws = poe.sample(Gauss(0.0) & Gauss(1.0), 10, chains=4, seed=0)
    assert draws.chains.shape == (4, 3, 2) and draws.x.shape == (10, 2) and len(draws) == 10
    assert torch.equal(draws.x, first(draws.chains, 10))
    assert torch.equal(draws.x[:4], draws.chains[:, 0])
    assert draws.energy.shape == (4, 3)
    assert torch.allclose(draws.energy, (Gauss(0.0) & Gauss(1.0))(draws.chains), atol=1e-5)


def test_the_report_names_expression_method_and_evidence() -> None:
    a, b = Gauss(0.0, name="a"), Gauss(1.0, name="b")
    report = poe.sample(a & b, 1000, seed=0).report()
    for part in ("draws of a & b", "Langevin", "R-hat", "ESS", "acceptance", "log Z", "gradients"):
        assert part in report
    assert "log Z          0.693147 (exact)" in poe.sample(a | b, 100, seed=0).report()


def test_saved_draws_come_back_whole(tmp_path) -> None:
    draws = poe.sample(Gauss(0.0) & Gauss(1.0), 100, seed=0)
    path = tmp_path / "draws.safetensors"
    draws.save(path)
    back = poe.Draws.load(path)
    assert torch.equal(back.x, draws.x) and torch.equal(back.energy, draws.energy)
    assert back.report() == draws.report() and back.warnings == draws.warnings


@pytest.mark.parametrize("d", [1, 2, 4])
def test_pictures_by_dimension(tmp_path, d: int) -> None:
    pytest.importorskip("matplotlib")
    draws = poe.sample(Gauss(0.0, d=d), 100, seed=0)
    draws.plot(tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 1000


def test_a_damaged_file_of_draws_says_so(tmp_path) -> None:
    path = tmp_path / "draws.safetensors"
    poe.sample(Gauss(0.0), 50, seed=0).save(path)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(ValueError, match=r"draws.safetensors cannot be read"):
        poe.Draws.load(path)
    poe.save(poe.create("normal", loc=[0.0], scale=[1.0]), path)
    with pytest.raises(ValueError, match="holds no draws; poe.load reads energies"):
        poe.Draws.load(path)
