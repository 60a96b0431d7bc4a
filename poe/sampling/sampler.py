"""`poe.sample`: the methods of the plan in turn, until one gives draws that can be trusted."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from poe.algebra.combination import combined
from poe.algebra.energy import Energy
from poe.algebra.errors import ImproperWarning
from poe.algebra.frozen import frozen
from poe.diagnostics.comparison import Seen, unvisited
from poe.diagnostics.draws import Draws
from poe.diagnostics.raw import Cost, Raw
from poe.diagnostics.verdict import fails, unknown_mass
from poe.kernels import Kernel, Langevin
from poe.mcmc import parallel
from poe.mcmc.checkpoint import Checkpoint
from poe.mcmc.progress import INTERRUPTED, Progress
from poe.mcmc.run import branch
from poe.sampling.agreement import agreement
from poe.sampling.arguments import (
    check_choices,
    check_counts,
    check_device,
    check_limit,
    refuse_improper,
)
from poe.sampling.branching import branch_space
from poe.sampling.estimation import Estimation
from poe.sampling.job import Job, MethodNotApplicable, Phase, Space
from poe.sampling.log_partition import PARTICLES, estimated
from poe.sampling.methods import METHODS
from poe.sampling.planning import Plan, planned
from poe.sampling.searched import searched
from poe.sampling.stopping import ENDS, better, judged, nothing, so_far
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
    max_gradients: int | None = None,
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
        max_gradients: evaluations of gradients and energies, of all phases and chains, that the
            call may take: counted on average over steps, and checked between batches of them. A
            call that would take more ends with what there is, as one that is interrupted (Ctrl-C)
            does: `partial`, not trusted, and saying why.
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
    limit = check_limit(max_gradients, checkpoint)
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
    space = Space(structure, seed, searches, progress=Progress(progress, limit))
    job = Job(space=space, checkpoint=run, **options)
    with frozen(energy):
        result = _follow(chosen, job)
    if not len(result) and job.progress.why == INTERRUPTED:
        raise KeyboardInterrupt
    if run is not None:
        run.write()
    agreed = None
    if combined(energy) is not None and not result.partial:
        try:
            agreed = agreement(energy, result.x, job.streams(Phase.AGREEMENT)[0])
        except KeyboardInterrupt as end:
            job.progress.end(end)
            note = job.progress.reason("whether the posteriors agree was not checked")
            result = replace(result, partial=True, warnings=(note, *result.warnings))
    if structure.proper is None:
        warnings.warn(unknown_mass(energy), ImproperWarning, stacklevel=2)
    return result.of_target(structure, agreed)


def _follow(chosen: Plan, job: Job) -> Draws:
    """The draws of the first method of a plan that can be trusted; else those of the last."""
    text, why, spent, earlier = str(chosen), [], Cost(), None
    seen: list[Seen] = []  # by chains that disagreed

    def judge(raw: Raw) -> Draws:
        draws = compared(Draws.of(raw, job.structure, text), seen, job)
        return searched(draws, job, drawn_apart=bool(raw.branches))

    if job.draws == 0:
        return Draws.of(nothing(job, chosen.reason), job.structure, text)
    job = replace(job, branch=lambda index, draws: _branch(job, index, draws))
    job.progress.points, job.progress.rough = None, True  # of this target there are none yet
    names = list(chosen.methods)
    for index, name in enumerate(names):  # which may grow
        last = index == len(names) - 1
        try:
            raw = METHODS[name].draw(replace(job, forced=last))
        except MethodNotApplicable as no:
            if last:
                words = METHODS[name].words
                raise ValueError(f"{job.energy} cannot be drawn by {words}: {no}") from no
            why.append(str(no))
            spent = spent.plus(no.cost)
            seen += [] if no.seen is None else [no.seen]
            continue
        except ENDS as end:
            raw, spent = so_far(job, end), Cost()  # the progress counts all that was spent
        words = raw.method or chosen.words(name)
        words = words if name == chosen.method else f"{words}, for " + "; ".join(why)
        result = judged(replace(raw, method=words, earlier=spent), job, judge)
        if result.partial:
            return better(result, earlier)
        if last or result.trusted or _no_better(result, job):
            return result
        earlier = result
        why.append(f"{METHODS[name].words}: {result.reasons[0].split('; try')[0]}")
        look = result.narrow_end
        if look is not None and look.fires:
            if name == "annealed" and job.lacking is None:  # once more, from the narrow end
                names.insert(index + 1, "annealed")
            job = replace(job, lacking=result)
        job = replace(job, annealed=raw if name == "annealed" else None)
        spent = Cost().plus(result.diagnostics)
    raise AssertionError("a plan has at least one method")


def compared(draws: Draws, seen: Sequence[Seen], job: Job) -> Draws:
    """The draws with a reason where chains that disagreed spent time and they have none."""
    size = min(draws.diagnostics.ess_bulk, float(len(draws)))
    log_z = None if draws.log_z is None else draws.log_z.value
    discrete = job.structure.discrete
    notes = [
        note
        for chains in seen
        for note in unvisited(chains, draws.x, size, log_z, discrete=discrete)
    ]
    return draws.warned(*notes)


def _no_better(result: Draws, job: Job) -> bool:
    """Whether another method would have the same reason: an expert that fails somewhere, or the
    missing R-hat of one chain."""
    d = result.diagnostics
    lone = job.chains == 1 and math.isnan(d.rhat) and not d.invalid
    return fails(d.nonfinite, d.nonfinite_share) or (lone and len(result.reasons) == 1)


def _branch(job: Job, index: int, draws: int) -> Draws | None:
    """Draws of one branch of a mixture, by a plan of its own, with log Z; None where it has no
    point of finite energy. Beyond the number of branches an index draws anew. Where the call ends
    early, what there is of it, which may lack log Z."""
    space, shares = branch_space(job, index), job.structure.shares
    if shares is None:
        refuse_improper(space.structure)
        if not space.reached:
            return None
    kept = job.progress.points, job.progress.rough  # in the variables of the whole
    branch_plan = planned(space.structure)
    found = _follow(branch_plan, replace(job, space=space, draws=draws, annealed=None))
    job.progress.points, job.progress.rough = kept
    done = shares is not None or found.partial or found.log_z is not None
    return found if done else _with_log_z(found, space)


def _with_log_z(draws: Draws, space: Space) -> Draws:
    """Draws of a method without log Z, with an estimate of it, whose warnings are theirs."""
    structure, seed = space.structure, branch(space.seed, 0)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        job = Estimation(structure, seed, True, particles=PARTICLES, progress=space.progress)
        try:
            log_z = estimated(job)
        except ENDS as end:
            job.progress.end(end)
            return replace(draws, partial=True)
    return replace(draws, log_z=log_z).warned(*(str(note.message) for note in said))
