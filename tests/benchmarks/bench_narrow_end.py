"""How often the look into the narrow end gives an alarm: of exact draws, and of draws that lack a
neck.

    python tests/benchmarks/bench_narrow_end.py [sets] [word in the name]

Every target has exact draws. "fires" is the share of sets of 1,000 draws with an alarm (level
.01): of exact draws it should be ≤ .01, of cut draws as large as can be. `q.06` drops the 6 % of
the mass that lie deepest in the neck.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

import poe
from poe.diagnostics.narrow_end import LEVEL
from poe.smc.narrow_end import narrow_end

Draw = Callable[[int, torch.Generator], Tensor]
QUANTILES = 0.06, 0.16
F64 = torch.float64


class Function(poe.Energy):
    """A function (n, d) -> (n) as an energy."""

    proper = bounded = True

    def __init__(self, function: Callable[[Tensor], Tensor], d: int, dtype: torch.dtype) -> None:
        super().__init__((d,))
        self.function = function
        self.register_buffer("like", torch.zeros(1, dtype=dtype))

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x.reshape(-1, x.shape[-1])).reshape(x.shape[:-1])


@dataclass(frozen=True)
class Target:
    """A target with exact draws; `depth` is smallest deep in its neck, `cuts` values of it below
    which draws are dropped."""

    name: str
    draw: Draw
    energy: Callable[[Tensor], Tensor]
    depth: Callable[[Tensor], Tensor] | None = None
    cuts: tuple[float, ...] = ()

    def cut(self, below: float) -> Draw:
        """Draws without those of smaller depth."""

        def draw(n: int, generator: torch.Generator) -> Tensor:
            assert self.depth is not None
            x = self.draw(4 * n, generator)
            return x[self.depth(x) > below][:n]

        return draw


def normals(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator, dtype=F64)


def funnel(
    d: int, sd: float = 3.0, cuts: tuple[float, ...] = (), turn: Tensor | None = None
) -> Target:
    """v ~ N(0, sd²), x_i ~ N(0, e^v); turned by an orthogonal matrix, if any."""
    name = f"funnel d={d} sd={sd:g}" + ("" if turn is None else " turned")
    turn = torch.eye(d, dtype=F64) if turn is None else turn

    def draw(n: int, generator: torch.Generator) -> Tensor:
        z = normals(generator, n, d)
        v = sd * z[:, :1]
        return torch.cat([v, z[:, 1:] * (v / 2).exp()], 1) @ turn

    def energy(y: Tensor) -> Tensor:
        x = y @ turn.to(y).T
        v = x[:, 0]
        rest = x[:, 1:].square().sum(1) * (-v).exp() + (d - 1) * v
        return v.square() / (2 * sd**2) + rest / 2

    return Target(name, draw, energy, lambda x: x @ turn[0], cuts)


def two_funnels(d: int) -> Target:
    """Two funnels of d coordinates side by side."""
    one = funnel(d)

    def draw(n: int, generator: torch.Generator) -> Tensor:
        return torch.cat([one.draw(n, generator), one.draw(n, generator)], 1)

    return Target(
        f"two funnels d={d}",
        draw,
        lambda x: one.energy(x[:, :d]) + one.energy(x[:, d:]),
        lambda x: x[:, d],
    )


def schools(y: Tensor, s: Tensor, name: str, cuts: tuple[float, ...] = ()) -> Target:
    """y_j ~ N(θ_j, s_j²), θ_j ~ N(μ, τ²), μ ~ N(0, 5²), τ ~ Cauchy⁺(5); x = (θ, μ, log τ). log τ
    from a grid, the rest in closed form."""
    count, grid = len(y), torch.linspace(-12, 6, 20001, dtype=F64)

    def given(t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        v = s**2 + (2 * t).exp()[:, None]
        precision = (1 / v).sum(1) + 1 / 25
        return v, precision, (y / v).sum(1) / precision

    v, precision, mean = given(grid)
    log_p = grid - ((grid.exp() / 5) ** 2).log1p()
    log_p = log_p - (v.log().sum(1) + precision.log() + (y**2 / v).sum(1)) / 2
    mass = (log_p + mean.square() * precision / 2).softmax(0)

    def draw(n: int, generator: torch.Generator) -> Tensor:
        t = grid[torch.multinomial(mass, n, replacement=True, generator=generator)]
        t = t + (torch.rand(n, generator=generator, dtype=F64) - 0.5) * (grid[1] - grid[0])
        _, precision, mean = given(t)
        mu = mean + normals(generator, n) / precision.sqrt()
        own = 1 / s**2 + (-2 * t).exp()[:, None]
        theta = (y / s**2 + mu[:, None] * (-2 * t).exp()[:, None]) / own
        theta = theta + normals(generator, n, count) / own.sqrt()
        return torch.cat([theta, mu[:, None], t[:, None]], 1)

    def energy(x: Tensor) -> Tensor:
        theta, mu, t = x[:, :count], x[:, count : count + 1], x[:, count + 1]
        prior = ((t.exp() / 5) ** 2).log1p() - t + mu[:, 0].square() / 50
        spread = ((theta - mu) * (-t).exp()[:, None]).square().sum(1) / 2 + count * t
        return prior + spread + ((y.to(x) - theta) / s.to(x)).square().sum(1) / 2

    return Target(name, draw, energy, lambda x: x[:, -1], cuts)


EIGHT = (
    torch.tensor([28.0, 8, -3, 7, -1, 1, 18, 12], dtype=F64),
    torch.tensor([15.0, 10, 16, 11, 9, 11, 10, 18], dtype=F64),
)


def other_schools(count: int, tau: float, seed: int) -> Target:
    """Data of other schools."""
    generator = torch.Generator().manual_seed(seed)
    s = 5 + 10 * torch.rand(count, generator=generator, dtype=F64)
    y = 4 + (tau**2 + s**2).sqrt() * normals(generator, count)
    return schools(y, s, f"schools J={count} tau={tau:g}")


def horseshoe(count: int) -> Target:
    """x_j ~ N(0, λ_j²), λ_j ~ Cauchy⁺(1), in (log λ, x)."""

    def draw(n: int, generator: torch.Generator) -> Tensor:
        t = (math.pi / 2 * torch.rand(n, count, generator=generator, dtype=F64)).tan().log()
        return torch.cat([t, t.exp() * normals(generator, n, count)], 1)

    def energy(x: Tensor) -> Tensor:
        t, z = x[:, :count], x[:, count:] * (-x[:, :count]).exp()
        return ((2 * t).exp().log1p() + z.square() / 2).sum(1)

    return Target(f"horseshoe {count}", draw, energy, lambda x: x[:, 0])


def inverse_gamma(d: int, nu: float) -> Target:
    """Student-t with its scale written out: s² ~ ν/χ²_ν, x ~ N(0, s² I), in (log s², x)."""

    def draw(n: int, generator: torch.Generator) -> Tensor:
        gamma = torch._standard_gamma(torch.full((n,), nu / 2, dtype=F64), generator=generator)
        t = -(gamma * 2 / nu).log()[:, None]
        return torch.cat([t, (t / 2).exp() * normals(generator, n, d - 1)], 1)

    def energy(x: Tensor) -> Tensor:
        t, rest = x[:, 0], x[:, 1:].square().sum(1)
        return nu / 2 * (t + (-t).exp()) + (rest * (-t).exp() + (d - 1) * t) / 2

    return Target(f"scale of t({nu:g}) d={d}", draw, energy, lambda x: x[:, 0])


def regression(rows: int, d: int, seed: int) -> Target:
    """y ~ N(Xβ, σ² I) with a flat prior of (β, log σ): normal given σ, scaled χ² of σ."""
    generator = torch.Generator().manual_seed(seed)
    design = normals(generator, rows, d)
    y = design @ normals(generator, d) + normals(generator, rows)
    root = torch.linalg.cholesky(torch.linalg.inv(design.T @ design))
    best = torch.linalg.lstsq(design, y).solution
    rest = float((y - design @ best).square().sum())

    def draw(n: int, generator: torch.Generator) -> Tensor:
        shape = torch.full((n,), (rows - d) / 2, dtype=F64)
        t = (rest / (2 * torch._standard_gamma(shape, generator=generator))).log()[:, None] / 2
        return torch.cat([best + t.exp() * normals(generator, n, d) @ root.T, t], 1)

    def energy(x: Tensor) -> Tensor:
        error = (y.to(x) - x[:, :d] @ design.to(x).T).square().sum(1)
        return rows * x[:, d] + error * (-2 * x[:, d]).exp() / 2

    return Target(f"regression {rows}x{d}", draw, energy, lambda x: x[:, d])


def banana(curvature: float, d: int = 2) -> Target:
    """x ~ N(0, 1), y_i ~ N(b x², .3²)."""

    def draw(n: int, generator: torch.Generator) -> Tensor:
        z = normals(generator, n, d)
        return torch.cat([z[:, :1], curvature * z[:, :1].square() + 0.3 * z[:, 1:]], 1)

    def energy(x: Tensor) -> Tensor:
        bent = (x[:, 1:] - curvature * x[:, :1].square()) / 0.3
        return x[:, 0].square() / 2 + bent.square().sum(1) / 2

    return Target(f"banana {curvature:g} d={d}", draw, energy)


def gaussian(d: int, condition: float, seed: int = 0) -> Target:
    """A turned normal."""
    turn = torch.linalg.qr(normals(torch.Generator().manual_seed(seed), d, d)).Q
    sd = torch.logspace(0, math.log10(condition) / 2, d, dtype=F64)
    return Target(
        f"normal d={d} condition {condition:g}",
        lambda n, generator: (normals(generator, n, d) * sd) @ turn,
        lambda x: ((x @ turn.to(x).T) / sd.to(x)).square().sum(1) / 2,
    )


def mixture(name: str, weights: list[float], means: Tensor, sds: list[float]) -> Target:
    """Isotropic normals."""
    w, sd = torch.tensor(weights, dtype=F64), torch.tensor(sds, dtype=F64)
    means = means.to(F64)

    def draw(n: int, generator: torch.Generator) -> Tensor:
        k = torch.multinomial(w, n, replacement=True, generator=generator)
        return means[k] + sd[k, None] * normals(generator, n, means.shape[1])

    def energy(x: Tensor) -> Tensor:
        z = (x[:, None] - means.to(x)).square().sum(-1) / sd.to(x) ** 2
        return -((w / sd ** means.shape[1]).log().to(x) - z / 2).logsumexp(1)

    return Target(name, draw, energy)


def two_modes(d: int) -> Target:
    """2/3 N(-2/3·1, .05 I) + 1/3 N(4/3·1, .05 I)."""
    means = torch.stack([torch.full((d,), -2 / 3), torch.full((d,), 4 / 3)])
    return mixture(f"two modes d={d}", [2 / 3, 1 / 3], means, [math.sqrt(0.05)] * 2)


def student(d: int, nu: float, together: bool) -> Target:
    """Student-t, multivariate or independent."""

    def draw(n: int, generator: torch.Generator) -> Tensor:
        shape = torch.full((n, 1 if together else d), nu / 2, dtype=F64)
        gamma = torch._standard_gamma(shape, generator=generator)
        return normals(generator, n, d) / (gamma * 2 / nu).sqrt()

    def energy(x: Tensor) -> Tensor:
        if together:
            return (nu + d) / 2 * (x.square().sum(1) / nu).log1p()
        return ((nu + 1) / 2 * (x.square() / nu).log1p()).sum(1)

    return Target(f"t({nu:g}) d={d} {'multivariate' if together else 'independent'}", draw, energy)


def log_gammas(d: int, shape: float) -> Target:
    """x_i = log of a Gamma(shape) number: skew, curvature e^x along each coordinate."""

    def draw(n: int, generator: torch.Generator) -> Tensor:
        return torch._standard_gamma(
            torch.full((n, d), shape, dtype=F64), generator=generator
        ).log()

    return Target(f"log gamma({shape:g}) d={d}", draw, lambda x: (x.exp() - shape * x).sum(1))


def targets() -> list[Target]:
    """The five of the contract first."""
    turn = torch.linalg.qr(normals(torch.Generator().manual_seed(3), 10, 10)).Q
    far = torch.zeros(2, 8)
    far[1, 0] = 5.0
    return [
        schools(*EIGHT, "eight schools", (math.log(0.3), math.log(0.6))),
        funnel(10, cuts=(-3.0, -1.0)),
        banana(1.0),
        gaussian(10, 100.0),
        two_modes(8),
        funnel(2),
        funnel(5, 1.0),
        funnel(10, 1.5),
        funnel(50),
        funnel(100, 2.0),
        funnel(10, turn=turn),
        two_funnels(6),
        other_schools(3, 1.0, 1),
        other_schools(5, 10.0, 2),
        other_schools(20, 2.0, 3),
        other_schools(50, 0.5, 4),
        horseshoe(1),
        horseshoe(5),
        inverse_gamma(10, 2.0),
        inverse_gamma(3, 5.0),
        regression(12, 5, 5),
        regression(100, 10, 6),
        banana(0.2),
        banana(3.0),
        banana(1.0, 10),
        gaussian(1, 1.0),
        gaussian(2, 1e4),
        gaussian(100, 1e3),
        two_modes(32),
        mixture("broad and narrow .2", [0.5, 0.5], far, [1.0, 0.2]),
        mixture("concentric .1", [0.5, 0.5], torch.zeros(2, 5), [1.0, 0.1]),
        mixture("narrow, 5 %", [0.95, 0.05], 0.3 * far, [1.0, 0.3]),
        student(5, 2.0, True),
        student(5, 2.0, False),
        student(1, 1.0, True),
        log_gammas(1, 0.5),
        log_gammas(8, 0.3),
    ]


def trial(target: Target, draw: Draw, sets: int, what: str, dtype: torch.dtype = F64) -> None:
    """One line of the table."""
    draws, looks = (torch.Generator().manual_seed(seed) for seed in (1, 2))
    found, started = [], time.perf_counter()
    for _ in range(sets):
        x = draw(1000, draws).to(dtype)
        found.append(narrow_end(Function(target.energy, x.shape[1], dtype), x, looks))
    seconds = (time.perf_counter() - started) / sets
    records = [record for record in found if record is not None]
    share = [sum(r.pvalue < p for r in records) / sets for p in (LEVEL, 1e-2, 1e-1)]
    cost = sum(r.gradients for r in records) / max(len(records), 1)
    print(
        f"{target.name:28s} {what:10s} fires {share[0]:.3f}  p < .01 {share[1]:.3f}  < .1 "
        f"{share[2]:.2f}  none {sets - len(records)}  gradients {cost:6.0f}  {seconds:.2f} s  "
        f"{records[-1].line() if records else ''}",
        flush=True,
    )


def main() -> None:
    """All targets whose name has a word, or all."""
    torch.set_num_threads(1)
    sets = int(sys.argv[1]) if len(sys.argv) > 1 else 200
    word = sys.argv[2] if len(sys.argv) > 2 else ""
    for target in targets():
        if word not in target.name:
            continue
        trial(target, target.draw, sets, "exact")
        if target.depth is None:
            continue
        for below in target.cuts:
            trial(target, target.cut(below), sets // 2, f"> {below:.2f}")
        depth = target.depth(target.draw(100_000, torch.Generator().manual_seed(0)))
        for quantile in QUANTILES:
            below = float(depth.quantile(quantile))
            trial(target, target.cut(below), sets // 2, f"q{quantile:g}")


if __name__ == "__main__":
    main()
