"""Evidence for a set of draws: rank R-hat, ESS and Pareto k from arviz-stats, with what they get
wrong put right and said.

References: Vehtari, Gelman, Simpson, Carpenter and Bürkner 2021, Bayesian Analysis 16(2) (rank
R-hat, bulk and tail ESS); Margossian, Hoffman, Sountsov, Riou-Durand, Vehtari and Gelman 2024,
Bayesian Analysis (nested R-hat of many short chains); Vehtari, Simpson, Gelman, Yao and Gabry 2024,
JMLR 25 (Pareto-smoothed importance sampling).
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

MOST_COORDINATES = (
    256  # coordinates of an event that are diagnosed one by one, evenly spaced beyond
)
SHORT = 8  # chains with fewer draws than this are judged in groups
SUPERCHAINS, FEWEST = 8, 480  # groups of nested R-hat, and the draws that they need in all
RHAT_LIMIT = 1.05
ESS_LIMIT = 100
STEIN_LIMIT = 0.001
STRAY = 1e-4  # share of gradients up to which divergent proposals, which are rejected, say nothing
PARETO_LIMIT = 0.7


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
    mcse: float = float(
        "nan"
    )  # largest standard error of a coordinate's mean, in units of its standard deviation
    stein: float = float("nan")  # the statistic of `poe.stein_test`
    stein_pvalue: float = float("nan")
    invalid: int = 0  # draws that are not finite, or whose energy is NaN or +inf
    independent: bool = False  # exact, independent draws
    chance: float = (
        1.0  # R-hat that independent populations of so few effective draws may show by chance
    )

    @property
    def most(self) -> float:
        """What no ESS can exceed: the effective number of weights and the number of ancestors;
        infinity where there are none."""
        return float(np.nanmin([np.inf, self.weight_ess, self.ancestors]))

    def asdict(self) -> dict[str, float]:
        """The figures by name."""
        return asdict(self)


def _arviz() -> Any:
    from arviz_stats.base import (
        array_stats,
    )  # brings scipy, half a second: loaded when evidence is first asked for

    return array_stats


def coordinates(chains: Tensor, event_dim: int) -> np.ndarray:
    # (chain, draw, *event) -> (chain, draw, coordinates)
    """At most `MOST_COORDINATES` numbers of each event, evenly spaced."""
    flat = chains.reshape(*chains.shape[:2], -1) if event_dim else chains.unsqueeze(-1)
    if flat.shape[-1] > MOST_COORDINATES:
        flat = flat[..., torch.linspace(0, flat.shape[-1] - 1, MOST_COORDINATES).long()]
    return flat.detach().double().cpu().numpy()


def nested(chains: int, draws: int) -> bool:
    """Whether R-hat compares groups of chains: they are short, and with the first draws left out
    there are enough."""
    return draws < SHORT and chains * (draws - 1) >= FEWEST


def rhat(values: np.ndarray) -> np.ndarray:
    # (chain, draw, ...) -> (...)
    """Rank-normalised split R-hat, nested for many short chains. Infinity for chains that stand
    still at different values; NaN for fewer than two chains of four draws, and where a value is
    NaN.

    Nested R-hat is sqrt(1 + B/W), B the variance between the means of superchains and W the
    variance within them. All chains of a superchain should start from one point. These start from
    many, and superchains put together at random would agree even if no chain ever moved. So a
    superchain is made of chains whose first draws are neighbours, coordinate by coordinate, and
    these draws
    are left out: R-hat is about 1 + 1/(2n), n the draws in a superchain, once chains have forgotten
    where they were, and larger before.
    """
    chains, draws = values.shape[:2]
    if not nested(chains, draws) and (chains < 2 or draws < 4):
        return np.full(values.shape[2:], np.nan)
    with _quiet():
        if nested(chains, draws):
            names = np.arange(SUPERCHAINS)
            result = _arviz().rhat_nested(
                _superchains(values), names, chain_axis=0, draw_axis=1, method="rank"
            )
        else:
            result = _arviz().rhat(values, chain_axis=0, draw_axis=1, method="rank")
    still, alike = _constant(values, 1), _constant(values, (0, 1))
    return np.where(alike, 1.0, np.where(still.all(0), np.inf, np.asarray(result, dtype=float)))


def _superchains(values: np.ndarray) -> np.ndarray:
    # (chain, draw, ...) -> (superchain, draws of its chains, ...)
    """Later draws of chains whose first draws are neighbours, put end to end; a remainder of chains
    is left out."""
    values = values[: len(values) // SUPERCHAINS * SUPERCHAINS]
    order = values[:, :1].argsort(axis=0, kind="stable")
    return np.take_along_axis(values[:, 1:], order, axis=0).reshape(
        SUPERCHAINS, -1, *values.shape[2:]
    )


def ess(values: np.ndarray, method: str, still: np.ndarray | None = None) -> np.ndarray:
    # (chain, draw, ...), (chain, ...) -> (...)
    """Effective sample size for the bulk, the tail or the mean. A stuck chain counts 0; never more
    than the moving chains hold. Short chains are put end to end, as independent of each other. NaN
    for fewer than four draws, and where a value is NaN. `still` says which chains are stuck; by
    default those whose values are all alike."""
    chains, draws = values.shape[:2]
    if chains * draws < 4:
        return np.full(values.shape[2:], np.nan)
    if still is None:
        still = _constant(values, 1) if draws > 1 else _constant(values, (0, 1))[None]
    joined = values.reshape(1, -1, *values.shape[2:]) if draws < SHORT else values
    with _quiet():
        options = {"prob": (0.05, 0.95)} if method == "tail" else {}
        result = np.asarray(
            _arviz().ess(joined, chain_axis=0, draw_axis=1, method=method, **options), dtype=float
        )
    share = 1 - still.mean(axis=0)
    return np.where(share == 0, 0.0, np.minimum(result, chains * draws) * share)


def _chance(chains: int, draws: float, coordinates: int) -> float:
    """The split R-hat that the worst of so many coordinates exceeds with probability 0.001 at most
    where chains agree: with n effective draws in each of m halves, R-hat² = (n - 1)/n + F/n, F with
    m - 1 and m (n - 1) degrees of freedom (Gelman and Rubin 1992)."""
    halves = 2 * chains
    n = draws / halves
    if not n > 1 or chains < 2:
        return 1.0
    from scipy.stats import (
        f,
    )  # arviz-stats brings it, half a second: loaded when evidence is first asked for

    return float(
        np.sqrt((n - 1) / n + f.isf(0.001 / coordinates, halves - 1, halves * (n - 1)) / n)
    )


def _constant(values: np.ndarray, axis: int | tuple[int, ...]) -> np.ndarray:
    return values.min(axis=axis) == values.max(
        axis=axis
    )  # infinities are equal to themselves, NaN is not


@contextmanager
def _quiet() -> Iterator[None]:
    """Constant columns divide 0 by 0 and infinite ones subtract infinities; what they give is
    settled by the caller."""
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore", RuntimeWarning)
        yield


def diagnose(
    chains: Tensor, energy: Tensor, event_dim: int, *, discrete: bool = False, **counts: float
) -> Diagnostics:
    """The evidence in draws (chain, draw, *event) and their energies (chain, draw) in nats;
    `counts` are the run's own figures.

    A discrete coordinate may have the same value in every draw, or in all of one chain, because
    others are rare: it is then no evidence, and a chain is stuck only where none of its coordinates
    moves.

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
    still, stuck = None, np.asarray(_constant(x, 1).all(-1) & (x.shape[1] > 1))
    if discrete:
        moving = ~_constant(x, (0, 1))
        x = x[..., moving] if moving.any() else x[..., :1]
        stuck &= moving.any() and blank.most == np.inf  # particles may all be one likely point
        for chain in np.flatnonzero(
            stuck
        ):  # nor is a chain stuck that stayed where most draws of the others are
            stuck[chain] = (np.delete(x, chain, 0) == x[chain, 0]).all(-1).mean() < 0.5
        still = np.repeat(stuck[:, None], x.shape[-1], -1)
    flat = bool(
        _constant(log_density, (0, 1)) and np.isfinite(log_density).all()
    )  # an even law: its energy says nothing
    bulk, tail = (
        np.append(
            ess(x, m, still), [] if flat else ess(log_density, m, stuck if discrete else None)
        ).min()
        for m in ("bulk", "tail")
    )
    bulk = float(np.minimum(bulk, blank.most))
    return replace(
        blank,
        chance=_chance(len(x), bulk, x.shape[-1]) if blank.most < np.inf else 1.0,
        rhat=float(rhat(x).max()),
        rhat_energy=float(rhat(log_density)),
        ess_bulk=bulk,
        ess_tail=float(np.minimum(tail, blank.most)),
        stuck=int(stuck.sum()),
        nested=nested(*x.shape[:2]),
        mcse=float(_relative_errors(x, blank.most, still).max()),
        invalid=int((~valid).sum()),
    )


