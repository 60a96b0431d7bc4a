"""Sequential Monte Carlo along an autoregressive order: products with autoregressive factors, drawn
one position after the other.

With factors p_k(x) = Π_t p_k(x_t | x_<t) of one order, to powers w_k, and the remainder of the
product, exp(-R(x)), particles are prefixes. At each position a value is drawn from the locally
normalised product

    q_t(v) ∝ Π_k p_k(v | x_<t)^w_k,      log w ← log w + log Σ_v Π_k p_k(v | x_<t)^w_k,

whose weights correct it to the global product, a different law: it weighs a prefix by its
continuations. Where the effective number of a population's weights falls below half of its
particles, it is resampled. At the end weights are multiplied by exp(-R(x)).

Factors under which sites are independent (a Bernoulli field) enter q_t exactly. The remainder may
twist the proposal: it is evaluated with the later positions at their most frequent values, R_t =
R(x_≤t, fill); q_t(v) is multiplied by its conditional of the site, and log w grows by R_{t-1} -
R_t, which leaves the final law the same. Small populations decide whether that reduces the variance
of the estimates of Z.

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
from poe.algebra.capabilities import Hidden, SiteLogits, as_a
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

MAX_VALUES = 64  # of a site, for a remainder without conditionals to be evaluated with each of them
TWIST_POPULATIONS, TWIST_PARTICLES = 8, 128  # that decide on twisting
MIN_LOG_TWIST = -4.0  # of a value, relative to the best one: it may be likely given later values


@dataclass(frozen=True)
class OrderedProduct:
    """A product along an order: autoregressive factors and independent fields with their powers,
    the remainder, the values of the sites and the dtype of a point."""

    energy: Energy
    order: Tensor
    factors: tuple[tuple[Any, float], ...]
    fields: tuple[tuple[Any, float], ...]
    remainder: Energy | None
    sites: Sites
    dtype: torch.dtype

    @property
    def evaluations(self) -> int:
        """Passes of factors for one particle."""
        return len(self.order) * len(self.factors)

    def event(self, flat: Tensor) -> Tensor:  # (*batch, n) -> (*batch, *event)
        """Events from vectors of sites."""
        return flat.reshape(*flat.shape[:-1], *self.energy.event_shape)


class Particles(NamedTuple):
    """The particles at the end, (populations, particles, ...): points and log weights in nats; and
    of each population the log of its estimate of Z, and how many of its points have energy NaN."""

    x: Tensor
    log_weights: Tensor
    log_ratio: Tensor
    failed: Tensor


def ordered_product(energy: Energy) -> OrderedProduct | None:
    """The product along the order of its first autoregressive factor; None where it has none, or is
    not discrete."""
    if not sets.is_discrete(energy.support):
        return None
    terms = [(part, as_a(part, Ordered), power) for part, power in factors(energy)]
    order = next((seq.order for _, seq, power in terms if seq is not None and power > 0), None)
    if order is None:
        return None
    ordered, fields, others = [], [], []
    for part, seq, power in terms:
        if seq is not None and torch.equal(seq.order, order):
            ordered.append((part, power))
        elif _is_field(part):
            fields.append((part, power))
        else:
            others.append((part, power))
    remainder = product(*map(list, zip(*others, strict=True))) if others else None
    sites, dtype = sites_of(energy), point_dtype(energy)
    return OrderedProduct(energy, order, tuple(ordered), tuple(fields), remainder, sites, dtype)


def _is_field(part: Energy) -> bool:
    """Whether the sites of a factor are independent."""
    states = as_a(part, SiteLogits)
    return states is not None and not part.can(Hidden) and len(states.blocks) == 1


class _State(NamedTuple):
    """Particles at a position, (populations, particles, ...): the values so far along the order;
    all sites, the later ones filled; log weights; the log of the local products so far; the energy
    R_t of the remainder, 0 without a twist; and log Z so far (populations)."""

    prefix: Tensor
    flat: Tensor
    logs: Tensor
    local: Tensor
    twist: Tensor
    log_ratio: Tensor


def propagate(
    of: OrderedProduct,
    populations: int,
    particles: int,
    generator: torch.Generator,
    *,
    twisted: bool,
) -> Particles:
    """Populations of particles along the whole order."""
    n, fill = len(of.order), _fill(of, generator)
    prefix = fill.new_empty(populations, particles, 0)
    flat = fill.expand(populations, particles, n).clone()
    logs = torch.zeros(populations, particles, dtype=torch.float64, device=of.energy.device)
    state = _State(prefix, flat, logs, logs, logs, logs[:, 0])
    with torch.no_grad():
        for t in range(n):
            state = _extended(of, state, of.order[t : t + 1], generator, twisted)
            if t < n - 1:
                state = _resampled(state, generator)
        x = of.event(state.flat)
        energy = of.energy(x)
    # weights become exp(-E(x)) over the probability with which x was drawn
    logs = state.logs + state.twist - state.local - energy.double()
    logs = torch.where(logs.isnan(), -math.inf, logs)
    log_ratio = state.log_ratio + logs.logsumexp(1) - math.log(particles)
    return Particles(x, logs, log_ratio, energy.isnan().sum(1))


def _extended(
    of: OrderedProduct, state: _State, site: Tensor, generator: torch.Generator, twisted: bool
) -> _State:
    """The particles with the value of the next site drawn."""
    prefix, flat, logs, _, twist, _ = state
    local = _local(of, prefix, flat, site)  # (populations, particles, values)
    log_q = (local + _twist(of, flat, site) if twisted else local).log_softmax(-1)
    uniform = torch.rand(
        *logs.shape, 1, generator=generator, dtype=torch.float64, device=logs.device
    )
    place = pick(log_q.unsqueeze(-2), uniform)
    drawn = local.gather(-1, place).squeeze(-1)
    logs = logs + drawn - log_q.gather(-1, place).squeeze(-1)
    flat = of.sites.put(flat, site, place, 1)
    prefix = torch.cat([prefix, flat[..., site]], -1)
    if twisted:
        assert of.remainder is not None
        now = of.remainder(of.event(flat)).double()
        now = torch.where(now.isfinite(), now, twist)
        logs, twist = logs + twist - now, now
    logs = torch.where(logs.isnan(), -math.inf, logs)  # no value is possible after this prefix
    return _State(prefix, flat, logs, state.local + drawn, twist, state.log_ratio)


def _resampled(state: _State, generator: torch.Generator) -> _State:
    """The particles, those of populations of few effective ones resampled."""
    (populations, particles), logs = state.logs.shape, state.logs
    degenerate = (weight_ess(logs) < particles / 2) & (logs > -math.inf).any(1)
    if not bool(degenerate.any()):
        return state
    uniform = torch.rand(
        populations, 2, generator=generator, dtype=torch.float64, device=logs.device
    )
    own = torch.arange(particles, device=logs.device).expand(populations, particles)
    order = torch.where(degenerate.unsqueeze(1), systematic(logs, uniform), own)
    increment = torch.where(degenerate, logs.logsumexp(1) - math.log(particles), 0)
    return _State(
        take(state.prefix, order),
        take(state.flat, order),
        torch.where(degenerate.unsqueeze(1), 0, logs),
        state.local.gather(1, order),
        state.twist.gather(1, order),
        state.log_ratio + increment,
    )


def should_twist(of: OrderedProduct, generator: torch.Generator) -> bool:
    """Whether the remainder should twist the proposals, by the relative spread of the estimates of
    Z of small populations either way."""
    if of.remainder is None:
        return False
    if of.sites.max_count > MAX_VALUES and not of.remainder.can(SiteLogits):
        return False
    spread = []
    for twisted in (False, True):
        run = propagate(of, TWIST_POPULATIONS, TWIST_PARTICLES, generator, twisted=twisted)
        logs = run.log_ratio
        z = (logs - logs.logsumexp(0)).exp()
        spread.append(float(z.std() / z.mean()) if bool(logs.isfinite().any()) else math.inf)
    return spread[1] < spread[0]


def _local(
    of: OrderedProduct, prefix: Tensor, flat: Tensor, site: Tensor
) -> Tensor:  # -> (*batch, values)
    """Log weights of the values of the next site: Σ_k w_k log p_k(v | x_<t), with those of the
    fields; in double precision."""
    total = flat.new_zeros(*prefix.shape[:-1], of.sites.max_count, dtype=torch.float64)
    for part, power in of.factors:
        total = total + _scaled(power, part.next_logits(prefix).double())
    x = of.event(flat)
    for part, power in of.fields:
        total = total + _scaled(power, _wide(part.site_logits(x, site).double(), x, of).squeeze(-2))
    return total.masked_fill(~of.sites.mask(flat.device)[site], -math.inf)


def _twist(of: OrderedProduct, flat: Tensor, site: Tensor) -> Tensor:  # -> (*batch, values)
    """Log weights of the values of a site under the remainder, with the later positions
    filled."""
    assert of.remainder is not None
    x = of.event(flat)
    logits = _wide(Conditionals(of.remainder).logits(x, site).double(), x, of).squeeze(-2)
    top = logits.amax(-1, keepdim=True)
    logits = torch.where(top.isfinite(), logits - top, 0)
    return torch.where(logits.isnan(), 0, logits.clamp(min=MIN_LOG_TWIST))


def _wide(logits: Tensor, x: Tensor, of: OrderedProduct) -> Tensor:
    """Log-odds of the upper of two values as log weights of both."""
    batch = x.ndim - len(of.energy.event_shape)
    return (
        logits if logits.ndim > batch + 1 else torch.stack([torch.zeros_like(logits), logits], -1)
    )


def _scaled(power: float, logs: Tensor) -> Tensor:
    """w log p; an excluded value stays excluded at every power."""
    return torch.where(logs == -math.inf, logs, power * logs)


def _fill(of: OrderedProduct, generator: torch.Generator, draws: int = 128) -> Tensor:  # -> (n)
    """The most frequent value of each site in draws of the first factor."""
    part, _ = of.factors[0]
    device, n = of.energy.device, len(of.order)
    flat = torch.zeros(draws, n, dtype=of.dtype, device=device)
    lowest = torch.zeros(draws, n, dtype=torch.long, device=device)
    flat = of.sites.put(flat, torch.arange(n, device=device), lowest, 1)
    with torch.no_grad():
        for t in range(n if of.remainder is not None else 0):
            site = of.order[t : t + 1]
            uniform = torch.rand(draws, 1, generator=generator, dtype=torch.float64, device=device)
            place = pick(part.next_logits(flat[:, of.order[:t]]).unsqueeze(-2), uniform)
            flat = of.sites.put(flat, site, place, 1)
    return flat.mode(0).values
