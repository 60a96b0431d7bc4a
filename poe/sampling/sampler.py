"""`poe.sample`: the methods of the plan in turn, until one gives draws that can be trusted."""

from __future__ import annotations

import math
import warnings
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from poe.algebra.combination import combined
from poe.algebra.energy import Energy, first_tensor
from poe.algebra.errors import ImproperWarning
from poe.algebra.frozen import frozen
from poe.diagnostics.draws import Draws
from poe.diagnostics.raw import Cost, Raw
from poe.diagnostics.verdict import fails, unknown_mass
from poe.kernels import Kernel, Langevin
from poe.mcmc import parallel
from poe.mcmc.checkpoint import Checkpoint
from poe.mcmc.progress import Progress
from poe.mcmc.run import branch
from poe.sampling.agreement import agreement
from poe.sampling.arguments import check_choices, check_counts, check_device, refuse_improper
from poe.sampling.estimation import Estimation
from poe.sampling.job import Job, MethodNotApplicable, Phase, Space
from poe.sampling.log_partition import PARTICLES, estimated
from poe.sampling.methods import METHODS
from poe.sampling.planning import Plan, planned
from poe.sampling.searched import searched
from poe.spaces.structure import Structure


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
    progress: bool | None = None,
    shards: int = 1,
    compile: bool = False,
    checkpoint: str | None = None,
    device: torch.device | str | None = None,
) -> Draws:
    """Draws from the density exp(-E) / Z of a composition, with their evidence.

    Arguments:
        draws: how many in all, over all chains.
        method: "exact", "enumerate", "parts", "sequential", "importance", "annealed", "chains" or
            "tempered"; by default those of `poe.plan`, in turn, until one gives draws that can
            be trusted (chains start from annealed particles where there are any); and "chains"
            where `kernel`, `init`, `warmup` or `compile` is given.
        kernel: a kernel for the chains; `Langevin()` tuned in warm-up by default.
        chains: independent chains, by default up to 32, or independent populations, by default 16.
        warmup: steps in which the kernel is tuned, not kept; 0 needs a kernel with a step size.
        thin: every thin-th draw is kept; between two draws lie as many steps as a pilot found
            useful. Of annealed particles there are as many times more.
        init: (chains, *event) points to start from, of finite energy.
        seed: of all randomness; drawn from torch's global generator by default.
        progress: whether to show a bar on standard error; by default on a terminal, once the call
            has taken two seconds.
        shards: fixed blocks of chains, each with its own random stream; draws depend on the seed
            and this number.
        compile: run the steps after warm-up in compiled blocks.
        checkpoint: a file in which the run is kept on the way: the same call, made again after the
            process died, continues to the same draws, bit for bit. Needs a seed.
        device: where to draw; that of the energy by default.

    Raises:
        ValueError: the target is improper (its message says why), the arguments contradict each
            other, or no starting point of finite energy was found.
    """
    check_choices(energy, method, kernel, init, warmup, seed, checkpoint)
    options: dict[str, Any] = check_counts(
        draws=draws, chains=chains, warmup=warmup, thin=thin, seed=seed, shards=shards
    )
    check_device(device)
    parallel.start(energy.device if device is None else torch.device(device), options["shards"])
    if device is not None:
        energy = energy.to(device)
    structure = Structure.of(energy)
    refuse_improper(structure)
    searches = method is None and kernel is None and init is None
    seed = options.pop("seed")
    if seed is None:  # the same in all processes
        seed = int(parallel.agreed(str(int(torch.randint(2**62, ()).item())).encode()))
    if compile and kernel is None:
        kernel = Langevin()  # the one that compiles
    if method is None and not (init is None and warmup is None and not compile):
        method = "chains"  # no other method starts from points, warms up or compiles
    chosen = planned(structure, method=method, kernel=kernel)
    options |= {"kernel": kernel, "init": init, "compile": compile}
    run = None
    if checkpoint is not None:
        facts = {"expression": energy, "method": method, "device": energy.device.type}
        run = Checkpoint(checkpoint, facts | options | {"seed": seed})
    space = Space(structure, seed, searches, progress=Progress(progress))
    job = Job(space=space, checkpoint=run, **options)
    with frozen(energy):
        result = _follow(chosen, job)
    if run is not None:
        run.write()
    agreed = None
    if combined(energy) is not None:
        agreed = agreement(energy, result.x, job.streams(Phase.AGREEMENT)[0])
    if structure.proper is None:
        warnings.warn(unknown_mass(energy), ImproperWarning, stacklevel=2)
    return result.of_target(structure, agreed)


