"""A triangular map fitted to particles, under which curved targets and funnels are close to
normal."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from poe.diagnostics.weights import weight_ess

MAX_DIMENSIONS = 40
MAX_LOG_SCALE = 30.0  # a smooth bound of ±log scales, in nats
MIN_Z_SCORE = 4.0  # standard errors from 0 below which a coefficient is set to 0


class Triangular(nn.Module):
    """u = (x - m)/s;   z_j = (u_j - μ_j(u_<j)) exp(-λ_j(u_<j)),   j = 1 ... d along an order of the
    coordinates,

    with μ_j a quadratic polynomial of the coordinates before, and λ_j = b·tanh(v_j / b),
    b = `MAX_LOG_SCALE`, v_j linear in those and in their hyperbolas √(1 + u²): so the log scale has
    a slope on either side, as where a standard deviation follows a scale until the data bound it.
    The inverse goes through the coordinates one by one.
    log|det dz/dx| = -Σ_j (λ_j + log s_j).

    Fitted by maximum likelihood of independent standard normal z_j: for each j in turn, μ_j by
    weighted least squares and v_j by Newton's method on the convex Σ_i ½ r_i² exp(-2 v_i) + v_i,
    alternately. Reference: Parno and Marzouk 2018, SIAM/ASA J. Uncertainty Quantification 6(2)
    (triangular transport maps found from samples).
    """

    order: Tensor
    centre: Tensor
    scale: Tensor
    constant: Tensor
    linear: Tensor
    quadratic: Tensor
    level: Tensor
    slope: Tensor
    bend: Tensor

    def __init__(self, event_shape: torch.Size, **tensors: Tensor) -> None:
        super().__init__()
        self.event_shape = event_shape
        for name, tensor in tensors.items():
            self.register_buffer(name, tensor)
        self.squares = self.quadratic.any(0).nonzero().unbind(1)
        self.stages = _stages(self.linear, self.quadratic, self.slope, self.bend)

    def to_noise(self, x: Tensor) -> tuple[Tensor, Tensor]:
        # (*batch, *event) -> (*batch, *event), (*batch)
        """z and log|det dz/dx|."""
        flat = x.reshape(*x.shape[: x.ndim - len(self.event_shape)], -1)
        u = ((flat - self.centre) / self.scale)[..., self.order]
        i, k = self.squares
        products = u[..., i] * u[..., k]
        mean = self.constant + u @ self.linear.T + products @ self.quadratic[:, i, k].T
        log_scale = _bounded(self.level + u @ self.slope.T + _hyperbola(u) @ self.bend.T)
        z = (u - mean) * (-log_scale).exp()
        return z.reshape(x.shape), -log_scale.sum(-1) - self.scale.log().sum()

    def from_noise(self, z: Tensor) -> tuple[Tensor, Tensor]:
        # (*batch, *event) -> (*batch, *event), (*batch)
        """x and log|det dx/dz|: coordinates that depend on none of each other in one step."""
        flat = z.reshape(*z.shape[: z.ndim - len(self.event_shape)], -1)
        u = flat.new_zeros(*flat.shape[:-1], 0)
        log_det = self.scale.log().sum().expand(flat.shape[:-1])
        for stage in self.stages:
            own, parents = stage.own, stage.parents
            before = u[..., stage.places]
            mean = self.constant[own] + before @ self.linear[own][:, parents].T
            if len(stage.squares[0]):
                products = before[..., stage.squares[0]] * before[..., stage.squares[1]]
                i, k = parents[stage.squares[0]], parents[stage.squares[1]]
                mean = mean + products @ self.quadratic[own][:, i, k].T
            level = self.level[own]
            if stage.scaled:
                level = level + before @ self.slope[own][:, parents].T
                level = level + _hyperbola(before) @ self.bend[own][:, parents].T
            log_scale = _bounded(level)
            u = torch.cat([u, mean + log_scale.exp() * flat[..., own]], -1)
            log_det = log_det + log_scale.sum(-1)
        found = torch.cat([stage.own for stage in self.stages])
        # u is in the order of the stages; those are in the order of the map
        x = u[..., found.argsort()[self.order.argsort().to(found)]] * self.scale + self.centre
        return x.reshape(z.shape), log_det

    @classmethod
    def fitted(
        cls,
        x: Tensor,
        *,
        order: Tensor | None = None,
        log_weights: Tensor | None = None,
        bent: bool = False,
    ) -> Triangular | None:
        """From particles (n, *event), along the coordinates in an order (d), their own by default;
        None above `MAX_DIMENSIONS`, for too few particles, or where a regression is singular.

        `log_weights` (n) in nats are importance weights of the points, which then count as many
        points as are effective. `bent`: whether log scales may be hyperbolas of the coordinates.
        """
        flat = (x.flatten(1) if x.ndim > 1 else x.unsqueeze(1)).double()
        (n, d), mass = flat.shape, flat.new_ones(len(flat))
        if log_weights is not None:
            size = float(weight_ess(log_weights))
            kept = log_weights > -math.inf
            flat, mass = flat[kept], size * log_weights[kept].double().softmax(0)
            n = len(flat)
        if d > MAX_DIMENSIONS or mass.sum() < 10 * (d + 1):
            return None
        order = torch.arange(d) if order is None else order
        order = order.to(x.device)
        centre = mass @ flat / mass.sum()
        scale = (mass @ (flat - centre).square() / (mass.sum() - 1)).sqrt().clamp(min=1e-12)
        u = ((flat - centre) / scale)[:, order]
        constant, level, linear = u.new_zeros(d), u.new_zeros(d), u.new_zeros(d, d)
        slope, bend, quadratic = linear.clone(), linear.clone(), u.new_zeros(d, d, d)
        # products of the first j coordinates are the first j(j+1)/2
        rows, columns = torch.tril_indices(d - 1, d - 1, device=x.device)
        products, ones = u[:, rows] * u[:, columns], u.new_ones(n, 1)
        for j in range(d):
            i, k = rows[: j * (j + 1) // 2], columns[: j * (j + 1) // 2]
            before = torch.cat([ones, u[:, :j]], 1)
            features = torch.cat([before, products[:, : len(i)]], 1)
            scales = torch.cat([before, _hyperbola(u[:, :j])], 1) if bent else before
            try:
                mean, log_scale = _regress(features, scales, u[:, j], mass)
            except torch.linalg.LinAlgError:
                return None
            constant[j], linear[j, :j] = mean[0], mean[1 : j + 1]
            quadratic[j, i, k] = mean[j + 1 :]
            level[j], slope[j, :j] = log_scale[0], log_scale[1 : j + 1]
            if bent:
                bend[j, :j] = log_scale[j + 1 :]
        found = centre, scale, constant, linear, quadratic, level, slope, bend
        names = "centre", "scale", "constant", "linear", "quadratic", "level", "slope", "bend"
        tensors = {name: tensor.to(x) for name, tensor in zip(names, found, strict=True)}
        return cls(x.shape[1:], order=order, **tensors)


def links(x: Tensor) -> Tensor:  # (n, *event) -> (d, d)
    """corr(u_j, log|r_k|)² for j ≠ k, r_k what remains of u_k after its linear regression on all
    others: how far the scale of k follows the coordinate j. Zeros where the others determine one.
    """
    flat = (x.flatten(1) if x.ndim > 1 else x.unsqueeze(1)).double()
    u = (flat - flat.mean(0)) / flat.std(0).clamp(min=1e-12)
    precision, failed = torch.linalg.inv_ex(u.T @ u / len(u))
    if failed:
        return torch.zeros_like(precision)
    size = (u @ precision).abs().clamp(min=1e-300).log()
    size = (size - size.mean(0)) / size.std(0).clamp(min=1e-12)
    return (u.T @ size / len(u)).square().fill_diagonal_(0)


def scales_first(x: Tensor) -> Tensor:  # (n, *event) -> (d)
    """An order of the coordinates in which those come first on which the scales of the others
    depend, by the falling sum of their `links`."""
    return links(x).sum(1).argsort(descending=True, stable=True).cpu()


class _Stage(NamedTuple):
    """Coordinates (in the order of the map) that do not depend on each other; those that they
    depend on, and their places among all that come in the stages before; pairs of those whose
    products matter; and whether their scales depend on them."""

    own: Tensor
    parents: Tensor
    places: Tensor
    squares: tuple[Tensor, ...]
    scaled: bool


def _stages(linear: Tensor, quadratic: Tensor, slope: Tensor, bend: Tensor) -> list[_Stage]:
    """The coordinates in as few stages as their dependence allows, on the CPU."""
    slope = slope.abs() + bend.abs()  # not 0 where either is not
    linear, quadratic, slope = (part.detach().cpu() for part in (linear, quadratic, slope))
    depends = (linear != 0) | (slope != 0) | (quadratic != 0).any(1) | (quadratic != 0).any(2)
    depth = torch.zeros(len(linear), dtype=torch.long)
    for j in range(len(linear)):
        depth[j] = 1 + int(depth[depends[j]].amax()) if bool(depends[j].any()) else 0
    stages, known = [], torch.zeros(0, dtype=torch.long)
    for level in depth.unique():
        own = (depth == level).nonzero().squeeze(1)
        parents = depends[own].any(0).nonzero().squeeze(1)
        places = (parents.unsqueeze(1) == known).long().argmax(1) if len(parents) else parents
        pairs = quadratic[own].any(0)[parents][:, parents].nonzero().unbind(1)
        stages.append(_Stage(own, parents, places, pairs, bool(slope[own].any())))
        known = torch.cat([known, own])
    return stages


def _hyperbola(u: Tensor) -> Tensor:
    return (1 + u.square()).sqrt()


def _bounded(v: Tensor) -> Tensor:
    """A log scale, smoothly bounded by ±`MAX_LOG_SCALE`."""
    return MAX_LOG_SCALE * (v / MAX_LOG_SCALE).tanh()


def _regress(features: Tensor, before: Tensor, y: Tensor, mass: Tensor) -> tuple[Tensor, Tensor]:
    # (n, f), (n, b), (n), (n) -> (f), (b)
    """Coefficients of the mean and of the log standard deviation, from points that count `mass`
    each. Those within `MIN_Z_SCORE`
    standard errors of 0 are set to 0 and the others fitted again: the map is also used far from the
    points, where errors grow with the coordinates."""
    mean, log_scale, errors = _fit(features, before, y, mass, 3)
    kept = [
        value.abs() > MIN_Z_SCORE * error
        for value, error in zip((mean, log_scale), errors, strict=True)
    ]
    for chosen in kept:
        chosen[0] = True
    few = _fit(features[:, kept[0]], before[:, kept[1]], y, mass, 4)
    mean, log_scale = torch.zeros_like(mean), torch.zeros_like(log_scale)
    mean[kept[0]], log_scale[kept[1]] = few[0], few[1]
    return mean, log_scale


def _fit(
    features: Tensor, before: Tensor, y: Tensor, mass: Tensor, rounds: int
) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
    """Coefficients of the mean and of the log standard deviation, and the standard errors of both.
    It ends after the first round where no slope of the log standard deviation is `MIN_Z_SCORE`
    standard errors from 0: the weights of the next one would be those of this one, but for noise.
    """
    log_scale = y.new_zeros(before.shape[1])
    log_scale[0] = math.log(0.5)
    small = 1e-6 * torch.eye(features.shape[1]).to(y)
    for turn in range(rounds):
        # clamped for the regression only: no energy is
        weight = (-2 * (before @ log_scale)).clamp(-40, 40).exp()
        normal = features.T @ (features * (mass * weight).unsqueeze(1))
        normal = normal + small * normal.diagonal().mean()
        mean = torch.linalg.solve(normal, features.T @ (mass * weight * y))
        squares = (y - features @ mean).square() + 1e-12
        log_scale, hessian = _log_scale(before, squares, mass, log_scale)
        slope_errors = torch.linalg.inv(hessian).diagonal().clamp(min=0).sqrt()
        if not bool((log_scale.abs() > MIN_Z_SCORE * slope_errors)[1:].any()):
            if turn == 0:  # the weights of this round were a guess
                normal = normal * ((-2 * log_scale[0]).exp() / weight[0])
            break
    return mean, log_scale, (torch.linalg.inv(normal).diagonal().clamp(min=0).sqrt(), slope_errors)


def _log_scale(
    before: Tensor, squares: Tensor, mass: Tensor, log_scale: Tensor
) -> tuple[Tensor, Tensor]:
    # (n, b), (n), (n), (b) -> (b), (b, b)
    """Newton's method on Σ_i m_i (½ s_i exp(-2 v_i) + v_i), v linear in `before`, and its
    Hessian."""
    for _ in range(10):
        ratio = squares * (-2 * (before @ log_scale)).clamp(-40, 40).exp()
        hessian = before.T @ (before * (mass * (2 * ratio + 1e-3)).unsqueeze(1))
        step = torch.linalg.solve(hessian, before.T @ (mass * (1 - ratio)))
        step = step / (1 + step.abs().max())
        log_scale = log_scale - step
        if float(step.abs().max()) < 1e-4:  # far below the standard errors, 1/√(2n)
            break
    return log_scale, hessian
