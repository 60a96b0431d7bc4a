"""Where drawing starts: samplable parts of the target, weighed by importance; where there are none,
normals found by hot chains."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from poe.algebra import support as sets
from poe.algebra.capabilities import quick
from poe.algebra.energy import Energy, Estimate
from poe.algebra.text import leaves
from poe.diagnostics.weights import pareto_k, weight_ess
from poe.kernels import Kernel, Langevin
from poe.mcmc.checkpoint import Checkpoint
from poe.mcmc.run import run
from poe.smc import discrete
from poe.smc.diffusion import ReverseDiffusion
from poe.smc.diffusion_tuning import tune_diffusion
from poe.smc.gaussians import Gaussians
from poe.smc.noise_path import NoisePath, diffusible, expensive
from poe.smc.triangular import MOST_DIMENSIONS, Triangular
from poe.smc.tuning import StalledError, TunedSchedule, tune
from poe.spaces import reals
from poe.spaces.noise import noise_levels
from poe.spaces.path import Geometric, Path, StandardNormal, Stepped
from poe.spaces.transport import Transported, Unconstrained

CANDIDATES = 4096  # draws of each samplable factor that are weighed
PARTICLES, REFINED = 1024, 4096  # of the first annealing pilot, and of those from fitted starts
ROUNDS = 6  # fitted starts, one from the particles of the other
SHORT = 2  # levels of a schedule that needs no nearer start
FAR = 1e12
SURE = 3.0  # standard errors by which a start must miss mass that another has met before it is left
HEAT = (
    1.0,
    16.0,
)  # temperatures at which chains look for the extent of a target that nothing is known of


class Start(NamedTuple):
    """A density that draws, in the space of the chains: its draws (n, *event), their log weights
    E_start - E_target in nats (-inf where the target has no mass or fails), their effective number,
    Pareto k, and how many have energy NaN."""

    density: Energy
    x: Tensor
    log_weights: Tensor
    ess: float
    pareto_k: float
    failed: int

    @property
    def log_z(self) -> Estimate | None:
        """log Z of what draws: 0 where the density draws a model whose energy is a bound of its
        -log p."""
        return Estimate(0.0) if getattr(self.density, "bound", False) else self.density.log_z

    @property
    def reach(self) -> tuple[float, float]:
        """log Z of the target as the weights have it, `SURE` standard errors less and as many
        more."""
        error = SURE * math.sqrt(max(1 / self.ess - 1 / len(self.x), 0.0))
        middle = float(self.log_weights.logsumexp(0)) - math.log(len(self.x)) + float(self.log_z)  # type: ignore[arg-type]
        return middle + (math.log1p(-error) if error < 1 else -math.inf), middle + math.log1p(error)


def nearest(
    densities: Sequence[Energy | None], target: Energy, generator: torch.Generator
) -> Start | None:
    """The density that draws with the most effective draws, weighed in the space of the target;
    None where none has any.

    One whose weights say less for Z than those of another surely do has missed mass, however even
    they are: it does not count.
    """
    weighed = [weigh(density, target, generator) for density in densities if density is not None]
    weighed = [start for start in weighed if start.ess > 0]
    known = {id(start): start.reach for start in weighed if start.density.log_z is not None}
    least = max((low for low, _ in known.values()), default=-math.inf)
    there = [start for start in weighed if id(start) not in known or known[id(start)][1] >= least]
    return max(there, key=lambda start: start.ess, default=None)


def sampler(start: Energy, target: Energy) -> Callable[[int, torch.Generator], Tensor]:
    """Draws of a start, for a target: discrete points keep their type."""

    def draw(n: int, generator: torch.Generator) -> Tensor:
        x = start.sample(n, generator=generator)  # type: ignore[operator]
        return x.to(target.device) if sets.is_discrete(target.support) else x.to(target._like())

    return draw


def weigh(start: Energy, target: Energy, generator: torch.Generator, n: int = CANDIDATES) -> Start:
    """n draws of a start, weighed. `start` and `target` live in the same space."""
    x = sampler(start, target)(n, generator)
    with torch.no_grad():
        logs = (start(x) - target(x)).double()
    failed = logs.isnan()
    logs = torch.where(failed, -math.inf, logs)
    return Start(start, x, logs, float(weight_ess(logs)), pareto_k(logs), int(failed.sum()))


def within(target: Energy, start: Energy) -> Energy | None:
    """The start in the space of the target; None where some of its draws would have no place
    there."""
    if not isinstance(target, Unconstrained):
        return start
    return (
        target.around(start)
        if sets.covers(reals.image(target.energy.support), start.support)
        else None
    )


def pilot(
    target: Energy,
    start: Energy | None,
    generator: torch.Generator,
    *,
    kernel: Kernel | None = None,
    progress: bool = False,
    checkpoint: Checkpoint | None = None,
) -> TunedSchedule:
    """A tuned schedule to the target: from the start, in its noise where it is a flow; without one,
    from the best that can be found.

    Where experts have noise levels, the path leads down those, and from a normal to the noisiest.
    Else, without a start, normals are fitted to chains of the target and of the target at
    temperature 16, whose wide moves reach modes that lie far apart. Of the schedules from either,
    one whose log Z is more than half a nat below the other's has missed mass; else the shorter one
    counts. To the particles of a schedule of more than `SHORT` levels a triangular map and a
    mixture of Gaussians in its noise are
    fitted: a start much nearer to the target, in variables that are easier to move in. That is done
    again with the particles of the schedule from there, until twice in a row the schedule grows no
    shorter.
    """
    if sets.is_discrete(target.support):
        return _discrete(target, start, generator, kernel, progress, checkpoint)
    mover = Langevin() if kernel is None else kernel

    def go(start: Energy, target: Energy, n: int = PARTICLES) -> TunedSchedule:
        return along(Geometric(start, target), n)

    def along(path: Path, n: int) -> TunedSchedule:
        start = path.start
        x = sampler(start, target)(n, generator)

        def tuned() -> TunedSchedule:
            return tune(path, x, generator, kernel=mover, progress=progress)

        return (
            tuned()
            if checkpoint is None
            else checkpoint.stage(tuned, TunedSchedule, path, mover, generators=[generator])
        )

    noised, spent = _noised(target), 0.0
    if diffusible(target):
        down = NoisePath.to(target, generator)

        def fallen() -> TunedSchedule:
            return tune_diffusion(down, generator, kernel=kernel, progress=progress)

        known = TunedSchedule, ReverseDiffusion, down, down.approach, mover
        found = [
            fallen()
            if checkpoint is None
            else checkpoint.stage(fallen, *known, generators=[generator])
        ]
    elif noised is not None:
        wide, spent = _extent(noised[0], 1.0, generator, checkpoint)
        found = [along(Stepped.through([wide, *noised]), PARTICLES)]
    elif start is not None and quick(
        start
    ):  # in the noise of a flow: there its own law is a standard normal
        like = target._like()
        noise = StandardNormal(like.new_zeros(start.event_shape), like.new_ones(start.event_shape))
        found = [go(noise, Transported(target, start))]
    elif start is not None:
        found = [go(start, target)]
    else:
        found = []
    spent += sum(p.gradients for p in found)
    enough = (
        max(PARTICLES, 64 * math.prod(target.event_shape))
        if math.prod(target.event_shape) <= MOST_DIMENSIONS
        else PARTICLES
    )
    for heat in () if found else HEAT:
        wide, gradients = _extent(target, heat, generator, checkpoint)
        spent += gradients
        try:
            found.append(go(wide, target, enough))
            spent += found[-1].gradients
        except StalledError:
            continue
    if not found:
        raise StalledError(
            f"no path from a normal reaches {target}; give init= points, or multiply by an expert "
            "that draws samples"
        )
    top = max(p.log_ratio for p in found)
    if not math.isfinite(top):
        raise ValueError(
            f"{target} has particles of energy -inf, or diverges: it seems improper, with no "
            "finite mass to draw from"
        )
    best = min((p for p in found if p.log_ratio > top - 0.5), key=lambda p: p.schedule.gradients)
    last, stale = best, 0
    for _ in range(ROUNDS if not expensive(target) and len(best.schedule.levels) > SHORT else 0):
        fitted = _fitted(last.to_x(), generator)
        if fitted is None:
            break
        map, near = fitted
        last = go(near, target if map is None else Transported(target, map), REFINED)
        spent += last.gradients
        better = (
            last.schedule.gradients < 0.9 * best.schedule.gradients
            or last.log_ratio > best.log_ratio + 0.1
        )
        best = last if better or last.schedule.gradients <= best.schedule.gradients else best
        stale = 0 if better else stale + 1
        if stale == 2:
            break
    return best._replace(gradients=spent)


def _discrete(
    target: Energy,
    start: Energy | None,
    generator: torch.Generator,
    kernel: Kernel | None,
    progress: bool,
    checkpoint: Checkpoint | None,
) -> TunedSchedule:
    def along(path: Geometric, mover: Kernel, n: int) -> TunedSchedule:
        x = sampler(path.start, path.end)(n, generator)

        def tuned() -> TunedSchedule:
            return tune(
                path,
                x,
                generator,
                kernel=mover,
                max_correlation=discrete.FORGET,
                max_moves=discrete.MOST,
                progress=progress,
            )

        return (
            tuned()
            if checkpoint is None
            else checkpoint.stage(tuned, TunedSchedule, path, mover, generators=[generator])
        )

    return discrete.pilot(target, start, along, kernel)


def _noised(target: Energy) -> list[Energy] | None:
    """The target at falling levels of noise, where its experts have any."""
    if isinstance(target, Unconstrained):
        levels = noise_levels(target.energy)
        return None if levels is None else [target.around(level) for level in levels]
    return noise_levels(target)


def _fitted(x: Tensor, generator: torch.Generator) -> tuple[Triangular | None, Gaussians] | None:
    """A map and a mixture in its noise, fitted to particles (n, *event): with the map, of none and
    two orders of the coordinates, that gives fresh particles the highest density. None where no
    mixture can be fitted."""
    half, rest = x[::2], x[1::2]
    best: tuple[float, bool | None] | None = None
    for backwards in (None, False, True):
        map = None if backwards is None else Triangular.fitted(half, backwards=backwards)
        if map is None and backwards is not None:
            continue
        z, (held, log_det) = (
            (half, (rest, 0.0)) if map is None else (map.to_noise(half)[0], map.to_noise(rest))
        )
        near = Gaussians.fitted(z, generator)
        if near is None:
            return None
        score = float((near.log_prob(held) + log_det).mean())
        if best is None or score > best[0] + 0.05:
            best = score, backwards
    assert best is not None
    map = None if best[1] is None else Triangular.fitted(x, backwards=best[1])
    near = Gaussians.fitted(x if map is None else map.to_noise(x)[0], generator)
    assert near is not None
    return map, near


def nowhere(target: Energy, z: Tensor) -> str:  # z (n, *reals)
    """Why no point has finite energy, naming the experts that fail."""
    energy = target.energy if isinstance(target, Unconstrained) else target
    x = target.to_x(z) if isinstance(target, Unconstrained) else z
    failing = []
    for part in leaves(energy):
        if part.event_shape == energy.event_shape:
            with torch.no_grad():
                bad = int(part(x).isnan().sum())
            failing += [f"{part} is NaN at {bad} of {len(x)}"] if bad else []
    why = (
        "; ".join(failing)
        if failing
        else "the energy is +inf at all of them; init= gives points where it is not"
    )
    return (
        f"found no starting point of finite energy for {energy} among {len(x)} draws of a "
        f"standard normal: {why}"
    )


def _extent(
    target: Energy, heat: float, generator: torch.Generator, checkpoint: Checkpoint | None
) -> tuple[StandardNormal, float]:
    """A normal with the spread of 64 chains at a temperature, half as wide again, and the gradients
    it took."""
    like = target._like()
    z = torch.randn(
        64 * 64, *target.event_shape, generator=generator, dtype=like.dtype, device=like.device
    )
    with torch.no_grad():
        good = z[target(z).isfinite()]
    if not len(good):
        raise ValueError(nowhere(target, z))
    good = good[torch.arange(64, device=good.device) % len(good)]
    hot = target if heat == 1 else target ** (1 / heat)
    trace = run(
        Langevin(), hot, good, draws=50, warmup=200, generators=[generator], checkpoint=checkpoint
    )
    x = trace.x.flatten(0, 1)
    if not bool(x.abs().max() < FAR):
        raise ValueError(
            f"chains of {target} diverge beyond {FAR:g}: it seems improper, with no finite "
            "mass to draw from"
        )
    return StandardNormal(x.mean(0), 1.5 * x.std(0).clamp(min=1e-6)), trace.counts.gradients + len(
        z
    )