def _follow(chosen: Plan, job: Job) -> Draws:
    """The draws of the first method of a plan that can be trusted; else those of the last."""
    text, why, spent = str(chosen), [], Cost()
    if job.draws == 0:
        return Draws.of(_nothing(job, chosen.reason), job.structure, text)
    job = replace(job, branch=lambda index, draws: _branch(job, index, draws))
    for name in chosen.methods:
        last = name == chosen.methods[-1]
        try:
            raw = METHODS[name].draw(replace(job, forced=last))
        except MethodNotApplicable as no:
            if last:
                words = METHODS[name].words
                raise ValueError(f"{job.energy} cannot be drawn by {words}: {no}") from no
            why.append(str(no))
            spent = spent.plus(no.cost)
            continue
        words = raw.method or chosen.words(name)
        words = words if name == chosen.method else f"{words}, for " + "; ".join(why)
        result = Draws.of(replace(raw, method=words, earlier=spent), job.structure, text)
        result = searched(result, job)
        if last or result.partial or result.trusted or _no_better(result, job):
            return result
        why.append(f"{METHODS[name].words}: {result.reasons[0].split('; try')[0]}")
        job = replace(job, annealed=raw if name == "annealed" else None)
        spent = Cost().plus(result.diagnostics)
    raise AssertionError("a plan has at least one method")


def _no_better(result: Draws, job: Job) -> bool:
    """Whether another method would have the same reason: an expert that fails somewhere, or the
    missing R-hat of one chain."""
    d = result.diagnostics
    lone = job.chains == 1 and math.isnan(d.rhat) and not d.invalid
    return len(result.reasons) == 1 and (fails(d.nonfinite, d.nonfinite_share) or lone)


def _branch(job: Job, index: int, draws: int) -> Draws | None:
    """Draws of one branch of a mixture, by a plan of its own, with log Z; None where it has no
    point of finite energy. Beyond the number of branches an index draws anew."""
    shares, known = job.structure.shares, job.structure.branches
    parts = job.energy.parts if shares is not None else [energy for _, energy in known or ()]
    structure = Structure.of(parts[index % len(parts)])
    # a named method says how branches are mixed, not how each is drawn
    space = Space(structure, branch(job.space.seed, index), True, progress=job.progress)
    if shares is None:
        refuse_improper(structure)
        if not space.reached:
            return None
    found = _follow(planned(structure), replace(job, space=space, draws=draws, annealed=None))
    return found if shares is not None or found.log_z is not None else _with_log_z(found, space)


def _with_log_z(draws: Draws, space: Space) -> Draws:
    """Draws of a method without log Z, with an estimate of it, whose warnings are theirs."""
    structure, seed = space.structure, branch(space.seed, 0)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        job = Estimation(structure, seed, True, particles=PARTICLES, progress=space.progress)
        log_z = estimated(job)
    return replace(draws, log_z=log_z).warned(*(str(note.message) for note in said))


def _nothing(job: Job, words: str) -> Raw:
    like: Any = first_tensor(job.energy)
    empty = like.new_empty(job.chains or max(1, job.shards), 0, *job.energy.event_shape)
    note = ("there are no draws",)
    return Raw(empty, empty.new_empty(len(empty), 0), 0, method=words, reasons=note)
