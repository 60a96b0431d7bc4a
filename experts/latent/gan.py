"""Generators with their discriminator, as an energy of what the generator draws from."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn

from experts.latent.decoder import Decoder, Latent, perceptron
from experts.locked import Locked
from poe.algebra.energy import Energy
from poe.registry import register


@register("discriminator")
class Discriminator(Locked, Energy):
    """E(x) = -logit D(x), logit D = limit·tanh(f(x) / limit), f a network: a factor that is large
    where D takes x for data.

    Where D is optimal, exp(-E) = p_data / p_g. It does not know where p_g has mass: multiply it by
    a factor that does. With |E| <= limit it is bounded and improper; a product with a proper factor
    is proper.

    Arguments:
        network: takes (n, pixels) and returns f, (n, 1); None builds a multilayer perceptron of
            widths `hidden`.
        event_shape: shape of one x.
        hidden, dropout: of the network that is built.
        limit: bound on |logit D| in nats.
    """

    def __init__(
        self,
        network: nn.Module | None = None,
        *,
        event_shape: Sequence[int],
        hidden: Sequence[int] = (128, 128),
        dropout: float = 0.0,
        limit: float = 20.0,
        name: str | None = None,
    ) -> None:
        super().__init__(event_shape, name=name)
        if not 0 < limit < math.inf:
            raise ValueError(f"limit bounds |logit D| in nats: a finite number > 0, not {limit}")
        self._config = {
            "event_shape": list(event_shape),
            "hidden": list(hidden),
            "dropout": dropout,
            "limit": limit,
        }
        self.limit, self._own = limit, network is None
        self.network = (
            perceptron([self.event_shape.numel(), *hidden, 1], dropout)
            if network is None
            else network
        )
        self.eval()

    def forward(self, x: Tensor) -> Tensor:  # (*batch, *event) -> (*batch)
        return -self.logit(x)

    def logit(self, x: Tensor) -> Tensor:  # (*batch, *event) -> (*batch)
        """log D(x) / (1 - D(x))."""
        batch = x.shape[: x.ndim - len(self.event_shape)]
        found = self.network(x.reshape(math.prod(batch), self.event_shape.numel()))
        if found.numel() != math.prod(batch):
            raise ValueError(
                f"the network of {self} must return one number for each x, (n, 1), not "
                f"{tuple(found.shape)}"
            )
        found = found.reshape(batch)
        return self.limit * torch.tanh(found / self.limit)

    @property
    def proper(self) -> bool | None:
        return False  # exp(-E) >= exp(-limit) on all of R^n

    @property
    def bounded(self) -> bool | None:
        return True

    @property
    def growth(self) -> float | None:
        return 0.0

    def config(self) -> dict[str, Any]:
        if not self._own:
            raise TypeError(
                f"{self} wraps a network object, which files do not describe: store its weights, "
                "and wrap it again after loading them"
            )
        return self._config


@register("gan")
class GAN(Latent):
    """E(u) = ½‖u‖² + n/2 log 2π - logit D(g(u)) over u in R^n: what the generator draws, corrected
    by its discriminator.

    Where D is optimal for g, pictures g(u) of draws u follow the data as far as p_g reaches, and Z
    is 1: `poe.log_z` close to 0 says that the discriminator is calibrated. The prior alone draws
    without D; `discriminator` is the factor on pictures; and conditions on the picture stand beside
    both, `gan & judge @ gan.generator`. `decode(draws.x)` gives the pictures.

    Arguments:
        picture_shape: shape of one picture.
        latent: numbers in z; events have latent + pixels numbers, the rest being the noise of the
            pixels.
        hidden: widths of the decoder's hidden layers.
        scale: of the noise of the pixels, in units of x; it is not learned.
        amplitude: bound on the means of the pixels, in units of x, or None.
        judge: widths of the discriminator's hidden layers.
        dropout: of the discriminator's hidden units, in training mode.
        limit: bound on |logit D| in nats, so that E is proper whatever D.
        name: how it prints.
    """

    def __init__(
        self,
        picture_shape: Sequence[int],
        *,
        latent: int = 16,
        hidden: Sequence[int] = (128, 128),
        scale: float = 0.2,
        amplitude: float | None = None,
        judge: Sequence[int] = (128, 128),
        dropout: float = 0.0,
        limit: float = 20.0,
        name: str | None = None,
    ) -> None:
        decoder = Decoder(
            picture_shape, latent=latent, hidden=hidden, scale=scale, amplitude=amplitude
        )
        decoder.log_scale.requires_grad_(False)
        super().__init__([latent + decoder.picture_shape.numel()], decoder, name)
        self._config = {
            "picture_shape": list(picture_shape),
            "latent": latent,
            "hidden": list(hidden),
            "scale": scale,
            "amplitude": amplitude,
            "judge": list(judge),
            "dropout": dropout,
            "limit": limit,
        }
        self.discriminator = Discriminator(
            event_shape=picture_shape, hidden=judge, dropout=dropout, limit=limit
        )
        self.eval()

    def forward(self, u: Tensor) -> Tensor:  # (*batch, latent + pixels) -> (*batch)
        return self.prior(u) + self.discriminator(self.generator(u))

    @contextlib.contextmanager
    def training_mode(self) -> Iterator[Self]:
        """Inside, dropout is on in the discriminator; after, both are in eval mode again."""
        with self.discriminator.training_mode(), super().training_mode() as inside:
            yield inside

    def proposal(self) -> Energy:
        """The prior: what the generator draws without its discriminator, from which importance
        sampling starts."""
        return self.prior

    @property
    def latent(self) -> GAN:
        """This energy itself; `discriminator` is on pictures."""
        return self

    @property
    def proper(self) -> bool | None:
        return True  # exp(-limit) <= Z <= exp(limit)

    @property
    def bounded(self) -> bool | None:
        return True

    @property
    def growth(self) -> float | None:
        return 0.5

    def config(self) -> dict[str, Any]:
        return self._config
