"""A density for samples: the posterior of a chain, or any table of points, as an expert.

The expert that is fitted is the registry's "fitted". Besides `log_prob` it has `whiten(x, w)`,
`mix(weights, means, variances)`, `unconstrained(x)`, `to_base(x)`, `base`, `root` and `fit`.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from poe.algebra.checks import whole_number
from poe.algebra.energy import Energy
from poe.algebra.product import product
from poe.mcmc.progress import Progress
from poe.mcmc.run import streams
from poe.registry import create
from poe.smc.gaussians import Gaussians, maximised
from poe.training.samples import (
    as_bounds,
    as_samples,
    check_density,
    check_inside,
    check_resolved,
    check_weighted,
)

HELD_OUT = 0.1  # share of the samples on which training is stopped, drawn anew for each copy
MAX_EPOCHS, PATIENCE = 150, 12  # epochs; epochs without improvement after which training stops
BATCH_SIZE, LEARNING_RATE = 512, 2e-3
AVERAGE_DECAY = 0.98  # of the moving average of the weights, per step
COMPONENTS = (1, 2, 4, 8)  # Gaussians of a mixture in one dimension, compared on held-out samples


@dataclass(frozen=True)
class Fit:
    """Log densities of held-out samples, the mean in nats per sample: higher is better.

    Attributes:
        copies: of each flow, on the samples that were held out from it.
        gaussian, mixture: of one Gaussian and of a mixture of Gaussians in the unconstrained space,
            on those held out from the first flow. A mixture is NaN where none can be fitted.
        epochs: the epoch at which each flow was best.
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
    progress: bool | None = None,
    name: str | None = None,
    **architecture: Any,
) -> Energy:
    """An expert fitted to samples: flows in the unconstrained space of the stated bounds, stopped
    early on held-out samples.

    Several copies, each with its own initial weights and bootstrap sample (Breiman 1996, bagging),
    are combined to their geometric ensemble Π p_k^(1/n) (`poe.product`): where they disagree, the
    ensemble is wider. `poe.combine` reads the spread over them as an error bar of training and of
    the number of samples; it does not include errors that all copies share. Each copy is a moving
    average of the weights during training, which has a smaller error than the last weights (Polyak
    & Juditsky 1992). The expert is saved by `poe.save`. The attribute `fit` of each copy (of
    `parts[k]`, in an ensemble) compares the flows with a Gaussian and a mixture of Gaussians.

    Arguments:
        samples: (n, *event), tensor or array: independent, or a thinned chain.
        weights: (n), positive: of nested or importance samples.
        support: (low, high), each a number, an array of the event's shape, or None; or a box of
            `poe.algebra.support`. All of R^n by default.
        copies: flows in the ensemble; 1 gives a density that draws.
        seed: of weights, splits and batches.
        architecture: of the flows, as `experts.Flow` takes it.

    Raises TypeError for anything but arrays of real numbers; ValueError for fewer than 100 samples,
    or an effective number below 100 under the weights, samples outside the support, not finite, or
    closer to each other than the default dtype resolves, and weights of another length or sign.
    """
    x, w, box = _checked(samples, weights, support, copies)
    generators = streams(seed, copies, torch.device("cpu"))
    cut = max(1, round(HELD_OUT * len(x)))
    found, nats, epochs, held = [], [], [], []
    with Progress(progress).bar("fitting", copies * MAX_EPOCHS) as bar:
        for index, generator in enumerate(generators):
            order = torch.randperm(len(x), generator=generator)
            label = None if name is None else name if copies == 1 else f"{name}_{index}"
            seed = int(torch.randint(2**62, (), generator=generator))
            expert = _created(seed, box | {"name": label} | architecture)
            rows, stop = order[cut:], order[:cut]
            if copies > 1:
                rows = rows[torch.randint(len(rows), (len(rows),), generator=generator)]
            best, epoch = _train(expert, x[rows], w[rows], x[stop], w[stop], generator, bar)
            found.append(expert)
            nats.append(best)
            epochs.append(epoch)
            held.append(stop)
    simple = _gaussians(found[0], x, w, held[0], generators[0])
    size = float(w.sum() ** 2 / w.square().sum())
    fit = Fit(tuple(nats), *simple, tuple(epochs), (len(x), size))
    for expert in found:
        expert.fit = fit
    return found[0] if copies == 1 else product(found, powers=1 / copies)


