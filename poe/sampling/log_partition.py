"""log Z: exact where a closed form or enumeration gives it, else by importance sampling, else by
annealed particles."""

from __future__ import annotations

import math
import warnings
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from poe.algebra.checks import energies_of
from poe.algebra.energy import Energy, Estimate, first_tensor
from poe.algebra.errors import ImproperWarning
from poe.algebra.frozen import frozen
from poe.algebra.shifted import shift
from poe.diagnostics.verdict import unknown_mass
from poe.io.functions import FUNCTIONS
from poe.mcmc.progress import Progress, Stopped
from poe.mcmc.run import branch
from poe.sampling.arguments import check_limit, refuse_improper
from poe.sampling.estimation import POPULATIONS, EstimatePhase, EstimateWarning, Estimation, total
from poe.sampling.methods import METHODS
from poe.sampling.methods.annealed import ais
from poe.smc.noise_path import MAX_EXPENSIVE_PARTICLES, expensive
from poe.smc.population import anneal
from poe.smc.search import find_schedule
from poe.smc.starts import sampler
from poe.spaces.points import energies
from poe.spaces.structure import Structure
from poe.spaces.transport import Transported

PARTICLES = 8192
BRACKET_REFINEMENT = 10  # levels of a bracket for each that sequential Monte Carlo needs
ESTIMATORS = {name: method.log_z for name, method in METHODS.items() if method.log_z} | {"ais": ais}


def log_z(
    energy: Energy,
    *,
    proposal: Energy | None = None,
    method: str | None = None,
    draws: int | None = None,
    seed: int | None = None,
    progress: bool | None = None,
    max_gradients: int | None = None,
) -> Estimate:
    """log of the integral (or sum) of exp(-E) in nats, with its standard error; exact (error 0)
    where a closed form or a small discrete space gives it, unless a `method` is named.

    With a normalised proposal q that draws samples, Z = E_q[w], w = exp(-E(x)) / q(x):
    `importance`, chosen when the weights' ESS is at least a tenth of the draws and Pareto k at most
    0.5. Otherwise `annealed`: sequential Monte Carlo from the proposal to the energy (see
    `poe.smc`), its levels tuned by a pilot and then frozen, so that each of 16 independent
    populations has mean Z; the standard error is that of their mean, by the delta method. `ais` is
    the same without resampling, on four times as many levels. On discrete spaces both start from
    independent sites, at the base rates that a pilot finds (Salakhutdinov and Murray 2008).
    Elsewhere, without any proposal, a start is sought by chains and fitted to particles
    (`poe.smc.search.find_schedule`); where it comes near enough, `importance` again, with eight
    times the draws. Products with autoregressive factors are followed along their order
    (`poe.smc.sequential`).

    Arguments:
        proposal: a normalised energy with exact draws; by default the expert's own, or the
            samplable part with the evenest weights.
        method: "parts", "sequential", "importance", "annealed" or "ais"; by default the first that
            applies, as measured.
        draws: particles in all, 8192 by default; 256 where they go down levels of noise in more
            than 40 dimensions (`poe.smc.diffusion`).

        progress: whether to show a bar on standard error; by default on a terminal, once the call
            has taken two seconds.
        max_gradients: evaluations of gradients and energies, of all phases, that the call may take.
            One that would take more, or is interrupted (Ctrl-C), returns the estimate that is
            there, with a warning.

    Raises:
        TypeError: the proposal cannot draw, or its own log Z is not known.
        ValueError: the energy is improper, or no particle has finite energy.
    Warns:
        EstimateWarning: Pareto k of the final weights is above 0.7, or the populations' estimates
            differ by more than their mean; or the call ended early.
        ImproperWarning: it is unknown whether the density has finite mass.
    """
    (energy,) = energies_of([energy], "log_z")
    if proposal is not None:
        (proposal,) = energies_of([proposal], "log_z")
    structure = Structure.of(energy)
    if method is None and structure.log_z is not None:
        return structure.log_z
    refuse_improper(structure)
    limit = check_limit(max_gradients)
    if method is not None and method not in ESTIMATORS:
        raise ValueError(
            f"method={method!r} is unknown; log Z is estimated by {', '.join(ESTIMATORS)}"
        )
    particles = (
        (MAX_EXPENSIVE_PARTICLES if expensive(energy) else PARTICLES) if draws is None else draws
    )
    if particles < 2 * POPULATIONS:
        raise ValueError(f"log Z needs at least {2 * POPULATIONS} draws, got {particles}")
    seed = int(torch.randint(2**62, ()).item()) if seed is None else seed
    with frozen(energy):
        job = Estimation(
            structure,
            seed,
            searches=method is None and proposal is None,
            particles=particles,
            proposal=proposal,
            progress=Progress(progress, limit),
            forced=method is not None,
        )
        try:
            found = estimated(job, method)
        except (KeyboardInterrupt, Stopped) as end:
            found = _so_far(job, end)
    if structure.proper is None:
        note = unknown_mass(energy, "its log Z means")
        warnings.warn(note, ImproperWarning, stacklevel=2)
    return found


