"""Restricted Boltzmann machines with binary visible units."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Generator, Tensor
from torch.distributions import constraints
from torch.nn.functional import linear, softplus

from experts.boltzmann.dbm import DBM
from experts.boltzmann.restricted import Restricted
from experts.boltzmann.sums import layer_weights, layers_log_z
from poe.algebra.capabilities import Samples
from poe.algebra.fingerprint import Fingerprint
from poe.registry import converter, register
from poe.spaces.sites import toss

MAX_DRAWN_UNITS = 20  # hidden units up to which all their states are listed, for independent draws


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
        super().__init__(
            weights,
            hidden_bias,
            visible_bias=visible_bias,
            event_shape=event_shape,
            support=constraints.boolean,
            learnable=learnable,
            name=name,
        )
        self._hidden_law: tuple[Fingerprint, Tensor] | None = None

    @classmethod
    def untrained(
        cls,
        event_shape: Sequence[int],
        hidden: int,
        *,
        data: Tensor | None = None,
        scale: float = 0.01,
        generator: Generator | None = None,
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
        visible = self._flat(x).to(inputs.dtype) @ self._visible.to(inputs.dtype)
        return -visible - softplus(inputs, threshold=40).sum(-1)

    def can(self, capability: type) -> bool:
        if capability is Samples:
            return self.hidden <= MAX_DRAWN_UNITS
        return super().can(capability)

    def sample(self, n: int | tuple[int, ...], *, generator: Generator | None = None) -> Tensor:
        """Independent draws of a machine of up to 20 hidden units: h from the table of all its
        states, then v given h. Raises ValueError for more."""
        if not self.can(Samples):
            raise ValueError(
                f"{self} has {self.hidden} hidden units; independent draws are made for up to "
                f"{MAX_DRAWN_UNITS}, poe.sample draws from more"
            )
        shape = (n,) if isinstance(n, int) else tuple(n)
        total = math.prod(shape)
        where = self.device if generator is None else generator.device
        with torch.no_grad():
            law = self._table().to(where)
            number = torch.multinomial(law, max(total, 1), replacement=True, generator=generator)
            bits = number[:total, None] >> torch.arange(self.hidden, device=where) & 1
            h = bits.to(self.device, self.dtype)
            size = (total, self.weights.shape[0])
            uniforms = torch.rand(size, generator=generator, dtype=self.dtype, device=where)
            x = toss(self.site_logits(h, self.blocks[0]), uniforms.to(self.device), self.dtype)
        return x.reshape(*shape, *self.event_shape)

    def _table(self) -> Tensor:  # -> (2^H)
        """Probabilities of all states of the hidden units, kept until a parameter changes."""
        tensors = self._values.values()
        if self._hidden_law is None or not self._hidden_law[0].matches(tensors):
            visible, hidden = self._biases
            law = layer_weights(self._exact("weights").T, hidden, visible).softmax(0)
            self._hidden_law = Fingerprint(tensors), law
        return self._hidden_law[1]

    @property
    def _biases(self) -> tuple[Tensor, Tensor]:  # (n), (H)
        n, hidden = self.weights.shape
        return self._exact("visible_bias").expand(n), self._exact("hidden_bias").expand(hidden)

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
        return layers_log_z(self._exact("weights"), *self._biases, patient=patient)


@converter("sklearn.neural_network._rbm.BernoulliRBM")
def from_sklearn(
    machine: Any, *, event_shape: Sequence[int] | None = None, name: str | None = None
) -> RBM:
    """A fitted scikit-learn BernoulliRBM, in its own precision."""
    try:
        weights, hidden = machine.components_, machine.intercept_hidden_
        visible = machine.intercept_visible_
    except AttributeError:
        raise ValueError(
            f"{type(machine).__name__} has no weights yet: call its fit(X) first"
        ) from None
    return RBM(weights.T.copy(), visible, hidden, event_shape=event_shape, name=name)
