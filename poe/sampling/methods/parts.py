"""A mixture whose branches are drawn one by one, each by a plan of its own: no branch has to be
found from another."""

from __future__ import annotations

import torch

from poe.diagnostics.raw import Branch, Raw
from poe.sampling.job import Job, Method, Phase
from poe.smc.resampling import systematic


def draw(job: Job) -> Raw:
    """Draws of a mixture from those of its branches: each has n·share draws but for rounding, which
    is random, and all are shuffled."""
    shares = job.structure.shares
    assert shares is not None and job.branch is not None
    chains, each = job.independent
    total = chains * each
    (generator, *_), device = job.streams(Phase.TUNING), job.energy.device
    logs = torch.tensor([shares], dtype=torch.float64, device=device).log()
    uniform = torch.rand(1, 2, generator=generator, dtype=torch.float64, device=device)
    counts = torch.bincount(systematic(logs, uniform, total)[0], minlength=len(shares)).tolist()
    found = [(n / total, job.branch(index, n)) for index, n in enumerate(counts) if n]
    order = torch.rand(total, generator=generator, dtype=torch.float64, device=device).argsort()
    x = torch.cat([draws.x for _, draws in found])[order].unflatten(0, (chains, each))
    with torch.no_grad():
        energy = job.energy(x)
    return Raw(
        x,
        energy,
        job.draws,
        job.structure.log_z,
        exact=all(draws.exact for _, draws in found),
        partial=any(draws.partial for _, draws in found),
        branches=tuple(
            Branch(share, draws.diagnostics, draws.warnings, draws.conditions)
            for share, draws in found
        ),
    )


PARTS = Method(
    "parts",
    "each part of the mixture by itself, in shares given by their log Z and weights",
    draw,
    lambda structure: (
        "is no mixture of parts whose log Z are known: poe.normalize gives parts that are"
        if structure.shares is None
        else None
    ),
)
