"""The record of a look into the narrow end of a target: whether draws lack the neck of a funnel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

# bound of the probability that exact, independent draws give an alarm (Bonferroni; less in truth)
LEVEL = 1e-2


@dataclass(frozen=True, eq=False)
class NarrowEnd:
    """What short chains from the draws at the narrow end of a target found.

    Attributes:
        pvalue: that draws which lack nothing show so many more chains that pass an edge outwards
            than inwards, over all edges, directions and looks; 1 where no curvature grows.
        coordinate: along which curvature grows, an index of the flattened unconstrained event;
            None where curvature grows along none.
        sign: of the coordinate's changes towards the narrow end, +1 or -1.
        combined: whether it is only the heaviest of a combination of coordinates.
        direction: (d), of the coordinate or the combination, towards the narrow end.
        chains: short chains whose two ends were compared.
        outwards, inwards: how many of them crossed the edge that tells most; of draws that lack
            nothing, both have the same mean.
        edge: there, of ±x or of the combination, larger towards the narrow end.
        beyond: (n, *event) points found beyond the edge, in the unconstrained space.
        acceptance: of the chains' moves.
        gradients: of the target, that the look took.
        level: of the test.
    """

    pvalue: float
    coordinate: int | None = None
    sign: int = 1
    combined: bool = False
    direction: Tensor | None = field(default=None, repr=False)
    chains: int = 0
    outwards: int = 0
    inwards: int = 0
    edge: float = float("nan")
    beyond: Tensor | None = field(default=None, repr=False)
    acceptance: float = float("nan")
    gradients: float = 0.0
    level: float = LEVEL

    def figures(self) -> dict[str, float]:
        """The fields that are numbers, by name: without the direction and the points."""
        return {
            name: value
            for name, value in vars(self).items()
            if value is not None and not isinstance(value, Tensor)
        }

    @property
    def fires(self) -> bool:
        """Whether the draws lack mass at the narrow end."""
        return self.pvalue < self.level

    def name(self, shape: Sequence[int] = ()) -> str:
        """The coordinate of an unconstrained event of this shape, as one indexes draws."""
        if self.coordinate is None:
            return "no coordinate"
        places = np.unravel_index(self.coordinate, tuple(shape)) if len(shape) else ()
        index = ", ".join(str(int(place)) for place in places) or str(self.coordinate)
        return f"x[..., {index}]{' and others' if self.combined else ''}"

    def where(self, shape: Sequence[int] = ()) -> str:
        """The narrow end in words."""
        return f"{'small' if self.sign < 0 else 'large'} {self.name(shape)}"

    def line(self, shape: Sequence[int] = ()) -> str:
        """The look in words, for verdicts and reports."""
        if self.coordinate is None:
            return "narrow end: curvature grows along no coordinate"
        return (
            f"narrow end, {self.where(shape)}: of {self.chains:,} short chains {self.outwards:,} "
            f"went out and {self.inwards:,} came back (p = {self.pvalue:.2g})"
        )

    def reason(self, shape: Sequence[int] = ()) -> str | None:
        """Why draws should not be trusted, "what was found; try what to type"; None where nothing
        was found."""
        if not self.fires:
            return None
        return (
            f"mass is missing at the narrow end, {self.where(shape)}: of {self.chains:,} short "
            f"chains that start there {self.outwards:,} went out beyond an edge of the draws and "
            f"{self.inwards:,} came back, where both should be alike (p = {self.pvalue:.2g}); "
            "curvature grows towards it, as in the neck of a funnel; try the non-centred form, "
            "x = location + scale * z with z in place of x"
        )
