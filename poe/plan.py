"""How to draw: `plan` reads the structure and draws nothing; `sample` follows it, and decides what is left by counted evaluations."""

from __future__ import annotations

import math
import time
import warnings
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from poe import support as sets
from poe.capabilities import Enumerates, Proposes, Samples
from poe.diagnostics import RHAT_LIMIT, diagnose, judge, pareto_k, weight_ess
from poe.draws import Draws, first
from poe.energy import Contrast, Energy, Estimate, Mixture, Product, Shifted, caveats
from poe.kernels import Kernel, Langevin, Tempered
from poe.kernels.tempered import linear_betas
from poe.path import StandardNormal
from poe.rules import simplify
from poe.run import Trace, run, streams
from poe.transport import Unconstrained

MOST_STATES = 1 << 16  # discrete spaces up to this many points are enumerated
CANDIDATES = 4096  # draws of each samplable factor from which chains may start
PILOT = 64  # steps of the chains from which the gap between draws is found
MOST_GAP = 48
METHODS = ("exact", "enumerate", "chains", "tempered")


class ImproperWarning(UserWarning):
    """Nobody knows whether the target has finite mass."""


@dataclass(frozen=True)
class Plan:
    """What `sample` will do. `method` is one of "exact", "enumerate", "chains", "tempered"; chains turn to "tempered" when they
    disagree or are slow. `str(plan)` explains it."""

    method: str
    target: Energy
    reason: str
    starts: tuple[Energy, ...] = ()
    kernel: Kernel | None = None
    may_exchange: bool = False

    def __str__(self) -> str:
        lines = [f"{self.method}: {self.reason}"]
        if self.starts:
            lines.append("starts from " + ", ".join(str(start) for start in self.starts) + ", by importance resampling")
        elif self.method in ("chains", "tempered"):
            lines.append("starts from a standard normal in unconstrained space: no factor draws samples")
        if self.kernel is not None:
            lines.append(f"kernel {type(self.kernel).__name__}, {'exact' if self.kernel.exact else 'not exact: unadjusted'}")
        if self.may_exchange:
            lines.append("replica exchange from the start to the target if the chains disagree or are slow")
        return "\n".join(lines)


def plan(energy: Energy, *, method: str | None = None, kernel: Kernel | None = None) -> Plan:
    """How `sample` would draw from this energy, from its structure alone. Raises ValueError for a method that does not apply."""
    if method is not None and method not in METHODS:
        raise ValueError(f"method={method!r} is unknown; the methods are {', '.join(METHODS)}")
    closed = simplify(energy)
    if method in (None, "exact") and kernel is None and closed.can(Samples):
        what = "exact mixture, ancestral draws" if isinstance(closed, Mixture) else "closed form, independent draws"
        return Plan("exact", closed, what)
    if method == "exact":
        raise ValueError(f"{energy} has no exact draws: no closed form, or a part that cannot draw")
    discrete = sets.is_discrete(energy.support)
    states = _states(energy) if discrete else None
    if method == "enumerate" or (method is None and states is not None):
        if states is None:
            raise ValueError(f"{energy} cannot be enumerated: its support is not a finite set of at most {MOST_STATES:,} points")
        return Plan("enumerate", energy, f"all {states:,} points of a discrete space, exact")
    if discrete:
        raise ValueError(
            f"{energy} lives on a discrete space of more than {MOST_STATES:,} points and has no closed form: "
            "no method here draws from it; compose experts of one exponential family, or fewer variables"
        )
    langevin = Langevin() if kernel is None else kernel
    starts = () if isinstance(langevin, Tempered) else tuple(candidates(energy))
    chosen = "tempered" if method == "tempered" or isinstance(langevin, Tempered) else "chains"
    reason = "Langevin chains" if chosen == "chains" else "replica exchange of Langevin chains"
    space = "" if sets.is_real(energy.support) else ", in the unconstrained space"
    may_exchange = method is None and chosen == "chains" and isinstance(langevin, Langevin) and langevin.metropolis
    return Plan(chosen, energy, reason + space, starts, langevin, may_exchange)


def candidates(energy: Energy) -> list[Energy]:
    """Samplable parts whose draws may lie where the target has its mass: positive factors, mixture parts, the wanted side of `-`."""
    closed = simplify(energy)
    if closed.can(Samples):
        return [closed]
    if energy.can(Proposes):
        near = energy.proposal()  # type: ignore[operator]
        return [] if near is None else [near]
    if isinstance(energy, Product):
        inner = [t.energy for t in energy.terms if t.power > 0]
    elif isinstance(energy, Contrast):
        inner = [energy.wanted]
    elif isinstance(energy, (Mixture, Shifted)):
        inner = list(energy.parts)
    else:
        inner = []
    found: dict[int, Energy] = {}
    for part in inner:
        for start in candidates(part):
            if start.event_shape == energy.event_shape:
                found.setdefault(id(start), start)
    return list(found.values())


