"""What every method of drawing returns: samples with their evidence."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from poe.diagnostics import Diagnostics
from poe.energy import Estimate
from poe.storage import StorageError, write_whole

_KEY = "poe.draws"  # of the metadata that holds the evidence


@dataclass(frozen=True)
class Draws:
    """Samples of a composition with the evidence for them.

    Attributes:
        x: the draws, (n, *event).
        chains: the same by chain, (chain, draw, *event); it may hold a few more where n is no multiple of the number of chains.
        energy: E of each, (chain, draw), in nats.
        log_z: `Estimate(value, standard_error)` in nats, or None.
        diagnostics: R-hat, ESS, acceptance, divergences, evaluations, seconds.
        warnings: what must be known before these draws are used; empty where nothing speaks against them.
        method: how they were drawn.
        exact: whether draws have the target's law in the limit (or at once), with no bias of the method's own.
        expression: the composition, as it prints.
        partial: whether the run was interrupted before all draws were there.
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

    def __len__(self) -> int:
        return len(self.x)

    def __repr__(self) -> str:
        trust = "trusted" if not self.warnings else f"{len(self.warnings)} warnings"
        return f"<{len(self)} draws of {self.expression}, event {tuple(self.x.shape[1:])}, by {self.method}; {trust}>"

    def report(self) -> str:
        """A page that a person reads: what was drawn, how, and how far it can be trusted."""
        d = self.diagnostics
        lines = [
            f"draws of {self.expression}",
            f"  {len(self)} draws of shape {tuple(self.x.shape[1:])} in {self.chains.shape[0]} chains, by {self.method}"
            + ("" if self.exact else " (approximate: the method has a bias of its own)"),
            f"  log Z          {'unknown' if self.log_z is None else self.log_z}",
        ]
        if not d.gradients:
            lines.append("  ESS            all of them: independent draws")
        else:
            if d.rhat == d.rhat:
                lines.append(f"  R-hat          {d.rhat:.3f} worst coordinate, {d.rhat_energy:.3f} log-density")
            lines.append(f"  ESS            {d.ess_bulk:.0f} bulk, {d.ess_tail:.0f} tail (smallest)")
        if d.gradients:
            lines.append(
                f"  acceptance     {d.acceptance:.2f}; {d.divergent} divergent, {d.nonfinite} non-finite, {d.stuck} stuck chains"
            )
        if d.swaps == d.swaps:
            lines.append(f"  rung swaps     {d.swaps:.2f} smallest acceptance")
        if d.pareto_k == d.pareto_k:
            lines.append(f"  starts         Pareto k {d.pareto_k:.2f} of the weights the chains started from")
        lines.append(f"  cost           {d.gradients:,.0f} gradients, {d.energies:,.0f} energies, {d.seconds:.1f} s")
        if self.warnings:
            lines += ["  NOT TO BE TRUSTED BLINDLY:"] + [f"    - {warning}" for warning in self.warnings]
        else:
            lines.append("  nothing found that speaks against these draws")
        return "\n".join(lines)

    def plot(self, path: str | Path | None = None, **options: Any) -> Any:
        """A picture of the draws: images as a grid, 1-D a histogram, 2-D a scatter, more a corner. Needs matplotlib (extra `plot`)."""
        from poe import plotting  # matplotlib is an extra

        return plotting.plot(self, path, **options)

    def to_arviz(self) -> Any:
        """An ArviZ DataTree with the draws as `x` and the log-density as a sample statistic. Needs ArviZ 1.x."""
        try:
            from arviz_base import from_dict  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise ImportError("draws.to_arviz() needs ArviZ: pip install 'product-of-experts[arviz]'") from error
        return from_dict({"posterior": {"x": self.chains.cpu().numpy()}, "sample_stats": {"lp": -self.energy.cpu().numpy()}})

    def save(self, path: str | Path) -> None:
        """Writes draws and evidence to one safetensors file, whole or not at all. `Draws.load` reads it back."""
        tensors = {"x": self.x, "chains": self.chains, "energy": self.energy}
        facts = {
            "log_z": None if self.log_z is None else list(self.log_z),
            "diagnostics": self.diagnostics.asdict(),
            "warnings": list(self.warnings),
        } | {name: getattr(self, name) for name in ("method", "expression", "exact", "partial", "plan")}
        plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
        write_whole(Path(path), safetensors.torch.save(plain, {_KEY: json.dumps(facts)}))

    @classmethod
    def load(cls, path: str | Path) -> Draws:
        """The draws that `save` wrote. Raises StorageError where the file is damaged or holds none."""
        try:
            with safetensors.safe_open(str(path), framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no mapping
        except safetensors.SafetensorError as error:
            raise StorageError(f"{path} cannot be read: it is truncated, damaged or no safetensors file ({error})") from error
        if _KEY not in metadata:
            raise StorageError(f"{path} holds no draws; poe.load reads energies")
        facts = json.loads(metadata[_KEY])
        facts["log_z"] = None if facts["log_z"] is None else Estimate(*facts["log_z"])
        facts["diagnostics"] = Diagnostics(**facts["diagnostics"])
        facts["warnings"] = tuple(facts["warnings"])
        return cls(**tensors, **facts)

    def warned(self, *warnings: str) -> Draws:
        """The same draws with more warnings."""
        return replace(self, warnings=(*self.warnings, *warnings))


def first(chains: Tensor, n: int) -> Tensor:
    # (chain, draw, *event) -> (n, *event)
    """n draws, the same number from each chain as far as that goes: draw by draw over the chains."""
    return torch.transpose(chains, 0, 1).flatten(0, 1)[:n]
