"""The laws that every expert obeys, as one check: `check_expert(make)`; and one-step invariance of kernels.

Each law has a reference from outside the expert: its own rows one by one, finite differences, quadrature,
enumeration, or its draws. Statistical laws are tested at a family-wise level: a right expert fails with at
most that probability.
"""

from __future__ import annotations

import contextlib
import copy
import math
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import stats
from torch import Tensor, nn

from poe import registry, storage
from poe import support as sets
from poe.capabilities import Enumerates, Samples, Transport
from poe.energy import Energy, Estimate, leaves

MAX_STATES = 2**16


class LawError(AssertionError):
    """An expert breaks a law; the message names the law and what was seen."""


class _Skip(Exception):
    """A law does not apply; the reason goes into the report."""


@dataclass
class Report:
    """The laws that were checked, and those that could not be, each with the reason."""

    expert: str
    checked: list[str] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [f"{self.expert}: {len(self.checked)} laws hold, {len(self.skipped)} do not apply"]
        lines += [f"  holds    {law}" for law in self.checked]
        lines += [f"  skipped  {law}: {reason}" for law, reason in self.skipped.items()]
        return "\n".join(lines)


def check_expert(
    make: Callable[[], Energy],
    *,
    points: Tensor | None = None,
    draws: int = 4000,
    level: float = 1e-6,
    seed: int = 0,
) -> Report:
    """Check every law on the expert that `make()` builds; report which hold and which do not apply.

    Arguments:
        make: returns a fresh expert; called several times, each time under the same global seed.
        points: points of the support to test at, (n, *event); by default draws, else random points.
        draws: how many draws the statistical laws use.
        level: probability with which a right expert may fail any of them, all taken together.
        seed: of the points, the draws, and the global generator while `make` runs.

    Raises:
        LawError: naming the first law that is broken.
    """
    case = _Case(make, points, draws, level / 8, seed)
    report = Report(str(case.expert))
    for law, check in _LAWS.items():
        try:
            check(case)
        except _Skip as reason:
            report.skipped[law] = str(reason)
        except LawError as error:
            raise LawError(f"{report.expert} breaks the law '{law}': {error}") from error.__cause__
        except Exception as error:
            raise LawError(f"{report.expert} breaks the law '{law}': {type(error).__name__}: {error}") from error
        else:
            report.checked.append(law)
    return report


def invariance_pvalue(before: Tensor, after: Tensor, energies: tuple[Tensor, Tensor] | None = None) -> float:
    """p-value of the hypothesis that one transition leaves the law of its exact draws as it was.

    Paired z-tests of the mean change of every coordinate, its square, and (where given) the energy and its
    square; and Kolmogorov-Smirnov tests of each, the first half before against the second half after, so that
    the two are independent. Bonferroni over all: under the hypothesis P(p <= u) <= u, asymptotically.

    Arguments:
        before, after: n independent draws and the states one transition later, (n, *event).
        energies: the energies at the two, each (n), in nats.
    """
    old, new = (t.detach().double().cpu().reshape(len(t), -1) for t in (before, after))
    if energies is not None:
        old, new = (torch.cat([x, e.detach().double().cpu()[:, None]], 1) for x, e in zip((old, new), energies, strict=True))
    scale = old.std(0).clamp_min(1e-300)
    centred = [(x - old.mean(0)) / scale for x in (old, new)]
    change = torch.cat([centred[1] - centred[0], centred[1].square() - centred[0].square()], 1)
    half = len(old) // 2
    pvalues = [*_mean_pvalues(change)]
    for i in range(old.shape[1]):
        result: Any = stats.ks_2samp(old[:half, i], new[half:, i], method="asymp")
        pvalues.append(result.pvalue)
    return min(1.0, len(pvalues) * float(min(pvalues)))


def one_step_invariance(kernel: Any, energy: Energy, draws: Tensor, *, seed: int = 0) -> float:
    """`invariance_pvalue` of one transition of a kernel from exact draws of the energy, (n, *event)."""
    state = kernel.init(energy, draws)
    noise = kernel.noise(state, torch.Generator(draws.device).manual_seed(seed))
    new, _ = kernel.step(energy, state, noise)
    with torch.no_grad():
        return invariance_pvalue(draws, new.x, (energy(draws), energy(new.x)))


# ---------------------------------------------------------------- what the laws look at


