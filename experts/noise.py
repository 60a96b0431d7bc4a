"""Noise-conditional energies: one network that knows the data at every level of noise, and concepts.

At noise σ the data are x = x₀ + σ ε, ε ~ N(0, 1) in each coordinate, and the energy stands for their density p_σ(x | c) given a
concept c, or none. It is the squared distance to a denoised point,

    E(x; σ, c) = ‖x - D(x, σ, c)‖² / 2σ²,     D = loc + spread · f((x - loc) / √(σ² + spread²), log σ, c),

f a network whose output is bounded, so that E is bounded below and grows as |x|² / 2σ²: proper at every level. Where one x₀ explains x,
D = x₀ is right; elsewhere f is free to make -∇E the score. Both derivatives of -log p are known from (x₀, ε) by denoising,

    ∇E(x) = E[ε | x] / σ,     σ ∂E/∂σ = -E[‖ε‖² | x],

the second up to n, the number of coordinates, which sets the constant: Z_σ / (2πσ²)^(n/2) is then the same at all levels, for all
concepts. Scores say nothing of how much mass lies in regions that noise does not join; the second line carries that down from levels
where it does (`noise_matching` fits both). Nor do they say how little there is of what a concept excludes (`concept_matching`).

References: Vincent 2011, Neural Computation 23(7) (denoising score matching); Song & Ermon 2019, NeurIPS (noise-conditional scores);
Du et al. 2023, ICML (reduce, reuse, recycle: energies that compose); Choi et al. 2022, AISTATS (time scores); Karras et al. 2022,
NeurIPS (scales of inputs and weights of levels).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, huber_loss, pixel_shuffle, pixel_unshuffle, silu

from poe.capabilities import Conditional
from poe.energy import Energy
from poe.registry import near, register

MOST_ROWS = 4096  # pictures in one call of a network whose gradient is asked for: what a fused evaluation may hold in memory


class Block(nn.Module):
    """Two 3x3 convolutions with a residual connection, the first one's output scaled and shifted by an embedding of (σ, c)."""

    def __init__(self, channels: int, embedding: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)
        self.film = nn.Linear(embedding, 2 * channels)

    def forward(self, h: Tensor, embedding: Tensor) -> Tensor:  # (n, channels, height, width), (n, embedding) -> like h
        scale, shift = self.film(embedding)[..., None, None].chunk(2, 1)
        return h + self.second(silu(self.first(silu(h)) * (1 + scale) + shift))


class ConceptNetwork(nn.Module):
    """f(x, log σ, c) for pictures: a U-shaped convolutional network on 2x2 patches, with one stage at half their resolution.

    Arguments:
        event_shape: (channels, height, width), sides divisible by 4.
        concepts: the names that it can be asked for; none of them is the unconditional network.
        sigma_range: lowest and highest level of noise, in units of x.
        widths: channels at the resolution of the patches and at half of it.
        embedding: numbers that (σ, c) are told by.
        loc, spread: about the mean and the standard deviation of the data, in units of x.
        rough_below: the level of noise, in units of x, below which differences between energies of concepts are known to be too
            rough to weigh by (`poe.scores`); 0 where they never are.
    """

    frequencies: Tensor

    def __init__(
        self,
        event_shape: Sequence[int],
        *,
        concepts: Sequence[str] = (),
        sigma_range: tuple[float, float] = (0.05, 10.0),
        widths: tuple[int, int] = (48, 96),
        embedding: int = 64,
        loc: float = 0.0,
        spread: float = 0.5,
        rough_below: float = 0.0,
    ) -> None:
        super().__init__()
        shape = tuple(event_shape)
        if len(shape) != 3 or shape[1] % 4 or shape[2] % 4:
            raise ValueError(f"events have shape (channels, height, width) with sides divisible by 4, not {shape}")
        low, high = sigma_range
        if not 0 < low < high < math.inf:
            raise ValueError(f"sigma_range must be (low, high) with 0 < low < high, not {sigma_range}")
        if len(set(concepts)) != len(concepts):
            raise ValueError(f"each concept must be named once, got {list(concepts)}")
        self.event_shape, self.concepts, self.sigma_range = shape, tuple(concepts), (float(low), float(high))
        self.loc, self.spread, self.rough_below = float(loc), float(spread), float(rough_below)
        self.arguments = {
            "event_shape": list(shape),
            "concepts": list(concepts),
            "sigma_range": list(self.sigma_range),
            "widths": list(widths),
            "embedding": embedding,
            "loc": self.loc,
            "spread": self.spread,
            "rough_below": self.rough_below,
        }
        patch, tokens, (wide, deep) = 4 * shape[0], shape[1] * shape[2] // 16, widths
        self.register_buffer("frequencies", torch.linspace(0.25, 3.0, 16), persistent=False)
        self.level = nn.Sequential(nn.Linear(33, embedding), nn.SiLU(), nn.Linear(embedding, embedding))
        self.concept = nn.Embedding(len(concepts) + 1, embedding)  # the last one is the unconditional
        self.enter = nn.Conv2d(patch, wide, 3, padding=1)
        self.fine = nn.ModuleList([Block(wide, embedding), Block(wide, embedding)])
        self.down = nn.Conv2d(wide, deep, 2, stride=2)
        self.coarse = nn.ModuleList([Block(deep, embedding), Block(deep, embedding)])
        self.mix = nn.Linear(tokens, tokens)
        self.up = nn.Conv2d(deep, 4 * wide, 1)
        self.leave = nn.Conv2d(wide, patch, 1)

    def forward(self, x: Tensor, sigma: Tensor, concept: Tensor) -> Tensor:  # (n, *event), (n), (n) -> (n)
        """E(x; σ, c) in nats; `concept` is a place in `concepts`, or their number for none."""
        sigma_, spread = sigma[:, None, None, None], float(self.arguments["spread"])
        centred = x - self.loc
        denoised = spread * self._f(centred / (sigma_**2 + spread**2).sqrt(), sigma.log(), concept)
        return ((centred - denoised) / sigma_).square().flatten(1).sum(1) / 2

    def _f(self, x: Tensor, log_sigma: Tensor, concept: Tensor) -> Tensor:  # (n, *event), (n), (n) -> (n, *event)
        angles = log_sigma[:, None] * self.frequencies
        level = self.level(torch.cat([log_sigma[:, None] / 2, angles.sin(), angles.cos()], 1))
        e = silu(level + self.concept(concept))
        h = self.fine[0](self.enter(pixel_unshuffle(x, 2)), e)
        g = self.coarse[0](self.down(h), e)
        g = g + self.mix(silu(g).flatten(2)).reshape(g.shape)
        h = self.fine[1](h + pixel_shuffle(self.up(self.coarse[1](g, e)), 2), e)
        h = h * torch.rsqrt(1 + h.square().mean(1, keepdim=True) / 16)  # bounded, so that E grows as |x|²
        return pixel_shuffle(self.leave(silu(h)), 2)


