"""Markov chains, and replica exchange: the two methods that run the loop of `poe.mcmc.run`."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from poe.algebra import support as sets
from poe.algebra.capabilities import quick
from poe.algebra.energy import Energy
from poe.diagnostics.draws import Draws, first
from poe.diagnostics.evidence import RHAT_LIMIT, Diagnostics, diagnose, judge
from poe.kernels import Gibbs, Kernel, Langevin, Tempered
from poe.kernels.defaults import default_kernel
from poe.kernels.tempered import linear_betas
from poe.mcmc.run import Trace, run
from poe.sampling.methods import Job, NotThisWay, tested
from poe.smc import discrete
from poe.smc.starts import nowhere
from poe.spaces.path import StandardNormal
from poe.spaces.points import anywhere
from poe.spaces.transport import Transported

WARMUP = 400
PILOT = 64  # steps of the chains from which the gap between draws is found
MOST_GAP = 48
MOST_NUMBERS = 1 << 24  # uniforms drawn at once


def chains(job: Job, *, forced: bool) -> Draws:
    """Chains of one kernel, tuned in warm-up, from annealed particles where there are any, else
    from starts of importance resampling or from `init`.

    Unless `forced`, NotThisWay is raised where the chains disagree, or are slow: R-hat is blind to
    a mode that no chain has had the time to find, unless some start there.
    """
    work = _Chains(job)
    pilot, gap = work.pilot(work.kernel, work.starts(), WARMUP, "chains")
    if pilot.partial:
        return work.finish(pilot)
    most = (
        MOST_GAP if job.discrete else PILOT // 4 + 1
    )  # discrete chains start evenly all over the space
    if not forced and job.found is None and gap >= most:
        raise NotThisWay(
            f"chains are slow: about {gap} steps between independent draws", work.gradients
        )
    trace = work.run(pilot, gap, "chains")
    evidence = work.evidence(trace)
    worst = 0.0 if math.isnan(evidence.rhat) else max(evidence.rhat, evidence.rhat_energy)
    if not forced and worst > RHAT_LIMIT:
        raise NotThisWay(f"chains disagreed (R-hat {worst:.2f})", work.gradients)
    return work.finish(trace)


def tempered(job: Job) -> Draws:
    """Replica exchange from the start to the target: a ladder tuned and respaced in warm-up until
    its rejection rates are even."""
    work = _Chains(job)
    x = work.starts()
    kernel: Any = work.kernel
    if not isinstance(kernel, Tempered):
        plain = kernel.plain or job.discrete
        kernel = Tempered(work.bottom(x), linear_betas(8), kernel if plain else Langevin())
    walkers: Any = x
    for _ in range(2):
        pilot = run(
            kernel, work.target, walkers, draws=20, warmup=40, generators=work.generators,
            progress="ladder" if job.progress else None, checkpoint=job.checkpoint,
        )  # fmt: skip
        work.count_in(pilot)
        if pilot.partial:
            return work.finish(pilot)
        rejection = 1 - torch.stack([state.swapped for state in pilot.states]).mean(0)
        rungs = int(min(24, max(4, math.ceil(1.3 * float(rejection.sum())) + 2)))
        old, kernel = pilot.kernel.betas, pilot.kernel.respaced(rejection, rungs)  # type: ignore[attr-defined]
        nearest = (old.unsqueeze(0) - kernel.betas.unsqueeze(1)).abs().argmin(1)
        nearest[1:] = nearest[1:].clamp(min=1)  # draws of the start may lie where the target fails
        walkers = torch.cat([state.rungs.x for state in pilot.states])[:, nearest]
    pilot, gap = work.pilot(kernel, walkers, 60, "replica exchange")
    return work.finish(pilot if pilot.partial else work.run(pilot, gap, "replica exchange"))


class _Chains:
    """What both share: where chains start, the pilot that finds the gap between draws, the draws,
    and what comes back."""

    def __init__(self, job: Job) -> None:
        self.job, event = job, tuple(job.energy.event_shape)
        if job.init is not None:
            self.count = job.init.shape[0] if job.init.ndim == len(event) + 1 else 0
            if (
                self.count == 0
                or job.init.shape[1:] != event
                or (job.chains is not None and job.chains != self.count)
            ):
                raise ValueError(
                    f"init has shape {tuple(job.init.shape)}; it takes (chains, *event), event "
                    f"{event}"
                )
        else:
            self.count = job.chains or max(4, job.shards, min(32, job.draws // 25))
        if job.shards > self.count:
            raise ValueError(f"{job.shards} shards need at least as many chains, got {self.count}")
        flow = (
            job.start.density
            if job.kernel is None and job.start is not None and quick(job.start.density)
            else None
        )
        self.noise = None if flow is None or job.discrete else Transported(job.target, flow)
        self.generators = job.streams(3)
        self.shared = job.streams(4)[0]
        self.gradients = self.energies = 0.0
        self.started = time.perf_counter()

    @property
    def kernel(self) -> Kernel:
        """The user's, in the space of the chains, or the usual one."""
        job = self.job
        if job.kernel is None:
            return default_kernel(self.target, compile=job.compile)
        return job.kernel if job.space is None else job.kernel.through(job.space.around)

    @property
    def target(self) -> Energy:
        """What the chains move on: the energy in unconstrained space or, without a kernel of the
        user's, in the noise of a flow."""
        return self.job.target if self.noise is None else self.noise

    def x(self, z: Tensor) -> Tensor:
        """Points of the event from points of the chains."""
        return self.job.x(z if self.noise is None else self.noise.to_x(z))

    def starts(self) -> Tensor:  # (chains, *reals)
        """Points in the space of the chains: `init`, else draws of the start resampled by
        importance, else of a standard normal."""
        z = self._starts()
        return z if self.noise is None else self.noise.to_z(z)

    def _starts(self) -> Tensor:
        job = self.job
        if job.init is not None:
            x = job.init.to(job.energy._like())
            inside = sets.contains(job.energy.support, x)
            if not bool(inside.all()):
                raise ValueError(
                    f"{int((~inside).sum())} of {len(x)} points of init lie outside the support "
                    f"{job.energy.support!r}"
                )
            return x if job.space is None else job.space.to_z(x)
        if job.found is not None:
            x = job.found.x[
                torch.randperm(len(job.found.x), generator=self.shared, device=job.found.x.device)
            ]
            x = x[torch.arange(self.count, device=x.device) % len(x)]
            return x if job.space is None else job.space.to_z(x)
        if job.start is None:
            return self._from_normal()
        self.energies += job.weighed
        weights = (job.start.log_weights - job.start.log_weights.max()).exp()
        return job.start.x[
            torch.multinomial(weights, self.count, replacement=True, generator=self.shared)
        ]

    def _from_normal(self) -> Tensor:
        if self.job.discrete:
            return anywhere(self.job.energy, self.count, self.shared)
        job, like = self.job, self.job.energy._like()
        z = torch.randn(
            64 * self.count,
            *job.target.event_shape,
            generator=self.shared,
            dtype=like.dtype,
            device=like.device,
        )
        with torch.no_grad():
            finite = job.target(z).isfinite()
        self.energies += len(z)
        if not bool(finite.any()):
            raise ValueError(nowhere(job.target, z))
        good = z[finite]
        return good[torch.arange(self.count, device=good.device) % len(good)]

    def bottom(self, x: Tensor) -> Energy:
        """Where a ladder starts: the density that chains start from, else a normal with twice the
        spread of a few short chains."""
        if self.noise is not None:
            return StandardNormal(torch.zeros_like(x[0]), torch.ones_like(x[0]))
        if self.job.discrete:
            return discrete.Independent.even(self.target)
        if self.job.start is not None:
            return self.job.start.density
        trace = run(
            Langevin(),
            self.target,
            x,
            draws=PILOT,
            warmup=WARMUP,
            generators=self.generators,
            checkpoint=self.job.checkpoint,
        )
        self.count_in(trace)
        z = trace.x.flatten(0, 1)
        return StandardNormal(z.mean(0), 2 * z.std(0).clamp(min=1e-6))

    def pilot(self, kernel: Kernel, x: Any, warmup: int, label: str) -> tuple[Trace, int]:
        """Warm-up and a pilot, and the number of steps that should lie between two draws: the
        autocorrelation time that the pilot's chains show, at most `MOST_GAP`."""
        job = self.job
        steps = job.warmup if job.warmup is not None else 0 if self.kernel.ready else warmup
        if steps == 0 and not kernel.ready:
            raise ValueError(
                "warmup=0 leaves no steps to find a step size in; give the kernel one, or some "
                "warmup"
            )
        bar = f"{label} warm-up" if job.progress else None
        pilot = run(
            kernel,
            self.target,
            x,
            draws=PILOT,
            warmup=steps,
            generators=self.generators,
            progress=bar,
            checkpoint=job.checkpoint,
        )
        self.count_in(pilot)
        evidence = self.evidence(pilot)
        size = min(evidence.ess_bulk, evidence.ess_tail)
        return pilot, int(min(MOST_GAP, max(1, round(pilot.energy.numel() / max(size, 1.0)))))

    def run(self, pilot: Trace, gap: int, label: str) -> Trace:
        """The draws, with the pilot's kernel and from its last states."""
        job, kernel, thin = self.job, pilot.kernel, gap * self.job.thin
        if (
            isinstance(kernel, Gibbs)
            and self.count * thin * job.energy.event_shape.numel() < MOST_NUMBERS
        ):
            kernel, thin = (
                replace(kernel, sweeps=kernel.sweeps * thin),
                1,
            )  # the energy of what is not kept is not asked for
        trace = run(
            kernel,
            self.target,
            pilot.states,
            draws=-(-job.draws // self.count),
            thin=thin,
            generators=self.generators,
            progress=label if job.progress else None,
            compile=job.compile,
            checkpoint=job.checkpoint,
        )
        self.count_in(trace)
        return trace

    def count_in(self, trace: Trace) -> None:
        """Adds what a run evaluated."""
        self.gradients += trace.counts.gradients
        self.energies += trace.counts.energies

    def evidence(self, trace: Trace) -> Diagnostics:
        """The diagnostics of a trace, over points of the event."""
        job = self.job
        return diagnose(
            self.x(trace.x), trace.energy, len(job.energy.event_shape), discrete=job.discrete
        )

    def finish(self, trace: Trace) -> Draws:
        """Draws of the event with all their evidence."""
        job = self.job
        x, energy = self.x(trace.x), trace.energy
        if job.space is not None or self.noise is not None:
            with torch.no_grad():
                energy = job.energy(x)
        counts = trace.counts
        evidence = diagnose(
            x,
            energy,
            len(job.energy.event_shape),
            discrete=job.discrete,
            acceptance=counts.acceptance,
            divergent=counts.divergent,
            nonfinite=counts.nonfinite,
            gradients=self.gradients,
            energies=self.energies,
            seconds=time.perf_counter() - self.started,
            pareto_k=float("nan")
            if job.init is not None or job.start is None
            else job.start.pareto_k,
            swaps=_swaps(trace.states),
        )
        if trace.kernel.needs_gradient:
            evidence = tested(evidence, job.energy, x)
        said = judge(evidence, job.draws, exact_draws=False, discrete=job.discrete)
        if trace.partial:
            said.append(
                f"interrupted: {x.shape[1]} of {-(-job.draws // self.count)} draws a chain are "
                "there"
            )
        if not trace.kernel.exact:
            said.append(
                "the kernel is unadjusted: its stationary law differs from the target by a bias of "
                "the order of its step size"
            )
        log_z = None if job.found is None else job.found.log_z
        return Draws(
            first(x, job.draws),
            x,
            energy,
            log_z,
            evidence,
            "",
            "",
            tuple(said),
            trace.kernel.exact,
            trace.partial,
        )


def _swaps(states: Sequence[Any]) -> float:
    """The smallest swap acceptance between neighbouring rungs; NaN where there is no ladder."""
    if "swapped" not in states[0]._fields:
        return float("nan")
    return torch.stack([state.swapped for state in states]).mean(0).min().item()
