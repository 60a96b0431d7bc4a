"""A likelihood of one point, used four times: SLCP of the simulation-based inference benchmark
(sbibm), by composition.

A simulation draws four points of the plane from one normal law,

    x_i ~ N((θ1, θ2), S),   S = [[s1², ρ s1 s2], [ρ s1 s2, s2²]],   s1 = θ3², s2 = θ4², ρ = tanh θ5,
      θ ~ U(-3, 3)^5,

so that the posterior has four modes, (±θ3, ±θ4). The benchmark's estimators learn p(x1 ... x4 | θ)
or p(θ | x1 ... x4). Here one flow learns the law of a single point from 10,000 simulations, and the
expression says that there are four:

    prior & f(x1) & f(x2) & f(x3) & f(x4)                       f(x) = q(x | θ)
    poe.combine([g(x1), g(x2), g(x3), g(x4)], prior=prior)      g(x) = q(θ | x), the prior counted
    once: g g g g / prior³

Draws are compared with the ten reference posteriors of sbibm by its classifier test (C2ST; 0.5: no
difference, 1: distinguishable).
Published for 10,000 simulations: NPE .901, SNPE .845, NLE .771, SNLE .713.

    pip download --no-deps sbibm==1.1.0 && unzip sbibm-1.1.0-*.whl 'sbibm/tasks/slcp/*'
    python examples/slcp.py sbibm      the folder; many minutes. POE_FAST=1: one observation made
    here, and short training

References: Lueckmann, Boelts, Greenberg, Gonçalves & Macke 2021, Benchmarking simulation-based
inference, AISTATS; Papamakarios, Sterratt & Murray 2019, Sequential neural likelihood, AISTATS
(SLCP); Papamakarios, Pavlakou & Murray 2017, Masked autoregressive flow.
"""

from __future__ import annotations

import bz2
import copy
import math
import os
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from nflows.distributions.normal import StandardNormal
from nflows.flows.base import Flow as Nflow
from nflows.transforms.base import CompositeTransform
from nflows.transforms.coupling import AffineCouplingTransform
from nflows.transforms.standard import PointwiseAffineTransform
from sklearn.model_selection import KFold, cross_val_score
from sklearn.neural_network import MLPClassifier
from torch import Tensor, nn

import poe
from experts import Flow
from poe import ImproperWarning

FAST = os.environ.get("POE_FAST") == "1"
BOUND = 3.0  # of the prior, in each parameter
SIMULATIONS, EPOCHS, DRAWS = (1000, 8, 500) if FAST else (10_000, 60, 10_000)
BATCH, RATE, CLIP, AVERAGE = 256, 3e-3, 20.0, 0.999
SPREAD = 5.0  # of the coordinates of a point


def simulate(theta: Tensor, generator: torch.Generator) -> Tensor:  # (n, 5) -> (n, 4, 2)
    z = torch.randn(len(theta), 4, 2, generator=generator)
    first, second, rho = theta[:, None, 2] ** 2, theta[:, None, 3] ** 2, theta[:, None, 4].tanh()
    tilted = rho * z[..., 0] + (1 - rho**2).sqrt() * z[..., 1]
    return theta[:, None, :2] + torch.stack([first * z[..., 0], second * tilted], -1)


def exact(x: Tensor, theta: Tensor) -> Tensor:  # (2), (*batch, 5) -> (*batch)
    """-log p(x | θ), which the flow is not given."""
    first, second, rho = theta[..., 2] ** 2, theta[..., 3] ** 2, theta[..., 4].tanh()
    a, b = (x[0] - theta[..., 0]) / first, (x[1] - theta[..., 1]) / second
    square = (a**2 - 2 * rho * a * b + b**2) / (1 - rho**2)
    return square / 2 + (first * second).log() + (1 - rho**2).log() / 2 + math.log(2 * math.pi)


# ---- the law of one point


