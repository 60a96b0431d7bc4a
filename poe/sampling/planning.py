"""How to draw: `plan` reads the structure and draws nothing; `sample` follows it, and decides what
is left by counted evaluations."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from poe.algebra import support as sets
from poe.algebra.capabilities import Samples, ScoreOnly
from poe.algebra.checks import energies_of
from poe.algebra.energy import Energy
from poe.algebra.errors import ImproperWarning
from poe.algebra.frozen import frozen
from poe.algebra.mixture import Mixture
from poe.algebra.outline import FURTHER
from poe.algebra.rules import simplify
from poe.algebra.text import caveats, leaves
from poe.diagnostics.draws import Draws, first
from poe.diagnostics.evidence import diagnose
from poe.kernels import Kernel, Langevin, Tempered
from poe.kernels.defaults import default_kernel
from poe.mcmc import parallel
from poe.mcmc.checkpoint import Checkpoint
from poe.mcmc.run import branch, streams
from poe.sampling import methods
from poe.sampling.agreement import agreement
from poe.sampling.arguments import _check_arguments, _check_chains, _check_device, refuse_improper
from poe.sampling.chains import chains as chains_of
from poe.sampling.chains import tempered
from poe.sampling.methods import Job, NotThisWay
from poe.smc.sequential import line
from poe.smc.spread import dear
from poe.smc.starts import candidates
from poe.spaces.noise import noise_levels
from poe.spaces.points import MOST_STATES, enumerable
from poe.spaces.sites import box_of
from poe.spaces.transport import reals_of

METHODS = (
    "exact",
    "enumerate",
    "parts",
    "sequential",
    "importance",
    "annealed",
    "chains",
    "tempered",
)
WORDS = {
    "exact": "closed form, independent draws",
    "enumerate": "all points of a discrete space",
    "parts": "each part of the mixture for itself, in the shares that their log Z and weights say",
    "sequential": "sequential Monte Carlo along the order of the autoregressive factors",
    "importance": "importance resampling of a part that draws samples",
    "annealed": "annealed particles (sequential Monte Carlo)",
    "chains": "chains",
    "tempered": "replica exchange",
}


@dataclass(frozen=True)
class Plan:
    """What `sample` will do: `methods` in the order in which they are tried, each where the
    evidence of the one before is not enough; `method` is the first. `str(plan)` explains it."""

    methods: tuple[str, ...]
    target: Energy
    reason: str
    starts: tuple[Energy, ...] = ()
    kernel: Kernel | None = None

    @property
    def method(self) -> str:
        """The method that is tried first."""
        return self.methods[0]

    @property
    def noised(self) -> bool:
        """Whether particles are annealed along levels of noise."""
        return self.method == "annealed" and noise_levels(self.target) is not None

    def words(self, name: str) -> str:
        """What a method of this plan is."""
        return (
            "chains from annealed particles"
            if name == "chains" and "annealed" in self.methods
            else WORDS[name]
        )

    def __str__(self) -> str:
        lines = [f"{self.method}: {self.reason}"]
        if self.method in ("exact", "enumerate", "parts"):
            return lines[0]
        if self.starts and not self.noised:
            lines.append(
                "starts from "
                + ", ".join(str(start) for start in self.starts)
                + ", weighed by importance"
            )
        elif self.noised:
            lines.append(
                "starts from a normal, and goes down the noise levels that the experts share"
            )
        elif sets.is_discrete(self.target.support):
            lines.append("starts from values drawn evenly for each site")
        else:
            lines.append(
                "starts from a normal that chains find, in unconstrained space: no factor draws "
                "samples"
            )
        if self.kernel is not None:
            lines.append(
                f"kernel {type(self.kernel).__name__}, "
                f"{'exact' if self.kernel.exact else 'not exact: unadjusted'}"
            )
        lines += [
            f"then {name}: {self.words(name)}, if the evidence is not enough"
            for name in self.methods[1:]
        ]
        return "\n".join(lines)


def plan(energy: Energy, *, method: str | None = None, kernel: Kernel | None = None) -> Plan:
    """How `sample` would draw from this energy, from its structure alone. Raises ValueError for a
    method that does not apply, and TypeError for an expert that is a score without an energy,
    unless the kernel is made for those."""
    (energy,) = energies_of([energy], "plan")
    scored = [part for part in leaves(energy) if part.can(ScoreOnly)]
    if scored and (kernel is None or kernel.exact):
        raise TypeError(
            f"{scored[0]} has a score and no energy: draw products of it by poe.sample(..., "
            "kernel=poe.LineIntegral(), init=points)"
        )
    if method is not None and method not in METHODS:
        raise ValueError(f"method={method!r} is unknown; the methods are {', '.join(METHODS)}")
    closed = simplify(energy)
    if method in (None, "exact") and kernel is None and closed.can(Samples):
        what = "exact mixture, ancestral draws" if isinstance(closed, Mixture) else WORDS["exact"]
        return Plan(("exact",), closed, what)
    if method == "exact":
        if closed.can(Samples):
            raise ValueError(
                f"{energy} has exact draws, and they use no kernel: leave out kernel= or method="
            )
        raise ValueError(f"{energy} has no exact draws: no closed form, or a part that cannot draw")
    if kernel is not None and method in ("enumerate", "importance", "parts", "sequential"):
        raise ValueError(
            f"method={method!r} moves nothing by a kernel: leave out kernel= and compile=, or the "
            "method"
        )
    discrete = sets.is_discrete(energy.support)
    states = enumerable(energy) if discrete else None
    if method == "enumerate" or (method is None and states is not None and kernel is None):
        if states is None:
            raise ValueError(
                f"{energy} cannot be enumerated: its support is not a finite set of at most "
                f"{MOST_STATES:,} points"
            )
        return Plan(("enumerate",), energy, f"all {states:,} points of a discrete space, exact")
    if discrete and box_of(energy) is None:
        raise ValueError(
            f"{energy} is discrete, without a closed form or a finite number of values a "
            "coordinate: nothing here draws it; "
            "multiply it by a factor over finitely many, such as a Binomial"
        )
    shares = energy.shares if isinstance(energy, Mixture) else None
    if method == "parts" and shares is None:
        raise ValueError(
            f"{energy} is no mixture of parts whose log Z are known: poe.normalize gives parts "
            "that are"
        )
    if method == "parts" or (
        method is None and kernel is None and shares is not None and not discrete
    ):
        return Plan(("parts",), energy, WORDS["parts"])
    if not discrete:
        reals_of(energy)  # refuses a support in which nothing moves
    starts = tuple(candidates(energy))
    if method == "sequential" and line(energy) is None:
        raise ValueError(
            f"{energy} has no autoregressive factor over discrete values: there is no order to "
            "follow"
        )
    if method == "importance" and not starts:
        raise ValueError(
            f"{energy} has no part that draws samples, so there is nothing to resample by "
            "importance"
        )
    if isinstance(kernel, Tempered) and method in (None, "tempered"):
        methods: tuple[str, ...] = ("tempered",)
    elif method is not None:
        if (
            method == "annealed"
            and kernel is not None
            and not (kernel.exact and kernel.plain and kernel.target_acceptance)
        ):
            raise ValueError(
                "annealed particles move by exact kernels with a step size of their own, not by "
                f"{kernel}"
            )
        methods = (method,)
    elif discrete and kernel is None:
        ordered = ("sequential",) if line(energy) is not None else ()
        methods = (*ordered, *(("importance",) if starts else ()), "chains", "annealed", "tempered")
    elif (
        kernel is not None
    ):  # only chains tell what a kernel does; an adjusted Langevin may be helped over barriers
        methods = (
            ("chains", "tempered")
            if isinstance(kernel, Langevin) and kernel.metropolis
            else ("chains",)
        )
    else:
        further = (
            () if dear(energy) else ("chains", "tempered")
        )  # nothing finds what reverse diffusion of a network misses
        methods = (*(("importance",) if starts else ()), "annealed", *further)
    usual = default_kernel(energy) if discrete or methods[0] == "chains" else Langevin()
    usual = None if methods[0] in ("importance", "sequential") else usual
    moved = usual if kernel is None else kernel
    space = "" if discrete or sets.is_real(energy.support) else ", in the unconstrained space"
    words = f"{type(moved).__name__} chains" if methods[0] == "chains" else WORDS[methods[0]]
    return Plan(methods, energy, words + space, starts, moved)


def drawing(energy: Energy) -> tuple[tuple[str, ...], str]:
    """The methods that `poe.sample` would try, in order, and its plan in words; no methods, and the
    reason, where it would refuse."""
    try:
        refuse_improper(energy)
        found = plan(energy)
        return found.methods, str(found)
    except (
        ValueError,
        TypeError,
    ) as refused:  # a TypeError where an expert has a score and no energy
        return (), f"none: {refused}"


FURTHER["plan"] = lambda energy: drawing(energy)[1]


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
        method: "exact", "enumerate", "parts", "sequential", "importance", "annealed", "chains" or
            "tempered"; by default those of `poe.plan`, in turn, until one gives draws that nothing
            speaks against (chains start from annealed particles where there are any); and "chains"
            where `kernel`, `init`, `warmup` or `compile` is given.
        kernel: a kernel for the chains; `Langevin()` tuned in warm-up by default.
        chains: independent chains, by default up to 32, or independent populations, by default 16.
        warmup: steps in which the kernel is tuned, not kept; 0 needs a kernel with a step size.
        thin: every thin-th draw is kept; between two draws lie as many steps as a pilot found
            useful. So many times more annealed particles are carried.
        init: (chains, *event) points to start from, of finite energy.
        seed: of all randomness; drawn from torch's global generator by default.
        progress: show a bar on standard error.
        shards: fixed blocks of chains, each with its own random stream; draws depend on the seed
            and this number.
        compile: run the steps after warm-up in compiled blocks.
        checkpoint: a file in which the run is kept on the way: the same call, made again after the
            process died, goes on from there to the same draws, bit for bit. Needs a seed.
        device: where to draw; that of the energy by default.

    Raises:
        ValueError: the target is improper (its message says why), the arguments contradict each
            other, or no starting point of finite energy was found.
    """
    _check_arguments(energy, draws, chains, thin, shards)
    _check_device(device)
    _check_chains(method, kernel, warmup, init, seed)
    draws, thin, shards = int(draws), int(thin), int(shards)  # numpy's whole numbers are taken too
    chains, warmup, seed = (None if n is None else int(n) for n in (chains, warmup, seed))
    if checkpoint is not None and seed is None:
        raise ValueError(
            "checkpoint= needs a seed=, so that the same call can go on with the same run"
        )
    parallel.start(energy.device if device is None else torch.device(device), shards)
    if device is not None:
        energy = energy.to(device)
    refuse_improper(energy)
    if seed is None:  # the same in all processes
        seed = int(parallel.agreed(str(int(torch.randint(2**62, ()).item())).encode()))
    if compile and kernel is None:
        kernel = Langevin()  # the one that compiles
    if method is None and not (init is None and warmup is None and not compile):
        method = "chains"  # nothing else starts somewhere, warms up and compiles
    chosen = plan(energy, method=method, kernel=kernel)
    target = chosen.target if chosen.method == "exact" else energy
    run = None
    if checkpoint is not None:
        arguments = {
            "expression": energy,
            "draws": draws,
            "method": method,
            "kernel": kernel,
            "chains": chains,
            "warmup": warmup,
        }
        arguments |= {
            "thin": thin,
            "init": init,
            "seed": seed,
            "shards": shards,
            "compile": compile,
            "device": energy.device.type,
        }
        run = Checkpoint(checkpoint, arguments)
    job = Job(
        target,
        chosen.starts,
        kernel,
        draws,
        chains,
        warmup,
        thin,
        init,
        seed,
        progress,
        shards,
        compile,
        run,
    )
    with frozen(energy):
        result = _follow(chosen, job)
    if run is not None:
        run.write()
    result = replace(
        result,
        expression=str(energy),
        plan=str(chosen),
        log_z=energy.log_z or result.log_z,
        target=energy,
    )
    result = result.warned(*caveats(energy), given="raw energies are to be weighed as they stand")
    for leaf in leaves(energy):
        if getattr(leaf, "bound", False):
            note = (
                f"the energy of {leaf} bounds -log p from above: moved draws follow exp(-E), "
                "weighed ones of its own p, and "
                f"{leaf}.gap(x) says how far they are apart"
            )
            result = result.warned(note, given=f"the bound of {leaf} is tight")
    parts = agreement(energy, result.x, streams(seed, 1, energy.device)[0])
    if parts is not None:
        result = replace(result, agreement=parts).warned(*parts.extrapolations)
        result = result.warned(
            *parts.tensions, *parts.unchecked, given="the posteriors speak of the same parameters"
        )
    if energy.proper is None:
        note = (
            f"nobody knows whether {energy} has finite mass (proper is unknown); if it has "
            "not, "
            "these draws mean nothing"
        )
        warnings.warn(note, ImproperWarning, stacklevel=2)
        result = result.warned(note, given="the target has finite mass")
    return result


