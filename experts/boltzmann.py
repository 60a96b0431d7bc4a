"""Restricted Boltzmann machines, with binary or Gaussian visible units.

| expert | event | E | log Z exact to |
|-------------|------------------|--------------------------------------------------------|---------------------------|
| RBM | visible bits | -b·v - Σ_j softplus(c_j + (vᵀW)_j) | 24 units of a layer |
| GaussianRBM | visible reals | Σ_i (v_i-b_i)²/2σ_i² - Σ_j softplus(c_j + (vᵀW)_j) | 24 hidden units |

Hidden units h are summed out, exp(-E(v)) = Σ_h exp(-E(v, h)); `RBM.joint` keeps them, as a `DBM`
(experts.dbm) of two layers. In nats; weights in nats per unit of v.
"""  # noqa: E501

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear, softplus

from experts.dbm import DBM
from experts.discrete import (
    MOST_UNITS,
    Machine,
    layer_weights,
    layers_log_z,
    quadratic_log_z,
    shared_dtype,
    unit_vector,
)
from experts.families import Bernoulli, Normal
from experts.families import parameters as param
from poe.algebra import support as sets
from poe.algebra.capabilities import Samples
from poe.algebra.energy import Energy
from poe.algebra.rules import closed_form
from poe.algebra.shifted import shift
from poe.registry import converter, register
from poe.spaces.sites import toss

Factor = tuple[Any, float]
MOST_DRAWN = 20  # hidden units up to which all their states are listed, for independent draws
MOST_COPIES = 8  # whole powers up to this one repeat the hidden units


class Restricted(Machine):
    """Hidden bits h_j, independent given the visible units, with log-odds c_j + (vᵀW)_j; `hidden`
    counts them."""

    weights: Tensor
    hidden_bias: Tensor

    @property
    def hidden(self) -> int:
        """How many hidden units there are."""
        return self.weights.shape[1]

    @property
    def uniforms(self) -> tuple[int, ...]:
        """How many numbers `sample_block` takes: one for each hidden unit, then one for each
        visible one."""
        return (self.hidden + self.event_shape.numel(),)

    def draw_hidden(self, x: Tensor, uniforms: Tensor) -> Tensor:
        # (*batch, *event), (*batch, H) -> (*batch, H)
        """h given v: h_j = 1 where its uniform is below 1/(1 + exp(-c_j - (vᵀW)_j))."""
        with torch.no_grad():
            inputs = self._inputs(x)
            return toss(inputs, uniforms, inputs.dtype)

    def _inputs(self, v: Tensor) -> Tensor:  # (*batch, *event) -> (*batch, H)
        v = self._flat(v)
        return linear(
            v if v.is_floating_point() else v.to(self.dtype), self.weights.T, self.hidden_bias
        )

    def _split(self, uniforms: Tensor) -> tuple[Tensor, Tensor]:
        if uniforms.shape[-1] != self.uniforms[0]:
            raise ValueError(
                f"{self} takes {self.uniforms[0]} uniforms a draw, hidden units first, not "
                f"{uniforms.shape[-1]}"
            )
        return uniforms[..., : self.hidden], uniforms[..., self.hidden :]


