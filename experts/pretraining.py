"""Training of deep Boltzmann machines: layer by layer first, then all layers together.

>>> import torch
>>> from poe.training import PersistentContrastiveDivergence
>>> bits = (torch.rand(200, 6) < 0.3).float()
>>> machine = pretrain(bits, [4, 3], epochs=1)
>>> loss = MeanFieldLikelihood(PersistentContrastiveDivergence(chains=50))
>>> optimiser = torch.optim.SGD(machine.parameters(), lr=0.01)
>>> loss(machine, bits).backward()
>>> optimiser.step()

References: Salakhutdinov and Hinton 2009, Deep Boltzmann machines, AISTATS (both); Hinton and
Salakhutdinov 2012, A better way to pretrain deep Boltzmann machines, NeurIPS (what the doubled
layers stand for).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, softplus

from experts.boltzmann import DBM
from poe.algebra import support as sets
from poe.algebra.energy import Energy
from poe.spaces.sites import toss
from poe.training.losses import ContrastiveDivergence, PersistentContrastiveDivergence


class Doubled(Energy):
    """A restricted Boltzmann machine whose layers are copies that share weights: one layer of a
    deep machine, trained alone.

    With `below` copies v_i of the visible units and `above` copies of the hidden ones, which are
    summed out,

        E(v_1, v_2, ...) = -Σ_i b·v_i - above · Σ_j softplus(c_j + Σ_i (v_iᵀW)_j).

    So hidden units take `below` times the input Wᵀv that they take in the deep machine, in place of
    the input from the layer above; and visible ones `above` times the input W h.

    Arguments:
        weights: W, (n, H).
        visible_bias, hidden_bias: b (n) and c (H). All three are learned.
        below, above: numbers of copies.
    """

    _all: Tensor

    def __init__(
        self,
        weights: Tensor,
        visible_bias: Tensor,
        hidden_bias: Tensor,
        *,
        below: int = 1,
        above: int = 1,
    ) -> None:
        n = below * len(weights)
        super().__init__((n,), support=sets.Box(torch.zeros(n), torch.ones(n), integer=True))
        self.weights, self.visible_bias, self.hidden_bias = map(
            nn.Parameter, (weights, visible_bias, hidden_bias)
        )
        self.below, self.above = below, above
        self.register_buffer("_all", torch.arange(n, device=weights.device), persistent=False)

    @property
    def blocks(self) -> tuple[Tensor, ...]:
        """All visible units: independent given the hidden ones."""
        return (self._all,)

    @property
    def uniforms(self) -> tuple[int, ...]:
        """The number of uniforms that `sample_block` takes: for all hidden units, then for all
        visible ones."""
        return (self.above * self.weights.shape[1] + self.below * self.weights.shape[0],)

    def forward(self, x: Tensor) -> Tensor:  # (*batch, below · n) -> (*batch)
        v = self._sum(x, self.below)
        return -(v @ self.visible_bias) - self.above * softplus(
            self.hidden_logits(v), threshold=40
        ).sum(-1)

    def hidden_logits(self, v: Tensor) -> Tensor:  # (*batch, n) -> (*batch, H)
        """Log-odds of hidden units, given the sum of the visible copies."""
        return linear(v, self.weights.T, self.hidden_bias)

    def sample_block(self, x: Tensor, block: int, uniforms: Tensor) -> Tensor:
        # (*batch, below · n), (*batch, above · H + below · n) -> (*batch, below · n)
        """The visible units redrawn, given a draw of the hidden ones."""
        first, second = uniforms.split(
            [self.above * self.weights.shape[1], self.below * self.weights.shape[0]], -1
        )
        with torch.no_grad():
            logits = self.hidden_logits(self._sum(x, self.below))
            h = toss(torch.cat([logits] * self.above, -1), first, x.dtype)
            back = linear(self._sum(h, self.above), self.weights, self.visible_bias)
            return toss(torch.cat([back] * self.below, -1), second, x.dtype)

    @staticmethod
    def _sum(x: Tensor, copies: int) -> Tensor:  # (*batch, copies · n) -> (*batch, n)
        return x if copies == 1 else x.unflatten(-1, (copies, -1)).sum(-2)


def pretrain(
    data: Tensor,
    hidden: Sequence[int],
    *,
    epochs: int = 10,
    batch: int = 100,
    rate: float = 0.05,
    k: int = 1,
    decay: float = 2e-4,
    generator: torch.Generator | None = None,
) -> DBM:
    # data: (n, n_0)
    """A learnable deep machine from restricted ones that are trained greedily, one on top of the
    other, by contrastive divergence.

    Layer l learns weights W_l from the bits of the layer below: the data, or hidden units that the
    machines below draw anew in each epoch. As it lacks the input of its other neighbour, the first
    one has doubled visible units, the last one doubled hidden units, and one in between both
    (`Doubled`); a single layer neither. In the deep machine each unit takes the inputs of both
    sides once, and its bias is the mean of the two that were learned: its log-odds are the mean of
    those in the machines above and below it.

    Arguments:
        data: bits, or probabilities of bits that are drawn anew in each epoch.
        hidden: the number of units of each hidden layer.
        epochs, batch: passes over the data for each layer, points in a step.
        rate: of gradient descent with momentum 0.9; it decreases linearly to 0.
        k: steps of contrastive divergence.
        decay: of the weights, as `weight_decay` of `torch.optim.SGD`.

    Raises ValueError where the data are not (n, n_0) with values between 0 and 1.
    """
    if (
        data.ndim != 2
        or not len(data)
        or not data.is_floating_point()
        or not bool(((data >= 0) & (data <= 1)).all())
    ):
        raise ValueError(
            "data are bits or their probabilities, floating numbers (n, n_0), not "
            f"{tuple(data.shape)} {data.dtype}"
        )
    if not hidden or min(hidden) < 1:
        raise ValueError(
            f"hidden counts the units of each hidden layer, such as [500, 1000], not {hidden}"
        )
    layers: list[Doubled] = []

    def bits(chosen: Tensor) -> Tensor:  # (m) -> (m, units of the layer below the next one)
        with torch.no_grad():
            x = data[chosen].bernoulli(generator=generator)
            for layer in layers:
                x = layer.hidden_logits(layer.below * x).sigmoid().bernoulli(generator=generator)
        return x

    for index, units in enumerate(hidden):
        below, above = 1 if index == len(hidden) - 1 else 2, 1 if index == 0 else 2
        layer = _initial(bits, data, units, below, above, generator)
        optimiser = _optimiser(layer, rate, decay)
        steps = epochs * -(-len(data) // batch)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimiser, lambda step, steps=steps: 1 - step / steps
        )
        loss = ContrastiveDivergence(k, generator=generator)
        for _ in range(epochs):
            order = torch.randperm(len(data), generator=generator, device=data.device)
            for chosen in order.split(batch):
                optimiser.zero_grad()
                loss(layer, torch.cat([bits(chosen)] * below, -1)).backward()
                optimiser.step()
                schedule.step()
        layers.append(layer)
    return _joined(layers)


def _initial(
    bits: Callable[[Tensor], Tensor],
    data: Tensor,
    units: int,
    below: int,
    above: int,
    generator: torch.Generator | None,
) -> Doubled:
    """A machine before training: visible biases are the log-odds of the bits, weights are small."""
    batches = torch.arange(len(data)).split(1000)
    ones = torch.stack([bits(chosen).sum(0) for chosen in batches]).sum(0)
    odds = (ones + 0.5).log() - (len(data) - ones + 0.5).log()
    weights = 0.01 * torch.randn(
        len(odds), units, generator=generator, device=data.device, dtype=data.dtype
    )
    return Doubled(weights, odds, odds.new_zeros(units), below=below, above=above)


def _optimiser(layer: Doubled, rate: float, decay: float) -> torch.optim.SGD:
    """Gradient descent with momentum; only the weights decay."""
    groups = [
        {"params": [layer.weights], "weight_decay": decay},
        {"params": [layer.visible_bias, layer.hidden_bias]},
    ]
    return torch.optim.SGD(groups, rate, momentum=0.9)


def _joined(layers: Sequence[Doubled]) -> DBM:
    """The deep machine of these layers."""
    with torch.no_grad():
        between = [
            (lower.hidden_bias + upper.visible_bias) / 2 for lower, upper in pairwise(layers)
        ]
    biases = [layers[0].visible_bias, *between, layers[-1].hidden_bias]
    return DBM(
        [layer.weights.detach() for layer in layers],
        [bias.detach() for bias in biases],
        learnable=True,
    )


@dataclass(frozen=True)
class MeanFieldLikelihood:
    """mean F(v) - mean E(x): F(v) the variational free energy of the batch, `DBM.free_energy`; x
    the points of chains that persist.

    Its gradient estimates that of the mean of -`DBM.lower_bound`, so that training raises the
    bound: it moves p(v) towards the data, and p(h | v) towards a factorial law.

    Arguments:
        chains: what moves the points x. Unless it has a `start`, they begin at points of the batch,
            each hidden unit at its more likely value.
        iterations, tolerance: of `DBM.mean_field`.
    """

    chains: PersistentContrastiveDivergence
    iterations: int = 10
    tolerance: float = 1e-3

    def __call__(self, energy: DBM, batch: Tensor) -> Tensor:  # (n, n_0) -> ()
        if batch.ndim != 2 or not len(batch):
            raise ValueError(
                f"a batch is (n, {energy.sizes[0]}), visible units of at least one point, not "
                f"{tuple(batch.shape)}"
            )
        means = energy.mean_field(batch, iterations=self.iterations, tolerance=self.tolerance)
        whole = torch.cat([batch, *(mean.round() for mean in means)], -1)
        model = self.chains.move(energy, whole)
        return energy.free_energy(batch, means).mean() - energy(model).mean()
