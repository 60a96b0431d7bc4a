"""Targets of `bench_modes.py`: black boxes and expressions whose shares of modes, means, tails and
log Z are known in closed form or by quadrature.

The share of component k of a mixture is tested by its responsibility r_k(x) = w_k p_k(x) / p(x),
for E r_k = w_k exactly, however far the components overlap, and var r_k <= w_k (1 - w_k).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from scipy.special import gammaln
from scipy.stats import f as f_law
from scipy.stats import t as t_law
from torch import Tensor
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

import poe
from peers import rotated
from poe.algebra import support as sets
from poe.algebra.energy import Energy
from targets import LOG_2PI, Opaque, funnel

Evaluate = Callable[[Tensor], Tensor]  # (n, d) -> (n, k)
LIGHTEST_SHARE = 0.01  # of a mode whose share is judged: a draw or two is no normal error
SHARE_SLACK = 0.02  # of a share of a mode; of a mean, in units of its standard deviation


@dataclass(frozen=True)
class Figures:
    """Functions of x whose expectations are known: (k) exact values, (k) standard deviations under
    the target (upper bounds for shares), and (k) errors that are allowed beside the Monte Carlo
    error."""

    evaluate: Evaluate
    exact: Tensor
    sd: Tensor
    slack: Tensor
    shares: bool = True  # of modes, so that the mean over seeds is held to the slack alone


@dataclass(frozen=True)
class Case:
    """A target by name; its figures and log Z, None where they are not known."""

    name: str
    make: Callable[[], Energy]
    figures: Figures | None = None
    log_z: float | None = None


def shares(evaluate: Evaluate, exact: Tensor, slack: float = SHARE_SLACK) -> Figures:
    """Figures that are shares: indicators or responsibilities."""
    exact = exact.double()
    return Figures(evaluate, exact, (exact * (1 - exact)).sqrt(), torch.full_like(exact, slack))


def moments(standardise: Evaluate, d: int) -> Figures:
    """Of z = standardise(x), N(0, I) under the target: each mean 0, and the mean 1 of z²."""

    def evaluate(x: Tensor) -> Tensor:
        z = standardise(x.double())
        return torch.cat([z, z.square()], -1)

    exact = torch.cat([torch.zeros(d), torch.ones(d)]).double()
    sd = torch.cat([torch.ones(d), torch.full((d,), math.sqrt(2))]).double()
    return Figures(evaluate, exact, sd, SHARE_SLACK * sd, shares=False)


# ---- mixtures of normals with diagonal covariances


class Normals:
    """Σ w_k N(m_k, diag s_k²): (k) log weights, (k, d) means and standard deviations, float64."""

    def __init__(self, log_weights: Tensor, means: Tensor, sds: Tensor) -> None:
        self.means, self.sds = means.double(), sds.double().expand(means.shape)
        self.log_weights = log_weights.double()
        self.constants = self.log_weights - (self.sds.log() + LOG_2PI / 2).sum(1)

    def logs(self, x: Tensor) -> Tensor:  # (*batch, d) -> (*batch, k)
        z = (x.unsqueeze(-2) - self.means.to(x)) / self.sds.to(x)
        return self.constants.to(x) - z.square().sum(-1) / 2

    def energy(self, x: Tensor) -> Tensor:  # (*batch, d) -> (*batch)
        return -self.logs(x).logsumexp(-1)

    def responsibilities(self, x: Tensor) -> Tensor:  # (n, d) -> (n, k)
        return torch.cat([self.logs(part.double()).softmax(-1) for part in x.split(5000)])

    def case(self, name: str) -> Case:
        """A black box of the mixture, normalised."""
        d = self.means.shape[1]
        known = shares(self.responsibilities, self.log_weights.exp())
        return Case(name, lambda: Opaque(self.energy, d, name="mixture"), known, 0.0)


def normals(weights: Sequence[float], means: Tensor, sds: Sequence[float]) -> Normals:
    return Normals(torch.tensor(weights).double().log(), means, torch.tensor(sds).unsqueeze(1))


def two_modes(d: int) -> Case:
    """2/3 N(-2/3·1, .05 I) + 1/3 N(4/3·1, .05 I) (Grenioux, Noble, Gabrié and Durmus 2024)."""
    means = torch.tensor([[-2 / 3], [4 / 3]]).double().expand(2, d)
    return normals([2 / 3, 1 / 3], means, [math.sqrt(0.05)] * 2).case(f"two_modes-{d}")


def narrow(d: int, away: float, sd: float) -> Case:
    """N(0, I) and N(away · 1/√d, sd² I), half of the mass each."""
    means = torch.stack([torch.zeros(d), torch.full((d,), away / math.sqrt(d))])
    words = f"{away:g} sd away" if away else "concentric"
    return normals([0.5, 0.5], means, [1.0, sd]).case(f"broad and {sd:g}, {words}, d {d}")


def pair(d: int, sd: float, distance: float) -> Case:
    """Two equal normals, one at the origin, the other so far along the first axis."""
    means = torch.zeros(2, d)
    means[1, 0] = distance
    return normals([0.5, 0.5], means, [sd, sd]).case(f"pair {d}-D, sd {sd:g} at {distance:g}")


def four_modes() -> Case:
    """Four normals of sd 1 and weights .4, .3, .2, .1 in 16 dimensions, 6 ... 12 sd apart."""
    means = 2.5 * torch.randn(4, 16, generator=torch.Generator().manual_seed(16))
    return normals([0.4, 0.3, 0.2, 0.1], means, [1.0] * 4).case("4 modes 16-D")


# ---- random mixtures

WIDE_RATIO, NARROW_RATIO, RATIO_DIMENSION = 5.0, 2.0, 32
NEAREST, FARTHEST = 3.0, 40.0  # mean scales between two centres
LIGHTEST, HEAVIEST = 0.05, 0.9


def random_mixture(index: int) -> Case:
    """Member `index` of a family: K uniform in 2 ... 10; d log-uniform in 2 ... 64; weights in
    .05 ... .9; scales within 1:5 to d = 32, 1:2 beyond, in every second member of each coordinate
    by itself; pairwise distances of centres within 3 ... 40 mean scales; the mean scale
    log-uniform in 10^-.5 ... 10^.5; the first centre some three mean scales from the origin."""
    g = torch.Generator().manual_seed(50_000 + index)
    u = lambda: float(torch.rand((), generator=g, dtype=torch.float64))  # noqa: E731
    k, d = 2 + int(9 * u()), round(2 * 32 ** u())
    ratio = WIDE_RATIO if d <= RATIO_DIMENSION else NARROW_RATIO
    each = (k, d if index % 2 else 1)
    sds = 10 ** (u() - 0.5) * ratio ** (torch.rand(each, generator=g, dtype=torch.float64) - 0.5)
    means = _centres(k, d, float(sds.mean()), g)
    law = Normals(_weights(k, g).log(), means, sds)
    return law.case(f"mixture {index}: K {k}, d {d}")


def _weights(k: int, g: torch.Generator) -> Tensor:
    while True:
        raw = -torch.rand(k, generator=g, dtype=torch.float64).log()
        w = LIGHTEST + (1 - LIGHTEST * k) * raw / raw.sum()
        if w.max() <= HEAVIEST:
            return w


def _centres(k: int, d: int, scale: float, g: torch.Generator) -> Tensor:
    centres = 3 * scale / math.sqrt(d) * torch.randn(1, d, generator=g, dtype=torch.float64)
    while len(centres) < k:
        parent = centres[int(torch.randint(len(centres), (), generator=g))]
        far = NEAREST * (FARTHEST / NEAREST) ** float(torch.rand((), generator=g))
        way = torch.randn(d, generator=g, dtype=torch.float64)
        new = parent + far * scale * way / way.norm()
        apart = (centres - new).norm(dim=1) / scale
        if apart.min() >= NEAREST and apart.max() <= FARTHEST:
            centres = torch.cat([centres, new.unsqueeze(0)])
    return centres


# ---- products of torch mixtures


def torch_mixture(weights: Tensor, means: Tensor, sd: float) -> MixtureSameFamily:
    return MixtureSameFamily(
        Categorical(weights), Independent(Normal(means, torch.full_like(means, sd)), 1)
    )


def product_of(name: str, first: MixtureSameFamily, second: MixtureSameFamily) -> Case:
    """The product of two mixtures of isotropic normals is one of K · L of them: with s², t² the
    variances, N(m; n, (s² + t²) I) weighs N((t² m + s² n)/(s² + t²), s² t²/(s² + t²) I)."""
    w, m, s = _read(first)
    v, n, t = _read(second)
    total = s.square().unsqueeze(1) + t.square().unsqueeze(0)  # (k, l, d)
    gaps = (m.unsqueeze(1) - n.unsqueeze(0)).square() / total
    logs = w.log().unsqueeze(1) + v.log() - (gaps + total.log() + LOG_2PI).sum(-1) / 2
    means = (t.square() * m.unsqueeze(1) + s.square().unsqueeze(1) * n) / total
    sds = s.unsqueeze(1) * t / total.sqrt()
    log_z = float(logs.flatten().logsumexp(0))
    kept = logs.flatten() > log_z - 20
    law = Normals(logs.flatten()[kept] - log_z, means.flatten(0, 1)[kept], sds.flatten(0, 1)[kept])
    notable = law.log_weights > math.log(LIGHTEST_SHARE)
    known = shares(lambda x: law.responsibilities(x)[:, notable], law.log_weights[notable].exp())
    return Case(name, lambda: poe.as_energy(first) & poe.as_energy(second), known, log_z)


def _read(law: MixtureSameFamily) -> tuple[Tensor, Tensor, Tensor]:
    base: Any = law.component_distribution.base_dist  # pyright: ignore[reportAttributeAccessIssue]
    return law.mixture_distribution.probs.double(), base.loc.double(), base.scale.double()


def crossed(sd: float) -> Case:
    """Modes at x = -.25 in one factor and x = .25 in the other, y in {.5, 0, -.5}: three equal
    modes at x = 0."""
    y = torch.tensor([0.5, 0.0, -0.5])
    left, right = (torch.stack([torch.full((3,), x), y], 1) for x in (-0.25, 0.25))
    third = torch.ones(3) / 3
    first, second = torch_mixture(third, left, sd), torch_mixture(third, right, sd)
    return product_of(f"torch mixtures, sd {sd:g}", first, second)


def six(sd: float) -> Case:
    """Both factors have all six modes x = ∓.25, y in {.5, 0, -.5}, of weights 1 ... 6 and 6 ... 1
    to the half."""
    places = torch.cartesian_prod(torch.tensor([-0.25, 0.25]), torch.tensor([0.5, 0.0, -0.5]))
    w = torch.arange(1.0, 7.0).sqrt()
    w = w / w.sum()
    return product_of(
        f"torch mixtures, six modes, sd {sd:g}",
        torch_mixture(w, places, sd),
        torch_mixture(w.flip(0), places, sd),
    )


def five_by_five() -> Case:
    """Two mixtures of five normals of sd .7 and .5 in four dimensions."""
    g = torch.Generator().manual_seed(4)
    first, second = (2 * torch.randn(5, 4, generator=g) for _ in range(2))
    fifth = torch.ones(5) / 5
    laws = torch_mixture(fifth, first, 0.7), torch_mixture(fifth, second, 0.5)
    return product_of("product of 5 and 5, 4-D", *laws)


# ---- expressions with their modes in them

CENTRES = torch.tensor([[1.0, 0.5], [-1.0, 1.5], [0.0, -1.0]])
WIDTHS = (0.03, 0.02, 0.05)


def bent(x: Tensor) -> Tensor:  # (*batch, d) -> (*batch, 2)
    a, b = x[..., 0], x[..., 1]
    return torch.stack([a + 0.5 * (2 * b).sin(), b + a.square() / 4], -1)


def shell(x: Tensor) -> Tensor:  # (*batch, 4) -> (*batch, 2)
    a, rest = x[..., 0], x[..., 1:]
    return torch.stack([a + a**3 / 3, (rest.square().sum(-1) + 1e-12).sqrt()], -1)


SHELLS = torch.tensor([[1.0, 1.5], [-2.0, 0.8], [0.2, 3.0]])


def branches(name: str, f: Evaluate, centres: Tensor, masses: Tensor, d: int) -> Case:
    """prior & (a | b | c) @ f with prior N(0, I) in d dimensions and N(centre, width² I) of f(x);
    (3) log masses of the branches."""
    pairs = zip(centres, WIDTHS, strict=True)
    parts = [(centre, torch.full_like(centre, width)) for centre, width in pairs]

    def make() -> Energy:
        prior = poe.as_energy(Normal(torch.zeros(d), 1.0))
        a, b, c = (poe.as_energy(Normal(*part)) for part in parts)
        if d == 2:
            return prior & (a | b | c) @ f
        return prior & poe.pullback(a | b | c, f, (d,))

    def responsibilities(x: Tensor) -> Tensor:
        y = f(x.double())
        return _part_logs(y, centres).softmax(-1)

    log_z = float(masses.logsumexp(0))
    return Case(name, make, shares(responsibilities, (masses - log_z).exp()), log_z)


def _part_logs(y: Tensor, centres: Tensor) -> Tensor:  # (*batch, 2) -> (*batch, 3)
    s = torch.tensor(WIDTHS, dtype=torch.float64)
    far = (y.unsqueeze(-2) - centres.double()).square().sum(-1)
    return -far / (2 * s.square()) - 2 * s.log() - LOG_2PI


@cache
def bent_masses() -> Tensor:  # -> (3)
    """log ∫ N(x; 0, I) N(f(x); centre, width² I) dx by the midpoint rule; h is a fifth of the
    smallest width, at which the rule's error on a normal is exp(-2 π² 5²)."""
    h = min(WIDTHS) / 5
    side = torch.arange(-5.0, 5.0, h, dtype=torch.float64) + h / 2
    sums = []
    for part in side.split(100):
        x = torch.cartesian_prod(part, side)
        prior = -x.square().sum(-1) / 2 - LOG_2PI
        sums.append((prior.unsqueeze(-1) + _part_logs(bent(x), CENTRES)).logsumexp(0))
    return torch.stack(sums).logsumexp(0) + 2 * math.log(h)


