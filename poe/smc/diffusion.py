"""Particles carried down levels of noise: reverse diffusion of a composition, with weights and
Metropolis moves that make it exact.

E_k is the target at noise σ_k, σ_0 > σ_1 > ... , and s_k its own spread of noise, 1 / 2s² nats per
squared unit of x (`spread`: a product of two noised densities has s = σ/√2). From a particle x of
level k - 1, with gradient g = ∇E_{k-1}(x) and δ = s²_{k-1} - s²_k,

    x' = x - δ g + √v ξ,     v = s_k² δ / s²_{k-1},     ξ ~ N(0, 1):

exact where x was x₀ + noise with a single x₀, which is then x - s²_{k-1} g (Tweedie's formula).
Noise put back on x' would have led to x with density N(x; x', δ), so that on pairs (x, x') the
weight

    log w = E_{k-1}(x) - E_k(x') + log N(x; x', δ) - log N(x'; x - δ g, v)

turns what was drawn into the law exp(-E_k(x')) / Z_k of x', whatever the levels are, and has mean
Z_k / Z_{k-1}. A product of noised
densities is not the noised product, and its score leads to neither: the weights put that right, and
Metropolis moves at each level forget where resampled particles came from. Where δ is not positive,
particles stay and log w = E_{k-1}(x) - E_k(x). In many dimensions networks can be too wrong by
value for these weights. Of experts that say so (`Scored`, `Rough`) what energies gain on the way
follows from scores (`poe.smc.scores`), draws are of the densities behind those, and the report says
it. Where those are not the gradients of any energy at hand (`Scored`), there are no moves but at
the last level, more levels, and less resampling: weights err at each level, and most of that
cancels on the way. There the weights of the first levels, where it is settled what a particle will
show, decide how many stay independent; so more particles set out than arrive, as many as the pilot
finds are needed.

References: Del Moral, Doucet and Jasra 2006, J. R. Statist. Soc. B 68(3) (weights on pairs, section
3.3); Ho, Jain and Abbeel 2020, NeurIPS (v); Wu, Trippe, Naesseth, Blei and Cunningham 2023,
NeurIPS, and Du et al. 2023, ICML (particles and MCMC for compositions).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm.auto import tqdm

from poe.algebra.energy import Energy
from poe.diagnostics.weights import weight_ess
from poe.kernels import Kernel, Langevin
from poe.smc.annealing import MOST_LEVELS, SETTLE, Pilot, Schedule, StalledError, tune
from poe.smc.resampling import correlation, resampled
from poe.smc.scores import Followed, gain, rest
from poe.smc.spread import by_scores, spread
from poe.spaces.noise import noise_range
from poe.spaces.path import Geometric, StandardNormal, take

PARTICLES = 64  # of the pilot
CENTRES = 3  # steps by which the centre of the noisiest level is found, from 64 points each
MOVES, LAST = 2, 32  # Metropolis moves of a level; of the last one at the most
STRIDE, LEAST = 0.2, 0.005  # largest and smallest fall of log σ from one level to the next
FINE = 0.06  # the largest where nothing but reverse diffusion moves particles
AHEAD = 0.7  # more set out there, until so much of the share that is effective will stay so,
DEARER = 3  # for at most so many times the cost
WORN = 0.1  # share of effective particles below which they are resampled there, half elsewhere
KEEP, EASY = (
    0.8,
    0.92,
)  # share of effective particles that a fall must keep, and that makes the next one longer


class At(NamedTuple):
    """Particles at rest: positions, energies in nats, gradients; and, where gains follow from
    scores, the energies of the experts (*batch, k) and the gradient of the reference, else (*batch,
    0) both."""

    x: Tensor
    energy: Tensor
    gradient: Tensor
    values: Tensor
    slope: Tensor


class Rung(NamedTuple):
    """A level of noise (units of x; 0 is the target), and how often which kernel moves particles
    there."""

    sigma: float
    kernel: Kernel
    moves: int


@dataclass(frozen=True)
class Noised:
    """The path of a target down its levels of noise, from a normal that draws the noisiest one
    nearly; `approach` leads from that to this; `by_scores`: what densities gain on the way follows
    from scores (`poe.smc.scores`), not from energies; `mass`: log Z in nats of the reference's
    energy at the noisiest level, which is taken off where scores are followed that are not its own
    (`Scored`)."""

    start: StandardNormal
    end: Energy
    approach: Geometric
    by_scores: bool = False
    mass: float = 0.0

    @classmethod
    def to(cls, target: Energy, generator: torch.Generator) -> Noised:
        """The path to a target for which `falls` holds. Raises ValueError where the noisiest level
        has no finite gradient."""
        high = max(noise_range(target))
        top, scores = target.at(high), by_scores(target)
        wide = spread(top, high) or math.inf
        start = _around(top, wide, generator)
        followed = Followed(top, guided=True) if scores else None
        mass = (
            _mass(followed.reference, wide, generator)
            if followed is not None and followed.guided
            else 0.0
        )
        return cls(start, target, Geometric(start, top), scores, mass)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_levels", {})

    @property
    def guided(self) -> bool:
        """Whether scores are followed that are not the gradients of the energies."""
        top = self.level(max(noise_range(self.end)))[0]
        return isinstance(top, Followed) and top.guided

    def level(self, sigma: float) -> tuple[Energy, float | None]:
        """The target at a level, and its spread of noise."""
        levels: dict[float, tuple[Energy, float | None]] = self._levels  # type: ignore[attr-defined]
        if sigma not in levels:
            energy = self.end.at(sigma)
            levels[sigma] = (
                Followed(energy, guided=sigma > 0) if self.by_scores else energy,
                spread(energy, sigma),
            )
        return levels[sigma]


@dataclass(frozen=True)
class Descent:
    """How particles go down levels of noise: by a schedule from a normal to the noisiest level,
    then by `rungs`. `crowd` times as many set out as arrive, and stay so many for the first
    `crowded` rungs."""

    path: Noised
    approach: Schedule
    rungs: tuple[Rung, ...]
    crowd: int = 1
    crowded: int = 0

    @property
    def levels(self) -> tuple[Any, ...]:
        return (*self.approach.levels, *self.rungs)

    @property
    def gradients(self) -> int:
        """Gradients of the target for one particle that arrives."""
        each = [1 + round(rung.moves * rung.kernel.gradients_per_step) for rung in self.rungs]
        return (
            self.approach.gradients * self.crowd
            + sum(each)
            + (self.crowd - 1) * sum(each[: self.crowded])
        )

    @property
    def energies(self) -> int:
        return 0

    @property
    def work(self) -> int:
        """Moves and levels of one that sets out, whatever they cost."""
        return self.approach.work + sum(rung.moves for rung in self.rungs) + len(self.rungs)

    def refined(self, times: int) -> Descent:
        """The same with each fall cut into `times`, all moved by the kernel of its end."""
        rungs, before, crowded = [], max(noise_range(self.path.end)), 0
        for index, rung in enumerate(self.rungs):
            if rung.sigma > 0:
                falls = (before * (rung.sigma / before) ** (i / times) for i in range(1, times))
                rungs += [rung._replace(sigma=sigma) for sigma in falls]
                before = rung.sigma
            rungs.append(rung)
            crowded = len(rungs) if index < self.crowded else crowded
        return replace(
            self, approach=self.approach.refined(times), rungs=tuple(rungs), crowded=crowded
        )

    def carry(self, x: Tensor, generator: torch.Generator, resample: bool, bar: Any) -> tuple:
        """Populations (r, n, *event) to the target, as the fields of `Population`; n / `crowd` of
        each arrive if they are resampled."""
        x, _, logs, log_ratio, ancestors, acceptance, nonfinite, divergent = self.approach.carry(
            x, generator, resample, bar
        )
        log_ratio = (
            log_ratio - logs.logsumexp(1) + math.log(x.shape[1])
        )  # what is in the weights is still to be counted
        log_ratio = log_ratio - self.path.mass
        accepted = [acceptance]
        sigma = max(noise_range(self.path.end))
        state, few = _at_rest(self.path.level(sigma)[0], x), x.shape[1] // self.crowd
        for index, rung in enumerate(self.rungs):
            fallen, increment = _fall(self.path, state, sigma, rung.sigma, generator)
            nonfinite += int(increment.isnan().sum())
            logs = logs + torch.where(increment.isnan(), -math.inf, increment)
            if resample:
                last = index == len(self.rungs) - 1
                order, logs, gained = resampled(
                    logs,
                    generator,
                    always=last,
                    below=WORN if self.path.guided else 0.5,
                    count=few if index == self.crowded - 1 else None,
                )
                fallen, log_ratio = At(*(take(part, order) for part in fallen)), log_ratio + gained
                ancestors = ancestors.gather(1, order)
            sigma = rung.sigma
            state, seen = _moved(
                rung.kernel, self.path.level(sigma)[0], fallen, rung.moves, generator
            )
            accepted += [info.acceptance.mean().item() for info in seen]
            nonfinite += sum(int(info.nonfinite.sum()) for info in seen)
            divergent += sum(int(info.divergent.sum()) for info in seen)
            bar.update()
        log_ratio = log_ratio + logs.logsumexp(1) - math.log(logs.shape[1])
        return (
            state.x,
            state.energy,
            logs,
            log_ratio,
            ancestors,
            sum(accepted) / len(accepted),
            nonfinite,
            divergent,
        )

    def back(self, x: Tensor, generator: torch.Generator) -> Tensor:  # (n, *event) -> (n)
        """log weights of draws of the target that are carried back to the start; exp of them has
        mean Z_0 / Z."""
        sigmas = [max(noise_range(self.path.end)), *(rung.sigma for rung in self.rungs)]
        logs = torch.zeros(len(x), dtype=torch.float64, device=x.device)
        state = _at_rest(self.path.level(sigmas[-1])[0], x)
        for rung, higher in zip(self.rungs[::-1], sigmas[-2::-1], strict=True):
            (_, above), (_, below) = self.path.level(higher), self.path.level(rung.sigma)
            if rung is not self.rungs[-1]:
                state, _ = _moved(
                    rung.kernel, self.path.level(rung.sigma)[0], state, rung.moves, generator
                )
            noise = torch.randn(state.x.shape, generator=generator, dtype=x.dtype, device=x.device)
            raised = _at_rest(
                self.path.level(higher)[0],
                state.x + math.sqrt(max(_variance(above, below), 0)) * noise,
            )
            logs = logs - _log_weight(self.path, raised, state, higher, rung.sigma)
            state = raised
        return logs + self.approach.back(state.x, generator) + self.path.mass


def descend(
    path: Noised,
    generator: torch.Generator,
    *,
    kernel: Kernel | None = None,
    progress: bool = False,
) -> Pilot:
    """Tunes a descent with one population that is resampled at each level: falls of log σ that keep
    `KEEP` of the effective particles, and kernels whose step size follows their acceptance, in
    units of the spread of noise. Where scores are followed that are no energy's, falls are of
    `FINE`, whatever they keep, as most of what weights err by cancels later; and for each particle
    that arrives so many set out that as many are effective at the rung from which on they keep
    `AHEAD` of that, or what `DEARER` allows.

    Raises StalledError where that takes more than `MOST_LEVELS` levels.
    """
    target = path.end
    low, high = noise_range(target)
    x = path.start.sample(PARTICLES, generator=generator)
    first = tune(path.approach, x, generator, kernel=kernel, most=MOVES, progress=progress)
    top = path.level(high)[0]
    longest = FINE if path.guided else STRIDE
    log_ratio, sigma, stride, rungs = first.log_ratio - path.mass, high, longest, []
    logs, worn, kept = torch.zeros(1, PARTICLES, dtype=torch.float64, device=x.device), 1.0, []
    state = _at_rest(top, first.x)
    mover = Langevin() if kernel is None else kernel
    mover = mover.tuned(
        mover.guess(state.x[0].numel()) if mover.step_size is None else mover.step_size
    )
    with tqdm(
        total=1.0,
        desc="falling pilot",
        disable=not progress,
        leave=False,
        bar_format="{desc}: {percentage:3.0f}%",
    ) as bar:
        while sigma > 0:
            aim = sigma * math.exp(-stride)
            aim = 0.0 if sigma <= low else low if aim < low * math.exp(LEAST) else aim
            fallen, increment = _fall(path, state, sigma, aim, generator)
            weighed = logs + torch.where(increment.isnan(), -math.inf, increment)
            if not bool((weighed > -math.inf).any()):
                raise ValueError(f"no particle of {target} has finite energy at noise {aim:g}")
            share = float(weight_ess(weighed)) / PARTICLES
            if not path.guided and share < KEEP and aim > 0 and stride > LEAST:
                stride = max(LEAST, 0.6 * stride)
                continue
            if len(rungs) == MOST_LEVELS:
                raise StalledError(f"more than {MOST_LEVELS} levels of noise to {target}")
            stride = min(longest, 1.3 * stride) if share > EASY else stride
            kept.append(worn * share)
            order, logs, gained = resampled(
                weighed, generator, always=aim == 0 or not path.guided, below=WORN
            )
            worn *= share if not logs.any() else 1.0
            log_ratio += float(gained)
            state = At(*(part[order[0]] for part in fallen))
            rung, state = _settle(mover, path, aim, state, generator)
            bar.update(math.log(sigma / max(aim, low)) / math.log(high / low))
            mover, sigma = rung.kernel, aim
            rungs.append(rung)
    descent = Descent(path, first.schedule, tuple(rungs))
    spent = (
        first.gradients + (descent.gradients - first.schedule.gradients) * PARTICLES + CENTRES * 64
    )
    if path.guided:
        last = next(i for i, share in enumerate(kept) if kept[-1] >= AHEAD * share)
        twice = replace(descent, crowd=2, crowded=last + 1)
        most = 1 + (DEARER - 1) * descent.gradients // (twice.gradients - descent.gradients)
        descent = replace(twice, crowd=min(math.ceil(1 / kept[last]), most))
    return Pilot(descent, state.x, log_ratio, float(spent))


def _around(top: Energy, wide: float, generator: torch.Generator) -> StandardNormal:
    """A normal near the noisiest level: spread as its noise, about the mean of what is behind it, x
    - s²∇E."""
    like = top._like()
    centre, more = like.new_zeros(top.event_shape), like.new_zeros(top.event_shape)
    for _ in range(CENTRES):
        noise = torch.randn(
            64, *top.event_shape, generator=generator, dtype=like.dtype, device=like.device
        )
        x = centre + (wide**2 + more).sqrt() * noise
        behind = x - wide**2 * top.value_and_grad(x)[1]
        if not bool(behind.isfinite().all()):
            raise ValueError(
                f"{top} has no finite gradient at "
                f"{int((~behind.isfinite()).flatten(1).any(1).sum())} of 64 points"
            )
        centre, more = behind.mean(0), behind.var(0)
    return StandardNormal(centre, (wide**2 + more).sqrt())


def _mass(expert: Energy, wide: float, generator: torch.Generator) -> float:
    """log ∫ exp(-E) dx, in nats, of an expert at the noisiest level, by importance sampling from
    the normal around it."""
    normal = _around(expert, wide, generator)
    x = normal.sample(4 * PARTICLES, generator=generator)
    with torch.no_grad():
        logs = -expert(x).double() - normal.log_prob(x).double()
    return float(logs.logsumexp(0)) - math.log(len(x))


def _at_rest(energy: Energy, x: Tensor) -> At:
    value, gradient = energy.value_and_grad(x)
    if isinstance(energy, Followed) and (last := energy.remembered()) is not None:
        return At(x, value, gradient, *last)
    nothing = value.new_empty(*value.shape, 0)
    return At(x, value, gradient, nothing, nothing)


def _variance(above: float | None, below: float | None) -> float:
    """δ, in units of x²; 0 where particles stay."""
    return 0.0 if above is None or below is None else above**2 - below**2


def _fall(
    path: Noised, state: At, sigma: float, to: float, generator: torch.Generator
) -> tuple[At, Tensor]:
    """Particles of the level σ at a lower one, and their log weights in nats, NaN where the energy
    fails there."""
    (_, above), (lower, below) = path.level(sigma), path.level(to)
    fall, x = _variance(above, below), state.x
    if fall > 0:
        assert above is not None and below is not None
        noise = torch.randn(x.shape, generator=generator, dtype=x.dtype, device=x.device)
        x = x - fall * state.gradient + below * math.sqrt(fall) / above * noise
    fallen = _at_rest(lower, x)
    return fallen, _log_weight(path, state, fallen, sigma, to)


def _log_weight(path: Noised, high: At, low: At, sigma: float, to: float) -> Tensor:  # -> (*batch)
    (upper, above), (lower, below) = path.level(sigma), path.level(to)
    fall = _variance(above, below)
    logs = high.energy.double() - low.energy.double()
    if (
        isinstance(upper, Followed)
        and isinstance(lower, Followed)
        and max(to, min(noise_range(path.end))) < upper.rough_below
    ):
        logs = rest(upper, lower, high.x, high.values, low.x)
    elif fall > 0:
        assert above is not None and below is not None
        if isinstance(upper, Followed) and isinstance(lower, Followed):
            logs = gain(upper, lower, high.x, high.values, high.slope, low.x, low.values)
        event = high.energy.ndim
        away, ahead = high.x - low.x, low.x - high.x + fall * high.gradient
        squares = [part.double().square().flatten(event).sum(-1) for part in (away, ahead)]
        d, variance = high.x.shape[event:].numel(), (below / above) ** 2 * fall
        logs = (
            logs
            - squares[0] / (2 * fall)
            + squares[1] / (2 * variance)
            + d * math.log(below / above)
        )
    failed = low.energy.isnan() | low.gradient.flatten(low.energy.ndim).isnan().any(-1)
    return torch.where(failed, math.nan, torch.where(low.energy == math.inf, -math.inf, logs))


class _Known(Energy):
    """An energy whose value and gradient at one place are known already."""

    def __init__(self, energy: Energy, at: At) -> None:
        super().__init__(energy.event_shape)
        self.energy, self._at = energy, at

    def forward(self, x: Tensor) -> Tensor:
        return self.energy(x)

    def _value_and_grad(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return (
            (self._at.energy, self._at.gradient)
            if x.data_ptr() == self._at.x.data_ptr()
            else self.energy.value_and_grad(x)
        )


def _moved(
    kernel: Kernel, energy: Energy, at: At, moves: int, generator: torch.Generator
) -> tuple[At, list[Any]]:
    """The particles after so many moves, at rest, and what the moves report."""
    inner, seen = kernel.init(_Known(energy, at), at.x), []
    for _ in range(moves):
        inner, info = kernel.step(energy, inner, kernel.noise(inner, generator))
        seen.append(info)
        # of the proposal, which the step evaluated last
        if isinstance(energy, Followed) and (last := energy.remembered()) is not None:
            new = zip(last, at[3:], strict=True)
            at = at._replace(
                **dict(
                    zip(
                        ("values", "slope"),
                        (_where(info.accepted, a, b) for a, b in new),
                        strict=True,
                    )
                )
            )
    end = kernel.walkers(inner)
    if end.gradient.shape != end.x.shape or (
        kernel.parts and isinstance(energy, Followed)
    ):  # several proposals a step
        return _at_rest(energy, end.x), seen
    at = At(end.x, end.energy, end.gradient, at.values, at.slope)
    return at, seen


def _where(chosen: Tensor, a: Tensor, b: Tensor) -> Tensor:
    # (*batch), (*batch, ...), (*batch, ...) -> (*batch, ...)
    return torch.where(chosen.reshape(chosen.shape + (1,) * (a.ndim - chosen.ndim)), a, b)


def _settle(
    mover: Kernel, path: Noised, sigma: float, state: At, generator: torch.Generator
) -> tuple[Rung, At]:
    """The kernel for a level, its step size tuned while it moves the particles: at the last level
    until the energy has forgotten. No moves where scores are followed that are no energy's."""
    energy, wide = path.level(sigma)
    if isinstance(energy, Followed) and energy.guided:
        return Rung(sigma, mover, 0), state
    d = state.x[0].numel()
    scale = (
        mover.scale
        if wide is None
        else torch.full((d,), wide, dtype=state.x.dtype, device=state.x.device)
    )
    before, moves, most = state.energy, 0, MOVES if sigma > 0 else LAST
    while moves < MOVES or (moves < most and correlation(before, state.energy) > SETTLE):
        mover = mover.tuned(mover.step_size, scale)  # type: ignore[arg-type]
        state, (info,) = _moved(mover, energy, state, 1, generator)
        moves += 1
        if mover.target_acceptance is not None:
            error = info.acceptance.mean() - mover.target_acceptance
            step = (
                torch.as_tensor(mover.step_size).to(state.energy)
                * (2 * error / math.sqrt(moves)).exp()
            )
            mover = mover.tuned(step, scale)
    return Rung(sigma, mover, moves), state
