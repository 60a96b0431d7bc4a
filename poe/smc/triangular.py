"""A triangular map fitted to particles: variables in which bananas and funnels look like
normals."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

MAX_DIMENSIONS = 40
STEEP = 30.0  # log scales stay within ± this, smoothly
NOISE = 4.0  # standard errors from 0 up to which a coefficient is taken to be 0


class Triangular(nn.Module):
    """u = (x - m)/s;   z_j = (u_j - μ_j(u_<j)) exp(-λ_j(u_<j)),   j = 1 ... d along an order of the
    coordinates,

    with μ_j a quadratic polynomial of the coordinates before, and λ_j = `STEEP`·tanh(v_j /
    `STEEP`), v_j linear in them. The inverse goes through the coordinates one by one. log|det
    dz/dx| = -Σ_j (λ_j + log s_j).

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

    def __init__(self, event_shape: torch.Size, **tensors: Tensor) -> None:
        super().__init__()
        self.event_shape = event_shape
        for name, tensor in tensors.items():
            self.register_buffer(name, tensor)

    def to_noise(self, x: Tensor) -> tuple[Tensor, Tensor]:
        # (*batch, *event) -> (*batch, *event), (*batch)
        """z and log|det dz/dx|."""
        flat = x.reshape(*x.shape[: x.ndim - len(self.event_shape)], -1)
        u = ((flat - self.centre) / self.scale)[..., self.order]
        mean = (
            self.constant
            + u @ self.linear.T
            + torch.einsum("jik,...i,...k->...j", self.quadratic, u, u)
        )
        steep = STEEP * ((self.level + u @ self.slope.T) / STEEP).tanh()
        z = (u - mean) * (-steep).exp()
        return z.reshape(x.shape), -steep.sum(-1) - self.scale.log().sum()

    def from_noise(self, z: Tensor) -> tuple[Tensor, Tensor]:
        # (*batch, *event) -> (*batch, *event), (*batch)
        """x and log|det dx/dz|."""
        flat = z.reshape(*z.shape[: z.ndim - len(self.event_shape)], -1)
        u, log_det = flat.new_zeros(*flat.shape[:-1], 0), self.scale.log().sum()
        for j in range(flat.shape[-1]):
            mean = (
                self.constant[j]
                + u @ self.linear[j, :j]
                + torch.einsum("ik,...i,...k->...", self.quadratic[j, :j, :j], u, u)
            )
            steep = STEEP * ((self.level[j] + u @ self.slope[j, :j]) / STEEP).tanh()
            u = torch.cat([u, (mean + steep.exp() * flat[..., j]).unsqueeze(-1)], -1)
            log_det = log_det + steep
        x = u[..., self.order.argsort()] * self.scale + self.centre
        return x.reshape(z.shape), log_det

    @classmethod
    def fitted(cls, x: Tensor, *, backwards: bool = False) -> Triangular | None:
        """From particles (n, *event), along the coordinates in their order or backwards; None in
        too many dimensions for them, or where numbers are too far apart for a regression."""
        flat = (x.flatten(1) if x.ndim > 1 else x.unsqueeze(1)).double()
        n, d = flat.shape
        if d > MAX_DIMENSIONS or n < 10 * (d + 1):
            return None
        order = torch.arange(d, device=x.device)
        order = order.flip(0) if backwards else order
        centre, scale = flat.mean(0), flat.std(0).clamp(min=1e-12)
        u = ((flat - centre) / scale)[:, order]
        constant, level, linear = u.new_zeros(d), u.new_zeros(d), u.new_zeros(d, d)
        slope, quadratic = torch.zeros_like(linear), u.new_zeros(d, d, d)
        for j in range(d):
            before = torch.cat([u.new_ones(n, 1), u[:, :j]], 1)
            i, k = torch.tril_indices(j, j)
            features = torch.cat([before, u[:, i] * u[:, k]], 1)
            try:
                mean, log_scale = _regress(features, before, u[:, j])
            except torch.linalg.LinAlgError:
                return None
            constant[j], linear[j, :j] = mean[0], mean[1 : j + 1]
            quadratic[j, i, k] = mean[j + 1 :]
            level[j], slope[j, :j] = log_scale[0], log_scale[1:]
        tensors = {
            "centre": centre,
            "scale": scale,
            "constant": constant,
            "linear": linear,
            "quadratic": quadratic,
            "level": level,
            "slope": slope,
        }
        return cls(
            x.shape[1:], order=order, **{name: tensor.to(x) for name, tensor in tensors.items()}
        )


def _regress(features: Tensor, before: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    # (n, f), (n, b), (n) -> (f), (b)
    """Coefficients of the mean and of the log standard deviation. Those within `NOISE` standard
    errors of 0 are set to 0 and the others
    fitted again: a map is used where it has seen no points, and noise there grows with the
    coordinates."""
    every = torch.ones(features.shape[1]).to(y) > 0, torch.ones(before.shape[1]).to(y) > 0
    mean, log_scale, errors = _fit(features, before, y, 3)
    kept = [
        chosen & (value.abs() > NOISE * error)
        for chosen, value, error in zip(every, (mean, log_scale), errors, strict=True)
    ]
    for chosen in kept:
        chosen[0] = True
    few = _fit(features[:, kept[0]], before[:, kept[1]], y, 4)
    mean, log_scale = torch.zeros_like(mean), torch.zeros_like(log_scale)
    mean[kept[0]], log_scale[kept[1]] = few[0], few[1]
    return mean, log_scale


def _fit(
    features: Tensor, before: Tensor, y: Tensor, rounds: int
) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
    """Coefficients of the mean and of the log standard deviation, and the standard errors of
    both."""
    log_scale = y.new_zeros(before.shape[1])
    log_scale[0] = math.log(0.5)
    small = 1e-6 * torch.eye(features.shape[1]).to(y)
    for _ in range(rounds):
        weight = (
            (-2 * (before @ log_scale)).clamp(-40, 40).exp()
        )  # of a regression only: no energy is touched
        normal = (features * weight.unsqueeze(1)).T @ features
        normal = normal + small * normal.diagonal().mean()
        mean = torch.linalg.solve(normal, features.T @ (weight * y))
        squares = (y - features @ mean).square() + 1e-12
        for _ in range(10):
            ratio = squares * (-2 * (before @ log_scale)).clamp(-40, 40).exp()
            hessian = (before * (2 * ratio + 1e-3).unsqueeze(1)).T @ before
            step = torch.linalg.solve(hessian, before.T @ (1 - ratio))
            log_scale = log_scale - step / (1 + step.abs().max())
    errors = [
        torch.linalg.inv(matrix).diagonal().clamp(min=0).sqrt() for matrix in (normal, hessian)
    ]
    return mean, log_scale, (errors[0], errors[1])
