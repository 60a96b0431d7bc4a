"""log Z by weighted particles: importance sampling from a density and, where that is not enough, annealed importance sampling."""

from __future__ import annotations

import math
import warnings
from typing import Any

import torch
from torch import Tensor

from poe import support as sets
from poe.capabilities import Samples
from poe.diagnostics import pareto_k, weight_ess
from poe.energy import Energy, Estimate, shift
from poe.kernels import Langevin, Tempered
from poe.kernels.tempered import linear_betas
from poe.path import Geometric, Level, StandardNormal
from poe.plan import candidates, sample
from poe.run import run, streams
from poe.transport import Unconstrained


class EstimateWarning(UserWarning):
    """An estimate of log Z whose weights have too heavy a tail for its standard error to be believed."""


def log_z(
    energy: Energy,
    *,
    proposal: Energy | None = None,
    draws: int = 2048,
    steps: int = 100,
    seed: int | None = None,
    progress: bool = False,
) -> Estimate:
    """log of the integral of exp(-E) in nats, with its standard error; exact (error 0) where a closed form gives it.

    With a normalised proposal q that draws samples, Z = E_q[w], w = exp(-E(x)) / q(x). When these weights are too uneven (their ESS is
    below a tenth of the draws, or Pareto k above 0.5), the particles are annealed: along the path of energies (1 - β) E_q + β E

        log w = Σ_k (β_k - β_{k-1}) (E_q - E)(x_{k-1}),     x_k moved by a Langevin step that leaves level β_k invariant,

    whose weight has mean Z as well, whatever the moves (Neal 2001, Statistics and Computing 11). The standard error is that of
    the mean weight by the delta method, sd(w) / (sqrt(n) mean(w)).

    Arguments:
        proposal: a normalised energy with exact draws; by default the expert's own, a samplable part, or a normal fitted to chains.
        draws: particles.
        steps: levels of the annealing.

    Raises:
        TypeError: the proposal cannot draw, or its own log Z is not known.
        ValueError: the energy is improper, or no particle has finite energy.
    Warns:
        EstimateWarning: Pareto k of the final weights is above 0.7.
    """
    if energy.log_z is not None:
        return energy.log_z
    if energy.proper is False:
        raise ValueError(f"{energy} is improper: its Z is infinite or 0")
    if draws < 2 or steps < 1:
        raise ValueError(f"log Z needs at least 2 draws and 1 step, got {draws} and {steps}")
    seed = int(torch.randint(2**62, ()).item()) if seed is None else seed
    target: Energy = energy if sets.is_real(energy.support) else Unconstrained(energy)
    start = _proposal(energy, target, proposal, seed)
    generators = streams(seed, 2, energy.device)
    x = start.sample(draws, generator=generators[0]).to(target._like())  # type: ignore[operator]
    with torch.no_grad():
        weights = _difference(start(x), target(x))
    k, enough = pareto_k(weights), weight_ess(weights) > draws / 10
    if not (k < 0.5 and enough):
        weights = _anneal(start, target, x, steps, generators[1], progress)
        k = pareto_k(weights)
    value = weights.logsumexp(0) - math.log(draws)
    if value == -math.inf:
        raise ValueError(f"no draw of {start} has finite energy under {energy}: give a proposal= whose draws do")
    error = ((weights - value).exp().std() / math.sqrt(draws)).item()
    if k > 0.7:
        message = f"log Z of {energy} rests on few particles (Pareto k {k:.2f} > 0.7): its standard error is too small"
        warnings.warn(f"{message}; give a nearer proposal= or more steps=", EstimateWarning, stacklevel=2)
    known = start.log_z
    assert known is not None
    return Estimate(value.item() + known.value, math.hypot(error, known.standard_error))


def normalize(energy: Energy, *, log_z: Estimate | None = None, **options: Any) -> Energy:
    """The energy shifted so that its log Z is 0; the standard error of the estimate is kept in `log_z`, and shown.

    `log_z` states it where it is known; otherwise it is estimated by `poe.log_z`, which takes the other options.
    """
    estimate = _estimate(energy, **options) if log_z is None else Estimate(*log_z)
    if energy.log_z is not None and log_z is None:
        return shift(energy, estimate.value)
    result = shift(energy, estimate.value, log_z=Estimate(0.0, estimate.standard_error))
    result.name = energy.name
    return result


_estimate = log_z


def _proposal(energy: Energy, target: Energy, proposal: Energy | None, seed: int) -> Energy:
    """A normalised start in the space of the target."""
    if proposal is not None:
        if not proposal.can(Samples) or proposal.log_z is None:
            raise TypeError(f"the proposal {proposal} must draw exact samples and know its log Z; a Density does")
        if proposal.event_shape != energy.event_shape:
            raise ValueError(
                f"the proposal {proposal} has event shape {tuple(proposal.event_shape)}, not {tuple(energy.event_shape)}"
            )
        if isinstance(target, Unconstrained):
            if not sets.covers(energy.support, proposal.support):
                raise ValueError(f"draws of {proposal} may lie outside the support {energy.support!r} of {energy}")
            return target.around(proposal)
        return proposal
    for start in candidates(energy):
        if start.log_z is not None and sets.covers(energy.support, start.support):
            return target.around(start) if isinstance(target, Unconstrained) else start
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the draws only place a normal; the weights below judge it
        chains = sample(energy, 512, method="chains", kernel=Langevin(), chains=32, warmup=200, seed=seed).chains.flatten(0, 1)
    z = target.to_z(chains) if isinstance(target, Unconstrained) else chains
    return StandardNormal(z.mean(0), 1.2 * z.std(0).clamp(min=1e-6))


def _difference(start: Tensor, end: Tensor) -> Tensor:
    """E_start - E_end in double precision; -inf where the end has no mass. A NaN stays, and is refused."""
    weights = start.double() - end.double()
    if bool(weights.isnan().any()):
        raise ValueError(f"{int(weights.isnan().sum())} of {len(weights)} particles have energy NaN; an expert fails there")
    return weights


def _anneal(start: Energy, target: Energy, x: Tensor, steps: int, generator: torch.Generator, progress: bool) -> Tensor:
    """Log weights (n,) of particles carried from the start to the target; a ladder tuned beforehand on other particles."""
    kernel: Tempered = Tempered(start, linear_betas(12), Langevin(), moves=1)
    pilot_start = start.sample(32, generator=generator).to(x)  # type: ignore[operator]
    for _ in range(2):
        pilot = run(
            kernel, target, pilot_start, draws=10, warmup=60, generators=[generator], progress="ladder" if progress else None
        )
        rejection = 1 - pilot.states[0].swapped
        kernel = pilot.kernel.respaced(rejection)  # type: ignore[attr-defined]
    fine = kernel.respaced(1 - torch.ones(len(kernel.betas) - 1).to(x), steps + 1)
    assert isinstance(fine.kernel.step_size, Tensor)
    path = Geometric(start, target)
    pair = path.pair(x)
    weights = torch.zeros(len(x), dtype=torch.float64, device=x.device)
    betas = fine.betas.to(x)
    for level in range(1, steps + 1):
        weights = weights + (betas[level] - betas[level - 1]).double() * _difference(pair.start, pair.end)
        if level == steps:
            break
        scale = None if fine.kernel.scale is None else fine.kernel.scale[level]
        move = fine.kernel.tuned(fine.kernel.step_size[level], scale, fine.kernel.dense)
        here = Level(path, betas[level])
        state = move.walkers(move.init(here, x))
        state, _ = move.step(here, state, move.noise(state, generator))
        x, pair = state.x, path.pair(state.x)
    return weights