@register("noise-conditional")
class NoiseConditional(Energy):
    """-log p_σ(x | c) of a `ConceptNetwork`, up to a constant, at one level of noise and for one concept.

    Arguments:
        network: the network, shared by all energies that are made from it; or its arguments, as `config()` gives them.
        concept: one of `network.concepts`, or None for the unconditional energy.
        sigma: the level of noise, in units of x; None for the target.

    The target, `at(0)`, is the lowest level of `sigma_range`: the data with that much noise, not the data themselves, which need not
    have a density. `given(concept)` and `at(sigma)` return energies on the same network, one object for each (concept, sigma), and
    products and mixtures of them evaluate it once, on one batch (`fused`). Only the unconditional energy takes a context.

    Raises ValueError for a concept that the network does not know, and for a level outside `sigma_range`.
    """

    takes_context = True

    def __init__(
        self,
        network: ConceptNetwork | dict[str, Any],
        *,
        concept: str | None = None,
        sigma: float | None = None,
        name: str | None = None,
    ) -> None:
        network = ConceptNetwork(**network) if isinstance(network, dict) else network
        super().__init__(network.event_shape, name=name)
        low, high = network.sigma_range
        if concept is not None and concept not in network.concepts:
            known = near(concept, network.concepts) or f"; it knows {', '.join(network.concepts) or 'none'}"
            raise ValueError(f"the network has not learned the concept {concept!r}{known}")
        if sigma is not None and not low <= sigma <= high:
            raise ValueError(
                f"the network knows noise levels from {low:g} to {high:g} (units of x), and 0 for the lowest, not {sigma}"
            )
        self.network, self.concept, self.sigma = network, concept, float(low if sigma is None else sigma)
        self._index = len(network.concepts) if concept is None else network.concepts.index(concept)
        self._family: dict[tuple[str | None, float], NoiseConditional] = {(concept, self.sigma): self}

    @property
    def sigma_range(self) -> tuple[float, float]:
        """Lowest and highest level of noise, in units of x."""
        return self.network.sigma_range

    @property
    def rough_below(self) -> float:
        """The level of noise, in units of x, below which energies of concepts are too rough to be compared."""
        return self.network.rough_below

    @property
    def growth(self) -> float:
        """1 / 2σ²: D is bounded."""
        return 0.5 / self.sigma**2

    @property
    def proper(self) -> bool:
        return True

    @property
    def bounded(self) -> bool:
        return True

    def can(self, capability: type) -> bool:
        return self.concept is None if capability is Conditional else super().can(capability)

    def given(self, context: str | None) -> NoiseConditional:
        """The energy of a concept at this level; `given(None)` is the unconditional one."""
        return self._other(context, self.sigma)

    def at(self, sigma: float) -> NoiseConditional:
        """The energy at level sigma (units of x); at 0, and at the lowest level, the target's."""
        return self._other(self.concept, self.sigma_range[0] if sigma == 0 else float(sigma))

    def _other(self, concept: str | None, sigma: float) -> NoiseConditional:
        key = concept, sigma
        if key not in self._family:
            stem = None if self.name is None else self.name.rpartition(".")[0]
            energy = NoiseConditional(
                self.network, concept=concept, sigma=sigma, name=f"{stem}.{concept or 'any'}" if stem else None
            )
            energy.training, energy._family = self.training, self._family
            self._family[key] = energy
        return self._family[key]

    def forward(self, x: Tensor) -> Tensor:  # (*batch, *event) -> (*batch)
        return self.fused([self], x)[0]

    def fused(self, energies: Sequence[NoiseConditional], x: Tensor) -> Tensor:  # (*batch, *event) -> (k, *batch)
        """The energies of k terms that share this network, in one call of it on a batch k times as large."""
        rows = x.reshape(-1, *self.event_shape)
        return self._call(energies, rows.expand(len(energies), *rows.shape)).reshape(len(energies), *self._batch_shape(x))

    def fused_value_and_grad(self, energies: Sequence[NoiseConditional], x: Tensor) -> tuple[Tensor, Tensor]:
        # (*batch, *event) -> (k, *batch), (k, *batch, *event)
        """`value_and_grad` of k terms, in calls of at most `MOST_ROWS` pictures."""
        values, slopes = [], []
        for rows in x.detach().reshape(-1, *self.event_shape).split(max(1, MOST_ROWS // len(energies))):
            with torch.enable_grad():
                copies = rows.expand(len(energies), *rows.shape).clone().requires_grad_()
                value = self._call(energies, copies)
                slopes += torch.autograd.grad(value.sum(), copies)
            values.append(value.detach())
        return torch.cat(values, 1).reshape(len(energies), *self._batch_shape(x)), torch.cat(slopes, 1).reshape(
            len(energies), *x.shape
        )

    def _value_and_grad(self, x: Tensor) -> tuple[Tensor, Tensor]:
        value, slope = self.fused_value_and_grad([self], x)
        return value[0], slope[0]

    def _call(self, energies: Sequence[NoiseConditional], x: Tensor) -> Tensor:  # (k, n, *event) -> (k, n)
        k, n = x.shape[:2]
        if not n:
            return x.flatten(2).sum(2)
        sigma = torch.tensor([e.sigma for e in energies], dtype=x.dtype, device=x.device).repeat_interleave(n)
        concept = torch.tensor([e._index for e in energies], device=x.device).repeat_interleave(n)
        return self.network(x.reshape(k * n, *self.event_shape), sigma, concept).reshape(k, n)

    def config(self) -> dict[str, Any]:
        return {"network": self.network.arguments, "concept": self.concept, "sigma": self.sigma}


def noise_matching(network: ConceptNetwork, clean: Tensor, noise: Tensor, sigma: Tensor, concept: Tensor) -> Tensor:
    # (n, *event), (n, *event), (n), (n) -> (n)
    """Fits both derivatives of -log p_σ by denoising; for each picture, in nats² per coordinate,

        ( λ_σ ‖σ ∇E(x) - ε‖² + huber(σ ∂E/∂σ + ‖ε‖²) ) / n,     x = x₀ + σ ε,  λ_σ = 1 + σ² / spread²,

    huber quadratic up to 5 nats, for ‖ε‖² given x has heavy tails before D is any good.
    """
    x = (clean + sigma[:, None, None, None] * noise).requires_grad_()
    level = sigma.clone().requires_grad_()
    slope, rate = torch.autograd.grad(network(x, level, concept).sum(), (x, level), create_graph=True)
    score = (sigma[:, None, None, None] * slope - noise).square().flatten(1).sum(1) * (1 + (sigma / network.spread).square())
    mass = huber_loss(sigma * rate, -noise.square().flatten(1).sum(1), reduction="none", delta=5.0)
    return (score + mass) / clean[0].numel()


def concept_matching(
    network: ConceptNetwork, x: Tensor, sigma: Tensor, values: Tensor, log_prior: Tensor, truth: Tensor
) -> Tensor:
    # (n, *event), (n), (k), (k), (n) -> (n)
    """Tells the values of one factor apart; for each noised picture, in nats,

        -log p(c | x) + huber(E(x; σ) + log Σ_c p(c) exp(-E(x; σ, c))) / 10,     p(c | x) ∝ p(c) exp(-E(x; σ, c)).

    A score learns nothing of pictures that its concept never sees, and there the energies of all concepts come out alike: a product
    of them would not know what it asks for. This loss raises the energy of a concept where another value of its factor is true, and
    makes the unconditional density the mixture that it is.

    Arguments:
        values: the concepts (places in `network.concepts`) that are the values of a factor, of which a picture has exactly one.
        log_prior: their log frequencies, log p(c).
        truth: which of the k values each picture has.
    """
    k, n = len(values), len(x)
    concept = torch.cat([values, values.new_tensor([len(network.concepts)])]).repeat_interleave(n)
    energy = network(x.repeat(k + 1, 1, 1, 1), sigma.repeat(k + 1), concept).reshape(k + 1, n)
    joint = log_prior[:, None] - energy[:k]
    balance = huber_loss(energy[k], -joint.logsumexp(0), reduction="none", delta=3.0)
    return cross_entropy(joint.T, truth, reduction="none") + balance / 10