def _follow(chosen: Plan, job: Job) -> Draws:
    """The plan's methods in turn, until one gives draws that nothing speaks against; else those of
    the last."""
    if job.draws == 0:
        return _nothing(chosen, job)
    why: list[str] = []
    gradients = energies = seconds = 0.0
    for name in chosen.methods:
        last = name == chosen.methods[-1]
        try:
            result = _compared(_draw(name, job, forced=last), job.energy)
        except NotThisWay as no:
            if last:
                raise ValueError(f"{job.energy} cannot be drawn by {WORDS[name]}: {no}") from no
            why.append(str(no))
            gradients, energies = gradients + no.gradients, energies + no.energies
            continue
        d = result.diagnostics
        d = replace(
            d,
            gradients=d.gradients + gradients,
            energies=d.energies + energies,
            seconds=d.seconds + seconds,
        )
        broken = (
            d.nonfinite > 0 and len(result.reasons) == 1
        )  # an expert fails somewhere: it will for any method
        lone = (
            job.chains == 1 and len(result.reasons) == 1 and math.isnan(d.rhat) and not d.invalid
        )  # nor has another way an R-hat
        if last or result.partial or result.trusted or broken or lone:
            words = result.method or (
                chosen.reason if name == chosen.method else chosen.words(name)
            )
            words = words if name == chosen.method else f"{words}, for " + "; ".join(why)
            return replace(result, diagnostics=d, method=words)
        why.append(f"{WORDS[name]}: {result.reasons[0].split('; try')[0]}")
        job = replace(job, found=result if name == "annealed" else None)
        gradients, energies, seconds = d.gradients, d.energies, d.seconds
    raise AssertionError("a plan has at least one method")