@cache
def shell_masses() -> Tensor:  # -> (3)
    """The same where f(x) = (a + a³/3, |rest|): a product of two integrals over a line, of a under
    N(0, 1) and of |rest| under chi with 3 degrees of freedom."""
    h = min(WIDTHS) / 40
    a = torch.arange(-6.0, 6.0, h, dtype=torch.float64) + h / 2
    r = torch.arange(0.0, 8.0, h, dtype=torch.float64) + h / 2
    s = torch.tensor(WIDTHS, dtype=torch.float64)
    centres = SHELLS.double()

    def integral(log_prior: Tensor, y: Tensor, m: Tensor) -> Tensor:
        logs = -(y.unsqueeze(-1) - m).square() / (2 * s.square()) - s.log() - LOG_2PI / 2
        return (log_prior.unsqueeze(-1) + logs).logsumexp(0) + math.log(h)

    line = integral(-a.square() / 2 - LOG_2PI / 2, a + a**3 / 3, centres[:, 0])
    chi = math.log(math.sqrt(2 / math.pi)) + 2 * r.log() - r.square() / 2
    return line + integral(chi, r, centres[:, 1])


def expressions() -> list[Case]:
    bent_log = bent_masses()
    return [
        branches("prior & (a | b | c) @ f, 2-D", bent, CENTRES, bent_log, 2),
        branches("prior & (a | b | c) @ f, 8-D", bent, CENTRES, bent_log, 8),
        branches("prior & (a | b | c) @ f, shells in 4-D", shell, SHELLS, shell_masses(), 4),
    ]


