"""Ising, Potts and Boltzmann machines against enumeration, quadrature, published values and
scikit-learn."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import integrate
from scipy.stats import chi2
from torch import Tensor, nn

import poe
from experts import DBM, RBM, Bernoulli, Categorical, GaussianRBM, Ising, Normal, Potts
from experts.boltzmann.lattice import Strip, greedy_colours, grid_colours, grid_edges
from experts.boltzmann.sums import layered_log_z, quadratic_log_z
from poe.algebra.capabilities import BlockGibbs, Enumerates
from poe.spaces import points
from poe.testing import check_expert

F64 = torch.float64
CRITICAL = math.log(1 + math.sqrt(2)) / 2


def t(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def binary(n: int) -> Tensor:  # (2^n, n)
    return torch.tensor(list(itertools.product([0.0, 1.0], repeat=n)), dtype=F64).reshape(2**n, n)


def value(energy: poe.Energy) -> float:
    assert energy.log_z is not None and energy.log_z.standard_error == 0
    return energy.log_z.value


def quadrature(energy: poe.Energy) -> float:
    """log of the integral of exp(-E) over one real coordinate."""
    mass = integrate.quad(
        lambda v: math.exp(-float(energy(torch.tensor([v], dtype=F64)))),
        -15,
        15,
        epsabs=0,
        epsrel=1e-11,
    )
    return math.log(mass[0])


MAKERS: dict[str, Callable[[], poe.Energy]] = {
    "ising": lambda: Ising((2, 3), 0.4, 0.1),
    "ising, bits": lambda: Ising((3, 3), t(12).float(), t(3, 3).float(), periodic=False, bits=True),
    "ising, graph": lambda: Ising(
        (5,), t(3).float(), edges=[(0, 3), (1, 4), (3, 4)], learnable=True
    ),
    "ising, shared coupling": lambda: Ising((3,), nn.Parameter(torch.tensor(0.3)), 0.1),
    "ising, one site": lambda: Ising((), 1.0, 0.3),
    "potts": lambda: Potts((2, 2), 3, 0.5, t(2, 2, 3).float()),
    "potts, graph": lambda: Potts((4,), 2, t(2).float(), edges=[(0, 1), (1, 3)], learnable=True),
    "rbm": lambda: RBM(t(6, 4).float(), t(6).float(), t(4).float(), event_shape=(2, 3)),
    "rbm, float64": lambda: RBM(t(4, 7), learnable=True),
    "gaussian rbm": lambda: GaussianRBM(
        t(2, 3).float(), t(2).float(), torch.tensor([0.5, 1.5]), t(3).float()
    ),
    "gaussian rbm, one unit": lambda: GaussianRBM(t(1, 2).float(), learnable=True),
    "dbm": lambda: DBM([t(3, 2).float(), t(2, 2).float()], [t(3).float(), 0.0, t(2).float()]),
    "dbm, learnable": lambda: DBM([t(2, 1), t(1, 2), t(2, 1)], learnable=True),
}


@pytest.mark.parametrize("name", MAKERS)
def test_laws(name: str) -> None:
    report = check_expert(MAKERS[name])
    assert {"normalisation", "save and load", "eval mode", "facts", "value_and_grad"} & set(
        report.checked
    ) >= {"normalisation", "save and load"}, report
    expert = MAKERS[name]()
    assert expert.proper is True and expert.bounded is True
    assert expert.can(BlockGibbs) and expert.can(Enumerates) == poe.algebra.support.is_discrete(
        expert.support
    )


def test_spins_have_the_gradient_of_their_energy() -> None:
    for bits, periodic in itertools.product((False, True), ((True, False), (False, True))):
        expert = Ising((2, 4), t(14 if periodic[0] else 12), t(2, 4), bits=bits, periodic=periodic)
        x = points(expert)[::5].requires_grad_()
        (gradient,) = torch.autograd.grad(expert.forward(x).sum(), x)
        energy, slope = expert.value_and_grad(x)
        torch.testing.assert_close(slope, gradient)
        torch.testing.assert_close(energy, expert(x).detach())
        # as a graph
        again = Ising((2, 4), expert.couplings, expert.fields, bits=bits, edges=expert.edges)
        torch.testing.assert_close(again(x), expert(x))
        torch.testing.assert_close(again.value_and_grad(x)[1], slope)


# ---------------------------------------------------------------- energies


def test_ising_energies_site_by_site() -> None:
    x = torch.tensor([[1.0, 1, -1], [-1, 1, 1]], dtype=F64)
    # rows are joined twice: 2 (s11 s21 + s12 s22 + s13 s23) = 2 (-1 + 1 - 1); along them 1 - 1 - 1,
    # -1 + 1 - 1
    assert float(Ising((2, 3), torch.tensor([0.5, 0.25], dtype=F64), 0.1)(x)) == pytest.approx(
        0.5 * 2 + 0.25 * 2 - 0.1 * 2
    )
    # open borders: -1 + 1 - 1 down, 1 - 1 and -1 + 1 along
    assert float(
        Ising((2, 3), torch.tensor([0.5, 0.25], dtype=F64), periodic=False)(x)
    ) == pytest.approx(0.5)
    half = Ising((2, 3), torch.tensor([0.5, 0.25], dtype=F64), periodic=(False, True))
    assert float(half(x)) == pytest.approx(0.5 + 0.25 * 2)
    bits = Ising((2, 3), 0.3, 0.1, bits=True).double()
    assert float(bits((x + 1) / 2)) == pytest.approx(float(Ising((2, 3), 0.3, 0.1).double()(x)))
    assert float(Ising((2, 3), t(2), t(2, 3), edges=[(0, 5), (1, 3)])(x)) == pytest.approx(
        float(-t(2)[0] * x[0, 0] * x[1, 2] - t(2)[1] * x[0, 1] * x[1, 0] - (t(2, 3) * x).sum())
    )
    assert math.isinf(float(Ising((2, 3))(x / 2))) and math.isinf(
        float(Ising((2, 3))(torch.zeros(2, 3)))
    )


def test_potts_energies_site_by_site() -> None:
    x, fields = torch.tensor([[0, 2, 2], [0, 1, 2]]), t(2, 3, 3)
    expert = Potts((2, 3), 3, torch.tensor([0.5, 0.25], dtype=F64), fields, periodic=False)
    own = sum(float(fields[i, j, x[i, j]]) for i in range(2) for j in range(3))
    assert float(expert(x)) == pytest.approx(-0.5 * 2 - 0.25 * 1 - own)
    # [a = b] = (1 + s_a s_b)/2
    two, ising = (Potts((3, 3), 2, 0.8).double(), Ising((3, 3), 0.4).double())
    states = points(ising)
    torch.testing.assert_close(two((states + 1) / 2), ising(states) - 0.4 * 18)


@pytest.mark.parametrize(
    "make", [lambda: RBM(t(4, 3), t(4), t(3)), lambda: RBM(t(3, 5), t(3), t(5))]
)
def test_an_rbm_sums_its_joint_over_hidden_units(make: Callable[[], RBM]) -> None:
    rbm = make()
    v, h = binary(rbm.event_shape.numel()), binary(rbm.hidden)
    joint = v @ rbm.visible_bias.unsqueeze(-1) + h @ rbm.hidden_bias + v @ rbm.weights @ h.T
    torch.testing.assert_close(rbm(v), -joint.logsumexp(1))
    pairs = torch.cat([v.repeat_interleave(len(h), 0), h.repeat(len(v), 1)], 1)
    torch.testing.assert_close(rbm.joint(pairs), -joint.flatten())
    assert value(rbm) == pytest.approx(float(joint.flatten().logsumexp(0)), abs=1e-9)
    assert value(rbm.joint) == pytest.approx(value(rbm), abs=1e-9)


def test_a_deep_machine_layer_by_layer() -> None:
    weights, biases = [t(2, 3), t(3, 1), t(1, 2)], [t(2), t(3), t(1), t(2)]
    dbm, x = DBM(weights, biases), binary(8)
    a, b, c, d = x.split([2, 3, 1, 2], 1)
    energy = -(a @ biases[0] + b @ biases[1] + c @ biases[2] + d @ biases[3])
    energy -= (
        ((a @ weights[0]) * b).sum(1)
        + ((b @ weights[1]) * c).sum(1)
        + ((c @ weights[2]) * d).sum(1)
    )
    torch.testing.assert_close(dbm(x), energy)
    assert value(dbm) == pytest.approx(float((-energy).logsumexp(0)), abs=1e-9)
    assert [block.tolist() for block in dbm.blocks] == [[0, 1, 5], [2, 3, 4, 6, 7]]


# ---------------------------------------------------------------- exact log Z


@pytest.mark.parametrize(
    ("length", "coupling", "field", "log_z"),
    [
        (4, CRITICAL, 0.0, 15.521915458755283),
        (10, CRITICAL, 0.0, 93.61030051022209),
        (64, CRITICAL, 0.0, 3808.672283419808),
        (10, 0.4, 0.04, 90.09460973173485),  # β = 0.4, h = 0.1
    ],
)
def test_log_z_of_a_torus_is_the_published_one(
    length: int, coupling: float, field: float, log_z: float
) -> None:
    for bits in (False, True):
        expert = Ising((length, length), torch.tensor(coupling, dtype=F64), field, bits=bits)
        assert value(expert) == pytest.approx(log_z, abs=1e-9)


@pytest.mark.parametrize("length", [4, 10])
def test_the_transfer_matrix_agrees_with_kaufmans_formula(length: int) -> None:
    couplings = t(2).abs()
    closed = value(Ising((length, length), couplings))
    s = torch.tensor([-1.0, 1.0], dtype=F64)
    down, right = (torch.full((length, length), float(c), dtype=F64) for c in couplings)
    strip = Strip(torch.zeros(length, length, 2, dtype=F64), down, right, torch.outer(s, s))
    assert strip.log_z() == pytest.approx(closed, abs=1e-9)
    assert strip.transposed().log_z() == pytest.approx(closed, abs=1e-9)


SHAPES = [
    (),
    (1,),
    (2,),
    (7,),
    (1, 5),
    (5, 1),
    (2, 2),
    (2, 5),
    (3, 3),
    (4, 3),
    (2, 2, 3),
    (1, 3, 4),
]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("periodic", [False, True, None])
def test_log_z_of_grids_by_enumeration(shape: tuple[int, ...], periodic: bool | None) -> None:
    closed = tuple(k % 2 == 0 for k in range(len(shape))) if periodic is None else periodic
    edges = len(Ising(shape, periodic=closed).edges)
    for expert in (
        Ising(shape, t(edges), t(*shape, seed=1), periodic=closed),
        Ising(shape, torch.tensor(0.7, dtype=F64), periodic=closed, bits=True),
        Potts(shape, 3, t(edges), t(*shape, 3, seed=1), periodic=closed)
        if math.prod(shape) < 10
        else Potts(shape, 2, 0.3).double(),
    ):
        direct = float((-expert(points(expert)).double()).logsumexp(0))
        assert value(expert) == pytest.approx(direct, abs=1e-9)


def test_log_z_of_any_graph_and_of_long_strips() -> None:
    graph = Ising(
        (16,),
        t(18),
        t(16),
        edges=[(i, (i * j) % 16) for i in range(1, 11) for j in (2, 5) if (i * j) % 16 != i],
    )
    assert value(graph) == pytest.approx(float((-graph(points(graph))).logsumexp(0)), abs=1e-9)
    # eigenvalues of the 2 x 2 transfer matrix
    chain = Ising((5000,), torch.tensor(0.7, dtype=F64), 0.2)
    root = math.sqrt(math.exp(1.4) * math.sinh(0.2) ** 2 + math.exp(-1.4))
    top = math.exp(0.7) * math.cosh(0.2) + root
    assert value(chain) == pytest.approx(5000 * math.log(top), rel=1e-12)
    wide = Ising((14, 14), torch.tensor(0.3, dtype=F64), 0.1, periodic=(False, True))
    turned = Ising((14, 14), torch.tensor(0.3, dtype=F64), 0.1, periodic=(True, False))
    assert value(wide) == pytest.approx(value(turned), abs=1e-9)


def test_strong_couplings_lose_no_digits() -> None:
    frustrated = Ising((4, 3), 30 * t(24), 5 * t(4, 3))
    direct = float((-frustrated(points(frustrated))).logsumexp(0))
    assert value(frustrated) == pytest.approx(direct, rel=1e-12)
    assert value(Ising((64, 64), torch.tensor(100.0, dtype=F64))) == pytest.approx(
        math.log(2) + 100 * 2 * 64**2, rel=1e-14
    )
    hopeless = Ising((8, 8), 200 * t(128), 0.1)
    assert hopeless.log_z is None  # float64 might underflow


def test_log_z_is_none_where_it_costs_too_much() -> None:
    for expert in (  # each would take minutes to years
        Ising((30, 30), t(1800)),
        Ising((30,), edges=list(itertools.combinations(range(30), 2))),
        Potts((9, 9), 5, 0.3),
        RBM(t(40, 30)),
        RBM(t(400, 24)),
        GaussianRBM(t(4, 40)),
        DBM([t(30, 30), t(30, 30)]),
    ):
        assert expert.log_z is None
    assert RBM(t(400, 24)).proper is True


@pytest.mark.parametrize(("k", "m"), [(1, 1), (1, 5), (5, 3), (11, 40), (16, 9)])
def test_sums_over_layers_are_those_of_every_state(k: int, m: int) -> None:
    for scale in (1.0, 300.0):  # products of factors beyond the range of float64 are cut
        weights, left, right = scale * t(k, m), t(k), scale * t(m)
        states = binary(min(k, m))
        w, a, b = (weights, left, right) if k <= m else (weights.T, right, left)
        direct = float(
            (
                states @ a + torch.logaddexp(states @ w + b, torch.zeros((), dtype=F64)).sum(1)
            ).logsumexp(0)
        )
        assert layered_log_z(weights, left, right) == pytest.approx(direct, rel=1e-13, abs=1e-9)
    square = t(k, k) + t(k, k).T
    states = binary(k)
    direct = float((states @ t(k) + 0.5 * ((states @ square) * states).sum(1)).logsumexp(0))
    assert quadratic_log_z(t(k), square) == pytest.approx(direct, abs=1e-9)


def test_log_z_of_a_gaussian_rbm_by_quadrature() -> None:
    expert = GaussianRBM(t(1, 4), 0.3, 0.8, t(4))
    assert value(expert) == pytest.approx(quadrature(expert), abs=1e-9)


def test_log_z_is_remembered_until_a_parameter_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    expert = RBM(t(6, 4), learnable=True)
    counted, real = [], RBM._sum
    monkeypatch.setattr(RBM, "_sum", lambda self, patient: counted.append(1) or real(self, patient))
    first = value(expert)
    assert value(expert) == first and len(counted) == 1
    with torch.no_grad():
        expert.weights.mul_(0.5)
    assert value(expert) != first and len(counted) == 2
    assert value(expert) == pytest.approx(value(RBM(0.5 * t(6, 4))), abs=1e-12)
    expert.float()
    assert abs(value(expert) - value(RBM(0.5 * t(6, 4)))) < 1e-5 and len(counted) > 2


def test_a_large_sum_is_taken_when_asked_for_and_then_known() -> None:
    expert = RBM(t(1100, 20) / 10)
    assert expert.log_z is None
    exact = expert.exact_log_z()
    states = binary(20)
    parts = [
        (torch.nn.functional.softplus(s @ expert.weights.T, threshold=40).sum(1)).logsumexp(0)
        for s in states[:: 2**10].split(256)
    ]
    # a part of the sum, by plain means
    assert exact is not None and exact > float(torch.stack(parts).logsumexp(0))
    assert value(expert) == exact


# ---------------------------------------------------------------- closed forms

PRODUCTS: dict[str, Callable[[], poe.Energy]] = {
    "isings": lambda: Ising((2, 3), t(12), t(2, 3)) ** 0.3 & Ising((2, 3), 0.4, 0.1).double() ** 2,
    "ising quotient": lambda: Ising((5,), t(5), t(5)) / Ising((5,), t(5, seed=1)) ** 1.7,
    "ising power": lambda: Ising((2, 3), t(12), t(2, 3)) ** -0.5,
    "grid and graph": lambda: (
        Ising((2, 3), t(12)) & Ising((2, 3), t(2), t(2, 3), edges=[(0, 5), (1, 0)])
    ),
    "ising and bernoulli": lambda: (
        Ising((2, 3), t(12), bits=True) & Bernoulli(logits=t(2, 3)) ** 0.7
    ),
    "pottses": lambda: Potts((4,), 3, t(4), t(4, 3)) & Potts((4,), 3, t(1), edges=[(0, 2)]) ** 0.5,
    "potts and categorical": lambda: (
        Potts((4,), 3, t(4), t(4, 3)) & Categorical(logits=t(4, 3, seed=1)) ** 2
    ),
    "rbms": lambda: RBM(t(4, 3), t(4), t(3)) & RBM(t(4, 2, seed=1), t(4, seed=2)) & RBM(t(4, 1)),
    "rbm power": lambda: RBM(t(4, 3), t(4), t(3)) ** 3,
    "rbm and bernoulli": lambda: RBM(t(4, 3), t(4), t(3)) ** 2 & Bernoulli(logits=t(4)) ** -0.3,
    "rbm on an image": lambda: RBM(t(4, 3), event_shape=(2, 2)) & Bernoulli(logits=t(2, 2)),
    "dbms": lambda: (
        DBM([t(3, 2), t(2, 2)]) ** 0.4 & DBM([t(3, 2, seed=1), t(2, 2)], [t(3), t(2), t(2)])
    ),
    "dbm and bernoulli": lambda: DBM([t(3, 2), t(2, 2)]) & Bernoulli(logits=t(7)) ** 0.5,
}


@pytest.mark.parametrize("name", PRODUCTS)
def test_closed_forms_by_enumeration(name: str) -> None:
    energy = PRODUCTS[name]()
    closed = poe.simplify(energy)
    assert len(poe.leaves(closed)) == 1
    x = points(energy)
    torch.testing.assert_close(closed(x), energy(x), rtol=1e-10, atol=1e-10)
    assert value(energy) == pytest.approx(float((-energy(x)).logsumexp(0)), abs=1e-9)


def test_gaussian_rbms_and_normals() -> None:
    a, b = GaussianRBM(t(1, 3), 0.4, 0.8, t(3)), GaussianRBM(t(1, 2), -1.0, 2.0)
    for energy in (a & b, a & Normal(t(1), 0.7) ** 1.5, a**2 / Normal(t(1), 5.0)):
        closed = poe.simplify(energy)
        assert len(poe.leaves(closed)) == 1
        x = torch.linspace(-5, 5, 101, dtype=F64).unsqueeze(-1)
        torch.testing.assert_close(closed(x), energy(x), rtol=1e-10, atol=1e-10)
        assert value(energy) == pytest.approx(quadrature(energy), abs=1e-9)


def test_what_has_no_closed_form_is_left_alone() -> None:
    rbm, spins = RBM(t(4, 3)), Ising((4,), t(4))
    for energy in (
        rbm**0.5,
        ~rbm,
        rbm**100,
        rbm / RBM(t(4, 2)),
        spins & Ising((4,), t(4), bits=True),
        GaussianRBM(t(1, 2)) / Normal(t(1), 0.1),
        GaussianRBM(t(2, 2)) & Normal(t(2), covariance=torch.eye(2, dtype=F64)),
        DBM([t(2, 2)]) & DBM([t(1, 1), t(1, 2)]),
        Potts((3,), 3, 0.5).double()
        & Categorical(logits=torch.tensor([[0.0, -math.inf, 1.0]] * 3, dtype=F64)),
    ):
        assert poe.simplify(energy) is energy, energy
    assert len(poe.leaves(poe.simplify(rbm**0.5 & RBM(t(4, 2)) & Bernoulli(logits=t(4))))) == 3


def test_precision_and_learning_follow_the_experts() -> None:
    assert poe.simplify(RBM(t(3, 2).float()) & RBM(t(3, 2).float())).dtype == torch.float32
    assert poe.simplify(RBM(t(3, 2).float()) & RBM(t(3, 2))).dtype == F64
    expert = RBM(t(3, 2), t(3), learnable=True)
    assert [key for key, _ in expert.named_parameters()] == [
        "weights",
        "hidden_bias",
        "visible_bias",
    ]
    assert expert.joint.weights[0] is expert.weights
    data = binary(3)[[1, 3, 5, 7, 7]]
    optimiser = torch.optim.Adam(expert.parameters(), lr=0.1)
    before = float(expert(data).detach().mean()) + value(expert)
    for _ in range(30):  # gradient of the exact likelihood: the model's mean by enumeration
        optimiser.zero_grad()
        x = binary(3)
        p = (-expert(x)).detach().softmax(0)
        (expert(data).mean() - p @ expert(x)).backward()
        optimiser.step()
    after = float(expert(data).detach().mean()) + value(expert)
    assert after < before - 0.3
    # the entropy
    assert (
        after
        >= -float(torch.tensor([0.2, 0.2, 0.2, 0.4]).log() @ torch.tensor([0.2, 0.2, 0.2, 0.4]))
        - 1e-6
    )


def test_draws_by_the_library_agree_with_enumeration() -> None:
    energy = RBM(t(4, 3), t(4)) & Ising((4,), 0.5, bits=True).double()
    draws = poe.sample(energy, 20_000, seed=0)
    x, p = points(energy), (-energy(points(energy))).softmax(0)
    seen = (draws.x.unsqueeze(1) == x).all(-1).double().mean(0)
    assert float(((seen - p).abs() / (p * (1 - p) / 20_000).sqrt()).max()) < 4.5
    assert draws.x.is_floating_point()


# ---------------------------------------------------------------- files, other libraries, mistakes


@pytest.mark.parametrize(
    "name", ["ising, graph", "ising, shared coupling", "potts", "dbm, learnable", "gaussian rbm"]
)
def test_a_file_keeps_structure_and_what_is_learned(name: str, tmp_path: Path) -> None:
    expert = MAKERS[name]()
    poe.save(expert, tmp_path / "expert.safetensors")
    loaded = poe.load(tmp_path / "expert.safetensors")
    assert loaded.config() == expert.config() and loaded.log_z == expert.log_z
    assert [key for key, _ in loaded.named_parameters()] == [
        key for key, _ in expert.named_parameters()
    ]
    pairs: Any = zip(loaded.blocks, expert.blocks, strict=True)  # type: ignore[attr-defined]
    assert all(torch.equal(a, b) for a, b in pairs)


def test_scikit_learns_machine() -> None:
    network = pytest.importorskip("sklearn.neural_network")
    data = (binary(5) @ torch.ones(5, dtype=F64) > 2).double().unsqueeze(-1) * binary(5)
    machine = network.BernoulliRBM(n_components=3, n_iter=5, random_state=0).fit(data.numpy())
    expert = poe.as_energy(machine, event_shape=(5,))
    assert isinstance(expert, RBM) and expert.dtype == F64
    np.testing.assert_allclose(
        expert(binary(5)).numpy(), machine._free_energy(binary(5).numpy()), rtol=1e-12
    )
    assert value(expert) == pytest.approx(float((-expert(binary(5))).logsumexp(0)), abs=1e-9)
    with pytest.raises(ValueError, match="call its fit"):
        poe.as_energy(network.BernoulliRBM())


def test_an_untrained_machine_has_the_base_rates_of_its_data(generator: torch.Generator) -> None:
    data = (torch.rand(400, 2, 3, generator=generator) < 0.2).float()
    expert = RBM.untrained((2, 3), 5, data=data, generator=generator)
    assert (
        expert.hidden == 5
        and expert.weights.requires_grad
        and float(expert.weights.detach().std()) < 0.03
    )
    rate = (data.sum(0).flatten() + 0.5) / 401
    torch.testing.assert_close(expert.visible_bias.detach().sigmoid(), rate)


@pytest.mark.parametrize("shape", [(4,), (5,), (4, 6), (5, 4), (3, 5, 2)])
@pytest.mark.parametrize("periodic", [False, True])
def test_no_edge_lies_inside_a_block(shape: tuple[int, ...], periodic: bool) -> None:
    closed = (periodic,) * len(shape)
    edges, _ = grid_edges(shape, closed)
    n = math.prod(shape)
    for colours in (grid_colours(shape, closed), greedy_colours(n, edges)):
        assert bool((colours[edges[:, 0]] != colours[edges[:, 1]]).all())
    odd = periodic and any(length % 2 and length > 1 for length in shape)
    assert int(grid_colours(shape, closed).max()) == (2 if odd else 1)


def test_registry() -> None:
    for name, arguments in (
        ("ising", {"event_shape": (3,), "couplings": 0.3}),
        ("potts", {"event_shape": (3,), "values": 3}),
        ("rbm", {"weights": t(3, 2)}),
        ("gaussian-rbm", {"weights": t(3, 2)}),
        ("dbm", {"weights": [t(3, 2)]}),
    ):
        expert = poe.create(name, **arguments)
        assert expert.event_shape.numel() in (3, 5) and str(expert) == type(expert).__name__.lower()


@pytest.mark.parametrize(
    ("make", "hint"),
    [
        (lambda: Ising((3, 3), t(5)), "do not fit 18 edges: give one, or 18, or 2, one an axis"),
        (lambda: Ising((3, 3), 1.0, t(4)), "fields \\(4,\\), event \\(3, 3\\)"),
        (lambda: Ising((3, 3), periodic=(True,)), "one for each of 2 axes"),
        (lambda: Ising((3,), edges=[(0, 3)]), "sites 0 to 2"),
        (lambda: Ising((3,), edges=[(1, 1)]), "two different sites"),
        (lambda: Ising((3,), math.nan), "couplings = nan"),
        (lambda: Potts((3,), 1), "two or more values"),
        (lambda: RBM(t(3)), "join visible to hidden units"),
        (lambda: RBM(t(3, 2), t(2)), "visible_bias of shape \\(2,\\) does not fit 3 units"),
        (lambda: RBM(t(3, 2), event_shape=(2, 2)), "the weights have 3 rows"),
        (lambda: GaussianRBM(t(3, 2), scale=-1.0), "a standard deviation must be positive"),
        (lambda: DBM([t(3, 2), t(3, 2)]), "lead from each layer to the next"),
        (lambda: DBM([t(3, 2)], [0.0]), "2 layers have as many biases, not 1"),
        (lambda: Ising((5, 5)).enumerate(), "more than 65,536 states"),
        (lambda: RBM(t(3, 2)).sample_block(torch.zeros(3), 0, torch.rand(3)), "takes 5 uniforms"),
        (lambda: Ising.from_config(event_shape=[2], shapes={}, dtype="load"), "not a precision"),
    ],
)
def test_bad_arguments_are_refused(make: Callable[[], Any], hint: str) -> None:
    with pytest.raises(ValueError, match=hint):
        make()


def test_a_machine_of_few_hidden_units_draws_exactly() -> None:
    rbm = RBM(
        1.5 * torch.randn(9, 4, generator=torch.Generator().manual_seed(1)),
        -0.5,
        0.2,
        event_shape=(3, 3),
    )
    states = points(rbm)
    law = (-rbm(states).double()).softmax(0)
    x = rbm.sample((4, 10_000), generator=torch.Generator().manual_seed(0))
    assert x.shape == (4, 10_000, 3, 3)
    number = (
        x.flatten(0, 1).flatten(1).double() @ (2.0 ** torch.arange(8, -1, -1)).double()
    ).long()
    found = torch.bincount(number, minlength=512).double()
    assert float(((found - 40_000 * law).square() / (40_000 * law)).sum()) < chi2.ppf(0.9999, 511)
    assert poe.plan(rbm).method == "exact"
    with torch.no_grad():
        rbm.hidden_bias.add_(3.0)  # the table follows the parameters
    tilted = (-rbm(states).double()).softmax(0)
    again = (
        rbm.sample(40_000, generator=torch.Generator().manual_seed(1)).flatten(1).double().mean(0)
    )
    truth = tilted @ states.flatten(1).double()
    assert bool(((again - truth).abs() < 5 * (truth * (1 - truth) / 40_000).sqrt()).all())
    with pytest.raises(ValueError, match="21 hidden units; .* up to 20"):
        RBM(torch.zeros(3, 21)).sample(1)


def test_a_product_of_machines_drawn_by_chains_is_the_closed_form() -> None:
    a, b = (
        RBM(torch.randn(10, 5, generator=torch.Generator().manual_seed(s)), 0.1, -0.3)
        for s in (2, 3)
    )
    closed = poe.simplify(a & b)
    assert isinstance(closed, RBM) and closed.hidden == 10
    states = points(closed)
    truth = (-closed(states).double()).softmax(0) @ states.double()
    draws = poe.sample(a & b, 4000, method="chains", seed=0)
    assert "chains" in draws.method and draws.trusted
    error = (truth * (1 - truth) / draws.diagnostics.ess_bulk).sqrt()
    assert bool(((draws.x.double().mean(0) - truth).abs() < 4.5 * error).all())
    found = poe.log_z(a & b, method="annealed", seed=1)
    assert (
        closed.log_z is not None
        and abs(found.value - closed.log_z.value) < 4 * found.standard_error
    )