def estimated(job: Estimation, method: str | None = None) -> Estimate:
    """The estimate of a named method, else what is known exactly, else that of the first method
    that gives one."""
    structure = job.structure
    if method is None and structure.log_z is not None:
        return structure.log_z
    if method is None and structure.states:
        return Estimate((-energies(job.energy)).logsumexp(0).item())
    return _first(replace(job, branch=lambda index: _branch(job, index)), method)


def _branch(job: Estimation, index: int) -> Estimate | None:
    """log Z of one branch of the target, by methods of its own."""
    known = job.structure.branches
    assert known is not None
    structure = Structure.of(known[index][1])
    refuse_improper(structure)
    one = replace(job, structure=structure, seed=branch(job.seed, index), forced=False)
    one = replace(one, searches=job.searches or job.forced)
    known, job.progress.log_z = job.progress.log_z, None
    found = estimated(one) if one.reached else None
    job.progress.log_z = known  # that of a branch is not that of the whole
    return found


def _first(job: Estimation, method: str | None) -> Estimate:
    """The estimate of a named method, else of the first one that gives one."""
    names = ["importance", "annealed"] if method is None else [method]
    parted = job.structure.branches is not None and not expensive(job.energy)
    if method is None and job.proposal is None and parted:
        names = ["importance", "parts", "annealed"]
    if method is None and job.proposal is None and job.structure.autoregressive:
        names = ["sequential"]
    for name in names:
        if name == "sequential" and (why := METHODS[name].applies(job.structure)) is not None:
            raise ValueError(f"{job.energy} {why}")
        found = ESTIMATORS[name](job)
        if found is not None:
            return found
    raise AssertionError("annealing gives an estimate")


def _so_far(job: Estimation, end: BaseException) -> Estimate:
    """The estimate that a call has when it ends early. Raises the error again where there is
    none."""
    found = job.progress.log_z
    if found is None and isinstance(end, Stopped):
        raise ValueError(
            f"{end}: there is no estimate of log Z of {job.energy} yet; try a larger max_gradients="
        ) from end
    job.progress.end(end, nothing=found is None)
    assert found is not None
    note = "from the weights of a start that the phases before reached"
    warnings.warn(job.progress.reason(note), EstimateWarning, stacklevel=3)
    return found


def normalize(energy: Energy, *, log_z: Estimate | None = None, **options: Any) -> Energy:
    """The energy shifted so that its log Z is 0; the standard error of the estimate is kept in
    `log_z`, and shown.

    `log_z` states it where it is known; otherwise it is estimated by `poe.log_z`, which takes the
    other options.
    """
    (energy,) = energies_of([energy], "normalize")
    pair = (
        isinstance(log_z, (tuple, list))
        and len(log_z) == 2
        and all(isinstance(n, (int, float)) for n in log_z)
    )
    if log_z is not None and not (pair and 0 <= log_z[1] < math.inf):
        raise ValueError(
            f"log_z is a number and its standard error, poe.Estimate(0.0, 0.1), not {log_z!r}"
        )
    known = _estimate(energy, **options) if log_z is None else Estimate(*log_z)
    if energy.log_z is not None and log_z is None:
        return shift(energy, known.value)
    return shift(energy, known.value, log_z=Estimate(0.0, known.standard_error))


def bracket(
    energy: Energy,
    x: Tensor,
    *,
    proposal: Energy | None = None,
    draws: int = 1024,
    seed: int | None = None,
) -> tuple[Estimate, Estimate]:
    # x (n, *event)
    """(lower, upper): bounds of log Z in expectation, by annealing from a proposal to the energy
    and, from exact draws x of it, back.

    Of weights whose mean is Z the mean logarithm lies below log Z (Jensen); of weights whose mean
    is 1/Z, above. Each comes with the standard error of its mean. The gap bounds the error of
    either, as long as x are exact draws.
    Raises ValueError where no start that draws is known: give proposal=.
    """
    seed = int(torch.randint(2**62, ()).item()) if seed is None else seed
    job = Estimation(Structure.of(energy), seed, particles=draws, proposal=proposal)
    target, generators = job.target, job.streams
    if job.start is None:
        raise ValueError(
            f"a bracket of log Z of {energy} needs a proposal= that draws: none of its parts does"
        )
    tuned = find_schedule(target, job.start.density, generators[EstimatePhase.TUNING])
    schedule = tuned.schedule.refined(BRACKET_REFINEMENT)
    path, stream = schedule.path, generators[EstimatePhase.POPULATIONS]
    start = sampler(path.start, target)
    forward = anneal(schedule, start, [draws], 1, [stream], resample=False)
    z = job.z(x.to(first_tensor(energy)))
    z = path.end.to_z(z) if isinstance(path.end, Transported) else z
    back = -schedule.back(z, generators[EstimatePhase.REVERSE])
    bounds = (
        Estimate(float(logs.mean()), float(logs.std()) / math.sqrt(len(logs)))
        for logs in (forward.log_ratio, back)
    )
    lower, upper = (total(bound, path.start.log_z) for bound in bounds)
    assert lower is not None and upper is not None
    return lower, upper


_estimate = log_z
FUNCTIONS["normalize"] = normalize  # of expressions
