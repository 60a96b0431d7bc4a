"""Classifiers as energies: E(x) = -log p(y ∈ labels | x), in nats, a factor that selects classes.

It does not state how likely x itself is, so it is not a density on its own (`prior &
Classifier(...)` is one; Dhariwal & Nichol, Diffusion models beat GANs, 2021, section 4). E >= 0, so
the factor never exceeds 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from experts.locked import Locked
from poe.algebra.energy import Energy
from poe.registry import register


@register("classifier")
class Classifier(Locked, Energy):
    """E(x) = logsumexp_{all y} l_y(x) / T - logsumexp_{y in labels} l_y(x) / T with logits l of a
    network.

    Arguments:
        network: takes (n, *input_shape) and returns logits, (n, classes); None builds a small
            convolutional one.
        labels: the wanted class, or several, any of which is accepted.
        event_shape: shape of one x.
        input_shape: the shape in which the network takes one x; by default the event shape.
        temperature: T > 0; above 1 the factor is softer.
        classes, channels, hidden, dropout: of the network that is built where none is given; events
            are then (height, width) or (channels, height, width) with even sides.

    The network stays in eval mode (dropout would make the energy random): train it before it is
    wrapped, or inside `training_mode`. Raises ValueError for labels without a logit.
    """

    def __init__(
        self,
        network: nn.Module | None = None,
        *,
        labels: int | Sequence[int],
        event_shape: Sequence[int],
        input_shape: Sequence[int] | None = None,
        temperature: float = 1.0,
        name: str | None = None,
        **architecture: Any,
    ) -> None:
        super().__init__(event_shape, name=name)
        if not temperature > 0:
            raise ValueError(f"temperature must be positive, not {temperature}")
        labels = [labels] if isinstance(labels, int) else [int(label) for label in labels]
        if not labels or len(set(labels)) < len(labels) or min(labels) < 0:
            raise ValueError(
                f"labels must be one class or several distinct ones, counted from 0, not {labels}"
            )
        self._config: dict[str, Any] | None = None
        if network is None:
            network = build(event_shape, **architecture)
            self._config = {
                "labels": labels,
                "event_shape": list(event_shape),
                "temperature": temperature,
                **architecture,
            }
        elif architecture:
            raise TypeError(
                f"{', '.join(architecture)} describe a new network, but one is given: omit one of "
                "the two"
            )
        self.labels = tuple(labels)
        self.temperature = temperature
        self._input_shape = torch.Size(self.event_shape if input_shape is None else input_shape)
        if self._input_shape.numel() != self.event_shape.numel():
            raise ValueError(
                f"events of shape {tuple(self.event_shape)} do not fill inputs of shape "
                f"{tuple(self._input_shape)}"
            )
        self.network = network
        self.eval()

    def forward(self, x: Tensor) -> Tensor:  # (*batch, *event) -> (*batch)
        logits = self.logits(x) / self.temperature
        if max(self.labels) >= logits.shape[-1]:
            raise ValueError(
                f"{self} asks for the labels {self.labels}, but its network has {logits.shape[-1]} "
                "classes"
            )
        if len(self.labels) == logits.shape[-1]:
            return logits.sum(-1) * 0  # every class is accepted; NaN stays NaN
        others = [y for y in range(logits.shape[-1]) if y not in self.labels]
        # log(1 + odds against): exact where p(labels | x) is near 1
        return nn.functional.softplus(
            logits[..., others].logsumexp(-1) - logits[..., list(self.labels)].logsumexp(-1)
        )

    def logits(self, x: Tensor) -> Tensor:  # (*batch, *event) -> (*batch, classes)
        """What the network returns, before the temperature."""
        batch = x.shape[: x.ndim - len(self.event_shape)]
        logits = self.network(x.reshape(math.prod(batch), *self._input_shape))
        return logits.reshape(*batch, logits.shape[-1])

    def predict(self, x: Tensor) -> Tensor:  # (*batch, *event) -> (*batch)
        """The most likely class of each x."""
        with torch.no_grad():
            return self.logits(x).argmax(-1)

    def wants(self, *labels: int) -> Classifier:
        """The same classifier with other labels; it shares the network."""
        other = Classifier(
            self.network,
            labels=labels,
            event_shape=self.event_shape,
            input_shape=self._input_shape,
            temperature=self.temperature,
            name=self.name,
        )
        other._config = None if self._config is None else {**self._config, "labels": list(labels)}
        return other

    @property
    def bounded(self) -> bool | None:
        """True: p(y | x) <= 1."""
        return True

    def config(self) -> dict[str, Any]:
        if self._config is None:
            raise TypeError(
                "Classifier wraps a network object, which a file cannot describe: build it by "
                'poe.create("classifier", labels=..., event_shape=..., classes=...) and load its '
                "weights by load_state_dict"
            )
        return self._config


def build(
    event_shape: Sequence[int],
    *,
    classes: int = 10,
    channels: Sequence[int] = (24, 48),
    hidden: int = 48,
    dropout: float = 0.0,
) -> nn.Module:
    """A small convolutional network for images: two 3x3 convolutions, pooling by 2, a third one,
    then the logits."""
    shape = tuple(event_shape)
    if len(shape) not in (2, 3) or shape[-1] % 2 or shape[-2] % 2 or len(channels) != 2:
        raise ValueError(
            f"events of shape {shape} do not fit the network that Classifier builds: it takes "
            "images (height, width) or (channels, height, width) with even sides, and two channel "
            "counts; pass a network of your own"
        )
    first, second = channels
    return nn.Sequential(
        _Image(shape),
        nn.Conv2d(math.prod(shape[:-2]), first, 3, padding=1),
        nn.SiLU(),
        nn.Conv2d(first, second, 3, padding=1),
        nn.SiLU(),
        nn.AvgPool2d(2),
        nn.Conv2d(second, hidden, 3, padding=1),
        nn.SiLU(),
        nn.Flatten(),
        nn.Dropout(dropout),
        nn.Linear(hidden * (shape[-1] // 2) * (shape[-2] // 2), classes),
    )


class _Image(nn.Module):
    """Images with one axis of channels."""

    def __init__(self, shape: Sequence[int]) -> None:
        super().__init__()
        self.shape = (math.prod(shape[:-2]), *shape[-2:])

    def forward(self, x: Tensor) -> Tensor:  # (n, *event) -> (n, channels, height, width)
        return x.reshape(len(x), *self.shape)
