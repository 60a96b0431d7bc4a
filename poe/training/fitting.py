"""A density for samples: the posterior of a chain, or any table of points, as an expert."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm.auto import tqdm

from poe.algebra import support as sets
from poe.algebra.checks import whole_number
from poe.algebra.energy import Energy
from poe.algebra.product import product
from poe.mcmc.run import streams
from poe.registry import create
from poe.smc.gaussians import Gaussians, maximised

HELD = 0.1  # share of the samples that decide when training stops, others for each copy
EPOCHS, PATIENCE, BATCH, RATE = 150, 12, 512, 2e-3
AVERAGE = 0.98  # of the weights, a step: what is held is their moving average
FEWEST = 100  # samples
RESOLVED = 0.01  # rounding, in standard deviations, from which on samples are too coarse


@dataclass(frozen=True)
class Fit:
    """How well densities fit held-out samples, in nats a sample: the more the better.

    Attributes:
        copies: of each flow on the samples that it did not see.
        gaussian, mixture: of one Gaussian and of a mixture of Gaussians in the unconstrained space,
            on those that the first flow did not see. A mixture is NaN where none can be fitted.
        epochs: after which each flow was best.
        samples: how many there were, and their effective number under the weights.
    """

    copies: tuple[float, ...]
    gaussian: float
    mixture: float
    epochs: tuple[int, ...]
    samples: tuple[int, float]

    def __str__(self) -> str:
        flows = ", ".join(f"{nats:.3f}" for nats in self.copies)
        count, effective = self.samples
        lines = [
            f"fitted to {count:,} samples"
            + ("" if round(effective) == count else f" (effective {effective:,.0f})"),
            f"  held-out log density, nats a sample: flows {flows}; Gaussian {self.gaussian:.3f}; "
            f"Gaussian mixture {self.mixture:.3f}",
        ]
        best = max(self.gaussian, self.mixture if self.mixture == self.mixture else -math.inf)
        if best > self.copies[0] + 0.01:
            lines.append("  a simpler density fits better: take more samples, or that one")
        return "\n".join(lines)


def fit_density(
    samples: Any,
    weights: Any = None,
    *,
    support: Any = None,
    copies: int = 4,
    seed: int = 0,
    progress: bool = False,
    name: str | None = None,
    **architecture: Any,
) -> Energy:
    """An expert fitted to samples: flows in the unconstrained space of the stated bounds, stopped
    early on held-out samples.

    Several copies, from other initial weights and each on a bootstrap sample of its own (Breiman
    1996, bagging), are combined to their geometric ensemble Π p_k^(1/n) (`poe.product`): where they
    disagree, the ensemble is less sure. `poe.combine` reads the spread over them as an error bar,
    for what training and few samples leave open; not for what all copies get wrong in the same way.
    Each copy is a moving average of the weights on its way, which errs less than where the last
    batch left them (Polyak & Juditsky 1992). The expert is saved by `poe.save`. Its attribute `fit`
    compares the flows with a Gaussian and a mixture of Gaussians.

    Arguments:
        samples: (n, *event), tensor or array: independent, or a thinned chain.
        weights: (n), positive: of nested or importance samples.
        support: (low, high), each a number, an array of the event's shape, or None; or a box of
            `poe.algebra.support`. All of R^n by default.
        copies: flows in the ensemble; 1 gives a density that draws.
        seed: of weights, splits and batches.
        architecture: of the flows, as `experts.Flow` takes it.

    Raises TypeError for what is no array of real numbers; ValueError for fewer than 100 samples, or
    weighed ones that count for fewer, samples outside the support, not finite, or nearer to each
    other than the default dtype resolves, weights of another length or sign.
    """
    x, w = _real(samples, "samples"), None if weights is None else _real(weights, "weights")
    x = x.unsqueeze(-1) if x.ndim == 1 else x
    w = (
        torch.ones(len(x))
        if w is None
        else (w.double() / w.double().max().clamp(min=1e-300)).to(torch.get_default_dtype())
    )
    low, high = _bounds(support, x.shape[1:])
    _check(x, w, low, high, copies)
    x, w = x[w > 0].to(torch.get_default_dtype()), w[w > 0]
    generators = streams(seed, copies, torch.device("cpu"))
    found, nats, epochs, held = [], [], [], None
    with tqdm(total=copies * EPOCHS, desc="fitting", disable=not progress, leave=False) as bar:
        for index, generator in enumerate(generators):
            order = torch.randperm(len(x), generator=generator)
            cut = max(1, round(HELD * len(x)))
            held = order[:cut] if held is None else held
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(int(torch.randint(2**62, (), generator=generator)))
                label = None if name is None else name if copies == 1 else f"{name}_{index}"
                expert = create(
                    "fitted",
                    event_shape=list(x.shape[1:]),
                    low=low,
                    high=high,
                    name=label,
                    **architecture,
                )
            rows = order[cut:]
            rows = (
                rows
                if copies == 1
                else rows[torch.randint(len(rows), (len(rows),), generator=generator)]
            )
            best, epoch = _train(
                expert, x[rows], w[rows], x[order[:cut]], w[order[:cut]], generator, bar
            )
            found.append(expert)
            nats.append(best)
            epochs.append(epoch)
    assert held is not None
    gaussian, mixture = _simple(found[0], x, w, held, generators[0])
    size = float(w.sum() ** 2 / w.square().sum())
    result = found[0] if copies == 1 else product(found, powers=1 / copies)
    vars(result)["fit"] = Fit(
        tuple(nats), gaussian, mixture, tuple(epochs), (len(x), size)
    )  # no tensor, no part
    return result


def _train(
    expert: Any,
    x: Tensor,
    w: Tensor,
    held: Tensor,
    held_w: Tensor,
    generator: torch.Generator,
    bar: tqdm,
) -> tuple[float, int]:
    """Maximum likelihood by Adam with a falling rate; averaged weights of the best epoch on
    held-out samples stay. (nats, epoch)."""
    expert.whiten(x, w)
    if expert.event_shape.numel() == 1:
        _mix(expert, x, w, held, held_w, generator)
    averaged = AveragedModel(expert, multi_avg_fn=get_ema_multi_avg_fn(AVERAGE))
    optimiser = torch.optim.Adam(expert.parameters(), RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, EPOCHS)

    def held_out(expert: Any) -> float:
        with torch.no_grad():
            return float((held_w * expert.log_prob(held)).sum() / held_w.sum())

    best, state, last = held_out(expert), copy.deepcopy(expert.state_dict()), -1
    for epoch in range(EPOCHS):
        for rows in torch.randperm(len(x), generator=generator).split(BATCH):
            loss = -(w[rows] * expert.log_prob(x[rows])).sum() / w[rows].sum()
            optimiser.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(expert.parameters(), 5.0)
            optimiser.step()
            averaged.update_parameters(expert)
        schedule.step()
        bar.update()
        nats = held_out(averaged.module)
        if nats > best:
            best, state, last = nats, copy.deepcopy(averaged.module.state_dict()), epoch
        elif epoch - last >= PATIENCE:
            bar.update(EPOCHS - 1 - epoch)
            break
    expert.load_state_dict(state)
    expert.requires_grad_(False)
    return best, last + 1


def _mix(
    expert: Any, x: Tensor, w: Tensor, held: Tensor, held_w: Tensor, generator: torch.Generator
) -> None:
    """Starts a mixture in one dimension from expectation maximisation, with as many Gaussians as
    held-out samples like best."""
    best = -math.inf
    with torch.no_grad():
        v = expert.to_base(x)[0].double()
        v = (
            v
            if bool((w == w[0]).all())
            else v[torch.multinomial(w, len(w), replacement=True, generator=generator)]
        )
        for count in (1, 2, 4, 8):
            weights, means, roots = maximised(v, count, generator)
            expert.mix(weights, means[:, 0], roots[:, 0, 0].square())
            nats = float((held_w * expert.log_prob(held)).sum() / held_w.sum())
            if nats > best:
                best, chosen = nats, (weights, means[:, 0], roots[:, 0, 0].square())
        expert.mix(*chosen)


def _simple(
    expert: Any, x: Tensor, w: Tensor, held: Tensor, generator: torch.Generator
) -> tuple[float, float]:
    """Held-out nats of a Gaussian and of a mixture of Gaussians in the same unconstrained
    coordinates."""
    rest = torch.ones(len(x), dtype=torch.bool)
    rest[held] = False
    with torch.no_grad():
        u = expert.unconstrained(x).double()
        jacobian = (
            expert.log_prob(x)
            - expert.base.log_prob(expert.to_base(x)[0])
            + expert.root.diagonal().log().sum()
        ).double()
    p = (w[rest] / w[rest].sum()).double()
    mean = p @ u[rest]
    covariance = ((u[rest] - mean) * p.unsqueeze(1)).T @ (u[rest] - mean)
    normal = torch.distributions.MultivariateNormal(mean, covariance)
    share = (w[held] / w[held].sum()).double()
    gaussian = float(share @ (normal.log_prob(u[held]) + jacobian[held]))
    drawn = u[rest][torch.multinomial(p, int(rest.sum()), replacement=True, generator=generator)]
    fitted = Gaussians.fitted(drawn, generator)
    mixture = (
        math.nan if fitted is None else float(share @ (fitted.log_prob(u[held]) + jacobian[held]))
    )
    return gaussian, mixture


def _bounds(support: Any, shape: torch.Size) -> tuple[Any, Any]:
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


def _real(values: Any, what: str) -> Tensor:
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


def _check(x: Tensor, w: Tensor, low: Any, high: Any, copies: int) -> None:
    whole_number("copies", copies, 1)
    if len(x) < FEWEST:
        raise ValueError(
            f"a density is fitted to at least {FEWEST} samples, got {len(x)} of shape "
            f"{tuple(x.shape[1:])}"
        )
    if w.shape != (len(x),) or not bool((w >= 0).all() and w.isfinite().all() and w.sum() > 0):
        raise ValueError(
            f"weights are {len(x)} numbers of at least 0, one a sample; got shape {tuple(w.shape)}"
        )
    dtype = torch.get_default_dtype()
    size = float(w.double().sum() ** 2 / w.double().square().sum())
    if size < FEWEST:
        raise ValueError(
            f"a density is fitted to at least {FEWEST} samples, and by their weights these count "
            f"for {size:.0f}, (Σ w)² / Σ w²"
        )
    finite = x.to(dtype).flatten(1).isfinite().all(1)
    if not bool(finite.all()):
        raise ValueError(f"{int((~finite).sum())} of {len(x)} samples are not finite in {dtype}")
    wide, rounding = (
        x.double().flatten(1).std(0),
        torch.finfo(dtype).eps * x.double().flatten(1).abs().amax(0),
    )
    coarse = (rounding > RESOLVED * wide) & (wide > 0)
    if bool(coarse.any()):
        at = int(coarse.nonzero()[0])
        raise ValueError(
            f"number {at} of each sample spreads by {float(wide[at]):.2g} around "
            f"{float(x.double().flatten(1)[:, at].mean()):.6g}, "
            f"where {dtype} resolves {float(rounding[at]):.2g}: subtract an offset, or call "
            "torch.set_default_dtype(torch.float64)"
        )
    expert = create("fitted", event_shape=list(x.shape[1:]), low=low, high=high)
    inside = sets.contains(expert.support, x)
    u = expert.unconstrained(x)  # type: ignore[operator]
    edge = ~u.isfinite().all(-1)
    if not bool(inside.all()) or bool(edge.any()):
        bad = int((~inside | edge).sum())
        raise ValueError(
            f"{bad} of {len(x)} samples lie outside the support {expert.support!r}, or on its "
            "border: give wider bounds"
        )
    u = u[w > 0].double()
    constant = ((u - u.mean(0)).abs() <= 1e-12 * u.abs().amax(0)).all(0)
    if bool(constant.any()):
        raise ValueError(
            f"number {int(constant.nonzero()[0])} of each sample is always the same: a constant "
            "has no density; leave it out"
        )
    if len(u) <= u.shape[1]:
        raise ValueError(
            f"{u.shape[1]} numbers a sample need more than {len(u)} samples: in so few they depend "
            "on each other"
        )
    least = float(torch.linalg.eigvalsh(u.T.corrcoef().reshape(u.shape[1], u.shape[1]))[0])
    if least < 1e-10:
        raise ValueError(
            "one number of each sample is a linear function of the others, so that they have no "
            "density: leave it out (the least "
            f"eigenvalue of their correlations is {least:.1e})"
        )