def sample(
    energy: Energy,
    draws: int = 1000,
    *,
    method: str | None = None,
    kernel: Kernel | None = None,
    chains: int | None = None,
    warmup: int | None = None,
    thin: int = 1,
    init: Tensor | None = None,
    seed: int | None = None,
    progress: bool = False,
    shards: int = 1,
    compile: bool = False,
    checkpoint: str | None = None,
    device: torch.device | str | None = None,
) -> Draws:
    """Draws from the density exp(-E) / Z of a composition, with their evidence.

    Arguments:
        draws: how many in all, over all chains.
        method: "exact", "enumerate", "chains" or "tempered"; chosen from the structure by default (see `poe.plan`), and "chains" where
            `init` or `warmup` is given.
        kernel: a kernel for the chains; `Langevin()` tuned in warm-up by default.
        chains: independent chains; by default up to 32.
        warmup: steps in which the kernel is tuned, not kept; 0 needs a kernel with a step size.
        thin: every thin-th draw is kept; between two draws lie as many steps as a pilot found useful.
        init: (chains, *event) points to start from, of finite energy.
        seed: of all randomness; drawn from torch's global generator by default.
        progress: show a bar on standard error.
        shards: fixed blocks of chains, each with its own random stream; draws depend on the seed and this number.
        compile: run the steps after warm-up in compiled blocks.
        device: where to draw; that of the energy by default.

    Raises:
        ValueError: the target is improper (its message says why), the arguments contradict each other, or no starting point of
            finite energy was found.
    """
    _check_arguments(energy, draws, chains, thin, shards)
    if checkpoint is not None:
        raise ValueError("checkpoint= is not supported yet: run shorter and save draws with draws.save(path)")
    if device is not None:
        energy = energy.to(device)
    _refuse_improper(energy)
    seed = int(torch.randint(2**62, ()).item()) if seed is None else seed
    if method is None and kernel is None and not (init is None and warmup is None):
        kernel = Langevin()  # only chains start somewhere and warm up
    chosen = plan(energy, method=method, kernel=kernel)
    settings = _Settings(draws, chains, warmup, thin, init, seed, progress, shards, compile)
    grads = [p for p in energy.parameters() if p.requires_grad]
    for parameter in grads:
        parameter.requires_grad_(False)  # drawing never needs their gradients, and the graph is smaller
    try:
        result = _EXACT[chosen.method](chosen, settings) if chosen.method in _EXACT else _Chains(energy, chosen, settings).draw()
    finally:
        for parameter in grads:
            parameter.requires_grad_(True)
    notes = list(caveats(energy))
    if energy.proper is None:
        note = f"nobody knows whether {energy} has finite mass (proper is unknown); if it has not, these draws mean nothing"
        warnings.warn(note, ImproperWarning, stacklevel=2)
        notes.append(note)
    return replace(result, expression=str(energy), plan=str(chosen), log_z=result.log_z or energy.log_z).warned(*notes)


@dataclass(frozen=True)
class _Settings:
    draws: int
    chains: int | None
    warmup: int | None
    thin: int
    init: Tensor | None
    seed: int
    progress: bool
    shards: int
    compile: bool


def _check_arguments(energy: Energy, draws: int, chains: int | None, thin: int, shards: int) -> None:
    if not isinstance(energy, Energy):
        raise TypeError(f"poe.sample draws from an energy, not a {type(energy).__name__}: poe.as_energy(model) wraps a model")
    for name, value, least in (("draws", draws, 0), ("chains", chains, 1), ("thin", thin, 1), ("shards", shards, 1)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < least):
            raise ValueError(f"{name} is a whole number of at least {least}, got {value!r}")
    if chains is not None and shards > chains:
        raise ValueError(f"{shards} shards need at least as many chains, got {chains}")


def _refuse_improper(energy: Energy) -> None:
    if energy.proper is not False:
        return
    if sets.is_empty(energy.support):
        places = "; ".join(f"{part}: {part.support!r}" for part in energy.parts)
        raise ValueError(f"nothing can be drawn from {energy}: the supports of its parts are disjoint ({places})")
    raise ValueError(
        f"{energy} is improper: exp(-E) has infinite mass, so there is nothing to draw from; multiply it by a proper factor "
        f"that falls off faster, such as `prior & {energy}`"
    )


