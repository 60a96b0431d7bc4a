"""What every method keeps: a new one is one line in the table."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch.distributions import constraints

import experts
import poe
from poe.diagnostics.raw import Raw, evidence_of
from poe.sampling.estimation import Estimation
from poe.sampling.job import Job, MethodNotApplicable, Phase, Space
from poe.sampling.log_partition import ESTIMATORS
from poe.sampling.methods import METHODS
from poe.spaces.structure import Structure
from tests.poe.targets import Gauss
from tests.poe.targets import Raw as RawEnergy

A, B = Gauss(0.0, name="a"), Gauss(1.0, name="b")
BLACK_BOX = RawEnergy(A, name="box")


class Counts(poe.Energy):
    """A Poisson law whose values are not finitely many, and that does not draw."""

    def __init__(self) -> None:
        super().__init__((1,), support=constraints.independent(constraints.nonnegative_integer, 1))

    def forward(self, x):
        return (torch.lgamma(x + 1.0) - x).sum(-1)


def language() -> poe.Energy:
    torch.manual_seed(0)
    return poe.create("discrete-made", event_shape=[6])


def stated() -> poe.Energy:
    """A mixture whose parts have known log Z, of which one does not draw."""
    known = poe.normalize(BLACK_BOX, log_z=poe.Estimate(0.0))
    return poe.mixture([B, known], weights=[0.3, 0.7])


# a target that the method draws, one that it refuses, and what it then says
TABLE: dict[str, tuple[Callable[[], poe.Energy], Callable[[], poe.Energy], str]] = {
    "exact": (lambda: A | B, lambda: A & BLACK_BOX, "has no exact draws: no closed form"),
    "enumerate": (lambda: experts.Ising((2, 2), 0.3), lambda: A, "cannot be enumerated"),
    "parts": (stated, lambda: A & B, "is no mixture of parts whose log Z"),
    "sequential": (
        lambda: language() & experts.Bernoulli(torch.full((6,), 0.6)),
        lambda: A,
        "has no autoregressive factor over discrete values",
    ),
    "importance": (lambda: A & B, lambda: BLACK_BOX, "has no part that draws samples"),
    "annealed": (lambda: BLACK_BOX, Counts, "a finite number of values a coordinate"),
    "chains": (lambda: A & B, Counts, "a finite number of values a coordinate"),
    "tempered": (lambda: A & B, Counts, "a finite number of values a coordinate"),
}
NAMES = sorted(TABLE)


def job(energy: poe.Energy, draws: int = 40, seed: int = 0, shards: int = 1) -> Job:
    def branch(index: int, n: int) -> poe.Draws:
        return poe.sample(energy.parts[index], n, seed=seed + index)

    space = Space(Structure.of(energy), seed)
    return Job(space=space, draws=draws, shards=shards, forced=True, branch=branch)


def test_every_method_is_in_the_table() -> None:
    assert list(METHODS) == [
        "exact",
        "enumerate",
        "parts",
        "sequential",
        "importance",
        "annealed",
        "chains",
        "tempered",
    ]
    assert sorted(METHODS) == NAMES and all(METHODS[name].name == name for name in METHODS)
    assert sorted(ESTIMATORS) == ["ais", "annealed", "importance", "parts", "sequential"]


@pytest.mark.parametrize("name", NAMES)
def test_a_method_says_in_words_why_it_does_not_apply(name: str) -> None:
    good, bad, words = TABLE[name]
    assert METHODS[name].applies(Structure.of(good())) is None
    energy = bad()
    why = METHODS[name].applies(Structure.of(energy))
    assert why is not None and words in why
    with pytest.raises(ValueError, match=re.escape(f"{energy} {why}")):
        poe.plan(energy, method=name)


@pytest.mark.parametrize("name", NAMES)
def test_a_method_returns_points_that_replay_bit_for_bit(name: str) -> None:
    energy, method = TABLE[name][0](), METHODS[name]
    raw, again, other = (method.draw(job(energy, seed=seed)) for seed in (0, 0, 1))
    assert isinstance(raw, Raw) and raw.draws == 40
    assert raw.x.shape[2:] == energy.event_shape and raw.energy.shape == raw.x.shape[:2]
    assert torch.equal(raw.x, again.x) and torch.equal(raw.energy, again.energy)
    assert raw.log_z == again.log_z and not torch.equal(raw.x, other.x)
    assert len(raw.first) == 40 and len(raw.x[:, raw.kept].flatten(0, 1)) >= 40
    with torch.no_grad():
        assert torch.allclose(raw.energy.double(), energy(raw.x).double(), atol=1e-3)
    assert evidence_of(raw, Structure.of(energy)).invalid == 0


@pytest.mark.parametrize("name", NAMES)
def test_draws_of_a_method_are_those_of_sample(name: str) -> None:
    energy = TABLE[name][0]()
    draws = poe.sample(energy, 40, method=name, seed=0)
    assert draws.plan == str(poe.plan(energy, method=name))
    assert draws.expression == str(energy) and draws.target is energy
    if name != "parts":  # whose branches have seeds of their own
        assert torch.equal(draws.x, METHODS[name].draw(job(energy)).first)


@pytest.mark.parametrize("name", sorted(ESTIMATORS))
def test_estimates_of_log_z_replay(name: str) -> None:
    energy = BLACK_BOX | B if name == "parts" else TABLE.get(name, TABLE["importance"])[0]()

    def estimate(seed: int) -> poe.Estimate | None:
        if name == "parts":  # whose branches are estimated by the methods of `poe.log_z`
            return poe.log_z(energy, method=name, draws=512, seed=seed)
        structure = Structure.of(energy)
        return ESTIMATORS[name](Estimation(structure, seed, particles=512, forced=True))

    first, again, other = estimate(0), estimate(0), estimate(1)
    assert first is not None and first == again and first != other
    known = energy.log_z
    if known is not None:
        error = math.hypot(first.standard_error, known.standard_error)
        assert abs(first.value - known.value) < 5 * error + 1e-6


def test_what_was_measured_and_does_not_do_is_said_unless_forced() -> None:
    far = Gauss(-30.0, 0.1) & Gauss(30.0, 0.1)
    unforced = replace(job(far), forced=False)
    with pytest.raises(MethodNotApplicable, match="too uneven|no part draws") as no:
        METHODS["importance"].draw(unforced)
    assert no.value.cost.energies >= 0


def test_each_phase_has_streams_of_its_own() -> None:
    """The numbers are part of what a seed means."""
    assert [(phase.name, phase.value) for phase in Phase] == [
        ("START", 0),
        ("POPULATIONS", 1),
        ("TUNING", 2),
        ("CHAINS", 3),
        ("CHAIN_STARTS", 4),
        ("FITTED_START", 5),
        ("AGREEMENT", 6),
        ("SEARCH", 7),
        ("NARROW_END", 8),
        ("REACHED", 9),
    ]
    work = job(A, shards=3)
    states = [stream.get_state() for phase in Phase for stream in work.streams(phase)[:3]]
    assert len({bytes(state.numpy().tobytes()) for state in states}) == 3 * len(Phase)


def test_structure_is_worked_out_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """One closed form of the target for each call."""
    from poe.spaces import structure

    seen: list[poe.Energy] = []
    monkeypatch.setattr(
        structure, "simplify", lambda energy: (seen.append(energy), poe.simplify(energy))[1]
    )
    for target in (A & B, A | B, A - B, BLACK_BOX):
        poe.sample(target, 20, seed=0, method=None if target is not BLACK_BOX else "chains")
        assert seen == [target]
        seen.clear()
