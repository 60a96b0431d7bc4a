"""What every kernel must keep, as one table: a new kernel is one line in `KERNELS`.

Invariance is tested by one step from 50,000 exact draws, at a family-wise level over the whole
table, and the same kernel on target^1.1 must fail. On finite spaces the transition matrices are
worked out. A step must be a pure function of its noise, chains must be independent of each other,
and a run that is cut and resumed must give the same bits.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_map

import poe
from poe.kernels import (
    Cycle,
    DiscreteLangevin,
    Flip,
    Gibbs,
    GibbsWithGradients,
    Hamiltonian,
    IndependentMetropolis,
    Kernel,
    Langevin,
    LineIntegral,
    Microcanonical,
    RandomWalk,
    Tempered,
)
from poe.kernels.state import Info
from poe.mcmc.checkpoint import Checkpoint
from poe.mcmc.compiled import BLOCK, compiled, sums
from poe.mcmc.run import run, streams
from poe.spaces.conditionals import Conditionals
from poe.testing import invariance_pvalue
from tests.poe.finite import (
    SPACES,
    Bits,
    imbalance,
    law,
    stationarity,
    t,
    transition_matrix,
    worst_row,
)
from tests.poe.targets import Gauss, Score, Skewed, but_not

N = 50_000
FAMILY = 1e-3  # probability that right kernels fail any test of invariance by chance
CPU = torch.device("cpu")
DENSE = torch.tensor([[1.1, 0.0], [0.5, 0.9]])
BETAS = torch.tensor([0.0, 0.4, 1.0])


class Target(NamedTuple):
    """An energy as a kernel is given it, exact draws of what moves, and their energies in nats, by
    a closed form."""

    energy: poe.Energy
    draws: Tensor  # (n, *event), or (n, rungs, *event)
    energies: Callable[[Tensor], Tensor]


def bridge() -> Target:
    """Between two normals each rung of a geometric path is a normal."""
    start, end = Gauss(0.0, 2.0), Gauss(1.5, 0.7)
    precision = (1 - BETAS) / 4 + BETAS / 0.49
    mean = BETAS * 1.5 / 0.49 / precision
    g = torch.Generator().manual_seed(1)
    draws = mean.unsqueeze(-1) + precision.rsqrt().unsqueeze(-1) * torch.randn(N, 3, 2, generator=g)
    return Target(end, draws, lambda x: ((1 - BETAS) * start(x) + BETAS * end(x)).sum(-1))


def enumerated(energy: poe.Energy) -> Target:
    """Draws of a finite space by enumeration."""
    states, p = law(energy.double())
    g = torch.Generator().manual_seed(0)
    return Target(energy, states[torch.multinomial(p, N, replacement=True, generator=g)], energy)


@cache
def target(name: str) -> Target:
    """A target by its name; all of them are asymmetric."""
    g = torch.Generator().manual_seed(3)
    a, b, c = Gauss(0.0, name="a"), Gauss(1.0, 2.0, name="b"), Gauss(1.0, 0.7, name="c")
    mixture, skewed = poe.mixture([a, c], weights=[0.3, 0.7]), Skewed().sample(N, generator=g)
    match name:
        case "skewed":
            return Target(Skewed(), skewed, Skewed())
        case "score":
            return Target(Score(Skewed()), skewed, Skewed())
        case "contrast":
            return Target(a - c, but_not(a, c, N, g), a - c)
        case "mixture":
            return Target(mixture, mixture.sample(N, generator=g), mixture)
        case "raw mixture":
            return Target(a | b, (a | b).sample(N, generator=g), a | b)  # type: ignore[operator]
        case "contrast of a mixture":
            x = (a | b).sample(3 * N, generator=g)  # type: ignore[operator]
            kept = torch.rand(3 * N, generator=g) < torch.sigmoid(c(x) - (a | b)(x))
            return Target((a | b) - c, x[kept][:N], (a | b) - c)
        case "bridge":
            return bridge()
        case "bits":
            return enumerated(Bits(4))
        case _:
            return enumerated(SPACES[name]())


REAL = ("skewed", "contrast")
FINITE = ("bits", "unequal ranges")


class Row(NamedTuple):
    """A kernel and the targets that it is tested on."""

    kernel: Kernel
    targets: tuple[str, ...] = REAL


def ladder(kernel: Kernel) -> Tempered:
    return Tempered(Gauss(0.0, 2.0), BETAS, kernel, moves=1)


KERNELS = {
    "langevin": Row(Langevin(0.2), (*REAL, "mixture", "raw mixture", "contrast of a mixture")),
    "langevin, diagonal": Row(Langevin(0.15, scale=torch.tensor([1.2, 0.8]))),
    "langevin, dense": Row(Langevin(0.15, scale=DENSE, dense=True)),
    "unadjusted langevin": Row(Langevin(0.1, metropolis=False)),
    "line integral": Row(LineIntegral(0.15), ("skewed", "score")),
    "line integral, dense": Row(LineIntegral(0.15, scale=DENSE, dense=True), ("score",)),
    "hamiltonian": Row(Hamiltonian(0.7, length=2.8)),
    "hamiltonian, diagonal": Row(Hamiltonian(0.7, length=2.8, scale=torch.tensor([1.2, 0.8]))),
    "hamiltonian, dense": Row(Hamiltonian(0.7, length=2.8, scale=DENSE, dense=True)),
    "microcanonical": Row(Microcanonical(0.8, length=3.2)),
    "microcanonical, dense": Row(Microcanonical(0.8, length=3.2, scale=DENSE, dense=True)),
    "unadjusted microcanonical": Row(Microcanonical(0.3, metropolis=False)),
    "random walk": Row(RandomWalk(0.6)),
    "random walk, dense": Row(RandomWalk(0.6, scale=DENSE, dense=True)),
    "independent, up to a constant": Row(IndependentMetropolis(poe.shift(Gauss(0.5, 1.2), 123.0))),
    "independent": Row(IndependentMetropolis(Gauss(0.3, 1.3))),
    "cycle": Row(Cycle([Langevin(0.1), IndependentMetropolis(Gauss(0.0, 1.5))])),
    "cycle without gradients": Row(
        Cycle([IndependentMetropolis(Gauss(0.0, 1.5)), RandomWalk(0.5)])
    ),
    "cycle of trajectories": Row(
        Cycle([Microcanonical(0.6, length=2.0), RandomWalk(0.4), Hamiltonian(0.4, length=1.0)])
    ),
    "tempered": Row(ladder(Langevin(torch.tensor([1.0, 0.7, 0.3]))), ("bridge",)),
    "tempered hamiltonian": Row(
        ladder(Hamiltonian(torch.tensor([2.5, 1.4, 0.9]), length=5.0)), ("bridge",)
    ),
    "tempered microcanonical": Row(
        ladder(Microcanonical(torch.tensor([2.5, 1.4, 1.0]), length=5.0)), ("bridge",)
    ),
    "tempered random walk": Row(ladder(RandomWalk(torch.tensor([1.0, 0.6, 0.4]))), ("bridge",)),
    "gibbs": Row(Gibbs(), FINITE),
    "gibbs, random scan": Row(Gibbs(scan="random"), FINITE),
    "discrete langevin": Row(DiscreteLangevin(0.3), FINITE),
    "discrete langevin, large steps": Row(DiscreteLangevin(50.0), FINITE),
    "gibbs with gradients": Row(GibbsWithGradients(), FINITE),
    "flip": Row(Flip(), FINITE),
    "three flips": Row(Flip(3), FINITE),
    "discrete cycle": Row(Cycle([Flip(2), DiscreteLangevin(0.5), Gibbs()]), FINITE),
}
PAIRS = [
    (name, on)
    for name, row in KERNELS.items()
    if row.kernel.exact or isinstance(row.kernel, LineIntegral)  # whose error is too small to see
    for on in row.targets
]
LEVEL = FAMILY / len(PAIRS)


def advance(kernel: Kernel, energy: poe.Energy, x: Tensor, seed: int = 7) -> tuple[Any, Info]:
    """One step from points."""
    state = kernel.init(energy, x)
    return kernel.step(energy, state, kernel.noise(state, torch.Generator().manual_seed(seed)))


def invariance(kernel: Kernel, energy: poe.Energy, exact: Target) -> float:
    """p-value that one step of the kernel for an energy leaves the law of exact draws as it is."""
    state, info = advance(kernel, energy, exact.draws)
    assert float(info.acceptance.mean()) > 0.1
    after = kernel.walkers(state).x
    with torch.no_grad():
        energies = exact.energies(exact.draws), exact.energies(after)
    return invariance_pvalue(exact.draws, after, energies)


def check_invariance(kernel: Kernel, exact: Target) -> None:
    """The law is kept, and the control is seen."""
    assert invariance(kernel, exact.energy, exact) > LEVEL
    assert invariance(kernel, exact.energy**1.1, exact) < LEVEL


def same(a: Any, b: Any) -> bool:
    """Whether two trees of tensors are bit-equal."""
    leaves = [torch.utils._pytree.tree_leaves(tree) for tree in (a, b)]
    return len(leaves[0]) == len(leaves[1]) and all(
        torch.equal(x, y) if isinstance(x, Tensor) else x == y for x, y in zip(*leaves, strict=True)
    )


def check_replay(kernel: Kernel, energy: poe.Energy, x: Tensor) -> None:
    """A step is a pure function of state and noise: it changes neither, nor the global random
    state, and gives the same again; noise is a function of the generator; the new state is true of
    where the chains are."""
    state = kernel.init(energy, x)
    noise = [kernel.noise(state, torch.Generator().manual_seed(0)) for _ in range(2)]
    assert same(*noise)
    before, stream = copy.deepcopy((state, noise[0])), torch.get_rng_state()
    first, second = (kernel.step(energy, state, noise[0]) for _ in range(2))
    assert same(first, second)
    assert same(before, (state, noise[0]))
    assert torch.equal(stream, torch.get_rng_state())
    assert kernel.agrees(energy, first[0])
    if kernel.plain and kernel.needs_gradient:
        gradient = energy.value_and_grad(first[0].x)[1]
        assert torch.allclose(first[0].gradient, gradient, atol=1e-4)
    other = kernel.step(energy, state, kernel.noise(state, torch.Generator().manual_seed(1)))
    assert not same(kernel.walkers(first[0]).x, kernel.walkers(other[0]).x)


def check_independence(kernel: Kernel, energy: poe.Energy, x: Tensor) -> None:
    """Each chain does what it does in a batch of others."""
    x, kept = x[:41], torch.arange(1, 41, 3)
    state = kernel.init(energy, x)
    noise = kernel.noise(state, torch.Generator().manual_seed(0))

    def some(part: Any) -> Any:
        batched = isinstance(part, Tensor) and part.ndim > 0 and len(part) == len(x)
        return part[kept] if batched else part

    whole, info = kernel.step(energy, state, noise)
    alone, own = kernel.step(energy, tree_map(some, state), tree_map(some, noise))
    for a, b in ((kernel.walkers(whole), kernel.walkers(alone)), (info, own)):
        for part, other in zip(a, b, strict=True):
            assert torch.allclose(some(part).double(), other.double(), atol=1e-5)


class Cut(Checkpoint):
    """A checkpoint that is written after each step, and interrupts the run after some."""

    def __init__(self, path: Path, steps: int) -> None:
        super().__init__(path, {"run": "cut"})
        self.left = steps

    def due(self) -> bool:
        self.left -= 1
        if self.left == -1:
            raise KeyboardInterrupt
        return True


def check_resume(kernel: Kernel, energy: poe.Energy, x: Tensor, path: Path) -> None:
    """A run that is interrupted in warm-up, and again in its draws, ends with the same bits."""

    def trace(checkpoint: Checkpoint | None) -> Any:
        return run(
            kernel,
            energy,
            x,
            draws=8,
            warmup=6,
            generators=streams(0, 2, CPU),
            checkpoint=checkpoint,
        )

    whole = trace(None)
    first = trace(Cut(path, 3))
    assert first.partial and first.x.shape[1] == 1  # in warm-up: where the chains are
    assert trace(Cut(path, 6)).partial
    resumed = trace(Checkpoint(path, {"run": "cut"}))
    assert torch.equal(whole.x, resumed.x) and torch.equal(whole.energy, resumed.energy)
    assert whole.counts[:-1] == resumed.counts[:-1]


@pytest.mark.parametrize(("name", "on"), PAIRS)
def test_one_step_leaves_the_law_of_exact_draws_and_target_to_the_1_1_is_seen(
    name: str, on: str
) -> None:
    check_invariance(KERNELS[name].kernel, target(on))


@pytest.mark.parametrize("name", KERNELS)
def test_a_step_is_a_pure_function_of_state_and_noise(name: str) -> None:
    exact = target(KERNELS[name].targets[-1])
    check_replay(KERNELS[name].kernel, exact.energy, exact.draws[:40])


@pytest.mark.parametrize("name", KERNELS)
def test_chains_do_not_see_each_other(name: str) -> None:
    exact = target(KERNELS[name].targets[-1])
    check_independence(KERNELS[name].kernel, exact.energy, exact.draws)


@pytest.mark.parametrize("name", KERNELS)
def test_a_run_that_is_cut_and_resumed_gives_the_same_bits(name: str, tmp_path: Path) -> None:
    exact = target(KERNELS[name].targets[-1])
    check_resume(KERNELS[name].kernel, exact.energy, exact.draws[:6], tmp_path / "run")


@pytest.mark.parametrize("name", [name for name, row in KERNELS.items() if row.kernel.compiles])
def test_noise_of_many_steps_is_noise_of_each(name: str) -> None:
    kernel, exact = KERNELS[name].kernel, target(KERNELS[name].targets[-1])
    state = kernel.init(exact.energy, exact.draws[:5])
    one = kernel.noise(state, torch.Generator().manual_seed(0))
    block = kernel.noise(state, torch.Generator().manual_seed(0), BLOCK)
    for part, parts in zip(one, block, strict=True):
        assert parts.shape == (BLOCK, *part.shape) and parts.dtype == part.dtype


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's compiler warns about itself
@pytest.mark.parametrize("name", [name for name, row in KERNELS.items() if row.kernel.compiles])
def test_a_compiled_block_equals_eager_steps(name: str) -> None:
    kernel, exact = KERNELS[name].kernel, target("contrast")
    state = kernel.init(exact.energy, exact.draws[:20])
    noise = kernel.noise(state, torch.Generator().manual_seed(1), BLOCK)
    last, positions, energies, total = compiled(kernel, exact.energy)(state, noise)
    expected = torch.zeros(4, dtype=torch.float64)
    for step in range(BLOCK):
        state, info = kernel.step(exact.energy, state, type(noise)(*(part[step] for part in noise)))
        assert torch.allclose(positions[step], state.x, atol=1e-5)
        assert torch.allclose(energies[step], state.energy, atol=1e-4)
        expected += sums(info, 1)
    assert torch.allclose(last.gradient, state.gradient, atol=1e-4)
    assert torch.allclose(total, expected, atol=1e-2) and total[3] == 20 * BLOCK


MATRICES = [
    name
    for name, row in KERNELS.items()
    if row.targets == FINITE and not isinstance(row.kernel, Cycle)
]


@pytest.mark.parametrize("on", SPACES)
@pytest.mark.parametrize("name", MATRICES)
def test_the_transition_matrix_is_stationary_and_reversible(name: str, on: str) -> None:
    energy, kernel = SPACES[on]().double(), KERNELS[name].kernel
    if isinstance(kernel, Gibbs) and Conditionals(energy).hidden:
        pytest.skip("redrawn through hidden units: see test_gibbs.py")
    states, p = law(energy)
    matrix = transition_matrix(kernel, energy, states)
    assert bool((matrix >= -1e-12).all())
    assert stationarity(p, matrix) < 1e-8
    wrong = (p**1.1) / (p**1.1).sum()
    assert stationarity(wrong, matrix) > 1e-5
    if kernel != Gibbs():  # a systematic scan is not reversible
        assert imbalance(p, matrix) < 1e-8 and imbalance(wrong, matrix) > 1e-5
    if kernel != Gibbs(scan="random"):  # whose order is one for all chains: see test_gibbs.py
        assert worst_row(kernel, energy, states, matrix, n=4000) < 7


# ------------------------------------------------------------ the table itself: broken kernels fail


@dataclass(frozen=True)
class Careless(Langevin):
    """Accepts by the energies alone, as if the proposal were symmetric."""

    def step(self, energy, state, noise):
        _, info = super().step(energy, state, noise)
        proposed, _ = Langevin(self.step_size, metropolis=False).step(energy, state, noise)
        accepted = noise.uniform < (state.energy - proposed.energy).exp()
        chosen = [
            torch.where(accepted.reshape(-1, *[1] * (new.ndim - 1)), new, old)
            for new, old in zip(proposed, state, strict=True)
        ]
        return type(state)(*chosen), info


@dataclass(frozen=True)
class OneForAll(RandomWalk):
    """One uniform number decides for the whole batch."""

    def step(self, energy, state, noise):
        shared = noise._replace(uniform=noise.uniform[:1].expand_as(noise.uniform))
        return super().step(energy, state, shared)


@dataclass(frozen=True)
class Impure(RandomWalk):
    """Draws numbers inside the step."""

    def step(self, energy, state, noise):
        return super().step(energy, state, noise._replace(normal=torch.randn_like(noise.normal)))


@dataclass(frozen=True)
class Silent(RandomWalk):
    """Returns the old state with the new positions: the energies are not those of where it is."""

    def step(self, energy, state, noise):
        moved, info = super().step(energy, state, noise)
        return moved._replace(energy=state.energy), info


def test_broken_kernels_fail_the_table(tmp_path: Path) -> None:
    exact = target("skewed")
    with pytest.raises(AssertionError):
        check_invariance(Careless(0.15), exact)
    with pytest.raises(AssertionError):
        check_independence(OneForAll(0.6), exact.energy, exact.draws)
    with pytest.raises(AssertionError):
        check_replay(Impure(0.6), exact.energy, exact.draws[:40])
    with pytest.raises(AssertionError):
        check_replay(Silent(0.6), exact.energy, exact.draws[:40])
    with pytest.raises(AssertionError):
        check_resume(Impure(0.6), exact.energy, exact.draws[:6], tmp_path / "impure")


def test_a_wrong_transition_matrix_is_seen() -> None:
    energy = SPACES["bits"]().double()
    states, p = law(energy & poe.create("bernoulli", logits=t(4)).double())
    matrix = transition_matrix(Flip(), energy, states)
    assert stationarity(p, matrix) > 1e-5 and imbalance(p, matrix) > 1e-5
    assert math.isclose(float(p.sum()), 1)
