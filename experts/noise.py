"""Noise-conditional energies: one network that knows the data at every level of noise, and
concepts.

At noise σ the data are x = x₀ + σ ε, ε ~ N(0, 1) in each of n coordinates, and the energy stands
for their density p_σ(x | c) given a concept c, or none. Without one it is the squared distance to a
denoised point,

    E(x; σ) = ‖x - D(x, σ)‖² / 2σ² + (n/2) log 2πσ²,     D = loc + spread · f((x - loc) / √(σ² +
    spread²), log σ),

f a network whose output is bounded, so that E is bounded below and grows as |x|² / 2σ²: proper at
every level. D is fitted to x₀ by least squares (`denoising`), which makes it E[x₀ | x], and by
Tweedie's formula

    ∇log p_σ(x) = (D - x) / σ²,        -∇E(x) = (D - x) / σ² + Jᵀ(x - D) / σ²,     J = ∂D/∂x =
    Cov[x₀ | x] / σ².

The two agree where one x₀ explains x: J is then the projection on directions along the data, and x
- D has no share in them. So E is -log p_σ at the lowest level, the target, and above it reverse
  diffusion follows the score (`scored`). An energy fitted so that its own
gradient is the score gets as low a loss on noised data and draws worse: where drawing errs, D leads
back, but that gradient leads to whatever D leaves as it is. A concept is told by Bayes' rule, from
a classifier of noised data,

    E(x; σ, c) = E(x; σ) - log p(c | x; σ) + log p(c),

so that a concept lowers the energy by log 1/p(c) at most, however far x is from all data, and Z is
the same for all concepts. Two networks of concepts, each with errors of its own in D, would differ
by their errors where neither has seen data, and a product of powers magnifies that. The score of a
concept is learned as D is, by what it adds to it (`concept_denoising`):

    ∇log p_σ(x | c) = (D + Δ_c - x) / σ²,     D + Δ_c = E[x₀ | x, c],     Δ_c = (1 - p(c | x; σ))
    spread · h(features of f, log σ, c),

where spread · h stands for E[x₀ | x, c] - E[x₀ | x, not c], and a concept that x has beyond doubt
adds nothing. A classifier may tell
all concepts and still have a poor gradient: of the squared error of D that E[x₀ | x, c] saves, it
saved a fifth on the zoo's pictures (`shapes`), and Δ_c four fifths
(tests/benchmarks/bench_guidance.py). Particles follow D + Δ_c and are weighed by p(c | x; σ), whose
errors on the way cancel. A product of k concepts costs one call of f, one of the classifier, and k
of h, which is small.

References: Vincent 2011, Neural Computation 23(7) (denoising score matching); Song & Ermon 2019,
NeurIPS (noise-conditional scores); Du et al. 2023, ICML (reduce, reuse, recycle: energies that
compose); Efron 2011, J. Am. Stat. Assoc. 106 (Tweedie's formula); Karras et al. 2022, NeurIPS
(scales of inputs and weights of levels); Dhariwal & Nichol 2021, NeurIPS (classifiers of noised
pictures).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import pixel_shuffle, pixel_unshuffle, silu

from poe.algebra.capabilities import Conditional
from poe.algebra.energy import Energy, checked_level
from poe.registry import near, register

DOUBT = (
    1e-5  # 1 - p(c | x) below which a concept adds nothing to what is denoised, and is not asked
)
# pictures in one call of a network: with gradients .6 MB each in that of `shapes`, and no faster in
# more
MOST_ROWS = 512


class Block(nn.Module):
    """Two 3x3 convolutions with a residual connection, the first one's output scaled and shifted by
    an embedding of σ."""

    def __init__(
        self, channels: int, embedding: int, border: Literal["zeros", "circular"] = "zeros"
    ) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1, padding_mode=border)
        self.second = nn.Conv2d(channels, channels, 3, padding=1, padding_mode=border)
        self.film = nn.Linear(embedding, 2 * channels)

    def forward(self, h: Tensor, embedding: Tensor) -> Tensor:
        # (n, channels, height, width), (n, embedding) -> like h
        scale, shift = self.film(embedding)[..., None, None].chunk(2, 1)
        return h + self.second(silu(self.first(silu(h)) * (1 + scale) + shift))


class Level(nn.Module):
    """An embedding of log σ: itself, and its sines and cosines at 16 frequencies."""

    frequencies: Tensor

    def __init__(self, embedding: int) -> None:
        super().__init__()
        self.register_buffer("frequencies", torch.linspace(0.25, 3.0, 16), persistent=False)
        self.layers = nn.Sequential(
            nn.Linear(33, embedding), nn.SiLU(), nn.Linear(embedding, embedding), nn.SiLU()
        )

    def forward(self, log_sigma: Tensor) -> Tensor:  # (n) -> (n, embedding)
        angles = log_sigma[:, None] * self.frequencies
        return self.layers(torch.cat([log_sigma[:, None] / 2, angles.sin(), angles.cos()], 1))


class Features(NamedTuple):
    """What a network finds in n pictures at two resolutions, and the embedding of σ (n,
    embedding)."""

    fine: Tensor
    coarse: Tensor
    level: Tensor


def bounded(h: Tensor) -> Tensor:  # (n, channels, ...)
    """h, of a norm at most 4 √channels, so that E grows as |x|²."""
    return h * torch.rsqrt(1 + h.square().mean(1, keepdim=True) / 16)


class Denoised(nn.Module):
    """f(x, log σ) for pictures, by way of their features: a U-shaped convolutional network on 2x2
    patches, with one stage at half their resolution."""

    def __init__(self, shape: Sequence[int], widths: tuple[int, int], embedding: int) -> None:
        super().__init__()
        patch, tokens, (wide, deep) = 4 * shape[0], shape[1] * shape[2] // 16, widths
        self.level = Level(embedding)
        self.enter = nn.Conv2d(patch, wide, 3, padding=1)
        self.fine = nn.ModuleList([Block(wide, embedding), Block(wide, embedding)])
        self.down = nn.Conv2d(wide, deep, 2, stride=2)
        self.coarse = nn.ModuleList([Block(deep, embedding), Block(deep, embedding)])
        self.mix = nn.Linear(tokens, tokens)
        self.up = nn.Conv2d(deep, 4 * wide, 1)
        self.leave = nn.Conv2d(wide, patch, 1)

    def features(self, x: Tensor, log_sigma: Tensor) -> Features:  # (n, *event), (n)
        e = self.level(log_sigma)
        h = self.fine[0](self.enter(pixel_unshuffle(x, 2)), e)
        g = self.coarse[0](self.down(h), e)
        g = self.coarse[1](g + self.mix(silu(g).flatten(2)).reshape(g.shape), e)
        return Features(self.fine[1](h + pixel_shuffle(self.up(g), 2), e), g, e)

    def forward(self, features: Features) -> Tensor:  # -> (n, *event)
        return pixel_shuffle(self.leave(silu(bounded(features.fine))), 2)


class Guide(nn.Module):
    """h(features, c), what a concept adds to f where it is absent: a block at each resolution, and
    nothing before it is trained."""

    def __init__(
        self, shape: Sequence[int], concepts: int, widths: tuple[int, int], embedding: int
    ) -> None:
        super().__init__()
        patch, (wide, deep) = 4 * shape[0], widths
        narrow = deep * 2 // 3
        self.concept = nn.Embedding(concepts, embedding)
        self.level = nn.Sequential(nn.Linear(2 * embedding, embedding), nn.SiLU())
        self.enter = nn.Conv2d(deep, narrow, 1)
        self.coarse = Block(narrow, embedding)
        self.up = nn.Conv2d(narrow, 4 * wide, 1)
        self.fine = Block(wide, embedding)
        self.leave = nn.Conv2d(wide, patch, 1)
        nn.init.zeros_(self.leave.weight)
        nn.init.zeros_(self.leave.bias)  # type: ignore[arg-type]

    def forward(self, features: Features, concept: Tensor) -> Tensor:  # (n) -> (n, *event)
        e = self.level(torch.cat([features.level, self.concept(concept)], 1))
        g = self.coarse(self.enter(silu(features.coarse)), e)
        h = self.fine(features.fine + pixel_shuffle(self.up(silu(g)), 2), e)
        return pixel_shuffle(self.leave(silu(bounded(h))), 2)


class Classifier(nn.Module):
    """Logits of concepts for noised pictures, between -40 and 40: two blocks of convolutions, and
    two layers on what they find: as a mean over places for most, at each place for the `placed`
    ones. Who sees no places cannot learn that no red triangle is left; so opposite borders meet, or
    what is found near one of them would tell places too."""

    placed: Tensor

    def __init__(
        self, shape: Sequence[int], placed: Sequence[bool], widths: tuple[int, int], embedding: int
    ) -> None:
        super().__init__()
        patch, tokens, (wide, deep) = 4 * shape[0], shape[1] * shape[2] // 16, widths
        self.level = Level(embedding)
        self.enter = nn.Conv2d(patch, wide, 3, padding=1, padding_mode="circular")
        self.fine = Block(wide, embedding, "circular")
        self.down = nn.Conv2d(wide, deep, 2, stride=2)
        self.coarse = Block(deep, embedding, "circular")
        self.register_buffer("placed", torch.tensor(placed), persistent=False)
        self.anywhere, self.somewhere = (
            nn.Sequential(
                nn.Linear(inputs, 2 * embedding), nn.SiLU(), nn.Linear(2 * embedding, len(placed))
            )
            for inputs in (deep, tokens * deep)
        )

    def forward(self, x: Tensor, log_sigma: Tensor) -> Tensor:  # (n, *event), (n) -> (n, k)
        e = self.level(log_sigma)
        h = silu(
            self.coarse(self.down(self.fine(self.enter(pixel_unshuffle(x, 2)), e)), e)
        ).flatten(2)
        return 40 * torch.tanh(
            torch.where(self.placed, self.somewhere(h.flatten(1)), self.anywhere(h.mean(2))) / 40
        )


class ConceptNetwork(nn.Module):
    """E(x; σ) of pictures and log p(c | x; σ) of concepts: a convolutional network of each.

    Arguments:
        event_shape: (channels, height, width), sides divisible by 4.
        concepts: what it can be asked for, none of it being the unconditional network: tuples of
            names, values of a factor of which a picture has exactly one (`[("red", "blue"),
            ("small", "large")]`), and single names, which a picture may have or not.
        frequencies: p(c) of the names, in their order; by default those of a factor are equally
            frequent, and a single name has 1/2.
        placed: those of the names that are told by where something is in the picture; all others
            are told by what is there, wherever.
        sigma_range: lowest and highest level of noise, in units of x.
        widths: channels at the resolution of the patches and at half of it, for E.
        classifier_widths: the same for the classifier.
        embedding: numbers that σ is told by.
        loc, spread: about the mean and the standard deviation of the data, in units of x.
        rough_below: the level of noise, in units of x, below which differences between energies of
            concepts are known to be too rough to weigh by (`poe.smc.scores`); 0 where they never
            are.
    """

    log_prior: Tensor

    def __init__(
        self,
        event_shape: Sequence[int],
        *,
        concepts: Sequence[str | Sequence[str]] = (),
        frequencies: Sequence[float] | None = None,
        placed: Sequence[str] = (),
        sigma_range: tuple[float, float] = (0.05, 10.0),
        widths: tuple[int, int] = (48, 96),
        classifier_widths: tuple[int, int] = (32, 64),
        embedding: int = 64,
        loc: float = 0.0,
        spread: float = 0.5,
        rough_below: float = 0.0,
    ) -> None:
        super().__init__()
        shape, low, high = tuple(event_shape), *sigma_range
        if len(shape) != 3 or shape[1] % 4 or shape[2] % 4:
            raise ValueError(
                "events have shape (channels, height, width) with sides divisible by 4, not "
                f"{shape}"
            )
        if not 0 < low < high < math.inf:
            raise ValueError(
                f"sigma_range must be (low, high) with 0 < low < high, not {sigma_range}"
            )
        if isinstance(concepts, str):
            raise ValueError(
                f"concepts is a list of names and of factors, such as [{concepts!r}], not one text"
            )
        if not 0 < spread < math.inf:
            raise ValueError(
                f"spread is that of the data, a number above 0 in units of x, not {spread}"
            )
        groups = [(group,) if isinstance(group, str) else tuple(group) for group in concepts]
        names = [name for group in groups for name in group]
        if len(set(names)) != len(names):
            raise ValueError(f"each concept must be named once, got {names}")
        if not all(groups):
            raise ValueError(f"a factor has at least one value, got {concepts}")
        if frequencies is None:
            frequencies = [1 / max(len(group), 2) for group in groups for _ in group]
        if len(frequencies) != len(names) or not all(0 < p < 1 for p in frequencies):
            raise ValueError(
                f"frequencies must be {len(names)} numbers between 0 and 1, one for each concept, "
                f"not {frequencies}"
            )
        shares = iter(frequencies)
        for group in groups:
            total = sum(next(shares) for _ in group)
            if len(group) > 1 and not math.isclose(total, 1, rel_tol=1e-3):
                raise ValueError(
                    "frequencies of the values of a factor sum to 1, and those of "
                    f"{', '.join(group)} to {total:g}"
                )
        if set(placed) - set(names):
            raise ValueError(f"placed must be some of the concepts {names}, not {list(placed)}")
        self.event_shape, self.concepts, self.sigma_range = (
            shape,
            tuple(names),
            (float(low), float(high)),
        )
        self.loc, self.spread, self.rough_below = float(loc), float(spread), float(rough_below)
        self.sizes = [len(group) for group in groups]
        self.arguments = {
            "event_shape": list(shape),
            "concepts": [group if isinstance(group, str) else list(group) for group in concepts],
            "frequencies": list(frequencies),
            "placed": list(placed),
            "sigma_range": list(self.sigma_range),
            "widths": list(widths),
            "classifier_widths": list(classifier_widths),
            "embedding": embedding,
            "loc": self.loc,
            "spread": self.spread,
            "rough_below": self.rough_below,
        }
        self.register_buffer(
            "log_prior",
            torch.tensor(frequencies, dtype=torch.get_default_dtype()).log(),
            persistent=False,
        )
        self.denoised = Denoised(shape, widths, embedding)
        self.guide = Guide(shape, len(names), widths, embedding) if names else None
        where = [name in placed for name in names]
        self.classifier = Classifier(shape, where, classifier_widths, embedding) if names else None
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # convolutions are a quarter faster so

    def forward(self, x: Tensor, sigma: Tensor, concept: Tensor | None = None) -> Tensor:
        # (n, *event), (n), (n) -> (n)
        """E(x; σ, c) in nats; `concept` is a place in `concepts`, or their number for none, as when
        it is left out."""
        energy = self.unconditional(x, sigma)
        if concept is None or self.classifier is None:
            return energy
        gains = torch.cat([self.gains(x, sigma), torch.zeros_like(energy)[:, None]], 1)
        return energy - gains.gather(1, concept[:, None]).squeeze(1)

    def unconditional(self, x: Tensor, sigma: Tensor) -> Tensor:  # (n, *event), (n) -> (n)
        """E(x; σ) in nats."""
        return self.distance(x - self.denoise(x, sigma), sigma)

    def distance(self, off: Tensor, sigma: Tensor) -> Tensor:  # (n, *event), (n) -> (n)
        """‖x - D‖² / 2σ² + (n/2) log 2πσ², from x - D."""
        constant = (2 * math.pi * sigma.square()).log() * (off[0].numel() / 2)
        return (off / sigma[:, None, None, None]).square().flatten(1).sum(1) / 2 + constant

    def denoise(self, x: Tensor, sigma: Tensor) -> Tensor:  # (n, *event), (n) -> (n, *event)
        """D(x, σ), in units of x."""
        return self.point(self.features(x, sigma))

    def features(self, x: Tensor, sigma: Tensor) -> Features:  # (n, *event), (n)
        """What f finds in x, from which D and Δ_c follow."""
        return self.denoised.features(self.standard(x, sigma), sigma.log())

    def point(self, features: Features) -> Tensor:  # -> (n, *event)
        """D, in units of x."""
        return self.loc + self.spread * self.denoised(features)

    def standard(self, x: Tensor, sigma: Tensor) -> Tensor:  # (n, *event), (n) -> (n, *event)
        """(x - loc) / √(σ² + spread²)."""
        return (x - self.loc) / (sigma[:, None, None, None] ** 2 + self.spread**2).sqrt()

    def shift(self, features: Features, concept: Tensor, gain: Tensor) -> Tensor:
        # (n), (n) -> (n, *event)
        """Δ_c in units of x, from the gain of the concept at x in nats (`gains`); `concept` is a
        place in `concepts`."""
        absent = 1 - (gain + self.log_prior[concept]).exp()
        return self.spread * absent[:, None, None, None] * self.guide(features, concept)  # type: ignore[misc]

    def gains(self, x: Tensor, sigma: Tensor) -> Tensor:  # (n, *event), (n) -> (n, concepts)
        """log p(c | x; σ) - log p(c) in nats, by which each concept lowers the energy."""
        return (
            torch.cat(
                [
                    told[:, :size]
                    for told, size in zip(self.told(x, sigma), self.sizes, strict=True)
                ],
                1,
            )
            - self.log_prior
        )

    def told(self, x: Tensor, sigma: Tensor) -> list[Tensor]:
        # (n, *event), (n) -> for each factor (n, values)
        """log p(c | x; σ) of the values of each factor; a single name has two, present and
        absent."""
        if self.classifier is None:
            return []
        logits = self.classifier(self.standard(x, sigma), sigma.log()).split(self.sizes, 1)
        absent = torch.zeros_like(x[:, 0, 0, :1])
        return [
            (torch.cat([part, absent], 1) if part.shape[1] == 1 else part).log_softmax(1)
            for part in logits
        ]


@register("noise-conditional")
class NoiseConditional(Energy):
    """-log p_σ(x | c) of a `ConceptNetwork`, up to a constant, at one level of noise and for one
    concept.

    Arguments:
        network: the network, shared by all energies that are made from it; or its arguments, as
            `config()` gives them.
        concept: one of `network.concepts`, or None for the unconditional energy.
        sigma: the level of noise, in units of x; None for the target.

    The target, `at(0)`, is the lowest level of `sigma_range`: the data with that much noise, not
    the data themselves, which need not have a density. `given(concept)` and `at(sigma)` return
    energies on the same network, one object for each (concept, sigma), and products and mixtures of
    them evaluate it once, on one batch (`fused`). Only the unconditional energy takes a context.

    What is said of log Z of compositions is that of the densities that the energies stand for
    (`poe.smc.scores`): the integral of exp(-E) as it stands differs by a constant that is the
    network's.

    Raises ValueError for a concept that the network does not know, and for a level outside
    `sigma_range`.
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
        low, high = network.sigma_range
        if concept is not None and concept not in network.concepts:
            known = (
                near(str(concept), network.concepts)
                or f"; it knows {', '.join(network.concepts) or 'none'}"
            )
            raise ValueError(f"the network has not learned the concept {concept!r}{known}")
        if sigma is not None and not low <= sigma <= high:
            raise ValueError(
                f"the network knows noise levels from {low:g} to {high:g} (units of x), and 0 for "
                f"the lowest, not {sigma}"
            )
        super().__init__(network.event_shape, name=name)
        self.network, self.concept, self.sigma = (
            network,
            concept,
            float(low if sigma is None else sigma),
        )
        self._scored = False
        self._index = None if concept is None else network.concepts.index(concept)
        self._family: dict[tuple[str | None, float, bool], NoiseConditional] = {
            (concept, self.sigma, False): self
        }

    @property
    def sigma_range(self) -> tuple[float, float]:
        """Lowest and highest level of noise, in units of x."""
        return self.network.sigma_range

    @property
    def rough_below(self) -> float:
        """The level of noise, in units of x, below which energies of concepts are too rough to be
        compared."""
        return self.network.rough_below

    @property
    def unconditional(self) -> NoiseConditional:
        """The energy without its concept, at the same level."""
        return self.given(None)

    @property
    def scored(self) -> NoiseConditional:
        """The same energy, but with minus the score, (x - D - Δ_c) / σ², where `value_and_grad` has
        a gradient."""
        return self._other(self.concept, self.sigma, scored=True)

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
        if context is not None and not isinstance(context, str):
            raise ValueError(
                f"a concept is a name, not {context!r}; of several at once poe.conjunction makes "
                "the product"
            )
        return self._other(context, self.sigma, self._scored)

    def at(self, sigma: float) -> NoiseConditional:
        """The energy at level sigma (units of x); at 0, and at the lowest level, the target's."""
        return self._other(
            self.concept, checked_level(self, sigma) or self.sigma_range[0], self._scored
        )

    def _other(self, concept: str | None, sigma: float, scored: bool) -> NoiseConditional:
        key = concept, sigma, scored
        if key not in self._family:
            stem = None if self.name is None else self.name.rpartition(".")[0]
            energy = NoiseConditional(
                self.network,
                concept=concept,
                sigma=sigma,
                name=f"{stem}.{concept or 'any'}" if stem else None,
            )
            energy.training, energy._family, energy._scored = self.training, self._family, scored
            self._family[key] = energy
        return self._family[key]

    def forward(self, x: Tensor) -> Tensor:  # (*batch, *event) -> (*batch)
        return self.fused([self], x)[0]

    def fused(self, energies: Sequence[NoiseConditional], x: Tensor) -> Tensor:
        # (*batch, *event) -> (k, *batch)
        """The energies of k terms that share this network: one evaluation of it for each level of
        noise among them."""
        rows, shape = x.reshape(-1, *self.event_shape), (len(energies), *self._batch_shape(x))
        if not len(rows):
            return x.new_zeros(shape)
        if not torch.is_grad_enabled() and len(rows) > MOST_ROWS:
            return torch.cat(
                [self.fused(energies, part) for part in rows.split(MOST_ROWS)], 1
            ).reshape(shape)
        values = {}
        for (sigma, _), concepts in _by_level(energies).items():
            level = rows.new_full((len(rows),), sigma)
            unconditional = self.network.unconditional(rows, level)
            gains = self.network.gains(rows, level) if concepts - {None} else rows
            for c in concepts:
                values[sigma, c] = unconditional if c is None else unconditional - gains[:, c]
        return torch.stack([values[e.sigma, e._index] for e in energies]).reshape(shape)

    def fused_value_and_grad(
        self, energies: Sequence[NoiseConditional], x: Tensor
    ) -> tuple[Tensor, Tensor]:
        # (*batch, *event) -> (k, *batch), (k, *batch, *event)
        """`value_and_grad` of k terms, in calls of at most `MOST_ROWS` pictures: for each level of
        noise among them a gradient of the denoising network, and of the classifier for each
        concept; by scores a call of both, and of the guide for each concept."""
        shape, slope_shape = (len(energies), *self._batch_shape(x)), (len(energies), *x.shape)
        if not x.numel():
            return x.new_zeros(shape), x.new_zeros(slope_shape)
        values, slopes = [], []
        for rows in x.detach().reshape(-1, *self.event_shape).split(MOST_ROWS):
            known = {
                key: self._at_level(rows, *key, concepts)
                for key, concepts in _by_level(energies).items()
            }
            pairs = [known[e.sigma, e._scored][e._index] for e in energies]
            values.append(torch.stack([value for value, _ in pairs]))
            slopes.append(torch.stack([slope for _, slope in pairs]))
        return torch.cat(values, 1).reshape(shape), torch.cat(slopes, 1).reshape(slope_shape)

    def _at_level(
        self, rows: Tensor, sigma: float, scored: bool, concepts: set[int | None]
    ) -> dict[int | None, tuple[Tensor, Tensor]]:
        """Values and gradients at one level: of the unconditional energy (None), and of concepts by
        their places."""
        if scored:
            return self._by_scores(rows, sigma, concepts)
        level = rows.new_full((len(rows),), sigma)
        with torch.enable_grad():
            rows = rows.clone().requires_grad_()
            value = self.network.unconditional(rows, level)
            (slope,) = torch.autograd.grad(value.sum(), rows)
            known: dict[int | None, tuple[Tensor, Tensor]] = {None: (value.detach(), slope)}
            gains = self.network.gains(rows, level) if concepts - {None} else rows
            for c in concepts - {None}:
                (steeper,) = torch.autograd.grad(gains[:, c].sum(), rows, retain_graph=True)
                known[c] = value.detach() - gains[:, c].detach(), slope - steeper
        return known

    @torch.no_grad()
    def _by_scores(
        self, rows: Tensor, sigma: float, concepts: set[int | None]
    ) -> dict[int | None, tuple[Tensor, Tensor]]:
        """The same with minus the scores for gradients."""
        network, level = self.network, rows.new_full((len(rows),), sigma)
        features = network.features(rows, level)
        off = rows - network.point(features)
        value = network.distance(off, level)
        known: dict[int | None, tuple[Tensor, Tensor]] = {None: (value, off / sigma**2)}
        gains = network.gains(rows, level) if concepts - {None} else rows
        for c in [c for c in concepts if c is not None]:
            unsettled = ~((network.log_prior[c] + gains[:, c]).exp() >= 1 - DOUBT)  # NaN too
            some = Features(*(part[unsettled] for part in features))
            which = torch.full((len(some.level),), c, device=rows.device)
            shift = torch.zeros_like(off).masked_scatter(
                unsettled[:, None, None, None], network.shift(some, which, gains[unsettled, c])
            )
            known[c] = value - gains[:, c], (off - shift) / sigma**2
        return known

    def _value_and_grad(self, x: Tensor) -> tuple[Tensor, Tensor]:
        value, slope = self.fused_value_and_grad([self], x)
        return value[0], slope[0]

    def config(self) -> dict[str, Any]:
        if self._scored:
            raise TypeError(
                f"no file says that {self} has scores for gradients: save the energy itself, whose "
                "`scored` this is"
            )
        return {"network": self.network.arguments, "concept": self.concept, "sigma": self.sigma}