# ---- heavy tails

TAILS = (10.0, 30.0)


def student(d: int = 5, nu: float = 2.0) -> Case:
    """The multivariate t; |x|²/d is F with (d, ν) degrees of freedom. Shares of |x| beyond 10 and
    30."""

    def energy(x: Tensor) -> Tensor:
        return (nu + d) / 2 * (x.square().sum(-1) / nu).log1p()

    beyond = torch.tensor(TAILS, dtype=torch.float64)
    exact = torch.from_numpy(f_law.sf(beyond.numpy() ** 2 / d, d, nu))
    log_z = float(gammaln(nu / 2) - gammaln((nu + d) / 2)) + d / 2 * math.log(nu * math.pi)
    known = shares(lambda x: (x.double().norm(dim=-1, keepdim=True) > beyond).double(), exact, 0.0)
    return Case("multivariate t(2), d 5", lambda: Opaque(energy, d, name="t"), known, log_z)


def students(d: int = 5, nu: float = 2.0) -> Case:
    """Independent t(2); shares of draws with some |x_i| beyond 10 and 30."""

    def energy(x: Tensor) -> Tensor:
        return (nu + 1) / 2 * (x.square() / nu).log1p().sum(-1)

    beyond = torch.tensor(TAILS, dtype=torch.float64)
    exact = torch.from_numpy(1 - (1 - 2 * t_law.sf(beyond.numpy(), nu)) ** d)
    each = float(gammaln(nu / 2) - gammaln((nu + 1) / 2)) + math.log(nu * math.pi) / 2
    known = shares(
        lambda x: (x.double().abs().amax(-1, keepdim=True) > beyond).double(), exact, 0.0
    )
    return Case("five independent t(2)", lambda: Opaque(energy, d, name="ts"), known, d * each)


