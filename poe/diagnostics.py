"""Evidence for a set of draws: rank R-hat, ESS and Pareto k from arviz-stats, with what they get wrong put right and said.

References: Vehtari, Gelman, Simpson, Carpenter and Bürkner 2021, Bayesian Analysis 16(2) (rank R-hat, bulk and tail ESS);
Vehtari, Simpson, Gelman, Yao and Gabry 2024, JMLR 25 (Pareto-smoothed importance sampling).
"""

from __future__ import annotations

import warnings
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

MOST_COORDINATES = 256  # coordinates of an event that are diagnosed one by one, evenly spaced beyond
RHAT_LIMIT = 1.05


@dataclass(frozen=True)
class Diagnostics:
    """The evidence. ESS in draws, rates in [0, 1]; NaN where a figure has no meaning (R-hat of one chain)."""

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

    def asdict(self) -> dict[str, float]:
        """The figures by name."""
        return asdict(self)


def _arviz() -> Any:
    from arviz_stats.base import array_stats  # brings scipy, half a second: loaded when evidence is first asked for

    return array_stats


def coordinates(chains: Tensor, event_dim: int) -> np.ndarray:
    # (chain, draw, *event) -> (chain, draw, coordinates)
    """At most `MOST_COORDINATES` numbers of each event, evenly spaced."""
    flat = chains.reshape(*chains.shape[:2], -1) if event_dim else chains.unsqueeze(-1)
    if flat.shape[-1] > MOST_COORDINATES:
        flat = flat[..., torch.linspace(0, flat.shape[-1] - 1, MOST_COORDINATES).long()]
    return flat.detach().double().cpu().numpy()


def rhat(values: np.ndarray) -> np.ndarray:
    # (chain, draw, ...) -> (...)
    """Rank-normalised split R-hat. Chains that are constant at different values have R-hat infinity; NaN for too few draws."""
    if values.shape[0] < 2 or values.shape[1] < 4:
        return np.full(values.shape[2:], np.nan)
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore", RuntimeWarning)  # constant columns divide 0 by 0; they are settled below
        result = np.asarray(_arviz().rhat(values, chain_axis=0, draw_axis=1, method="rank"), dtype=float)
    still = np.ptp(values, axis=1) == 0
    differ = np.ptp(values, axis=(0, 1)) > 0
    return np.where(still.all(0) & differ, np.inf, np.where(differ, result, 1.0))


def ess(values: np.ndarray, method: str) -> np.ndarray:
    # (chain, draw, ...) -> (...)
    """Bulk or tail effective sample size. A stuck chain counts 0; never more than the moving chains hold."""
    if values.shape[1] < 4:
        return np.full(values.shape[2:], np.nan)
    moving = np.ptp(values, axis=1) > 0  # (chain, ...)
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore", RuntimeWarning)
        options = {"prob": (0.05, 0.95)} if method == "tail" else {}
        result = np.asarray(_arviz().ess(values, chain_axis=0, draw_axis=1, method=method, **options), dtype=float)
    share = moving.mean(axis=0)
    return np.where(share == 0, 0.0, np.minimum(result, values.shape[0] * values.shape[1]) * share)


def diagnose(chains: Tensor, energy: Tensor, event_dim: int, **counts: float) -> Diagnostics:
    """The evidence in draws (chain, draw, *event) and their energies (chain, draw) in nats; `counts` are the run's own figures."""
    if chains.numel() == 0:
        nan = float("nan")
        return Diagnostics(nan, nan, 0.0, 0.0, 0, **counts)  # type: ignore[arg-type]
    x = coordinates(chains, event_dim)
    log_density = -energy.detach().double().cpu().numpy()
    sizes = {m: np.concatenate([ess(x, m), ess(log_density[..., None], m)]) for m in ("bulk", "tail")}
    stuck = int((np.ptp(x, axis=1) == 0).all(-1).sum()) if x.shape[1] > 1 else 0
    return Diagnostics(
        float(np.max(rhat(x))),
        float(rhat(log_density[..., None])[0]),
        float(np.min(sizes["bulk"])),
        float(np.min(sizes["tail"])),
        stuck,
        **counts,  # type: ignore[arg-type]
    )


def pareto_k(log_weights: Tensor) -> float:
    """Pareto k of importance weights (n,) given in nats: below 0.7 their mean can be trusted. Infinity where none is finite."""
    logs = log_weights.detach().double().cpu().numpy()
    logs = logs[np.isfinite(logs)]
    if len(logs) < 25:
        return float("inf")
    if np.ptp(logs) < 1e-9:
        return float("-inf")  # equal weights: no tail at all
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        return float(_arviz().psislw(-logs)[1])  # it takes log-likelihoods, whose negatives are the weights


def weight_ess(log_weights: Tensor) -> float:
    """(Σ w)² / Σ w² of weights (n,) given in nats; 0 where none is positive."""
    logs = log_weights.double()
    if not bool((logs > -torch.inf).any()):
        return 0.0
    return float((2 * logs.logsumexp(0) - (2 * logs).logsumexp(0)).exp())


def judge(d: Diagnostics, draws: int, *, exact_draws: bool) -> list[str]:
    """What a reader must be told about draws with this evidence."""
    said = []
    if exact_draws or draws == 0:
        return said
    worst = max(d.rhat, d.rhat_energy) if not np.isnan(d.rhat) else float("nan")
    if np.isnan(worst):
        said.append("R-hat needs at least two chains of four draws: agreement between chains was not checked")
    elif worst > RHAT_LIMIT:
        said.append(f"chains disagree: R-hat {worst:.3f} > {RHAT_LIMIT}; do not trust shares of modes or means")
    least = min(d.ess_bulk, d.ess_tail)
    if not least >= 100:
        said.append(f"few independent draws: ESS {least:.0f} < 100; ask for more draws or a larger thin")
    if d.stuck:
        said.append(f"{d.stuck} chains never moved; they count as no draws")
    if d.divergent:
        said.append(f"{d.divergent} divergent proposals: the energy rises too steeply somewhere for this step size")
    if d.nonfinite:
        said.append(f"{d.nonfinite} proposals had a non-finite energy or gradient; they were rejected, and an expert fails there")
    if d.acceptance < 0.2:
        said.append(f"acceptance {d.acceptance:.2f} is low: the chains hardly move")
    if d.swaps < 0.02:
        said.append(f"neighbouring rungs hardly swap ({d.swaps:.3f}): the ladder does not connect start and target")
    return said
