"""What the methods that run the loop of `poe.mcmc.run` share."""

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
from poe.algebra.energy import Energy, Estimate, first_tensor
from poe.diagnostics.evidence import Diagnostics, diagnose
from poe.diagnostics.raw import Raw
from poe.diagnostics.verdict import PARETO_LIMIT
from poe.kernels import Gibbs, Kernel, Langevin
from poe.kernels.defaults import default_kernel
from poe.mcmc.progress import Stopped
from poe.mcmc.run import Trace, run
from poe.sampling.job import Job, Phase
from poe.smc import discrete
from poe.smc.starts import why_no_start
from poe.spaces.path import StandardNormal
from poe.spaces.points import uniform_points
from poe.spaces.transport import Transported

WARMUP = 400  # steps
PILOT_DRAWS = 64  # of each chain, from which the gap between draws is found
MAX_GAP = 48  # steps between two draws
MAX_UNIFORMS = 1 << 24  # that are drawn at once
WEIGHED_DRAWS = 64  # points for each chain among which those of finite energy are found


class Runs:
    """The runs of one job: where chains start, the pilot that finds the gap between draws, the
    draws, and what comes back."""

    def __init__(self, job: Job) -> None:
        self.job, event = job, tuple(job.energy.event_shape)
        if job.init is not None:
            self.count, *shape = job.init.shape or (0,)
            if not self.count or tuple(shape) != event or job.chains not in (None, self.count):
                raise ValueError(
                    f"init has shape {tuple(job.init.shape)}; it takes (chains, *event), event "
                    f"{event}"
                )
        else:
            self.count = job.chains or max(4, job.shards, min(32, job.draws // 25))
        if job.shards > self.count:
            raise ValueError(f"{job.shards} shards need at least as many chains, got {self.count}")
        by_flow = job.kernel is None and not job.structure.discrete
        flow = job.start.density if by_flow and job.start is not None else None
        self.noise = Transported(job.target, flow) if flow is not None and quick(flow) else None
        # what the chains move on: without a kernel of the user's, in the noise of a flow
        self.target = job.target if self.noise is None else self.noise
        self.generators = job.streams(Phase.CHAINS)
        self.shared = job.streams(Phase.CHAIN_STARTS)[0]
        self.gradients = self.energies = 0.0
        self.started = time.perf_counter()

    @property
    def kernel(self) -> Kernel:
        """The user's, in the space of the chains, or the usual one."""
        job = self.job
        if job.kernel is None:
            return default_kernel(self.target, compile=job.compile)
        around = job.space.unconstrained
        return job.kernel if around is None else job.kernel.through(around.around)

    def x(self, z: Tensor) -> Tensor:
        """Points of the event from points of the chains."""
        return self.job.space.x(z if self.noise is None else self.noise.to_x(z))

    def starts(self) -> Tensor:  # (chains, *reals)
        """Points in the space of the chains: `init`, else draws of the start resampled by
        importance, else of a standard normal."""
        z = self._starts()
        self.job.progress.keep(z)
        return z if self.noise is None else self.noise.to_z(z)

    def _starts(self) -> Tensor:
        job = self.job
        if job.init is not None:
            x = job.init.to(first_tensor(job.energy))
            inside = sets.contains(job.energy.support, x)
            if not bool(inside.all()):
                raise ValueError(
                    f"{int((~inside).sum())} of {len(x)} points of init lie outside the support "
                    f"{job.energy.support!r}"
                )
            return job.space.z(x)
        if job.annealed is not None:
            x = job.annealed.first
            x = x[torch.randperm(len(x), generator=self.shared, device=x.device)]
            x = x[torch.arange(self.count, device=x.device) % len(x)]
            return job.space.z(x)
        if job.start is None:
            return self._from_normal()
        self.energies += job.weighing
        weights = (job.start.log_weights - job.start.log_weights.max()).exp()
        return job.start.x[weights.multinomial(self.count, True, generator=self.shared)]

    def _from_normal(self) -> Tensor:
        if self.job.structure.discrete:
            return uniform_points(self.job.energy, self.count, self.shared)
        job, like = self.job, first_tensor(self.job.energy)
        z = like.new_empty(WEIGHED_DRAWS * self.count, *job.target.event_shape)
        z.normal_(generator=self.shared)
        with torch.no_grad():
            finite = job.target(z).isfinite()
        self.energies += len(z)
        if not bool(finite.any()):
            raise ValueError(why_no_start(job.target, z))
        good = z[finite]
        return good[torch.arange(self.count, device=good.device) % len(good)]

    def bottom(self, x: Tensor) -> Energy:
        """Where a ladder starts: the density that chains start from, else a normal with twice the
        spread of a few short chains."""
        if self.noise is not None:
            return StandardNormal(torch.zeros_like(x[0]), torch.ones_like(x[0]))
        if self.job.structure.discrete:
            return discrete.Independent.even(self.target)
        if self.job.start is not None:
            return self.job.start.density
        trace = self.steps(Langevin(), x, PILOT_DRAWS, "chains that find a start", warmup=WARMUP)
        if trace.partial:
            self.job.progress.keep(trace.x.flatten(0, 1))
            raise Stopped(self.job.progress.why)
        z = trace.x.flatten(0, 1)
        return StandardNormal(z.mean(0), 2 * z.std(0).clamp(min=1e-6))

    def pilot(self, kernel: Kernel, x: Any, warmup: int, label: str) -> tuple[Trace, int]:
        """Warm-up and a pilot, and the number of steps that should lie between two draws: the
        autocorrelation time that the pilot's chains show, at most `MAX_GAP`."""
        job = self.job
        steps = job.warmup if job.warmup is not None else 0 if self.kernel.ready else warmup
        if steps == 0 and not kernel.ready:
            raise ValueError(
                "warmup=0 leaves no steps to find a step size in; give the kernel one, or some "
                "warmup"
            )
        pilot = self.steps(kernel, x, PILOT_DRAWS, f"{label} warm-up", warmup=steps)
        d = self.evidence(pilot)
        size = min(d.ess_bulk, d.ess_tail)
        return pilot, int(min(MAX_GAP, max(1, round(pilot.energy.numel() / max(size, 1.0)))))

    def run(self, pilot: Trace, gap: int, label: str) -> Trace:
        """The draws, with the pilot's kernel and from its last states."""
        job, kernel, thin = self.job, pilot.kernel, gap * self.job.thin
        numbers = self.count * thin * job.energy.event_shape.numel()
        if isinstance(kernel, Gibbs) and numbers < MAX_UNIFORMS:
            # sweeps in one step: the energy of what is not kept is not evaluated
            kernel, thin = replace(kernel, sweeps=kernel.sweeps * thin), 1
        draws = -(-job.draws // self.count)
        return self.steps(kernel, pilot.states, draws, label, thin=thin, compile=job.compile)

    def steps(self, kernel: Kernel, x: Any, draws: int, label: str, **options: Any) -> Trace:
        """One run of all chains, its evaluations added to those of the job."""
        trace = run(
            kernel,
            self.target,
            x,
            draws=draws,
            generators=self.generators,
            progress=self.job.progress,
            label=label,
            checkpoint=self.job.checkpoint,
            **options,
        )
        self.gradients += trace.counts.gradients
        self.energies += trace.counts.energies
        return trace

    def evidence(self, trace: Trace) -> Diagnostics:
        """The diagnostics of a trace, over points of the event."""
        event, discrete = len(self.job.energy.event_shape), self.job.structure.discrete
        return diagnose(self.x(trace.x), trace.energy, event, discrete=discrete)

    @property
    def log_z(self) -> Estimate | None:
        """log Z: of annealed particles, where chains start from these. On a discrete space chains
        follow annealing where that cannot be trusted, and its log Z can not either: there it is
        that of the weights of the start, where their Pareto k allows."""
        job = self.job
        if not job.structure.discrete:
            return None if job.annealed is None else job.annealed.log_z
        start = job.start if job.init is None else None
        if start is None or start.log_z is None or start.pareto_k > PARETO_LIMIT:
            return None
        error = math.sqrt(max(1 / start.ess - 1 / len(start.x), 0.0))
        return Estimate(start.log_mean + start.log_z.value, math.hypot(error, start.log_z[1]))

    def finish(self, trace: Trace) -> Raw:
        """The draws of a trace, as points of the event."""
        job, counts = self.job, trace.counts
        x, energy = self.x(trace.x), trace.energy
        if job.space.unconstrained is not None or self.noise is not None:
            with torch.no_grad():
                energy = job.energy(x)
        notes = []
        if trace.partial:
            wanted = -(-job.draws // self.count)
            notes.append(
                job.progress.reason(f"{x.shape[1]} of {wanted} draws of each chain are there")
            )
        if not trace.kernel.exact:
            notes.append(
                "the kernel is unadjusted: its stationary law differs from the target by a bias of "
                "the order of its step size"
            )
        figures = {
            "acceptance": counts.acceptance,
            "divergent": counts.divergent,
            "nonfinite": counts.nonfinite,
            "nonfinite_share": counts.nonfinite_share,
            "gradients": self.gradients,
            "energies": self.energies,
            "seconds": time.perf_counter() - self.started,
            "swaps": _swaps(trace.states),
        }
        if job.init is None and job.start is not None:
            figures["pareto_k"] = job.start.pareto_k
        return Raw(
            x,
            energy,
            job.draws,
            self.log_z,
            exact=trace.kernel.exact,
            partial=trace.partial,
            stein=trace.kernel.needs_gradient,
            reasons=tuple(notes),
            counts=figures,
        )


def _swaps(states: Sequence[Any]) -> float:
    """The smallest swap acceptance between neighbouring rungs; NaN where there is no ladder."""
    if "swapped" not in states[0]._fields:
        return float("nan")
    return torch.stack([state.swapped for state in states]).mean(0).min().item()
