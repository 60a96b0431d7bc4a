"""A mixture of Gaussians fitted to particles, as a start close to the target."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from poe.algebra.energy import Density
from poe.diagnostics.weights import weight_ess

COMPONENTS = (1, 2, 4, 8, 16, 32, 64)  # that are tried
MAX_DIMENSIONS = 40
MAX_ROUNDS = 60  # of expectation maximisation
MIN_GAIN = 1e-4  # nats per point below which expectation maximisation ends
# variances of components are larger by the share c, so that weights stay bounded in the tails; to
# a normal target this costs d·c²/2 nats of log(1/ESS share), at most MAX_INFLATION_COST
MAX_INFLATION, MAX_INFLATION_COST = 0.3, 0.35
# weight of a defensive component at the centre of all particles, with four times their scatter
DEFENSIVE_WEIGHT = 0.1
AXIS_WIDENING = 3.0  # standard deviations for each one, of a component that is wider along one axis
# degrees of freedom of the defensive component, found from the particles within these limits: the
# law of Cauchy is refused nowhere, and tails lighter than those of t(8) need none lighter
MIN_FREEDOM, MAX_FREEDOM = 0.5, 8.0
SCATTER_ROUNDS = 20  # of the reweighting that finds the scatter of heavy-tailed particles


class Gaussians(Density):
    """Σ_k w_k p_k(x) over an event of d numbers, fitted by `fitted`. With z = L_k⁻¹(x - μ_k), each
    p_k is a normal or, where its degrees of freedom ν_k are finite, a multivariate Student-t:

        log N = -½‖z‖² - log|L_k| - d/2 log 2π,
        log t = log Γ((ν+d)/2) - log Γ(ν/2) - d/2 log νπ - log|L_k| - (ν+d)/2 log(1 + ‖z‖²/ν).

    Arguments:
        weights: (k), of sum 1.
        means: (k, d).
        roots: (k, d, d), lower triangular.
        freedom: (k) degrees of freedom, infinity for a normal; all of them by default.
    """

    log_weights: Tensor
    means: Tensor
    roots: Tensor
    freedom: Tensor
    inverses: Tensor
    constants: Tensor

    def __init__(
        self,
        weights: Tensor,
        means: Tensor,
        roots: Tensor,
        event_shape: torch.Size,
        freedom: Tensor | None = None,
    ) -> None:
        super().__init__(event_shape)
        freedom = torch.full_like(weights, math.inf) if freedom is None else freedom
        self.register_buffer("log_weights", weights.log())
        self.register_buffer("means", means)
        self.register_buffer("roots", roots)
        self.register_buffer("freedom", freedom)
        self.register_buffer("inverses", _inverses(roots))
        self.register_buffer("constants", _constants(roots, freedom))

    @property
    def bounded(self) -> bool:
        return True

    def log_prob(self, x: Tensor) -> Tensor:  # (*batch, *event) -> (*batch)
        return self._logs(x)[0].logsumexp(-1)

    def _value_and_grad(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """∇E = Σ_k r_k c_k L_k⁻ᵀ z_k, r_k the responsibility of component k, and c_k = 1 for a
        normal, (ν+d)/(ν+‖z_k‖²) for a Student-t."""
        with torch.no_grad():
            logs, z, force = self._logs(x)
            pull = (logs.softmax(-1) * force).unsqueeze(-1) * z
            gradient = pull.flatten(-2) @ self.inverses.flatten(0, 1)
            return -logs.logsumexp(-1), gradient.reshape(x.shape)

    def _logs(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        # (*batch, *event) -> (*batch, k), (*batch, k, d), (*batch, k)
        """log(w_k p_k), z_k and c_k."""
        flat = x.reshape(*x.shape[: x.ndim - len(self.event_shape)], -1)
        z = _standardised(flat, self.means, self.inverses)
        squares, normal = z.square().sum(-1), self.freedom.isinf()
        nu, d = torch.where(normal, 1, self.freedom), z.shape[-1]
        heavy = (nu + d) / 2 * (squares / nu).log1p()
        drop = torch.where(normal, squares / 2, heavy)
        force = torch.where(normal, 1, (nu + d) / (nu + squares))
        return self.log_weights + self.constants - drop, z, force

    def sample(
        self, n: int | tuple[int, ...], *, generator: torch.Generator | None = None
    ) -> Tensor:
        """Exact draws: x = μ_k + L_k ξ, for a Student-t over sqrt(χ²_ν / ν)."""
        shape = (n,) if isinstance(n, int) else tuple(n)
        total, (_, d) = math.prod(shape), self.means.shape
        which = torch.multinomial(
            self.log_weights.exp(), max(total, 1), replacement=True, generator=generator
        )[:total]
        options = {"dtype": self.means.dtype, "device": self.means.device}
        noise = torch.randn(total, d, generator=generator, **options)
        x = noise.new_empty(total, d)
        for k in range(len(self.means)):
            own = (which == k).nonzero().squeeze(1)
            z = noise[own]
            if self.freedom[k] < math.inf and len(own):
                half = self.freedom[k].expand(len(own)).double() / 2
                chi = 2 * torch._standard_gamma(half, generator=generator)
                z = z * (2 * half / chi).sqrt().to(z).unsqueeze(1)
            x[own] = self.means[k] + z @ self.roots[k].T
        return x.reshape(*shape, *self.event_shape)

    @classmethod
    def fitted(
        cls,
        x: Tensor,
        generator: torch.Generator,
        log_weights: Tensor | None = None,
        *,
        axis: int | None = None,
    ) -> Gaussians | None:
        """By expectation maximisation on x (n, *event), with the number of components whose fit to
        one half gives the other the highest density; then inflated, and mixed with a defensive
        Student-t whose tails are no lighter than those of the points. None above `MAX_DIMENSIONS`
        dimensions, or for too few points.

        `log_weights` (n) in nats are importance weights of the points. They then count as many
        points as are effective. Along the coordinate `axis` another defensive component is
        `AXIS_WIDENING` times as wide as the points, and as wide as they in all others: to be wider
        in all of d coordinates meets what lies beyond in one of them with a probability that falls
        as 2^-d.
        """
        flat, d = x.flatten(1) if x.ndim > 1 else x.unsqueeze(1), math.prod(x.shape[1:])
        mass = None
        if log_weights is not None:
            size = float(weight_ess(log_weights))
            kept = log_weights > -math.inf
            flat, mass = flat[kept], size * log_weights[kept].double().softmax(0)
        effective = len(flat) if mass is None else size
        if d > MAX_DIMENSIONS or effective < 20 * (d + 1):
            return None
        order = torch.randperm(len(flat), generator=generator, device=flat.device)
        flat, mass = flat.double()[order], None if mass is None else mass[order]
        best = _components(flat, mass, generator)
        weights, means, roots = maximised(flat, best, generator, weights=mass)
        wide = _defensive(flat, mass)
        if wide is None:
            return None
        wider = 1 + min(MAX_INFLATION, math.sqrt(2 * MAX_INFLATION_COST / d))
        centre, scatter, nu = wide
        more = [2 * scatter]
        if axis is not None:
            stretch = torch.ones_like(centre)
            stretch[axis] = AXIS_WIDENING
            more.append(scatter * stretch)  # L diag(s): wider along the column of the coordinate
        share = weights.new_full((len(more),), DEFENSIVE_WEIGHT)
        weights = torch.cat([weights * (1 - share.sum()), share])
        means = torch.cat([means, centre.expand(len(more), d)])
        roots = torch.cat([roots * math.sqrt(wider), torch.stack(more)])
        freedom = torch.full_like(weights, math.inf)
        freedom[-len(more)] = nu
        return cls(weights.to(x), means.to(x), roots.to(x), x.shape[1:], freedom.to(x))


def _components(x: Tensor, mass: Tensor | None, generator: torch.Generator) -> int:
    """The number of components whose fit to every other point (n, d) gives the rest the highest
    density."""
    train, held = x[::2], x[1::2]
    mass, rest = (None, None) if mass is None else (mass[::2], mass[1::2])
    best, top = COMPONENTS[0], -math.inf
    size = len(train) if mass is None else float(mass.sum())
    for count in COMPONENTS:
        if size < 5 * count * (train.shape[1] + 1) ** 0.5:
            break
        weights, means, roots = maximised(train, count, generator, weights=mass)
        density = (weights.log() + _normal(held, means, roots)).logsumexp(-1)
        score = float(density.mean() if rest is None else (rest * density).sum() / rest.sum())
        if score > top:
            best, top = count, score
        elif count >= 4 * best:
            break
    return best


def _defensive(x: Tensor, mass: Tensor | None) -> tuple[Tensor, Tensor, float] | None:
    # (n, d), (n) -> (d), (d, d)
    """Centre, Cholesky factor of the scatter, and degrees of freedom of one Student-t for all
    points; None where they have no spread.

    ν is a lower bound of Hill's estimate of the index of the tail, P(r > t) ~ t^-ν for the radius
    r of a Student-t in any dimension: 1/ν = mean of log(r_i / r_k) over the k largest radii, of
    relative error 1/√k. Centre and scatter are its maximum likelihood by reweighting,
    u_i = (ν + d)/(ν + r_i²). Reference: Hill 1975, Ann. Statist. 3(5); Lange, Little and Taylor
    1989, J. Am. Stat. Assoc. 84.
    """
    n, d = x.shape
    p = x.new_ones(n) / n if mass is None else mass / mass.sum()
    pull, freedom = x.new_ones(n), MAX_FREEDOM
    for turn in range(SCATTER_ROUNDS):
        share = p * pull / (p * pull).sum()
        centre = share @ x
        away = x - centre
        # the first round has no weights yet: it is the mean and the covariance
        scatter = (away * ((share if turn == 0 else p * pull).unsqueeze(1))).T @ away
        root, failed = torch.linalg.cholesky_ex(scatter + 1e-12 * torch.eye(d).to(x))
        if failed:
            return None
        squares = torch.linalg.solve_triangular(root, away.T, upper=False).square().sum(0)
        freedom = _tail_index(squares.sqrt(), p)
        pull = (freedom + d) / (freedom + squares)
    return centre, root, freedom


def _tail_index(radius: Tensor, p: Tensor) -> float:  # (n), (n)
    """Two relative errors below Hill's estimate from the 3√n largest of the effective radii, within
    `MIN_FREEDOM` and `MAX_FREEDOM`."""
    effective = 1 / float(p.square().sum())
    tail = min(0.2, 3 / effective**0.5)  # share of the mass
    order = radius.argsort(descending=True)
    r, mass = radius[order], p[order]
    inside = mass.cumsum(0) <= tail
    inside[0] = True
    k, logs, own = int(inside.sum()), r.clamp(min=1e-300).log(), mass[inside]
    gap = float((own * (logs[inside] - logs[min(k, len(r) - 1)])).sum() / own.sum())
    index = (1 - 2 / (tail * effective) ** 0.5) / max(gap, 1e-12)
    return min(max(index, MIN_FREEDOM), MAX_FREEDOM)


def _inverses(roots: Tensor) -> Tensor:  # (k, d, d) -> (k, d, d)
    eye = torch.eye(roots.shape[-1]).to(roots).expand_as(roots)
    return torch.linalg.solve_triangular(roots, eye, upper=False)


def _constants(roots: Tensor, freedom: Tensor) -> Tensor:  # (k, d, d), (k) -> (k)
    """log p_k at μ_k."""
    d, size = roots.shape[-1], roots.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    nu = torch.where(freedom.isinf(), 1, freedom)
    heavy = ((nu + d) / 2).lgamma() - (nu / 2).lgamma() - d / 2 * (nu * math.pi).log()
    return torch.where(freedom.isinf(), -d / 2 * math.log(2 * math.pi), heavy) - size


def _standardised(x: Tensor, means: Tensor, inverses: Tensor) -> Tensor:
    # (*batch, d), (k, d), (k, d, d) -> (*batch, k, d)
    """L_k⁻¹(x - μ_k) as one matrix product, about the mean of the μ_k so that little is lost."""
    k, d = means.shape
    middle = means.mean(0)
    z = (x - middle).reshape(-1, d) @ inverses.reshape(k * d, d).T
    shift = (inverses @ (means - middle).unsqueeze(-1)).squeeze(-1)
    return z.reshape(*x.shape[:-1], k, d) - shift


def _normal(x: Tensor, means: Tensor, roots: Tensor) -> Tensor:
    # (*batch, d), (k, d), (k, d, d) -> (*batch, k)
    """log N(x; μ_k, L_k L_kᵀ)."""
    z = _standardised(x, means, _inverses(roots))
    return _constants(roots, roots.new_full((len(roots),), math.inf)) - z.square().sum(-1) / 2


def maximised(
    x: Tensor,
    count: int,
    generator: torch.Generator,
    rounds: int = MAX_ROUNDS,
    *,
    weights: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    # (n, d) -> (k), (k, d), (k, d, d)
    """(weights, means, Cholesky factors) after EM from centres chosen far apart (k-means++: each
    next one ∝ squared distance). `weights` (n) is how many points each counts for, 1 by default.

    Covariances are shrunk towards their diagonals, with the weight of d + 1 points; components of
    fewer than d + 2 points are dropped. Both steps are matrix products with the d(d+1)/2 products
    of coordinates, in units y of the standard deviations: Σ_i r_ik y_i y_iᵀ, and
    log(w_k N_k) = -½ yᵀ P y + (P μ)ᵀ y + constant, P the precision.
    """
    n, d = x.shape
    points = x.new_ones(n) if weights is None else weights
    shift = points @ x / points.sum()
    scale = (points @ (x - shift).square() / points.sum()).sqrt() * math.sqrt(n / max(n - 1, 1))
    scale = scale.clamp(min=1e-12)
    share = _nearest_centre(x / scale, count, weights, generator)
    y = (x - shift) / scale
    i, j = torch.tril_indices(d, d, device=x.device)
    features = torch.cat([y[:, i] * y[:, j], y, y.new_ones(n, 1)], 1)
    last = -math.inf
    for _ in range(rounds):
        share = share * points.unsqueeze(1)
        # smaller ones would shrink onto their points
        share = share[:, share.sum(0) >= min(d + 2, n)]
        share = share * (points / share.sum(1).clamp(min=1e-300)).unsqueeze(1)
        mass, mu, roots = _moments(share.T @ features, d)
        logs = features @ _coefficients(mass, mu, roots).T
        density = logs.logsumexp(-1)
        score = float(points @ density / points.sum())
        share = logs.softmax(-1)
        if score - last < MIN_GAIN:
            break
        last = score
    return mass / mass.sum(), mu * scale + shift, roots * scale.unsqueeze(1)


def _moments(sums: Tensor, d: int) -> tuple[Tensor, Tensor, Tensor]:
    """Masses, means and Cholesky factors from the sums of the features of each component."""
    i, j = torch.tril_indices(d, d, device=sums.device)
    mass, mu = sums[:, -1], sums[:, -1 - d : -1] / sums[:, -1:]
    products = sums.new_zeros(len(sums), d, d)
    products[:, i, j] = products[:, j, i] = sums[:, : len(i)]
    points = mass[:, None, None]
    scatter = products - points * mu.unsqueeze(2) * mu.unsqueeze(1)
    own = torch.diag_embed((scatter / points).diagonal(dim1=-2, dim2=-1).clamp(min=0))
    floor = 1e-8 * torch.eye(d).to(sums)
    covariance = (scatter + (d + 1) * own) / (points + d + 1) + floor
    roots, failed = torch.linalg.cholesky_ex((covariance + covariance.mT) / 2)
    return mass, mu, torch.where(failed[:, None, None] > 0, (own + floor).sqrt(), roots)


def _coefficients(mass: Tensor, mu: Tensor, roots: Tensor) -> Tensor:
    """log(w_k N_k) as a linear function of the features."""
    d = mu.shape[1]
    i, j = torch.tril_indices(d, d, device=mu.device)
    precision = torch.cholesky_inverse(roots)
    linear = (precision @ mu.unsqueeze(-1)).squeeze(-1)
    normal = _constants(roots, roots.new_full((len(roots),), math.inf))
    constant = (mass / mass.sum()).log() + normal - (linear * mu).sum(-1) / 2
    twice = torch.where(i == j, 1.0, 2.0).to(mu)
    return torch.cat([-twice / 2 * precision[:, i, j], linear, constant.unsqueeze(1)], 1)


def _nearest_centre(
    x: Tensor, count: int, weights: Tensor | None, generator: torch.Generator
) -> Tensor:  # (n, d) -> (n, count)
    """One-hot: the nearest of `count` centres of k-means++ to each point."""
    if weights is None:
        first = torch.randint(len(x), (1,), generator=generator, device=x.device)
    else:
        first = torch.multinomial(weights, 1, generator=generator)
    least = (x - x[first]).square().sum(1)
    nearest = torch.zeros(len(x), dtype=torch.long, device=x.device)
    for k in range(1, count):
        chance = least + 1e-30
        chance = chance if weights is None else chance * weights
        distance = (x - x[torch.multinomial(chance, 1, generator=generator)]).square().sum(1)
        nearest = torch.where(distance < least, k, nearest)
        least = torch.minimum(distance, least)
    return torch.nn.functional.one_hot(nearest, count).to(x)
