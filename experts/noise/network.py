"""One network for all levels of noise and all concepts."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from experts.noise.layers import Classifier, Denoised, Features, Guide


class ConceptNetwork(nn.Module):
    """E(x; σ) of pictures and log p(c | x; σ) of concepts: a convolutional network of each.

    Arguments:
        event_shape: (channels, height, width), sides divisible by 4.
        concepts: tuples of names, the values of a factor of which a picture has exactly one
            (`[("red", "blue"), ("small", "large")]`), and single names, which a picture may have or
            not. Without a concept the network is unconditional.
        frequencies: p(c) of the names, in their order; by default those of a factor are equally
            frequent, and a single name has 1/2.
        placed: the names that depend on where something is in the picture; all others depend on
            what is there, wherever it is.
        sigma_range: lowest and highest level of noise, in units of x.
        widths: channels at the resolution of the patches and at half of it, for E.
        classifier_widths: the same for the classifier.
        embedding: size of the embedding of σ.
        loc, spread: about the mean and the standard deviation of the data, in units of x.
        rough_below: the level of noise, in units of x, below which differences between energies of
            concepts are known to be too inaccurate for weights (`experts.noise.guidance`); 0 where
            they never are.
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
        shape = tuple(event_shape)
        _check_data(shape, sigma_range, spread)
        groups = _checked_groups(concepts)
        names = [name for group in groups for name in group]
        if set(placed) - set(names):
            raise ValueError(f"placed must be some of the concepts {names}, not {list(placed)}")
        frequencies = _checked_frequencies(frequencies, groups)
        self.event_shape, self.concepts = shape, tuple(names)
        self.sigma_range = (float(sigma_range[0]), float(sigma_range[1]))
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
        # convolutions take a quarter less time in this format
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, x: Tensor, sigma: Tensor, concept: Tensor | None = None) -> Tensor:
        # (n, *event), (n), (n) -> (n)
        """E(x; σ, c) in nats; `concept` is a place in `concepts`, or their number for none, as when
        it is left out."""
        energy = self.unconditional(x, sigma)
        if concept is None or self.classifier is None:
            return energy
        ratios = torch.cat([self.log_ratios(x, sigma), torch.zeros_like(energy)[:, None]], 1)
        return energy - ratios.gather(1, concept[:, None]).squeeze(1)

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

    def shift(self, features: Features, concept: Tensor, log_ratio: Tensor) -> Tensor:
        # (n), (n) -> (n, *event)
        """Δ_c in units of x, from the log ratio of the concept at x in nats (`log_ratios`);
        `concept` is an index into `concepts`."""
        absent = 1 - (log_ratio + self.log_prior[concept]).exp()
        assert self.guide is not None
        return self.spread * absent[:, None, None, None] * self.guide(features, concept)

    def log_ratios(self, x: Tensor, sigma: Tensor) -> Tensor:  # (n, *event), (n) -> (n, concepts)
        """log p(c | x; σ) - log p(c) in nats, by which each concept lowers the energy."""
        known = zip(self.log_posteriors(x, sigma), self.sizes, strict=True)
        return torch.cat([log_p[:, :size] for log_p, size in known], 1) - self.log_prior

    def log_posteriors(self, x: Tensor, sigma: Tensor) -> list[Tensor]:
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


def _check_data(shape: tuple[int, ...], sigma_range: tuple[float, float], spread: float) -> None:
    """Raises ValueError for shapes, levels of noise and spreads that no network has."""
    if len(shape) != 3 or shape[1] % 4 or shape[2] % 4:
        raise ValueError(
            f"events have shape (channels, height, width) with sides divisible by 4, not {shape}"
        )
    low, high = sigma_range
    if not 0 < low < high < math.inf:
        raise ValueError(f"sigma_range must be (low, high) with 0 < low < high, not {sigma_range}")
    if not 0 < spread < math.inf:
        raise ValueError(
            f"spread is that of the data, a number above 0 in units of x, not {spread}"
        )


def _checked_groups(concepts: Sequence[str | Sequence[str]]) -> list[tuple[str, ...]]:
    """The values of each factor; a single name is a factor of its own."""
    if isinstance(concepts, str):
        raise ValueError(
            f"concepts is a list of names and of factors, such as [{concepts!r}], not one text"
        )
    groups = [(group,) if isinstance(group, str) else tuple(group) for group in concepts]
    names = [name for group in groups for name in group]
    if len(set(names)) != len(names):
        raise ValueError(f"each concept must be named once, got {names}")
    if not all(groups):
        raise ValueError(f"a factor has at least one value, got {concepts}")
    return groups


def _checked_frequencies(
    frequencies: Sequence[float] | None, groups: Sequence[tuple[str, ...]]
) -> Sequence[float]:
    """p(c) of each name."""
    if frequencies is None:
        return [1 / max(len(group), 2) for group in groups for _ in group]
    count = sum(map(len, groups))
    if len(frequencies) != count or not all(0 < p < 1 for p in frequencies):
        raise ValueError(
            f"frequencies must be {count} numbers between 0 and 1, one for each concept, "
            f"not {frequencies}"
        )
    shares = iter(frequencies)
    for group in groups:
        total = sum(next(shares) for _ in group)
        if len(group) > 1 and not math.isclose(total, 1, rel_tol=1e-3):
            raise ValueError(
                "the frequencies of the values of a factor must sum to 1; those of "
                f"{', '.join(group)} sum to {total:g}"
            )
    return frequencies
