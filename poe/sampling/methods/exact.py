"""Independent draws: of a closed form, and from the table of all points of a small discrete
space."""

from __future__ import annotations

import time

import torch

from poe.algebra.capabilities import Samples, as_a
from poe.algebra.energy import Estimate
from poe.diagnostics.raw import Raw
from poe.sampling.job import Job, Method, Phase
from poe.spaces.points import MAX_STATES, energies, points
from poe.spaces.structure import Structure, shares

WORDS = "closed form, independent draws"
MIXTURE_WORDS = "exact mixture, ancestral draws"


def words(structure: Structure) -> str:
    """How a closed form draws."""
    return WORDS if shares(structure.closed) is None else MIXTURE_WORDS


def from_closed_form(job: Job) -> Raw:
    """Independent draws of a closed form."""
    started = time.perf_counter()
    (generator, *_), closed = job.streams(Phase.START), job.structure.closed
    exact = as_a(closed, Samples)
    assert exact is not None
    x = exact.sample(job.independent, generator=generator)
    with torch.no_grad():
        energy = closed(x)
    counts = {"seconds": time.perf_counter() - started, "energies": energy.numel()}
    return Raw(x, energy, job.draws, closed.log_z, independent=True, counts=counts)


def from_all_points(job: Job) -> Raw:
    """Independent draws from the table of all points of a small discrete space."""
    started = time.perf_counter()
    target, (generator, *_) = job.energy, job.streams(Phase.START)
    table = energies(target)
    log_z = (-table).logsumexp(0)
    chains, each = job.independent
    index = torch.multinomial(
        (-table - log_z).exp(), max(chains * each, 1), replacement=True, generator=generator
    )[: chains * each]
    x = points(target, index).reshape(chains, -1, *target.event_shape)
    energy = table[index].reshape(chains, -1).to(target.dtype)
    counts = {"seconds": time.perf_counter() - started, "energies": len(table)}
    estimate = Estimate(log_z.item())
    return Raw(x, energy, job.draws, estimate, independent=True, counts=counts)


EXACT = Method(
    "exact",
    WORDS,
    from_closed_form,
    lambda structure: (
        None
        if structure.closed.can(Samples)
        else "has no exact draws: no closed form, or a part that cannot draw"
    ),
)
ENUMERATE = Method(
    "enumerate",
    "all points of a discrete space",
    from_all_points,
    lambda structure: (
        f"cannot be enumerated: its support is not a finite set of at most {MAX_STATES:,} points"
        if structure.states is None
        else None
    ),
)
