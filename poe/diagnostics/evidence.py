"""The evidence for a set of draws."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from torch import Tensor

from poe.diagnostics.convergence import (
    chance_rhat,
    constant,
    coordinates,
    ess,
    is_nested,
    relative_errors,
    rhat,
)


@dataclass(frozen=True)
class Diagnostics:
    """The evidence. ESS in draws, rates in [0, 1]; NaN where a figure has no meaning (R-hat of one
    chain)."""

    rhat: float  # largest over the coordinates
    rhat_energy: float  # of the log-density
    ess_bulk: float  # smallest over the coordinates and the log-density
    ess_tail: float
    stuck: int  # chains that never moved
    acceptance: float = 1.0
    divergent: int = 0
    nonfinite: int = 0
    gradients: float = 0.0  # gradient evaluations, all chains and phases
    energies: float = 0.0  # evaluations of the energy without its gradient
    seconds: float = 0.0
    pareto_k: float = float("nan")  # of the weights of the starting points, where there were any
    swaps: float = float("nan")  # smallest swap acceptance between neighbouring rungs
    weight_ess: float = float("nan")  # effective number of importance weights
    ancestors: float = float("nan")  # distinct particles of the start that the draws descend from
    nested: bool = False  # R-hat is that of groups of short chains
    # largest standard error of a coordinate's mean, in units of its standard deviation
    mcse: float = float("nan")
    stein: float = float("nan")  # the statistic of `poe.stein_test`
    stein_pvalue: float = float("nan")
    invalid: int = 0  # draws that are not finite, or whose energy is NaN or +inf
    independent: bool = False  # exact, independent draws
    # R-hat that independent populations of so few effective draws may show where they agree; it
    # excuses none above the limit, and says whether more particles could tell
    chance: float = 1.0
    # of the proposals that draws of the target made; of weighed draws, the share of the mass that
    # those of energy NaN would have with the weights of their neighbours
    nonfinite_share: float = float("nan")

    @property
    def max_ess(self) -> float:
        """What no ESS can exceed: the effective number of weights and the number of ancestors;
        infinity where there are none."""
        return float(np.nanmin([np.inf, self.weight_ess, self.ancestors]))

    def bounded(self, draws: int) -> Diagnostics:
        """The same, with no effective number above that of the draws that are handed out."""
        if not draws:
            return self
        names, most = ("ess_bulk", "ess_tail", "weight_ess"), float(draws)
        least: dict[str, Any] = {name: min(getattr(self, name), most) for name in names}
        return replace(self, mcse=max(self.mcse, most**-0.5), **least)

    def asdict(self) -> dict[str, float]:
        """The figures by name."""
        return asdict(self)


def diagnose(
    chains: Tensor, energy: Tensor, event_dim: int, *, discrete: bool = False, **counts: float
) -> Diagnostics:
    """The evidence in draws (chain, draw, *event) and their energies (chain, draw) in nats;
    `counts` are the run's own figures.

    A discrete coordinate may have one value in every draw, or in all of one chain, because others
    are rare: it is then no evidence, and a chain is stuck only where none of its coordinates moves.

    The chains of importance and SMC methods are independent replicates; no ESS is above
    `weight_ess` or `ancestors`, where given.
    """
    nan = float("nan")
    blank = Diagnostics(nan, nan, 0.0, 0.0, 0, **counts)  # type: ignore[arg-type]
    if chains.numel() == 0:
        return blank
    x = coordinates(chains, event_dim)
    log_density = -energy.detach().double().cpu().numpy()
    valid = np.isfinite(x).all(-1) & (log_density > -np.inf)
    stuck, most = np.asarray(constant(x, 1).all(-1) & (x.shape[1] > 1)), blank.max_ess
    if discrete:
        moving = ~constant(x, (0, 1))
        x = x[..., moving] if moving.any() else x[..., :1]
        stuck &= moving.any() and most == np.inf  # particles may all be one likely point
        for chain in np.flatnonzero(stuck):  # not where most draws of the others are equal to it
            stuck[chain] = (np.delete(x, chain, 0) == x[chain, 0]).all(-1).mean() < 0.5
    still = stuck[:, None] if discrete else None
    values = np.concatenate([x, log_density[..., None]], -1)
    # the energy of a flat density is no evidence
    flat = bool(constant(log_density, (0, 1)) and np.isfinite(log_density).all())
    judged, of_each = x if flat else values, rhat(values)
    bulk, tail = (
        float(np.minimum(ess(judged, kind, still).min(), most)) for kind in ("bulk", "tail")
    )
    return replace(
        blank,
        chance=chance_rhat(len(x), bulk, x.shape[-1]) if most < np.inf else 1.0,
        rhat=float(of_each[:-1].max()),
        rhat_energy=float(of_each[-1]),
        ess_bulk=bulk,
        ess_tail=tail,
        stuck=int(stuck.sum()),
        nested=is_nested(*x.shape[:2]),
        mcse=float(relative_errors(x, most, still).max()),
        invalid=int((~valid).sum()),
    )
