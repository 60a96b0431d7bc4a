"""Decoders of latent variables, the map from noise to pictures, and what experts with a decoder
share."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Self

import torch
from torch import Tensor, nn

from experts.families.normal import Normal
from experts.locked import Locked
from poe.algebra.energy import Energy
from poe.registry import register


def perceptron(widths: Sequence[int], dropout: float = 0.0) -> nn.Sequential:
    """Linear layers of these widths with SiLU between them, and dropout after it where there is
    any."""
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(widths):
        layers += [
            nn.Linear(inputs, outputs),
            nn.SiLU(),
            *([nn.Dropout(dropout)] if dropout else []),
        ]
    return nn.Sequential(*layers[: 2 * (len(widths) - 1) - 1] if not dropout else layers[:-2])


@register("decoder")
class Decoder(nn.Module):
    """mean(z), a multilayer perceptron from (*batch, latent) to (*batch, *picture), and `scale`
    (*picture), units of x.

    With an `amplitude` a, mean = a·tanh(f / a) of the perceptron f. `energy @ decoder` is an energy
    on z: of pictures without noise.
    """

    def __init__(
        self,
        picture_shape: Sequence[int],
        *,
        latent: int,
        hidden: Sequence[int],
        scale: float = 1.0,
        amplitude: float | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if latent < 1 or not 0 < scale < math.inf:
            raise ValueError(
                f"a decoder needs latent >= 1 and a finite scale > 0, not latent={latent}, "
                f"scale={scale}"
            )
        self.arguments = {
            "picture_shape": list(picture_shape),
            "latent": latent,
            "hidden": list(hidden),
            "scale": scale,
            "amplitude": amplitude,
            "dropout": dropout,
        }
        self.amplitude = amplitude
        self.event_shape, self.picture_shape = torch.Size([latent]), torch.Size(picture_shape)
        n = self.picture_shape.numel()
        self.network = perceptron([latent, *hidden, n], dropout)
        self.log_scale = nn.Parameter(torch.full((n,), math.log(scale)))

    @property
    def scale(self) -> Tensor:  # (*picture)
        """Standard deviation of the noise of each pixel."""
        return self.log_scale.exp().reshape(self.picture_shape)

    def forward(self, z: Tensor) -> Tensor:  # (*batch, latent) -> (*batch, *picture)
        mean = self.network(z)
        if self.amplitude is not None:
            mean = self.amplitude * torch.tanh(mean / self.amplitude)
        return mean.reshape(*z.shape[:-1], *self.picture_shape)

    def config(self) -> dict[str, Any]:
        """Plain arguments of another one of this shape."""
        return self.arguments

    @classmethod
    def from_config(cls, **config: Any) -> Self:
        """A decoder of these arguments, to be filled."""
        return cls(**config)


@register("generator")
class Generator(nn.Module):
    """g(u) = mean(z) + scale ∘ ε, u = (z, ε): (*batch, latent + pixels) -> (*batch, *picture).

    `decoder` is a `Decoder`, shared by all that draw with it, or the arguments of one.
    """

    def __init__(self, decoder: Decoder | dict[str, Any]) -> None:
        super().__init__()
        self.decoder = decoder if isinstance(decoder, Decoder) else Decoder(**decoder)
        self.event_shape = torch.Size(
            [self.decoder.event_shape.numel() + self.decoder.picture_shape.numel()]
        )

    def forward(self, u: Tensor) -> Tensor:  # (*batch, latent + pixels) -> (*batch, *picture)
        latent = self.decoder.event_shape.numel()
        noise = u[..., latent:].reshape(*u.shape[:-1], *self.decoder.picture_shape)
        return self.decoder(u[..., :latent]) + self.decoder.scale * noise

    def config(self) -> dict[str, Any]:
        """Plain arguments of another one of this shape."""
        return {"decoder": self.decoder.config()}

    @classmethod
    def from_config(cls, **config: Any) -> Self:
        """A generator of these arguments, to be filled."""
        return cls(**config)


class Latent(Locked, Energy):
    """What experts with a decoder share: a standard normal `prior` of u, and the `generator`."""

    def __init__(self, event_shape: Sequence[int], decoder: Decoder, name: str | None) -> None:
        super().__init__(event_shape, name=name)
        self.decoder = decoder
        self._generator = (Generator(decoder),)  # no submodule: its state is that of `decoder`
        size = decoder.event_shape.numel() + decoder.picture_shape.numel()
        self.prior = Normal(torch.zeros(size), torch.ones(size))

    @property
    def generator(self) -> Generator:
        """The map from u to pictures, over the decoder of this expert: one object as long as that
        stays the same."""
        if self._generator[0].decoder is not self.decoder:
            self._generator = (Generator(self.decoder),)
        return self._generator[0]

    def decode(self, u: Tensor) -> Tensor:  # (*batch, latent + pixels) -> (*batch, *picture)
        """g(u), the pictures of these draws, without a graph."""
        with torch.no_grad():
            return self.generator(u)