@register("rbm")
class RBM(Restricted):
    """A restricted Boltzmann machine over its visible bits: E(v) = -b·v - Σ_j softplus(c_j +
    (vᵀW)_j).

    Arguments:
        weights: W, (n, H).
        visible_bias, hidden_bias: b (n) and c (H), or broadcast to it.
        event_shape: shape of one v, of n numbers; by default (n).
        learnable: makes all three `nn.Parameter`s.

    Reference: Hinton 2012, A practical guide to training restricted Boltzmann machines.
    """

    visible_bias: Tensor
    _law: tuple[list[Any], Tensor] | None = None

    def __init__(
        self,
        weights: Any,
        visible_bias: Any = 0.0,
        hidden_bias: Any = 0.0,
        *,
        event_shape: Sequence[int] | None = None,
        learnable: bool = False,
        name: str | None = None,
    ) -> None:
        values, shape = _parameters(weights, event_shape, hidden_bias, visible_bias=visible_bias)
        box = sets.Box(torch.zeros(shape), torch.ones(shape), integer=True)
        blocks, structure = [torch.arange(shape.numel())], {"event_shape": list(shape)}
        super().__init__(
            values, structure, support=box, blocks=blocks, learnable=learnable, name=name
        )

    @classmethod
    def untrained(
        cls,
        event_shape: Sequence[int],
        hidden: int,
        *,
        data: Tensor | None = None,
        scale: float = 0.01,
        generator: torch.Generator | None = None,
    ) -> RBM:
        """A learnable machine with weights from N(0, scale²), and visible biases from the base
        rates of the data (n, *event), half a count added to each side; 0 without data."""
        n = torch.Size(event_shape).numel()
        bias = torch.zeros(n)
        if data is not None:
            ones = data.reshape(len(data), n).double().sum(0)
            bias = ((ones + 0.5) / (len(data) - ones + 0.5)).log().to(bias)
        weights = scale * torch.randn(n, hidden, generator=generator)
        return cls(weights, bias, torch.zeros(hidden), event_shape=event_shape, learnable=True)

    @property
    def joint(self) -> DBM:
        """E(v, h) = -b·v - c·h - vᵀWh over one vector of visible and then hidden bits. It shares
        parameters that are learned."""
        return DBM([self.weights], [self.visible_bias, self.hidden_bias])

    def forward(self, x: Tensor) -> Tensor:  # (*batch, *event) -> (*batch)
        inputs = self._inputs(x)
        return -(self._flat(x).to(inputs.dtype) @ self._visible.to(inputs.dtype)) - softplus(
            inputs, threshold=40
        ).sum(-1)

    def can(self, capability: type) -> bool:
        if capability is Samples:
            return self.hidden <= MOST_DRAWN
        return super().can(capability)

    def sample(
        self, n: int | tuple[int, ...], *, generator: torch.Generator | None = None
    ) -> Tensor:
        """Independent draws of a machine of up to 20 hidden units: h from the table of all its
        states, then v given h. Raises ValueError for more."""
        if not self.can(Samples):
            raise ValueError(
                f"{self} has {self.hidden} hidden units; up to {MOST_DRAWN} are drawn exactly, "
                "poe.sample draws more"
            )
        shape = (n,) if isinstance(n, int) else tuple(n)
        total = math.prod(shape)
        where = None if generator is None else generator.device
        with torch.no_grad():
            law = self._table().to(where or self.device)
            number = torch.multinomial(law, max(total, 1), replacement=True, generator=generator)[
                :total
            ]
            h = (number.unsqueeze(-1) >> torch.arange(self.hidden, device=number.device) & 1).to(
                self.device, self.dtype
            )
            uniforms = torch.rand(
                total,
                self.weights.shape[0],
                generator=generator,
                dtype=self.dtype,
                device=where or self.device,
            )
            x = toss(self.site_logits(h, self.blocks[0]), uniforms.to(self.device), self.dtype)
        return x.reshape(*shape, *self.event_shape)

    def _table(self) -> Tensor:  # -> (2^H)
        """Probabilities of all states of the hidden units, remembered until a parameter changes."""
        tensors = [getattr(self, key) for key in self._keys]
        state = [(tensor._version, tensor.data_ptr()) for tensor in tensors]
        if self._law is None or self._law[0] != state:
            n, hidden = self.weights.shape
            biases = (
                self._exact("hidden_bias").expand(hidden),
                self._exact("visible_bias").expand(n),
            )
            self._law = state, layer_weights(self._exact("weights").T, *biases).softmax(0)
        return self._law[1]

    def site_logits(self, h: Tensor, sites: Tensor) -> Tensor:  # (*batch, H), (k) -> (*batch, k)
        """Log-odds b_i + (W h)_i of visible units given the hidden ones."""
        if sites is self.blocks[0]:
            return linear(h, self.weights, self._visible)
        return linear(h, self.weights[sites], self._visible[sites])

    def sample_block(self, x: Tensor, block: int, uniforms: Tensor) -> Tensor:
        # (*batch, *event), (*batch, H + n) -> (*batch, *event)
        """The visible units redrawn by way of the hidden ones: h given x, then v given h. It leaves
        exp(-E) invariant."""
        first, second = self._split(uniforms)
        with torch.no_grad():
            logits = self.site_logits(self.draw_hidden(x, first), self.blocks[block])
            return self._redrawn(x, block, logits, second)

    @property
    def _visible(self) -> Tensor:
        return self.visible_bias.expand(self.weights.shape[0])

    def _sum(self, patient: bool) -> float | None:
        n, hidden = self.weights.shape
        biases = self._exact("visible_bias").expand(n), self._exact("hidden_bias").expand(hidden)
        return layers_log_z(self._exact("weights"), *biases, patient=patient)


