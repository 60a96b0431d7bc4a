"""(g) Chains in the noise of a flow: a trained RealNVP & a trained MAF & a classifier in 16
dimensions.

The data are eight pairs (u, v), u ~ N(0, 1) and v ~ N(u², s²) scaled by 2^-k in pair k: s = .2 for
the RealNVP, .5 for the MAF; the classifier distinguishes a positive sum of the u from a negative
one. All are trained here, in about a minute. `poe.sample(e, method="chains")` then moves in the
noise of the RealNVP; the same kernel without transport is asked for by `kernel=`. "With warm-up" is
a whole run of `poe.sample`, "after it" a long run of the tuned kernel. ESS is the smallest bulk ESS
over coordinates and energy (arviz-stats)."""

from __future__ import annotations

import time
import warnings

import torch
from torch import Tensor, nn

import poe
import timing  # noqa: F401
from experts.classifier import Classifier
from experts.flow import Flow
from poe.algebra.energy import Energy
from poe.diagnostics.evidence import diagnose
from poe.kernels.defaults import default_kernel
from poe.mcmc.run import run, streams
from poe.sampling.methods.runs import WARMUP
from poe.spaces.transport import Transported

PAIRS, STEPS, BATCH, CHAINS = 8, 1500, 256, 32


def data(n: int, noise: float, generator: torch.Generator) -> Tensor:  # -> (n, 16)
    u = torch.randn(n, PAIRS, generator=generator)
    v = u.square() + noise * torch.randn(n, PAIRS, generator=generator)
    return torch.stack([u, v], -1).mul(2.0 ** -torch.arange(PAIRS).unsqueeze(-1)).flatten(1)


def trained(kind: str, noise: float, seed: int) -> Flow:
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    flow = Flow(kind=kind, event_shape=(2 * PAIRS,), layers=6, hidden=64, name=kind)
    optimizer = torch.optim.Adam(flow.parameters(), 2e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    with flow.training_mode():
        for _ in range(STEPS):
            optimizer.zero_grad()
            loss = flow(data(BATCH, noise, generator)).mean()
            loss.backward()
            nn.utils.clip_grad_norm_(flow.parameters(), 5.0)
            optimizer.step()
            schedule.step()
    print(f"  {kind}: {flow(data(4096, noise, generator)).mean().item():.2f} nats")
    return flow


def classifier(seed: int) -> Classifier:
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    network = nn.Sequential(nn.Linear(2 * PAIRS, 64), nn.SiLU(), nn.Linear(64, 2))
    optimizer = torch.optim.Adam(network.parameters(), 3e-3)
    for _ in range(STEPS):
        x = data(BATCH, 0.3, generator)
        label = (x.unflatten(1, (PAIRS, 2))[..., 0] * 2.0 ** torch.arange(PAIRS)).sum(1) > 0
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(x), label.long()).backward()
        optimizer.step()
    return Classifier(network, labels=1, event_shape=(2 * PAIRS,), name="positive")


def whole(energy: Energy, moved: bool, seed: int) -> tuple[float, float, float]:
    """ESS, gradients and seconds of a run of `poe.sample`."""
    began, kernel = time.process_time(), None if moved else default_kernel(energy)
    draws = poe.sample(energy, 4000, method="chains", chains=CHAINS, kernel=kernel, seed=seed)
    print(
        f"    {'in the noise' if moved else 'as it stands'}, seed {seed}: {draws.verdict}",
        flush=True,
    )
    return draws.diagnostics.ess_bulk, draws.diagnostics.gradients, time.process_time() - began


def settled(
    energy: Energy, flow: Flow | None, seed: int, start: Flow
) -> tuple[float, float, float]:
    """ESS, gradients and seconds of 300 steps of every chain after warm-up."""
    space = energy if flow is None else Transported(energy, flow)
    generators = streams(seed, 1, energy.device)
    x = start.sample(CHAINS, generator=generators[0])
    x = x if flow is None else flow.to_noise(x)[0].detach()
    warm = run(default_kernel(space), space, x, draws=1, warmup=WARMUP, generators=generators)
    began = time.process_time()
    trace = run(warm.kernel, space, warm.states, draws=300, generators=generators)
    took = time.process_time() - began
    with torch.no_grad():
        points = trace.x if flow is None else flow.from_noise(trace.x)[0]
    return diagnose(points, trace.energy, 1).ess_bulk, trace.counts.gradients, took


def line(name: str, measured: list[tuple[float, float, float]]) -> tuple[float, float]:
    """ESS a second and a thousand gradients: means over the seeds, printed."""
    ess, gradients, seconds = (sum(column) for column in zip(*measured, strict=True))
    print(
        f"  {name:<34} {ess / seconds:8.1f} a second {1e3 * ess / gradients:8.2f} a thousand "
        "gradients",
        flush=True,
    )
    return ess / seconds, ess / gradients


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    began = time.process_time()
    print("training")
    realnvp, maf, positive = trained("realnvp", 0.2, 0), trained("maf", 0.5, 1), classifier(2)
    for flow in (realnvp, maf, positive):
        flow.requires_grad_(False)
    print(f"  {time.process_time() - began:.0f} s")
    energy, seeds = realnvp & maf & positive, range(2)
    for name, measure in (
        ("with warm-up", lambda moved, seed: whole(energy, moved, seed)),
        (
            "after it",
            lambda moved, seed: settled(energy, realnvp if moved else None, seed, realnvp),
        ),
    ):
        print(f"ESS of {CHAINS} chains, {name}")
        noise = line("in the noise of the RealNVP", [measure(True, seed) for seed in seeds])
        plain = line("as it stands", [measure(False, seed) for seed in seeds])
        print(
            f"  {noise[0] / plain[0]:.1f} x a second, {noise[1] / plain[1]:.1f} x a gradient (goal "
            "3 x a second)"
        )
