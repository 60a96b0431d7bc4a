"""Exponential families: log p(x) = Σ <η, T(x)> - A(η) + log h(x), in nats.

| expert | support | T(x) | η | in the family as long as |
|-------------|-------------|-------------------|--------------------------|---------------------------------|
| Normal | R^n | x, -x xᵀ/2 | Λμ, Λ = Σ⁻¹ | Λ is positive definite |
| Exponential | [0, ∞) | x | -rate | rate > 0 |
| Gamma | [0, ∞) | log x, x | concentration - 1, -rate | concentration, rate > 0 |
| Beta | [0, 1] | log x, log(1 - x) | a - 1, b - 1 | a, b > 0 |
| Dirichlet | simplex | log x | concentration - 1 | concentration > 0 |
| Bernoulli | {0, 1} | x | logit | always |
| Categorical | {0...K-1} | one-hot x | logits | some category remains |
| VonMises | [-π, π] | cos x, sin x | κ cos μ, κ sin μ | always |
| Poisson | {0, 1, ...} | x | log rate; h = 1/x! | the powers sum to 1 |

A product of powers of one family adds natural parameters, η = Σ wᵢηᵢ, and its log Z is A(η) - Σ
wᵢA(ηᵢ). One rule does that for all of them; where the sum leaves the natural domain the product has
infinite mass (`poe.algebra.rules.Improper`). A closed form is a snapshot: it does not follow
parameters that are trained afterwards.

Coordinates of an event are independent but for a Normal with full covariance and for a Dirichlet.
Parameters are buffers; they are trained where the caller gives an `nn.Parameter` or asks for
`learnable=True`, and must then be kept inside their domain by whoever trains them. Draws are made
in float64 from the generator, rounded to the expert's precision, and never rounded onto an end of
the support where the density may be infinite.
"""

from __future__ import annotations

import functools
import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.distributions import constraints

from experts import parameters as param
from poe.algebra import support as sets
from poe.algebra.energy import Density, Energy
from poe.algebra.maps import Select
from poe.algebra.pullback import Pullback
from poe.algebra.rules import Empty, Improper, closed_form
from poe.algebra.shifted import shift
from poe.registry import register

Factor = tuple[Any, float]  # an expert of the family that a rule is for, and its power
ROUNDING = 16 * torch.finfo(torch.float64).eps  # relative error of a sum of natural parameters
MOST_JOINT = (
    2048  # numbers of an event over which Normals of parts of it are joined by a full covariance
)
DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64)
}


class Natural(NamedTuple):
    """log p(x) = Σ_k <parameters_k, statistics(x)_k> - log_partition + log_base(x), all in float64.

    `statistics(x)` holds one tensor (*batch, *shape of parameters_k) for each natural parameter.
    """

    parameters: tuple[Tensor, ...]
    statistics: Callable[[Tensor], tuple[Tensor, ...]]
    log_partition: Tensor
    log_base: Callable[[Tensor], Tensor]


class ExponentialFamily(Density):
    """A density of an exponential family; a subclass names its parameters and its natural form.

    Arguments:
        values: the parameters, whose shapes broadcast together.
        event_shape: shape of one x; by default the broadcast shape.
        learnable: makes every parameter an `nn.Parameter`.
    """

    def __init__(
        self,
        values: dict[str, Any],
        *,
        support: constraints.Constraint,
        event_shape: Sequence[int],
        learnable: bool,
        name: str | None,
    ) -> None:
        super().__init__(event_shape, support=support, name=name)
        for key, value in values.items():
            if learnable and not isinstance(value, nn.Parameter):
                value = nn.Parameter(value)
            if isinstance(value, nn.Parameter):
                self.register_parameter(key, value)
            else:
                self.register_buffer(key, value)
        self._keys = tuple(values)

    @property
    @abstractmethod
    def natural(self) -> Natural:
        """Natural parameters, sufficient statistics, log-partition (nats) and base measure, in
        float64."""

    @classmethod
    @abstractmethod
    def from_natural(
        cls, parameters: Sequence[Tensor], rounding: Sequence[Tensor] | None = None
    ) -> Self | None:
        """The member with these natural parameters, in float64.

        Raises Improper outside the natural domain. `rounding` bounds their errors: None where these
        leave it open on which side of the border the parameters lie.
        """

    @abstractmethod
    def _draw(self, shape: tuple[int, ...], generator: torch.Generator | None) -> Tensor:
        """Independent draws in float64, (*shape, *event)."""

    def sample(
        self, n: int | tuple[int, ...], *, generator: torch.Generator | None = None
    ) -> Tensor:
        """n independent draws, (n, *event); n an int or a shape."""
        with torch.no_grad():
            return self._draw((n,) if isinstance(n, int) else tuple(n), generator).to(self.dtype)

    def config(self) -> dict[str, Any]:
        tensors = {key: getattr(self, key) for key in self._keys}
        return {
            "shapes": {key: list(tensor.shape) for key, tensor in tensors.items()},
            "learnable": [
                key for key, tensor in tensors.items() if isinstance(tensor, nn.Parameter)
            ],
            "dtype": str(self.dtype).removeprefix("torch."),
        }

    @classmethod
    def from_config(
        cls, *, shapes: dict[str, list[int]], learnable: Sequence[str] = (), dtype: str = "float32"
    ) -> ExponentialFamily:
        """An expert whose parameters have these shapes, to be filled by `load_state_dict`."""
        if dtype not in DTYPES:
            raise ValueError(
                f"{dtype!r} is no precision of a {cls.__name__}; one of {', '.join(DTYPES)}"
            )
        values: dict[str, Tensor] = {}
        for key, shape in shapes.items():
            blank = cls._blank(key, tuple(shape)).to(DTYPES[dtype])
            values[key] = nn.Parameter(blank) if key in learnable else blank
        make: Any = cls
        return make(**values)

    @classmethod
    def _blank(cls, key: str, shape: tuple[int, ...]) -> Tensor:
        """A valid value of a parameter, of this shape."""
        return torch.full(shape, 0.5)

    def _exact(self, key: str) -> Tensor:
        """A parameter in float64, without its graph, one value for each coordinate."""
        value = getattr(self, key).detach().double()
        return value.expand(torch.broadcast_shapes(value.shape, self.event_shape))

    def _no_base(self, x: Tensor) -> Tensor:
        return x.new_zeros(x.shape[: x.ndim - len(self.event_shape)], dtype=torch.float64)

    def _sum(self, terms: Tensor) -> Tensor:  # (*batch, *event) -> (*batch)
        return sum_event(terms, len(self.event_shape))


