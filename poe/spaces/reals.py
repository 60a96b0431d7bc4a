"""The reals in place of a support: bijections from R^n onto boxes, and onto the supports that torch
knows."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions import Transform, biject_to, constraints
from torch.distributions.transforms import identity_transform

from poe.algebra.support import Box, Constraint, Intersection, Union


class BoxTransform(Transform):
    """R^n -> box, coordinate by coordinate: identity, low + e^z, high - e^z, or low + (high -
    low)·sigmoid(z)."""

    bijective = True

    def __init__(self, support: Box) -> None:
        super().__init__()
        self.box = support
        self.domain = constraints.independent(constraints.real, support.event_dim)
        self.codomain = support

    def _ends(self, like: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        low, high = self.box.ends(like)
        below, above = low.isfinite(), high.isfinite()
        return (
            torch.where(below, low, 0),
            torch.where(above, high, 0),
            below & above,
            below & ~above,
            above & ~below,
        )

    def _call(self, x: Tensor) -> Tensor:
        low, high, both, lower, upper = self._ends(x)
        grown = torch.where(lower | upper, x, 0).exp()
        squashed = low + (high - low) * x.sigmoid()
        return torch.where(
            both, squashed, torch.where(lower, low + grown, torch.where(upper, high - grown, x))
        )

    def _inverse(self, y: Tensor) -> Tensor:
        low, high, both, lower, upper = self._ends(y)
        share = torch.where(both, (y - low) / torch.where(both, high - low, 1), 0.5)
        gap = torch.where(lower, y - low, torch.where(upper, high - y, 1))
        return torch.where(both, share.logit(), torch.where(lower | upper, gap.log(), y))

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        low, high, both, lower, upper = self._ends(x)
        inner = (
            torch.where(both, high - low, 1).log()
            - torch.nn.functional.softplus(x)
            - torch.nn.functional.softplus(-x)
        )
        terms = torch.where(both, inner, torch.where(lower | upper, x, 0))
        return (
            terms if self.box.event_dim == 0 else terms.flatten(x.ndim - self.box.event_dim).sum(-1)
        )


def from_reals(support: Constraint) -> Transform:
    """A bijection from R^m onto the support, or onto a larger set where the support has none of its
    own.

    Chains then move in R^m; a point outside the support has energy +inf and is rejected.
    """
    whole = image(support)
    if isinstance(whole, Box):
        return identity_transform if whole.is_real else BoxTransform(whole)
    return identity_transform if isinstance(whole, Union) else biject_to(whole)


def image(support: Constraint) -> Constraint:
    """What `from_reals` maps onto: the support, or a larger set. A union as the result means all of
    R^n."""
    if isinstance(support, Intersection):
        curved = [part for part in support.parts if not isinstance(part, (Box, Union))]
        return image(curved[0] if curved else support.parts[0])
    if isinstance(support, Union):
        boxes = [part for part in support.parts if isinstance(part, Box)]
        if len(boxes) < len(support.parts):
            return support
        low, high = boxes[0].low, boxes[0].high
        for part in boxes[1:]:
            low, high = (
                torch.minimum(low, part.low.to(low)),
                torch.maximum(high, part.high.to(high)),
            )
        return Box(low, high)
    return support
