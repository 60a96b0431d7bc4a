"""Estimators of sbi (simulation-based inference) as energies over parameters θ, given observations
x, in nats.

| trained by | expert       | E(θ)                                | draws         |
|------------|--------------|-------------------------------------|---------------|
| NPE        | `Posterior`  | -log q(θ | x) on the prior's support | by rejection  |
| NLE        | `Likelihood` | -Σᵢ log q(xᵢ | θ)                    |               |
| NRE        | `Ratio`      | -Σᵢ log r(θ, xᵢ)                     |               |

`poe.as_energy` reads a posterior of sbi: that of NPE as a `Posterior`; those that draw from the
potential of NLE or NRE as `likelihood & prior`, two factors, so that a prior counts once when
several likelihoods are multiplied. Each is conditional: `.given(x)` binds an observation; the
default x of a posterior is bound already. Nothing of sbi is imported.

References: Papamakarios & Murray 2016, Fast ε-free inference of simulation models; Papamakarios,
Sterratt & Murray 2019, Sequential neural likelihood; Hermans, Begy & Louppe 2020, Likelihood-free
MCMC with amortized approximate ratio estimators.
"""

from __future__ import annotations

import contextlib
import math
import warnings
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, Self

import torch
from torch import Generator, Tensor, nn

from experts.distribution import Distribution
from experts.libraries import seed_of, seeded, where_finite
from experts.locked import Locked
from poe.algebra import support as sets
from poe.algebra.bindings import Bindings
from poe.algebra.capabilities import Samples
from poe.algebra.energy import Energy, Estimate
from poe.registry import register

MASS_DRAWS = 10_000  # draws of an estimator that measure its mass on the prior's support
MAX_PAIRS = 100_000  # pairs of θ and x evaluated at once


