"""The doubt of one method is not forgotten by the next."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

import poe
from poe.diagnostics.raw import Raw as RawDraws
from poe.sampling.job import Job
from poe.sampling.methods import METHODS, chains
from poe.sampling.planning import planned
from poe.spaces.structure import Structure
from tests.poe.targets import Raw


def two(x: Tensor) -> Tensor:
    """Two normals of equal mass, 20 standard deviations apart, which chains do not connect."""
    return -torch.logaddexp(-0.5 * (x - 10).square().sum(-1), -0.5 * (x + 10).square().sum(-1))


def particles(x: Tensor, ancestors: int, *reasons: str) -> Callable[[Job], RawDraws]:
    """An annealed method that gives these (population, particle, *event)."""

    def draw(job: Job) -> RawDraws:
        counts = {"ancestors": ancestors, "gradients": 0.0}
        return RawDraws(
            x, job.energy(x), job.draws, populations=True, counts=counts, reasons=reasons
        )

    return draw


def follow(monkeypatch, methods: tuple[str, ...], target: poe.Energy) -> poe.Draws:
    plan = replace(planned(Structure.of(target)), methods=methods)
    monkeypatch.setattr("poe.sampling.sampler.planned", lambda *_, **__: plan)
    return poe.sample(target, 1000, seed=0)


def normals(n: int, generator: torch.Generator) -> Tensor:
    return torch.randn(n, 64, 2, generator=generator)


@pytest.mark.parametrize("both", [False, True])
def test_what_chains_that_disagreed_have_seen_must_be_there(both: bool, monkeypatch) -> None:
    """Annealed particles that have lost one mode, with an even R-hat of their own."""
    x = normals(16, torch.Generator().manual_seed(0)) + 10
    if both:
        x[:, ::2] -= 20
    fake = replace(METHODS["annealed"], draw=particles(x, 900))
    monkeypatch.setitem(METHODS, "annealed", fake)
    draws = follow(monkeypatch, ("chains", "annealed"), Raw(two, name="two"))
    assert "chains disagreed" in draws.method or "chains are slow" in draws.method
    lost = [reason for reason in draws.reasons if reason.startswith("chains spent")]
    assert len(lost) == (0 if both else 1) and draws.trusted == both


@pytest.mark.parametrize("ancestors", [16, 400])
def test_chains_carry_the_ancestors_of_their_particles(ancestors: int, monkeypatch) -> None:
    x = normals(16, torch.Generator().manual_seed(0))
    draw = particles(x, ancestors, "not enough; try another")
    monkeypatch.setitem(METHODS, "annealed", replace(METHODS["annealed"], draw=draw))
    target = Raw(lambda x: 0.5 * x.square().sum(-1), name="normal")
    draws = follow(monkeypatch, ("annealed", "chains"), target)
    few = [reason for reason in draws.reasons if f"with {ancestors} ancestors" in reason]
    assert len(few) == (ancestors < chains.MIN_ANCESTORS * 16)