class Network(nn.Module):
    """Linear in all inputs, plus a network that starts at zero."""

    def __init__(
        self, inputs: int, outputs: int, context: int, hidden: int = 64, depth: int = 3
    ) -> None:
        super().__init__()
        self.linear, layers, width = nn.Linear(inputs + context, outputs), [], inputs + context
        for _ in range(depth):
            layers, width = [*layers, nn.Linear(width, hidden), nn.SiLU()], hidden
        self.last = nn.Linear(width, outputs)
        self.bend = nn.Sequential(*layers, self.last)
        for parameter in (*self.linear.parameters(), *self.last.parameters()):
            nn.init.zeros_(parameter)

    def forward(self, inputs: Tensor, context: Tensor) -> Tensor:
        # (n, inputs), (n, context) -> (n, outputs)
        both = torch.cat([inputs, context], -1)
        return self.linear(both) + self.bend(both)


class Coupling(AffineCouplingTransform):
    """z = (x - μ) e^-α, where nflows' own layer shifts after it scales: hard to learn where e^α is
    small and μ moves. α = b tanh(a / b) with b = 8 for the layer that sees θ alone and 3 for
    others, so that far points have finite energies and gradients."""

    @property
    def bound(self) -> float:
        return 3.0 if self.num_identity_features else 8.0

    def log_scale(self, params: Tensor) -> Tensor:
        return self.bound * torch.tanh(params[:, self.num_transform_features :] / self.bound)

    def _scale_and_shift(self, transform_params: Tensor) -> tuple[Tensor, Tensor]:
        inverse = (-self.log_scale(transform_params)).exp()
        return inverse, -transform_params[:, : self.num_transform_features] * inverse


def likelihood_flow(x: Tensor) -> Flow:  # (n, 2)
    """q(x | θ) of a point: place and scale by θ alone, then each coordinate given the other and
    θ."""
    masks = [1, 1], [-1, 1], [1, -1]
    layers = [
        Coupling(torch.tensor(mask), lambda inputs, outputs: Network(inputs, outputs, 5))
        for mask in masks
    ]
    standard = PointwiseAffineTransform(-x.mean(0) / x.std(0), 1 / x.std(0))
    return Flow(
        Nflow(CompositeTransform([standard, *layers]), StandardNormal([2])), context_shape=(5,)
    )


def scale(flow: Flow, context: Tensor) -> Tensor:  # (n, 5) -> (n)
    """The geometric mean of the scales of the first coupling. Weights that depend on θ alone leave
    the best flow the best, and without them the narrowest distributions dominate the gradient
    (Seitzer et al. 2022, On the pitfalls of heteroscedastic uncertainty estimation)."""
    with torch.no_grad():
        first = flow.flow._transform._transforms[1]
        return first.log_scale(first.transform_net(context[:, :0], context)).mean(1).exp()