# ---- the centred eight schools

EFFECTS = torch.tensor([28.0, 8, -3, 7, -1, 1, 18, 12], dtype=torch.float64)
ERRORS = torch.tensor([15.0, 10, 16, 11, 9, 11, 10, 18], dtype=torch.float64)
NECK, MU_SD, TAU_SCALE = 0.3, 5.0, 5.0


class Stated(Opaque):
    """A black box in a stated precision."""

    def __init__(self, function: Evaluate, d: int, dtype: torch.dtype, **options) -> None:
        super().__init__(function, d, **options)
        self.register_buffer("like", torch.zeros((), dtype=dtype))


def schools(form: str, dtype: torch.dtype) -> Case:
    """y_i ~ N(theta_i, s_i²), theta_i ~ N(mu, tau²), mu ~ N(0, 5²), tau ~ half-Cauchy(5), over
    (theta, mu, log tau) or (theta, mu, tau > 0); normalised but for p(y)."""
    log_form = form == "log tau"

    def energy(x: Tensor) -> Tensor:
        theta, mu = x[..., :8], x[..., 8]
        log_tau = x[..., 9] if log_form else x[..., 9].log()
        likelihood = ((EFFECTS.to(x) - theta) / ERRORS.to(x)).square().sum(-1) / 2
        effects = ((theta - mu.unsqueeze(-1)) / log_tau.exp().unsqueeze(-1)).square().sum(-1) / 2
        cauchy = ((log_tau.exp() / TAU_SCALE) ** 2).log1p() - math.log(2 / (math.pi * TAU_SCALE))
        constants = float(ERRORS.log().sum()) + 17 / 2 * LOG_2PI + math.log(MU_SD)
        total = likelihood + effects + 8 * log_tau + (mu / MU_SD).square() / 2 + cauchy + constants
        return total - log_tau if log_form else total

    low = torch.full((10,), -math.inf)
    low[9] = 0.0
    support = None if log_form else sets.box(low, torch.full((10,), math.inf))
    log_z, mean, sd, neck = _schools_exact()

    def evaluate(x: Tensor) -> Tensor:
        tau = x[:, 9].double().exp() if log_form else x[:, 9].double()
        return torch.stack([tau, (tau < NECK).double()], -1)

    figures = Figures(
        evaluate,
        torch.tensor([mean, neck]).double(),
        torch.tensor([sd, math.sqrt(neck * (1 - neck))]).double(),
        torch.tensor([0.1 * sd, 0.03]).double(),
        shares=False,
    )
    words = f"schools, {form}, {str(dtype).removeprefix('torch.')}"
    make = lambda: Stated(energy, 10, dtype, name="schools", support=support)  # noqa: E731
    return Case(words, make, figures, log_z)


