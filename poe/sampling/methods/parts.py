"""A mixture, or an expression with a `|` in it, whose branches are drawn one by one, each by a plan
of its own, and mixed by their log Z: no branch has to be found from another."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from poe.algebra.energy import Energy, Estimate
from poe.algebra.errors import ImproperError
from poe.diagnostics.draws import Draws
from poe.diagnostics.evidence import Diagnostics
from poe.diagnostics.raw import Branch, Cost, Raw, shares_ess
from poe.diagnostics.search import together
from poe.diagnostics.verdict import ESS_LIMIT
from poe.mcmc.progress import Stopped
from poe.sampling.estimation import Estimation
from poe.sampling.job import Job, Method, MethodNotApplicable, Phase
from poe.smc.resampling import systematic
from poe.spaces.branches import MAX_BRANCHES
from poe.spaces.structure import Structure

MIN_FIRST, MAX_FIRST = 400, 1000  # draws of each branch, from which its share is known at first
WANTED_SHARES_ESS = 400.0  # up to which log Z of branches is made more precise
MAX_ROUNDS = 4  # of further draws of branches that need them
GROWTH = 4  # of the draws of a branch whose share is not known well enough
SPARE = 1.1  # draws of a branch for each one that its present share takes
NEGLIGIBLE = 0.005  # share below which what is wrong with a branch is a condition, not a reason
BOUND_ERRORS = 3.0  # standard errors of log Z up to which a share may be larger
NO_POINT = "no point of finite energy was found in"


def draw(job: Job) -> Raw:
    """Draws of a mixture from those of its branches: each has n·share draws but for rounding, which
    is random, and all are shuffled. Raises MethodNotApplicable where a branch cannot be drawn."""
    return _of_known_shares(job) if job.structure.shares is not None else _of_branches(job)


def _of_known_shares(job: Job) -> Raw:
    shares, parts = job.structure.shares, job.energy.parts
    assert shares is not None and job.branch is not None
    counts, generator = _counts(job, torch.tensor(shares, dtype=torch.float64).log())
    errors = [0.0 if part.log_z is None else part.log_z.standard_error for part in parts]
    drawn, branches, lost = {}, [], []
    for i, n in enumerate(counts):
        draws = job.branch(i, n) if n else None
        if draws is not None and not len(draws):  # the call has ended
            lost.append(parts[i])
        elif draws is not None:
            drawn[i] = draws
            found = draws.diagnostics, draws.warnings, draws.conditions, errors[i]
            branches.append(Branch(n / sum(counts), *found))
        elif n:
            raise MethodNotApplicable(f"{NO_POINT} {parts[i]}, whose log Z is stated")
    if job.progress.why and not drawn:
        raise Stopped(job.progress.why)
    raw = _shuffled(job, counts, drawn, branches, job.structure.log_z, generator)
    return _cut_short(job, raw, lost)


def _cut_short(job: Job, raw: Raw, lost: list[Energy]) -> Raw:
    """The same, with the reason where the call has ended early and there are no draws of some
    branches."""
    if not job.progress.why:
        return raw
    those = f"of {', '.join(map(str, lost))}" if lost else "of some branches"
    few = "there are no draws" if lost else "there are few draws, some of them repeated,"
    note = job.progress.reason(f"{few} {those}")
    return replace(raw, partial=True, reasons=(note, *raw.reasons))


def _of_branches(job: Job) -> Raw:
    """Shares from the log Z that the draws of each branch estimate."""
    started = time.perf_counter()
    known = job.structure.branches
    assert known is not None
    found = _Branches(job, [weight for weight, _ in known], [energy for _, energy in known])
    for index in range(len(known)):
        found.draw(index, min(max(job.draws, MIN_FIRST), MAX_FIRST))
    if job.progress.why and not found.drawn:
        raise Stopped(job.progress.why)
    if not bool((found.logs > -math.inf).any()):
        raise MethodNotApplicable(f"{NO_POINT} any of its branches")
    counts, generator = found.enough()
    raw = _shuffled(job, counts, found.drawn, found.judged(counts), found.log_z, generator)
    seconds = time.perf_counter() - started - found.latest_seconds
    cost = found.earlier._replace(seconds=max(0.0, seconds))._asdict()
    lost = [energy for i, (_, energy) in enumerate(known) if i in found.cut]
    raw = _cut_short(job, replace(raw, counts=cost), lost)
    size = shares_ess(found.shares, found.errors)
    limit = min(ESS_LIMIT, job.draws / 2)
    if size >= limit:
        return raw
    worst = max(range(len(known)), key=lambda i: found.share_errors[i])
    note = (
        f"shares of branches are known as well as by {size:.0f} < {limit:.0f} draws only: that of "
        f"{known[worst][1]} is {found.shares[worst]:.3f} ± {found.share_errors[worst]:.2g}; try "
        f"poe.sample(..., {GROWTH * max(job.draws, MAX_FIRST)})"
    )
    return replace(raw, reasons=(*raw.reasons, note))


def _counts(job: Job, logs: Tensor) -> tuple[list[int], torch.Generator]:  # logs (branches)
    """How many draws each branch gives, by its log share, and the random stream that goes on."""
    chains, each = job.independent
    (generator, *_), device = job.streams(Phase.TUNING), job.energy.device
    uniform = torch.rand(1, 2, generator=generator, dtype=torch.float64, device=device)
    places = systematic(logs.to(device).unsqueeze(0), uniform, chains * each)[0]
    return torch.bincount(places, minlength=len(logs)).tolist(), generator


def _shuffled(
    job: Job,
    counts: list[int],
    drawn: dict[int, Draws],
    branches: list[Branch],
    log_z: Estimate | None,
    generator: torch.Generator,
) -> Raw:
    """So many draws of each branch, evenly spaced among those that it has, in random order."""
    found = {i: draws for i, draws in drawn.items() if counts[i]}
    repeat = bool(job.progress.why)  # what was cut short keeps its share
    pieces = [_spaced(draws.x, counts[i], repeat) for i, draws in found.items()]
    chains, device = job.independent[0], job.energy.device
    total = sum(map(len, pieces))
    order = torch.rand(total, generator=generator, dtype=torch.float64, device=device).argsort()
    chains = min(chains, total)
    order = order[: total - total % chains]  # of a run that was interrupted
    x = torch.cat(pieces)[order].unflatten(0, (chains, -1))
    with torch.no_grad():
        energy = job.energy(x)
    return Raw(
        x,
        energy,
        job.draws,
        log_z,
        exact=all(draws.exact for draws in found.values()),
        partial=any(draws.partial for draws in found.values()),
        branches=tuple(branches),
        search=together([d.search for d in drawn.values() if d.search is not None]),
    )


def _spaced(x: Tensor, n: int, repeat: bool) -> Tensor:  # (draws, *event) -> (n, *event)
    """n of the draws, evenly spaced; where there are no more, all, repeated where that is asked
    for."""
    if len(x) <= n and not repeat:
        return x
    return x[torch.linspace(0, len(x) - 1, n, dtype=torch.float64).round().long().to(x.device)]


@dataclass
class _Branches:
    """The branches of an expression on their way: log weights, energies, the latest draws of each,
    and what earlier ones have cost."""

    job: Job
    weights: list[float]
    energies: list[Energy]
    drawn: dict[int, Draws] = field(default_factory=dict)
    cut: set[int] = field(default_factory=set)  # those without draws, as the call has ended
    attempts: dict[int, int] = field(default_factory=dict)
    earlier: Cost = field(default_factory=Cost)

    def draw(self, index: int, n: int) -> None:
        """Draws one branch anew, from a stream of its own, unless the call has ended."""
        assert self.job.branch is not None
        if self.job.progress.why:
            self.cut |= {index} - self.drawn.keys()
            return
        attempt = self.attempts.get(index, 0)
        self.attempts[index] = attempt + 1
        try:
            draws = self.job.branch(index + attempt * len(self.energies), n)
        except ImproperError:
            raise
        except (KeyboardInterrupt, Stopped) as end:
            self.job.progress.end(end)
            self.cut |= {index} - self.drawn.keys()
            return
        except ValueError as error:
            raise MethodNotApplicable(
                f"the branch {self.energies[index]} cannot be drawn: {error}",
                **self._spent()._asdict(),
            ) from error
        if draws is not None and draws.partial and (not len(draws) or draws.log_z is None):
            self.cut |= {index} - self.drawn.keys()
            return
        if index in self.drawn:
            self.earlier = self.earlier.plus(self.drawn[index].diagnostics)
        if draws is not None:
            if draws.log_z is None:
                raise MethodNotApplicable(
                    f"log Z of the branch {self.energies[index]} is unknown",
                    **self._spent()._asdict(),
                )
            self.drawn[index] = draws

    def _spent(self) -> Cost:
        total = self.earlier
        for draws in self.drawn.values():
            total = total.plus(draws.diagnostics)
        return total

    @property
    def latest_seconds(self) -> float:
        """Seconds that the evidence of the latest draws counts."""
        return sum(draws.diagnostics.seconds for draws in self.drawn.values())

    @property
    def logs(self) -> Tensor:
        """log w + log Z of each branch, -inf where it has no mass."""
        found = [-math.inf] * len(self.weights)
        for i, draws in self.drawn.items():
            assert draws.log_z is not None
            found[i] = self.weights[i] + draws.log_z.value
        return torch.tensor(found, dtype=torch.float64)

    @property
    def errors(self) -> list[float]:
        """Standard errors of log Z."""
        known = {i: draws.log_z for i, draws in self.drawn.items()}
        return [0.0 if (z := known.get(i)) is None else z.standard_error for i in range(self.size)]

    @property
    def size(self) -> int:
        """How many branches there are."""
        return len(self.weights)

    @property
    def shares(self) -> list[float]:
        """softmax of log w + log Z."""
        return self.logs.softmax(0).tolist()

    @property
    def share_errors(self) -> list[float]:
        """Standard errors of the shares, by the delta method: s_i² ((1 - s_i)² e_i² + Σ_{j≠i} s_j²
        e_j²)."""
        s = torch.tensor(self.shares, dtype=torch.float64)
        each = (s * torch.tensor(self.errors, dtype=torch.float64)).square()
        own = (s * (1 - s) * torch.tensor(self.errors, dtype=torch.float64)).square()
        return (own + s.square() * (each.sum() - each)).sqrt().tolist()

    @property
    def log_z(self) -> Estimate:
        """log Σ w_k Z_k; errors of independent runs add up as s_k² e_k²."""
        error = math.hypot(*(s * e for s, e in zip(self.shares, self.errors, strict=True)))
        return Estimate(float(self.logs.logsumexp(0)), error)

    def enough(self) -> tuple[list[int], torch.Generator]:
        """How many draws each branch gives, after more were drawn of those that have too few, or
        whose log Z is not known well enough."""
        wanted = min(WANTED_SHARES_ESS, float(max(self.job.draws, MIN_FIRST)))
        counts, generator = _counts(self.job, self.logs)
        for number in range(MAX_ROUNDS):
            short = {i: math.ceil(SPARE**number * n) for i, n in self._short(counts).items()}
            if not short and shares_ess(self.shares, self.errors) < wanted:
                doubts = [s * e**2 for s, e in zip(self.shares, self.errors, strict=True)]
                worst = max(range(self.size), key=doubts.__getitem__)
                short = {worst: GROWTH * len(self.drawn[worst])}
            if not short:
                break
            for index, n in short.items():
                self.draw(index, n)
            counts, generator = _counts(self.job, self.logs)
        for index, n in self._short(counts).items():  # shares stay as they are
            before = self.drawn[index].log_z
            self.draw(index, n)
            self.drawn[index] = replace(self.drawn[index], log_z=before)
        return counts, generator

    def _short(self, counts: list[int]) -> dict[int, int]:
        """How many draws are to be made of branches that have fewer than their count."""
        return {
            i: math.ceil(SPARE * n)
            for i, n in enumerate(counts)
            if n and len(self.drawn[i]) < n and not self.drawn[i].partial
        }

    def judged(self, counts: list[int]) -> list[Branch]:
        """The evidence of each branch; of one whose share is negligible, what is wrong with it is a
        condition of trust."""
        total, found, top = sum(counts), [], float(self.logs.logsumexp(0))
        for i, energy in enumerate(self.energies):
            if i in self.cut:
                continue
            if i not in self.drawn:
                note = f"{NO_POINT} the branch {energy}, so its share is taken to be 0"
                nothing = Diagnostics(math.nan, math.nan, 0.0, 0.0, 0)
                found.append(Branch(0.0, nothing, (note,), {note: f"{energy} has no mass"}))
                continue
            draws, error = self.drawn[i], self.errors[i]
            most = float(self.logs[i]) + BOUND_ERRORS * error - top
            said = {reason: f"in the branch {energy}: {reason}" for reason in draws.reasons}
            given = dict(draws.conditions)
            if most < math.log(NEGLIGIBLE):
                given |= dict.fromkeys(said.values(), f"{energy} is as light as it was found")
            notes = tuple(said.get(note, note) for note in draws.warnings)
            found.append(Branch(counts[i] / total, draws.diagnostics, notes, given, error))
        return found


def estimate(job: Estimation) -> Estimate | None:
    """log Z as the sum over branches, each by a method of its own."""
    known = job.structure.branches
    if known is None:
        if not job.forced:
            return None
        raise ValueError(f"{job.energy} {_inapplicable(job.structure)}")
    assert job.branch is not None
    found = [(weight, job.branch(index)) for index, (weight, _) in enumerate(known)]
    kept = [(weight + z.value, z.standard_error) for weight, z in found if z is not None]
    if not kept:
        raise ValueError(f"{NO_POINT} any branch of {job.energy}")
    logs = torch.tensor([log for log, _ in kept], dtype=torch.float64)
    shares = logs.softmax(0).tolist()
    error = math.hypot(*(s * e for s, (_, e) in zip(shares, kept, strict=True)))
    return Estimate(float(logs.logsumexp(0)), error)


def _inapplicable(structure: Structure) -> str | None:
    if structure.shares is not None or structure.branches is not None:
        return None
    return (
        f"has no `|` with at most {MAX_BRANCHES} branches, and is no mixture of parts whose log Z "
        "are known: poe.normalize gives parts that are"
    )


PARTS = Method(
    "parts",
    "each branch of `|` by itself, in shares given by their log Z and weights",
    draw,
    _inapplicable,
    estimate,
)
