from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch
from scipy import integrate
from torch.distributions import constraints

import experts
import poe
from poe.kernels import Langevin
from tests.poe.targets import Gauss, Raw, but_not, ks_pvalue


class Positive(poe.Density):
    """Gamma(shape, 1) on one positive number."""

    def __init__(self, shape: float) -> None:
        super().__init__((1,), support=constraints.positive)
        self.shape = shape

    @property
    def bounded(self) -> bool:
        return self.shape >= 1

    def log_prob(self, x):
        return ((self.shape - 1) * x.log() - x - math.lgamma(self.shape)).sum(-1)

    def sample(self, n, *, generator=None):
        shape = (n,) if isinstance(n, int) else tuple(n)
        return torch._standard_gamma(torch.full((*shape, 1), self.shape), generator=generator)


class Boxed(poe.Energy):
    """Any energy on a box."""

    def __init__(self, function, low, high) -> None:
        super().__init__(
            torch.as_tensor(low).shape,
            support=poe.algebra.support.box(torch.tensor(low), torch.tensor(high)),
            name="boxed",
        )
        self.function = function

    bounded = True
    proper = True

    def forward(self, x):
        return self.function(x)


class OnSimplex(poe.Energy):
    def __init__(self, powers: list[float]) -> None:
        super().__init__((len(powers),), support=constraints.simplex)
        self.register_buffer("powers", torch.tensor(powers))

    proper = True

    def forward(self, x):
        return -((self.powers - 1) * x.log()).sum(-1)


def z_of_mean(values: torch.Tensor, truth: float, ess: float) -> float:
    return float(abs(values.mean() - truth) / (values.std() / math.sqrt(ess)))


@pytest.mark.parametrize("seed", [0, 1])
def test_a_product_of_normals_has_the_moments_of_the_closed_form(seed: int) -> None:
    draws = poe.sample(Gauss(0.0) & Gauss(1.0, 2.0), 2000, seed=seed)
    assert draws.x.shape == (2000, 2) and not draws.warnings
    assert z_of_mean(draws.x[:, 0], 0.2, draws.diagnostics.ess_bulk) < 4.5
    assert abs(draws.x.var(0).mean() - 0.8) < 0.8 * 4.5 * math.sqrt(2 / draws.diagnostics.ess_bulk)


def test_a_contrast_is_drawn_like_exact_rejection_draws() -> None:
    a, b = Gauss(0.0), Gauss(1.0, 0.7)
    draws = poe.sample(a - b, 2000, method="chains", seed=0, thin=4)
    exact = but_not(a, b, 2000, torch.Generator().manual_seed(5))
    assert draws.diagnostics.ess_bulk > 1200
    assert ks_pvalue(exact, draws.x) > 1e-4
    assert ks_pvalue(a.sample(2000), draws.x) < 1e-4  # the control: a itself is told apart


@pytest.mark.parametrize(
    ("method", "kernel", "words"),
    [
        (None, None, "importance"),
        ("annealed", None, "annealed"),
        (None, Langevin(), "replica exchange, for chains are slow"),
    ],
)
def test_modes_that_langevin_cannot_connect_come_out_with_their_weights(
    method, kernel, words
) -> None:
    target = poe.mixture([Gauss(-6.0, 0.5), Gauss(6.0, 0.5)], weights=[0.3, 0.7]) & Gauss(
        0.0, 50.0, name="wide"
    )
    draws = poe.sample(target, 2000, method=method, kernel=kernel, seed=0)
    assert words in draws.method
    share = (draws.x[:, 0] > 0).double()
    truth = 0.7  # the wide factor is the same at both modes
    assert z_of_mean(share, truth, draws.diagnostics.ess_bulk) < 4.5


def test_unconnected_modes_without_tempering_are_not_trusted() -> None:
    target = Raw(lambda x: 5 * (x.square().sum(-1) - 16).square() / 16, d=1, name="well")
    start = torch.tensor([[-4.0], [-4.0], [4.0], [4.0]])
    draws = poe.sample(target, 400, seed=0, init=start)
    assert any("chains disagree" in warning for warning in draws.warnings)
    assert "  warnings:\n    - chains disagree" in draws.report()


