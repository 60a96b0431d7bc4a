"""Deep Boltzmann machines: bits in layers, each coupled to the next."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.distributions import constraints
from torch.nn.functional import linear

from experts.boltzmann.machine import Machine, unit_vector
from experts.boltzmann.sums import layers_log_z
from experts.families import parameters as param
from poe.algebra.energy import Estimate
from poe.registry import register


@register("dbm")
class DBM(Machine):
    """A deep Boltzmann machine over the bits of all its layers, in one vector x = (x_0, x_1, ...),
    x_0 the visible ones:

        E(x) = -Σ_l b_l·x_l - Σ_l x_lᵀ W_l x_{l+1}.

    Layers of even number are independent given those of odd number, and the other way round: two
    blocks for Gibbs.

    Arguments:
        weights: W_l, (n_l, n_{l+1}), one fewer than there are layers.
        biases: b_l (n_l), or broadcast to it; 0 by default.
        learnable: makes all of them `nn.Parameter`s.

    Reference: Salakhutdinov and Hinton 2009, Deep Boltzmann machines, AISTATS.
    """

    def __init__(
        self,
        weights: Sequence[Any],
        biases: Sequence[Any] | None = None,
        *,
        learnable: bool = False,
        name: str | None = None,
    ) -> None:
        matrices = [param.as_tensor(w) for w in weights]
        if (
            not matrices
            or any(w.ndim != 2 for w in matrices)
            or any(a.shape[1] != b.shape[0] for a, b in pairwise(matrices))
        ):
            shapes = [tuple(w.shape) for w in matrices]
            raise ValueError(
                "weights lead from each layer to the next, (n_0, n_1), (n_1, n_2), ...; got "
                f"{shapes}"
            )
        sizes = [matrices[0].shape[0], *(w.shape[1] for w in matrices)]
        given = [0.0] * len(sizes) if biases is None else list(biases)
        if len(given) != len(sizes):
            raise ValueError(f"{len(sizes)} layers have as many biases, not {len(given)}")
        values = param.tensors(**_named("weights", list(weights)), **_named("bias", given))
        for key, n in zip(_named("bias", given), sizes, strict=True):
            values[key] = unit_vector(key, values[key], n)
        at = torch.arange(sum(sizes)).split(sizes)
        super().__init__(
            values,
            {},
            event_shape=(sum(sizes),),
            support=constraints.boolean,
            blocks=[torch.cat(at[start::2]) for start in (0, 1)],
            learnable=learnable,
            name=name,
        )
        self.sizes = tuple(sizes)

    @property
    def weights(self) -> tuple[Tensor, ...]:
        """W_l, from each layer to the next."""
        return tuple(getattr(self, f"weights_{k}") for k in range(len(self.sizes) - 1))

    @property
    def biases(self) -> tuple[Tensor, ...]:
        """b_l of each layer."""
        return tuple(getattr(self, f"bias_{k}").expand(n) for k, n in enumerate(self.sizes))

    def layers(self, x: Tensor) -> tuple[Tensor, ...]:  # (*batch, n) -> (*batch, n_l) each
        """The units of each layer."""
        return x.split(list(self.sizes), -1)

    def forward(self, x: Tensor) -> Tensor:  # (*batch, n) -> (*batch)
        layers = self.layers(self._floats(x))
        energy = x.new_zeros(x.shape[:-1], dtype=layers[0].dtype)
        for layer, bias in zip(layers, self.biases, strict=True):
            energy = energy - layer @ bias.to(layer.dtype)
        for (lower, upper), weights in zip(pairwise(layers), self.weights, strict=True):
            energy = energy - (linear(lower, weights.T) * upper).sum(-1)
        return energy

    def site_logits(self, x: Tensor, sites: Tensor) -> Tensor:  # (*batch, n), (k) -> (*batch, k)
        """Log-odds b_l + W_{l-1}ᵀ x_{l-1} + W_l x_{l+1} of units of layer l."""
        layers = self.layers(self._floats(x))
        for parity, block in enumerate(self.blocks):
            if sites is block:
                inputs = [self._layer_inputs(layers, k) for k in range(parity, len(layers), 2)]
                return torch.cat(inputs, -1)
        inputs = [self._layer_inputs(layers, k) for k in range(len(layers))]
        return torch.cat(inputs, -1)[..., sites]

    def sample_block(self, x: Tensor, block: int, uniforms: Tensor) -> Tensor:
        # (*batch, n), (*batch, len(block)) -> (*batch, n)
        """x with all layers of even (block 0) or odd number redrawn from their exact
        conditionals."""
        with torch.no_grad():
            return self._redrawn(x, block, self.site_logits(x, self.blocks[block]), uniforms)

    # ---- the variational bound

    def mean_field(
        self, v: Tensor, *, iterations: int = 50, tolerance: float = 1e-4
    ) -> tuple[Tensor, ...]:
        # (*batch, n_0) -> (*batch, n_l) each, l >= 1
        """Means μ_l of the hidden layers under the factorial law q(h) that approximates p(h | v): a
        fixed point of

            μ_l = 1/(1 + exp(-b_l - W_{l-1}ᵀ μ_{l-1} - W_l μ_{l+1})),     μ_0 = v,

        layers of odd and of even number in turn. Each update is the best one given the other
        layers, so that `lower_bound` never decreases and no damping is needed. The means start from
        one pass upwards, in which inputs from below count twice, in place of those from above; the
        iteration ends once no mean changes by more than `tolerance`. Without a graph.
        """
        if v.ndim < 1 or v.shape[-1] != self.sizes[0]:
            raise ValueError(
                f"{self} takes visible units of shape (*batch, {self.sizes[0]}), not "
                f"{tuple(v.shape)}"
            )
        top = len(self.sizes) - 1
        with torch.no_grad():
            layers = [v.to(self.dtype)]
            for k in range(1, top + 1):
                below = layers[-1] if k == top else 2 * layers[-1]
                layers.append(linear(below, self.weights[k - 1].T, self.biases[k]).sigmoid())
            for _ in range(iterations):
                change = 0.0
                for k in (*range(1, top + 1, 2), *range(2, top + 1, 2)):
                    old, layers[k] = layers[k], self._layer_inputs(layers, k).sigmoid()
                    if old.numel():
                        change = max(change, float((layers[k] - old).abs().max()))
                if change <= tolerance:
                    break
        return tuple(layers[1:])

    def free_energy(self, v: Tensor, means: Sequence[Tensor] | None = None) -> Tensor:
        # (*batch, n_0), (*batch, n_l) each -> (*batch)
        """E(v, μ) - H(μ) of a factorial law of the hidden layers, by default `mean_field(v)`, in
        nats: an upper bound of -log Σ_h exp(-E(v, h)). Its graph leads to the parameters only:
        at the fixed point μ adds nothing to the gradient."""
        means = self.mean_field(v) if means is None else [mean.detach() for mean in means]
        entropy = sum((torch.special.entr(m) + torch.special.entr(1 - m)).sum(-1) for m in means)
        return self.forward(torch.cat([v.to(self.dtype), *means], -1)) - entropy

    def lower_bound(self, v: Tensor, log_z: Estimate | float | None = None) -> Tensor:
        # (*batch, n_0) -> (*batch)
        """-E(v, μ) + H(μ) - log Z <= log p(v), in nats. log Z is that of the whole machine; by
        default its own, where it is exact. An estimate with a standard error makes a bound with the
        same one.

        Raises ValueError where log Z is unknown, or v are not bits.
        """
        if not bool(((v == 0) | (v == 1)).all()):
            raise ValueError(
                "visible units must be bits, 0 or 1: the bound holds for no other values"
            )
        log_z = self.log_z if log_z is None else log_z
        if log_z is None:
            raise ValueError(
                f'log Z of {self} is unknown: give log_z=poe.log_z({self}, method="ais")'
            )
        return -self.free_energy(v) - float(log_z)

    def _layer_inputs(self, layers: Sequence[Tensor], k: int) -> Tensor:
        total = self.biases[k]
        if k > 0:
            total = linear(layers[k - 1], self.weights[k - 1].T, total)
        if k < len(layers) - 1:
            total = total + linear(layers[k + 1], self.weights[k])
        return total

    def _sum(self, patient: bool) -> float | None:
        weights = [w.detach().double().cpu() for w in self.weights]
        biases = [b.detach().double().cpu() for b in self.biases]
        even, odd = self.sizes[::2], self.sizes[1::2]
        zero = [[torch.zeros(a, b, dtype=torch.float64) for b in odd] for a in even]
        # from an even layer up to an odd one, or from an odd one up to an even one
        for k, w in enumerate(weights):
            zero[(k + 1) // 2][k // 2] = w.T if k % 2 else w
        matrix = torch.cat([torch.cat(row, 1) for row in zero])
        left, right = torch.cat(biases[::2]), torch.cat(biases[1::2])
        return layers_log_z(matrix, left, right, patient=patient)

    @classmethod
    def _rebuilt(cls, values: dict[str, Tensor], structure: dict[str, Any]) -> Machine:
        weights = [value for key, value in values.items() if key.startswith("weights")]
        return cls(weights, [value for key, value in values.items() if key.startswith("bias")])


def _named(key: str, values: Sequence[Any]) -> dict[str, Any]:
    return {f"{key}_{k}": value for k, value in enumerate(values)}