def standard_errors(chains: Tensor, event_dim: int, most: float = float("inf")) -> Tensor:
    # (chain, draw, *event) -> (*event)
    """Standard error of the mean of each coordinate, sd / sqrt(ESS), in units of x; NaN for fewer
    than four draws. ESS is at most `most`. Events of more than `MOST_COORDINATES` get the smallest
    ESS of those that are diagnosed."""
    flat = chains.flatten(0, 1)
    flat = flat if flat.is_floating_point() else flat.to(torch.get_default_dtype())
    if chains.numel() == 0 or len(flat) < 4:
        return flat.new_full(flat.shape[1:], torch.nan)
    relative = torch.from_numpy(_relative_errors(coordinates(chains, event_dim), most)).to(flat)
    spread = flat.std(0)
    return spread * (
        relative.reshape(spread.shape) if len(relative) == spread.numel() else relative.max()
    )


def _relative_errors(x: np.ndarray, most: float, still: np.ndarray | None = None) -> np.ndarray:
    # (chain, draw, coordinates) -> (coordinates)
    with np.errstate(divide="ignore"):
        return 1 / np.sqrt(np.minimum(ess(x, "mean", still), most))


def pareto_k(log_weights: Tensor) -> float:
    """Pareto k of importance weights (n,) given in nats: below 0.7 their mean can be trusted.
    Infinity where none is finite."""
    logs = log_weights.detach().double().cpu().numpy()
    logs = logs[np.isfinite(logs)]
    if len(logs) < 25:
        return float("inf")
    tail = np.sort(logs)[-int(min(len(logs) / 5, 3 * len(logs) ** 0.5)) :]
    if np.ptp(tail) < 1e-6:
        return float(
            "-inf"
        )  # the largest weights are equal, to rounding: bounded, and no tail to fit
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        return float(
            _arviz().psislw(-logs)[1]
        )  # it takes log-likelihoods, whose negatives are the weights