@cache
def _schools_exact() -> tuple[float, float, float, float]:
    """log p(y), E tau, sd of tau and P(tau < .3) by quadrature over log tau, theta and mu
    integrated out: y_i ~ N(mu, s_i² + tau²)."""
    log_tau = torch.arange(-12.0, 9.0, 1e-4, dtype=torch.float64)
    tau = log_tau.exp()
    variances = ERRORS.square() + tau.square().unsqueeze(1)
    precision = 1 / variances
    total = precision.sum(1) + 1 / MU_SD**2
    centre = (precision * EFFECTS).sum(1) / total
    squares = (precision * EFFECTS.square()).sum(1) - centre.square() * total
    logs = -(variances.log().sum(1) + 8 * LOG_2PI + squares + total.log()) / 2 - math.log(MU_SD)
    logs = logs + math.log(2 / (math.pi * TAU_SCALE)) - (tau / TAU_SCALE).square().log1p() + log_tau
    p = logs.softmax(0)
    mean = float((p * tau).sum())
    sd = math.sqrt(float((p * tau.square()).sum()) - mean**2)
    return float(logs.logsumexp(0)) + math.log(1e-4), mean, sd, float(p[tau < NECK].sum())


# ---- ordinary targets


def scales() -> Case:
    """Independent normals of twenty standard deviations 10⁻⁶ ... 10⁶."""
    law = Normals(torch.zeros(1), torch.zeros(1, 20), torch.logspace(-6, 6, 20).unsqueeze(0))
    target = lambda: Opaque(law.energy, 20, name="scales")  # noqa: E731
    return Case("twenty scales", target, moments(lambda x: x / law.sds, 20), 0.0)


