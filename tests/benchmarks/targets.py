"""Hard targets with known answers. Each counts the points at which it was evaluated, with and
without a gradient."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

import poe
from poe.algebra import support as sets
from poe.algebra.energy import Density, Energy

Function = Callable[[Tensor], Tensor]
LOG_2PI = math.log(2 * math.pi)


class Tally:
    """Points evaluated, with and without a gradient."""

    def __init__(self) -> None:
        self.gradients = self.energies = 0

    def add(self, x: Tensor) -> None:  # (*batch, d)
        points = x.shape[:-1].numel()
        if x.requires_grad and torch.is_grad_enabled():
            self.gradients += points
        else:
            self.energies += points


class Opaque(Energy):
    """A function of which only finite mass and a bounded density are known."""

    proper = bounded = True

    def __init__(
        self, function: Function, d: int, *, name: str, support: sets.Constraint | None = None
    ) -> None:
        super().__init__((d,), support=support, name=name)
        self.function, self.tally = function, Tally()

    def forward(self, x: Tensor) -> Tensor:  # (*batch, d) -> (*batch)
        self.tally.add(x)
        return self.function(x)


class Mixed(Density):
    """A mixture of Gaussians that draws samples and has no closed form: (k) log weights that
    sum to 1, (k, d) means, and Cholesky factors of covariances, (k, d, d)."""

    bounded = True

    def __init__(self, log_weights: Tensor, means: Tensor, roots: Tensor, *, name: str) -> None:
        super().__init__(means.shape[1:], name=name)
        self.log_weights, self.means, self.roots, self.tally = log_weights, means, roots, Tally()
        self.inverse = torch.linalg.inv(roots)
        self.constant = (
            log_weights - roots.diagonal(dim1=1, dim2=2).log().sum(1) - means.shape[1] / 2 * LOG_2PI
        )

    def log_prob(self, x: Tensor) -> Tensor:  # (*batch, d) -> (*batch)
        self.tally.add(x)
        z = torch.einsum("kij,...kj->...ki", self.inverse.to(x), x.unsqueeze(-2) - self.means.to(x))
        return (self.constant.to(x) - z.square().sum(-1) / 2).logsumexp(-1)

    def sample(
        self, n: int | tuple[int, ...], *, generator: torch.Generator | None = None
    ) -> Tensor:
        shape = (n,) if isinstance(n, int) else tuple(n)
        which = torch.multinomial(
            self.log_weights.exp(), math.prod(shape), replacement=True, generator=generator
        )
        noise = torch.randn(len(which), self.means.shape[1], generator=generator)
        return (self.means[which] + torch.einsum("nij,nj->ni", self.roots[which], noise)).reshape(
            *shape, -1
        )


class Box(Density):
    """Uniform between two corners; it draws."""

    bounded = True

    def __init__(self, low: Sequence[float], high: Sequence[float], *, name: str = "box") -> None:
        self.low, self.high = torch.tensor(low), torch.tensor(high)
        super().__init__(self.low.shape, support=sets.box(self.low, self.high), name=name)

    def log_prob(self, x: Tensor) -> Tensor:  # (*batch, d) -> (*batch)
        return 0 * x.sum(-1) - (self.high - self.low).log().sum()

    def sample(
        self, n: int | tuple[int, ...], *, generator: torch.Generator | None = None
    ) -> Tensor:
        shape = (n,) if isinstance(n, int) else tuple(n)
        return self.low + (self.high - self.low) * torch.rand(
            *shape, len(self.low), generator=generator
        )


def opaque(density: Density, power: float = 1.0) -> Opaque:
    """density ** power, of which only the energy is known."""
    (d,) = density.event_shape
    return Opaque(lambda x: -power * density.log_prob(x), d, name=f"opaque_{density.name}")


def isotropic(means: Tensor, sd: float, *, name: str, log_weights: Tensor | None = None) -> Mixed:
    """Gaussians of one standard deviation; equal weights by default."""
    k, d = means.shape
    logs = torch.full((k,), -math.log(k)) if log_weights is None else log_weights
    return Mixed(logs, means, (sd * torch.eye(d)).expand(k, d, d), name=name)


# ---- forty Gaussians, cubed

MEANS40 = (torch.rand(40, 2, generator=torch.Generator().manual_seed(0)) - 0.5) * 80
SD40 = 2.1269


def forty() -> Mixed:
    return isotropic(MEANS40, SD40, name="gmm")


def forty_cubed() -> tuple[Mixed, float]:
    """q³, normalised, and its log Z: the product of three Gaussians is one, with a third of the
    variance, so q³ is 40³ of them."""
    variance = SD40**2
    triples = MEANS40.double()[torch.cartesian_prod(*[torch.arange(40)] * 3)]  # (40³, 3, 2)
    means = triples.mean(1)
    logs = -(triples - means.unsqueeze(1)).square().sum((1, 2)) / (2 * variance)
    logs = (
        logs
        + math.log(2 * math.pi * variance / 3)
        - 3 * math.log(2 * math.pi * variance)
        - 3 * math.log(40)
    )
    log_z = float(logs.logsumexp(0))
    kept = logs > logs.max() - 40  # the others weigh less than 64,000 e⁻⁴⁰ together
    law = isotropic(
        means[kept].float(),
        SD40 / math.sqrt(3),
        name="exact",
        log_weights=(logs[kept] - log_z).float(),
    )
    return law, log_z


# ---- a funnel, a grid of modes, a banana in 36 dimensions


def funnel(d: int = 10) -> Opaque:
    """x₀ ~ N(0, 3²), xᵢ ~ N(0, exp(x₀)); log Z is 0."""

    def energy(x: Tensor) -> Tensor:
        first, rest = x[..., 0], x[..., 1:]
        spread = rest.square().sum(-1) * (-first).exp() + (d - 1) * first
        return first.square() / 18 + spread / 2 + math.log(3) + d / 2 * LOG_2PI

    return Opaque(energy, d, name="funnel")


CENTRES = torch.cartesian_prod(*[torch.tensor([-5.0, 0.0, 5.0])] * 2)


def grid() -> Opaque:
    """Nine Gaussians of variance .3 and equal weight at {-5, 0, 5}²; log Z is 0."""
    return opaque(isotropic(CENTRES, math.sqrt(0.3), name="grid"))


def rosenbrock() -> Opaque:
    """Eighteen pairs with energy ((x - 1)² + (x² - y)²/.1)/2: x ~ N(1, 1), y ~ N(x², .1)."""

    def energy(v: Tensor) -> Tensor:
        x, y = v[..., :18], v[..., 18:]
        return ((x - 1).square() + (x.square() - y).square() / 0.1).sum(-1) / 2

    return Opaque(energy, 36, name="rosenbrock")


# ---- a product of Gaussians


def gaussians() -> tuple[Mixed, Mixed, float]:
    """N(1, A⁻¹) and N(-½, B⁻¹) in ten dimensions, A = diag(10⁻¹ ... 10), B with 2 on its diagonal
    and .9 beside it; and log Z of their product."""
    ones = torch.ones(10, dtype=torch.float64)
    first, second = (
        torch.logspace(-1, 1, 10, dtype=torch.float64).diag(),
        2 * ones.diag() + _beside(0.9),
    )
    covariances = torch.stack([first.inverse(), second.inverse()])
    parts = [
        Mixed(
            torch.zeros(1),
            torch.full((1, 10), mean),
            torch.linalg.cholesky(cov).float().unsqueeze(0),
            name=name,
        )
        for mean, cov, name in zip((1.0, -0.5), covariances, ("first", "second"), strict=True)
    ]
    law = torch.distributions.MultivariateNormal(-ones / 2, covariances.sum(0))
    return parts[0], parts[1], float(law.log_prob(ones))


def _beside(value: float) -> Tensor:
    return value * (
        torch.ones(9, dtype=torch.float64).diag(1) + torch.ones(9, dtype=torch.float64).diag(-1)
    )


# ---- shapes in the plane

RING = 0.5 * torch.stack(
    [torch.arange(8).mul(math.pi / 4).cos(), torch.arange(8).mul(math.pi / 4).sin()], 1
)
RING_SD, WALL, LINE = 0.03, 0.005, 0.02


def ring() -> Mixed:
    return isotropic(RING, RING_SD, name="ring")


def strip() -> Box:
    return Box([-0.2, -1.0], [0.2, 1.0])


def square(half: float) -> Opaque:
    """[-half, half]² with walls that rise by a nat in `WALL`: E = Σ softplus((|xᵢ| -
    half)/WALL)."""
    wall = torch.nn.functional.softplus
    return Opaque(
        lambda x: wall((x.abs() - half) / WALL).sum(-1), 2, name=f"square{half:g}".replace(".", "_")
    )


def circle(at: float) -> Opaque:
    """The unit circle about (at, 0), a line with standard deviation `LINE`."""
    return Opaque(
        lambda x: ((x - x.new_tensor([at, 0])).norm(dim=-1) - 1).square() / (2 * LINE**2),
        2,
        name=_side("circle", at),
    )


def disc(at: float) -> Opaque:
    """The unit disc about (at, 0), with a wall that rises by a nat in `WALL`."""
    wall = torch.nn.functional.softplus
    return Opaque(
        lambda x: wall(((x - x.new_tensor([at, 0])).norm(dim=-1) - 1) / WALL),
        2,
        name=_side("disc", at),
    )


def _side(what: str, at: float) -> str:
    return f"{what}_{'right' if at > 0 else 'left'}"


def quadrature(energy: Energy, half: float, steps: int = 4000) -> tuple[float, Tensor, Tensor]:
    """log Z over [-half, half]² by the midpoint rule, the points (n, 2), and their probabilities
    (n)."""
    side = half * (2 * (torch.arange(steps, dtype=torch.float64) + 0.5) / steps - 1)
    points = torch.cartesian_prod(side, side)
    with torch.no_grad():
        logs = torch.cat([-energy(part).double() for part in points.split(500_000)])
    return float(logs.logsumexp(0)) + 2 * math.log(2 * half / steps), points, logs.softmax(0)


def not_square() -> Energy:
    """The square of side 2 but not that of side 1."""
    return poe.contrast(square(1.0), square(0.5), strength=8.0)


def in_shell(x: Tensor) -> Tensor:  # (n, 2) -> (n)
    far = x.abs().amax(-1)
    return (far <= 1) & (far > 0.5)


def on_both(x: Tensor, sds: float = 3.0) -> Tensor:  # (n, 2) -> (n)
    """Within so many standard deviations of both circles."""
    gaps = torch.stack([(x - x.new_tensor([at, 0])).norm(dim=-1) - 1 for at in (-0.5, 0.5)])
    return (gaps.abs() <= sds * LINE).all(0)


def in_lens(x: Tensor) -> Tensor:  # (n, 2) -> (n)
    return torch.stack([(x - x.new_tensor([at, 0])).norm(dim=-1) <= 1 for at in (-0.5, 0.5)]).all(0)


def tallies(energy: Energy) -> list[Tally]:
    return [leaf.tally for leaf in poe.leaves(energy) if isinstance(leaf, (Opaque, Mixed))]
