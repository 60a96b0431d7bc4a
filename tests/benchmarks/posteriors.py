"""Fifteen posteriors of posteriordb, written as a user of poe writes them: densities in torch with
their supports stated, some as one function, some as compositions.

Parameters stand in the order of the reference values, `posteriordb/reference.json`. Where a
posterior is drawn in other coordinates, `quantities` maps draws to what the reference is about.

Reference: Magnusson, Torgander, Bürkner, Zhang, Carpenter & Vehtari 2025, posteriordb: Testing,
benchmarking and developing Bayesian inference algorithms, AISTATS.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch import distributions as td

import poe
from poe.algebra import support as sets
from poe.diagnostics.convergence import standard_errors

MEAN_SDS, MEAN_ERRORS = 0.02, 4  # sd of the reference, and MCSE, that a mean may be off by
SD_SHARE, SD_ERRORS = 0.10, 3  # share of the sd, and standard errors, that a sd may be off by
FOLDER = Path(__file__).parent / "posteriordb"
Function = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Posterior:
    """A posterior, what its reference values are about, and values that are known exactly.

    Attributes:
        make: builds the target, in torch's default precision.
        quantities: (*batch, d) -> (*batch, k), the parameters of the reference in its order.
        exact: mean and standard deviation by name, of parameters or of what `more` adds.
        more: functions of all parameters (*batch, k) -> (*batch), by name.
    """

    name: str
    make: Callable[[], poe.Energy]
    quantities: Function = lambda x: x
    exact: dict[str, tuple[float, float]] = field(default_factory=dict)
    more: dict[str, Function] = field(default_factory=dict)

    def reference(self) -> dict[str, tuple[float, float]]:
        """Mean and standard deviation of each quantity, in the order of `values`."""
        stored = {name: (v["mean"], v["sd"]) for name, v in data("reference")[self.name].items()}
        return stored | {name: self.exact.get(name, ()) for name in self.more} | self.exact

    def values(self, x: Tensor) -> Tensor:  # (*batch, d) -> (*batch, k)
        """The quantities of draws, in float64."""
        given = self.quantities(x.double())
        return torch.cat([given, *(f(given)[..., None].double() for f in self.more.values())], -1)


@dataclass(frozen=True)
class Errors:
    """The largest errors of means and of standard deviations in units of what is allowed, and
    whose they are."""

    mean: float
    mean_of: str
    sd: float
    sd_of: str

    @property
    def right(self) -> bool:
        return self.mean <= 1 and self.sd <= 1  # NaN is not

    def __str__(self) -> str:
        return (
            f"mean {self.mean:.2f} ({self.mean_of}), sd {self.sd:.2f} ({self.sd_of}); "
            f"{'right' if self.right else 'WRONG'}"
        )


def errors(posterior: Posterior, draws: poe.Draws) -> Errors:
    """How far the draws are from the reference. The standard error of a standard deviation s is
    that of the mean of (x - mean)² over 2 s."""
    reference, max_ess = posterior.reference(), draws.diagnostics.max_ess
    truth = torch.tensor(list(reference.values()), dtype=torch.float64)
    chains = posterior.values(draws.chains)
    mean, sd = chains.mean((0, 1)), chains.flatten(0, 1).std(0)
    of_mean = standard_errors(chains, 1, max_ess)
    of_sd = standard_errors((chains - mean).square(), 1, max_ess) / (2 * sd)
    means = (mean - truth[:, 0]).abs() / (MEAN_ERRORS * of_mean + MEAN_SDS * truth[:, 1])
    sds = (sd - truth[:, 1]).abs() / (SD_SHARE * truth[:, 1] + SD_ERRORS * of_sd)
    sds = sds[: len(sds) - len(posterior.more)]  # the others are indicators
    names = list(reference)
    return Errors(
        float(means.max()), names[int(means.argmax())], float(sds.max()), names[int(sds.argmax())]
    )


@cache
def data(name: str) -> dict[str, Any]:
    return json.loads((FOLDER / f"{name}.json").read_text())


def column(name: str, key: str) -> Tensor:  # -> (n) or (n, d)
    return torch.tensor(data(name)[key], dtype=torch.get_default_dtype())


def positive(d: int, *which: int) -> sets.Constraint:
    """R^d with these coordinates positive."""
    low = torch.full((d,), -math.inf)
    low[list(which)] = 0.0
    return sets.box(low, torch.full((d,), math.inf))


def linear(y: Tensor, *columns: Tensor, intercept: bool = True) -> Function:
    """-log N(y; X beta, sigma²) up to a constant, of x = (beta, sigma): y (n), columns of X (n)."""
    x0 = [torch.ones_like(y)] if intercept else []
    design = torch.stack([*x0, *columns])  # (k, n)

    def energy(x: Tensor) -> Tensor:  # (*batch, k + 1) -> (*batch)
        beta, sigma = x[..., :-1], x[..., -1]
        residual = (y - beta @ design) / sigma[..., None]
        return residual.square().sum(-1) / 2 + len(y) * sigma.log()

    return energy


def posterior_of(function: Function, d: int, *which: int, name: str) -> poe.Energy:
    """A function as the whole posterior of d parameters, these of them positive."""
    return poe.as_energy(
        function,
        event_shape=(d,),
        support=positive(d, *which),
        proper=True,
        bounded=True,
        name=name,
    )


def likelihood_of(function: Function, d: int, *which: int, name: str = "likelihood") -> poe.Energy:
    """A function as the likelihood of d parameters, these of them positive. That of a regression on
    more points than coefficients has finite mass under flat priors too."""
    return posterior_of(function, d, *which, name=name)


def normal(mean: float, sd: float, d: int, name: str) -> poe.Energy:
    return poe.create("normal", loc=torch.full((d,), mean), scale=torch.full((d,), sd), name=name)


def half(distribution: type[td.Distribution], scale: float, name: str) -> poe.Energy:
    return poe.as_energy(distribution(torch.tensor([scale])), name=name)


# ---- regressions: beta and sigma


def earn_height() -> poe.Energy:
    """Flat priors, raw scales: beta in the ten thousands, and in hundreds."""
    function = linear(column("earnings", "earn"), column("earnings", "height"))
    return posterior_of(function, 3, 2, name="earnings")


def logearn_interaction() -> poe.Energy:
    height, male = column("earnings", "height"), column("earnings", "male")
    function = linear(column("earnings", "earn").log(), height, male, height * male)
    return posterior_of(function, 5, 4, name="earnings")


def kidscore_interaction() -> poe.Energy:
    """sigma ~ half-Cauchy(2.5), in one function."""
    hs, iq = column("kidiq", "mom_hs"), column("kidiq", "mom_iq")
    likelihood = linear(column("kidiq", "kid_score"), hs, iq, hs * iq)

    def energy(x: Tensor) -> Tensor:  # (*batch, 5) -> (*batch)
        return likelihood(x) + (1 + (x[..., -1] / 2.5).square()).log()

    return posterior_of(energy, 5, 4, name="kidscore")


def kidscore_momiq() -> poe.Energy:
    """The same prior as a factor on sigma; flat on beta."""
    function = linear(column("kidiq", "kid_score"), column("kidiq", "mom_iq"))
    sigma = half(td.HalfCauchy, 2.5, "sigma")
    return likelihood_of(function, 3, 2) & poe.on(sigma, [2], (3,))


def kilpisjarvi() -> poe.Energy:
    """Informative priors on both coefficients, flat on sigma; years are not centred."""
    given = data("kilpisjarvi_mod")
    function = linear(column("kilpisjarvi_mod", "y"), column("kilpisjarvi_mod", "x"))
    alpha = normal(given["pmualpha"], given["psalpha"], 1, "alpha")
    beta = normal(given["pmubeta"], given["psbeta"], 1, "beta")
    return poe.on(alpha, [0], (3,)) & poe.on(beta, [1], (3,)) & likelihood_of(function, 3, 2)


def mesquite() -> poe.Energy:
    names = ("diam1", "diam2", "canopy_height", "total_height", "density", "group")
    columns = [column("mesquite", name) for name in names]
    return posterior_of(linear(column("mesquite", "weight"), *columns), 8, 7, name="mesquite")


def logmesquite() -> poe.Energy:
    one, two, high, total, group = (
        column("mesquite", name)
        for name in ("diam1", "diam2", "canopy_height", "total_height", "group")
    )
    columns = [(one * two * high).log(), (one * two).log(), (one / two).log(), total.log(), group]
    function = linear(column("mesquite", "weight").log(), *columns)
    return posterior_of(function, 7, 6, name="mesquite")


def nes() -> poe.Energy:
    """Age as a factor of four levels."""
    ages = [(column("nes1972", "age_discrete") == level).float() for level in (2, 3, 4)]
    first = [column("nes1972", name) for name in ("real_ideo", "race_adj")]
    last = [column("nes1972", name) for name in ("educ1", "gender", "income")]
    columns = [c.to(first[0]) for c in (*first, *ages, *last)]
    return posterior_of(linear(column("nes1972", "partyid7"), *columns), 10, 9, name="nes")


def blr(name: str, shards: int) -> poe.Energy:
    """beta ~ N(0, 10²), sigma ~ half-normal(10), times a likelihood of each shard of the data."""
    y, design = column(name, "y"), column(name, "X")
    prior = poe.on(normal(0.0, 10.0, 5, "beta"), range(5), (6,)) & poe.on(
        half(td.HalfNormal, 10.0, "sigma"), [5], (6,)
    )
    parts = zip(y.chunk(shards), design.chunk(shards), strict=True)
    return poe.product(
        [
            prior,
            *(
                likelihood_of(linear(a, *b.T, intercept=False), 6, 5, name=f"shard{i}")
                for i, (a, b) in enumerate(parts)
            ),
        ]
    )


# ---- time series


def ar_k() -> poe.Energy:
    """y_t ~ N(alpha + Σ beta_k y_(t-k), sigma²): priors as factors, a regression on the past."""
    y, lags = column("arK", "y"), data("arK")["K"]
    past = [y[lags - k : len(y) - k] for k in range(1, lags + 1)]
    coefficients = normal(0.0, 10.0, lags + 1, "coefficients")
    d = lags + 2
    return (
        poe.on(coefficients, range(lags + 1), (d,))
        & poe.on(half(td.HalfCauchy, 2.5, "sigma"), [d - 1], (d,))
        & likelihood_of(linear(y[lags:], *past), d, d - 1)
    )


def garch() -> poe.Energy:
    """sigma_t² = alpha0 + alpha1 (y_(t-1) - mu)² + beta1 sigma_(t-1)², flat on alpha1 in (0, 1) and
    beta1 in (0, 1 - alpha1).

    In x = (mu, alpha0, alpha1, s) with beta1 = s (1 - alpha1), s in (0, 1), so that the support
    is a box; the change of variables adds -log(1 - alpha1).
    """
    y, first = column("garch", "y"), data("garch")["sigma1"]

    def energy(x: Tensor) -> Tensor:  # (*batch, 4) -> (*batch)
        mu, alpha0, alpha1, share = x.unbind(-1)
        beta1 = share * (1 - alpha1)
        square = (y - mu[..., None]).square()
        variances = [torch.full_like(mu, first**2)]
        for t in range(len(y) - 1):
            variances.append(alpha0 + alpha1 * square[..., t] + beta1 * variances[-1])
        variance = torch.stack(variances, -1)
        return (square / variance + variance.log()).sum(-1) / 2 - (1 - alpha1).log()

    low, high = torch.tensor([-math.inf, 0.0, 0.0, 0.0]), torch.tensor([math.inf, math.inf, 1, 1])
    return poe.as_energy(
        energy,
        event_shape=(4,),
        support=sets.box(low, high),
        proper=True,
        bounded=True,
        name="garch",
    )


def garch_quantities(x: Tensor) -> Tensor:  # (*batch, 4) -> (*batch, 4)
    return torch.cat([x[..., :3], x[..., 3:] * (1 - x[..., 2:3])], -1)


# ---- a hierarchy


def schools() -> poe.Energy:
    """theta = mu + tau eta: priors of eta, mu and tau, and y ~ N(theta, sigma²) as a factor on
    theta(x), x = (eta, mu, tau)."""
    y = torch.tensor([28.0, 8, -3, 7, -1, 1, 18, 12])
    sigma = torch.tensor([15.0, 10, 16, 11, 9, 11, 10, 18])
    observed = poe.create("normal", loc=y, scale=sigma, name="observed")
    return (
        poe.on(normal(0.0, 1.0, 8, "eta"), range(8), (10,))
        & poe.on(normal(0.0, 5.0, 1, "mu"), [8], (10,))
        & poe.on(half(td.HalfCauchy, 5.0, "tau"), [9], (10,))
        & poe.pullback(observed, theta, (10,))
    )


def theta(x: Tensor) -> Tensor:  # (*batch, 10) -> (*batch, 8)
    return x[..., 8:9] + x[..., 9:] * x[..., :8]


def schools_quantities(x: Tensor) -> Tensor:  # (*batch, 10) -> (*batch, 10)
    return torch.cat([theta(x), x[..., 8:]], -1)


def below(p: float) -> tuple[float, float]:
    """Mean and standard deviation of what holds with probability p."""
    return p, math.sqrt(p * (1 - p))


# ---- Gaussian processes; their covariances need float64


def covariance(x: Tensor, noise: Tensor) -> Tensor:  # (*batch, >= 2), (*batch) -> (*batch, n, n)
    """alpha² exp(-(a - b)²/(2 rho²)) + noise I of the points, in float64: x = (rho, alpha, ...)."""
    at = torch.tensor(data("gp_pois_regr")["x"], dtype=torch.float64)
    rho, alpha = x[..., 0, None, None].double(), x[..., 1, None, None].double()
    square = (at[:, None] - at).square()
    near = alpha.square() * (-square / (2 * rho.square())).exp()
    return near + noise.double()[..., None, None] * torch.eye(len(at), dtype=torch.float64)


def gp_regr() -> poe.Energy:
    """rho ~ Gamma(25, 4), alpha ~ N(0, 2²), sigma ~ N(0, 1), both positive, in one function; sigma
    is the variance of the noise."""
    y = torch.tensor(data("gp_pois_regr")["y"], dtype=torch.float64)

    def energy(x: Tensor) -> Tensor:  # (*batch, 3) -> (*batch)
        rho, alpha, sigma = x.unbind(-1)
        prior = 4 * rho - 24 * rho.log() + alpha.square() / 8 + sigma.square() / 2
        root, failed = torch.linalg.cholesky_ex(covariance(x, sigma))
        white = torch.linalg.solve_triangular(
            root, y[:, None].expand(*root.shape[:-1], 1), upper=False
        )
        log_root = root.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        fit = white.square().sum((-2, -1)) / 2 + log_root
        return prior + torch.where(failed > 0, math.inf, fit).to(x)

    return posterior_of(energy, 3, 0, 1, 2, name="gp")


def latent(x: Tensor) -> Tensor:  # (*batch, 13) -> (*batch, 11)
    """f = L f~ at x = (rho, alpha, f~); NaN, which is outside, where K has no Cholesky factor."""
    noise = torch.full_like(x[..., 0], 1e-10, dtype=torch.float64)
    root, failed = torch.linalg.cholesky_ex(covariance(x, noise))
    f = (root @ x[..., 2:, None].double()).squeeze(-1)
    return torch.where(failed[..., None] > 0, math.nan, f).to(x)


def gp_pois() -> poe.Energy:
    """Counts k ~ Poisson(exp f): priors of rho, alpha and f~ as factors, and the counts as a factor
    on f(x)."""
    k = torch.tensor(data("gp_pois_regr")["k"], dtype=torch.get_default_dtype())
    counts = poe.as_energy(
        lambda f: (f.exp() - k * f).sum(-1), event_shape=(11,), bounded=True, name="counts"
    )
    rho = poe.as_energy(td.Gamma(torch.tensor([25.0]), torch.tensor([4.0])), name="rho")
    return (
        poe.on(rho, [0], (13,))
        & poe.on(half(td.HalfNormal, 2.0, "alpha"), [1], (13,))
        & poe.on(normal(0.0, 1.0, 11, "white"), range(2, 13), (13,))
        & poe.pullback(counts, latent, (13,))
    )


def gp_quantities(x: Tensor) -> Tensor:  # (*batch, 13) -> (*batch, 13)
    return torch.cat([x[..., :2], latent(x)], -1)


def posteriors() -> Sequence[Posterior]:
    """All fifteen."""
    tau = {
        "tau": (3.5977, 3.1980),
        "P(tau < .3)": below(0.0608),
        "P(tau < .6)": below(0.1212),
    }
    small = {
        "P(tau < .3)": lambda v: v[..., 9] < 0.3,
        "P(tau < .6)": lambda v: v[..., 9] < 0.6,
    }
    return (
        Posterior("arK-arK", ar_k),
        Posterior("earnings-earn_height", earn_height),
        Posterior("earnings-logearn_interaction", logearn_interaction),
        Posterior(
            "eight_schools-eight_schools_noncentered", schools, schools_quantities, tau, small
        ),
        Posterior("garch-garch11", garch, garch_quantities),
        Posterior("gp_pois_regr-gp_pois_regr", gp_pois, gp_quantities),
        Posterior("gp_pois_regr-gp_regr", gp_regr),
        Posterior("kidiq-kidscore_interaction", kidscore_interaction),
        Posterior("kidiq-kidscore_momiq", kidscore_momiq),
        Posterior("kilpisjarvi_mod-kilpisjarvi", kilpisjarvi),
        Posterior("mesquite-logmesquite_logvash", logmesquite),
        Posterior("mesquite-mesquite", mesquite),
        Posterior("nes1972-nes", nes),
        Posterior("sblrc-blr", lambda: blr("sblrc", 1)),
        Posterior("sblri-blr", lambda: blr("sblri", 2)),
    )