def _checked(
    samples: Any, weights: Any, support: Any, copies: int
) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """Samples and weights above 0, in the default dtype, and the box of the expert, checked."""
    whole_number("copies", copies, 1)
    x, w = as_samples(samples, "samples"), None
    x = x.unsqueeze(-1) if x.ndim == 1 else x
    if weights is None:
        w = torch.ones(len(x))
    else:
        w = as_samples(weights, "weights").double()
        w = (w / w.max().clamp(min=1e-300)).to(torch.get_default_dtype())
    low, high = as_bounds(support, x.shape[1:])
    box = {"event_shape": list(x.shape[1:]), "low": low, "high": high}
    check_weighted(x, w)
    check_resolved(x)
    expert = _created(0, box)
    u = expert.unconstrained(x)
    check_inside(expert, x, u)
    check_density(u[w > 0].double())
    return x[w > 0].to(torch.get_default_dtype()), w[w > 0], box


def _created(seed: int, arguments: dict[str, Any]) -> Any:
    """An expert whose initial weights come from a seed; the global random state stays as it is."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return create("fitted", **arguments)


def _train(
    expert: Any,
    x: Tensor,
    w: Tensor,
    held: Tensor,
    held_w: Tensor,
    generator: torch.Generator,
    bar: Any,
) -> tuple[float, int]:
    """Maximum likelihood by Adam with a decreasing learning rate; the expert gets the averaged
    weights of the epoch that is best on held-out samples. (nats, epoch)."""
    expert.whiten(x, w)
    if expert.event_shape.numel() == 1:
        _mix(expert, x, w, held, held_w, generator)
    averaged = AveragedModel(expert, multi_avg_fn=get_ema_multi_avg_fn(AVERAGE_DECAY))
    optimiser = torch.optim.Adam(expert.parameters(), LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, MAX_EPOCHS)

    def held_out(expert: Any) -> float:
        with torch.no_grad():
            return float((held_w * expert.log_prob(held)).sum() / held_w.sum())

    best, state, last = held_out(expert), copy.deepcopy(expert.state_dict()), -1
    for epoch in range(MAX_EPOCHS):
        for rows in torch.randperm(len(x), generator=generator).split(BATCH_SIZE):
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
            bar.update(MAX_EPOCHS - 1 - epoch)
            break
    expert.load_state_dict(state)
    expert.requires_grad_(False)
    return best, last + 1


def _mix(
    expert: Any, x: Tensor, w: Tensor, held: Tensor, held_w: Tensor, generator: torch.Generator
) -> None:
    """Starts a mixture in one dimension from expectation maximisation, with the number of Gaussians
    that is best on held-out samples."""
    best = -math.inf
    with torch.no_grad():
        v = expert.to_base(x)[0].double()
        v = (
            v
            if bool((w == w[0]).all())
            else v[torch.multinomial(w, len(w), replacement=True, generator=generator)]
        )
        for count in COMPONENTS:
            weights, means, roots = maximised(v, count, generator)
            expert.mix(weights, means[:, 0], roots[:, 0, 0].square())
            nats = float((held_w * expert.log_prob(held)).sum() / held_w.sum())
            if nats > best:
                best, chosen = nats, (weights, means[:, 0], roots[:, 0, 0].square())
        expert.mix(*chosen)


def _gaussians(
    expert: Any, x: Tensor, w: Tensor, held: Tensor, generator: torch.Generator
) -> tuple[float, float]:
    """Held-out nats of a Gaussian and of a mixture of Gaussians in the same unconstrained
    coordinates."""
    others = torch.ones(len(x), dtype=torch.bool)
    others[held] = False
    with torch.no_grad():
        u = expert.unconstrained(x).double()
        jacobian = (
            expert.log_prob(x)
            - expert.base.log_prob(expert.to_base(x)[0])
            + expert.root.diagonal().log().sum()
        ).double()
    p = (w[others] / w[others].sum()).double()
    mean = p @ u[others]
    covariance = ((u[others] - mean) * p.unsqueeze(1)).T @ (u[others] - mean)
    normal = torch.distributions.MultivariateNormal(mean, covariance)
    share = (w[held] / w[held].sum()).double()
    gaussian = float(share @ (normal.log_prob(u[held]) + jacobian[held]))
    drawn = u[others][
        torch.multinomial(p, int(others.sum()), replacement=True, generator=generator)
    ]
    fitted = Gaussians.fitted(drawn, generator)
    mixture = (
        math.nan if fitted is None else float(share @ (fitted.log_prob(u[held]) + jacobian[held]))
    )
    return gaussian, mixture
