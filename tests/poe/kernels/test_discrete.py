"""Discrete Metropolis kernels against their transition matrices on 8 to 27 states."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import poe
from experts import RBM, Bernoulli, Categorical, Ising, Potts
from poe.kernels.discrete import (
    DiscreteLangevin,
    Flip,
    GibbsWithGradients,
    SiteNoise,
    at,
    neighbourhood,
)
from poe.kernels.tempered import Tempered
from poe.mcmc.run import run, streams
from poe.spaces.sites import sites_of
from tests.poe.finite import F64, Bits, Table, imbalance, index_of, law, stationarity, worst_row


def t(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def excluding() -> poe.Energy:
    """27 states, seven of them excluded, among them all but one neighbour of some."""
    table = t(3, 3, 3, seed=1)
    for place in [(0, 0, 0), (0, 1, 2), (1, 1, 1), (2, 0, 1), (2, 2, 2), (1, 0, 2), (0, 2, 2)]:
        table[place] = math.inf
    return Table(table)


CHAIN = [(0, 1), (1, 2)]
TARGETS: dict[str, Callable[[], poe.Energy]] = {
    "bits": lambda: Bits(4),
    "spins": lambda: Bits(3, spins=True),
    "ising": lambda: Ising((2, 2), 0.4, t(2, 2)),
    "rbm": lambda: RBM(2 * t(4, 3), t(4), t(3)),
    "a product": lambda: (
        Ising((3,), 0.5, t(3), bits=True) ** 0.7 & RBM(t(3, 2)) & Bernoulli(logits=t(3))
    ),
    "potts": lambda: Potts((3,), 3, t(3), t(3, 3)),
    "unequal ranges": lambda: Table(t(2, 3, 4)),
    "excluded categories": lambda: (
        Categorical(
            logits=torch.tensor(
                [[0.3, -math.inf, 1.0], [-1.0, 0.2, 0.1], [0.5, 0.1, -math.inf]], dtype=F64
            )
        )
        & Potts((3,), 3, 0.8, t(3, 3), edges=CHAIN)
    ),
    "excluded states": excluding,
    "a mixture": lambda: Potts((3,), 3, 0.8) | Categorical(logits=t(3, 3)),
}
KERNELS: dict[str, Any] = {
    "small steps": DiscreteLangevin(0.3),
    "large steps": DiscreteLangevin(50.0),
    "one site": GibbsWithGradients(),
    "one flip": Flip(),
    "three flips": Flip(3),
}


def proposals(kernel: Any, energy: poe.Energy, states: Tensor) -> tuple[Tensor, Tensor]:
    """(q, noise) of every pair of states: the kernel's own probability of proposing the second from
    the first, and uniform numbers for which it does so, (states, states, ...)."""
    n, sites = len(states), sites_of(energy)
    state = kernel.init(energy, states)
    place = sites.places(states, len(energy.event_shape))  # (n, sites)
    count = place.shape[1]
    if isinstance(kernel, DiscreteLangevin):
        log_q = kernel.log_proposal(neighbourhood(energy, state, sites), sites)
        below = log_q.exp().cumsum(-1) - log_q.exp()
        wide = place.expand(n, n, count)
        chosen = at(log_q.unsqueeze(1).expand(n, n, -1, -1), wide).exp()
        return chosen.prod(-1), at(below.unsqueeze(1).expand(n, n, -1, -1), wide) + 0.5 * chosen
    if isinstance(kernel, GibbsWithGradients):
        log_q = kernel.log_proposal(neighbourhood(energy, state, sites))
        q, noise = torch.zeros(n, n, dtype=F64), torch.zeros(n, n, 1, dtype=F64)
        for i in range(n):
            for j in range(n):
                changed = (place[i] != place[j]).nonzero().flatten()
                if len(changed) == 1:
                    k = int(changed * sites.most + place[j, changed])
                    q[i, j] = log_q[i, k].exp()
                    noise[i, j] = log_q[i, :k].exp().sum() + 0.5 * q[i, j]
        return q, noise
    counts = sites.counts
    q, noise = torch.zeros(n, n, dtype=F64), torch.zeros(n, n, kernel.count, 2, dtype=F64)
    paths = torch.cartesian_prod(*[torch.arange(count)] * kernel.count).reshape(-1, kernel.count)
    every = {tuple(p): i for i, p in enumerate(place.tolist())}
    for i in range(n):
        for path in paths.tolist():
            jumps = torch.cartesian_prod(*[torch.arange(int(counts[s]) - 1) for s in path]).reshape(
                -1, kernel.count
            )
            for jump in jumps.tolist():
                end = place[i].clone()
                for s, v in zip(path, jump, strict=True):
                    end[s] = (end[s] + v + 1) % counts[s]
                j = every.get(tuple(end.tolist()))
                if j is not None:  # else it leaves the states with mass
                    q[i, j] += math.prod(1 / count / (int(counts[s]) - 1) for s in path)
                    steps = [
                        [(s + 0.5) / count, (v + 0.5) / (int(counts[s]) - 1)]
                        for s, v in zip(path, jump, strict=True)
                    ]
                    noise[i, j] = torch.tensor(steps, dtype=F64)
    return q, noise


def matrix_of(kernel: Any, energy: poe.Energy, states: Tensor) -> Tensor:
    """The transition matrix: each pair is proposed by noise that leads there, and the step itself
    says how likely it is taken."""
    n = len(states)
    q, noise = proposals(kernel, energy, states)
    start = kernel.init(energy, states.repeat_interleave(n, 0))
    moved, info = kernel.step(
        energy, start, SiteNoise(noise.flatten(0, 1), torch.zeros(n * n, dtype=F64))
    )
    there = index_of(moved.x, states).reshape(n, n)
    taken = (q > 0) & info.accepted.reshape(n, n)
    assert bool((there == torch.arange(n))[taken].all())  # it went where it was sent
    matrix = q * info.acceptance.reshape(n, n)
    matrix.fill_diagonal_(0)
    return matrix + (1 - matrix.sum(1)).diag()


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.parametrize("kernel", KERNELS)
def test_the_matrix_is_stationary_and_in_detailed_balance(kernel: str, name: str) -> None:
    energy = TARGETS[name]().double()
    states, p = law(energy)
    matrix = matrix_of(KERNELS[kernel], energy, states)
    assert bool((matrix >= -1e-12).all())
    assert stationarity(p, matrix) < 1e-8
    assert imbalance(p, matrix) < 1e-8
    assert worst_row(KERNELS[kernel], energy, states, matrix, n=4000) < 7
    wrong = (p**1.1) / (p**1.1).sum()
    assert stationarity(wrong, matrix) > 1e-5 and imbalance(wrong, matrix) > 1e-5


def test_a_reverse_proposal_from_the_wrong_point_is_seen() -> None:
    # the control: the same matrix with the reverse probability taken at x instead of x', where
    # another mask holds
    energy = excluding().double()
    states, p = law(energy)
    kernel, n = DiscreteLangevin(2.0), len(states)
    sites = sites_of(energy)
    log_q = kernel.log_proposal(neighbourhood(energy, kernel.init(energy, states), sites), sites)
    place = sites.places(states, 1)
    forward = at(log_q.unsqueeze(1).expand(n, n, -1, -1), place.expand(n, n, -1)).sum(-1)
    careless = forward.diagonal().unsqueeze(-1).expand(n, n)
    for reverse, right in ((forward.T, True), (careless, False)):
        ratio = p.log() - p.log().unsqueeze(-1) + reverse - forward
        matrix = forward.exp() * torch.where(forward > -math.inf, ratio.clamp(max=0).exp(), 0)
        matrix.fill_diagonal_(0)
        matrix = matrix + (1 - matrix.sum(1)).diag()
        assert (stationarity(p, matrix) < 1e-8) == right
        if right:
            assert torch.allclose(matrix, matrix_of(kernel, energy, states), atol=1e-10)
        else:
            assert worst_row(kernel, energy, states, matrix.clamp(min=1e-9), n=4000) > 7


def test_proposals_never_leave_a_mask_in_either_direction() -> None:
    energy = TARGETS["excluded categories"]().double()
    states, _ = law(energy)
    sites, kernel = sites_of(energy), DiscreteLangevin(1e6)
    q = kernel.log_proposal(neighbourhood(energy, kernel.init(energy, states), sites), sites).exp()
    assert (
        bool((q[:, 0, 1] == 0).all())
        and bool((q[:, 2, 2] == 0).all())
        and bool((q[:, 1] > 0).all())
    )
    state = kernel.init(energy, states.repeat(1000, 1))
    moved, info = kernel.step(energy, state, kernel.noise(state, torch.Generator().manual_seed(0)))
    assert bool(energy(moved.x).isfinite().all()) and int(info.nonfinite.sum()) == 0


def test_first_order_changes_are_exact_where_the_energy_is_linear_in_each_site() -> None:
    ising, potts = Ising((2, 3), t(12), t(2, 3)), Potts((2, 3), 3, t(12), t(2, 3, 3))
    for energy in (ising, potts, potts**0.5 & Categorical(logits=t(2, 3, 3))):
        x = poe.spaces.points(energy)[:300:7]
        sites = sites_of(energy)
        local = neighbourhood(energy, DiscreteLangevin(1.0).init(energy, x), sites)
        values = sites.values(x)[0]
        for site in range(6):
            for k in range(sites.most):
                other = x.flatten(1).clone()
                other[:, site] = values[site, k]
                change = energy(other.reshape(x.shape)) - energy(x)
                assert torch.allclose(local.rise[:, site, k], change, atol=1e-10)


def test_the_step_size_is_found_at_the_acceptance_wanted_and_draws_agree_with_enumeration() -> None:
    energy = RBM(1.5 * t(8, 4), t(8), t(4))
    states, p = law(energy)
    start = states[torch.arange(256) % len(states)]
    trace = run(
        DiscreteLangevin(),
        energy,
        start,
        draws=100,
        warmup=200,
        generators=streams(0, 2, torch.device("cpu")),
    )
    assert abs(trace.counts.acceptance - 0.574) < 0.08
    means = trace.x.mean(1)  # (chains, 8): chains are independent
    z = (means.mean(0) - p @ states) / (means.std(0) / 16)
    assert float(z.abs().max()) < 4.5


def test_a_ladder_of_discrete_kernels_keeps_its_law_and_a_wrong_one_is_seen() -> None:
    start, end = Bernoulli(logits=t(4, seed=3)), Bits(4).double()
    betas = torch.tensor([0.0, 0.4, 1.0], dtype=F64)
    states, p = law(end)
    levels = (
        (1 - betas).unsqueeze(-1) * -start(states) + betas.unsqueeze(-1) * -end(states)
    ).softmax(-1)
    n, g = 40_000, torch.Generator().manual_seed(0)
    x = torch.stack(
        [states[torch.multinomial(level, n, replacement=True, generator=g)] for level in levels], 1
    )
    for kernel in (
        DiscreteLangevin(torch.tensor([1.0, 0.7, 0.4], dtype=F64)),
        Flip(2),
        poe.Gibbs(),
    ):
        for target, holds in ((end, True), (end & Bernoulli(logits=t(4, seed=9)), False)):
            ladder = Tempered(start, betas, kernel, moves=1)
            state = ladder.init(target, x)
            state, _ = ladder.step(
                target, state, ladder.noise(state, torch.Generator().manual_seed(1))
            )
            seen = (
                torch.bincount(
                    index_of(state.rungs.x[:, 2], states), minlength=len(states)
                ).double()
                / n
            )
            worst = float(((seen - p).abs() / (p * (1 - p) / n).sqrt()).max())
            assert (worst < 5.5) == holds, (kernel, worst)


def test_kernels_take_turns() -> None:
    energy = Bits(4).double()
    states, p = law(energy)
    kernel = poe.Cycle([Flip(2), DiscreteLangevin(0.5), poe.Gibbs(), GibbsWithGradients()])
    n = 60_000
    x = states[
        torch.multinomial(p, n, replacement=True, generator=torch.Generator().manual_seed(0))
    ]
    state = kernel.init(energy, x)
    state, _ = kernel.step(energy, state, kernel.noise(state, torch.Generator().manual_seed(1)))
    seen = torch.bincount(index_of(state.x, states), minlength=len(states)).double() / n
    assert float(((seen - p).abs() / (p * (1 - p) / n).sqrt()).max()) < 5
    assert torch.allclose(state.energy, energy(state.x))


def test_what_makes_no_sense_is_refused() -> None:
    with pytest.raises(ValueError, match="step size of DiscreteLangevin"):
        DiscreteLangevin(-1.0)
    with pytest.raises(ValueError, match="at least one site"):
        Flip(0)
    kernel, energy = DiscreteLangevin(), Bits(3)
    state = kernel.init(energy, torch.zeros(2, 3))
    with pytest.raises(ValueError, match="tuned by poe.sample"):
        kernel.step(energy, state, kernel.noise(state))
    with pytest.raises(ValueError, match="finite number of whole values"):
        Flip().init(poe.create("normal", loc=0.0, scale=1.0), torch.zeros(2))