@pytest.mark.parametrize(("shape_a", "shape_b"), [(3.0, 2.0), (1.5, 2.5)])
def test_positive_supports_against_quadrature(shape_a: float, shape_b: float) -> None:
    target = Positive(shape_a) & Positive(shape_b)
    draws = poe.sample(target, 2000, seed=0)
    density = lambda x: x ** (shape_a + shape_b - 2) * math.exp(-2 * x)  # noqa: E731
    mass = integrate.quad(density, 0, np.inf)[0]
    mean = integrate.quad(lambda x: x * density(x), 0, np.inf)[0] / mass
    assert (draws.x > 0).all()
    assert z_of_mean(draws.x[:, 0], mean, draws.diagnostics.ess_bulk) < 4.5


def test_boxes_against_quadrature() -> None:
    target = Boxed(lambda x: 3 * x[..., 0] + x[..., 0] * x[..., 1] ** 2, [0.0, -1.0], [1.0, 2.0])
    draws = poe.sample(target, 2000, seed=0)
    density = lambda y, x: math.exp(-(3 * x + x * y**2))  # noqa: E731
    mass = integrate.dblquad(density, 0, 1, -1, 2)[0]
    for i, f in enumerate([lambda y, x: x * density(y, x), lambda y, x: y * density(y, x)]):
        truth = integrate.dblquad(f, 0, 1, -1, 2)[0] / mass
        assert z_of_mean(draws.x[:, i], truth, draws.diagnostics.ess_bulk) < 4.5
    assert (draws.x >= torch.tensor([0.0, -1.0])).all() and (
        draws.x <= torch.tensor([1.0, 2.0])
    ).all()


def test_simplexes_against_the_dirichlet() -> None:
    powers = [2.0, 3.0, 4.0]
    draws = poe.sample(OnSimplex(powers), 2000, seed=0)
    assert torch.allclose(draws.x.sum(-1), torch.ones(2000), atol=1e-5)
    for i, power in enumerate(powers):
        assert z_of_mean(draws.x[:, i], power / 9, draws.diagnostics.ess_bulk) < 4.5


def test_same_seed_same_draws_and_another_seed_others() -> None:
    target = Gauss(0.0) & Gauss(0.5)
    first, second, other = (poe.sample(target, 100, seed=s).x for s in (3, 3, 4))
    assert torch.equal(first, second) and not torch.equal(first, other)
    torch.manual_seed(0)
    once = poe.sample(target, 100).x
    torch.manual_seed(0)
    assert torch.equal(once, poe.sample(target, 100).x)


def test_the_law_of_an_unadjusted_kernel_is_flagged() -> None:
    draws = poe.sample(Gauss(0.0), 200, kernel=Langevin(0.3, metropolis=False), seed=0)
    assert not draws.exact and any("unadjusted" in warning for warning in draws.warnings)
    assert "approximate" in draws.report()


def test_improper_targets_and_disjoint_supports_are_refused_with_the_reason() -> None:
    a, b = Gauss(0.0, name="a"), Gauss(1.0, name="b")
    with pytest.raises(
        ValueError, match=r"~a is improper: exp\(-E\) has infinite mass.*prior & ~a"
    ):
        poe.sample(~a)
    left, right = Boxed(lambda x: x.sum(-1), [0.0], [1.0]), Boxed(lambda x: x.sum(-1), [2.0], [3.0])
    with pytest.raises(
        ValueError, match=r"supports of its parts are disjoint .*interval\[0, 1\].*interval\[2, 3\]"
    ):
        poe.sample(left & right)
    with pytest.warns(
        poe.ImproperWarning, match=r"it is unknown whether a \*\* 2 / raw has finite mass"
    ):
        draws = poe.sample(a / Raw(b, proper=None) & a, 100, seed=0)
    assert any("proper is unknown" in warning for warning in draws.warnings)


def test_an_expert_that_fails_somewhere_is_reported() -> None:
    def broken(x: torch.Tensor) -> torch.Tensor:
        return torch.where(x[..., 0] > 1, torch.nan, 0.5 * x.square().sum(-1))

    draws = poe.sample(Raw(broken, name="broken"), 400, seed=0)
    assert draws.x.isfinite().all() and draws.diagnostics.nonfinite > 0
    assert any("an expert fails there" in warning for warning in draws.warnings)
    with pytest.raises(
        ValueError,
        match=r"no starting point of finite energy for nowhere.*\+inf at all of them; init=",
    ):
        poe.sample(Raw(lambda x: x.sum(-1) * math.inf, name="nowhere"), 10)


