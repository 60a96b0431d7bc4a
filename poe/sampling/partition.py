"""log Z: exact where a closed form or enumeration knows it, else by importance sampling, else by
annealed particles."""

from __future__ import annotations

import math
import warnings
from typing import Any

import torch
from torch import Tensor

from poe.algebra import support as sets
from poe.algebra.capabilities import Samples
from poe.algebra.checks import energies_of
from poe.algebra.energy import Energy, Estimate
from poe.algebra.errors import ImproperError, ImproperWarning
from poe.algebra.frozen import frozen
from poe.algebra.shifted import shift
from poe.diagnostics.evidence import pareto_k
from poe.io.functions import FUNCTIONS
from poe.mcmc.run import streams
from poe.registry import PoeWarning
from poe.smc.annealing import anneal
from poe.smc.resampling import estimate
from poe.smc.sequential import carry, line, twists
from poe.smc.spread import FEW, dear
from poe.smc.starts import Start, candidates, nearest, pilot, sampler, weigh, within
from poe.spaces.points import energies, enumerable
from poe.spaces.transport import Transported, Unconstrained

DRAWS = 8192  # particles
POPULATIONS = 16  # independent ones, whose spread gives the standard error
UNRESAMPLED = 4  # levels of annealed importance sampling for each that sequential Monte Carlo needs
FINER = 10  # levels of a bracket for each that sequential Monte Carlo needs
METHODS = ("sequential", "importance", "annealed", "ais")


class EstimateWarning(PoeWarning):
    """An estimate of log Z whose weights have too heavy a tail for its standard error to be
    believed."""