def train(
    flow: Flow, x: Tensor, context: Tensor, weigh: Callable[[Tensor], Tensor], seed: int
) -> float:
    """Maximum likelihood of x given the context, four rows a simulation; the running mean of the
    parameters that is best on rows held out stays. Returns its nats a row."""
    generator = torch.Generator().manual_seed(seed)
    held = len(x) // 40 * 4
    optimiser = torch.optim.Adam(flow.parameters(), RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(
        optimiser, EPOCHS * math.ceil((len(x) - held) / BATCH)
    )
    smooth, best, kept, step = copy.deepcopy(flow), -math.inf, copy.deepcopy(flow.state_dict()), 0
    for _ in range(EPOCHS):
        for rows in (torch.randperm(len(x) - held, generator=generator) + held).split(BATCH):
            weights = weigh(context[rows])
            loss = (
                -(weights * flow.flow.log_prob(x[rows], context=context[rows])).sum()
                / weights.sum()
            )
            optimiser.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(flow.parameters(), CLIP)
            optimiser.step()
            schedule.step()
            step += 1
            for mean, parameter in zip(smooth.parameters(), flow.parameters(), strict=True):
                mean.data.lerp_(parameter.data, max(1 - AVERAGE, 1 / step))
        with torch.no_grad():
            nats = smooth.flow.log_prob(x[:held], context=context[:held]).mean().item()
        if nats > best:
            best, kept = nats, copy.deepcopy(smooth.state_dict())
    flow.load_state_dict(kept)
    flow.requires_grad_(False)
    return best


# ---- factors over θ


def energy(
    function: Callable[[Tensor], Tensor], prior: poe.Energy, name: str, bounded: bool | None
) -> poe.Energy:
    return poe.as_energy(
        function, event_shape=(5,), support=prior.support, bounded=bounded, name=name
    )


def likelihood(flow: Flow, x: Tensor, prior: poe.Energy, name: str) -> poe.Energy:  # (2)
    """E(θ) = -log q(x | θ), continuous on the box of the prior."""

    def negative(theta: Tensor) -> Tensor:  # (*batch, 5) -> (*batch)
        rows = theta.reshape(-1, 5) / BOUND
        return -flow.flow.log_prob(x.expand(len(rows), 2), context=rows).reshape(theta.shape[:-1])

    return energy(negative, prior, name, True)


def normal(theta: Tensor) -> Tensor:  # (*batch, 5) -> (*batch, 5)
    """u = Φ⁻¹((θ + 3) / 6), a standard normal where θ follows the prior; finite on its border
    too."""
    return torch.special.ndtri(((theta + BOUND) / (2 * BOUND)).clamp(1e-6, 1 - 1e-6))


def posterior(flow: Flow, x: Tensor, prior: poe.Energy, name: str) -> poe.Energy:  # (2)
    """E(θ) = -log q(u | x) - log|det du/dθ|, up to a constant."""
    bound = flow.given(x / SPREAD)

    def negative(theta: Tensor) -> Tensor:  # (*batch, 5) -> (*batch)
        u = normal(theta)
        return -bound.log_prob(u) - (u**2).sum(-1) / 2

    return energy(negative, prior, name, None)


# ---- against the reference


def c2st(x: Tensor, y: Tensor) -> float:  # (n, 5), (m, 5)
    """How often a classifier distinguishes x from y, with the settings of sbibm.metrics.c2st (sbibm
    1.1.0):
    z-scores by x, two hidden layers of ten times the dimension, five folds, seed 1."""
    mean, sd = x.mean(0), x.std(0)
    table = torch.cat([(x - mean) / sd, (y - mean) / sd]).numpy()
    label = np.concatenate([np.zeros(len(x)), np.ones(len(y))])
    hidden = (10 * x.shape[1],) * 2
    classifier = MLPClassifier(
        hidden, activation="relu", solver="adam", max_iter=10_000, random_state=1
    )
    return float(
        cross_val_score(
            classifier, table, label, cv=KFold(5, shuffle=True, random_state=1), scoring="accuracy"
        ).mean()
    )


def observation(folder: Path, number: int) -> tuple[Tensor, Tensor]:  # -> (4, 2), (n, 5)
    """Four points of sbibm and its draws of their posterior."""
    files = folder / "tasks" / "slcp" / "files" / f"num_observation_{number}"
    if not files.is_dir():
        raise SystemExit(
            f"{files} is missing: give the folder sbibm of the unpacked wheel, as the top of this "
            "script says"
        )
    x = np.loadtxt(files / "observation.csv", delimiter=",", skiprows=1)
    with bz2.open(files / "reference_posterior_samples.csv.bz2", "rt") as file:
        reference = np.loadtxt(file, delimiter=",", skiprows=1)
    return torch.as_tensor(x, dtype=torch.float32).reshape(4, 2), torch.as_tensor(
        reference, dtype=torch.float32
    )


def invented(prior: poe.Energy) -> tuple[Tensor, Tensor]:  # -> (4, 2), (n, 5)
    """Four points of known parameters, and draws of their posterior by importance resampling of the
    prior."""
    x = simulate(torch.tensor([[0.7, -2.0, -1.3, 1.8, 0.6]]), torch.Generator().manual_seed(1))[0]
    theta = prior.sample(200_000, generator=torch.Generator().manual_seed(2))  # type: ignore[operator]
    weights = (-torch.stack([exact(point, theta) for point in x]).sum(0)).softmax(0)
    return x, theta[weights.multinomial(DRAWS, replacement=True)]


def targets(prior: poe.Energy, x: Tensor, f: Flow, g: Flow) -> dict[str, poe.Energy]:  # (4, 2)
    """The posterior of four points: by the simulator's own likelihood, by q(x | θ), and by q(θ |
    x)."""
    own = [
        energy(lambda theta, point=point: exact(point, theta), prior, f"p{i}", None)
        for i, point in enumerate(x, 1)
    ]
    f1, f2, f3, f4 = (likelihood(f, point, prior, f"f{i}") for i, point in enumerate(x, 1))
    each = [posterior(g, point, prior, f"g{i}") for i, point in enumerate(x, 1)]
    return {
        "exact": poe.product([prior, *own]),
        "f": prior & f1 & f2 & f3 & f4,
        "g": poe.combine(each, prior=prior),
    }


def learn(prior: poe.Energy) -> tuple[Flow, Flow]:
    """q(x | θ) and q(θ | x), from the same simulations."""
    generator = torch.Generator().manual_seed(0)
    theta = prior.sample(SIMULATIONS, generator=generator)  # type: ignore[operator]
    points, theta = simulate(theta, generator).flatten(0, 1), theta.repeat_interleave(4, 0)
    began = time.perf_counter()
    f = likelihood_flow(points)
    nats = train(f, points, theta / BOUND, lambda context: scale(f, context), 0)
    print(
        f"q(x | θ): {nats:.3f} nats a held-out point, {time.perf_counter() - began:.0f} s",
        flush=True,
    )
    began = time.perf_counter()
    # g / prior is to be bounded, for it is multiplied by others: far out these splines are the
    # identity, and q(u | x) the prior's law
    g = Flow(
        kind="rq-coupling",
        layers=6,
        hidden=64,
        mixing="permutation",
        tail_bound=3.5,
        event_shape=(5,),
        context_shape=(2,),
    )
    nats = train(g, normal(theta), points / SPREAD, lambda context: torch.ones(len(context)), 1)
    print(
        f"q(θ | x): {nats:.3f} nats a held-out point, {time.perf_counter() - began:.0f} s",
        flush=True,
    )
    return f, g


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    warnings.simplefilter(
        "ignore", ImproperWarning
    )  # of what is divided: it is unknown whether it has finite mass
    if not FAST and len(sys.argv) < 2:
        raise SystemExit("which folder holds the files of sbibm? See the top of this script")
    box = torch.distributions.Uniform(-BOUND * torch.ones(5), BOUND * torch.ones(5))
    prior = poe.as_energy(torch.distributions.Independent(box, 1), name="prior")
    numbers = [] if FAST else [int(word) for word in sys.argv[2:]] or list(range(1, 11))
    observed = {number: observation(Path(sys.argv[1]), number) for number in numbers} or {
        0: invented(prior)
    }
    f, g = learn(prior)
    found: dict[str, list[float]] = {}
    for number, (x, reference) in observed.items():
        for name, target in targets(prior, x, f, g).items():
            if FAST and name != "f":
                continue
            draws = poe.sample(target, DRAWS, seed=number)
            d, score = draws.diagnostics, c2st(reference[:DRAWS], draws.x)
            found.setdefault(name, []).append(score)
            verdict = "trusted" if draws.trusted else f"not trusted: {draws.reasons[0]}"
            print(
                f"observation {number:2d} {name:5s} C2ST {score:.3f} {d.seconds:4.0f} s, "
                f"{draws.method}; {verdict}",
                flush=True,
            )
    for name, scores in found.items():
        print(f"{name:5s} mean C2ST {np.mean(scores):.3f} over {len(scores)}")


if __name__ == "__main__":
    main()
