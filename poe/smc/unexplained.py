"""Points whose energy is lower than the minima that are known explain: where a search for modes
looks next.

With minima m_k, roots L_k and Laplace's masses M_k, the mixture of normals

    E_0(x) = -log Σ_k M_k N(x; m_k, L_k L_kᵀ)

is the energy that the known minima explain. In the basin of a further mode E(x) is lower. Where all
modes are normal it is lower nowhere else, so that one energy in many thousands shows a narrow mode
in the tail of a wide one; as tails of other targets are lower too, points are compared only with
those drawn at the same size.

Points are drawn from normals around the minima: of sizes .5 ... 7.4 in the local metric, where
narrow modes lie beside wide ones, and of the distances between minima, the same in all directions.
In d dimensions a ball at distance D is met most often by a normal of standard deviation D/√d.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from poe.smc.flat import Flat
from poe.smc.minima import Minimum, distances

LOCAL = tuple(0.5 * 1.35**k for k in range(10))  # sizes in units of a minimum's own
FAR = (0.35, 0.6, 1.0, 1.7)  # sizes in units of the distance between two minima, over √d
MAX_NUMBERS = 1 << 22  # of all points together
MAX_PRODUCTS = 2e9  # multiplications of the mixture
MAX_MINIMA = 64  # the heaviest, that the mixture has
LOWER = 0.5  # nats below what is explained


def unexplained(
    flat: Flat,
    minima: Sequence[Minimum],
    most: int,
    each: int,
    generator: torch.Generator,
    unit: Tensor | None = None,
) -> Tensor:  # -> (n, d)
    """Of at most `most` points, up to `each` of every size that are lower than is explained: half
    of them the lowest, half at random. `unit` holds sizes of the coordinates."""
    known = sorted(minima, key=lambda minimum: -minimum.log_mass)[:MAX_MINIMA]
    count = min(most, MAX_NUMBERS // flat.d, int(MAX_PRODUCTS / (len(known) * flat.d**2)))
    x, group = _points(known, max(count, 1), generator, unit)
    energy = flat(x)
    lower = explained(known, x) - energy
    resolution = LOWER + 16 * flat.eps * energy.abs()
    found = []
    for number in group.unique().tolist():
        here = ((group == number) & (lower > resolution)).nonzero().squeeze(1)
        lowest = here[lower[here].topk(min(len(here), each // 2)).indices]
        order = torch.randperm(len(here), generator=generator, device=x.device)
        found += [lowest, here[order[: each // 2]]]
    return x[torch.cat(found).unique()]


def explained(minima: Sequence[Minimum], x: Tensor) -> Tensor:  # (n, d) -> (n)
    """E_0 in nats."""
    d = x.shape[1]
    logs = [
        minimum.log_mass
        - distances(minimum, x) / 2
        - minimum.root.diagonal().log().sum()
        - d / 2 * math.log(2 * math.pi)
        for minimum in minima
    ]
    return -torch.stack(logs).logsumexp(0)


def _points(
    minima: Sequence[Minimum], count: int, generator: torch.Generator, unit: Tensor | None
) -> tuple[Tensor, Tensor]:  # -> (n, d), (n)
    """Points, and the number of the size of each."""
    centres = torch.stack([minimum.x for minimum in minima])
    options = {"generator": generator, "device": centres.device}
    near = count if len(minima) == 1 else count // 2
    which = torch.randint(len(minima), (count,), **options)
    volume = torch.stack([minimum.root.diagonal().log().sum() for minimum in minima])
    # half of them around the widest: far out, all that is not explained is narrower
    which[1::2] = int(volume.argmax())
    size = torch.randint(len(LOCAL), (count,), **options)
    z = torch.randn(count, centres.shape[1], dtype=centres.dtype, **options)
    x = torch.empty_like(z)
    for k, minimum in enumerate(minima):
        here = (which[:near] == k).nonzero().squeeze(1)
        scaled = z[here] * z.new_tensor(LOCAL)[size[here]].unsqueeze(1)
        x[here] = minimum.x + scaled @ minimum.root.T
    if near < count:
        scale = torch.ones_like(centres[0]) if unit is None else unit
        other = torch.randint(1, len(minima), (count - near,), **options)
        one = which[near:]
        gap = (centres[one] - centres[(one + other) % len(minima)]) / scale
        far = torch.randint(len(FAR), (count - near,), **options)
        length = gap.norm(dim=1) / math.sqrt(len(scale)) * z.new_tensor(FAR)[far]
        x[near:] = centres[one] + z[near:] * length.unsqueeze(1) * scale
        size[near:] = len(LOCAL) + far
    return x, size
