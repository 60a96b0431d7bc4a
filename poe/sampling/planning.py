"""How to draw: `plan` reads the structure of a target, and draws nothing."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from poe.algebra.capabilities import ScoreOnly
from poe.algebra.checks import energies_of
from poe.algebra.energy import Energy
from poe.algebra.outline import FURTHER
from poe.algebra.text import leaves
from poe.kernels import Kernel, Langevin, Tempered
from poe.kernels.defaults import default_kernel
from poe.sampling.arguments import refuse_improper
from poe.sampling.methods import METHODS
from poe.sampling.methods.exact import words as words_of_exact
from poe.sampling.methods.importance import FOUND_WORDS
from poe.smc.noise_path import expensive
from poe.spaces.structure import Structure

MAX_ANNEALED_DIMENSIONS = 40  # beyond which chains come before annealing
INDEPENDENT = ("exact", "enumerate", "parts")  # methods that start from nothing


@dataclass(frozen=True)
class Plan:
    """What `sample` will do: `methods` in the order in which they are tried, each where the
    evidence of the one before is not enough; `method` is the first. `str(plan)` explains it."""

    methods: tuple[str, ...]
    structure: Structure
    reason: str
    kernel: Kernel | None = None

    @cached_property
    def method(self) -> str:
        """The method that is tried first."""
        return self.methods[0]

    @property
    def target(self) -> Energy:
        """What is drawn: the closed form where the draws are exact."""
        return self.structure.closed if self.method == "exact" else self.structure.energy

    @property
    def starts(self) -> tuple[Energy, ...]:
        """Parts that draw samples, where particles and chains start."""
        return () if self.method in INDEPENDENT else self.structure.starts

    @property
    def noised(self) -> bool:
        """Whether particles are annealed along levels of noise."""
        return self.method == "annealed" and self.structure.noised

    def words(self, name: str) -> str:
        """What a method of this plan does."""
        if name == self.methods[0]:
            return self.reason
        if name == "chains" and "annealed" in self.methods:
            return "chains from annealed particles"
        return METHODS[name].words

    def __str__(self) -> str:
        lines = [f"{self.method}: {self.reason}"]
        if self.method in INDEPENDENT:
            return lines[0]
        starts = ", ".join(map(str, self.starts))
        if self.noised:
            lines.append("starts from a normal, and follows the noise levels that experts share")
        elif starts:
            lines.append(f"starts from {starts}, weighed by importance")
        elif self.structure.discrete and self.structure.searchable:
            lines.append(
                "starts from a mixture of independent sites, fitted to phases that are searched for"
            )
        elif self.structure.discrete:
            lines.append("starts from values drawn evenly for each site")
        else:
            lines.append(
                "starts from a mixture fitted to the modes that a search finds, in unconstrained "
                "space: no factor draws samples"
            )
        if self.kernel is not None:
            exact = "exact" if self.kernel.exact else "not exact: unadjusted"
            lines.append(f"kernel {type(self.kernel).__name__}, {exact}")
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
    return planned(Structure.of(energy), method=method, kernel=kernel)


def planned(
    structure: Structure, *, method: str | None = None, kernel: Kernel | None = None
) -> Plan:
    """The plan for a target of this structure."""
    scored = [part for part in leaves(structure.energy) if part.can(ScoreOnly)]
    if scored and (kernel is None or kernel.exact):
        raise TypeError(
            f"{scored[0]} has a score and no energy: draw products of it by poe.sample(..., "
            "kernel=poe.LineIntegral(), init=points)"
        )
    methods = _default(structure, kernel) if method is None else _named(structure, method, kernel)
    first, words = methods[0], METHODS[methods[0]].words
    if first == "exact":
        words = words_of_exact(structure)
    elif first == "enumerate":
        words = f"all {structure.states:,} points of a discrete space, exact"
    elif first == "importance" and not structure.starts:
        words = FOUND_WORDS
    if first in INDEPENDENT:
        return Plan(methods, structure, words)
    if kernel is None and METHODS[first].moves:
        chains = structure.discrete or first == "chains"
        kernel = default_kernel(structure.energy) if chains else Langevin()
    if first == "chains":
        words = f"{type(kernel).__name__} chains"
    space = "" if structure.discrete or structure.real else ", in the unconstrained space"
    return Plan(methods, structure, words + space, kernel)


def _named(structure: Structure, method: str, kernel: Kernel | None) -> tuple[str, ...]:
    """A method that the caller chose. Raises ValueError where it does not apply."""
    if method not in METHODS:
        raise ValueError(f"method={method!r} is unknown; the methods are {', '.join(METHODS)}")
    if kernel is not None and not METHODS[method].moves:
        raise ValueError(
            f"method={method!r} uses no kernel: leave out kernel= and compile=, or method="
        )
    why = METHODS[method].applies(structure)
    why = why or (None if method in INDEPENDENT else structure.obstacle)
    if why is not None:
        raise ValueError(f"{structure.energy} {why}")
    unfit = kernel is not None and not (kernel.exact and kernel.plain and kernel.target_acceptance)
    if method == "annealed" and unfit:
        raise ValueError(
            "annealed particles move by exact kernels with a step size of their own, not by "
            f"{kernel}"
        )
    return (method,)


def _default(structure: Structure, kernel: Kernel | None) -> tuple[str, ...]:
    """The methods to try, in turn. Raises ValueError where there is none."""
    if kernel is None:
        for name in INDEPENDENT:
            later = name == "parts" and (structure.discrete or structure.shares is None)
            if METHODS[name].applies(structure) is None and not later:
                return (name,)
    if structure.obstacle is not None:
        raise ValueError(f"{structure.energy} {structure.obstacle}")
    if isinstance(kernel, Tempered):
        return ("tempered",)
    if kernel is not None:
        # replica exchange helps an adjusted Langevin over barriers; others are used as they are
        helped = isinstance(kernel, Langevin) and kernel.metropolis
        return ("chains", "tempered") if helped else ("chains",)
    names = ["importance", "parts", "annealed", "chains", "tempered"]
    if structure.discrete:
        names = ["sequential", "importance", "parts", "chains", "annealed", "tempered"]
    elif expensive(structure.energy):  # no other method finds what reverse diffusion misses
        names = ["importance", "annealed"]
    found = ("importance",) if structure.searchable else ()  # of what the search fits
    many = structure.energy.event_shape.numel() > MAX_ANNEALED_DIMENSIONS
    if found and many and not structure.discrete:
        names = ["importance", "parts", "chains", "annealed", "tempered"]
    return tuple(n for n in names if n in found or METHODS[n].applies(structure) is None)


def drawing(energy: Energy) -> tuple[tuple[str, ...], str]:
    """The methods that `poe.sample` would try, in order, and its plan in words; no methods, and the
    reason, where it would refuse."""
    try:
        structure = Structure.of(energy)
        refuse_improper(structure)
        found = planned(structure)
        return found.methods, str(found)
    except (ValueError, TypeError) as refused:
        return (), f"none: {refused}"


FURTHER["plan"] = lambda energy: drawing(energy)[1]
