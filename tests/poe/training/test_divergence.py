"""Contrastive divergence against likelihoods and transition matrices by enumeration, and its
state."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import pytest
import torch
from torch import Tensor

import poe
from experts import RBM, Bernoulli, GaussianRBM, Ising, MLPEnergy, Normal
from poe.kernels.base import Kernel
from poe.kernels.state import Info, State
from poe.spaces import points
from poe.training.divergence import mover
from poe.training.losses import ContrastiveDivergence, PersistentContrastiveDivergence
from tests.poe.finite import Bits

F64 = torch.float64
LEVEL = 1e-4  # family-wise, of each z-test


def t(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def machine(seed: int = 0) -> RBM:
    """4 visible and 3 hidden units."""
    return RBM(1.5 * t(4, 3, seed=seed), t(4, seed=seed + 1), t(3, seed=seed + 2), learnable=True)


def law(energy: poe.Energy) -> tuple[Tensor, Tensor]:
    """The states, and their probabilities by enumeration."""
    with torch.no_grad():
        x = points(energy)
        return x, (-energy(x)).softmax(0)


def data(n: int = 2_000) -> Tensor:  # (n, 4)
    """Bits of which the first two agree, mostly, and the last two do not."""
    u = torch.rand(n, 4, generator=torch.Generator().manual_seed(9))
    a, c = (u[:, 0] < 0.4).double(), (u[:, 1] < 0.7).double()
    return torch.stack(
        [a, torch.where(u[:, 2] < 0.9, a, 1 - a), c, torch.where(u[:, 3] < 0.2, c, 1 - c)], 1
    )


def slopes(energy: poe.Energy, x: Tensor) -> Tensor:  # (n, *event) -> (n, parameters)
    """∂E/∂θ at each point."""
    rows = [torch.autograd.grad(energy(point), list(energy.parameters())) for point in x]
    return torch.stack([torch.cat([g.flatten() for g in row]) for row in rows])


def gradient(energy: poe.Energy, loss: Tensor) -> Tensor:
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(energy.parameters()))])


def worst(z: Tensor) -> float:
    """The largest |z| over the bound of a two-sided test of them all, at `LEVEL`: at most 1 where
    all means are as they should be."""
    return float(z.abs().max()) / NormalDist().inv_cdf(1 - LEVEL / (2 * z.numel()))


def by_enumeration(energy: poe.Energy, x: Tensor, after: Tensor, n: int, got: Tensor) -> float:
    """`worst` of a gradient E_x ∇E - mean over n independent points of law `after` (states),
    against its exact mean."""
    states, _ = law(energy)
    table = slopes(energy, states)
    mean, square = after @ table, after @ table.square()
    index = (x.unsqueeze(1) == states).all(-1).double().mean(0)
    return worst((got - (index @ table - mean)) / ((square - mean.square()) / n).sqrt())


# ---------------------------------------------------------------- the gradient


def test_with_many_steps_it_is_the_gradient_of_the_likelihood() -> None:
    energy, x = machine(), data().repeat(10, 1)
    _, p = law(energy)
    exact, one = (
        gradient(
            energy, ContrastiveDivergence(k, generator=torch.Generator().manual_seed(3))(energy, x)
        )
        for k in (40, 1)
    )
    assert by_enumeration(energy, x, p, len(x), exact) < 1
    assert by_enumeration(energy, x, p, len(x), one) > 3  # one step from the data is not the model


def test_one_step_is_one_row_of_the_transition_matrix() -> None:
    """Of an RBM, v -> h -> v': P(v' | v) = Σ_h p(h | v) p(v' | h)."""
    energy, x = machine(), data()
    states, hidden = law(energy)[0], points(RBM(t(3, 1)))
    with torch.no_grad():
        inputs = states @ energy.weights + energy.hidden_bias  # (states, 3)
        up = (inputs.unsqueeze(1) * (2 * hidden - 1)).sigmoid().prod(-1)  # (states, hidden)
        back = hidden @ energy.weights.T + energy.visible_bias
        down = (back.unsqueeze(1) * (2 * states - 1)).sigmoid().prod(-1)  # (hidden, states)
    start = (x.unsqueeze(1) == states).all(-1).double().mean(0)
    many = x.repeat(10, 1)
    got = gradient(
        energy, ContrastiveDivergence(generator=torch.Generator().manual_seed(0))(energy, many)
    )
    assert by_enumeration(energy, many, start @ up @ down, len(many), got) < 1


class Mixed(poe.Energy):
    """Cubic couplings and a field that is learned, over 70 bits: more sites than Gibbs takes one by
    one."""

    def __init__(self) -> None:
        super().__init__((70,), support=Bits(70).support)
        self.cubic, self.fields = Bits(5), torch.nn.Parameter(t(70))

    def forward(self, x: Tensor) -> Tensor:  # (*batch, 70) -> (*batch)
        return self.cubic.forward(x[..., :5]) + x @ self.fields

    def draw(self, n: int, generator: torch.Generator) -> Tensor:  # (n, 70)
        free = torch.rand(n, 65, generator=generator, dtype=F64) < (-self.fields[5:]).sigmoid()
        x = points(self.cubic)
        p = (-self.cubic(x) - x @ self.fields[:5]).softmax(0)
        return torch.cat([x[torch.multinomial(p, n, True, generator=generator)], free], 1)


def normal(n: int, generator: torch.Generator) -> Tensor:
    return torch.tensor([1.0, -1.0]) + torch.tensor([0.5, 3.0]) * torch.randn(
        n, 2, generator=generator, dtype=F64
    )


def latent(n: int, generator: torch.Generator) -> Tensor:
    """Draws of the GaussianRBM below: h from its table, then v."""
    weights, bias = t(2, 3), t(3)
    h = points(RBM(t(3, 1)))
    p = (h @ bias + 0.5 * (h @ weights.T).square().sum(1)).softmax(0)
    chosen = h[torch.multinomial(p, n, True, generator=generator)]
    return chosen @ weights.T + torch.randn(n, 2, generator=generator, dtype=F64)


def from_table(energy: poe.Energy) -> Callable[[int, torch.Generator], Tensor]:
    def draw(n: int, generator: torch.Generator) -> Tensor:
        x, p = law(energy)
        return x[torch.multinomial(p, n, True, generator=generator)]

    return draw


def targets() -> list[tuple[str, poe.Energy, Callable[[int, torch.Generator], Tensor], type]]:
    mixed, pair = (
        Mixed(),
        machine() & Ising((4,), t(4), learnable=True, bits=True) & Bernoulli(logits=t(4)),
    )
    gauss = Normal(
        torch.tensor([1.0, -1.0], dtype=F64), torch.tensor([0.5, 3.0], dtype=F64), learnable=True
    )
    return [
        ("rbm", machine(), from_table(machine()), poe.Gibbs),
        ("product", pair, from_table(pair), poe.Gibbs),
        ("many bits", mixed, mixed.draw, poe.DiscreteLangevin),
        ("gaussian rbm", GaussianRBM(t(2, 3), hidden_bias=t(3), learnable=True), latent, poe.Gibbs),
        ("normal", gauss, normal, poe.Langevin),
    ]


@pytest.mark.parametrize("case", targets(), ids=lambda case: case[0])
def test_it_vanishes_where_the_model_is_the_law_of_the_data(
    case: Any, generator: torch.Generator
) -> None:
    """Every kernel that is chosen leaves the model's law as it is; so CD has mean 0 from its own
    draws, and not from others."""
    _, energy, draw, kind = case
    with torch.no_grad():
        x = draw(1_000, generator)
    assert isinstance(mover(energy, x, x), kind)
    loss = ContrastiveDivergence(generator=generator)

    def found(batches: Sequence[Tensor]) -> float:
        rows = torch.stack([gradient(energy, loss(energy, batch)) for batch in batches])
        return worst(rows.mean(0) / (rows.std(0) / math.sqrt(len(rows))))

    with torch.no_grad():
        right = [draw(200, generator) for _ in range(100)]
    # a mean of 100 numbers over its estimated error is Student's t, whose tail is wider than the
    # normal's by 6 % at this level
    assert found(right) < 1.1
    assert found([1 - batch for batch in right]) > 1.5


# ---------------------------------------------------------------- training


def exact_fit(energy: poe.Energy, x: Tensor, steps: int = 200) -> float:
    """The mean log-likelihood after maximising it by enumeration, in nats."""
    optimiser = torch.optim.LBFGS(
        list(energy.parameters()), max_iter=steps, line_search_fn="strong_wolfe"
    )

    def loss() -> Tensor:
        optimiser.zero_grad()
        value = energy(x).mean() + (-energy(points(energy))).logsumexp(0)
        value.backward()
        return value

    optimiser.step(loss)
    return -float(loss().detach())


def log_likelihood(energy: poe.Energy, x: Tensor) -> float:
    with torch.no_grad():
        return float(-energy(x).mean() - (-energy(points(energy))).logsumexp(0))


def train(energy: poe.Energy, loss: Any, x: Tensor, steps: int, rate: float = 0.05) -> None:
    optimiser = torch.optim.Adam([p for p in energy.parameters() if p.requires_grad], rate)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: 1 - step / steps)
    for _ in range(steps):
        optimiser.zero_grad()
        loss(energy, x).backward()
        optimiser.step()
        schedule.step()


