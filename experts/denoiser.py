"""Denoising networks that were trained elsewhere, with any prediction and schedule, as experts at a
level of noise.

Here x = x₀ + σ ε, ε ~ N(0, 1) in each coordinate. A network sees u = αx = αx₀ + sε, s = ασ, and a
time t; α' and s' are the rates at which its own path changes, scaled so that αs' - sα' = 1:

| schedule   | α           | s           | α'  | s' | velocity  |
|------------|-------------|-------------|-----|----|-----------|
| exploding  | 1           | σ           | 0   | 1  | ε         |
| preserving | 1/√(1+σ²)   | σ/√(1+σ²)   | -s  | α  | αε - sx₀  |
| flow       | 1/(1+σ)     | σ/(1+σ) = t | -1  | 1  | ε - x₀    |

What it returns, `out`, determines the denoised point, D = E[x₀ | x], and the noise, e = (x - D)/σ =
E[ε | x]; the score is -e/σ.

| predicts   | out              | D               | e               |
|------------|------------------|-----------------|-----------------|
| "noise"    | E[ε | x]         | x - σ out       | out             |
| "score"    | ∇log q(u)        | x + σs out      | -s out          |
| "denoised" | E[x₀ | x]        | out             | (x - out)/σ     |
| "velocity" | s'E[ε] + α'E[x₀] | s'αx - s out    | α out - α'αx    |

Nothing is divided by α, by s or by 1 - t. At σ = 0 D is x; e is defined there too, except for a
network that predicts D, and one that predicts the score gives that even there, as α out. A relative
rounding error r becomes an error σr in D of "noise" and "score", which matters at large σ, and
r|x|/σ in e of "denoised", at small σ.

References: Vincent 2011, Neural Computation 23(7); Song, Sohl-Dickstein, Kingma et al. 2021, ICLR
(both SDEs); Salimans and Ho 2022, ICLR (velocities that preserve variance); Liu, Gong and Liu 2023,
ICLR (rectified flow); Karras et al. 2022, NeurIPS (σ for all).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from experts.locked import Locked
from experts.noise_schedule import Coefficients, NoiseSchedule
from poe.algebra.bindings import Bindings
from poe.algebra.capabilities import Conditional, NoiseConditional, ScoreOnly
from poe.algebra.energy import Energy, checked_level
from poe.algebra.points import batch_shape
from poe.registry import near, register

PREDICTIONS = ("noise", "score", "denoised", "velocity")


@register("denoiser")
class Denoiser(Locked, Energy):
    """A denoising network at one level of noise, as a score, or as an energy of its own.

    Arguments:
        network: takes u, (n, *event), and t, (n), and returns something of the shape of u; with
            `conditional` a context comes third. An `nn.Module` is put in eval mode and kept there.
        event_shape: shape of one x.
        schedule: how the network was shown noise.
        predicts: "noise", "score", "denoised" or "velocity".
        energy: None, or "denoised" for E(x) = ‖x - D‖² / 2σ² = ‖e‖² / 2.
        sigma: the level, in units of x; the lowest by default, which is the target.
        conditional: whether the network takes a context: None, unless `given` binds one; a tensor
            is one context, repeated for each x, (n, *context), and anything else is passed on as it
            is.
        bounded: whether D is known to be bounded, as for a network that ends in tanh: E then grows
            as |x|²/2σ².

    By default only the score -e/σ is known, which `score` returns; there is no energy: calling the
    expert raises TypeError, and the value of `value_and_grad` is NaN. Products with any other
    energy are drawn by `poe.LineIntegral`; where modes lie far apart, from the noisiest level down,
    each level from the draws of the one before (of a product e, x at first from a normal as wide as
    the noise):

        for sigma in levels:
            x = poe.sample(e.at(sigma), len(x), kernel=poe.LineIntegral(), init=x).x

    These have no weights: a product of noised densities is not the noised product, and only moves
    at the last levels correct that.

    With energy="denoised" the expert is an energy in full: exact tests, mixtures, contrasts. Its
    score is -∇E, which is -e/σ for a network that was trained by that (Du et al. 2023, ICML); a
    network that was fitted to x₀ by least squares has another density than p_σ: if the data are
    N(0, τ²), one of variance (σ² + τ²)²/σ², not σ² + τ².

    Raises ValueError for an unknown prediction, a level outside the range, and a network that
    returns another shape or NaN.

    >>> net = lambda u, t: u / (1 + t[:, None] ** 2)  # D, where the data are N(0, 1)
    >>> schedule = NoiseSchedule.exploding(0.1, 10.0)
    >>> e = Denoiser(net, (2,), schedule=schedule, predicts="denoised", name="data")
    >>> e.at(0.5).score(torch.ones(2))
    tensor([-0.8000, -0.8000])
    """

    def __init__(
        self,
        network: Callable[..., Tensor],
        event_shape: Sequence[int],
        *,
        schedule: NoiseSchedule,
        predicts: str = "noise",
        energy: str | None = None,
        sigma: float | None = None,
        conditional: bool = False,
        bounded: bool = False,
        name: str | None = None,
    ) -> None:
        super().__init__(event_shape, name=name)
        if predicts not in PREDICTIONS:
            raise ValueError(
                f"networks predict {', '.join(map(repr, PREDICTIONS))}, not "
                f"{predicts!r}{near(predicts, PREDICTIONS)}"
            )
        if energy not in (None, "denoised"):
            raise ValueError(f"energy is None, for a score alone, or 'denoised', not {energy!r}")
        if not callable(network):
            raise TypeError(f"a Denoiser takes a network (u, t) -> prediction, not {network!r}")
        if not isinstance(schedule, NoiseSchedule):
            raise TypeError(
                "a schedule is a NoiseSchedule, such as NoiseSchedule.exploding(0.01, 10.0), not "
                f"{schedule!r}"
            )
        self.network, self.schedule, self.predicts, self.energy = (
            network,
            schedule,
            predicts,
            energy,
        )
        self.context: Any = None
        self.takes_context, self._bounded = conditional, bounded
        self.sigma = self._checked(self.sigma_range[0] if sigma is None else sigma)
        self._levels: dict[float, Denoiser] = {self.sigma: self}
        self._concepts: dict[Any, dict[float, Denoiser]] = {None: self._levels}
        self._bindings = Bindings()
        self.eval()
        if not conditional:
            self._probe()

    @property
    def sigma_range(self) -> tuple[float, float]:
        """Lowest and highest level of noise, in units of x."""
        return self.schedule.sigma_range

    @property
    def score_only(self) -> bool:
        """Whether there is no energy."""
        return self.energy is None

    @property
    def growth(self) -> float | None:
        """1 / 2σ² where D is bounded."""
        return 0.5 / self.sigma**2 if self._bounded else None

    @property
    def proper(self) -> bool | None:
        return True if self._bounded else super().proper

    @property
    def bounded(self) -> bool | None:
        """True with an energy, which is never below 0, and where D is bounded."""
        return True if self._bounded or self.energy is not None else super().bounded

    def can(self, capability: type) -> bool:
        if capability is Conditional:
            return self.takes_context and self.context is None
        if capability is ScoreOnly:
            return self.energy is None
        if capability is NoiseConditional:  # asked where energies at each level weigh particles
            return self.energy is not None
        return super().can(capability)

    def denoised(self, x: Tensor) -> Tensor:  # (*batch, *event) -> (*batch, *event)
        """D = E[x₀ | x], in units of x."""
        out, c = self._call(x)
        if self.predicts == "noise":
            return x - self.sigma * out
        if self.predicts == "score":
            return x + self.sigma * c.s * out
        return out if self.predicts == "denoised" else (c.s_rate * c.alpha) * x - c.s * out

    def noise(self, x: Tensor) -> Tensor:  # (*batch, *event) -> (*batch, *event)
        """e = E[ε | x] = (x - D)/σ."""
        out, c = self._call(x)
        if self.predicts == "noise":
            return out
        if self.predicts == "score":
            return -c.s * out
        return (
            (x - out) / self.sigma
            if self.predicts == "denoised"
            else c.alpha * out - (c.alpha_rate * c.alpha) * x
        )

    def forward(self, x: Tensor) -> Tensor:  # (*batch, *event) -> (*batch)
        if self.energy is None:
            raise TypeError(
                f"{self} has a score and no energy: draw products of it by poe.sample(..., "
                "kernel=poe.LineIntegral(), init=points), which accepts moves by line integrals of "
                "scores; or give energy='denoised' to a network that was trained as an energy"
            )
        return (
            self.noise(x).unsqueeze(-1).flatten(x.ndim - len(self.event_shape)).square().sum(-1) / 2
        )

    def _value_and_grad(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if self.energy is not None:
            return super()._value_and_grad(x)
        with torch.no_grad():
            if self.predicts == "score":
                out, c = self._call(x)
                slope = -c.alpha * out
            else:
                slope = self.noise(x) / self.sigma
        return x.new_full(batch_shape(self, x), math.nan), slope

    def _call(self, x: Tensor) -> tuple[Tensor, Coefficients]:
        """What the network returns, and the coefficients."""
        batch_shape(self, x)
        c, rows = self.schedule.coefficients(self.sigma), x.reshape(-1, *self.event_shape)
        if not len(rows):
            return x, c
        t = torch.full((len(rows),), self.schedule.time(self.sigma), dtype=x.dtype, device=x.device)
        out = (
            self.network(c.alpha * rows, t, *self._contexts(rows))
            if self.takes_context
            else self.network(c.alpha * rows, t)
        )
        if not isinstance(out, Tensor) or out.shape != rows.shape:
            shape = f"shape {tuple(out.shape)}" if isinstance(out, Tensor) else type(out).__name__
            raise ValueError(
                f"the network of {self} returned {shape} for u of shape {tuple(rows.shape)}, and a "
                "prediction has the shape of u; wrap a model that returns more as lambda u, t: "
                "model(u, t).sample, or model(u, t)[:, :channels]"
            )
        return out.reshape(x.shape), c

    def _contexts(self, rows: Tensor) -> tuple[Any]:
        """The context for the network: a tensor is repeated for each row."""
        if not isinstance(self.context, Tensor):
            return (self.context,)
        context = self.context.to(rows if self.context.is_floating_point() else rows.device)
        return (context.expand(len(rows), *context.shape),)

    def _probe(self) -> None:
        """Evaluates both ends of the range, twice, so that a network that does not fit raises when
        it is wrapped."""
        x = torch.zeros(2, *self.event_shape, dtype=self.dtype, device=self.device)
        for end in map(self.at, self.sigma_range):
            with torch.no_grad():
                first, second = (end._call(x)[0] for _ in range(2))
            if bool(first.isnan().any()):
                raise ValueError(
                    f"the network of {self} returns NaN at x = 0 and noise {end.sigma:g}"
                )
            if not torch.equal(first, second):
                raise ValueError(
                    f"the network of {self} returns two values at one point: a density must be "
                    "deterministic; call its eval() method, and remove what draws random numbers"
                )

    def at(self, sigma: float) -> Denoiser:
        """The same at level sigma (units of x); at 0, and at the lowest level, the target. Raises
        ValueError outside the range."""
        return self._other(
            checked_level(self, sigma) or self.sigma_range[0], self.context, self._levels
        )

    def given(self, context: Any) -> Denoiser:
        """The same with a context for the network; `given(None)` is the unconditional one. Raises
        TypeError where it takes none."""
        if not self.takes_context:
            raise TypeError(
                f"{self} takes no context: wrap a network (u, t, context) with conditional=True"
            )
        if context is None or isinstance(context, (str, int)):
            return self._other(self.sigma, context, self._concepts.setdefault(context, {}))
        lowest = self._other(self.sigma_range[0], context, {})
        if isinstance(context, Tensor):
            lowest = self._bindings.first(lowest, context)
        return lowest._other(self.sigma, lowest.context, lowest._levels)

    def _other(self, sigma: float, context: Any, levels: dict[float, Denoiser]) -> Denoiser:
        """The same at another level and with another context, made once for each level."""
        if sigma not in levels:
            other = copy.copy(self)
            other.sigma, other.context, other._levels = self._checked(sigma), context, levels
            levels[sigma] = other
        return levels[sigma]

    def _checked(self, sigma: float) -> float:
        """The level. Raises ValueError outside the range."""
        low, high = self.sigma_range
        if not low <= sigma <= high:
            raise ValueError(
                f"the network knows noise levels from {low:g} to {high:g} (units of x), and 0 for "
                f"the lowest, not {sigma:g}"
            )
        return float(sigma)

    def config(self) -> dict[str, Any]:
        raise TypeError(
            f"{self} wraps a network object, which a file cannot describe: save its weights, and "
            "wrap it again after loading them"
        )