def _by_level(energies: Sequence[NoiseConditional]) -> dict[tuple[float, bool], set[int | None]]:
    """The places of the concepts that are asked for at each level of noise, by gradient or score;
    None for no concept."""
    asked: dict[tuple[float, bool], set[int | None]] = {}
    for energy in energies:
        asked.setdefault((energy.sigma, energy._scored), set()).add(energy._index)
    return asked


def denoising(network: ConceptNetwork, clean: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
    # (n, *event), (n, *event), (n) -> (n)
    """λ_σ ‖D(x₀ + σ ε, σ) - x₀‖² / nσ², λ_σ = 1 + σ² / spread²: the regression of D on the data,
    for each picture."""
    sigma_ = sigma[:, None, None, None]
    off = (network.denoise(clean + sigma_ * noise, sigma) - clean) / sigma_
    return off.square().flatten(1).mean(1) * (1 + (sigma / network.spread).square())


def concept_denoising(
    network: ConceptNetwork, clean: Tensor, noise: Tensor, sigma: Tensor, concepts: Tensor
) -> tuple[Tensor, Tensor]:
    # (n, *event), (n, *event), (n), (n, m) -> (n), (n)
    """`denoising`, and what concepts save of it, λ_σ (‖D + Δ_c - x₀‖² - ‖D - x₀‖²) / nσ² as a mean
    over m concepts c of each picture, places in `network.concepts`: the regression of Δ_c on the
    data, whose gradient leaves D to the first, but not the features of f.
    The classifier stays as it is: `concept_matching` fits it.

    Raises ValueError for a network without concepts.
    """
    if network.guide is None:
        raise ValueError(
            "the network has no concepts to learn: name some, ConceptNetwork(..., concepts=[...])"
        )
    x, m = clean + sigma[:, None, None, None] * noise, concepts.shape[1]
    features = network.features(x, sigma)
    off = network.point(features) - clean
    with torch.no_grad():
        gains = network.gains(x, sigma).gather(1, concepts)
    many = Features(*(part.repeat_interleave(m, 0) for part in features))
    guided = off.detach().repeat_interleave(m, 0) + network.shift(
        many, concepts.flatten(), gains.flatten()
    )
    scale = (1 / sigma.square() + 1 / network.spread**2) / off[0].numel()
    plain = off.square().flatten(1).sum(1)
    return scale * plain, scale * (
        guided.square().flatten(1).sum(1).unflatten(0, (-1, m)).mean(1) - plain.detach()
    )


def concept_matching(network: ConceptNetwork, x: Tensor, sigma: Tensor, truth: Tensor) -> Tensor:
    # (n, *event), (n), (n, factors) -> (n)
    """-Σ log p(c | x; σ) over the factors, the cross-entropy of noised pictures, in nats.

    `truth` has the place of the value of each factor among its values; for a single name 0 where it
    is present and 1 where it is not.
    """
    told = network.told(x, sigma)
    return -sum(log_p.gather(1, truth[:, i, None]).squeeze(1) for i, log_p in enumerate(told))  # type: ignore[return-value]
