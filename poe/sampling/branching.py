"""One branch of a target as a target of its own, and branches that draws of the whole lack."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from poe.algebra.energy import Energy
from poe.diagnostics.draws import Draws
from poe.mcmc.run import branch
from poe.sampling.job import Job, Phase, Space
from poe.smc.flat import Flat
from poe.smc.minima import Minima
from poe.smc.mode_search import search
from poe.smc.starts import in_variables_of, sampler
from poe.spaces.structure import Structure

UNMET_DRAWS = 1.0  # effective draws of a branch, below which it is looked for by itself
# expected draws of a branch, none of which is met with probability .01
MISSED_DRAWS = math.log(100)
MIN_EXPECTED = 0.1  # draws by Laplace's masses, from which a branch is searched by itself
MAX_STEPS = 200  # of each descent
DESCENTS = 32  # from draws of each part, for Laplace's masses


def branch_space(job: Job, index: int) -> Space:
    """The space of one branch, whose search has its part of the starts; beyond the number of
    branches an index stands for the same ones with another seed."""
    shares, known = job.structure.shares, job.structure.branches
    parts = job.energy.parts if shares is not None else [energy for _, energy in known or ()]
    structure, seed = Structure.of(parts[index % len(parts)]), branch(job.space.seed, index)
    # a named method says how branches are mixed, not how each is drawn
    return Space(structure, seed, True, progress=job.progress, share=1 / len(parts))


def unmet(draws: Draws, job: Job) -> Draws:
    """The draws with a reason for each branch of the target that they lack, by its own log Z.

    Of the draws x, branch k has the share Σ w_k exp(-E_k(x)) / Σ_j w_j exp(-E_j(x)) / n. Of one
    that has less than one effective draw Laplace's masses at a few minima say whether draws of it
    can be expected; if so, it is searched by itself, with the least number of starts, and more
    draws than are missed by chance must be expected by the lower bound of log Z, from the weights
    of the mixture that is fitted there."""
    known, log_z = job.structure.branches, draws.log_z
    if known is None or len(known) < 2 or job.structure.shares is not None or log_z is None:
        return draws
    with torch.no_grad():
        logs = torch.stack([weight - energy(draws.x).double() for weight, energy in known])
    size = min(draws.diagnostics.ess_bulk, float(len(draws)))
    few = (logs.softmax(0).mean(1) * size < UNMET_DRAWS).nonzero().flatten().tolist()
    for index in few:
        weight, energy = known[index]
        unit = math.log(size) + weight - log_z.value
        expected = _expected(branch_space(job, index), unit)
        if expected > MISSED_DRAWS:
            draws = draws.warned(
                f"the branch {energy} has no draws, and its own log Z lets expect {expected:.0f}: "
                'it has been missed; try poe.sample(..., method="parts")'
            )
    return draws


def _expected(space: Space, unit: float) -> float:
    """exp(unit) times the lower bound of Z of a branch; 0 where it finds none, or Laplace's masses
    let expect hardly a draw."""
    moved = [in_variables_of(space.target, part) for part in space.structure.scouts]
    densities = [part for part in moved if part is not None]
    if not space.reached or unit + _laplace(space, densities) < math.log(MIN_EXPECTED):
        return 0.0
    start = search(
        space.target,
        densities,
        space.phase(Phase.SEARCH),
        share=0.0,
        progress=space.progress,
    ).start
    low = -math.inf if start is None or start.log_z is None else start.interval[0]
    return math.exp(min(unit + low, 700.0))


def _laplace(space: Space, densities: Sequence[Energy]) -> float:
    """log of the sum of Laplace's masses at the minima that a few descents find."""
    flat, generator = Flat(space.target, space.progress), space.phase(Phase.START)
    drawn = [sampler(density, space.target)(DESCENTS, generator) for density in densities]
    wide = torch.randn(DESCENTS, flat.d, generator=generator, device=generator.device)
    x = torch.cat([wide, *(points.reshape(-1, flat.d).to(wide) for points in drawn)]).double()
    minima = Minima(flat.measured(x[:8]))
    minima.max_gradients = float(MAX_STEPS * len(x))
    minima.descend(x, x.new_full((len(x),), math.sqrt(flat.d)))
    masses = torch.tensor([-math.inf, *(minimum.log_mass for minimum in minima.found)])
    return float(masses.logsumexp(0))