def log_z(
    energy: Energy,
    *,
    proposal: Energy | None = None,
    method: str | None = None,
    draws: int | None = None,
    seed: int | None = None,
    progress: bool = False,
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
    (`poe.smc.starts.pilot`); where it comes near enough, `importance` again, with eight times the
    draws. Products with autoregressive factors are followed along their order
    (`poe.smc.sequential`).

    Arguments:
        proposal: a normalised energy with exact draws; by default the expert's own, or the
            samplable part with the evenest weights.
        method: "sequential", "importance", "annealed" or "ais"; by default the first that applies,
            as measured.
        draws: particles in all, 8192 by default; 256 where they go down levels of noise in more
            than 40 dimensions (`poe.smc.diffusion`).

    Raises:
        TypeError: the proposal cannot draw, or its own log Z is not known.
        ValueError: the energy is improper, or no particle has finite energy.
    Warns:
        EstimateWarning: Pareto k of the final weights is above 0.7, or the populations' estimates
            differ by more than their mean.
        ImproperWarning: nobody knows whether the density has finite mass.
    """
    (energy,) = energies_of([energy], "log_z")
    if proposal is not None:
        (proposal,) = energies_of([proposal], "log_z")
    if method is None and energy.log_z is not None:
        return energy.log_z
    if energy.proper is False:
        raise ImproperError(f"{energy} is improper: its Z is infinite or 0")
    if method is not None and method not in METHODS:
        raise ValueError(
            f"method={method!r} is unknown; log Z is estimated by {', '.join(METHODS)}"
        )
    draws = (FEW if dear(energy) else DRAWS) if draws is None else draws
    if draws < 2 * POPULATIONS:
        raise ValueError(f"log Z needs at least {2 * POPULATIONS} draws, got {draws}")
    if sets.is_discrete(energy.support) and method is None and enumerable(energy):
        with frozen(energy):
            return Estimate((-energies(energy)).logsumexp(0).item())
    seed = int(torch.randint(2**62, ()).item()) if seed is None else seed
    with frozen(energy):
        found = _estimated(energy, proposal, method, draws, seed, progress)
    if energy.proper is None:
        note = (
            f"nobody knows whether {energy} has finite mass (proper is unknown); if it has "
            "not, "
            "its log Z means nothing"
        )
        warnings.warn(note, ImproperWarning, stacklevel=2)
    return found


def _estimated(
    energy: Energy,
    proposal: Energy | None,
    method: str | None,
    draws: int,
    seed: int,
    progress: bool,
) -> Estimate:
    target = _moved(energy)
    generators = streams(seed, 3, energy.device)
    if method == "sequential" or (method is None and proposal is None):
        of = line(energy)
        if of is not None:
            twisted = twists(of, generators[0])
            moved = carry(of, POPULATIONS, -(-draws // POPULATIONS), generators[1], twisted=twisted)
            return _checked(energy, estimate(moved.log_ratio))
        if method is not None:
            raise ValueError(
                f"{energy} has no autoregressive factor over discrete values: there is no order to "
                "follow"
            )
    start = _proposal(energy, target, proposal, generators[0])
    if method == "importance" and start is None:
        raise ValueError(
            f"importance sampling of {energy} needs a proposal= that draws: none of its parts does"
        )
    if start is not None and method in (None, "importance"):
        full = weigh(start.density, target, generators[1], draws)
        if method == "importance" or (full.pareto_k <= 0.5 and full.ess >= draws / 10):
            return _importance(energy, full)
    run = pilot(target, None if start is None else start.density, generators[1], progress=progress)
    path = run.schedule.path
    if method is None:  # a start fitted to the target may do without moves
        near = weigh(path.start, path.end, generators[2], 8 * draws)
        if near.pareto_k <= 0.5 and near.ess >= near.log_weights.numel() / 5 and not near.failed:
            return _importance(energy, near)
    schedule = (
        run.schedule.refined(UNRESAMPLED) if method == "ais" else run.schedule
    )  # without resampling weights spread with each level
    population = anneal(
        schedule,
        sampler(path.start, target),
        [POPULATIONS],
        -(-draws // POPULATIONS),
        [generators[2]],
        resample=method != "ais",
        progress=progress,
    )
    if population.nonfinite > population.energy.numel() * schedule.work / 100:
        raise ValueError(
            f"{energy} was NaN or had a NaN gradient at {population.nonfinite} points; an expert "
            "fails there"
        )
    result = _checked(energy, estimate(population.log_ratio))
    if result.standard_error < 0.5 and method != "ais" and population.distinct < 2 * POPULATIONS:
        _warn(
            f"log Z of {energy} rests on populations whose particles all descend from one: its "
            "standard error is too small"
        )
    return _plus(result, path.start.log_z)


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
    target = _moved(energy)
    seed = int(torch.randint(2**62, ()).item()) if seed is None else seed
    generators = streams(seed, 4, energy.device)
    start = _proposal(energy, target, proposal, generators[0])
    if start is None:
        raise ValueError(
            f"a bracket of log Z of {energy} needs a proposal= that draws: none of its parts does"
        )
    schedule = pilot(target, start.density, generators[1]).schedule.refined(FINER)
    path = schedule.path
    forward = anneal(
        schedule, sampler(path.start, target), [draws], 1, [generators[2]], resample=False
    )
    z = x.to(energy._like())
    z = z if target is energy else target.to_z(z)  # type: ignore[operator]
    z = path.end.to_z(z) if isinstance(path.end, Transported) else z
    back = -schedule.back(z, generators[3])
    bounds = (
        Estimate(float(logs.mean()), float(logs.std()) / math.sqrt(len(logs)))
        for logs in (forward.log_ratio, back)
    )
    lower, upper = (_plus(bound, path.start.log_z) for bound in bounds)
    return lower, upper


_estimate = log_z
FUNCTIONS["normalize"] = normalize  # of expressions


def _checked(energy: Energy, result: Estimate) -> Estimate:
    if not result.standard_error < 0.5:
        _warn(
            f"log Z of {energy} rests on few of {POPULATIONS} populations (standard error "
            f"{result.standard_error:.2g})"
        )
    return result


def _moved(energy: Energy) -> Energy:
    """The energy in the space where particles move."""
    as_it_is = sets.is_real(energy.support) or sets.is_discrete(energy.support)
    return energy if as_it_is else Unconstrained(energy)


def _proposal(
    energy: Energy, target: Energy, proposal: Energy | None, generator: torch.Generator
) -> Start | None:
    """A normalised start in the space of the target, weighed: the given one, else the nearest of
    the samplable parts."""
    if proposal is not None:
        if not proposal.can(Samples) or proposal.log_z is None:
            raise TypeError(
                f"the proposal {proposal} must draw exact samples and know its log Z; a Density "
                "does"
            )
        if proposal.event_shape != energy.event_shape:
            raise ValueError(
                f"the proposal {proposal} has event shape {tuple(proposal.event_shape)}, not "
                f"{tuple(energy.event_shape)}"
            )
        density = within(target, proposal)
        if density is None:
            raise ValueError(
                f"draws of {proposal} may lie outside the support {energy.support!r} of {energy}"
            )
        return weigh(density, target, generator)
    return nearest(
        [within(target, start) for start in candidates(energy) if start.log_z is not None],
        target,
        generator,
    )


def _importance(energy: Energy, start: Start) -> Estimate:
    logs, n = start.log_weights, len(start.log_weights)
    failed = start.failed
    if failed:
        raise ValueError(f"{failed} of {n} particles have energy NaN; an expert fails there")
    if not bool((logs > -math.inf).any()):
        raise ValueError(
            f"no draw of {start.density} has finite energy under {energy}: give a proposal= whose "
            "draws do"
        )
    if (k := pareto_k(logs)) > 0.7:
        _warn(
            f"log Z of {energy} rests on few particles (Pareto k {k:.2f} > 0.7): its standard "
            "error is too small"
        )
    return _plus(estimate(logs), start.log_z)


def _plus(ratio: Estimate, known: Estimate | None) -> Estimate:
    assert known is not None
    return Estimate(
        ratio.value + known.value, math.hypot(ratio.standard_error, known.standard_error)
    )


def _warn(message: str) -> None:
    warnings.warn(
        f"{message}; give a nearer proposal= or more draws=", EstimateWarning, stacklevel=3
    )
