"""The ways of drawing, each a function of a job: exact, enumeration, importance resampling,
annealed particles."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from poe.algebra import support as sets
from poe.algebra.energy import Energy, Estimate
from poe.diagnostics.draws import Draws, first
from poe.diagnostics.evidence import Diagnostics, diagnose, judge, pareto_smoothed
from poe.diagnostics.stein import stein_test
from poe.io.records import Codec
from poe.kernels import Kernel
from poe.mcmc import parallel
from poe.mcmc.checkpoint import Checkpoint
from poe.mcmc.run import streams
from poe.smc.annealing import StalledError, anneal
from poe.smc.diffusion import Noised
from poe.smc.discrete import visible
from poe.smc.gaussians import Gaussians
from poe.smc.resampling import curve, estimate, systematic
from poe.smc.sequential import Particles, carry, line, twists
from poe.smc.spread import FEW, GROUPS, dear
from poe.smc.starts import CANDIDATES, Start, nearest, pilot, sampler, weigh, within
from poe.spaces.path import take
from poe.spaces.points import energies, points
from poe.spaces.transport import Unconstrained

POPULATIONS = 16  # independent ones, unless `chains` says otherwise
PARTICLES = 1024  # over all populations, at the least
MOST_WEIGHED = 64 * CANDIDATES  # draws of a start that importance resampling may take
HEAVY = 0.5  # Pareto k from which on importance weights are not resampled
UNEVEN = 1 / 50  # share of effective draws below which they are not
NEAR = 1 / 5  # share from which on those of a fitted start need no moves
FEWEST = 256  # particles of a population that goes along an ordering
OVER = 4  # effective draws that are weighed for each one that is kept


class NotThisWay(Exception):
    """The method does not apply to this target, as was measured: why, and the gradients and
    energies that this took."""

    def __init__(self, why: str, gradients: float = 0.0, energies: float = 0.0) -> None:
        super().__init__(why)
        self.gradients, self.energies = gradients, energies


@dataclass(frozen=True)
class Job:
    """What is to be drawn: the target, the densities it may start from, and the arguments of
    `poe.sample`."""

    energy: Energy
    starts: tuple[Energy, ...]
    kernel: Kernel | None
    draws: int
    chains: int | None
    warmup: int | None
    thin: int
    init: Tensor | None
    seed: int
    progress: bool
    shards: int
    compile: bool
    checkpoint: Checkpoint | None = None
    found: Draws | None = (
        None  # what annealed particles found, where that was not enough: chains start there
    )

    @property
    def discrete(self) -> bool:
        """Whether points are isolated."""
        return sets.is_discrete(self.energy.support)

    @cached_property
    def space(self) -> Unconstrained | None:
        """The unconstrained space, where the support is not all of R^n."""
        moves_as_it_is = sets.is_real(self.energy.support) or self.discrete
        return None if moves_as_it_is else Unconstrained(self.energy)

    @property
    def target(self) -> Energy:
        """The energy in the space where methods work."""
        return self.energy if self.space is None else self.space

    def x(self, z: Tensor) -> Tensor:
        """Points of the event from points of that space."""
        return z if self.space is None else self.space.to_x(z)

    def streams(self, phase: int) -> list[torch.Generator]:
        """One random stream for each shard, others for each phase of the work."""
        return streams(self.seed, (phase + 1) * self.shards, self.energy.device)[
            phase * self.shards :
        ]

    @cached_property
    def start(self) -> Start | None:
        """The start nearest to the target (`poe.smc.starts.nearest`); None where none has any
        effective draw."""
        (generator, *_) = self.streams(0)
        return nearest(
            [within(self.target, start) for start in self.starts], self.target, generator
        )

    @property
    def weighed(self) -> int:
        """Energies evaluated to find the start."""
        return CANDIDATES * len(self.starts)


def exact(job: Job) -> Draws:
    """Independent draws of a closed form."""
    started = time.perf_counter()
    (generator, *_) = job.streams(0)
    chains = job.chains or min(4, max(1, job.draws))
    x = job.energy.sample((chains, -(-job.draws // chains)), generator=generator)  # type: ignore[operator]
    with torch.no_grad():
        energy = job.energy(x)
    evidence = diagnose(
        x,
        energy,
        len(job.energy.event_shape),
        discrete=job.discrete,
        seconds=time.perf_counter() - started,
        energies=energy.numel(),
        independent=True,
    )
    return Draws(first(x, job.draws), x, energy, job.energy.log_z, evidence, "", "")


def enumerate_all(job: Job) -> Draws:
    """Independent draws from the table of all points of a small discrete space."""
    started = time.perf_counter()
    target = job.energy
    (generator, *_) = job.streams(0)
    energy = energies(target)
    log_z = (-energy).logsumexp(0)
    chains = job.chains or min(4, max(1, job.draws))
    count = chains * -(-job.draws // chains)
    index = torch.multinomial(
        (-energy - log_z).exp(), max(count, 1), replacement=True, generator=generator
    )[:count]
    x = points(target, index).reshape(chains, -1, *target.event_shape)
    values = energy[index].reshape(chains, -1).to(target.dtype)
    evidence = diagnose(
        x,
        values,
        len(target.event_shape),
        discrete=True,
        seconds=time.perf_counter() - started,
        energies=len(energy),
        independent=True,
    )
    return Draws(first(x, job.draws), x, values, Estimate(log_z.item()), evidence, "", "")


def importance(job: Job, *, forced: bool) -> Draws:
    """Draws of a samplable part, resampled with Pareto-smoothed weights exp(E_start - E_target), in
    independent populations.

    `OVER` times as many effective draws are weighed as are asked for. Unless `forced`, NotThisWay
    is raised where Pareto k of the weights is above `HEAVY` or their effective share below
    `UNEVEN`.
    Reference: Vehtari, Simpson, Gelman, Yao and Gabry 2024, JMLR 25.
    """
    started = time.perf_counter()
    start = job.start
    if start is None:
        raise NotThisWay("no part draws samples where the target has its mass")
    share = start.ess / len(start.x)
    if not forced and (start.pareto_k > HEAVY or share < UNEVEN):
        raise NotThisWay(
            f"the weights of {start.density} are too uneven: Pareto k {start.pareto_k:.2f}, ESS "
            f"{100 * share:.1f} %",
            0,
            job.weighed,
        )
    return _resampled(job, start, job.target, job.x, seconds=started)


def sequential(job: Job) -> Draws:
    """Particles carried along the order of the autoregressive factors (`poe.smc.sequential`), in
    independent populations, of which the draws are resampled. Raises NotThisWay where none of them
    has weight."""
    started = time.perf_counter()
    of = line(job.energy)
    if of is None:
        raise NotThisWay("no factor is autoregressive over discrete values")
    populations, wide = _sizes(job)
    particles, generators = max(2 * wide, FEWEST), job.streams(1)
    twisted = twists(of, job.streams(2)[0])
    sizes = _split(populations, job.shards)

    def all_shards() -> list[Particles]:
        codec = Codec(Particles, device=generators[0].device)

        def carried(shard):
            return carry(of, sizes[shard], particles, generators[shard], twisted=twisted)

        return parallel.spread(carried, generators, codec)

    parts = (
        all_shards()
        if job.checkpoint is None
        else job.checkpoint.stage(all_shards, Particles, generators=generators)
    )
    x, logs, log_ratio, failed = (torch.cat(column) for column in zip(*parts, strict=True))
    if not bool((logs > -math.inf).any()):
        raise NotThisWay(f"none of {logs.numel()} particles has weight", 0, logs.numel())
    uniform = torch.rand(
        populations, 2, generator=job.streams(2)[0], dtype=torch.float64, device=logs.device
    )
    order = systematic(logs, uniform, wide)
    size = (2 * logs.logsumexp(1) - (2 * logs).logsumexp(1)).exp().nan_to_num(0).sum()
    return _population(
        job, take(x, order), Estimate(0.0), estimate(log_ratio), nonfinite=int(failed.sum()),
        energies=logs.numel() * (of.evaluations + 1) + order.numel(), weight_ess=float(size),
        ancestors=sum(len(row.unique()) for row in order), seconds=time.perf_counter() - started,
    )  # fmt: skip


def _resampled(
    job: Job,
    start: Start,
    target: Energy,
    to_x: Callable[[Tensor], Tensor],
    *,
    seconds: float,
    gradients: float = 0.0,
) -> Draws:
    """Draws of a start near to the target, in whatever variables, resampled along a curve through
    them and then shuffled: so each part of space gets its share of the draws, but for rounding."""
    share = start.ess / len(start.x)
    populations, wide = _sizes(job)
    each = (
        max(CANDIDATES, min(MOST_WEIGHED, math.ceil(OVER * job.draws / share))) // populations + 1
    )
    x, logs, failed = [], [], 0
    for size, generator in zip(_split(populations, job.shards), job.streams(1), strict=True):
        weighed = weigh(start.density, target, generator, size * each)
        x.append(weighed.x.unflatten(0, (size, each)))
        logs.append(weighed.log_weights.unflatten(0, (size, each)))
        failed += weighed.failed
    raw = torch.cat(logs)
    smooth, k = pareto_smoothed(raw.flatten())
    smooth = smooth.reshape(raw.shape)
    drawn, generator = torch.cat(x), job.streams(2)[0]
    uniform = torch.rand(
        populations, 2, generator=generator, dtype=torch.float64, device=raw.device
    )
    along = curve(drawn, len(target.event_shape))
    order = along.gather(1, systematic(smooth.gather(1, along), uniform, wide))
    shuffled = torch.rand(
        order.shape, generator=generator, dtype=torch.float64, device=raw.device
    ).argsort(1)
    order = order.gather(1, shuffled)
    size = (2 * smooth.logsumexp(1) - (2 * smooth).logsumexp(1)).exp().sum()
    return _population(
        job,
        to_x(take(drawn, order)),
        start.log_z,
        estimate(raw.flatten()),
        pareto_k=k,
        nonfinite=failed,
        energies=job.weighed + raw.numel() + order.numel(),
        gradients=gradients,
        weight_ess=float(size),
        ancestors=sum(len(row.unique()) for row in order),
        seconds=time.perf_counter() - seconds,
    )


def annealed(job: Job) -> Draws:
    """Populations of particles carried along a path from the nearest start to the target, by a
    schedule that a pilot tuned.

    Raises NotThisWay where no path was found.
    """
    started = time.perf_counter()
    populations, wide = _sizes(job)
    wide *= job.thin
    try:
        tuned = pilot(
            job.target, None if job.start is None else job.start.density, job.streams(2)[0],
            kernel=job.kernel, progress=job.progress, checkpoint=job.checkpoint,
        )  # fmt: skip
    except StalledError as stalled:
        raise NotThisWay(str(stalled)) from stalled
    path = tuned.schedule.path
    if isinstance(path.start, Gaussians):  # fitted to the target: it may do without moves
        near = weigh(path.start, path.end, job.streams(5)[0], 4 * CANDIDATES)
        if near.pareto_k <= HEAVY and near.ess >= len(near.x) * NEAR:
            x = lambda z: job.x(tuned.to_x(z))  # noqa: E731
            draws = _resampled(job, near, path.end, x, seconds=started, gradients=tuned.gradients)
            even = (
                draws.diagnostics.weight_ess > OVER / 2 * job.draws
            )  # or the fit has missed a mode, which more draws have met
            if even and draws.trusted:
                return replace(
                    draws,
                    method="importance resampling of a start that was fitted to annealed particles",
                )
    moved = anneal(
        tuned.schedule,
        sampler(path.start, job.target),
        _split(populations, job.shards),
        wide,
        job.streams(1),
        progress=job.progress,
        checkpoint=job.checkpoint,
    )
    result = _population(
        job,
        job.x(visible(job.energy, tuned.to_x(moved.x[:, job.thin - 1 :: job.thin]))),
        path.start.log_z,
        estimate(moved.log_ratio),
        acceptance=moved.acceptance,
        nonfinite=moved.nonfinite,
        divergent=moved.divergent,
        ancestors=moved.distinct,
        gradients=tuned.gradients + moved.energy.numel() * tuned.schedule.gradients,
        energies=job.weighed
        + moved.energy.numel() * (1 + tuned.schedule.energies)
        + tuned.energies,
        seconds=time.perf_counter() - started,
    )
    if isinstance(path, Noised) and path.by_scores:
        result = replace(
            result,
            method=(
                "annealed particles that follow scores (log Z: of the densities behind those, "
                "as far as they agree)"
            ),
        )
    if not moved.partial:
        return result
    said = f"interrupted: {len(moved.x)} of {populations} populations are there"
    return replace(result, partial=True).warned(said)


def blend(job: Job, shares: Sequence[float], draw: Callable[[int, int], Draws]) -> Draws:
    """Draws of a mixture from those of its parts, in the given shares of probability: no part has
    to be found from another.

    `draw(i, n)` gives n draws of part i. Each part has n·share draws but for rounding, which is
    random, and all are shuffled. The
    evidence is the weakest of any part, with effective numbers for the mixture: the draws of part i
    count share_i of it.
    """
    chains = job.chains or min(4, max(1, job.draws))
    total = chains * -(-job.draws // chains)
    (generator, *_) = job.streams(2)
    logs = torch.tensor([shares], dtype=torch.float64, device=job.energy.device).log()
    uniform = torch.rand(1, 2, generator=generator, dtype=torch.float64, device=job.energy.device)
    counts = torch.bincount(systematic(logs, uniform, total)[0], minlength=len(shares)).tolist()
    results = [(count / total, draw(index, count)) for index, count in enumerate(counts) if count]
    order = torch.rand(
        total, generator=generator, dtype=torch.float64, device=job.energy.device
    ).argsort()
    x = torch.cat([result.x for _, result in results])[order].unflatten(0, (chains, -1))
    with torch.no_grad():
        energy = job.energy(x)
    found = [result.diagnostics for _, result in results]
    least = lambda name: min(getattr(r.diagnostics, name) / share for share, r in results)  # noqa: E731
    total_of = lambda name: sum(getattr(d, name) for d in found)  # noqa: E731

    def worst(name):
        return max((v for v in (getattr(d, name) for d in found) if v == v), default=math.nan)

    evidence = Diagnostics(
        worst("rhat"),
        worst("rhat_energy"),
        min(least("ess_bulk"), total),
        min(least("ess_tail"), total),
        int(total_of("stuck")),
        acceptance=min(d.acceptance for d in found),
        divergent=int(total_of("divergent")),
        nonfinite=int(total_of("nonfinite")),
        gradients=total_of("gradients"),
        energies=total_of("energies") + energy.numel(),
        seconds=total_of("seconds"),
        invalid=int((~energy.isfinite()).sum()),
        independent=all(d.independent for d in found),
        chance=max(d.chance for d in found),
    )
    said = dict.fromkeys(warning for _, result in results for warning in result.warnings)
    conditions = {
        warning: given for _, result in results for warning, given in result.conditions.items()
    }
    result = Draws(first(x, job.draws), x, energy, job.energy.log_z, evidence, "", "", tuple(said))
    partial, exact = any(r.partial for _, r in results), all(r.exact for _, r in results)
    return replace(result, conditions=conditions, partial=partial, exact=exact)


def tested(evidence: Diagnostics, energy: Energy, chains: Tensor) -> Diagnostics:
    # (chain, draw, *event)
    """The evidence with the Stein test of these draws, and its scores counted."""
    test = stein_test(energy, chains)
    return replace(
        evidence,
        stein=test.statistic,
        stein_pvalue=test.pvalue,
        gradients=evidence.gradients + min(500, chains.shape[0] * chains.shape[1]),
    )


def _sizes(job: Job) -> tuple[int, int]:
    """(populations, particles of each)."""
    groups, least = (
        (GROUPS, min(FEW, 4 * max(job.draws, 16))) if dear(job.energy) else (POPULATIONS, PARTICLES)
    )
    populations = job.chains or max(groups, job.shards)
    return populations, max(-(-least // populations), -(-job.draws // populations))


def _split(populations: int, shards: int) -> list[int]:
    return [len(part) for part in torch.arange(populations).tensor_split(shards)]


def _population(
    job: Job, x: Tensor, known: Estimate | None, ratio: Estimate, **counts: float
) -> Draws:
    """Draws from independent populations (population, particle, *event), evenly spaced ones of
    each: copies are neighbours. `known` is log Z of where they started, `ratio` what was gained on
    the way.

    The evidence is that of all particles, the effective numbers bounded by the draws that are kept.
    """
    event = len(job.energy.event_shape)
    with torch.no_grad():
        energy = job.energy(x)
    evidence = diagnose(x, energy, event, discrete=job.discrete, **counts)
    kept = torch.linspace(0, x.shape[1] - 1, -(-job.draws // len(x))).round().long().to(x.device)
    bound = float(len(x) * len(kept))
    evidence = replace(
        evidence, ess_bulk=min(evidence.ess_bulk, bound), ess_tail=min(evidence.ess_tail, bound)
    )
    if evidence.gradients and not job.discrete:
        evidence = tested(evidence, job.energy, x)
    log_z = (
        None
        if known is None
        else Estimate(
            ratio.value + known.value, math.hypot(ratio.standard_error, known.standard_error)
        )
    )
    said = judge(evidence, job.draws, exact_draws=False, discrete=job.discrete)
    chains = x[:, kept]
    return Draws(
        first(chains, job.draws),
        chains,
        energy[:, kept],
        log_z,
        evidence,
        "",
        "",
        tuple(said),
        exact=False,
    )