def test_persistent_chains_reach_the_optimum(generator: torch.Generator) -> None:
    """Of a machine without hidden units the likelihood is concave: one optimum."""
    x = data()
    edges = [(i, j) for i in range(4) for j in range(i)]

    def make():
        return Ising(
            (4,),
            torch.zeros(6, dtype=F64),
            torch.zeros(4, dtype=F64),
            edges=edges,
            bits=True,
            learnable=True,
        )

    best, energy = exact_fit(make(), x), make()
    before = log_likelihood(energy, x)
    train(energy, PersistentContrastiveDivergence(200, generator=generator), x, 600)
    assert best - before > 0.5
    assert best - log_likelihood(energy, x) < 0.005


def test_persistent_chains_train_a_machine_with_hidden_units(generator: torch.Generator) -> None:
    x = data()
    make = lambda: RBM(0.1 * t(4, 3), t(4) / 10, torch.zeros(3, dtype=F64), learnable=True)  # noqa: E731
    best, energy = exact_fit(make(), x), make()
    before = log_likelihood(energy, x)
    train(energy, PersistentContrastiveDivergence(200, k=2, generator=generator), x, 800)
    assert best - before > 0.5
    assert best - log_likelihood(energy, x) < 0.02


def test_one_factor_learns_while_the_others_stay(generator: torch.Generator) -> None:
    fixed, learned = machine(), Ising((4,), t(4), learnable=True, bits=True)
    fixed.requires_grad_(False)
    kept = [p.clone() for p in fixed.parameters()]
    product, x = fixed & learned, data()
    before = log_likelihood(product, x)
    for loss in (
        ContrastiveDivergence(2, generator=generator),
        PersistentContrastiveDivergence(generator=generator),
    ):
        train(product, loss, x, 50)
    assert all(
        torch.equal(a, b) and b.grad is None for a, b in zip(kept, fixed.parameters(), strict=True)
    )
    assert not any(p.requires_grad for p in fixed.parameters()) and all(
        p.requires_grad for p in learned.parameters()
    )
    assert log_likelihood(product, x) > before + 0.1


