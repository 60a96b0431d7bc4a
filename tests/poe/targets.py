"""Small targets with known answers, written apart from the experts under test."""

from __future__ import annotations

import math

import torch
from torch import Tensor

import poe


class Gauss(poe.Density):
    """N(loc, sd²) over d coordinates."""

    def __init__(self, loc: float, sd: float = 1.0, d: int = 2, name: str | None = None) -> None:
        super().__init__((d,), name=name)
        self.loc, self.sd, self.d = loc, sd, d

    @property
    def bounded(self) -> bool:
        return True

    def log_prob(self, x: Tensor) -> Tensor:  # (*batch, d) -> (*batch)
        z = (x - self.loc) / self.sd
        return (-0.5 * z**2 - math.log(self.sd) - 0.5 * math.log(2 * math.pi)).sum(-1)

    def sample(
        self, n: int | tuple[int, ...], *, generator: torch.Generator | None = None
    ) -> Tensor:
        shape = (n,) if isinstance(n, int) else tuple(n)
        return self.loc + self.sd * torch.randn(*shape, self.d, generator=generator)


class Skewed(poe.Density):
    """An asymmetric density with exact draws: x0 = log of a Gamma(2, 1) number, x1 ~ N(x0²/2,
    1)."""

    def __init__(self) -> None:
        super().__init__((2,), name="skewed")

    @property
    def bounded(self) -> bool:
        return True

    def log_prob(self, x: Tensor) -> Tensor:  # (*batch, 2) -> (*batch)
        a, b = x[..., 0], x[..., 1]
        return 2 * a - a.exp() - 0.5 * (b - a**2 / 2) ** 2 - 0.5 * math.log(2 * math.pi)

    def sample(
        self, n: int | tuple[int, ...], *, generator: torch.Generator | None = None
    ) -> Tensor:
        shape = (n,) if isinstance(n, int) else tuple(n)
        u = torch.rand(*shape, 2, generator=generator).clamp(min=1e-30)
        a = (-u.log().sum(-1)).log()  # the sum of two unit exponentials is Gamma(2, 1)
        return torch.stack([a, a**2 / 2 + torch.randn(*shape, generator=generator)], -1)


class Raw(poe.Energy):
    """Any function as an energy on R^d."""

    def __init__(self, function, d: int = 2, name: str = "raw", proper: bool | None = True) -> None:
        super().__init__((d,), name=name)
        self.function, self._proper = function, proper

    @property
    def proper(self) -> bool | None:
        return self._proper

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class Score(poe.Energy):
    """What is left of an energy when only its score is known."""

    score_only = True

    def __init__(self, energy: poe.Energy) -> None:
        super().__init__(energy.event_shape, name="score")
        self.hidden = [energy]  # no part of the expression
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        raise TypeError("a score and no energy")

    def _value_and_grad(self, x: Tensor) -> tuple[Tensor, Tensor]:
        self.calls += 1
        value, gradient = self.hidden[0].value_and_grad(x)
        return torch.full_like(value, math.nan), gradient


def but_not(a: poe.Density, b: poe.Density, n: int, generator: torch.Generator) -> Tensor:
    """Exact draws of a - b by rejection: a draw of a is kept with probability p_a / (p_a + p_b)."""
    x = a.sample(6 * n, generator=generator)
    keep = torch.rand(len(x), generator=generator) < torch.sigmoid(a.log_prob(x) - b.log_prob(x))
    kept = x[keep]
    assert len(kept) >= n
    return kept[:n]


def ks_pvalue(before: Tensor, after: Tensor) -> float:
    """Smallest two-sample Kolmogorov-Smirnov p-value over fixed one-dimensional views,
    Bonferroni-corrected."""
    from scipy.stats import ks_2samp

    d = before.shape[-1]
    directions = torch.cat(
        [torch.eye(d), torch.ones(1, d), torch.tensor([[(-1.0) ** i for i in range(d)]])]
    )
    views = [(before @ v, after @ v) for v in directions] + [
        (before.square().sum(-1), after.square().sum(-1))
    ]
    return min(1.0, min(ks_2samp(a.numpy(), b.numpy()).pvalue for a, b in views) * len(views))


def paired_pvalue(before: Tensor, after: Tensor, energy: poe.Energy) -> float:
    """Smallest p-value of z-tests of E[f(after) - f(before)] = 0 for one transition,
    Bonferroni-corrected over the f."""
    with torch.no_grad():
        views = []
        for x in (before.double(), after.double()):
            pairs = [x[:, i] * x[:, j] for i in range(x.shape[1]) for j in range(i + 1)]
            views.append(
                torch.stack(
                    [*x.unbind(1), *pairs, *x.tanh().unbind(1), energy(x.float()).double()], 1
                )
            )
        change = views[1] - views[0]
        z = change.mean(0) / (change.std(0) / math.sqrt(len(change)))
    p = torch.special.erfc(z.abs() / math.sqrt(2))
    return min(1.0, p.min().item() * len(p))