class _Case:
    """One expert under test: its points and draws, its double-precision twin, its support as image of R^m."""

    def __init__(self, make: Callable[[], Energy], points: Tensor | None, draws: int, level: float, seed: int) -> None:
        self.make, self.given, self.n, self.level, self.seed = make, points, draws, level, seed
        self.expert = self.fresh()

    def fresh(self) -> Energy:
        """Another one like it, evaluated as experts are: in eval mode."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            return self.make().eval()

    def generator(self, offset: int = 0) -> torch.Generator:
        return torch.Generator(self.expert.device).manual_seed(self.seed + offset)

    @property
    def discrete(self) -> bool:
        return sets.is_discrete(self.expert.support)

    @cached_property
    def draws(self) -> Tensor:  # (n, *event)
        if not self.expert.can(Samples):
            raise _Skip("it does not draw")
        return self.expert.sample(self.n, generator=self.generator())  # type: ignore[operator]

    @cached_property
    def x(self) -> Tensor:  # (24, *event)
        """Points of the support."""
        if self.given is not None:
            return self.given[torch.arange(24) % len(self.given)].detach()
        if self.expert.can(Samples):
            return self.draws[:24].detach()
        e, g = self.expert, torch.Generator().manual_seed(self.seed)
        if self.discrete and isinstance(e.support, sets.Box):
            low, step = e.support.low, e.support.step
            most = (torch.minimum(e.support.high, low + 4) - low) // step
            x = low + step * (torch.rand((24, *e.event_shape), generator=g) * (most + 1)).floor()
            return x.to(e.dtype if bool((e.support.high == 1).all()) else torch.long)
        if self.discrete:
            raise LawError(f"pass points=, a tensor (n, *event): nobody knows points of {e.support!r}")
        transform = _from_reals(e.support)
        shape = transform.inverse_shape(e.event_shape)
        return transform(torch.randn((24, *shape), generator=g, dtype=torch.float64)).to(e.device, e.dtype)

    @cached_property
    def twin(self) -> Energy:
        """The expert in double precision, on the CPU."""
        if self.discrete:
            raise _Skip("the support is discrete")
        twin = self.fresh()
        twin = (copy.deepcopy(twin) if twin is self.expert else twin).double().cpu()
        if twin(self.x.double().cpu()).dtype != torch.float64:
            raise _Skip("it does not compute in float64")
        return twin

    @cached_property
    def transform(self) -> Any:
        """A bijection from R^m onto the support."""
        return _from_reals(self.twin.support)

    def free(self, x: Tensor) -> Tensor:  # (*batch, *event) -> (*batch, *free)
        """Points of the support as points of R^m."""
        return self.transform.inv(x.double().cpu())

    def onto(self, z: Tensor) -> tuple[Tensor, Tensor]:  # (*batch, *free) -> (*batch, *event), (*batch)
        """Points of R^m as points of the support, and the log-determinant of the map, in nats."""
        x = self.transform(z)
        batch = x.shape[: x.ndim - len(self.expert.event_shape)]
        return x, self.transform.log_abs_det_jacobian(z, x).reshape(*batch, -1).sum(-1)

    def log_density(self, z: Tensor) -> Tensor:  # (*batch, *free) -> (*batch)
        """The unnormalised log-density of the double-precision twin in R^m, in nats."""
        x, logdet = self.onto(z)
        return logdet - self.twin(x)

    @cached_property
    def grid(self) -> tuple[Tensor, Tensor]:
        """In one or two dimensions: nodes in R^m, (k, *free), and log(density · quadrature weight), (k).

        z = centre + scale·sinh(u) along each axis, the trapezoidal rule in u.
        """
        z = self.free(self.x)
        if self.expert.event_shape.numel() > 3 or z[0].numel() > 2:
            raise _Skip("quadrature needs one or two dimensions")
        flat = z.reshape(len(z), -1)
        centre = flat.median(0).values
        scale = (flat.quantile(0.9, 0) - flat.quantile(0.1, 0)).clamp_min(1e-3) / 2
        u = torch.linspace(-11, 11, 40_001 if flat.shape[1] == 1 else 501, dtype=torch.float64)
        axes = [c + s * u.sinh() for c, s in zip(centre, scale, strict=True)]
        weights = [s.log() + u.cosh().log() + (u[1] - u[0]).log() for s in scale]
        nodes = torch.cartesian_prod(*axes).reshape(-1, *z.shape[1:])
        weight = torch.cartesian_prod(*weights).reshape(len(nodes), -1).sum(-1)
        with torch.no_grad():
            log_mass = torch.cat([self.log_density(chunk) for chunk in nodes.split(20_000)]) + weight
        return nodes, log_mass.where(log_mass.isfinite(), -math.inf)  # the far ends, where the map saturates

    @cached_property
    def states(self) -> Tensor:
        """Every point of a small discrete support, (k, *event); of an unbounded one, all that matter."""
        e = self.expert
        if e.can(Enumerates):
            return e.enumerate()  # type: ignore[operator]
        if not isinstance(e.support, sets.Box):
            raise _Skip(f"nobody enumerates {e.support!r}")
        low, high = e.support.low.flatten(), e.support.high.flatten()
        if not bool(low.isfinite().all()):
            raise _Skip(f"nobody enumerates {e.support!r}")
        bounded = high.isfinite()
        high = torch.where(bounded, high, low + 4 * (self.x.max() - low.min()) + 60)
        if float(((high - low) / e.support.step + 1).log().sum()) > math.log(MAX_STATES):
            raise _Skip(f"the support has more than {MAX_STATES} points")
        axes = [torch.arange(int(a), int(b) + 1, e.support.step) for a, b in zip(low, high, strict=True)]
        flat = torch.cartesian_prod(*axes).reshape(-1, len(axes))
        states = flat.reshape(-1, *e.event_shape).to(self.x)
        if not bool(bounded.all()):
            far = ((flat > (low + high) / 2) & ~bounded).any(-1)
            if float((-e(states).double()).softmax(0)[far].sum()) > 1e-5:
                raise _Skip("the tail is too heavy to be enumerated")
        return states


def _from_reals(support: sets.Constraint) -> Any:
    try:
        return sets.from_reals(support)
    except NotImplementedError:
        raise _Skip(f"no map from R^m onto {support!r} is known") from None


def _require(holds: Any, message: str) -> None:
    if not bool(holds):
        raise LawError(message)


def _close(a: Tensor, b: Tensor) -> bool:
    """Equal up to the rounding of a long computation: √ε relative to the larger value."""
    tolerance = math.sqrt(torch.finfo(a.dtype).eps) if a.is_floating_point() else 0.0
    return bool(((a - b).abs() <= tolerance * (1 + torch.maximum(a.abs(), b.abs()))).logical_or(a == b).all())


def _mean_pvalues(values: Tensor) -> np.ndarray:  # (n, k) -> (k)
    """Two-sided p-values of the hypotheses that the columns have mean 0; constant columns tell nothing."""
    mean, error = values.mean(0), values.std(0) / math.sqrt(len(values))
    z = torch.where(error > 0, mean / error.clamp_min(1e-300), torch.where(mean == 0, 0.0, math.inf))
    return 2 * stats.norm.sf(z.abs().numpy())


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


# ---------------------------------------------------------------- the laws


def _facts(case: _Case) -> None:
    e = case.expert
    _require(
        isinstance(e.event_shape, torch.Size),
        f"event_shape is a {type(e.event_shape).__name__}, not a torch.Size",
    )
    dims = e.support.event_dim
    _require(dims == len(e.event_shape), f"the support acts on {dims} axes, events have {len(e.event_shape)}")
    _require(
        e.log_z is None or isinstance(e.log_z, Estimate),
        f"log_z is {e.log_z!r}, neither None nor an Estimate",
    )
    _require(e.proper in (True, False, None), f"proper is {e.proper!r}")
    _require(e.bounded in (True, False, None), f"bounded is {e.bounded!r}")
    _require(
        case.x.shape[1:] == e.event_shape,
        f"points have shape {tuple(case.x.shape[1:])}, not {tuple(e.event_shape)}",
    )
    _require(sets.contains(e.support, case.x).all(), "some of its own points lie outside its support")
    _require(e.flat in (True, False, None), f"flat is {e.flat!r}")
    if e.flat:
        energy = e(case.x)
        _require(
            _close(energy, energy[:1].expand_as(energy)), "it says that it is flat, and its energy differs from point to point"
        )


def _shapes(case: _Case) -> None:
    e, x = case.expert, case.x
    event = e.event_shape
    for batch in ((), (1,), (24,), (2, 3, 4), (0,), (2, 0)):
        points = x[0] if batch == () else x[: math.prod(batch)].reshape(*batch, *event)
        energy = e(points)
        shapes = f"for x of shape {tuple(points.shape)} the energy has shape {tuple(energy.shape)}, not {batch}"
        _require(energy.shape == batch, shapes)
        _require(energy.is_floating_point(), f"the energy has dtype {energy.dtype}")
        if x.is_floating_point() and x.dtype == e.dtype:
            _require(energy.dtype == x.dtype, f"x has dtype {x.dtype}, its energy {energy.dtype}")


def _batch_invariance(case: _Case) -> None:
    e, x = case.expert, case.x
    batched = e(x)
    rows = torch.stack([e(row) for row in x])
    gap = (batched - rows).abs().max()
    _require(_close(batched, rows), f"energies of a batch differ by up to {gap:.3g} nats from those of its rows")
    _require(_close(e(x.flip(0)).flip(0), batched), "energies depend on the order of the batch")
    _require(_close(e(x.reshape(2, -1, *e.event_shape)).reshape(-1), batched), "energies depend on the batch axes")


def _determinism(case: _Case) -> None:
    values = []
    for seed in (1, 2):
        with _seeded(seed):
            values.append(case.expert(case.x))
            after = torch.rand(())
            torch.manual_seed(seed)
            _require(torch.equal(after, torch.rand(())), "the energy draws from the global random generator")
    _require(torch.equal(*values), "two evaluations at the same points differ")


def _finite_inside(case: _Case) -> None:
    e = case.expert
    energy = e(case.x)
    _require(not energy.isnan().any(), "the energy is NaN at a point of the support")
    _require((energy != -math.inf).all(), "the energy is -inf at a point of the support")
    if e.can(Samples):
        _require((energy != math.inf).all(), "the energy is +inf at a draw")
    if sets.is_real(e.support):
        for factor in (1e2, 1e4):
            _require(
                not e(case.x * factor).isnan().any(),
                f"the energy is NaN at points {factor:g} times as far out",
            )


def _infinite_outside(case: _Case) -> None:
    e, x = case.expert, case.x
    if sets.is_real(e.support):
        raise _Skip("the support is all of R^n")
    candidates = torch.cat([x + 1000, x - 1000, -x - 1] + ([x + 0.5] if x.is_floating_point() else []))
    outside = candidates[~sets.contains(e.support, candidates)]
    if not len(outside):
        raise _Skip(f"no point outside {e.support!r} is known")
    energy = e(outside)
    _require(
        (energy == math.inf).all(),
        f"the energy outside the support is {energy[energy != math.inf][:1].tolist()}, not inf",
    )
    mixed = e(torch.cat([x, outside]))[: len(x)]
    _require(_close(mixed, e(x)), "points outside the support change the energies of others in the batch")
    if not case.discrete and x.is_floating_point():
        energy, gradient = e.value_and_grad(outside)
        _require((energy == math.inf).all(), "value_and_grad outside the support gives an energy that is not inf")
        _require(not gradient.isnan().any(), "the gradient outside the support is NaN")


def _differentiable(case: _Case) -> Tensor:
    if case.discrete or not case.x.is_floating_point():
        raise _Skip("the support is discrete")
    try:
        case.expert.value_and_grad(case.x)
    except TypeError as error:
        raise _Skip(f"it has no gradient: {error}") from error
    return case.x


def _value_and_grad(case: _Case) -> None:
    x, e = _differentiable(case), case.expert
    energy, gradient = e.value_and_grad(x)
    _require(gradient.shape == x.shape, f"the gradient has shape {tuple(gradient.shape)} for x {tuple(x.shape)}")
    _require(not (energy.requires_grad or gradient.requires_grad), "value_and_grad returns tensors with a graph")
    _require(_close(energy, e(x).detach()), "the energy of value_and_grad differs from forward's")
    free = x.clone().requires_grad_()
    (reference,) = torch.autograd.grad(e(free).sum(), free, materialize_grads=True)
    gap = (gradient - reference).abs().max()
    _require(
        _close(gradient, reference),
        f"the gradient of value_and_grad differs by up to {gap:.3g} from autograd's",
    )
    _require(_close(e.score(x), -gradient), "the score is not minus the gradient")


def _gradient(case: _Case) -> None:
    _differentiable(case)
    twin = case.twin
    z = case.free(case.x[:8]).detach().requires_grad_()
    x = case.transform(z)
    (gradient,) = torch.autograd.grad(x, z, twin.value_and_grad(x.detach())[1])
    g = torch.Generator().manual_seed(case.seed)
    for _ in range(4):
        direction = torch.randn(z.shape, generator=g, dtype=torch.float64).to(z.device)
        slope = (gradient * direction).reshape(len(z), -1).sum(-1)
        agrees = torch.zeros(len(z), dtype=torch.bool, device=z.device)
        difference = slope
        for step in (1e-3, 1e-4, 1e-5, 1e-6):  # one of them avoids both curvature, kinks and rounding
            with torch.no_grad():
                ends = [twin(case.transform(z + sign * step * direction)) for sign in (1, -1)]
            difference = (ends[0] - ends[1]) / (2 * step)
            agrees |= (difference - slope).abs() <= 1e-4 * (1 + slope.abs())
        worst = (difference - slope).abs().argmax()
        _require(
            agrees.float().mean() >= 0.75,  # a kink of a piecewise energy may lie next to a point
            f"along a line the gradient says {slope[worst]:.6g}, finite differences {difference[worst]:.6g}",
        )


def _normalisation(case: _Case) -> None:
    e = case.expert
    if e.log_z is None:
        raise _Skip("log Z is unknown")
    claimed, error = e.log_z.value, e.log_z.standard_error
    if case.discrete:
        found = float(torch.logsumexp(-e(case.states).detach().double(), 0))
        _agree(found, claimed, 1e-3 + 6 * error, "the sum of exp(-E) over the support")
        return
    case.twin  # noqa: B018  (skips where there is no double precision)
    try:
        nodes, log_mass = case.grid
    except _Skip:
        _normalisation_by_draws(case, claimed, error)
        return
    found, coarse = float(log_mass.logsumexp(0)), _coarse(log_mass, nodes[0].numel())
    if abs(found - coarse) > 0.05:
        raise _Skip(f"quadrature does not resolve the density: {found:.4f} against {coarse:.4f} on half the nodes")
    _agree(found, claimed, 1e-3 + 6 * error + abs(found - coarse), "the integral of exp(-E)")


def _coarse(log_mass: Tensor, dimensions: int) -> float:
    """The trapezoidal rule on every other node along each axis."""
    side = round(len(log_mass) ** (1 / dimensions))
    table = log_mass.reshape((side,) * dimensions)[(slice(None, None, 2),) * dimensions]
    return float(table.flatten().logsumexp(0)) + dimensions * math.log(2)


def _normalisation_by_draws(case: _Case, claimed: float, error: float) -> None:
    """E_p[q / p] = 1 for a Gaussian q inside p, fitted to half of the draws and averaged over the others."""
    z = case.free(case.draws).reshape(case.n, -1)
    fit, rest = z[: case.n // 2], z[case.n // 2 :]
    if not z.isfinite().all() or 4 * z.shape[1] > len(fit):
        raise _Skip(f"{case.n} draws do not show the covariance of {z.shape[1]} coordinates")
    covariance = 0.8 * torch.cov(fit.T).reshape(z.shape[1], -1)
    factor, failed = torch.linalg.cholesky_ex(covariance)
    if failed:
        raise _Skip("the draws lie in a plane")
    q = torch.distributions.MultivariateNormal(fit.mean(0), scale_tril=factor)
    shape = case.free(case.draws[:1]).shape[1:]
    with torch.no_grad():
        log_w = q.log_prob(rest) - case.log_density(rest.reshape(-1, *shape)) + claimed
    w = (log_w - log_w.max()).exp()
    if (w.sum() ** 2 / w.square().sum()) < 200:
        raise _Skip("no Gaussian comes near enough the draws, and quadrature needs one or two dimensions")
    mean = w.mean()
    found = float(mean.log() + log_w.max())  # log of Z claimed / Z
    spread = float(w.std() / mean / math.sqrt(len(w)))
    z_max = float(stats.norm.isf(case.level / 2))
    _agree(claimed - found, claimed, z_max * (spread + error) + 0.01, "log Z by comparing draws and density")


def _agree(found: float, claimed: float, tolerance: float, what: str) -> None:
    message = f"{what} gives log Z = {found:.5f}, and log_z says {claimed:.5f} (tolerance {tolerance:.2g})"
    _require(abs(found - claimed) <= tolerance, message)


def _draws(case: _Case) -> None:
    e, x = case.expert, case.draws
    event = e.event_shape
    for n in (5, (2, 3), 0, (), (2, 0)):
        shape = (n,) if isinstance(n, int) else n
        drawn = e.sample(n, generator=case.generator())  # type: ignore[operator]
        _require(
            drawn.shape == shape + event,
            f"sample({n}) has shape {tuple(drawn.shape)}, not {(*shape, *event)}",
        )
    first = e.sample(50, generator=case.generator())  # type: ignore[operator]
    with _seeded(1):
        again = e.sample(50, generator=case.generator())  # type: ignore[operator]
        _require(torch.equal(again, first), "two samples from the same generator state differ")
        after = torch.rand(())
        torch.manual_seed(1)
        _require(torch.equal(after, torch.rand(())), "sample with a generator draws from the global one too")
    other = e.sample(50, generator=case.generator(1))  # type: ignore[operator]
    _require(not torch.equal(other, first), "samples from two seeds are the same")
    _require(not x.requires_grad, "draws carry a graph")
    _require(sets.contains(e.support, x).all(), "some draws lie outside the support")
    _require(e(x).isfinite().all(), "some draws have energy that is not finite")


def _draws_match_density(case: _Case) -> None:
    if case.discrete:
        _frequencies(case)
        return
    z = case.free(case.draws)
    z = z[z.isfinite().reshape(len(z), -1).all(-1)]  # rounding may put a draw on the edge
    reasons = []
    for test in (_distribution_function, _stein):
        try:
            test(case, z)
        except _Skip as reason:
            reasons.append(str(reason))
    if len(reasons) == 2:
        raise _Skip("; ".join(reasons))


def _frequencies(case: _Case) -> None:
    states = case.states
    flat = states.reshape(len(states), -1).double().cpu()
    p = (-case.expert(states).double()).softmax(0).detach().cpu()
    base = torch.tensor([flat.max() - flat.min() + 1], dtype=torch.float64)
    code = base ** torch.arange(flat.shape[1], dtype=torch.float64)
    index = {float(key): i for i, key in enumerate((flat @ code).tolist())}
    keys = (case.draws.reshape(case.n, -1).double().cpu() @ code).tolist()
    unknown = [key for key in keys if key not in index]
    _require(len(unknown) <= 0.001 * case.n, f"{len(unknown)} of {case.n} draws are no points of the support")
    counts = torch.bincount(torch.tensor([index[k] for k in keys if k in index]), minlength=len(states)).double()
    order = p.argsort(descending=True)
    p, counts = p[order], counts[order]
    common = p * case.n >= 5
    expected = torch.cat([p[common], p[~common].sum()[None]]) * case.n
    observed = torch.cat([counts[common], counts[~common].sum()[None]])
    kept = expected >= 5
    chi2 = float(((observed - expected).square() / expected)[kept].sum())
    pvalue = stats.chi2.sf(chi2, max(int(kept.sum()) - 1, 1))
    _require(
        pvalue >= case.level,
        f"frequencies of draws differ from probabilities: χ² = {chi2:.1f}, p = {pvalue:.2g}",
    )


def _distribution_function(case: _Case, z: Tensor) -> None:
    if z[0].numel() > 1:
        raise _Skip("a distribution function needs one dimension")
    nodes, log_mass = case.grid
    below = log_mass.softmax(0).cumsum(0)
    at = np.interp(z.reshape(-1).numpy(), nodes.reshape(-1).numpy(), below.numpy())
    result: Any = stats.kstest(at, "uniform", method="asymp")
    _require(
        result.pvalue >= case.level,
        f"draws and density differ: Kolmogorov-Smirnov D = {result.statistic:.4f}, p = {result.pvalue:.2g}",
    )


def _stein(case: _Case, z: Tensor) -> None:
    """For draws of p, E[s] = 0 and E[(z - m) s] = -1 by coordinate, where s = ∇ log p (Stein)."""
    _differentiable(case)
    leaf = z.detach().clone().requires_grad_()
    (score,) = torch.autograd.grad(case.log_density(leaf).sum(), leaf)
    s, flat = score.reshape(len(z), -1), z.reshape(len(z), -1)
    centred = flat - flat.median(0).values
    pvalues = _mean_pvalues(torch.cat([s, centred * s + 1], 1))
    worst = float(pvalues.min())
    _require(
        worst * len(pvalues) >= case.level,
        f"draws and density differ: E[score] = 0, E[x·score] = -1 have p = {worst:.2g}, {len(pvalues)} tests",
    )


def _transport(case: _Case) -> None:
    e = case.expert
    if not e.can(Transport):
        raise _Skip("it is no transport")
    twin: Any = case.twin
    x = case.x.double().cpu()
    with torch.no_grad():
        z, forward = twin.to_noise(x)
        back, backward = twin.from_noise(z)
        normal = 0.5 * z.square().reshape(len(z), -1).sum(-1) + 0.5 * z[0].numel() * math.log(2 * math.pi)
        energy = twin(x)
    _require(z.shape == x.shape, f"noise has shape {tuple(z.shape)} for x {tuple(x.shape)}")
    _require(_close(back.float(), x.float()), "from_noise(to_noise(x)) is not x")
    _require(_close(forward.float(), -backward.float()), "the two log-determinants are not opposite")
    offset = energy - (normal - forward)  # -log Z
    constant = offset.mean() if e.log_z is None else torch.tensor(-e.log_z.value)
    slack = 0.0 if e.log_z is None else 6 * e.log_z.standard_error
    gap = (offset - constant).abs().max()
    _require(gap <= slack + 1e-3, f"the energy differs by {gap:.3g} nats from that of the transported noise")


def _save_and_load(case: _Case) -> None:
    e = case.expert
    for leaf in leaves(e):
        if registry.name_of(type(leaf)) is None:
            raise _Skip(f"{type(leaf).__name__} is not registered: @poe.register('a-name')")
        try:
            leaf.config()
        except TypeError as error:
            raise _Skip(str(error)) from error
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "expert.safetensors"
        storage.save(e, path)
        loaded = storage.load(path)
    before, after = e(case.x), loaded(case.x)
    _require(after.dtype == before.dtype, f"saved with energies in {before.dtype}, loaded with {after.dtype}")
    gap = (before - after).abs().max()
    _require(torch.equal(before, after), f"energies differ by up to {gap:.3g} nats after saving and loading")
    _require(
        (loaded.log_z, loaded.event_shape, str(loaded)) == (e.log_z, e.event_shape, str(e)),
        "facts change in a file",
    )


def _eval_mode(case: _Case) -> None:
    e = case.fresh()
    before = e(case.x)
    parent = nn.ModuleList([e])
    parent.train()
    with _seeded(1):
        during = e(case.x)
    parent.eval()
    _require(torch.equal(before, during), "the .train() of a parent module changes its energies: lock eval mode")
    _require(torch.equal(before, e(case.x)), "evaluating it in train mode changed it")


def _no_side_effects(case: _Case) -> None:
    e = case.fresh()
    x = case.x.clone()
    state = {key: value.clone() for key, value in e.state_dict().items() if isinstance(value, Tensor)}
    for enabled in (True, False):
        with torch.set_grad_enabled(enabled):
            e(x)
            if not case.discrete and x.is_floating_point():
                with contextlib.suppress(TypeError):  # an expert without a gradient
                    e.value_and_grad(x)
            _require(
                torch.is_grad_enabled() == enabled,
                "it leaves gradients switched " + ("off", "on")[not enabled],
            )
    _require(torch.equal(x, case.x), "it writes into x")
    _require(not x.requires_grad, "it leaves x requiring a gradient")
    _require(all(p.grad is None for p in e.parameters()), "value_and_grad leaves gradients in its parameters")
    changed = [key for key, value in state.items() if not torch.equal(value, e.state_dict()[key])]
    _require(not changed, f"evaluating it changes its state: {', '.join(changed)}")


_LAWS: dict[str, Callable[[_Case], None]] = {
    "facts": _facts,
    "shapes": _shapes,
    "no side effects": _no_side_effects,
    "determinism": _determinism,
    "batch invariance": _batch_invariance,
    "finite inside the support": _finite_inside,
    "infinite outside the support": _infinite_outside,
    "value_and_grad": _value_and_grad,
    "gradient": _gradient,
    "eval mode": _eval_mode,
    "draws": _draws,
    "normalisation": _normalisation,
    "draws match the density": _draws_match_density,
    "transport": _transport,
    "save and load": _save_and_load,
}
