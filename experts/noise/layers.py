"""Convolutional networks of noised pictures: what is denoised, what a concept adds to it, and a
classifier of concepts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import pixel_shuffle, pixel_unshuffle, silu


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


class SigmaEmbedding(nn.Module):
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
        self.level = SigmaEmbedding(embedding)
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
    """h(features, c), what a concept adds to f where it is absent: a block at each resolution; 0
    before training."""

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
    two layers on what they find: on its mean over places, or, for the `placed` concepts, on its
    values at each place. The mean hides places, so that a colour is not learned from where it was
    seen; opposite borders are joined, as features near a border would show the place too."""

    placed: Tensor

    def __init__(
        self, shape: Sequence[int], placed: Sequence[bool], widths: tuple[int, int], embedding: int
    ) -> None:
        super().__init__()
        patch, tokens, (wide, deep) = 4 * shape[0], shape[1] * shape[2] // 16, widths
        self.level = SigmaEmbedding(embedding)
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