def gaussian(d: int) -> Case:
    """A normal about 1. In 100 dimensions its variances spread over 1,000 and it is turned at
    random; else its standard deviations spread over ten, along the axes."""
    if d == 100:
        precision, covariance = (torch.from_numpy(part) for part in rotated())
        root = torch.linalg.cholesky(covariance)
        single = precision.float()

        def turned(x: Tensor) -> Tensor:
            return ((x - 1) @ single.to(x) * (x - 1)).sum(-1) / 2

        log_z = 50 * LOG_2PI + float(root.diagonal().log().sum())
        known = moments(lambda x: torch.linalg.solve_triangular(root, (x - 1).T, upper=False).T, d)
        return Case("Gaussian d 100", lambda: Opaque(turned, d, name="gaussian"), known, log_z)
    sds = torch.logspace(-0.5, 0.5, d, dtype=torch.float64)

    def energy(x: Tensor) -> Tensor:
        return ((x - 1) / sds.to(x)).square().sum(-1) / 2

    log_z = d / 2 * LOG_2PI + float(sds.log().sum())
    known = moments(lambda x: (x - 1) / sds, d)
    return Case(f"Gaussian d {d}", lambda: Opaque(energy, d, name="gaussian"), known, log_z)


def banana() -> Case:
    """x ~ N(1, 1), y ~ N(x², .1)."""

    def energy(v: Tensor) -> Tensor:
        x, y = v[..., 0], v[..., 1]
        return (x - 1).square() / 2 + (x.square() - y).square() / 0.2

    def standard(v: Tensor) -> Tensor:
        x, y = v[:, 0], v[:, 1]
        return torch.stack([x - 1, (y - x.square()) / math.sqrt(0.1)], -1)

    known = moments(standard, 2)
    log_z = LOG_2PI + math.log(0.1) / 2
    return Case("banana", lambda: Opaque(energy, 2, name="banana"), known, log_z)


def neck() -> Case:
    """The funnel in ten dimensions: v = x₀/3 and xᵢ e^(-v·3/2) are N(0, 1); P(v < -3) = .1587."""

    def standard(x: Tensor) -> Tensor:
        return torch.cat([x[:, :1] / 3, x[:, 1:] * (-x[:, :1] / 2).exp()], -1)

    def evaluate(x: Tensor) -> Tensor:
        v = standard(x.double())[:, :1]
        return torch.cat([v, v.square(), (v < -1).double()], -1)

    low = 0.5 * math.erfc(1 / math.sqrt(2))
    exact = torch.tensor([0.0, 1.0, low], dtype=torch.float64)
    sd = torch.tensor([1.0, math.sqrt(2), math.sqrt(low * (1 - low))], dtype=torch.float64)
    return Case("funnel 10-D", funnel, Figures(evaluate, exact, sd, 0.1 * sd, False), 0.0)


def logistic(rows: int | None = None) -> Case:
    """Logistic regression with an intercept and N(0, 1) coefficients: breast cancer of
    scikit-learn, standardised, 31 coefficients; or that many rows of synthetic data, whose gradient
    costs more than a millisecond a point where there are 20,000."""
    if rows is None:
        from sklearn.datasets import load_breast_cancer

        table, answers = load_breast_cancer(return_X_y=True)
        design = torch.from_numpy((table - table.mean(0)) / table.std(0)).float()
        y, name = torch.from_numpy(answers).float(), "logistic 31-D"
    else:
        g = torch.Generator().manual_seed(31)
        design = torch.randn(rows, 30, generator=g)
        y = (torch.rand(rows, generator=g) < (design[:, 0] - design[:, 1] / 2).sigmoid()).float()
        name = "expensive logistic 31-D"
    design = torch.cat([torch.ones(len(design), 1), design], 1)

    def energy(x: Tensor) -> Tensor:
        logits = x @ design.to(x).T
        misfit = torch.nn.functional.softplus(logits).sum(-1) - logits @ y.to(x)
        return misfit + x.square().sum(-1) / 2

    return Case(name, lambda: Opaque(energy, 31, name="logistic"))
