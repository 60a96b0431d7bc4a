"""Pictures of one coloured shape, drawn by code, and the exact classifier of their factors.

A picture is x = 2 rgb - 1, event shape (3, 16, 16), channels first: one object on a black ground,
antialiased. Its factors are

    shape   circle, square, triangle            colour  red, green, blue, yellow
    column  left, right                         row     top, bottom
    size    small, large

and within them the object's centre is uniform: each coordinate on [4.5, 7] (left, top) or [9, 11.5]
(right, bottom), in pixels from the upper left corner. A point of the data set is x + 0.05 ε, ε ~
N(0, 1) in every number, so that the data have a smooth density. Three combinations of factors
(`UNSEEN`) never occur in training.

The classifier compares a picture with renders of all shapes, sizes and colours at a grid of places,
by squared distance; a second, finer grid decides. It is independent of all networks.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

SIDE = 16  # pixels
SIGMA = 0.05  # noise of the data, in units of x
COLOURS = {
    "red": (1.0, 0.0, 0.0),
    "green": (0.0, 1.0, 0.0),
    "blue": (0.0, 0.0, 1.0),
    "yellow": (1.0, 1.0, 0.0),
}
FACTORS: dict[str, tuple[str, ...]] = {
    "shape": ("circle", "square", "triangle"),
    "colour": tuple(COLOURS),
    "column": ("left", "right"),
    "row": ("top", "bottom"),
    "size": ("small", "large"),
}
CONCEPTS = tuple(itertools.chain.from_iterable(FACTORS.values()))
UNSEEN = (
    ("circle", "yellow", "large"),
    ("triangle", "red", "left"),
    ("square", "green", "small", "top"),
)
CELLS = ((4.5, 7.0), (9.0, 11.5))  # of the centre: left or top, right or bottom
HALF = {
    "circle": 4.0,
    "square": 3.5,
    "triangle": 4.5,
}  # half the width of a large object, in pixels; a small one has 0.6 of it
SMALL = 0.6


def render(factors: Tensor, centre: Tensor) -> Tensor:
    # (*batch, 5), (*batch, 2) -> (*batch, 3, 16, 16)
    """Pictures without noise; `factors` are places in the lists of FACTORS, `centre` is (x, y) in
    pixels."""
    cover = coverage(factors[..., 0], factors[..., 4], centre)
    colour = torch.tensor(list(COLOURS.values()), dtype=cover.dtype)[factors[..., 1]]
    return 2 * colour[..., None, None] * cover[..., None, :, :] - 1


def coverage(shape: Tensor, size: Tensor, centre: Tensor) -> Tensor:
    # (*batch), (*batch), (*batch, 2) -> (*batch, 16, 16)
    """How much of each pixel the object covers, 0 to 1: one half minus the distance to its edge,
    clipped."""
    at = torch.arange(SIDE, dtype=centre.dtype) + 0.5
    dx = at[None, :] - centre[..., 0, None, None]
    dy = at[:, None] - centre[..., 1, None, None]
    half = torch.tensor([HALF[name] for name in FACTORS["shape"]], dtype=centre.dtype)[shape]
    half = (half * torch.where(size == 0, SMALL, 1.0))[..., None, None]
    triangle = torch.maximum(
        dy - half, (2 * dx.abs() - dy - half) / 5**0.5
    )  # apex up, as high as it is wide
    outside = torch.stack(
        ((dx**2 + dy**2).sqrt() - half, torch.maximum(dx.abs(), dy.abs()) - half, triangle)
    )
    chosen = torch.nn.functional.one_hot(shape, 3).movedim(-1, 0)[..., None, None].bool()
    return (0.5 - torch.where(chosen, outside, 0.0).sum(0)).clamp(0, 1)


def combinations(wanted: Iterable[str] = (), *, unseen: bool = False) -> Tensor:  # -> (n, 5)
    """All combinations of factors that have every wanted one; those left out of training only where
    `unseen`."""
    wanted = set(wanted)
    if wanted - set(CONCEPTS):
        raise ValueError(
            f"no concepts are named {', '.join(sorted(wanted - set(CONCEPTS)))}; there are "
            f"{', '.join(CONCEPTS)}"
        )
    rows = []
    for indices in itertools.product(*(range(len(values)) for values in FACTORS.values())):
        named = set(names(indices))
        if wanted <= named and (unseen or not any(named.issuperset(left) for left in UNSEEN)):
            rows.append(indices)
    return torch.tensor(rows, dtype=torch.long).reshape(-1, len(FACTORS))


def names(indices: Iterable[int]) -> tuple[str, ...]:
    """The concepts that five places in the lists of FACTORS stand for."""
    return tuple(values[int(i)] for values, i in zip(FACTORS.values(), indices, strict=True))


def pictures(
    n: int,
    wanted: Iterable[str] = (),
    *,
    unseen: bool = False,
    sigma: float = 0.0,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    # -> (n, 3, 16, 16), (n, 5)
    """n pictures, each of the allowed combinations equally likely, with noise of scale `sigma`; and
    their factors."""
    allowed = combinations(wanted, unseen=unseen)
    factors = allowed[torch.randint(len(allowed), (n,), generator=generator)]
    low, high = torch.tensor(CELLS).unbind(1)
    cells = factors[:, 2:4]
    x = render(factors, low[cells] + (high - low)[cells] * torch.rand(n, 2, generator=generator))
    return x + sigma * torch.randn(x.shape, generator=generator), factors


@dataclass(frozen=True)
class Judgement:
    """What the classifier sees in n pictures: factors as places in the lists of FACTORS (n, 5), the
    centre in pixels (n, 2), how many objects there are, and the root mean square difference to the
    nearest render, in units of x (n)."""

    factors: Tensor
    centre: Tensor
    objects: Tensor
    misfit: Tensor

    @property
    def broken(self) -> Tensor:  # -> (n)
        """Not one whole object: none, several, or one that is far from every render."""
        return (self.objects != 1) | (self.misfit > BROKEN)

    def has(self, *concepts: str) -> Tensor:  # -> (n)
        """Whether a picture is whole and has all of these concepts."""
        held = ~self.broken
        for concept in concepts:
            place = next(
                (i for i, values in enumerate(FACTORS.values()) if concept in values), None
            )
            if place is None:
                raise ValueError(
                    f"no concept is named {concept!r}; there are {', '.join(CONCEPTS)}"
                )
            held = held & (self.factors[:, place] == list(FACTORS.values())[place].index(concept))
        return held

    def shares(self, factor: str) -> Tensor:  # -> (values)
        """How often each value of a factor occurs among the whole pictures."""
        place = list(FACTORS).index(factor)
        counts = torch.bincount(self.factors[~self.broken, place], minlength=len(FACTORS[factor]))
        return counts / counts.sum()


# root mean square difference to the nearest render, in units of x: three times the noise of the
# data
BROKEN = 0.15
COARSE, FINE = 0.25, 0.0625  # steps of the two grids of places, in pixels


@torch.no_grad()
def judge(x: Tensor) -> Judgement:  # (n, 3, 16, 16)
    """The factors of each picture: those of the nearest render among all shapes, sizes, colours and
    places."""
    kinds, places, templates = _templates()
    colours = torch.tensor(list(COLOURS.values()), dtype=x.dtype, device=x.device)
    light = (x + 1).flatten(2)  # a render is 2 colour·cover
    scores = (
        torch.einsum("ncp,kc->nkp", light, colours) @ templates.to(x).T
    )  # <light, colour·cover>
    gain = 4 * scores - 4 * colours.sum(1)[:, None] * templates.to(x).square().sum(
        1
    )  # how far a render brings the distance down
    best = gain.unflatten(2, (len(kinds), -1)).max(3)  # (n, colours, kinds)
    kind = best.values.flatten(1).topk(2).indices  # candidates, each of one colour, shape and size
    colour, kind = kind // len(kinds), kind % len(kinds)
    index = best.indices.flatten(1).gather(1, colour * len(kinds) + kind)
    steps = torch.arange(-2, 3, dtype=x.dtype) * FINE
    near = places[index][:, :, None] + torch.cartesian_prod(steps, steps)  # (n, 2, 25, 2)
    wide = kinds[kind][:, :, None].expand(*near.shape[:3], 2)
    covers = coverage(wide[..., 0], wide[..., 1], near.to(x)).flatten(3)
    seen = torch.einsum("ncp,nkc->nkp", light, colours[colour])
    gain = 4 * torch.einsum("nkp,nkgp->nkg", seen, covers) - 4 * colours[colour].sum(
        2, keepdim=True
    ) * covers.square().sum(3)
    top = gain.flatten(1).max(1)
    row = torch.arange(len(x))
    which, spot = top.indices // 25, top.indices % 25
    centre = near[row, which, spot]
    cell = (centre > SIDE / 2).long()
    shape, size = kinds[kind[row, which]].unbind(1)
    factors = torch.stack([shape, colour[row, which], cell[:, 0], cell[:, 1], size], 1)
    misfit = (
        (light.square().flatten(1).sum(1) - top.values).clamp(min=0) / light[0].numel()
    ).sqrt()
    return Judgement(factors, centre, objects(x), misfit)


def objects(x: Tensor) -> Tensor:  # (n, 3, 16, 16) -> (n)
    """Numbers of connected regions of at least four pixels, joined by their sides, whose brightest
    channel is above 0."""
    lit = x.amax(1) > 0
    label = torch.where(lit, torch.arange(1, SIDE * SIDE + 1).reshape(SIDE, SIDE).to(x), 0.0)
    for _ in range(SIDE * SIDE):  # the highest label of a region spreads over it
        padded = torch.nn.functional.pad(label, (1, 1, 1, 1))
        sides = torch.stack(
            [
                label,
                padded[:, 2:, 1:-1],
                padded[:, :-2, 1:-1],
                padded[:, 1:-1, 2:],
                padded[:, 1:-1, :-2],
            ]
        )
        spread = torch.where(lit, sides.amax(0), 0.0)
        if torch.equal(spread, label):
            break
        label = spread
    sizes = torch.zeros(len(x), SIDE * SIDE + 1).scatter_add(
        1, label.flatten(1).long(), torch.ones(len(x), SIDE * SIDE)
    )
    return (sizes[:, 1:] >= 4).sum(1)


@cache
def _templates() -> tuple[Tensor, Tensor, Tensor]:
    """(shape, size) of each kind (6, 2), places (g, 2), and coverages at all places (6 g, 256), one
    kind after the other."""
    kinds = torch.cartesian_prod(torch.arange(3), torch.arange(2))
    grid = torch.arange(CELLS[0][0] - 1, CELLS[1][1] + 1 + COARSE / 2, COARSE)
    places = torch.cartesian_prod(grid, grid)
    wide = kinds[:, None].expand(-1, len(places), -1)
    covers = coverage(wide[..., 0], wide[..., 1], places.expand(len(kinds), -1, -1))
    return kinds, places, covers.flatten(0, 1).flatten(1)