def pareto_smoothed(log_weights: Tensor) -> tuple[Tensor, float]:
    """Log weights (n,) in nats whose largest are replaced by quantiles of the generalised Pareto
    law fitted to them, and its k."""
    k = pareto_k(log_weights)
    if not np.isfinite(k):
        return log_weights, k
    good = log_weights.isfinite()
    logs = log_weights[good].detach().double().cpu().numpy()
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        smooth, k = _arviz().psislw(-logs)
    result = log_weights.clone()
    result[good] = torch.as_tensor(np.array(smooth)).to(result) + log_weights[good].logsumexp(0)
    return result, float(k)


def weight_ess(log_weights: Tensor) -> float:
    """(Σ w)² / Σ w² of weights (n,) given in nats; 0 where none is positive."""
    logs = log_weights.double()
    if not bool((logs > -torch.inf).any()):
        return 0.0
    return float((2 * logs.logsumexp(0) - (2 * logs).logsumexp(0)).exp())


def judge(d: Diagnostics, draws: int, *, exact_draws: bool, discrete: bool = False) -> list[str]:
    """Why draws with this evidence should not be trusted, the gravest reason first; empty where
    nothing was found.

    A reason reads "what was found; try what to type".
    """
    said = []
    if d.invalid:
        said.append(
            f"{d.invalid} draws are not finite or have energy NaN or +inf: an expert fails there; "
            "try draws.chains[~draws.energy.isfinite()] to see where"
        )
    if exact_draws or draws == 0:
        return said
    particles = d.most < np.inf  # draws of importance sampling or SMC
    moved = d.ancestors == d.ancestors and np.isnan(
        d.weight_ess
    )  # annealed particles: thin= is how many there are for each draw
    more = "poe.sample(..., thin=4)" if moved else f"poe.sample(..., {max(4 * draws, 1000)})"
    worst = d.rhat if np.isnan(d.rhat) else max(d.rhat, d.rhat_energy)
    if worst > max(RHAT_LIMIT, d.chance):
        cure = (
            more
            if particles or discrete or not np.isnan(d.swaps)
            else 'poe.sample(..., method="annealed")'
        )
        said.append(
            f"chains disagree: R-hat {worst:.3f} > {RHAT_LIMIT}, so shares of modes and means are "
            f"wrong; try {cure}"
        )
    if d.stein_pvalue < STEIN_LIMIT:
        cure = (
            "poe.sample(..., thin=4)"
            if particles
            else "poe.sample(..., warmup=2000, thin=4) or a kernel with metropolis=True"
        )
        said.append(
            f"the draws do not follow the target's score (Stein test, p = {d.stein_pvalue:.2g}); "
            f"try {cure}"
        )
    if d.stuck:
        said.append(
            f"{d.stuck} chains never moved; they count as no draws; try poe.sample(..., "
            "warmup=2000), without init="
        )
    if particles and d.pareto_k > PARETO_LIMIT:
        said.append(
            f"few particles carry the weight: Pareto k {d.pareto_k:.2f} > {PARETO_LIMIT}; try "
            'poe.sample(..., method="annealed")'
        )
    least = min(d.ess_bulk, d.ess_tail)
    enough = (
        min(ESS_LIMIT, draws / 2) if particles else ESS_LIMIT
    )  # particles are judged by more than the draws asked for
    if not least >= enough:
        thin = 1 if particles or not least > 0 else int(np.ceil(draws / least))
        cure = f"poe.sample(..., thin={thin})" if draws >= 2 * ESS_LIMIT and thin > 2 else more
        said.append(f"few independent draws: ESS {least:.0f} < {enough:.0f}; try {cure}")
    if np.isnan(worst) and not d.invalid:
        said.append(
            "R-hat needs at least two chains of four draws: agreement between chains was not "
            "checked; "
            f"try poe.sample(..., {max(draws, 400)}, chains=4)"
        )
    if d.nonfinite:
        said.append(
            f"{d.nonfinite} proposals had a non-finite energy or gradient; they were rejected, and "
            "an expert fails there; "
            "try an expert whose support leaves these points out"
        )
    if d.divergent > d.gradients * (100 * STRAY if particles else STRAY):
        said.append(
            f"{d.divergent} divergent proposals: the energy rises too steeply somewhere for this "
            "step size; try a kernel with a "
            "smaller step_size="
        )
    if d.acceptance < 0.2:
        said.append(
            f"acceptance {d.acceptance:.2f} is low: the chains hardly move; try poe.sample(..., "
            "warmup=2000)"
        )
    if d.swaps < 0.02:
        said.append(
            f"neighbouring rungs hardly swap ({d.swaps:.3f}): the ladder does not connect start "
            "and target; "
            'try poe.sample(..., method="annealed")'
        )
    return said
