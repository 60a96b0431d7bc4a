from __future__ import annotations

import pytest

import experts
import poe
from poe.kernels import Langevin
from tests.poe.targets import Gauss, Raw


def test_structure_decides_the_method() -> None:
    a, b = Gauss(0.0, name="a"), Gauss(1.0, name="b")
    assert poe.plan(a | b).method == "exact"
    assert poe.plan(a & b).methods == ("importance", "annealed", "chains", "tempered")
    assert poe.plan(Raw(a)).methods == ("importance", "annealed", "chains", "tempered")
    with_branches = poe.plan(Raw(a) & (a | Raw(b))).methods
    assert with_branches == ("importance", "parts", "annealed", "chains", "tempered")
    assert poe.plan(a | b, kernel=Langevin()).methods == ("chains", "tempered")
    assert poe.plan(a & b, method="annealed").methods == ("annealed",)
    assert "starts from a, b" in str(poe.plan(a & b)) and "then annealed" in str(poe.plan(a & b))
    with pytest.raises(ValueError, match="nothing to resample"):
        poe.plan(Raw(a), method="importance")
    with pytest.raises(ValueError, match="a & b has no exact draws"):
        poe.plan(a & b, method="exact")
    with pytest.raises(
        ValueError,
        match=(
            "the methods are exact, enumerate, parts, sequential, importance, annealed, chains, "
            "tempered"
        ),
    ):
        poe.plan(a, method="gibs")


def test_kernels_are_used_or_refused() -> None:
    ising = experts.Ising((3, 3), 0.2)
    assert "Gibbs" in poe.sample(ising, 100, kernel=poe.Gibbs(), seed=0).method
    for method in ("enumerate", "importance", "sequential", "parts"):
        with pytest.raises(ValueError, match="uses no kernel"):
            poe.plan(ising, method=method, kernel=poe.Gibbs())
