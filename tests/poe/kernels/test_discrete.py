"""Discrete Metropolis kernels against their transition matrices on 8 to 27 states."""

from __future__ import annotations

import math

import pytest
import torch

import poe
from experts import RBM, Bernoulli, Categorical, Ising, Potts
from poe.kernels.discrete import (
    DiscreteLangevin,
    Flip,
    at,
    neighbourhood,
)
from poe.kernels.tempered import Tempered
from poe.mcmc.run import run, streams
from poe.spaces.sites import sites_of
from tests.poe.finite import (
    F64,
    SPACES,
    Bits,
    excluding,
    index_of,
    law,
    stationarity,
    t,
    transition_matrix,
    worst_row,
)


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
            assert torch.allclose(matrix, transition_matrix(kernel, energy, states), atol=1e-10)
        else:
            assert worst_row(kernel, energy, states, matrix.clamp(min=1e-9), n=4000) > 7


def test_proposals_never_leave_a_mask_in_either_direction() -> None:
    energy = SPACES["excluded categories"]().double()
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
            for k in range(sites.max_count):
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
