"""The search for a schedule of annealing that reaches a target: from a start, down levels of noise,
or from normals fitted to hot chains, refined by densities fitted to the particles."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from poe.algebra import support as sets
from poe.algebra.capabilities import quick
from poe.algebra.energy import Energy, first_tensor
from poe.kernels import Kernel, Langevin
from poe.mcmc.checkpoint import Checkpoint, stage
from poe.mcmc.progress import Progress, Stopped
from poe.mcmc.run import run
from poe.smc import discrete
from poe.smc.diffusion import ReverseDiffusion
from poe.smc.diffusion_tuning import tune_diffusion
from poe.smc.fitted import MAX_PARETO_K, fitted
from poe.smc.noise_path import NoisePath, diffusible, expensive
from poe.smc.starts import WEIGHED_DRAWS, sampler, why_no_start
from poe.smc.triangular import MAX_DIMENSIONS
from poe.smc.tuning import StalledError, TunedSchedule, tune
from poe.spaces.noise import noise_levels
from poe.spaces.path import Geometric, Path, StandardNormal, Stepped
from poe.spaces.transport import Transported, Unconstrained

PARTICLES, REFINED_PARTICLES = 1024, 4096  # of the first tuning, and from fitted starts
TEMPERATURES = 1.0, 16.0  # of the chains that find the extent of a target
MAX_COORDINATE = 1e12  # beyond which chains count as divergent
MAX_LOG_Z_GAP = 0.5  # nats below the best estimate of log Z, below which a schedule missed mass
MAX_PARTICLES = 16384  # of a tuning that is repeated because its particles collapsed
MAX_NUMBERS = 1 << 19  # the same, times the dimensions
GROWTH = 4  # times as many particles in each repetition
MAX_UNREFINED_LEVELS = 2  # of a schedule that needs no better start
MAX_REFINEMENTS = 6  # fitted starts, each from the particles of the one before
# where scales follow a coordinate, particles move so often in the noise of the map, and are fitted
# again, in so many rounds: each goes further into the narrow end
LINKED_MOVES, LINKED_ROUNDS = 32, 4
# a refined schedule is better if its gradients are below this share, or its log Z above by this
MAX_COST_SHARE, MIN_LOG_Z_GAIN = 0.9, 0.1


def find_schedule(
    target: Energy,
    start: Energy | None,
    generator: torch.Generator,
    *,
    kernel: Kernel | None = None,
    progress: Progress | bool | None = False,
    checkpoint: Checkpoint | None = None,
) -> TunedSchedule:
    """A tuned schedule to the target: from the start, in its noise where it is a flow; without one,
    from the best that is found.

    Where experts have noise levels, the path leads down those, and from a normal to the noisiest.
    Else, without a start, or where no path from it is found or its particles collapse, normals are
    fitted to chains of the target and of the target at temperature 16, whose large moves reach
    modes that lie far apart. A schedule whose log Z is more than half a nat, or surely, below
    another's has missed mass; of the others the cheapest is taken.

    A tuning whose particles descend from fewer than `MIN_ANCESTORS` is repeated with more of them,
    and nothing is fitted to those that still do. To the particles of the others a mixture of
    Gaussians is fitted, in the noise of a triangular map where that is closer (`poe.smc.fitted`).
    Where its Pareto k and ESS are good the search is over; else it is the next start, and this is
    repeated with the particles of its schedule, until twice in a row the schedule is not better.

    Raises StalledError where no path reaches the target, and ValueError where it seems improper.
    """
    progress = Progress.of(progress)
    if sets.is_discrete(target.support):
        search = _Search(target, generator, kernel, progress, checkpoint)
        return discrete.find_schedule(target, start, search.tune, kernel)
    mover = Langevin() if kernel is None else kernel
    search = _Search(target, generator, mover, progress, checkpoint)
    known, spent = search.from_known(start)
    found = [] if known is None else [known]
    if known is None or (known.collapsed and not expensive(target)):
        try:
            more, gradients = search.from_normals()
        except StalledError:
            if known is None:
                raise
            more, gradients = [], 0.0
        found, spent = found + more, spent + gradients
    best, more = search.grown(_chosen(target, found))
    best, gradients = search.refined(best)
    return best._replace(gradients=spent + more + gradients)


def from_fitted(
    target: Energy,
    found: TunedSchedule,
    generator: torch.Generator,
    *,
    kernel: Kernel | None = None,
    progress: Progress | bool | None = False,
    checkpoint: Checkpoint | None = None,
) -> TunedSchedule:
    """The schedule from the fitted start that a search found, for where moves are wanted all the
    same; what was found where it has none. Its evaluations include those of the search."""
    if found.fitted is None:
        return found
    mover = Langevin() if kernel is None else kernel
    search = _Search(target, generator, mover, Progress.of(progress), checkpoint)
    tuned = search.tune(Geometric(found.fitted.start.density, found.fitted.end), PARTICLES)
    return tuned._replace(gradients=found.gradients + tuned.gradients)


def _chosen(target: Energy, found: list[TunedSchedule]) -> TunedSchedule:
    """The cheapest of those that have not missed mass, and have not collapsed where one has not."""
    kept = [tuned for tuned in found if not tuned.collapsed] or found
    top = max(tuned.log_ratio for tuned in kept)
    least = max(tuned.interval[0] for tuned in kept)
    near = [tuned for tuned in kept if tuned.log_ratio > top - MAX_LOG_Z_GAP]
    if not near:  # of log Z that is infinite or NaN
        raise ValueError(
            f"{target} has particles of energy -inf, or diverges: it seems improper, with no "
            "finite mass to draw from"
        )
    sure = [tuned for tuned in near if tuned.interval[1] >= least] or near
    return min(sure, key=lambda tuned: tuned.schedule.gradients)


@dataclass(frozen=True)
class _Search:
    """A target, and the ways to tune a schedule to it. Methods that return gradients count those
    that they spent."""

    target: Energy
    generator: torch.Generator
    kernel: Kernel | None
    progress: Progress
    checkpoint: Checkpoint | None

    def tune(
        self, path: Path, particles: int, kernel: Kernel | None = None, **limits: Any
    ) -> TunedSchedule:
        """The schedule of a path, tuned with draws of its start."""
        kernel = self.kernel if kernel is None else kernel
        x = sampler(path.start, path.end)(particles, self.generator)

        def tuned() -> TunedSchedule:
            return tune(path, x, self.generator, kernel=kernel, progress=self.progress, **limits)

        return self.staged(tuned, path, kernel)

    def grown(self, found: TunedSchedule) -> tuple[TunedSchedule, float]:
        """The tuning repeated with more particles as long as those descend from too few."""
        particles, spent = len(found.x), 0.0
        most = min(MAX_PARTICLES, MAX_NUMBERS // max(1, math.prod(self.target.event_shape)))
        while found.collapsed and GROWTH * particles <= most and not expensive(self.target):
            particles *= GROWTH
            found = self.tune(found.schedule.path, particles)
            spent += found.gradients
        return found, spent

    def staged(self, tuned: Callable[[], TunedSchedule], *known: Any) -> TunedSchedule:
        """A result, saved in the checkpoint where there is one."""
        generators = [self.generator]
        return stage(self.checkpoint, tuned, TunedSchedule, *known, generators=generators)

    def from_known(self, start: Energy | None) -> tuple[TunedSchedule | None, float]:
        """Down the levels of noise, or from the start; None where there is neither."""
        noised, spent = _noised(self.target), 0.0
        if diffusible(self.target):
            found = self.by_diffusion()
        elif noised is not None:
            normal, spent = self.normal(noised[0], 1.0)
            if normal is None:
                raise StalledError(f"chains of {noised[0]} wander beyond {MAX_COORDINATE:g}")
            found = self.tune(Stepped.through([normal, *noised]), PARTICLES)
        elif start is not None:
            path = Geometric(start, self.target)
            if quick(start):  # in its noise its own law is standard normal
                zeros = first_tensor(self.target).new_zeros(start.event_shape)
                normal = StandardNormal(zeros, torch.ones_like(zeros))
                path = Geometric(normal, Transported(self.target, start))
            found = self.tune(path, PARTICLES)
        else:
            return None, 0.0
        return found, spent + found.gradients

    def by_diffusion(self) -> TunedSchedule:
        """Reverse diffusion down the levels of noise."""
        path = NoisePath.to(self.target, self.generator)

        def tuned() -> TunedSchedule:
            return tune_diffusion(path, self.generator, kernel=self.kernel, progress=self.progress)

        return self.staged(tuned, ReverseDiffusion, path, path.approach, self.kernel)

    def from_normals(self) -> tuple[list[TunedSchedule], float]:
        """From normals fitted to chains at each temperature. Raises StalledError where none
        reaches the target."""
        d, found, spent = math.prod(self.target.event_shape), [], 0.0
        particles = max(PARTICLES, 64 * d) if d <= MAX_DIMENSIONS else PARTICLES
        for temperature in TEMPERATURES:
            normal, gradients = self.normal(self.target, temperature)
            spent += gradients
            if normal is None:
                continue
            try:
                found.append(self.tune(Geometric(normal, self.target), particles))
            except StalledError:
                continue
            spent += found[-1].gradients
        if not found:
            raise StalledError(
                f"no path from a normal reaches {self.target}; give init= points, or multiply by "
                "an expert that draws samples"
            )
        return found, spent

    def refined(self, best: TunedSchedule) -> tuple[TunedSchedule, float]:
        """The best schedule from starts that are fitted to particles, or the given one, and a
        fitted start that needs no moves, where there is one."""
        last, failures, spent = best, 0, 0.0
        if expensive(self.target):
            return best, spent
        start = None
        for number in range(MAX_REFINEMENTS):
            if last.collapsed:
                break
            start = fitted(last.to_x(), self.target, self.generator, start)
            if start is None:
                break
            weighed = WEIGHED_DRAWS * (1 + start.refits)
            self.progress.spend(weighed)
            best = best._replace(energies=best.energies + weighed)
            narrow = start.linked and not start.even and number < LINKED_ROUNDS
            if start.good and not narrow:
                return best._replace(fitted=start), spent
            few = len(best.schedule.levels) <= MAX_UNREFINED_LEVELS
            if few and start.start.pareto_k <= MAX_PARETO_K and not narrow:
                break
            path = Geometric(start.start.density, start.end)
            if narrow:  # a long way into a narrow end, in small steps
                last = self.tune(path, PARTICLES, max_correlation=-1.0, max_moves=LINKED_MOVES)
            else:
                last = self.tune(path, REFINED_PARTICLES)
            spent += last.gradients
            cost, least = last.schedule.gradients, best.schedule.gradients
            better = cost < MAX_COST_SHARE * least
            gained = last.log_ratio > best.log_ratio + MIN_LOG_Z_GAIN
            last = last._replace(energies=best.energies + last.energies)
            best = last if better or gained or cost <= least else best
            failures = 0 if better or gained or narrow else failures + 1
            if failures == 2:
                break
        return best, spent

    def normal(self, energy: Energy, temperature: float) -> tuple[StandardNormal | None, float]:
        """A normal with the mean of 64 chains at a temperature, and 1.5 times their standard
        deviation; None where the chains diverge although the target is proper: a heated one need
        not be, and chains of heavy tails wander far. Raises ValueError where they diverge at
        temperature 1 and it is not known to be proper."""
        like = first_tensor(energy)
        options: dict[str, Any] = {"dtype": like.dtype, "device": like.device}
        z = torch.randn(64 * 64, *energy.event_shape, generator=self.generator, **options)
        with torch.no_grad():
            good = z[energy(z).isfinite()]
        if not len(good):
            raise ValueError(why_no_start(energy, z))
        good = good[torch.arange(64, device=good.device) % len(good)]
        trace = run(
            Langevin(),
            energy if temperature == 1 else energy ** (1 / temperature),
            good,
            draws=50,
            warmup=200,
            generators=[self.generator],
            progress=self.progress,
            label="hot chains" if temperature > 1 else "chains that find a start",
            checkpoint=self.checkpoint,
        )
        x = trace.x.flatten(0, 1)
        if trace.partial:
            self.progress.keep(x, rough=temperature > 1)
            raise Stopped(self.progress.why)
        spent = trace.counts.gradients + len(z)
        if not bool(x.abs().max() < MAX_COORDINATE):
            if temperature != 1 or energy.proper:
                return None, spent
            raise ValueError(
                f"chains of {energy} diverge beyond {MAX_COORDINATE:g}: it seems improper, with no "
                "finite mass to draw from"
            )
        scale = 1.5 * x.std(0).clamp(min=1e-6)
        return StandardNormal(x.mean(0), scale), spent


def _noised(target: Energy) -> list[Energy] | None:
    """The target at decreasing levels of noise, where its experts have any."""
    if isinstance(target, Unconstrained):
        levels = noise_levels(target.energy)
        return None if levels is None else [target.around(level) for level in levels]
    return noise_levels(target)
