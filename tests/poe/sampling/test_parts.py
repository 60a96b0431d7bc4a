"""Mixtures drawn part by part."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

import experts
import poe
from experts import Denoiser, NoiseSchedule
from poe import Estimate
from poe.diagnostics.raw import shares_ess
from poe.sampling.branching import unmet
from poe.sampling.job import Job, Space
from poe.spaces.branches import branches
from poe.spaces.structure import Structure
from tests.poe.targets import Raw


def test_parts_of_a_mixture_have_their_shares_whatever_lies_between():
    """A part that no other part's draws come near; the shares are those of the log Z, not of what
    is found."""
    a = poe.as_energy(torch.distributions.Normal(torch.zeros(1), torch.ones(1)))
    far = poe.normalize(
        Raw(lambda x: (x - 40).square().sum(-1) / 2, 1, name="far"),
        log_z=poe.Estimate(math.log(2 * math.pi) / 2),
    )
    mixed = poe.mixture([a, far], weights=[0.3, 0.7])
    assert poe.plan(mixed).method == "parts" and "shares" in str(poe.plan(mixed))
    draws = poe.sample(mixed, 1000, seed=0)
    share = float((draws.x > 20).double().mean())
    assert abs(share - 0.7) <= 1 / 1000
    assert draws.trusted and draws.log_z == poe.Estimate(0.0, 0.0)
    near, other = draws.x[draws.x < 20], draws.x[draws.x > 20]
    assert (
        abs(float(near.mean())) < 5 / math.sqrt(len(near)) and abs(float(other.mean()) - 40) < 0.5
    )
    assert torch.equal(draws.x, poe.sample(mixed, 1000, seed=0).x)
    with pytest.raises(ValueError, match="poe.normalize gives parts"):
        poe.plan(a & Raw(lambda x: (x - 40).square().sum(-1) / 2, 1), method="parts")


def test_a_known_log_z_that_draws_miss_is_said():
    a = poe.as_energy(torch.distributions.Normal(torch.zeros(1), torch.ones(1)))
    far = poe.normalize(
        Raw(lambda x: (x - 40).square().sum(-1) / 2, 1, name="far"),
        log_z=poe.Estimate(math.log(2 * math.pi) / 2),
    )
    draws = poe.sample(a | far, 400, method="annealed", seed=0)
    share = float((draws.x > 20).double().mean())
    assert abs(share - 0.5) < 0.15 or any(
        "log Z is known to be" in reason for reason in draws.reasons
    ), draws.report()


def test_parts_of_a_mixture_have_streams_of_their_own():
    def part(place: float) -> poe.Energy:
        net = lambda u, t: torch.full_like(u, place)  # noqa: E731
        made = Denoiser(
            net,
            (1,),
            schedule=NoiseSchedule.exploding(1.0, 5.0),
            predicts="denoised",
            energy="denoised",
            bounded=True,
        )
        return poe.normalize(made, log_z=poe.Estimate(math.log(2 * math.pi) / 2))

    both = poe.mixture([part(0.0), part(10.0)], weights=[0.5, 0.5])
    nested = poe.mixture(
        [part(-10.0), poe.mixture([part(0.0), part(10.0)], weights=[0.5, 0.5]), part(20.0)],
        weights=[0.5, 0.25, 0.25],
    )
    pieces = []
    for energy, seed in ((both, 0), (both, 1), (nested, 2)):
        x = poe.sample(energy, 800, seed=seed).x.flatten()
        pieces += [x[(x - place).abs() < 5] - place for place in (-10.0, 0.0, 10.0, 20.0)]
    pieces = [piece for piece in pieces if len(piece)]
    for i, a in enumerate(pieces):
        for b in pieces[:i]:
            assert (a[:, None] - b).abs().min(1).values.lt(1e-6).double().mean() < 0.05


# ---- branches whose log Z are unknown


class Peak(poe.Density):
    """N(loc, sd²) over one number."""

    def __init__(self, loc: float, sd: float, name: str) -> None:
        super().__init__((1,), name=name)
        self.loc, self.sd = loc, sd

    @property
    def bounded(self) -> bool:
        return True

    def log_prob(self, x: torch.Tensor) -> torch.Tensor:  # (*batch, 1) -> (*batch)
        z = (x - self.loc) / self.sd
        return (-0.5 * z**2 - math.log(self.sd) - 0.5 * math.log(2 * math.pi)).sum(-1)

    def sample(self, n, *, generator=None) -> torch.Tensor:
        shape = (n,) if isinstance(n, int) else tuple(n)
        return self.loc + self.sd * torch.randn(*shape, 1, generator=generator)


def cubic(x: torch.Tensor) -> torch.Tensor:
    """A map without an inverse."""
    return x**3 - 2 * x


def masses(energies: list[poe.Energy], points: int = 40_001, end: float = 8.0) -> torch.Tensor:
    """Z of densities over one number, by the trapezoidal rule."""
    x = torch.linspace(-end, end, points, dtype=torch.float64).unsqueeze(-1)
    return torch.stack([(-energy(x)).exp().sum() for energy in energies]) * (2 * end / (points - 1))


def check_shares(draws: poe.Draws, branches: list[poe.Energy], exact: torch.Tensor) -> None:
    """Shares within .02 + 3 standard errors at the reported ESS, log Z within .03 + 3 errors."""
    with torch.no_grad():
        found = torch.stack([-energy(draws.x) for energy in branches]).softmax(0).mean(1)
    shares, d = exact / exact.sum(), draws.diagnostics
    size = min(d.ess_bulk, d.ess_tail)
    allowed = 0.02 + 3 * (shares * (1 - shares) / size).sqrt()
    assert size >= 300 and bool(((found - shares).abs() <= allowed).all()), (found, shares)
    assert draws.log_z is not None
    gap = abs(draws.log_z.value - float(exact.sum().log()))
    assert gap < 0.03 + 3 * draws.log_z.standard_error


@pytest.mark.parametrize("method", [None, "parts"])
def test_narrow_parts_seen_through_a_map_have_their_shares(method: str | None) -> None:
    """Roots of f(x) = 4, -1, .3 are one, three and three; slopes differ, so do shares."""
    prior = Peak(0.0, 1.5, "prior")
    parts = [Peak(4.0, 0.02, "a"), Peak(-1.0, 0.02, "b"), Peak(0.3, 0.01, "c")]
    whole = prior & (parts[0] | parts[1] | parts[2]) @ cubic
    apart = [prior & part @ cubic for part in parts]
    draws = poe.sample(whole, 1000, seed=0, method=method)
    assert draws.trusted, draws.report()
    check_shares(draws, apart, masses(apart))
    if method == "parts":
        assert "each branch" in draws.method and draws.search is not None
        again = poe.sample(whole, 1000, seed=0, method=method)
        assert torch.equal(draws.x, again.x) and draws.log_z == again.log_z


def test_log_z_is_the_sum_over_branches() -> None:
    prior, parts = Peak(0.0, 1.5, "prior"), [Peak(4.0, 0.1, "a"), Peak(-1.0, 0.1, "b")]
    whole = poe.shift(prior & poe.mixture(parts, [0.2, 0.8]) @ cubic, 3.0)
    exact = float(masses([whole]).log())
    found = poe.log_z(whole, method="parts", seed=1)
    assert found.standard_error > 0
    assert abs(found.value - exact) < 0.01 + 4 * found.standard_error
    one = Peak(0.0, 1.0, "one") & poe.on(Peak(1.0, 1.0, "two"), [0], (1,))
    with pytest.raises(ValueError, match=r"has no `\|`"):
        poe.log_z(one, method="parts")


def test_an_expert_of_several_branches_and_nested_ones() -> None:
    a, b, c = Peak(-2.0, 0.7, "a"), Peak(1.0, 0.4, "b"), Peak(2.0, 1.0, "c")
    whole = Raw(lambda x: x.square().sum(-1) / 18, 1, name="wide") & (a | (b & (a | c))) & (c | a)
    assert len(branches(whole) or []) == 6
    apart = [e for _, e in branches(whole) or []]
    check_shares(poe.sample(whole, 1000, seed=0, method="parts"), apart, masses(apart))


def test_a_branch_that_is_nowhere_finite_has_share_0() -> None:
    """What is nowhere finite cannot be shown to be empty: trust depends on it."""
    wall = Raw(lambda x: torch.full_like(x[..., 0], math.inf), 1, name="wall")
    hill = Raw(lambda x: (x - 3).square().sum(-1) * 2, 1, name="hill")
    draws = poe.sample(hill | wall, 400, method="parts", seed=0)
    assert abs(float(draws.x.mean()) - 3) < 5 * 0.5 / math.sqrt(400)
    assert draws.trusted and "wall has no mass" in draws.verdict
    assert draws.log_z is not None
    exact = math.log(math.pi / 2) / 2
    assert abs(draws.log_z.value - exact) < 0.01 + 4 * draws.log_z.standard_error
    with pytest.raises(ValueError, match="no point of finite energy"):
        poe.sample(wall & Peak(0.0, 1.0, "p") | wall, 10, method="parts", seed=0)


@pytest.mark.parametrize("method", [None, "parts"])
def test_branches_of_disjoint_supports(method: str | None) -> None:
    left, right = (
        poe.as_energy(torch.distributions.Uniform(torch.tensor([low]), torch.tensor([low + 1.0])))
        for low in (0.0, 2.0)
    )
    tilt = Raw(lambda x: x.sum(-1), 1, name="tilt")
    whole = (left & tilt) | (right & tilt)
    draws = poe.sample(whole, 2000, method=method, seed=0)
    # ∫_0^1 e^-x over ∫_2^3 e^-x is e²
    share = float((draws.x > 1.5).double().mean())
    exact = 1 / (1 + math.e**2)
    assert abs(share - exact) < 0.01 and draws.trusted
    z = math.log((1 - math.exp(-1)) * (1 + math.exp(-2)))
    assert draws.log_z is not None and abs(draws.log_z.value - z) < 0.02
    assert abs(poe.log_z(whole, method=method, seed=0).value - z) < 0.02


def test_a_negligible_branch_spoils_nothing() -> None:
    """Chains of one chain are never trusted, but this branch has no draw."""
    hill = Raw(lambda x: (x - 3).square().sum(-1) * 2, 1, name="hill")
    light = Raw(lambda x: x.square().sum(-1) + 60, 1, name="light")
    draws = poe.sample(hill | light, 400, method="parts", seed=0)
    assert draws.trusted and float(draws.x.min()) > 0
    assert poe.sample(light | hill, 400, method="parts", seed=3).trusted


def test_more_branches_than_are_told_apart_follow_other_methods() -> None:
    peaks = [Raw(lambda x, m=m: (x - m).square().sum(-1), 1, name=f"r{m}") for m in range(65)]
    many = poe.mixture(peaks)
    assert "parts" not in poe.plan(many).methods
    with pytest.raises(ValueError, match="at most 64 branches"):
        poe.plan(many, method="parts")
    assert "parts" in poe.plan(poe.mixture(peaks[:64])).methods


def test_discrete_branches_have_their_shares() -> None:
    """Two magnets of 30 spins, all up and all down, in a field: no single flip leads from one to
    the other. Z of each is a sum over the number of spins up."""
    n = 30

    def magnet(sign: float) -> poe.Energy:
        up = experts.Bernoulli(torch.full((n,), 0.5))
        pull = lambda x: 40 * (sign - (2 * x.mean(-1) - 1)).square()  # noqa: E731
        return up & poe.as_energy(pull, event_shape=(n,), support=up.support)

    field = experts.Bernoulli(torch.full((n,), 0.52))
    whole = field & (magnet(1.0) | magnet(-1.0))
    k = torch.arange(n + 1, dtype=torch.float64)
    log_choose = math.lgamma(n + 1) - (k + 1).lgamma() - (n - k + 1).lgamma()
    log_field = k * math.log(0.52) + (n - k) * math.log(0.48) + n * math.log(0.5)
    z = [
        (log_choose + log_field - 40 * (sign - (2 * k / n - 1)).square()).logsumexp(0)
        for sign in (1.0, -1.0)
    ]
    exact = torch.stack(z)
    draws = poe.sample(whole, 1000, method="parts", seed=0)
    share = float((draws.x.mean(-1) > 0.5).double().mean())
    right = float(exact.softmax(0)[0])
    size = min(draws.diagnostics.ess_bulk, 1000)
    assert abs(share - right) < 0.02 + 3 * math.sqrt(right * (1 - right) / size)
    assert draws.log_z is not None
    gap = abs(draws.log_z.value - float(exact.logsumexp(0)))
    assert gap < 0.03 + 4 * draws.log_z.standard_error


# ---- the errors of shares


def test_effective_draws_of_two_shares_are_known_in_closed_form() -> None:
    """Var s_1 = (s_1 s_2)² (e_1² + e_2²), and n draws have s_1 s_2 / n."""
    s, e = (0.3, 0.7), (0.05, 0.02)
    assert math.isclose(shares_ess(s, e), 1 / (s[0] * s[1] * (e[0] ** 2 + e[1] ** 2)), rel_tol=1e-9)
    assert shares_ess((0.5, 0.5), (0.0, 0.0)) == math.inf
    assert shares_ess((1.0,), (0.3,)) == math.inf  # one branch has all of the mass


def test_effective_draws_of_shares_are_the_least_over_all_means() -> None:
    s = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
    e = torch.tensor([0.1, 0.02, 0.05, 0.01], dtype=torch.float64)
    m = torch.randn(20_000, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    m = m - (m * s).sum(1, keepdim=True)
    size = (s * m**2).sum(1) / ((s * e * m) ** 2).sum(1)
    least = shares_ess(s.tolist(), e.tolist())
    assert least <= float(size.min()) < 1.05 * least
    # against shares of log Z with normal errors: the variance of a mean of branches
    logs = s.log() + e * torch.randn(20_000, 4, generator=torch.Generator().manual_seed(1)).double()
    means = m[size.argmin()]
    measured = (logs.softmax(1) * means).sum(1).var()
    assert abs(float(measured / ((s * e * means) ** 2).sum()) - 1) < 0.05  # sd of a variance: .01


# ---- draws of the whole that lack a branch


def test_a_branch_that_draws_lack_is_said() -> None:
    prior = Peak(0.0, 1.5, "prior")
    a, b = Peak(4.0, 0.02, "a"), Peak(-1.0, 0.02, "b")
    whole = prior & (a | b) @ cubic
    structure = Structure.of(whole)
    job = Job(space=Space(structure, 0, True), draws=1000)
    draws = poe.sample(whole, 1000, seed=0, method="parts")
    assert unmet(draws, job).warnings == draws.warnings
    of_b = (b(cubic(draws.x)) < a(cubic(draws.x))).nonzero().flatten()
    of_one = Estimate(float(masses([prior & b @ cubic]).log()))
    lacking = replace(draws, x=draws.x[of_b], log_z=of_one)
    (reason,) = set(unmet(lacking, job).warnings) - set(draws.warnings)
    assert "prior & a @ cubic has no draws" in reason and 'method="parts"' in reason