def _states(energy: Energy) -> int | None:
    """How many points a discrete support has, where that is known and small enough."""
    if isinstance(energy.support, sets.Box) and energy.support.is_bounded:
        count = (energy.support.high - energy.support.low + 1).double().log2().sum().item()
        return round(2**count) if count <= math.log2(MOST_STATES) else None
    return None


def _points(energy: Energy) -> Tensor:
    """Every point of a small discrete box, (states, *event)."""
    box = energy.support
    assert isinstance(box, sets.Box)
    low, high = box.low.flatten(), box.high.flatten()
    if not len(low):
        return energy._like().new_zeros(1, *energy.event_shape)
    axes = [torch.arange(int(a), int(b) + 1) for a, b in zip(low, high, strict=True)]
    grid = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).reshape(-1, *energy.event_shape)
    return grid.to(energy.device)


def _exact(chosen: Plan, s: _Settings) -> Draws:
    started = time.perf_counter()
    (generator,) = streams(s.seed, 1, chosen.target.device)
    chains = s.chains or min(4, max(1, s.draws))
    x = chosen.target.sample((chains, -(-s.draws // chains)), generator=generator)  # type: ignore[operator]
    with torch.no_grad():
        energy = chosen.target(x)
    evidence = diagnose(x, energy, len(chosen.target.event_shape), seconds=time.perf_counter() - started, energies=energy.numel())
    return Draws(first(x, s.draws), x, energy, None, evidence, chosen.reason, "")


def _enumerate(chosen: Plan, s: _Settings) -> Draws:
    started = time.perf_counter()
    target = chosen.target
    (generator,) = streams(s.seed, 1, target.device)
    points = target.enumerate() if target.can(Enumerates) else _points(target)  # type: ignore[operator]
    with torch.no_grad():
        try:
            energy = target(points)
        except (TypeError, RuntimeError):  # binary experts work on floats, categorical ones on whole numbers
            points = points.to(target.dtype)
            energy = target(points)
    if bool(energy.isnan().any()):
        raise ValueError(f"{target} is NaN at {int(energy.isnan().sum())} of {len(points)} points; an expert fails there")
    logs = -energy.double()
    log_z = logs.logsumexp(0)
    if log_z == -math.inf:
        raise ValueError(f"{target} has energy +inf at every point: nothing can be drawn")
    chains = s.chains or min(4, max(1, s.draws))
    count = chains * -(-s.draws // chains)
    index = torch.multinomial((logs - log_z).exp(), max(count, 1), replacement=True, generator=generator)[:count]
    x = points[index].reshape(chains, -1, *target.event_shape) if count else points[:0].reshape(chains, 0, *target.event_shape)
    values = energy[index].reshape(chains, -1)
    evidence = diagnose(x, values, len(target.event_shape), seconds=time.perf_counter() - started, energies=len(points))
    return Draws(first(x, s.draws), x, values, Estimate(log_z.item()), evidence, chosen.reason, "")


_EXACT = {"exact": _exact, "enumerate": _enumerate}


class _Chains:
    """Chains, and replica exchange when they disagree or are slow: one run of `sample` from starts to draws."""

    def __init__(self, energy: Energy, chosen: Plan, s: _Settings) -> None:
        self.energy, self.chosen, self.s = energy, chosen, s
        self.space = None if sets.is_real(energy.support) else Unconstrained(energy)
        self.target: Energy = energy if self.space is None else self.space
        self.kernel: Any = chosen.kernel
        if s.init is not None:
            self.chains = s.init.shape[0] if s.init.ndim == len(energy.event_shape) + 1 else 0
            if self.chains == 0 or (s.chains is not None and s.chains != self.chains):
                raise ValueError(
                    f"init has shape {tuple(s.init.shape)}; it takes (chains, *event), event {tuple(energy.event_shape)}"
                )
        else:
            self.chains = s.chains or max(4, s.shards, min(32, s.draws // 25))
        if s.shards > self.chains:
            raise ValueError(f"{s.shards} shards need at least as many chains, got {self.chains}")
        self.per_chain = -(-s.draws // self.chains)
        self.generators = streams(s.seed, s.shards + 1, energy.device)
        self.shared = self.generators.pop()
        self.pareto_k, self.energies, self.gradients = float("nan"), 0, 0.0
        self.started = time.perf_counter()

    def draw(self) -> Draws:
        if self.s.draws == 0:
            empty = torch.empty(self.chains, 0, *self.energy.event_shape, dtype=self.energy.dtype, device=self.energy.device)
            nothing = empty.new_empty(self.chains, 0)
            evidence = diagnose(empty, nothing, len(self.energy.event_shape))
            return Draws(first(empty, 0), empty, nothing, None, evidence, self.chosen.reason, "", exact=self.kernel.exact)
        start, x = self._start()
        if self.chosen.method == "tempered":
            return self._finish(self._tempered(start, x), self.chosen.reason)
        pilot, gap = self._pilot(self.kernel, x, warmup=400, label="Langevin")
        may_exchange = self.chosen.may_exchange and self.s.init is None
        if may_exchange and 4 * gap > PILOT:  # R-hat is blind to a mode that no chain has had the time to find
            why = f"Langevin chains are slow: about {gap} steps between independent draws"
        else:
            trace = self._draws(pilot, gap, label="Langevin")
            disagree = self._disagreement(trace)
            if not (may_exchange and disagree > RHAT_LIMIT):
                return self._finish(trace, self.chosen.reason)
            pilot, why = trace, f"Langevin chains disagreed (R-hat {disagree:.2f})"
        start = self._fitted(pilot) if start is None else start
        return self._finish(self._tempered(start, x), f"replica exchange, for {why}")

    # ---- where chains start

    def _start(self) -> tuple[Energy | None, Tensor]:
        """The samplable factor nearest to the target, and starting points in the space of the chains."""
        like = self.energy._like()
        if self.s.init is not None:
            x = self.s.init.to(like)
            inside = sets.contains(self.energy.support, x)
            if not bool(inside.all()):
                raise ValueError(
                    f"{int((~inside).sum())} of {len(x)} points of init lie outside the support {self.energy.support!r}"
                )
            starts = self.chosen.starts
            return (starts[0] if starts else None), x if self.space is None else self.space.to_z(x)
        best: tuple[float, Energy | None, Tensor, Tensor] = (-1.0, None, like, like)
        for start in self.chosen.starts:
            x = start.sample(CANDIDATES, generator=self.shared).to(like)  # type: ignore[operator]
            with torch.no_grad():
                logs = start(x) - self.energy(x)
            self.energies += CANDIDATES
            logs = torch.where(logs.isfinite(), logs, -math.inf)  # where the target fails or has no mass, no chain starts
            size = weight_ess(logs)
            if size > max(best[0], 0):
                best = (size, start, x, logs)
        size, start, x, logs = best
        if start is None:
            if self.chosen.starts:
                warnings_from = ", ".join(map(str, self.chosen.starts))
                return None, self._from_normal(f"no draw of {warnings_from} has finite energy")
            return None, self._from_normal("it draws no samples")
        self.pareto_k = pareto_k(logs)
        if start is self.chosen.starts[0] and len(self.chosen.starts) == 1 and self.energy is start:
            chosen = torch.arange(self.chains)
        else:
            weights = (logs - logs.max()).double().exp()
            chosen = torch.multinomial(weights, self.chains, replacement=True, generator=self.shared)
        picked = x[chosen]
        return start, picked if self.space is None else self.space.to_z(picked)

    def _from_normal(self, why: str) -> Tensor:
        """Points of a standard normal in the space of the chains, those of finite energy."""
        like = self.energy._like()
        z = torch.randn(64 * self.chains, *self.target.event_shape, generator=self.shared, dtype=like.dtype, device=like.device)
        with torch.no_grad():
            finite = self.target(z).isfinite()
        self.energies += len(z)
        if not bool(finite.any()):
            raise ValueError(
                f"found no starting point of finite energy for {self.energy}: {why}, and {len(z)} draws of a standard normal all have "
                "energy +inf or NaN; give init="
            )
        good = z[finite]
        return good[torch.arange(self.chains, device=good.device) % len(good)]

    def _fitted(self, trace: Trace) -> Energy:
        """A normal with the spread of the pooled chains, twice as wide: where replica exchange starts when nothing draws samples."""
        z = trace.x.flatten(0, 1)
        return StandardNormal(z.mean(0), 2 * z.std(0).clamp(min=1e-6))

    # ---- running

    def _pilot(self, kernel: Kernel, x: Any, *, warmup: int, label: str) -> tuple[Trace, int]:
        """Warm-up and a pilot, and the number of steps that should lie between two draws: the autocorrelation time that the pilot's
        chains show, at most `MOST_GAP`."""
        given = self.chosen.kernel is not None and self.chosen.kernel.step_size is not None
        steps = self.s.warmup if self.s.warmup is not None else 0 if given else warmup
        if steps == 0 and kernel.step_size is None:
            raise ValueError("warmup=0 leaves no steps to find a step size in; give the kernel one, or some warmup")
        bar = f"{label} warm-up" if self.s.progress else None
        pilot = run(kernel, self.target, x, draws=PILOT, warmup=steps, generators=self.generators, progress=bar)
        self.gradients += pilot.counts.gradients
        evidence = diagnose(self._x(pilot.x), pilot.energy, len(self.energy.event_shape))
        size = min(evidence.ess_bulk, evidence.ess_tail)
        return pilot, int(min(MOST_GAP, max(1, round(pilot.energy.numel() / max(size, 1.0)))))

    def _draws(self, pilot: Trace, gap: int, *, label: str) -> Trace:
        """The draws, with the pilot's kernel and from its last states."""
        trace = run(
            pilot.kernel, self.target, pilot.states, draws=self.per_chain, thin=gap * self.s.thin, generators=self.generators,
            progress=label if self.s.progress else None, compile=self.s.compile,
        )  # fmt: skip
        self.gradients += trace.counts.gradients
        return trace

    def _disagreement(self, trace: Trace) -> float:
        evidence = diagnose(self._x(trace.x), trace.energy, len(self.energy.event_shape))
        return 0.0 if math.isnan(evidence.rhat) else max(evidence.rhat, evidence.rhat_energy)

    def _tempered(self, start: Energy | None, x: Tensor) -> Trace:
        """Replica exchange from the start: a ladder tuned and respaced in warm-up until its rejection rates are even."""
        kernel = self.kernel
        if not isinstance(kernel, Tempered):
            space = self.space
            if start is not None and space is not None and not isinstance(start, StandardNormal):
                # beyond the target's support its draws have no place in this space
                start = space.around(start) if sets.covers(self.energy.support, start.support) else None
            if start is None:
                start = StandardNormal(x.mean(0), 2 * x.std(0).clamp(min=1.0) if len(x) > 1 else torch.ones_like(x[0]))
            kernel = Tempered(start, linear_betas(8), self.kernel)
        walkers: Any = x
        for _ in range(2):
            bar = "ladder" if self.s.progress else None
            pilot = run(kernel, self.target, walkers, draws=20, warmup=40, generators=self.generators, progress=bar)
            self.gradients += pilot.counts.gradients
            rejection = 1 - torch.stack([state.swapped for state in pilot.states]).mean(0)
            rungs = int(min(24, max(4, math.ceil(1.3 * float(rejection.sum())) + 2)))
            old, kernel = pilot.kernel.betas, pilot.kernel.respaced(rejection, rungs)  # type: ignore[attr-defined]
            nearest = (old.unsqueeze(0) - kernel.betas.unsqueeze(1)).abs().argmin(1)
            walkers = torch.cat([state.rungs.x for state in pilot.states])[:, nearest]
        return self._draws(*self._pilot(kernel, walkers, warmup=60, label="replica exchange"), label="replica exchange")

    # ---- what comes back

    def _x(self, z: Tensor) -> Tensor:
        return z if self.space is None else self.space.to_x(z)

    def _finish(self, trace: Trace, method: str) -> Draws:
        x = self._x(trace.x)
        with torch.no_grad():
            energy = trace.energy if self.space is None else self.energy(x)
        swaps = float("nan")
        if "swapped" in trace.states[0]._fields:
            swaps = torch.stack([state.swapped for state in trace.states]).mean(0).min().item()
        evidence = diagnose(
            x, energy, len(self.energy.event_shape),
            acceptance=trace.counts.acceptance, divergent=trace.counts.divergent, nonfinite=trace.counts.nonfinite,
            gradients=self.gradients, energies=self.energies, seconds=time.perf_counter() - self.started,
            pareto_k=self.pareto_k, swaps=swaps,
        )  # fmt: skip
        said = judge(evidence, self.s.draws, exact_draws=False)
        if trace.partial:
            said.append(f"interrupted: {x.shape[1]} of {self.per_chain} draws a chain are there")
        if not trace.kernel.exact:
            said.append(
                "the kernel is unadjusted: its stationary law differs from the target by a bias of the order of its step size"
            )
        return Draws(
            first(x, self.s.draws), x, energy, None, evidence, method, "", tuple(said), trace.kernel.exact, trace.partial
        )