@register("gaussian-rbm")
class GaussianRBM(Restricted):
    """A restricted Boltzmann machine over real visible units: E(v) = Σ_i (v_i - b_i)²/(2σ_i²) - Σ_j
    softplus(c_j + (vᵀW)_j).

    A mixture of 2^H Gaussians with one covariance: v given h is N(b + σ² W h, σ²).

    Arguments:
        weights: W, (n, H), in nats per unit of v.
        loc, scale: b and σ (n), in units of v, or broadcast to it.
        hidden_bias: c (H), or broadcast to it.
        event_shape, learnable: as of `RBM`.

    Reference: Welling, Rosen-Zvi and Hinton 2005, Exponential family harmoniums.
    """

    loc: Tensor
    scale: Tensor

    def __init__(
        self,
        weights: Any,
        loc: Any = 0.0,
        scale: Any = 1.0,
        hidden_bias: Any = 0.0,
        *,
        event_shape: Sequence[int] | None = None,
        learnable: bool = False,
        name: str | None = None,
    ) -> None:
        values, shape = _parameters(weights, event_shape, hidden_bias, loc=loc, scale=scale)
        param.require_positive("scale", values["scale"], "a standard deviation is positive")
        blocks, structure = [torch.arange(shape.numel())], {"event_shape": list(shape)}
        super().__init__(
            values,
            structure,
            support=sets.real(shape),
            blocks=blocks,
            learnable=learnable,
            name=name,
        )

    def forward(self, x: Tensor) -> Tensor:  # (*batch, *event) -> (*batch)
        residual = (self._flat(x) - self.loc) / self.scale
        return 0.5 * residual.square().sum(-1) - softplus(self._inputs(x), threshold=40).sum(-1)

    @property
    def proper(self) -> bool | None:
        """True: softplus grows linearly, the Gaussian falls off faster."""
        return True

    @property
    def bounded(self) -> bool | None:
        return True

    def sample_block(self, x: Tensor, block: int, uniforms: Tensor) -> Tensor:
        # (*batch, *event), (*batch, H + n) -> (*batch, *event)
        """The visible units redrawn by way of the hidden ones: h given x, then v = b + σ² W h + σ
        Φ⁻¹(u). It leaves exp(-E) invariant. A uniform u stands for the middle of its interval,
        2^-24 wide in float32: |Φ⁻¹(u)| is at most 5.4 there."""
        first, second = self._split(uniforms)
        with torch.no_grad():
            mean = self.loc + self.scale.square() * linear(self.draw_hidden(x, first), self.weights)
            noise = torch.special.ndtri(second.double() + torch.finfo(second.dtype).eps / 4)
            return (mean + self.scale * noise.to(mean.dtype)).reshape(x.shape).to(x.dtype)

    def _sum(self, patient: bool) -> float | None:
        n, hidden = self.weights.shape
        if hidden > MOST_UNITS:
            return None
        weights, variance = self._exact("weights"), self._exact("scale").square().expand(n)
        inputs = self._exact("hidden_bias").expand(hidden) + self._exact("loc").expand(n) @ weights
        square = weights.T @ (variance.unsqueeze(-1) * weights)
        return quadratic_log_z(inputs, square) + 0.5 * float((2 * math.pi * variance).log().sum())

    @classmethod
    def _rebuilt(cls, values: dict[str, Tensor], structure: dict[str, Any]) -> Machine:
        with torch.no_grad():
            values["scale"].fill_(1)
        return super()._rebuilt(values, structure)


# ---------------------------------------------------------------- what they share


def _parameters(
    weights: Any, event_shape: Sequence[int] | None, hidden_bias: Any, **others: Any
) -> tuple[dict[str, Tensor], torch.Size]:
    """Weights (n, H), hidden biases (H) and vectors (n), and the event shape."""
    values = param.tensors(weights=weights, hidden_bias=hidden_bias, **others)
    if values["weights"].ndim != 2:
        raise ValueError(
            "weights join visible to hidden units, (n, H); got shape "
            f"{tuple(values['weights'].shape)}"
        )
    n, hidden = values["weights"].shape
    shape = torch.Size([n] if event_shape is None else event_shape)
    if shape.numel() != n:
        raise ValueError(
            f"events of shape {tuple(shape)} are {shape.numel()} numbers, and the weights have {n} "
            "rows"
        )
    for key in values.keys() - {"weights"}:
        values[key] = unit_vector(key, values[key], hidden if key == "hidden_bias" else n)
    return values, shape


