"""Sequential Monte Carlo over a shared ordering: products with autoregressive factors, drawn one
position after the other.

With factors p_k(x) = Π_t p_k(x_t | x_<t) of one order, to powers w_k, and the rest of the product,
exp(-R(x)), particles carry prefixes. At each position a value is drawn from the locally normalised
product

    q_t(v) ∝ Π_k p_k(v | x_<t)^w_k,      log w ← log w + log Σ_v Π_k p_k(v | x_<t)^w_k,

whose weights correct it to the global product, that is another law: a prefix counts by what can
still come of it. Where the effective number of a population's weights falls below half, it is
resampled. In the end weights are multiplied by exp(-R(x)).

Sites that some factor makes independent (a Bernoulli field) join q_t exactly. The rest may twist
the way: it is evaluated with the positions to come at their most frequent values, R_t = R(x_≤t,
fill); q_t(v) is multiplied by its conditional of the site, and log w grows by R_{t-1} - R_t, so
that the end is the same. A pilot measures whether that makes the estimates of Z more even.

In all w is exp(-E(x)) over the probability with which x was drawn, so that its mean is Z of the
product without bias.

References: Gordon, Salmond and Smith 1993, IEE Proc. F 140(2); Naesseth, Lindsten and Schön 2019,
Foundations and Trends in Machine Learning 12(3) (twisting); Lew, Zhi-Xuan, Grand and Mansinghka
2023, arXiv:2306.03081 (language models).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from poe.algebra import support as sets
from poe.algebra.capabilities import Hidden, SiteLogits
from poe.algebra.capabilities import Sequential as Ordered
from poe.algebra.energy import Energy
from poe.algebra.product import product
from poe.diagnostics.weights import weight_ess
from poe.smc.resampling import systematic
from poe.spaces.conditionals import Conditionals
from poe.spaces.path import take
from poe.spaces.points import point_dtype
from poe.spaces.sites import Sites, pick, sites_of
from poe.spaces.structure import factors

MOST_VALUES = (
    64  # of a site, up to which energies that state no conditionals are evaluated with each of them
)
PILOT = (8, 128)  # populations and particles that decide on twisting
# log weight below the best value that a twist may give a value: what it excludes may be possible
# later
LEAST = -4.0


@dataclass(frozen=True)
class Line:
    """A product as seen along an order: autoregressive factors and independent fields with their
    powers, what is left, the values of the sites and the type of a point."""

    energy: Energy
    order: Tensor
    factors: tuple[tuple[Any, float], ...]
    fields: tuple[tuple[Any, float], ...]
    rest: Energy | None
    sites: Sites
    dtype: torch.dtype

    @property
    def evaluations(self) -> int:
        """Passes of factors for one particle."""
        return len(self.order) * len(self.factors)


class Particles(NamedTuple):
    """What a run ends with, (populations, particles, ...): points and log weights in nats; and of
    each population the log of its estimate of Z, and how many of its points have energy NaN."""

    x: Tensor
    log_weights: Tensor
    log_ratio: Tensor
    failed: Tensor


def line(energy: Energy) -> Line | None:
    """The product along the order of its first autoregressive factor; None where it has none, or is
    not discrete."""
    if not sets.is_discrete(energy.support):
        return None
    terms = factors(energy)
    ordered = [part for part, power in terms if part.can(Ordered) and power > 0]
    if not ordered:
        return None
    order: Tensor = ordered[0].order  # type: ignore[attr-defined]
    ranked, fields, rest = [], [], []
    for part, power in terms:
        if part.can(Ordered) and torch.equal(part.order, order):  # type: ignore[attr-defined]
            ranked.append((part, power))
        elif part.can(SiteLogits) and not part.can(Hidden) and len(part.blocks) == 1:  # type: ignore[attr-defined]
            fields.append((part, power))
        else:
            rest.append((part, power))
    left = product([part for part, _ in rest], [power for _, power in rest]) if rest else None
    return Line(
        energy, order, tuple(ranked), tuple(fields), left, sites_of(energy), point_dtype(energy)
    )


def carry(
    of: Line, populations: int, particles: int, generator: torch.Generator, *, twisted: bool
) -> Particles:
    """Populations of particles along the whole order."""
    device, n = of.energy.device, len(of.order)
    fill = _fill(of, generator)
    prefix = fill.new_empty(populations, particles, 0)
    flat = fill.expand(populations, particles, n).clone()
    logs = torch.zeros(populations, particles, dtype=torch.float64, device=device)
    log_ratio, spoken, ahead = logs[:, 0], logs, logs
    own = torch.arange(particles, device=device).expand(populations, particles)
    with torch.no_grad():
        for t in range(n):
            site = of.order[t : t + 1]
            local = _local(of, prefix, flat, site)  # (populations, particles, values)
            log_q = (local + _twist(of, flat, site) if twisted else local).log_softmax(-1)
            uniform = torch.rand(
                populations, particles, 1, generator=generator, dtype=torch.float64, device=device
            )
            place = pick(log_q.unsqueeze(-2), uniform)
            said = local.gather(-1, place).squeeze(-1)
            logs, spoken = logs + said - log_q.gather(-1, place).squeeze(-1), spoken + said
            flat = of.sites.put(flat, site, place, 1)
            prefix = torch.cat([prefix, flat[..., site]], -1)
            if twisted:
                now = of.rest(_event(of, flat)).double()  # type: ignore[misc]
                now = torch.where(now.isfinite(), now, ahead)
                logs, ahead = logs + ahead - now, now
            logs = torch.where(
                logs.isnan(), -math.inf, logs
            )  # no value is possible after this prefix
            size = weight_ess(logs)
            tired = (size < particles / 2) & (logs > -math.inf).any(1)
            if t < n - 1 and bool(tired.any()):
                uniform = torch.rand(
                    populations, 2, generator=generator, dtype=torch.float64, device=device
                )
                order = torch.where(tired.unsqueeze(1), systematic(logs, uniform), own)
                log_ratio = log_ratio + torch.where(
                    tired, logs.logsumexp(1) - math.log(particles), 0
                )
                logs = torch.where(tired.unsqueeze(1), 0, logs)
                prefix, flat = take(prefix, order), take(flat, order)
                spoken, ahead = spoken.gather(1, order), ahead.gather(1, order)
        energy = of.energy(_event(of, flat))
    # what was said on the way is taken back: the weights are exp(-E(x)) over the probability of
    # getting there
    logs = logs + ahead - spoken - energy.double()
    logs = torch.where(logs.isnan(), -math.inf, logs)
    log_ratio = log_ratio + logs.logsumexp(1) - math.log(particles)
    return Particles(_event(of, flat), logs, log_ratio, energy.isnan().sum(1))


def twists(of: Line, generator: torch.Generator) -> bool:
    """Whether the rest should twist the way, by the spread of the estimates of Z of small
    populations either way."""
    if of.rest is None or (of.sites.max_count > MOST_VALUES and not of.rest.can(SiteLogits)):
        return False
    spread = []
    for twisted in (False, True):
        logs = carry(of, *PILOT, generator, twisted=twisted).log_ratio
        z = (logs - logs.logsumexp(0)).exp()
        spread.append(float(z.std() / z.mean()) if bool(logs.isfinite().any()) else math.inf)
    return spread[1] < spread[0]


def _local(of: Line, prefix: Tensor, flat: Tensor, site: Tensor) -> Tensor:  # -> (*batch, values)
    """Log weights of the values of the next site: Σ_k w_k log p_k(v | x_<t), with those of the
    fields; in double precision."""
    total = flat.new_zeros(*prefix.shape[:-1], of.sites.max_count, dtype=torch.float64)
    for part, power in of.factors:
        total = total + _scaled(power, part.next_logits(prefix).double())
    x = _event(of, flat)
    for part, power in of.fields:
        total = total + _scaled(power, _wide(part.site_logits(x, site).double(), x, of).squeeze(-2))
    return total.masked_fill(~of.sites.mask(flat.device)[site], -math.inf)


def _twist(of: Line, flat: Tensor, site: Tensor) -> Tensor:  # -> (*batch, values)
    """Log weights of the values of a site under the rest, the positions to come as they are
    filled."""
    assert of.rest is not None
    x = _event(of, flat)
    logits = _wide(Conditionals(of.rest).logits(x, site).double(), x, of).squeeze(-2)
    top = logits.amax(-1, keepdim=True)
    logits = torch.where(top.isfinite(), logits - top, 0)
    return torch.where(logits.isnan(), 0, logits.clamp(min=LEAST))


def _wide(logits: Tensor, x: Tensor, of: Line) -> Tensor:
    """Log-odds of the upper of two values as log weights of both."""
    batch = x.ndim - len(of.energy.event_shape)
    return (
        logits if logits.ndim > batch + 1 else torch.stack([torch.zeros_like(logits), logits], -1)
    )


def _scaled(power: float, logs: Tensor) -> Tensor:
    """w log p, where what is excluded stays so, whatever the power."""
    return torch.where(logs == -math.inf, logs, power * logs)


def _event(of: Line, flat: Tensor) -> Tensor:  # (*batch, n) -> (*batch, *event)
    return flat.reshape(*flat.shape[:-1], *of.energy.event_shape)


def _fill(of: Line, generator: torch.Generator, draws: int = 128) -> Tensor:  # -> (n)
    """The most frequent value of each site in draws of the first factor, made along its order."""
    part, _ = of.factors[0]
    device, n = of.energy.device, len(of.order)
    flat = torch.zeros(draws, n, dtype=of.dtype, device=device)
    flat = of.sites.put(
        flat,
        torch.arange(n, device=device),
        torch.zeros(draws, n, dtype=torch.long, device=device),
        1,
    )
    with torch.no_grad():
        for t in range(n if of.rest is not None else 0):
            site = of.order[t : t + 1]
            uniform = torch.rand(draws, 1, generator=generator, dtype=torch.float64, device=device)
            place = pick(part.next_logits(flat[:, of.order[:t]]).unsqueeze(-2), uniform)
            flat = of.sites.put(flat, site, place, 1)
    return flat.mode(0).values