def test_chains_see_no_dropout() -> None:
    energy = MLPEnergy((2,), hidden=(8,))
    energy.train()
    seen = []
    energy.register_forward_hook(lambda module, *_: seen.append(module.training))
    ContrastiveDivergence(2)(energy, torch.randn(10, 2))
    assert seen[0] and seen[-1] and len(seen) > 4 and not any(seen[1:-1]) and energy.training


@pytest.mark.parametrize("sharp", [1e-3, 1.0, 1e3])
def test_the_step_size_follows_the_energy(sharp: float, generator: torch.Generator) -> None:
    """On N(0, s²) with a batch of scale 1: MALA's acceptance depends on h/s² alone, so h/s² settles
    at one value, whatever s."""
    energy, x = (
        Normal(torch.zeros(8, dtype=F64), sharp),
        torch.randn(500, 8, generator=generator, dtype=F64),
    )
    loss, sizes = PersistentContrastiveDivergence(500, start=energy, generator=generator), []
    for _ in range(60):
        loss(energy, x)
        sizes.append(loss.step_size)
    assert loss.acceptance == pytest.approx(0.574, abs=0.05)
    ratio = sum(sizes[30:]) / 30 / sharp**2  # type: ignore[arg-type]
    assert (
        0.6 < ratio * float(x.var(0, correction=0).mean()) < 1.1
    )  # 1.36 · 8^(-1/3) = 0.68 in the limit of many dimensions


