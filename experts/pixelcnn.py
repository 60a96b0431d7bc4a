"""Pictures pixel by pixel: gated, masked convolutions in two stacks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from experts.sequential import Autoregressive, two_or_more
from poe.registry import register


@register("pixelcnn")
class PixelCNN(Autoregressive):
    """A gated PixelCNN (van den Oord et al., Conditional image generation with PixelCNN decoders,
    2016) without a blind spot.

    Pixels are generated row by row, left to right; of a pixel with C channels, channel 0 first. A
    vertical stack v sees the rows above a pixel, a horizontal stack h the pixels to its left; v
    feeds h, never the other way round. With g(a, b) = tanh(a) sigmoid(b):

        v' = g(conv(v)),  k // 2 + 1 rows down to the pixel's own, k columns; in the first layer one
        row up h' = h + B g(conv(h) + A v's input to g),  k // 2 + 1 columns that end at the pixel

    (the first h' has no h to add). At the pixel itself masks go by channel: features fall into C
    groups, group c sees groups 0, ..., c of the layer below, and in the first layer the values of
    channels 0, ..., c - 1. Group c gives the conditional of channel c. Learned terms of each place
    (`2 channels` numbers in the first layer of each stack) tell the layers where they are.

    Two levels: the output is the log-odds of 1. More: `levels` logits, the input being 2 value /
    (levels - 1) - 1. A pixel depends on all earlier ones where `layers * (kernel // 2)` is at least
    the longer side. Drawing takes n passes.

    Arguments:
        event_shape: (height, width) or (C, height, width).
        levels: as in `Autoregressive`.
        channels, layers: features of each stack, and gated layers.
        kernel: k, odd.
        dropout: of each layer's gated features, in training mode.

    Raises ValueError for an event of another rank, an even kernel, or fewer features than channels
    of the picture.
    """

    def __init__(
        self,
        event_shape: Sequence[int],
        *,
        levels: int = 2,
        channels: int = 32,
        layers: int = 6,
        kernel: int = 3,
        dropout: float = 0.0,
        name: str | None = None,
    ) -> None:
        shape = tuple(event_shape)
        if len(shape) not in (2, 3) or kernel % 2 == 0 or channels < math.prod(shape[:-2]):
            raise ValueError(
                "a PixelCNN takes events (height, width) or (C, height, width), an odd kernel and "
                f"at least C channels; got {shape}, kernel={kernel}, channels={channels}"
            )
        planes, (height, width) = math.prod(shape[:-2]), shape[-2:]
        places = torch.arange(math.prod(shape)).reshape(planes, height, width)
        order = rearrange(places, "c h w -> (h w c)").tolist()
        super().__init__(shape, levels, order=order, name=name)
        sizes = {"channels": channels, "layers": layers, "kernel": kernel}
        self._architecture = {**sizes, "dropout": dropout}
        self.planes, wide = planes, 1 if levels == 2 else levels
        own, groups = torch.arange(planes), torch.arange(channels) * planes // channels
        outputs = own.repeat_interleave(wide)
        self.places = nn.Parameter(torch.zeros(2, 2 * channels, height, width))
        self.blocks = nn.ModuleList(
            _Gated(groups, groups if depth else own, kernel, dropout, first=not depth)
            for depth in range(layers)
        )
        self.hidden = MaskedConv(groups, groups, 1, strict=False)
        self.last = MaskedConv(groups, outputs, 1, strict=False)
        self.eval()

    def _conditionals(self, prefix: Tensor, start: int) -> Tensor:
        # (*batch, t) -> (*batch, t + 1 - start, levels)
        t, width = prefix.shape[-1], self.event_shape[-1]
        row = self.planes * width
        rows = t // row + 1  # no pixel depends on the rows below
        x = 2 * prefix.to(self.dtype) / (self.levels - 1) - 1
        x = F.pad(x, (0, rows * row - t)).reshape(-1, rows, width, self.planes)
        v = h = rearrange(x, "n h w c -> n c h w")
        places = self.places[:, :, :rows]
        for block in self.blocks:
            v, h = block(v, h, places)
            places = None
        out = self.last(F.silu(self.hidden(F.silu(h))))
        out = rearrange(out, "n (c k) h w -> n (h w c) k", c=self.planes)[:, start : t + 1]
        logs = two_or_more(out, self.levels)
        return logs.reshape(*prefix.shape[:-1], *out.shape[1:-1], self.levels)

    def config(self) -> dict[str, Any]:
        return {"event_shape": list(self.event_shape), "levels": self.levels} | self._architecture


class MaskedConv(nn.Conv2d):
    """A convolution over the pixels to the left in a row and the pixel itself, where features of
    group g see those of groups up to g (`strict`: below g) of the layer underneath; `kernel`
    columns end at the pixel."""

    mask: Tensor

    def __init__(self, inputs: Tensor, outputs: Tensor, kernel: int, *, strict: bool) -> None:
        super().__init__(len(inputs), len(outputs), (1, kernel))
        sees = outputs[:, None] > inputs if strict else outputs[:, None] >= inputs
        mask = torch.ones(*sees.shape, 1, kernel, dtype=torch.bool)
        mask[..., 0, -1] = sees
        self.register_buffer("mask", mask, persistent=False)

    def forward(self, x: Tensor) -> Tensor:  # (n, inputs, h, w) -> (n, outputs, h, w)
        x = F.pad(x, (self.kernel_size[1] - 1, 0))
        return F.conv2d(x, torch.where(self.mask, self.weight, 0), self.bias)


class _Gated(nn.Module):
    """One layer of both stacks; groups of the features above and below tell what a pixel may see of
    itself."""

    def __init__(
        self, groups: Tensor, below: Tensor, kernel: int, dropout: float, *, first: bool
    ) -> None:
        super().__init__()
        twice, self.reach, self.first = groups.repeat(2), kernel // 2, first
        self.down = nn.Conv2d(len(below), len(twice), (self.reach + 1, kernel))
        self.right = MaskedConv(below, twice, self.reach + 1, strict=first)
        self.across = nn.Conv2d(len(twice), len(twice), 1)
        self.out = MaskedConv(groups, groups, 1, strict=False)
        self.dropout = nn.Dropout(dropout)

    def forward(self, v: Tensor, h: Tensor, places: Tensor | None) -> tuple[Tensor, Tensor]:
        # (n, c, h, w), (n, c, h, w), (2, 2c', h, w) -> (n, c', h, w), (n, c', h, w)
        k = self.reach
        above = F.pad(v, (0, 0, 1, 0))[..., :-1, :] if self.first else v
        vertical = self.down(F.pad(above, (k, k, k, 0)))
        horizontal = self.right(h) + self.across(vertical)
        if places is not None:
            vertical, horizontal = vertical + places[0], horizontal + places[1]
        v, new = _gate(vertical), self.out(self.dropout(_gate(horizontal)))
        return self.dropout(v), new if self.first else h + new


def _gate(x: Tensor) -> Tensor:  # (n, 2c, h, w) -> (n, c, h, w)
    a, b = x.chunk(2, 1)
    return a.tanh() * b.sigmoid()
