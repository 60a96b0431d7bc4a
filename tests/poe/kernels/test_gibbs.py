"""Block Gibbs against its transition matrices, enumeration, and the conditionals of
compositions."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import poe
from experts import DBM, RBM, Bernoulli, Categorical, GaussianRBM, Ising, Potts
from poe.kernels.tempered import Tempered
from poe.mcmc.run import run, streams
from poe.spaces.conditionals import Conditionals
from poe.testing import one_step_invariance
from tests.poe.finite import (
    F64,
    Bits,
    Table,
    block_matrices,
    imbalance,
    index_of,
    law,
    product_of,
    stationarity,
    t,
    worst_row,
)

CPU = torch.device("cpu")


def holed() -> poe.Energy:
    table = t(3, 3, 3, seed=1)
    for place in [(0, 0, 0), (0, 1, 2), (1, 1, 1), (2, 0, 1), (2, 2, 2), (0, 2, 2)]:
        table[place] = math.inf
    return Table(table)


MASKED = torch.tensor([[0.3, -math.inf, 1.0], [-1.0, 0.2, 0.1], [0.5, 0.1, -math.inf]], dtype=F64)
CHAIN = [(0, 1), (1, 2)]
# each with the number of its blocks
TARGETS: dict[str, tuple[Callable[[], poe.Energy], int]] = {
    "checkerboard": (lambda: Ising((2, 2), t(8), t(2, 2)), 2),
    "bits on a triangle": (lambda: Ising((3,), t(3), t(3), bits=True), 3),
    "potts": (lambda: Potts((3,), 3, t(2), t(3, 3), edges=CHAIN), 2),
    "masked categories": (
        lambda: Potts((3,), 3, 0.8, t(3, 3), edges=CHAIN) & Categorical(logits=MASKED),
        2,
    ),
    "powers": (lambda: Ising((4,), t(4), t(4), bits=True) ** -0.6 & Bernoulli(logits=t(4)) ** 2, 2),
    "two graphs": (lambda: Ising((4,), t(4)) & Ising((4,), t(2), edges=[(0, 2), (1, 3)]), 4),
    "deep": (lambda: DBM([t(2, 1), t(1, 1)], [t(2), t(1), t(1)]), 2),
    "on a part": (
        lambda: (
            DBM([t(2, 2)], [t(2), t(2)])
            & poe.on(Ising((2,), t(1), t(2), periodic=False, bits=True), [0, 1], (4,))
        ),
        3,
    ),
    "filled": (
        lambda: (
            Ising((2, 3), 0.7, t(2, 3), periodic=False)
            @ poe.fill(torch.ones(2, 3), torch.tensor([[0, 1, 0], [0, 1, 0]]).bool())
        ),
        2,
    ),
    "one number or two": (lambda: Potts((3,), 2, t(3), t(3, 2)) & Bernoulli(logits=t(3)) ** 0.5, 3),
    "anything": (lambda: Bits(4), 4),
    "unequal ranges": (lambda: Table(t(2, 3, 4)), 3),
    "excluded states": (holed, 3),
    "with a function": (
        lambda: Ising((3,), t(3), t(3)) & poe.as_energy(lambda x: x.prod(-1), event_shape=(3,)),
        3,
    ),
    "a mixture": (lambda: Potts((3,), 3, 0.8) | Categorical(logits=t(3, 3)), 3),
    "a contrast": (lambda: Ising((3,), t(3), bits=True) - Bernoulli(logits=t(3)), 3),
}


@pytest.mark.parametrize("name", TARGETS)
def test_the_matrix_is_stationary_and_its_blocks_are_exact_conditionals(name: str) -> None:
    make, count = TARGETS[name]
    energy = make().double()
    states, p = law(energy)
    blocks = block_matrices(energy, states)
    assert len(blocks) == count
    for matrix in blocks:
        assert stationarity(p, matrix) < 1e-8
        assert imbalance(p, matrix) < 1e-8
        assert torch.allclose(
            matrix @ matrix, matrix, atol=1e-12
        )  # redrawing twice is redrawing once
    systematic = product_of(blocks)
    assert stationarity(p, systematic) < 1e-8
    assert worst_row(poe.Gibbs(), energy, states, systematic, n=4000) < 7
    assert worst_row(poe.Gibbs(sweeps=2), energy, states, systematic @ systematic, n=4000) < 7
    wrong = (p**1.1) / (p**1.1).sum()
    assert stationarity(wrong, systematic) > 1e-5
    if name not in ("deep", "a contrast"):
        assert worst_row(poe.Gibbs(), energy**1.5, states, systematic, n=6000) > 7


LEAVES: list[poe.Energy] = [
    Ising((2, 2), t(8), t(2, 2), bits=True),
    Ising((2, 2), t(2), edges=[(0, 3), (1, 3)], bits=True),
    Bernoulli(logits=t(2, 2)),
    Bernoulli(logits=t(2, 2, seed=1)),
    poe.on(Ising((2,), t(1), periodic=False, bits=True), [3, 0], (2, 2))
    & Bernoulli(logits=t(2, 2, seed=2)),
    RBM(t(4, 2), event_shape=(2, 2)) ** 0.5,
]
EXPRESSIONS = st.recursive(
    st.sampled_from(LEAVES),
    lambda inner: st.one_of(
        st.tuples(inner, inner).map(lambda pair: pair[0] & pair[1]),
        st.tuples(inner, inner).map(lambda pair: pair[0] / pair[1]),
        st.tuples(inner, inner).map(lambda pair: pair[0] | pair[1]),
        st.tuples(inner, inner).map(lambda pair: pair[0] - pair[1]),
        st.tuples(inner, st.sampled_from([0.3, 2.0, -0.7])).map(lambda pair: pair[0] ** pair[1]),
    ),
    max_leaves=5,
)


@given(EXPRESSIONS)
def test_blocks_of_any_composition_are_exact_conditionals(energy: poe.Energy) -> None:
    states, p = law(energy)
    for matrix in block_matrices(energy, states):
        assert stationarity(p, matrix) < 1e-8 and imbalance(p, matrix) < 1e-8


@pytest.mark.parametrize("name", ["checkerboard", "potts", "two graphs"])
def test_a_random_scan_is_reversible(name: str) -> None:
    energy = TARGETS[name][0]().double()
    states, p = law(energy)
    orders = list(itertools.permutations(block_matrices(energy, states)))
    matrix = torch.stack([product_of(order) for order in orders]).mean(0)
    assert stationarity(p, matrix) < 1e-8 and imbalance(p, matrix) < 1e-8
    assert imbalance(p, product_of(orders[0])) > 1e-4  # the control: one order is not
    kernel, total, rounds = poe.Gibbs(scan="random"), torch.zeros_like(matrix), 200
    for seed in range(rounds):  # the order is the same for all chains of a step
        x = states.repeat_interleave(50, 0)
        state = kernel.init(energy, x)
        state, _ = kernel.step(
            energy, state, kernel.noise(state, torch.Generator().manual_seed(seed))
        )
        moves = torch.arange(len(states)).repeat_interleave(50) * len(states) + index_of(
            state.x, states
        )
        total += torch.bincount(moves, minlength=total.numel()).reshape(total.shape).double()
    spread = torch.stack([product_of(order) for order in orders]).var(0, unbiased=False) / rounds
    error = (spread + matrix * (1 - matrix) / (50 * rounds) + 1 / (50 * rounds) ** 2).sqrt()
    assert float(((total / (50 * rounds) - matrix).abs() / error).max()) < 7


def through_hidden(weights: Tensor, visible: Tensor, hidden: Tensor, states: Tensor) -> Tensor:
    """Σ_h p(h | v) p(v' | h) from the joint energy of an RBM alone."""
    h = torch.cartesian_prod(*[torch.tensor([0.0, 1.0], dtype=F64)] * len(hidden)).reshape(
        -1, len(hidden)
    )
    joint = states @ visible.unsqueeze(-1) + h @ hidden + states @ weights @ h.T
    return joint.softmax(1) @ joint.softmax(0).T


def test_an_rbm_is_redrawn_through_its_hidden_units() -> None:
    parameters = (1.5 * t(4, 3), t(4), t(3, seed=1))
    energy = RBM(*parameters)
    states, p = law(energy)
    matrix = through_hidden(*parameters, states)
    assert stationarity(p, matrix) < 1e-8 and imbalance(p, matrix) < 1e-8
    assert worst_row(poe.Gibbs(), energy, states, matrix) < 7
    assert (
        worst_row(poe.Gibbs(scan="random", sweeps=3), energy, states, product_of([matrix] * 3)) < 7
    )
    assert worst_row(poe.Gibbs(), RBM(1.3 * parameters[0], *parameters[1:]), states, matrix) > 7
    redrawn = energy.sample_block(
        states.repeat(20_000, 1), 0, torch.rand(16 * 20_000, 7, dtype=F64)
    )
    seen = torch.bincount(index_of(redrawn, states), minlength=16).double() / (16 * 20_000)
    expected = matrix.mean(0)
    assert (
        float(((seen - expected).abs() / (expected * (1 - expected) / (16 * 20_000)).sqrt()).max())
        < 5
    )


def test_products_of_rbms_and_other_experts_are_redrawn_exactly() -> None:
    energy = (
        RBM(t(4, 2), t(4))
        & RBM(t(4, 3, seed=1), t(4))
        & Ising((4,), t(4), t(4), bits=True) ** 0.5
        & Bernoulli(logits=t(4))
    )
    for target in (
        energy,
        energy
        @ poe.fill(torch.tensor([0.0, 1.0, 0.0, 0.0]), torch.tensor([False, True, False, False])),
    ):
        states, p = law(target)
        n = 100_000
        x = states[
            torch.multinomial(p, n, replacement=True, generator=torch.Generator().manual_seed(0))
        ]
        for moved, holds in (
            (target, True),
            (target & Bernoulli(logits=t(len(states[0]), seed=4)), False),
        ):
            state = poe.Gibbs().init(moved, x)
            assert state.gradient.shape == (0, 5)
            state, _ = poe.Gibbs().step(
                moved, state, poe.Gibbs().noise(state, torch.Generator().manual_seed(1))
            )
            seen = torch.bincount(index_of(state.x, states), minlength=len(states)).double() / n
            assert (float(((seen - p).abs() / (p * (1 - p) / n).sqrt()).max()) < 5) == holds


def test_a_power_of_an_rbm_is_no_sum_over_hidden_units_and_is_evaluated_instead() -> None:
    energy = RBM(2 * t(3, 2), t(3), t(2)) ** 2.5
    states, p = law(energy)
    assert Conditionals(energy).hidden == 0
    matrix = product_of(block_matrices(energy, states))
    assert stationarity(p, matrix) < 1e-8
    assert worst_row(poe.Gibbs(), energy, states, matrix) < 7


def test_gaussian_visible_units_keep_their_law_and_a_wrong_one_is_seen(
    generator: torch.Generator,
) -> None:
    weights, scale, hidden = t(2, 3), torch.tensor([0.7, 1.5], dtype=F64), t(3)
    energy = GaussianRBM(weights, t(2), scale, hidden)
    h = torch.cartesian_prod(*[torch.tensor([0.0, 1.0], dtype=F64)] * 3)
    mean = t(2) + scale**2 * (h @ weights.T)  # a mixture of eight normals
    logs = h @ hidden + (0.5 * (mean**2 - t(2) ** 2) / scale**2).sum(-1)
    kinds = torch.multinomial(logs.softmax(0), 50_000, replacement=True, generator=generator)
    x = mean[kinds] + scale * torch.randn(50_000, 2, generator=generator, dtype=F64)
    assert one_step_invariance(poe.Gibbs(), energy, x) > 1e-4
    assert (
        one_step_invariance(poe.Gibbs(), GaussianRBM(1.1 * weights, t(2), scale, hidden), x) < 1e-4
    )


def test_a_stranger_needs_no_more_than_the_protocol() -> None:
    class Coin(poe.Energy):
        blocks = (torch.tensor([0]), torch.tensor([1]))

        def __init__(self) -> None:
            super().__init__((2,), support=torch.distributions.constraints.boolean)

        def forward(self, x: Tensor) -> Tensor:
            return -(x[..., 0] * x[..., 1]) * 1.5 - x[..., 0]

        def sample_block(self, x: Tensor, block: int, uniforms: Tensor) -> Tensor:
            odds = 1.5 * x[..., 1 - block] + (1 - block)
            x = x.clone()
            x[..., block] = (uniforms[..., 0] < odds.sigmoid()).to(x)
            return x

    energy = Coin().double()
    states, p = law(energy)
    trace = run(
        poe.Gibbs(), energy, states.double().repeat(500, 1), draws=30, generators=streams(0, 1, CPU)
    )
    seen = torch.bincount(index_of(trace.x[:, -1], states.double()), minlength=4).double() / 2000
    assert float(((seen - p).abs() / (p * (1 - p) / 2000).sqrt()).max()) < 4.5


def test_a_run_draws_what_enumeration_says_whatever_the_shards() -> None:
    energy = RBM(t(6, 4), t(6), t(4))
    states, p = law(energy)
    start = states[:64].clone()
    trace = run(poe.Gibbs(), energy, start, draws=200, generators=streams(0, 2, CPU))
    again = run(poe.Gibbs(), energy, start, draws=200, generators=streams(0, 2, CPU))
    assert torch.equal(trace.x, again.x)
    assert (
        trace.counts.gradients == 0 and trace.counts.acceptance == 1 and trace.counts.nonfinite == 0
    )
    means = trace.x[:, 20:].mean(1)
    z = (means.mean(0) - p @ states) / (means.std(0) / 8)
    assert float(z.abs().max()) < 4.5


def test_the_joint_of_an_rbm_can_be_tempered() -> None:
    joint = RBM(3 * t(3, 2), t(3), t(2)).joint
    states, p = law(joint)
    start, betas = Bernoulli(logits=t(5, seed=2)), torch.tensor([0.0, 0.5, 1.0], dtype=F64)
    energies = (1 - betas).unsqueeze(-1) * start(states) + betas.unsqueeze(-1) * joint(states)
    n, g = 40_000, torch.Generator().manual_seed(0)
    x = torch.stack(
        [
            states[torch.multinomial(row, n, replacement=True, generator=g)]
            for row in (-energies).softmax(-1)
        ],
        1,
    )
    ladder = Tempered(start, betas, poe.Gibbs(), moves=1)
    assert Conditionals(ladder.level(joint, x)).blocks(CPU)[0].tolist() == [
        0,
        1,
        2,
    ]  # layers, not single sites
    state = ladder.init(joint, x)
    state, _ = ladder.step(joint, state, ladder.noise(state, torch.Generator().manual_seed(1)))
    seen = torch.bincount(index_of(state.rungs.x[:, 2], states), minlength=len(states)).double() / n
    assert float(((seen - p).abs() / (p * (1 - p) / n).sqrt()).max()) < 5


def test_turns_with_hidden_units_are_told_how_many() -> None:
    energy = RBM(t(4, 2), t(4))
    states, p = law(energy)
    x = states[
        torch.multinomial(p, 40_000, replacement=True, generator=torch.Generator().manual_seed(0))
    ]
    kernel = poe.Cycle([poe.Gibbs(hidden=2), poe.Flip()])
    state = kernel.init(energy, x)
    state, _ = kernel.step(energy, state, kernel.noise(state, torch.Generator().manual_seed(1)))
    seen = torch.bincount(index_of(state.x, states), minlength=16).double() / len(x)
    assert float(((seen - p).abs() / (p * (1 - p) / len(x)).sqrt()).max()) < 5
    careless = poe.Cycle([poe.Gibbs(), poe.Flip()])
    with pytest.raises(ValueError, match="Gibbs\\(hidden=2\\)"):
        careless.step(energy, careless.init(energy, x), careless.noise(careless.init(energy, x)))


def test_a_conditional_that_is_nan_moves_nothing_and_is_counted() -> None:
    class Broken(poe.Energy):
        def __init__(self) -> None:
            super().__init__((3,), support=torch.distributions.constraints.boolean)

        def forward(self, x: Tensor) -> Tensor:
            return torch.where(x[..., 0] > 0, math.nan, x.sum(-1))

    kernel, x = poe.Gibbs(), torch.zeros(100, 3)
    state = kernel.init(Broken(), x)
    state, info = kernel.step(
        Broken(), state, kernel.noise(state, torch.Generator().manual_seed(0))
    )
    assert (
        bool(info.nonfinite.all())
        and bool((state.x[:, 0] == 0).all())
        and bool((state.x[:, 1:] == 1).any())
    )


@pytest.mark.slow
@pytest.mark.parametrize(("beta", "energy"), [(0.4, -1.1060792037), (0.5, -1.7455645753)])
def test_onsagers_energy_on_a_large_torus(beta: float, energy: float) -> None:
    # Onsager's energy per spin of the infinite lattice; chains begin ordered, and 64 x 64 is near
    # to it at both temperatures
    model = Ising((64, 64), beta)
    trace = run(
        poe.Gibbs(),
        model,
        torch.ones(16, 64, 64),
        draws=400,
        thin=10,
        generators=streams(0, 1, CPU),
    )
    means = trace.energy[:, 100:].double().mean(1) / (beta * 64 * 64)
    assert abs(float(means.mean()) - energy) < 3 * float(means.std()) / 4


def test_what_makes_no_sense_is_refused() -> None:
    with pytest.raises(ValueError, match="systematic"):
        poe.Gibbs(scan="diagonal")
    with pytest.raises(ValueError, match="at least one sweep"):
        poe.Gibbs(sweeps=0)
    with pytest.raises(ValueError, match="finite number of whole values"):
        poe.Gibbs().init(poe.create("normal", loc=0.0, scale=1.0), torch.zeros(2))