def test_an_expert_that_fails_where_there_is_no_mass_spoils_nothing() -> None:
    """NaN beyond 6 standard deviations, 1e-9 of the mass: wide starts and hot particles meet it."""

    def broken(x: torch.Tensor) -> torch.Tensor:
        return torch.where(x[..., 0] > 6, torch.nan, 0.5 * x.square().sum(-1))

    wide = Gauss(0.0, sd=5.0) & Raw(lambda x: broken(x) - 0.02 * x.square().sum(-1))
    for method in ("importance", "annealed"):
        draws = poe.sample(wide, 400, method=method, seed=0)
        assert draws.diagnostics.nonfinite > 0 and draws.diagnostics.nonfinite_share < 1e-3
        assert not any("an expert fails" in reason for reason in draws.reasons)


def test_the_part_that_fails_is_named() -> None:
    nanny = Raw(lambda x: x.sum(-1) * math.nan, name="nanny")
    with pytest.raises(ValueError, match="nanny is NaN at 4096 of 4096"):
        poe.sample(Gauss(0.0) & nanny, 100, seed=0)
    half = Raw(lambda x: torch.where(x[..., 0] > 0, 0 * x[..., 0], math.nan), name="half")
    draws = poe.sample(Gauss(0.0) & half, 100, seed=0)
    assert (draws.x[:, 0] > 0).all() and not draws.trusted


@pytest.mark.parametrize(
    "function",
    [
        pytest.param(lambda x: x.sum(-1), marks=pytest.mark.slow),
        lambda x: 0.5 * x.square().sum(-1).log1p(),
    ],
)
def test_what_runs_away_looks_improper(function) -> None:
    with pytest.raises(ValueError, match="it seems improper"):
        poe.sample(Raw(function, proper=True), 100, seed=0)


def test_experts_are_drawn_from_in_eval_mode_and_left_as_they_were() -> None:
    class Noisy(Gauss):
        def __init__(self) -> None:
            super().__init__(0.0)
            self.dropout = torch.nn.Dropout(0.5)

        def log_prob(self, x):
            return super().log_prob(self.dropout(x))

    noisy, other = Noisy(), Gauss(1.0)
    first, second = (poe.sample(noisy - other, 100, seed=0) for _ in range(2))
    assert torch.equal(first.x, second.x) and noisy.training and noisy.dropout.training
    assert first.log_z is not None and abs(first.log_z.value - math.log(0.5)) < 0.5


@pytest.mark.parametrize("method", [None, "importance", "annealed", "chains", "tempered"])
def test_no_draws_one_chain_and_few_draws(method: str | None) -> None:
    target = Gauss(0.0) & Gauss(1.0)
    assert poe.sample(target, 0, method=method).x.shape == (0, 2)
    draws = poe.sample(target, 1, method=method, seed=0)
    assert draws.x.shape == (1, 2) and (
        draws.trusted or method in ("chains", "tempered")
    )  # particles are judged by all of them
    one = poe.sample(target, 50, chains=1, method=method, seed=0)
    assert one.x.shape == (50, 2) and any("two chains" in warning for warning in one.warnings)
    assert isinstance(one.report(), str)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"draws": -1}, "draws is a whole number"),
        ({"draws": 2.5}, "draws is a whole number"),
        ({"chains": 0}, "chains is a whole number"),
        ({"shards": 5, "chains": 4}, "5 shards need at least as many chains"),
        ({"init": torch.zeros(2)}, r"init has shape \(2,\)"),
        ({"warmup": 0}, "give the kernel one, or some warmup"),
        ({"warmup": -1}, "warmup is a whole number"),
        ({"seed": "x"}, "seed is a whole number"),
        ({"method": "annealed", "warmup": 5}, "init= and warmup= are for chains"),
        ({"checkpoint": "run"}, "needs a seed="),
    ],
)
def test_arguments_that_contradict_each_other_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        poe.sample(Gauss(0.0) & Gauss(1.0), **options)
    with pytest.raises(TypeError, match="poe.as_energy"):
        poe.sample(torch.nn.Linear(2, 1))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"such as poe.Langevin\(\), not 'langevin'"):
        poe.sample(Gauss(0.0) & Gauss(1.0), kernel="langevin")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="method='exact' uses no kernel"):
        poe.sample(Gauss(0.0) | Gauss(1.0), method="exact", kernel=Langevin())