def _draw(name: str, job: Job, *, forced: bool) -> Draws:
    if name == "importance":
        return methods.importance(job, forced=forced)
    if name == "chains":
        return chains_of(job, forced=forced)
    if name == "parts":
        return methods.blend(job, job.energy.shares, lambda index, n: _part(job, index, n))  # type: ignore[union-attr]
    return {
        "exact": methods.exact,
        "enumerate": methods.enumerate_all,
        "sequential": methods.sequential,
        "annealed": methods.annealed,
        "tempered": tempered,
    }[name](job)


def _compared(result: Draws, energy: Energy) -> Draws:
    """The draws, with a warning where log Z is known and their own estimate of it is another: they
    have missed mass, or found some."""
    known, found = energy.log_z, result.log_z
    if known is None or found is None or len(result) == 0:
        return result
    error = math.hypot(known.standard_error, found.standard_error)
    if abs(found.value - known.value) <= 5 * error + 1e-3:
        return result
    return result.warned(
        f"log Z is known to be {known}, and these draws make it {found}: modes have been missed; "
        "try another method= or start"
    )


def _part(job: Job, index: int, draws: int) -> Draws:
    """Draws of one part of a mixture, by a plan of its own."""
    part = job.energy.parts[index]
    chosen = plan(part)
    of = replace(
        job,
        energy=chosen.target if chosen.method == "exact" else part,
        starts=chosen.starts,
        draws=draws,
    )
    return _follow(chosen, replace(of, seed=branch(job.seed, index), found=None))


def _nothing(chosen: Plan, job: Job) -> Draws:
    like = job.energy._like()
    empty = like.new_empty(job.chains or max(1, job.shards), 0, *job.energy.event_shape)
    evidence = diagnose(empty, empty.new_empty(len(empty), 0), len(job.energy.event_shape))
    none = ("there are no draws",)
    return Draws(
        first(empty, 0),
        empty,
        empty.new_empty(len(empty), 0),
        None,
        evidence,
        chosen.reason,
        "",
        none,
    )