class Amortised(Locked, Energy):
    """An estimator over θ that takes observations x; a subclass says what it estimates.

    Arguments:
        estimator: a trained network of sbi, kept in eval mode.
        context: the observation, bound at once; else by `.given(x)`.
        support: where the prior is non-zero, a constraint; all of R^n by default.

    An observation has the shape that the estimator was trained with, or one more axis for
    independent trials, whose terms add up.
    """

    context: Tensor | None
    trials = True

    def __init__(
        self,
        estimator: nn.Module,
        context: Any = None,
        *,
        support: sets.Constraint | None = None,
        name: str | None = None,
    ) -> None:
        parameters, observation = self._shapes(estimator)
        super().__init__(parameters, support=support, name=name)
        self.estimator: Any = estimator
        self._observation, self._stated_support = torch.Size(observation), support
        self._bindings = Bindings()
        self.register_buffer("context", None)
        if context is None:
            self.takes_context = True
        else:
            self.context = self._checked(context)
        self.eval()

    @staticmethod
    @abstractmethod
    def _shapes(estimator: Any) -> tuple[Sequence[int], Sequence[int]]:
        """Shapes of θ and of one x."""

    @abstractmethod
    def _log(self, theta: Tensor, x: Tensor) -> Tensor:  # (n, *event), (trials, *x) -> (trials, n)
        """The log of what is estimated, for every pair."""

    def given(self, context: Any) -> Self:
        """The same estimator, sharing parameters, at an observation, or at several independent
        trials (trials, *x)."""
        bound = type(self)(self.estimator, context, support=self._stated_support, name=self.name)
        return self._bindings.first(bound, bound.context)

    def _bound(self) -> Tensor:
        if self.context is None:
            raise TypeError(
                f"{self} is conditional: bind an observation of shape {tuple(self._observation)} "
                "with .given(x)"
            )
        return self.context

    def forward(self, x: Tensor) -> Tensor:  # (*batch, *event) -> (*batch)
        context = self._bound()
        if x.dtype != self.dtype:
            raise TypeError(
                f"{self} works in {self.dtype}, x is {x.dtype}: x.to({self.dtype}), or .double() "
                "the expert"
            )
        batch = x.shape[: x.ndim - len(self.event_shape)]
        rows = x.reshape(batch.numel(), *self.event_shape)

        def energies(rows: Tensor) -> Tensor:  # (n, *event) -> (n)
            parts = rows.split(max(1, MAX_PAIRS // len(context)))
            return -torch.cat([self._log(part, context).sum(0) for part in parts])

        return where_finite(energies, rows).reshape(batch)

    @property
    def bounded(self) -> bool | None:
        """True on a bounded support: networks are continuous in θ."""
        return True if sets.is_bounded(self.support) else None

    def config(self) -> dict[str, Any]:
        raise TypeError(
            f"{self} wraps an estimator of sbi, whose architecture has no plain description: save "
            "it by torch, and wrap it again"
        )

    def _checked(self, context: Any) -> Tensor:  # -> (trials, *x)
        x = torch.as_tensor(context, dtype=self.dtype, device=self.device)
        shape = self._observation
        if x.shape == shape:
            return x.unsqueeze(0)
        several = x.ndim == len(shape) + 1 and x.shape[1:] == shape and len(x) >= 1
        if several and (self.trials or len(x) == 1):
            return x
        also = " (a network trained on single observations takes no trials)"
        if self.trials:
            also = f", or (trials, *{tuple(shape)})"
        raise ValueError(
            f"{self} takes an observation of shape {tuple(shape)}{also}, not {tuple(x.shape)}"
        )


@register("sbi-posterior")
class Posterior(Amortised):
    """E(θ) = -log q(θ | x) on the support of the prior, +inf outside (NPE); draws by rejection.

    On a bounded support log Z is the log of the mass that the estimator leaves inside, measured on
    10,000 of its draws when an observation is bound, with its standard error; on R^n it is 0.
    Raises ValueError where none of them lies inside.
    """

    trials = False
    proper: bool | None = True

    def __init__(
        self,
        estimator: Any,
        context: Any = None,
        *,
        support: sets.Constraint | None = None,
        name: str | None = None,
    ) -> None:
        super().__init__(estimator, context, support=support, name=name)
        self._log_z = None if self.context is None else self._inside_mass()

    @staticmethod
    def _shapes(estimator: Any) -> tuple[Sequence[int], Sequence[int]]:
        return estimator.input_shape, estimator.condition_shape

    def _log(self, theta: Tensor, x: Tensor) -> Tensor:
        return self.estimator.log_prob(theta.unsqueeze(1), condition=x).T

    @property
    def log_z(self) -> Estimate | None:
        return self._log_z

    @torch.no_grad()
    def sample(self, n: int | tuple[int, ...], *, generator: Generator | None = None) -> Tensor:
        """n independent draws, (n, *event): those of the estimator that lie in the support."""
        self._bound()
        batch = (n,) if isinstance(n, int) else tuple(n)
        share = 1.0 if self._log_z is None else math.exp(self._log_z.value)
        total, kept, count = math.prod(batch), [], 0
        with _seeded(seed_of(generator), self.device):
            while count < total:
                kept.append(self._inner(max(100, int(1.1 * (total - count) / share))))
                count += len(kept[-1])
        rows = torch.cat(kept)[:total] if kept else self._like().new_empty(0, *self.event_shape)
        return rows.reshape(*batch, *self.event_shape)

    def can(self, capability: type) -> bool:
        return self.context is not None if capability is Samples else super().can(capability)

    def _inner(self, n: int) -> Tensor:
        drawn = self.estimator.sample((n,), condition=self.context)[:, 0].to(self._like())
        return drawn[sets.contains(self.support, drawn)]

    @torch.no_grad()
    def _inside_mass(self) -> Estimate:
        if sets.is_real(self.support):
            return Estimate(0.0)
        n = MASS_DRAWS
        with _seeded(0, self.device):
            share = len(self._inner(n)) / n
        if share == 0:
            raise ValueError(
                f"none of {n:,} draws of {self} at this observation lies in the support of its "
                f"prior: {self.support!r}"
            )
        return Estimate(math.log(share), math.sqrt(max(1 - share, 1 / n) / (share * n)))


@register("sbi-likelihood")
class Likelihood(Amortised):
    """E(θ) = -Σᵢ log q(xᵢ | θ), a factor without a prior (NLE): its Z is not a probability of the
    data unless it is multiplied by a prior."""

    @staticmethod
    def _shapes(estimator: Any) -> tuple[Sequence[int], Sequence[int]]:
        return estimator.condition_shape, estimator.input_shape

    def _log(self, theta: Tensor, x: Tensor) -> Tensor:
        pairs = x.unsqueeze(1).expand(len(x), len(theta), *x.shape[1:])
        return self.estimator.log_prob(pairs, condition=theta)


@register("sbi-ratio")
class Ratio(Amortised):
    """E(θ) = -Σᵢ log r(θ, xᵢ), r ∝ p(x | θ) / p(x) up to a factor that depends on x alone (NRE): a
    factor without a prior."""

    @staticmethod
    def _shapes(estimator: Any) -> tuple[Sequence[int], Sequence[int]]:
        return estimator.theta_shape, estimator.x_shape

    def _log(self, theta: Tensor, x: Tensor) -> Tensor:
        shape = (len(x), len(theta))
        thetas = theta.expand(*shape, *theta.shape[1:]).flatten(0, 1)
        observations = x.unsqueeze(1).expand(*shape, *x.shape[1:]).flatten(0, 1)
        return self.estimator.unnormalized_log_ratio(thetas, observations).reshape(shape)


def from_posterior(posterior: Any, *, name: str | None = None) -> Energy:
    """A posterior of sbi: of NPE a `Posterior`; of NLE or NRE `likelihood & prior`, over the same
    support.

    Raises TypeError for another kind: for an ensemble, pass the members to
    `poe.product` or `poe.mixture`.
    """
    facts = vars(posterior)
    if "posterior_estimator" in facts:
        prior, kind, estimator = posterior.prior, Posterior, posterior.posterior_estimator
    else:
        potential = facts.get("potential_fn", posterior)
        inner = vars(potential)
        kinds = {"likelihood_estimator": Likelihood, "ratio_estimator": Ratio}
        found = [(k, inner[key]) for key, k in kinds.items() if key in inner]
        if not found:
            raise TypeError(
                f"{type(posterior).__name__} has neither a posterior, a likelihood nor a "
                "ratio estimator: give its parts to "
                'poe.create("sbi-posterior" | "sbi-likelihood" | "sbi-ratio", estimator=...), and '
                "compose them"
            )
        prior, (kind, estimator) = potential.prior, found[0]
    expert: Any = kind(estimator, support=prior.support, name=name)
    observed = facts.get("_x", facts.get("_x_o"))
    expert = expert if observed is None else expert.given(observed)
    return expert if kind is Posterior else expert & Distribution(prior, name="prior")


@contextlib.contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """`seeded`, without the warning of nflows, which solves LU layers by torch.triangular_solve."""
    with seeded(seed, device), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.triangular_solve is deprecated")
        yield