@converter("sklearn.neural_network._rbm.BernoulliRBM")
def from_sklearn(
    machine: Any, *, event_shape: Sequence[int] | None = None, name: str | None = None
) -> RBM:
    """A fitted scikit-learn BernoulliRBM, in its own precision."""
    try:
        weights, visible, hidden = (
            machine.components_,
            machine.intercept_visible_,
            machine.intercept_hidden_,
        )
    except AttributeError:
        raise ValueError(
            f"{type(machine).__name__} has no weights yet: call its fit(X) first"
        ) from None
    return RBM(weights.T.copy(), visible, hidden, event_shape=event_shape, name=name)


# ---------------------------------------------------------------- closed forms


@closed_form(RBM)
@closed_form(RBM, Bernoulli)
def _rbm(factors: Sequence[Factor]) -> Energy | None:
    """Hidden units side by side, visible biases summed; a Bernoulli field adds its logits, and w Σ
    softplus(logit) is left.

    A power of an RBM is one only where it is a whole number: so many copies of its hidden units.
    """
    machines = [(e, power) for e, power in factors if isinstance(e, RBM)]
    if not machines or not _copies([power for _, power in machines]):
        return None
    weights, hidden = _side_by_side(machines)
    bias = sum(w * e._visible.detach().double() for e, w in machines)
    offset = 0.0
    for energy, power in factors:
        if isinstance(energy, Bernoulli):
            logits = energy.exact("logits")
            bias = bias + power * logits.flatten()
            offset += power * float(softplus(logits, threshold=40).sum())
    first = machines[0][0]
    merged = RBM(weights, bias, hidden, event_shape=first.event_shape)
    return shift(merged.to(first.device, shared_dtype(factors)), offset)


@closed_form(GaussianRBM)
@closed_form(GaussianRBM, Normal)
def _gaussian_rbm(factors: Sequence[Factor]) -> Energy | None:
    """Hidden units side by side; precisions λ = Σ wλ_i and λb = Σ wλ_i b_i; ½ Σ (wλ_i b_i² - λb²)
    is left, and the constants of the normals. A normal with full covariance is none of the family,
    nor is a λ that is not positive."""
    machines = [(e, power) for e, power in factors if isinstance(e, GaussianRBM)]
    normals = [(e, power) for e, power in factors if isinstance(e, Normal)]
    if (
        not machines
        or not _copies([power for _, power in machines])
        or any(e.full for e, _ in normals)
    ):
        return None
    first, offset = machines[0][0], 0.0
    n = first.event_shape.numel()
    precision = torch.zeros(n, dtype=torch.float64, device=first.device)
    slope, rest = torch.zeros_like(precision), torch.zeros_like(precision)
    for energy, power in factors:
        loc, scale = (getattr(energy, key).detach().double() for key in ("loc", "scale"))
        if isinstance(energy, Normal):
            loc, scale = (value.expand(first.event_shape).flatten() for value in (loc, scale))
            offset += power * float((scale.log() + 0.5 * math.log(2 * math.pi)).sum())
        weight = power / scale.square()
        precision, slope, rest = (
            precision + weight,
            slope + weight * loc,
            rest + weight * loc.square(),
        )
    if not bool((precision > 0).all()):
        return None
    weights, hidden = _side_by_side(machines)
    loc = slope / precision
    merged = GaussianRBM(weights, loc, precision.rsqrt(), hidden, event_shape=first.event_shape)
    return shift(
        merged.to(first.device, shared_dtype(factors)),
        offset + 0.5 * float((rest - slope * loc).sum()),
    )


def _copies(powers: Sequence[float]) -> bool:
    return all(0 < power <= MOST_COPIES and power == int(power) for power in powers)


def _side_by_side(machines: Sequence[Factor]) -> tuple[Tensor, Tensor]:
    """The weights and biases of all hidden units, as often as each power says."""
    weights = torch.cat(
        [e.weights.detach().double().repeat(1, int(power)) for e, power in machines], 1
    )
    biases = [
        e.hidden_bias.detach().double().expand(e.hidden).repeat(int(power)) for e, power in machines
    ]
    return weights, torch.cat(biases)