def test_chains_that_stand_still_are_noticed() -> None:
    loss = ContrastiveDivergence(kernel=poe.Langevin(1e6))
    with pytest.warns(poe.PoeWarning, match="hardly move: Langevin accepts"):
        loss(Normal(torch.zeros(8), 1.0), torch.randn(20, 8))


# ---------------------------------------------------------------- chains that persist


@dataclass(frozen=True)
class Count(Kernel):
    """x' = x + 1."""

    def init(self, energy: poe.Energy, x: Tensor) -> State:
        return State(x, x.new_zeros(len(x)), x.new_empty(0))

    def noise(
        self, state: State, generator: torch.Generator | None = None, steps: int | None = None
    ) -> None:
        return None

    def step(self, energy: poe.Energy, state: State, noise: None) -> tuple[State, Info]:
        still = torch.zeros(len(state.x), dtype=torch.bool)
        return state._replace(x=state.x + 1), Info(
            torch.full((len(state.x),), 0.25), still, still, still
        )


class Flat(poe.Energy):
    def __init__(self) -> None:
        super().__init__((1,))
        self.slope = torch.nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        return self.slope * x.sum(-1)


def test_chains_go_on_where_they_were() -> None:
    loss, batch = PersistentContrastiveDivergence(chains=3, k=2, kernel=Count()), torch.zeros(5, 1)
    for call in range(1, 4):
        assert float(loss(Flat(), batch).detach()) == -2 * call
        assert loss.points is not None and loss.points.flatten().tolist() == [2 * call] * 3
    assert loss.acceptance == 0.25


def test_a_buffer_keeps_more_points_than_move(generator: torch.Generator) -> None:
    loss = PersistentContrastiveDivergence(
        chains=30, buffer=100, kernel=Count(), generator=generator
    )
    for call in range(1, 9):
        loss(Flat(), torch.zeros(5, 1))
        assert (
            loss.points is not None
            and len(loss.points) == 100
            and float(loss.points.sum()) == 30 * call
        )
    moved = loss.points.flatten().long()  # type: ignore[union-attr]
    # each of 8 calls takes 30 of 100: a chain has moved Binomial(8, 0.3) times
    expected = torch.tensor([math.comb(8, k) * 0.3**k * 0.7 ** (8 - k) for k in range(9)]) * 100
    assert (
        float(
            (
                (torch.bincount(moved, minlength=9) - expected).abs() / expected.clamp(min=1).sqrt()
            ).max()
        )
        < 4
    )


def test_restarts_come_from_the_batch_or_from_a_density(generator: torch.Generator) -> None:
    loss = PersistentContrastiveDivergence(
        chains=4000, restart=0.25, kernel=Count(), generator=generator
    )
    for _ in range(2):
        loss(Flat(), torch.full((5, 1), 100.0))
    assert loss.points is not None
    share = float((loss.points == 101).double().mean())
    assert set(loss.points.flatten().tolist()) == {101.0, 102.0}
    assert abs(share - 0.25) < 4 * math.sqrt(0.25 * 0.75 / 4000)
    loss = PersistentContrastiveDivergence(
        4, restart=1.0, start=Normal(torch.full((1,), 50.0), 0.1), kernel=Count()
    )
    for _ in range(3):
        loss(Flat(), torch.zeros(5, 1))
    assert loss.points is not None and float((loss.points - 51).abs().max()) < 1


