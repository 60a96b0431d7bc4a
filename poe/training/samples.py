"""What densities are fitted to: samples, weights and bounds, checked."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from poe.algebra import support as sets
from poe.algebra.energy import Energy

MIN_SAMPLES = 100
MAX_ROUNDING = 0.01  # of the dtype, in standard deviations of the samples
MIN_EIGENVALUE = 1e-10  # of the correlations of the samples


def as_bounds(support: Any, shape: torch.Size) -> tuple[Any, Any]:
    """Ends as plain nested lists, None where there is none."""
    if support is None:
        return None, None
    if isinstance(support, sets.Box):
        support = support.low, support.high
    if not isinstance(support, tuple | list) or len(support) != 2:
        raise ValueError(f"support is (low, high) or a box, not {support!r}")

    def plain(value: Any) -> Any:
        return (
            [plain(v) for v in value]
            if isinstance(value, list)
            else value
            if value is None or math.isfinite(value)
            else None
        )

    ends = []
    for end in support:
        end = end.tolist() if hasattr(end, "tolist") else end
        end = list(end) if isinstance(end, tuple) else end
        ends.append(plain(end))
    for end in ends:
        if isinstance(end, list) and torch.tensor(_filled(end)).shape != shape:
            raise ValueError(
                "support=(low, high) is of numbers, or of lists of the samples' shape "
                f"{tuple(shape)}, not {end}"
            )
    low, high = (
        torch.tensor(_filled(end, none)).expand(shape)
        for end, none in zip(ends, (-math.inf, math.inf), strict=True)
    )
    if not bool((low < high).all()):
        raise ValueError(f"support=(low, high) needs low < high, got {support!r}")
    return ends[0], ends[1]


def _filled(end: Any, none: float = 0.0) -> Any:
    """Nested lists with numbers for None."""
    return (
        [_filled(e, none) for e in end]
        if isinstance(end, list)
        else none
        if end is None
        else float(end)
    )


def as_samples(values: Any, what: str) -> Tensor:
    """A tensor of real numbers, (n, *event) or (n). Raises TypeError for anything else."""
    try:
        x = torch.as_tensor(values)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(
            f"{what} are an array of numbers, not {type(values).__name__}: {error}"
        ) from error
    if x.is_complex() or not x.ndim:
        raise TypeError(
            f"{what} are an array of real numbers, (n, *event) or (n), not {x.dtype} of shape "
            f"{tuple(x.shape)}"
        )
    return x if x.is_floating_point() else x.to(torch.get_default_dtype())


def check_weighted(x: Tensor, w: Tensor) -> None:
    """Raises ValueError for too few samples, or weights that are not one per sample."""
    if len(x) < MIN_SAMPLES:
        raise ValueError(
            f"a density is fitted to at least {MIN_SAMPLES} samples, got {len(x)} of shape "
            f"{tuple(x.shape[1:])}"
        )
    if w.shape != (len(x),) or not bool((w >= 0).all() and w.isfinite().all() and w.sum() > 0):
        raise ValueError(
            f"weights must be {len(x)} numbers of at least 0, one per sample; got shape "
            f"{tuple(w.shape)}"
        )
    size = float(w.double().sum() ** 2 / w.double().square().sum())
    if size < MIN_SAMPLES:
        raise ValueError(
            f"a density is fitted to at least {MIN_SAMPLES} samples, and the effective number of "
            f"these under their weights is {size:.0f}, (Σ w)² / Σ w²"
        )


def check_resolved(x: Tensor) -> None:
    """Raises ValueError where the default dtype does not resolve the spread of the samples."""
    dtype = torch.get_default_dtype()
    finite = x.to(dtype).flatten(1).isfinite().all(1)
    if not bool(finite.all()):
        raise ValueError(f"{int((~finite).sum())} of {len(x)} samples are not finite in {dtype}")
    flat = x.double().flatten(1)
    spread, rounding = flat.std(0), torch.finfo(dtype).eps * flat.abs().amax(0)
    coarse = (rounding > MAX_ROUNDING * spread) & (spread > 0)
    if bool(coarse.any()):
        at = int(coarse.nonzero()[0])
        raise ValueError(
            f"number {at} of each sample has standard deviation {float(spread[at]):.2g} around "
            f"{float(flat[:, at].mean()):.6g}, where {dtype} resolves {float(rounding[at]):.2g}: "
            "subtract an offset, or call torch.set_default_dtype(torch.float64)"
        )


def check_inside(expert: Energy, x: Tensor, u: Tensor) -> None:
    """Raises ValueError where samples x lie outside the support of the expert, or on its border, or
    their unconstrained coordinates u (n, d) are not finite."""
    bad = ~sets.contains(expert.support, x) | ~u.isfinite().all(-1)
    if bool(bad.any()):
        raise ValueError(
            f"{int(bad.sum())} of {len(x)} samples lie outside the support {expert.support!r}, or "
            "on its border: give wider bounds"
        )


def check_density(u: Tensor) -> None:
    """Raises ValueError where unconstrained coordinates u (n, d) have no density."""
    constant = ((u - u.mean(0)).abs() <= 1e-12 * u.abs().amax(0)).all(0)
    if bool(constant.any()):
        raise ValueError(
            f"number {int(constant.nonzero()[0])} of each sample is always the same: a constant "
            "has no density; leave it out"
        )
    if len(u) <= u.shape[1]:
        raise ValueError(
            f"{u.shape[1]} numbers a sample need more than {len(u)} samples: in so few they are "
            "linearly dependent"
        )
    least = float(torch.linalg.eigvalsh(u.T.corrcoef().reshape(u.shape[1], u.shape[1]))[0])
    if least < MIN_EIGENVALUE:
        raise ValueError(
            "one number of each sample is a linear function of the others, so that they have no "
            f"density: leave it out (the least eigenvalue of their correlations is {least:.1e})"
        )