def test_small_discrete_spaces_are_enumerated_exactly() -> None:
    class Bits(poe.Energy):
        def __init__(self) -> None:
            super().__init__((3,), support=constraints.boolean)

        def forward(self, x):
            return x[..., 0] * x[..., 1] - 0.7 * x[..., 2] + 0.2 * x.sum(-1)

    draws = poe.sample(Bits(), 8000, seed=0)
    states = torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * 3)
    p = (-Bits()(states)).softmax(0)
    assert abs(float(draws.log_z) - (-Bits()(states)).logsumexp(0).item()) < 1e-5
    counts = torch.stack([(draws.x == state).all(-1).sum() for state in states])
    chi2 = ((counts - 8000 * p) ** 2 / (8000 * p)).sum()
    assert chi2 < 24.3  # 1 in 1,000 with 7 degrees of freedom


def test_drawing_leaves_learnable_parameters_learnable() -> None:
    power = torch.nn.Parameter(torch.tensor(0.5))
    target = Gauss(0.0) ** power & Gauss(1.0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", poe.ImproperWarning)
        poe.sample(target, 10, seed=0)
    assert power.requires_grad


def test_an_even_law_on_a_box_is_trusted() -> None:
    low, high = (
        poe.as_energy(torch.distributions.Uniform(torch.full((2,), a), torch.full((2,), a + 2.0)))
        for a in (0.0, 1.0)
    )
    draws = poe.sample(low & high, 1000, seed=0)
    assert draws.trusted and bool(((draws.x >= 1) & (draws.x <= 2)).all())
    assert abs(float(draws.x.mean()) - 1.5) < 4 * 0.289 / math.sqrt(2 * draws.diagnostics.ess_bulk)


@pytest.mark.filterwarnings("ignore::poe.ImproperWarning")
def test_matrices_are_resampled_in_their_own_coordinates() -> None:
    corner = poe.as_energy(torch.distributions.LKJCholesky(3, 1.0))
    draws = poe.sample(corner**2, 200, method="importance", seed=0)
    assert draws.x.shape == (200, 3, 3) and bool((draws.x.square().sum(-1) - 1).abs().max() < 1e-4)


def test_whole_numbers_of_numpy_and_no_draws_at_all() -> None:
    a = Gauss(0.0)
    assert torch.equal(poe.sample(a, np.int64(5), seed=np.int64(3)).x, poe.sample(a, 5, seed=3).x)  # type: ignore[arg-type]
    none = poe.sample(a, 0)
    assert none.warnings == ("there are no draws",) and not none.trusted
    with pytest.raises(TypeError, match="init is a tensor"):
        poe.sample(a, 5, kernel=poe.Langevin(), init=[[0.0, 0.0]])  # type: ignore[arg-type]
    with pytest.raises(
        ValueError, match="nothing can be drawn on device='gpu' here: Expected one of cpu"
    ):
        poe.sample(experts.Normal([0.0], [1.0]), 10, device="gpu")
    with pytest.raises(ValueError, match="seed is a whole number"):
        poe.log_z(a & Raw(lambda x: (x**4).sum(-1)), seed=-1)


def test_no_mass_and_mass_without_bound_are_told_apart() -> None:
    one, other = (
        experts.Categorical(torch.tensor([row])) for row in ([0.0, -math.inf], [-math.inf, 0.0])
    )
    with pytest.raises(ValueError, match="wherever one of its factors has mass, another has none"):
        poe.sample(one & other)
    endless = poe.as_energy(
        lambda x: torch.where(x.sum(-1) > 1, -math.inf, 0.0),
        event_shape=(2,),
        support=constraints.independent(constraints.boolean, 1),
    )
    for act in (poe.sample, poe.log_z):
        with pytest.raises(ValueError, match="-inf, an unbounded density, at 1 of 4 points"):
            act(endless)
    with pytest.raises(ValueError, match=r"improper.*prior & poe.on"):
        poe.sample(poe.on(experts.Normal(0.0, 1.0), [0], (2,)))