@pytest.mark.parametrize(
    ("make", "start"),
    [
        (machine, None),
        (machine, Bernoulli(logits=t(4))),
        (lambda: Normal(t(4), 0.5, learnable=True), None),  # with a step size that is adapted
    ],
)
def test_training_resumes_bit_by_bit(
    make: Callable[[], poe.Energy], start: poe.Energy | None
) -> None:
    def made() -> tuple[poe.Energy, PersistentContrastiveDivergence, torch.optim.Optimizer]:
        generator = torch.Generator().manual_seed(1)
        loss = PersistentContrastiveDivergence(
            20, k=2, buffer=50, restart=0.1, start=start, generator=generator
        )
        return (energy := make()), loss, torch.optim.SGD(energy.parameters(), 0.01, momentum=0.9)

    def steps(energy: poe.Energy, loss: Any, optimiser: torch.optim.Optimizer, n: int) -> None:
        for _ in range(n):
            optimiser.zero_grad()
            loss(energy, data(50)).backward()
            optimiser.step()

    whole, first, second = made(), made(), made()
    steps(*whole, 10)
    steps(*first, 4)
    file = io.BytesIO()
    torch.save([part.state_dict() for part in first], file)
    file.seek(0)
    for part, state in zip(second, torch.load(file, weights_only=True), strict=True):
        part.load_state_dict(state)
    steps(*second, 6)
    assert all(
        torch.equal(a, b)
        for a, b in zip(whole[0].parameters(), second[0].parameters(), strict=True)
    )
    assert torch.equal(whole[1].points, second[1].points)  # type: ignore[arg-type]
    assert not torch.equal(whole[1].points, first[1].points)  # type: ignore[arg-type]
    fresh = PersistentContrastiveDivergence()
    assert fresh.state_dict() == {}
    fresh.load_state_dict({})


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("call", "hint"),
    [
        (lambda: ContrastiveDivergence(0), "k is a whole number of at least 1, got 0"),
        (lambda: ContrastiveDivergence(2.0), "k is a whole number of at least 1, got 2.0"),  # type: ignore[arg-type]
        (lambda: PersistentContrastiveDivergence(k=True), "whole number"),
        (lambda: PersistentContrastiveDivergence(0), "1 <= chains"),
        (
            lambda: PersistentContrastiveDivergence(10, buffer=5),
            "a buffer of 5 points cannot give 10 chains",
        ),
        (lambda: PersistentContrastiveDivergence(restart=1.5), "between 0 and 1, not 1.5"),
        (
            lambda: PersistentContrastiveDivergence(start=RBM(torch.zeros(4, 21))),
            "start from draws",
        ),
        (lambda: PersistentContrastiveDivergence(start=torch.randn), "start from draws"),  # type: ignore[arg-type]
        (lambda: ContrastiveDivergence()(machine(), torch.zeros(0, 4)), r"\(0, 4\) is empty"),
        (
            lambda: PersistentContrastiveDivergence()(machine(), torch.zeros(0, 4)),
            r"\(0, 4\) is empty",
        ),
        (lambda: ContrastiveDivergence()(machine(), torch.zeros(4)), r"a batch is \(n, \*event\)"),
        (lambda: ContrastiveDivergence()(machine(), torch.zeros(3, 5)), "event shape"),
        (
            lambda: ContrastiveDivergence()(machine(), torch.full((3, 4), 0.5, dtype=F64)),
            "3 of 3 points of the batch have energy inf",
        ),
        (lambda: ContrastiveDivergence()(Flat(), torch.zeros(3, 1)), "give kernel=poe.Langevin"),
        (
            lambda: ContrastiveDivergence(kernel=poe.Langevin())(Flat(), torch.zeros(3, 1)),
            "give a step size",
        ),
        (
            lambda: PersistentContrastiveDivergence(5).load_state_dict(
                {"points": torch.zeros(3, 4)}
            ),
            "buffer=3",
        ),
    ],
)
def test_mistakes_are_named(call: Callable[[], Any], hint: str) -> None:
    with pytest.raises(ValueError, match=hint):
        call()
