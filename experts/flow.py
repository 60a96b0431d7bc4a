"""Normalizing flows of nflows: log p(x) = log N(z; 0, 1) + log|det dz/dx| with z = T(x), in nats.

`Flow` wraps any flow of nflows, or builds one from plain arguments:

| kind        | each layer                                                  | density | draws      |
|-------------|-------------------------------------------------------------|---------|------------|
| realnvp     | affine coupling (Dinh, Sohl-Dickstein & Bengio 2017)        | 1 pass  | 1 pass     |
| rq-coupling | rational-quadratic spline coupling (Durkan et al. 2019)     | 1 pass  | 1 pass     |
| maf         | masked affine autoregressive (Papamakarios et al. 2017)     | 1 pass  | D passes   |

See `experts.wrapped` for the methods. A wrapped flow is changed in two ways: its linear layers no
longer cache their weights (nflows keeps a cache that `load_state_dict` and `double` leave stale),
and the inverse of `NaiveLinear` works again.
"""

from __future__ import annotations

import math
import warnings
from typing import Any

import einops
import torch
from nflows.distributions.normal import StandardNormal
from nflows.flows.base import Flow as Nflow
from nflows.transforms.autoregressive import AutoregressiveTransform
from torch import Tensor

from experts import couplings
from experts.wrapped import WrappedFlow
from poe.registry import register


@register("flow")
class Flow(WrappedFlow):
    """A normalizing flow over R^n: a trained nflows flow, or one built from plain arguments.

    Arguments are those of `experts.wrapped.WrappedFlow`; `architecture` holds those of
    `experts.couplings.build`: `kind`, `layers`, `hidden` and so on.

    Raises TypeError for a flow with layers that take a context where no `context_shape` is given:
    nflows leaves the context out silently, which is another density.

    Capabilities: samples; Transport where the base is nflows' StandardNormal. With another base,
    draws come from that base's own `sample`.
    """

    LIBRARY = "nflows"

    _prepare = staticmethod(couplings.mend)

    @staticmethod
    def build(features: int, *, context: int = 0, **architecture: Any) -> Nflow:
        """`experts.couplings.build`."""
        return couplings.build(features, context=context, **architecture)

    @staticmethod
    def _features(flow: Nflow, context_shape: torch.Size | None) -> torch.Size:
        layer = couplings.context_layer(flow)
        if context_shape is None and layer is not None:
            raise TypeError(
                f"the flow is conditional: its layer {layer} takes a context, without which it is "
                "another density; it needs context_shape=..., and .given(context) before it is used"
            )
        shape = getattr(flow._distribution, "_shape", None)
        if shape is None:
            raise TypeError(
                f"the base {type(flow._distribution).__name__} of the flow does not state the "
                "shape of its noise; give it an attribute _shape"
            )
        return torch.Size(shape)

    def _log_prob(self, rows: Tensor, context: Tensor | None) -> Tensor:  # (n, *features) -> (n)
        return self.flow.log_prob(rows, context=_repeated(context, len(rows)))

    def _draw(self, n: int, context: Tensor | None) -> Tensor:  # -> (n, *features)
        base = self.flow._distribution
        try:
            noise = base.sample(n, context=self._embedded(context, 1))
        except NotImplementedError as error:
            raise TypeError(
                f"{self} has a {type(base).__name__} as its base, which draws no samples; use "
                "StandardNormal"
            ) from error
        rows = noise if context is None else noise.flatten(0, 1)
        return self._invert(rows.to(self._like()), context)

    def _encode(self, rows: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        return self.flow._transform(rows, context=self._embedded(context, len(rows)))

    def _decode(self, rows: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        with warnings.catch_warnings():  # nflows solves LU layers through torch.triangular_solve
            warnings.filterwarnings("ignore", message="torch.triangular_solve is deprecated")
            return self.flow._transform.inverse(rows, context=self._embedded(context, len(rows)))

    def _gaussian(self, context: Tensor | None) -> tuple[Tensor, Tensor] | None:
        if type(self.flow._distribution) is not StandardNormal:
            return None
        zeros = self._like().new_zeros(self._noise_shape)
        return zeros, torch.ones_like(zeros)

    @property
    def passes(self) -> int:
        """Passes of the network that `from_noise` takes: one a feature where a layer is
        autoregressive, else 1."""
        slow = any(isinstance(module, AutoregressiveTransform) for module in self.flow.modules())
        return math.prod(self._noise_shape) if slow else 1

    @property
    def bounded(self) -> bool | None:
        """As stated, or True where each layer bounds its own determinant, whatever its network
        says: p(x) = N(T(x)) |det ∇T(x)|. So do couplings that are additive or affine with a
        squashed scale, linear maps, and normalisation with fixed numbers. Else unknown."""
        standard = type(self.flow._distribution) is StandardNormal
        known = standard and couplings.bounds_volume(self.flow._transform)
        return True if known else self._known_bounded

    def _embedded(self, context: Tensor | None, n: int) -> Tensor | None:
        rows = _repeated(context, n)
        return None if rows is None else self.flow._embedding_net(rows)


def _repeated(context: Tensor | None, n: int) -> Tensor | None:
    return None if context is None else einops.repeat(context.flatten(), "c -> n c", n=n)
