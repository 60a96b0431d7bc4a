"""Convergence of chains: rank R-hat and effective sample sizes from arviz-stats, with the cases in
which those are wrong corrected.

References: Vehtari, Gelman, Simpson, Carpenter and Bürkner 2021, Bayesian Analysis 16(2) (rank
R-hat, bulk and tail ESS); Margossian, Hoffman, Sountsov, Riou-Durand, Vehtari and Gelman 2024,
Bayesian Analysis (nested R-hat of many short chains).
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor

MAX_COORDINATES = 256  # of an event that are diagnosed one by one, evenly spaced where it has more
MIN_CHAIN_LENGTH = 8  # draws; shorter chains are judged in groups
SUPERCHAINS = 8  # groups of chains of nested R-hat
MIN_NESTED_DRAWS = 480  # in all chains, for nested R-hat


def arviz(function: str, *arrays: np.ndarray, **options: Any) -> Any:
    """A function of arviz-stats, which is imported at the first call: it brings scipy, half a
    second. Without warnings of constant values (0 / 0) and of infinite ones (inf - inf): the caller
    handles their results."""
    from arviz_stats.base import array_stats

    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        return getattr(array_stats, function)(*arrays, **options)


def coordinates(chains: Tensor, event_dim: int) -> np.ndarray:
    # (chain, draw, *event) -> (chain, draw, coordinates)
    """At most `MAX_COORDINATES` numbers of each event, evenly spaced."""
    flat = chains.reshape(*chains.shape[:2], -1) if event_dim else chains.unsqueeze(-1)
    if flat.shape[-1] > MAX_COORDINATES:
        flat = flat[..., torch.linspace(0, flat.shape[-1] - 1, MAX_COORDINATES).long()]
    return flat.detach().double().cpu().numpy()


def is_nested(chains: int, draws: int) -> bool:
    """Whether R-hat compares groups of chains: chains are short, and there are enough draws beside
    the first of each."""
    return draws < MIN_CHAIN_LENGTH and chains * (draws - 1) >= MIN_NESTED_DRAWS


def rhat(values: np.ndarray) -> np.ndarray:
    # (chain, draw, ...) -> (...)
    """Rank-normalised split R-hat, nested for many short chains. Infinity for chains that stand
    still at different values; NaN for fewer than two chains of four draws, and where a value is
    NaN.

    Nested R-hat is sqrt(1 + B/W), B the variance between the means of superchains and W the
    variance within them. All chains of a superchain should start from one point. These start from
    many, and superchains put together at random would agree even if no chain ever moved. So a
    superchain is made of chains whose first draws are neighbours, coordinate by coordinate, and
    these draws are left out: R-hat is about 1 + 1/(2n), n the draws in a superchain, once chains
    have forgotten where they were, and larger before.
    """
    chains, draws = values.shape[:2]
    if not is_nested(chains, draws) and (chains < 2 or draws < 4):
        return np.full(values.shape[2:], np.nan)
    axes = {"chain_axis": 0, "draw_axis": 1, "method": "rank"}
    if is_nested(chains, draws):
        groups = np.arange(SUPERCHAINS)
        result = arviz("rhat_nested", _superchains(values), groups, **axes)
    else:
        result = np.asarray(arviz("rhat", values, **axes), dtype=float)
        low, high = values.min((0, 1)), values.max((0, 1))
        two = ((values == low) | (values == high)).all((0, 1))
        if two.any():  # |x - median|, of which the rank R-hat is one half, may be constant there
            plain = arviz("rhat", values, **axes | {"method": "z_scale"})
            result = np.where(two, np.asarray(plain, dtype=float), result)
    still, alike = constant(values, 1), constant(values, (0, 1))
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
    for fewer than four draws, and where a value is NaN. `still` says which chains are stuck, for
    each coordinate or (chain, 1) for all; by default those whose values are all alike."""
    chains, draws = values.shape[:2]
    if chains * draws < 4:
        return np.full(values.shape[2:], np.nan)
    if still is None:
        still = constant(values, 1) if draws > 1 else constant(values, (0, 1))[None]
    joined = values.reshape(1, -1, *values.shape[2:]) if draws < MIN_CHAIN_LENGTH else values
    options = {"prob": (0.05, 0.95)} if method == "tail" else {}
    found = arviz("ess", joined, chain_axis=0, draw_axis=1, method=method, **options)
    result = np.asarray(found, dtype=float)
    share = 1 - still.mean(axis=0)
    return np.where(share == 0, 0.0, np.minimum(result, chains * draws) * share)


def chance_rhat(chains: int, draws: float, coordinates: int) -> float:
    """The split R-hat that the worst of so many coordinates exceeds with probability 0.001 at most
    where chains agree: with n effective draws in each of m halves, R-hat² = (n - 1)/n + F/n, F with
    m - 1 and m (n - 1) degrees of freedom (Gelman and Rubin 1992)."""
    halves = 2 * chains
    n = draws / halves
    if not n > 1 or chains < 2:
        return 1.0
    from scipy.stats import f

    return float(
        np.sqrt((n - 1) / n + f.isf(0.001 / coordinates, halves - 1, halves * (n - 1)) / n)
    )


def constant(values: np.ndarray, axis: int | tuple[int, ...]) -> np.ndarray:
    """Where all values along these axes are equal: infinities equal themselves, NaN does not."""
    return values.min(axis=axis) == values.max(axis=axis)


def standard_errors(chains: Tensor, event_dim: int, max_ess: float = float("inf")) -> Tensor:
    # (chain, draw, *event) -> (*event)
    """Standard error of the mean of each coordinate, sd / sqrt(ESS), in units of x; NaN for fewer
    than four draws. ESS is at most `max_ess`. Events of more than `MAX_COORDINATES` get the
    smallest ESS of those that are diagnosed."""
    flat = chains.flatten(0, 1)
    flat = flat if flat.is_floating_point() else flat.to(torch.get_default_dtype())
    if chains.numel() == 0 or len(flat) < 4:
        return flat.new_full(flat.shape[1:], torch.nan)
    relative = torch.from_numpy(relative_errors(coordinates(chains, event_dim), max_ess)).to(flat)
    spread = flat.std(0)
    all_known = len(relative) == spread.numel()
    return spread * (relative.reshape(spread.shape) if all_known else relative.max())


def relative_errors(x: np.ndarray, max_ess: float, still: np.ndarray | None = None) -> np.ndarray:
    # (chain, draw, coordinates) -> (coordinates)
    """Standard errors of the means in units of the standard deviations: 1 / sqrt(ESS)."""
    with np.errstate(divide="ignore"):
        return 1 / np.sqrt(np.minimum(ess(x, "mean", still), max_ess))