def sum_event(terms: Tensor, event_dim: int) -> Tensor:  # (*batch, *event) -> (*batch)
    """Sum over the last `event_dim` axes."""
    return terms.flatten(terms.ndim - event_dim).sum(-1) if event_dim else terms


# ---------------------------------------------------------------- the families


@register("normal")
class Normal(ExponentialFamily):
    """N(loc, scale²) coordinate by coordinate, or N(loc, covariance) over the flattened event.

    Energy: ½ Σ((x - loc)/scale)² + Σ log scale + n/2 log 2π; with L Lᵀ = covariance, ½ |L⁻¹(x -
        loc)|² + log|L| + n/2 log 2π.

    Arguments:
        loc: mean (units of x), of the event's shape or broadcast to it.
        scale: standard deviations (units of x).
        covariance: (n, n), in units of x squared; its Cholesky factor `scale_tril` is what is
            stored and learned.

    >>> Normal(torch.zeros(2), 1.0).sample(3).shape
    torch.Size([3, 2])
    """

    scale: Tensor
    loc: Tensor
    scale_tril: Tensor

    def __init__(
        self,
        loc: Any = 0.0,
        scale: Any = None,
        *,
        covariance: Any = None,
        scale_tril: Any = None,
        learnable: bool = False,
        name: str | None = None,
    ) -> None:
        given = [value is not None for value in (scale, covariance, scale_tril)]
        if sum(given) != 1:
            raise TypeError(
                "a Normal takes one of scale=, covariance= and scale_tril=: Normal(loc, scale) is "
                "the diagonal one"
            )
        if scale is not None:
            values = param.parameters(loc=loc, scale=scale)
            param.require_positive("scale", values["scale"], "a standard deviation is positive")
            shape = param.common_shape(values)
        else:
            if isinstance(covariance, nn.Parameter):
                raise TypeError(
                    "a covariance is learned through its Cholesky factor: "
                    "scale_tril=nn.Parameter(L), or learnable=True"
                )
            square = covariance if scale_tril is None else scale_tril
            values = param.tensors(loc=loc, scale_tril=square)
            if scale_tril is None:
                values["scale_tril"] = param.cholesky_of(values["scale_tril"])
            shape = param.fit_covariance(values)
        super().__init__(
            param.expanded(values, shape),
            support=sets.real(shape),
            event_shape=shape,
            learnable=learnable,
            name=name,
        )

    @property
    def full(self) -> bool:
        """Whether the coordinates are correlated through a full covariance."""
        return "scale_tril" in self._keys

    @property
    def covariance(self) -> Tensor:
        """Covariance of the flattened event, (n, n), in units of x squared."""
        if self.full:
            return self.scale_tril.tril() @ self.scale_tril.tril().mT
        return self.scale.expand(self.event_shape).flatten().square().diag()

    def moments(self) -> tuple[Tensor, Tensor]:
        """Mean (n) and covariance (n, n) of the flattened event."""
        return self.loc.expand(self.event_shape).flatten(), self.covariance

    def log_prob(self, x: Tensor) -> Tensor:  # (*batch, *event) -> (*batch)
        return -self._from_residual(self._whiten(x)).reshape(
            x.shape[: x.ndim - len(self.event_shape)]
        )

    def _value_and_grad(self, x: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            z = self._whiten(x)
            if not self.full:
                return self._from_residual(z), z / self.scale
            pull = torch.linalg.solve_triangular(self.scale_tril.to(z.dtype).mT, z.mT, upper=True)
            return self._from_residual(z).reshape(
                x.shape[: x.ndim - len(self.event_shape)]
            ), pull.mT.reshape(x.shape)

    def _whiten(self, x: Tensor) -> Tensor:
        """(x - loc)/scale, (*batch, *event); L⁻¹(x - loc), (batch, n), where the covariance is
        full."""
        if not self.full:
            return (x - self.loc) / self.scale
        batch = x.shape[: x.ndim - len(self.event_shape)]
        residual = (x - self.loc).reshape(batch.numel(), self.event_shape.numel())
        return torch.linalg.solve_triangular(
            self.scale_tril.to(residual.dtype), residual.mT, upper=False
        ).mT

    def _from_residual(self, z: Tensor) -> Tensor:
        half_log_2pi = 0.5 * math.log(2 * math.pi) * self.event_shape.numel()
        if not self.full:
            log_scale = self.scale.log().expand(self.event_shape).sum()
            return 0.5 * self._sum(z.square()) + (log_scale + half_log_2pi)
        return 0.5 * z.square().sum(-1) + (self.scale_tril.diagonal().log().sum() + half_log_2pi)

    @property
    def bounded(self) -> bool | None:
        return True

    @property
    def natural(self) -> Natural:
        if not self.full:
            loc, precision = self._exact("loc"), self._exact("scale") ** -2
            partition = (0.5 * loc.square() * precision - 0.5 * precision.log()).sum()
            return Natural(
                (precision * loc, precision),
                lambda x: (x.double(), -0.5 * x.double().square()),
                partition + 0.5 * math.log(2 * math.pi) * self.event_shape.numel(),
                self._no_base,
            )
        loc, tril = self._exact("loc").flatten(), self.scale_tril.detach().double().tril()
        precision = torch.cholesky_inverse(tril)
        z = torch.linalg.solve_triangular(tril, loc.unsqueeze(-1), upper=False)
        partition = (
            0.5 * z.square().sum()
            + tril.diagonal().log().sum()
            + 0.5 * math.log(2 * math.pi) * loc.numel()
        )
        return Natural(
            (precision @ loc, precision), self._square_statistics, partition, self._no_base
        )

    def _square_statistics(self, x: Tensor) -> tuple[Tensor, Tensor]:
        flat = x.double().reshape(
            *x.shape[: x.ndim - len(self.event_shape)], self.event_shape.numel()
        )
        return flat, -0.5 * flat.unsqueeze(-1) * flat.unsqueeze(-2)

    @classmethod
    def from_natural(
        cls, parameters: Sequence[Tensor], rounding: Sequence[Tensor] | None = None
    ) -> Self | None:
        linear, precision = parameters
        rounding = param.no_rounding(parameters) if rounding is None else rounding
        if precision.shape == linear.shape:
            clear = param.in_domain("a Normal", precision, rounding[1])
            return cls(linear / precision, precision.rsqrt()) if clear else None
        eigenvalues = torch.linalg.eigvalsh(precision)
        slack = (
            ROUNDING * len(eigenvalues) * eigenvalues.abs().max() + rounding[1].abs().sum(-1).max()
        )
        if not param.in_domain("a Normal", eigenvalues, slack.expand_as(eigenvalues)):
            return None
        factor = torch.linalg.cholesky(precision)
        covariance = torch.cholesky_inverse(factor)
        return cls(
            torch.cholesky_solve(linear.unsqueeze(-1), factor).squeeze(-1),
            covariance=(covariance + covariance.mT) / 2,
        )

    def _draw(self, shape: tuple[int, ...], generator: torch.Generator | None) -> Tensor:
        noise = torch.randn(
            (*shape, *self.event_shape),
            dtype=torch.float64,
            device=self.device,
            generator=generator,
        )
        if not self.full:
            return self._exact("loc") + self._exact("scale") * noise
        flat = noise.reshape(*shape, self.event_shape.numel()) @ self.scale_tril.double().tril().mT
        return self._exact("loc") + flat.reshape(noise.shape)

    @classmethod
    def _blank(cls, key: str, shape: tuple[int, ...]) -> Tensor:
        return torch.eye(*shape) if key == "scale_tril" else super()._blank(key, shape)

    def about(self, origin: Tensor, *, full: bool) -> Normal:
        """This density of x - origin, in float64; with a full covariance where asked for."""
        loc = self._exact("loc") - origin
        if self.full:
            return Normal(loc, scale_tril=self.scale_tril.detach().double())
        scale = self._exact("scale")
        return Normal(loc, scale_tril=scale.flatten().diag()) if full else Normal(loc, scale)


@register("exponential")
class Exponential(ExponentialFamily):
    """Energy rate·x - log rate on [0, ∞), coordinate by coordinate; rate in 1/units of x."""

    rate: Tensor

    def __init__(
        self, rate: Any = 1.0, *, learnable: bool = False, name: str | None = None
    ) -> None:
        values = param.parameters(rate=rate)
        param.require_positive(
            "rate", values["rate"], "Exponential(rate) decays at a positive rate"
        )
        _family_init(
            self, values, sets.box(0.0, math.inf, param.common_shape(values)), learnable, name
        )

    def log_prob(self, x: Tensor) -> Tensor:  # (*batch, *event) -> (*batch)
        return self._sum(self.rate.log() - self.rate * x)

    @property
    def bounded(self) -> bool | None:
        return True

    @property
    def natural(self) -> Natural:
        rate = self._exact("rate")
        return Natural((-rate,), lambda x: (x.double(),), -rate.log().sum(), self._no_base)

    @classmethod
    def from_natural(
        cls, parameters: Sequence[Tensor], rounding: Sequence[Tensor] | None = None
    ) -> Self | None:
        rounding = param.no_rounding(parameters) if rounding is None else rounding
        return (
            cls(-parameters[0])
            if param.in_domain("an Exponential", -parameters[0], rounding[0])
            else None
        )

    def _draw(self, shape: tuple[int, ...], generator: torch.Generator | None) -> Tensor:
        unit = (
            self._exact("rate")
            .new_empty((*shape, *self.event_shape))
            .exponential_(generator=generator)
        )
        return unit / self._exact("rate")


@register("gamma")
class Gamma(ExponentialFamily):
    """Energy rate·x - (a - 1) log x + log Γ(a) - a log rate on [0, ∞), a the concentration, rate in
    1/units of x.
    """

    concentration: Tensor
    rate: Tensor

    def __init__(
        self,
        concentration: Any = 1.0,
        rate: Any = 1.0,
        *,
        learnable: bool = False,
        name: str | None = None,
    ) -> None:
        values = param.parameters(concentration=concentration, rate=rate)
        param.require_positive(
            "concentration",
            values["concentration"],
            "Gamma(concentration, rate) takes positive numbers",
        )
        param.require_positive(
            "rate", values["rate"], "Gamma(concentration, rate) takes positive numbers"
        )
        _family_init(
            self, values, sets.box(0.0, math.inf, param.common_shape(values)), learnable, name
        )

    def log_prob(self, x: Tensor) -> Tensor:  # (*batch, *event) -> (*batch)
        a = self.concentration
        return self._sum(
            param.times_log(a - 1, x) - self.rate * x + a * self.rate.log() - a.lgamma()
        )

    @property
    def bounded(self) -> bool | None:
        return bool((self.concentration >= 1).all())

    @property
    def natural(self) -> Natural:
        a, rate = self._exact("concentration"), self._exact("rate")
        partition = (a.lgamma() - a * rate.log()).sum()
        return Natural(
            (a - 1, -rate), lambda x: (x.double().log(), x.double()), partition, self._no_base
        )

    @classmethod
    def from_natural(
        cls, parameters: Sequence[Tensor], rounding: Sequence[Tensor] | None = None
    ) -> Self | None:
        rounding = param.no_rounding(parameters) if rounding is None else rounding
        a, rate = parameters[0] + 1, -parameters[1]
        inside = [
            param.in_domain("a Gamma", a, rounding[0]),
            param.in_domain("a Gamma", rate, rounding[1]),
        ]
        return cls(a, rate) if all(inside) else None

    def _draw(self, shape: tuple[int, ...], generator: torch.Generator | None) -> Tensor:
        unit = param.log_gamma_draws(self._exact("concentration"), shape, generator).exp()
        return (unit / self._exact("rate")).clamp_min(torch.finfo(self.dtype).tiny)


@register("beta")
class Beta(ExponentialFamily):
    """Energy -(a - 1) log x - (b - 1) log(1 - x) + log B(a, b) on [0, 1], coordinate by
    coordinate."""

    a: Tensor
    b: Tensor

    def __init__(
        self, a: Any = 1.0, b: Any = 1.0, *, learnable: bool = False, name: str | None = None
    ) -> None:
        values = param.parameters(a=a, b=b)
        param.require_positive("a", values["a"], "Beta(a, b) takes positive numbers")
        param.require_positive("b", values["b"], "Beta(a, b) takes positive numbers")
        _family_init(self, values, sets.box(0.0, 1.0, param.common_shape(values)), learnable, name)

    def log_prob(self, x: Tensor) -> Tensor:  # (*batch, *event) -> (*batch)
        log_beta = self.a.lgamma() + self.b.lgamma() - (self.a + self.b).lgamma()
        return self._sum(
            param.times_log(self.a - 1, x) + param.times_log(self.b - 1, 1 - x) - log_beta
        )

    @property
    def bounded(self) -> bool | None:
        return bool((self.a >= 1).all() and (self.b >= 1).all())

    @property
    def flat(self) -> bool | None:
        return bool((self.a == 1).all() and (self.b == 1).all())

    @property
    def natural(self) -> Natural:
        a, b = self._exact("a"), self._exact("b")
        partition = (a.lgamma() + b.lgamma() - (a + b).lgamma()).sum()
        return Natural(
            (a - 1, b - 1),
            lambda x: (x.double().log(), (-x.double()).log1p()),
            partition,
            self._no_base,
        )

    @classmethod
    def from_natural(
        cls, parameters: Sequence[Tensor], rounding: Sequence[Tensor] | None = None
    ) -> Self | None:
        rounding = param.no_rounding(parameters) if rounding is None else rounding
        inside = [
            param.in_domain("a Beta", p + 1, r) for p, r in zip(parameters, rounding, strict=True)
        ]
        return cls(parameters[0] + 1, parameters[1] + 1) if all(inside) else None

    def _draw(self, shape: tuple[int, ...], generator: torch.Generator | None) -> Tensor:
        logs = [param.log_gamma_draws(self._exact(key), shape, generator) for key in ("a", "b")]
        limits = torch.finfo(self.dtype)
        return (logs[0] - logs[1]).sigmoid().clamp(limits.tiny, 1 - limits.eps)


@register("dirichlet")
class Dirichlet(ExponentialFamily):
    """Energy Σ log Γ(aᵢ) - log Γ(Σ aᵢ) - Σ (aᵢ - 1) log xᵢ on the simplex of the last axis, a the
    concentration.

    The measure is Lebesgue's on the first K - 1 coordinates. Earlier axes are independent.
    """

    concentration: Tensor

    def __init__(
        self, concentration: Any, *, learnable: bool = False, name: str | None = None
    ) -> None:
        values = param.parameters(concentration=concentration)
        param.require_positive(
            "concentration",
            values["concentration"],
            "Dirichlet(concentration) takes positive numbers",
        )
        shape = param.common_shape(values)
        if not shape or shape[-1] < 2:
            raise ValueError(
                "a Dirichlet needs two or more categories on its last axis, its concentration has "
                f"shape {tuple(shape)}"
            )
        _family_init(self, values, constraints.simplex, learnable, name)

    def log_prob(self, x: Tensor) -> Tensor:  # (*batch, *event) -> (*batch)
        a = self.concentration
        rows = param.times_log(a - 1, x).sum(-1) + a.sum(-1).lgamma() - a.lgamma().sum(-1)
        return sum_event(rows, len(self.event_shape) - 1)

    @property
    def bounded(self) -> bool | None:
        return bool((self.concentration >= 1).all())

    @property
    def flat(self) -> bool | None:
        return bool((self.concentration == 1).all())

    @property
    def natural(self) -> Natural:
        a = self._exact("concentration")
        partition = (a.lgamma().sum(-1) - a.sum(-1).lgamma()).sum()
        return Natural((a - 1,), lambda x: (x.double().log(),), partition, self._no_base)

    @classmethod
    def from_natural(
        cls, parameters: Sequence[Tensor], rounding: Sequence[Tensor] | None = None
    ) -> Self | None:
        rounding = param.no_rounding(parameters) if rounding is None else rounding
        return (
            cls(parameters[0] + 1)
            if param.in_domain("a Dirichlet", parameters[0] + 1, rounding[0])
            else None
        )

    def _draw(self, shape: tuple[int, ...], generator: torch.Generator | None) -> Tensor:
        logs = param.log_gamma_draws(self._exact("concentration"), shape, generator)
        return logs.softmax(-1).clamp_min(torch.finfo(self.dtype).tiny)


@register("bernoulli")
class Bernoulli(ExponentialFamily):
    """Energy log(1 + e^logit) - logit·x on {0., 1.}, coordinate by coordinate. Takes `probs`
    strictly inside (0, 1), or `logits`.
    """

    logits: Tensor

    def __init__(
        self,
        probs: Any = None,
        *,
        logits: Any = None,
        learnable: bool = False,
        name: str | None = None,
    ) -> None:
        values = {
            "logits": param.logits_of("Bernoulli", probs, logits, lambda p: p.log() - (-p).log1p())
        }
        if not bool(values["logits"].isfinite().all()):
            raise ValueError(
                "Bernoulli(probs) takes 0 < probs < 1; clamp a coordinate that is known with "
                "`energy @ poe.fill(...)`"
            )
        shape = param.common_shape(values)
        binary = sets.Box(torch.zeros(shape), torch.ones(shape), integer=True)
        _family_init(self, values, binary, learnable, name)

    @property
    def probs(self) -> Tensor:
        """P(x = 1) of each coordinate."""
        return self.logits.sigmoid()

    @property
    def blocks(self) -> tuple[Tensor, ...]:
        """All coordinates at once: they are independent."""
        return (torch.arange(self.event_shape.numel(), device=self.device),)

    def site_logits(self, x: Tensor, sites: Tensor) -> Tensor:
        # (*batch, *event), (k) -> (*batch, k)
        """The logits of these coordinates, whatever the others are."""
        chosen = self.logits.expand(self.event_shape).reshape(-1)[sites]
        return chosen.expand(*x.shape[: x.ndim - len(self.event_shape)], -1)

    def log_prob(self, x: Tensor) -> Tensor:  # (*batch, *event) -> (*batch)
        return self._sum(x * self.logits - nn.functional.softplus(self.logits, threshold=40))

    @property
    def natural(self) -> Natural:
        logits = self._exact("logits")
        partition = nn.functional.softplus(logits, threshold=40).sum()
        return Natural((logits,), lambda x: (x.double(),), partition, self._no_base)

    @classmethod
    def from_natural(
        cls, parameters: Sequence[Tensor], rounding: Sequence[Tensor] | None = None
    ) -> Self | None:
        return cls(logits=parameters[0])

    def _draw(self, shape: tuple[int, ...], generator: torch.Generator | None) -> Tensor:
        uniform = param.uniforms(self._exact("logits"), shape, generator)
        return (uniform < self._exact("logits").sigmoid()).double()


@register("categorical")
class Categorical(ExponentialFamily):
    """Energy logsumexp(logits) - logits[x] over x in {0, ..., K - 1}, whole numbers (torch.long).

    Arguments:
        logits, probs: (*event, K), one of the two, scaled to sum to 1 over the last axis; a logit
            of -inf excludes its category.
    """

    logits: Tensor

    def __init__(
        self,
        logits: Any = None,
        *,
        probs: Any = None,
        learnable: bool = False,
        name: str | None = None,
    ) -> None:
        value = param.logits_of("Categorical", probs, logits, torch.log)
        if value.ndim == 0 or value.shape[-1] == 0:
            raise ValueError(
                "a Categorical needs its categories on the last axis, its logits have shape "
                f"{tuple(value.shape)}"
            )
        if bool(
            value.isnan().any() or (value == math.inf).any() or (value == -math.inf).all(-1).any()
        ):
            raise ValueError(
                "a Categorical needs logits below +inf, and in every row one above -inf"
            )
        shape = value.shape[:-1]
        categories = sets.Box(
            torch.zeros(shape), torch.full(shape, float(value.shape[-1] - 1)), integer=True
        )
        super().__init__(
            {"logits": value}, support=categories, event_shape=shape, learnable=learnable, name=name
        )

    @property
    def probs(self) -> Tensor:
        """P(x = k), (*event, K)."""
        return self.logits.softmax(-1)

    @property
    def blocks(self) -> tuple[Tensor, ...]:
        """All coordinates at once: they are independent."""
        return (torch.arange(self.event_shape.numel(), device=self.device),)

    def site_logits(self, x: Tensor, sites: Tensor) -> Tensor:
        # (*batch, *event), (k) -> (*batch, k, K)
        """The logits of these coordinates, whatever the others are."""
        chosen = self.logits.reshape(-1, self.logits.shape[-1])[sites]
        return chosen.expand(*x.shape[: x.ndim - len(self.event_shape)], -1, -1)

    def log_prob(self, x: Tensor) -> Tensor:  # (*batch, *event) -> (*batch)
        logs = self.logits.log_softmax(-1).expand((*x.shape, -1))
        return self._sum(logs.gather(-1, x.long().unsqueeze(-1)).squeeze(-1))

    @property
    def natural(self) -> Natural:
        logits = self.logits.detach().double()
        return Natural((logits,), self._one_hot, logits.logsumexp(-1).sum(), self._no_base)

    def _one_hot(self, x: Tensor) -> tuple[Tensor]:
        return (nn.functional.one_hot(x.long(), self.logits.shape[-1]).double(),)

    @classmethod
    def from_natural(
        cls, parameters: Sequence[Tensor], rounding: Sequence[Tensor] | None = None
    ) -> Self | None:
        if bool((parameters[0] == -math.inf).all(-1).any()):
            raise Empty("no category of a Categorical is left")
        return cls(logits=parameters[0])

    def _draw(self, shape: tuple[int, ...], generator: torch.Generator | None) -> Tensor:
        cumulative = self.logits.double().softmax(-1).cumsum(-1)
        uniform = param.uniforms(cumulative[..., 0], shape, generator) * cumulative[..., -1]
        return (uniform.unsqueeze(-1) >= cumulative).sum(-1)

    def sample(
        self, n: int | tuple[int, ...], *, generator: torch.Generator | None = None
    ) -> Tensor:
        """n independent draws, (n, *event), torch.long; n an int or a shape."""
        with torch.no_grad():
            return self._draw((n,) if isinstance(n, int) else tuple(n), generator)


@register("poisson")
class Poisson(ExponentialFamily):
    """Energy rate - x log rate + log x! over x in {0., 1., 2., ...}, coordinate by coordinate."""

    rate: Tensor

    def __init__(
        self, rate: Any = 1.0, *, learnable: bool = False, name: str | None = None
    ) -> None:
        values = param.parameters(rate=rate)
        param.require_positive("rate", values["rate"], "Poisson(rate) takes positive numbers")
        shape = param.common_shape(values)
        counts = sets.Box(torch.zeros(shape), torch.full(shape, math.inf), integer=True)
        _family_init(self, values, counts, learnable, name)

    def log_prob(self, x: Tensor) -> Tensor:  # (*batch, *event) -> (*batch)
        return self._sum(x * self.rate.log() - self.rate - (x + 1.0).lgamma())

    @property
    def bounded(self) -> bool | None:
        return True

    @property
    def natural(self) -> Natural:
        rate = self._exact("rate")
        return Natural(
            (rate.log(),),
            lambda x: (x.double(),),
            rate.sum(),
            lambda x: -self._sum((x.double() + 1).lgamma()),
        )

    @classmethod
    def from_natural(
        cls, parameters: Sequence[Tensor], rounding: Sequence[Tensor] | None = None
    ) -> Self | None:
        rate = parameters[0].exp()
        return cls(rate) if bool(((rate > 0) & rate.isfinite()).all()) else None

    def _draw(self, shape: tuple[int, ...], generator: torch.Generator | None) -> Tensor:
        return torch.poisson(
            self._exact("rate").expand((*shape, *self.event_shape)), generator=generator
        )


@register("von-mises")
class VonMises(ExponentialFamily):
    """Energy log(2π I₀(κ)) - κ cos(x - loc) on one period, [-π, π] radians; κ >= 0 is the
    concentration.

    Drawn by rejection from a wrapped Cauchy (Best & Fisher 1979).
    """

    loc: Tensor
    concentration: Tensor

    def __init__(
        self,
        loc: Any = 0.0,
        concentration: Any = 1.0,
        *,
        learnable: bool = False,
        name: str | None = None,
    ) -> None:
        values = param.parameters(loc=loc, concentration=concentration)
        if bool((values["concentration"] < 0).any()):
            raise ValueError(
                f"concentration = {param.first_bad(values['concentration'], lambda v: v < 0)}: "
                "that of "
                "VonMises(loc, concentration) is not negative"
            )
        _family_init(
            self, values, sets.box(-math.pi, math.pi, param.common_shape(values)), learnable, name
        )

    def log_prob(self, x: Tensor) -> Tensor:  # (*batch, *event) -> (*batch)
        kappa = self.concentration
        # κ(cos - 1) keeps its digits where κ is large: i0e(κ) = e^-κ I₀(κ)
        closeness = -2 * ((x - self.loc) / 2).sin().square()
        return self._sum(kappa * closeness - torch.special.i0e(kappa).log() - math.log(2 * math.pi))

    @property
    def bounded(self) -> bool | None:
        return True

    @property
    def natural(self) -> Natural:
        loc, kappa = self._exact("loc"), self._exact("concentration")
        partition = (kappa + torch.special.i0e(kappa).log() + math.log(2 * math.pi)).sum()
        return Natural(
            (kappa * loc.cos(), kappa * loc.sin()),
            lambda x: (x.double().cos(), x.double().sin()),
            partition,
            self._no_base,
        )

    @classmethod
    def from_natural(
        cls, parameters: Sequence[Tensor], rounding: Sequence[Tensor] | None = None
    ) -> Self | None:
        cosine, sine = parameters
        return cls(torch.atan2(sine, cosine), torch.hypot(cosine, sine))

    def _draw(self, shape: tuple[int, ...], generator: torch.Generator | None) -> Tensor:
        kappa = self._exact("concentration").expand((*shape, *self.event_shape))
        angle = param.von_mises_draws(kappa.flatten(), generator).reshape(
            kappa.shape
        ) + self._exact("loc")
        wrapped = torch.remainder(angle + math.pi, 2 * math.pi) - math.pi
        return wrapped.clamp(-math.pi, math.pi)


def _family_init(
    expert: ExponentialFamily,
    values: dict[str, Tensor],
    support: constraints.Constraint,
    learnable: bool,
    name: str | None,
) -> None:
    ExponentialFamily.__init__(
        expert,
        values,
        support=support,
        event_shape=param.common_shape(values),
        learnable=learnable,
        name=name,
    )


# ---------------------------------------------------------------- one rule for all


def merge(kind: type[ExponentialFamily], factors: Sequence[Factor]) -> tuple[Any, float] | None:
    """Π p_i^{w_i} of one family as (member, offset): η = Σ wᵢηᵢ in float64, and Σ wᵢA(ηᵢ) - A(η)
    nats.

    Raises Improper where η leaves the natural domain; None where rounding hides whether it does.
    """
    powers = [power for _, power in factors]
    naturals = [energy.natural for energy, _ in factors]
    columns = list(zip(*(natural.parameters for natural in naturals), strict=True))
    eta = [_weighted(powers, column) for column in columns]
    size = [
        _weighted([abs(w) for w in powers], [part.abs() for part in column]) for column in columns
    ]
    spread = (
        0.0 if all(w == int(w) for w in powers) else sum(map(abs, powers))
    )  # Σ w itself is rounded
    member = kind.from_natural(eta, [ROUNDING * (s + spread) for s in size])
    if member is None:
        return None
    partition = _weighted(powers, [natural.log_partition for natural in naturals])
    return member, float(partition - member.natural.log_partition)


def _weighted(powers: Sequence[float], values: Sequence[Tensor]) -> Tensor:
    return torch.stack([w * value for w, value in zip(powers, values, strict=True)]).sum(0)


def _shifted(merged: tuple[Any, float] | None, factors: Sequence[Factor]) -> Energy | None:
    """The member in the precision and on the device of the experts that it stands for, with its
    constant."""
    if merged is None:
        return None
    experts = [energy for energy, _ in factors]
    dtype = functools.reduce(torch.promote_types, [expert.dtype for expert in experts])
    return shift(merged[0].to(experts[0].device, dtype), merged[1])


def _family_rule(kind: type[ExponentialFamily], factors: Sequence[Factor]) -> Energy | None:
    return _shifted(merge(kind, factors), factors)


for _family in (Exponential, Gamma, Beta, Dirichlet, Bernoulli, VonMises):
    closed_form(_family)(functools.partial(_family_rule, _family))


@closed_form(Normal)
def _normal(factors: Sequence[Factor]) -> Energy | None:
    """Merged about the mean of the first factor, so that means far from 0 cost no digits."""
    origin, full = factors[0][0]._exact("loc"), any(energy.full for energy, _ in factors)
    merged = merge(Normal, [(energy.about(origin, full=full), power) for energy, power in factors])
    if merged is None:
        return None
    member, offset = merged
    spread = {"scale_tril": member.scale_tril} if full else {"scale": member.scale}
    return _shifted((Normal(member.loc.reshape(origin.shape) + origin, **spread), offset), factors)


@closed_form(Normal, Pullback)
def _normals_in_part(factors: Sequence[Factor]) -> Energy | None:
    """Normals of some numbers of an event each, by `poe.on`, and of all: Λ = Σ wᵢ Eᵢᵀ Λᵢ Eᵢ, Eᵢ
    selecting the numbers of factor i, about the mean of the first factor that has a number. The
    constant is the energy at the mean."""
    size, shape = factors[0][0].event_shape.numel(), factors[0][0].event_shape
    known: list[tuple[Any, Tensor, float]] = []
    for energy, power in factors:
        placed = isinstance(energy, Pullback) and isinstance(energy.function, Select)
        known.append(
            (energy.energy, energy.function.index.cpu(), power)
            if placed
            else (energy, torch.arange(size), power)
        )
    if not all(isinstance(e, Normal) for e, _, _ in known) or not any(
        isinstance(e, Pullback) for e, _ in factors
    ):
        return None
    full = any(e.full for e, _, _ in known)
    if full and size > MOST_JOINT:
        return None
    origin = torch.zeros(size, dtype=torch.float64)
    for expert, index, _ in reversed(known):
        origin[index] = expert._exact("loc").flatten().cpu()
    linear, precision = (
        torch.zeros(size, dtype=torch.float64),
        torch.zeros((size, size) if full else size, dtype=torch.float64),
    )
    slack = precision.clone()
    for expert, index, power in known:
        member = expert.about(
            origin[index].reshape(expert.event_shape).to(expert.device), full=full
        )
        first, second = (parameter.cpu() for parameter in member.natural.parameters)
        linear[index] += power * first.flatten()
        second = second if full else second.flatten()
        where = (index.unsqueeze(1), index) if full else (index,)
        precision[where] += power * second
        slack[where] += abs(power) * ROUNDING * second.abs()
    merged = Normal.from_natural((linear, precision), [slack.new_zeros(size), slack])
    if merged is None:
        return None
    mean = merged._exact("loc").flatten() + origin
    at = [
        (power, expert, mean[index].reshape(expert.event_shape).to(expert.device))
        for expert, index, power in known
    ]
    level = math.fsum(power * _exact_energy(expert, x) for power, expert, x in at)
    centre = mean.reshape(shape)
    result = (
        Normal(centre, scale_tril=merged.scale_tril)
        if full
        else Normal(centre, merged.scale.reshape(shape))
    )
    return _shifted(
        (result, level - _exact_energy(result, centre)),
        [(expert, power) for expert, _, power in known],
    )


def _exact_energy(expert: Normal, x: Tensor) -> float:
    """-log p(x) of one x, in double precision."""
    return float(-expert.about(x, full=expert.full).log_prob(torch.zeros_like(x)))


@closed_form(Exponential, Gamma)
def _exponential_gamma(factors: Sequence[Factor]) -> Energy | None:
    """Exponential(rate) is Gamma(1, rate)."""
    gammas = [
        (
            e
            if isinstance(e, Gamma)
            else Gamma(torch.ones_like(e._exact("rate")), e._exact("rate")),
            w,
        )
        for e, w in factors
    ]
    return _shifted(merge(Gamma, gammas), factors)


@closed_form(Categorical)
def _categorical(factors: Sequence[Factor]) -> Energy | None:
    """Categories that one factor excludes stay excluded, whatever its power: 0/0 counts as 0."""
    powers = [power for _, power in factors]
    logits = [energy.logits.detach().double() for energy, _ in factors]
    if len({tuple(value.shape) for value in logits}) > 1:
        return None  # different numbers of categories
    excluded = torch.stack([value == -math.inf for value in logits]).any(0)
    total = _weighted(powers, [value.masked_fill(excluded, 0) for value in logits])
    member = Categorical.from_natural([total.masked_fill(excluded, -math.inf)])
    assert member is not None  # the natural domain is everything
    partition = _weighted(powers, [value.logsumexp(-1).sum() for value in logits])
    return _shifted((member, float(partition - member.natural.log_partition)), factors)


@closed_form(Poisson)
def _poisson(factors: Sequence[Factor]) -> Energy | None:
    """The base measure is (1/x!)^Σw: in the family where Σw = 1, of infinite mass where Σw < 0,
    else in none.
    """
    powers = [power for _, power in factors]
    total = math.fsum(powers)
    if math.isclose(total, 1.0, rel_tol=1e-12):
        return _family_rule(Poisson, factors)
    slope = _weighted(powers, [energy.natural.parameters[0] for energy, _ in factors])
    if total < -1e-12 or (total == 0 and bool((slope >= 0).any())):
        raise Improper("Σ over x of (x!)^-Σw e^(ηx) diverges")
    return None
