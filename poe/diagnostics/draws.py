"""What every method of drawing returns: samples with their evidence."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from poe.algebra.energy import Energy, Estimate
from poe.diagnostics.agreement import Agreement
from poe.diagnostics.convergence import standard_errors
from poe.diagnostics.evidence import Diagnostics
from poe.diagnostics.narrow_end import NarrowEnd
from poe.diagnostics.raw import Raw, evidence_of
from poe.diagnostics.search import ModeSearch
from poe.diagnostics.verdict import log_z_reasons, reasons, target_warnings, verdict
from poe.io.container import DRAWS_KEY, StorageError, plain, write_atomically
from poe.plotting import figures, html
from poe.spaces.structure import Structure


@dataclass(frozen=True)
class Draws:
    """Samples of a composition with the evidence for them.

    Attributes:
        x: the draws, (n, *event).
        chains: the same by chain, (chain, draw, *event); it may hold a few more where n is no
            multiple of the number of chains.
        energy: E of each, (chain, draw), in nats.
        log_z: `Estimate(value, standard_error)` in nats, or None.
        diagnostics: R-hat, ESS, MCSE, Stein test, acceptance, divergences, evaluations, seconds.
        warnings: what must be known before these draws are used; empty where no check failed. Each
            is a reason not to trust them, or depends on a condition that the reader can judge
            better than the library.
        conditions: the warnings of the second kind, with the condition under which the draws can
            be trusted.
        method: how they were drawn.
        exact: whether draws have the target's law in the limit (or at once), with no bias of the
            method's own.
        expression: the composition, as it prints.
        partial: whether the run was interrupted before all draws were there.
        target: the composition itself, for pictures of its density; None where it is not known, as
            after `load`. Not saved.
        agreement: how the posteriors of `poe.combine` agree (`poe.sampling.agreement`); None for
            other compositions.
        search: what the search for modes found; None where none was made.
        narrow_end: a look where curvature is largest; None where none was taken. Of it, only
            figures are saved.
    """

    x: Tensor
    chains: Tensor
    energy: Tensor
    log_z: Estimate | None
    diagnostics: Diagnostics
    method: str
    expression: str
    warnings: tuple[str, ...] = ()
    exact: bool = True
    partial: bool = False
    plan: str = field(default="", repr=False)
    conditions: dict[str, str] = field(default_factory=dict, repr=False)
    target: Energy | None = field(default=None, repr=False, compare=False)
    agreement: Agreement | None = field(default=None, repr=False)
    search: ModeSearch | None = field(default=None, repr=False)
    narrow_end: NarrowEnd | None = field(default=None, repr=False, compare=False)

    @classmethod
    def of(cls, raw: Raw, structure: Structure, plan: str = "") -> Draws:
        """Draws of what a method returned, diagnosed and judged, whatever the method: reasons in
        the evidence, of the method's own, of branches that were drawn by themselves, and in log Z
        where it is known."""
        d = evidence_of(raw, structure)
        judged = replace(d, independent=True) if raw.branches else d  # branches judge the rest
        found = [
            *(raw.reasons if raw.partial else ()),
            *dict.fromkeys(warning for branch in raw.branches for warning in branch.warnings),
            *reasons(judged, raw.draws, discrete=structure.discrete),
            *(() if raw.partial else raw.reasons),
            *(log_z_reasons(structure.log_z, raw.log_z) if raw.draws else []),
        ]
        return cls(
            raw.first,
            raw.x[:, raw.kept],
            raw.energy[:, raw.kept],
            structure.log_z or raw.log_z,
            replace(d, **raw.earlier.plus(d)._asdict()),
            raw.method,
            str(structure.energy),
            tuple(found),
            raw.exact,
            raw.partial,
            plan,
            {w: given for branch in raw.branches for w, given in branch.conditions.items()},
            structure.energy,
            search=raw.search,
        )

    def of_target(self, structure: Structure, agreement: Agreement | None = None) -> Draws:
        """The same draws with the warnings that follow from their target, and how the posteriors
        that it combines agree."""
        found = target_warnings(structure, agreement)
        given = {note: condition for note, condition in found.items() if condition is not None}
        return replace(
            self,
            warnings=(*self.warnings, *found),
            conditions=self.conditions | given,
            agreement=agreement,
        )

    def with_search(self, search: ModeSearch) -> Draws:
        """The same draws with the record of a search for modes, its cost and its reasons."""
        d = self.diagnostics
        cost = {
            name: getattr(d, name) + getattr(search, name) for name in ("gradients", "energies")
        }
        return replace(
            self,
            warnings=(*self.warnings, *search.missed),
            diagnostics=replace(d, **cost),
            search=search,
        )

    def with_narrow_end(self, look: NarrowEnd, shape: torch.Size) -> Draws:
        """The same draws with a look into the narrow end of their unconstrained event, its cost and
        its reason."""
        reason, d = look.reason(shape), self.diagnostics
        return replace(
            self,
            warnings=self.warnings if reason is None else (*self.warnings, reason),
            diagnostics=replace(d, gradients=d.gradients + look.gradients),
            narrow_end=look,
        )

    def __len__(self) -> int:
        return len(self.x)

    def __repr__(self) -> str:
        verdict = self.verdict.split(":")[0].replace("TRUSTED", "trusted").replace("NOT", "not")
        return (
            f"<{len(self)} draws of {self.expression}, event {tuple(self.x.shape[1:])}, by "
            f"{self.method}; {verdict}>"
        )

    @property
    def reasons(self) -> tuple[str, ...]:
        """The warnings that are reasons not to trust these draws, whatever the conditions."""
        return tuple(warning for warning in self.warnings if warning not in self.conditions)

    @property
    def trusted(self) -> bool:
        """Whether there are draws and no reason not to trust them, given the `conditions`."""
        return len(self) > 0 and not self.reasons

    @property
    def verdict(self) -> str:
        """One line to act on: "TRUSTED: ...", "TRUSTED if ...: ..." or "NOT TRUSTED: the first
        reason; try what to type"."""
        line = verdict(len(self), self.reasons, self.conditions, self.diagnostics)
        return line if self.search is None or self.reasons else f"{line}; {self.search.line()}"

    def mean(self) -> Tensor:  # -> (*event)
        """The mean of the draws, in units of x. `mcse()` is its standard error."""
        like = self.x if self.x.is_floating_point() else torch.empty(())
        return self.x.double().mean(0).to(like.dtype)

    def mcse(self) -> Tensor:  # -> (*event)
        """The Monte Carlo standard error of the mean of each coordinate, sd / sqrt(ESS of the
        mean), in units of x. NaN for fewer than four draws; infinite where chains never moved."""
        return standard_errors(self.chains, self.x.ndim - 1, self.diagnostics.max_ess)

    def report(self) -> str:
        """A page that a person reads: what was drawn, how, and how far it can be trusted. Its last
        line is `verdict`."""
        many = self.diagnostics.max_ess < math.inf
        bias = "right in the limit of many particles" if many else "the method is biased"
        lines = [
            f"draws of {self.expression}",
            f"  {len(self)} draws of shape {tuple(self.x.shape[1:])} in {self.chains.shape[0]} "
            f"chains, by {self.method}" + ("" if self.exact else f" (approximate: {bias})"),
            f"  log Z          {'unknown' if self.log_z is None else self.log_z}",
            *_figures(self.diagnostics),
            *([] if self.search is None else [f"  modes          {self.search.line()}"]),
            *([] if self.narrow_end is None else [f"  {self.narrow_end.line(self.x.shape[1:])}"]),
            *([] if self.agreement is None else self.agreement.lines()),
        ]
        lines.append("  warnings:" if self.warnings else "  no warnings")
        lines += [f"    - {warning}" for warning in self.warnings]
        return "\n".join([*lines, self.verdict])

    def plot(self, path: str | Path | None = None, **options: Any) -> Any:
        """A matplotlib figure of the draws, written to `path` where one is given: images as a grid;
        1-D a histogram against the density; 2-D the density, the level sets of each expert and the
        draws; more dimensions a corner plot. See `poe.plotting.figures.plot`. Raises ImportError
        where matplotlib (extra `plot`) is missing."""
        return figures.plot(self, path, **options)

    def _repr_html_(self) -> str:
        return html.of_draws(self)

    def to_arviz(self) -> Any:
        """An ArviZ DataTree with the draws as `x` and the log-density as a sample statistic. Needs
        ArviZ 1.x."""
        try:
            from arviz_base import from_dict  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise ImportError(
                "draws.to_arviz() needs ArviZ: pip install 'product-of-experts[arviz]'"
            ) from error
        return from_dict(
            {
                "posterior": {"x": self.chains.cpu().numpy()},
                "sample_stats": {"lp": -self.energy.cpu().numpy()},
            }
        )

    def save(self, path: str | Path) -> None:
        """Writes draws and evidence to one safetensors file, whole or not at all. `Draws.load`
        reads it back."""
        tensors = {name: plain(getattr(self, name)) for name in ("x", "chains", "energy")}
        facts = {
            "log_z": None if self.log_z is None else list(self.log_z),
            "diagnostics": self.diagnostics.asdict(),
            "warnings": list(self.warnings),
            "conditions": self.conditions,
            "agreement": None if self.agreement is None else asdict(self.agreement),
            "search": None if self.search is None else asdict(self.search),
            "narrow_end": None if self.narrow_end is None else self.narrow_end.figures(),
        } | {
            name: getattr(self, name)
            for name in ("method", "expression", "exact", "partial", "plan")
        }
        write_atomically(
            Path(path), safetensors.torch.save(tensors, {DRAWS_KEY: json.dumps(facts)})
        )

    @classmethod
    def load(cls, path: str | Path) -> Draws:
        """The draws that `save` wrote. Raises StorageError where the file is damaged or holds
        none."""
        try:
            with safetensors.safe_open(str(path), framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except safetensors.SafetensorError as error:
            raise StorageError(
                f"{path} cannot be read: it is truncated, damaged or no safetensors file ({error})"
            ) from error
        if DRAWS_KEY not in metadata:
            raise StorageError(f"{path} holds no draws; poe.load reads energies")
        try:
            facts = json.loads(metadata[DRAWS_KEY])
            facts["log_z"] = None if facts["log_z"] is None else Estimate(*facts["log_z"])
            facts["diagnostics"] = Diagnostics(**facts["diagnostics"])
            facts["warnings"] = tuple(facts["warnings"])
            facts["agreement"] = (
                None if facts.get("agreement") is None else Agreement.read(facts["agreement"])
            )
            if (search := facts.pop("search", None)) is not None:
                facts["search"] = ModeSearch(**search | {"missed": tuple(search["missed"])})
            if (look := facts.pop("narrow_end", None)) is not None:
                facts["narrow_end"] = NarrowEnd(**look)
            return cls(**tensors, **facts)
        except (ValueError, TypeError, KeyError) as error:
            raise StorageError(
                f"{path} holds draws that this version cannot read: {error}"
            ) from error

    def warned(self, *warnings: str, given: str | None = None) -> Draws:
        """The same draws with more warnings: reasons not to trust them or, with `given`, conditions
        of trust, which are read after "trusted if", such as "the target has finite mass"."""
        conditions = {} if given is None else dict.fromkeys(warnings, given)
        return replace(
            self, warnings=(*self.warnings, *warnings), conditions=self.conditions | conditions
        )


def _figures(d: Diagnostics) -> list[str]:
    """The lines of a report that quote the evidence; a figure without a meaning has none."""
    lines = []
    if d.independent:
        lines.append("  ESS            all of them: independent draws")
    else:
        if d.rhat == d.rhat:
            kind = " (nested: groups of short chains)" if d.nested else ""
            lines.append(
                f"  R-hat          {d.rhat:.3f} worst coordinate, {d.rhat_energy:.3f} "
                f"log-density{kind}"
            )
        lines.append(f"  ESS            {d.ess_bulk:.0f} bulk, {d.ess_tail:.0f} tail (smallest)")
    if d.mcse == d.mcse:
        lines.append(
            f"  MCSE           {d.mcse:.2g} standard deviations, the mean of the worst coordinate"
        )
    if d.stein_pvalue == d.stein_pvalue:
        lines.append(
            f"  Stein test     p {d.stein_pvalue:.2g} against the target's score; it does not see "
            "the weights of modes"
        )
    if d.gradients or d.acceptance < 1 or d.nonfinite:
        lines.append(
            f"  acceptance     {d.acceptance:.2f}; {d.divergent} divergent, {d.nonfinite} "
            f"non-finite, {d.stuck} stuck chains"
        )
    if d.swaps == d.swaps:
        lines.append(f"  rung swaps     {d.swaps:.2f} smallest acceptance")
    if d.max_ess < math.inf:
        parts = [f"ESS {d.weight_ess:,.0f}"] if d.weight_ess == d.weight_ess else []
        parts += [f"{d.ancestors:,.0f} distinct ancestors"] if d.ancestors == d.ancestors else []
        parts += [f"Pareto k {d.pareto_k:.2f}"] if d.pareto_k == d.pareto_k else []
        lines.append(f"  weights        {', '.join(parts)}")
    elif d.pareto_k == d.pareto_k:
        lines.append(
            f"  starts         Pareto k {d.pareto_k:.2f} of the weights the chains started from"
        )
    return [
        *lines,
        f"  cost           {d.gradients:,.0f} gradients, {d.energies:,.0f} energies, "
        f"{d.seconds:.1f} s",
    ]
