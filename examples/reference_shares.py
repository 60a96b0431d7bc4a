"""The shares of digits in the demo's compositions: a reference without Markov chains, and a χ² test
of
draws against it.

The autoregressive expert draws exactly and lies near both targets, so self-normalised importance
sampling from it estimates the share of each digit (as the judge sees it), with Pareto-smoothed w =
exp(E_loops - E) and the standard error of a ratio. The draws of `poe.sample` are compared with it
over 6, 8, 0 and the others, with the effective number of their report. POE_FAST=1: few draws.
"""

from __future__ import annotations

import torch
from digits import fast
from scipy.stats import chi2

import poe
from poe.diagnostics.weights import pareto_smoothed, weight_ess

GROUPS = ("6", "8", "0", "rest")


def groups(x: torch.Tensor, judge: poe.Energy) -> torch.Tensor:  # (n, 8, 8) -> (n, 4)
    """One-hot: judged 6, 8, 0 or another digit."""
    with torch.no_grad():
        digits = judge.logits(x).argmax(-1)  # type: ignore[operator]
    hot = torch.stack([digits == d for d in (6, 8, 0)], -1)
    return torch.cat([hot, ~hot.any(-1, keepdim=True)], -1).double()


def reference(
    target: poe.Energy, start: poe.Density, judge: poe.Energy, draws: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """(shares, their standard errors) by importance sampling."""
    generator = torch.Generator().manual_seed(0)
    weights, hot = [], []
    with torch.no_grad():
        for _ in range(draws // 2000):
            x = start.sample(2000, generator=generator)
            weights.append((start(x) - target(x)).double())
            hot.append(groups(x, judge))
    (logs, k), marks = pareto_smoothed(torch.cat(weights)), torch.cat(hot)
    p = logs.softmax(0).unsqueeze(-1)
    shares = (p * marks).sum(0)
    print(f"reference: Pareto k {k:.2f}, ESS {weight_ess(logs):.0f} of {len(logs)}")
    return shares, (p * (marks - shares)).square().sum(0).sqrt()


def main() -> None:
    even, loops, high = (poe.load(f"digits.{name}") for name in ("even", "loops", "high"))
    judge = poe.load("digits.judge")
    high = poe.normalize(high, draws=10_000, seed=0)
    targets = [
        (even & loops & high) ** (1 / 3),
        (even & loops) ** 0.5 & (loops / (loops | high)) ** 8,
    ]
    for target in targets[: 1 if fast() else 2]:
        shares, errors = reference(target, loops, judge, 4_000 if fast() else 120_000)
        draws = poe.sample(target, 40 if fast() else 200, method="annealed", seed=0)
        n = min(draws.diagnostics.ess_bulk, len(draws))
        seen = groups(draws.x, judge).mean(0)
        variance = (
            shares / n + errors.square()
        )  # of a share: multinomial, and that of the reference
        statistic = ((seen - shares).square() / variance.clamp(min=1e-4)).sum().item()
        print(target)
        for name, a, b, error in zip(
            GROUPS, seen.tolist(), shares.tolist(), errors.tolist(), strict=True
        ):
            print(
                f"  {name:>4}: draws {100 * a:5.1f} %   reference {100 * b:5.1f} ± "
                f"{100 * error:.1f} %"
            )
        print(
            f"  χ² {statistic:.1f} on 3 degrees of freedom over {n:.0f} effective draws, p = "
            f"{chi2.sf(statistic, 3):.3f}"
        )


if __name__ == "__main__":
    main()
