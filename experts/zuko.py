"""Flows of zuko as densities: log p(x) = log b(f(x)) + log|det df/dx|, in nats.

A lazy distribution of zuko becomes `p(x | c)` when it is called with a context c; `Zuko` calls it
at every evaluation, and so follows parameters that are trained or moved between devices. See
`experts.wrapped` for the methods.

Can be wrapped, but are not built by name:

- GF: its density clips in the tails (one transformation integrates to 1.0045), its inverse ends at
  ±10;
- CNF: its gradient is only as good as the tolerance of its solver;
- UNAF: it inverts by some fifty passes of bisection;
- SOSPF: its polynomials overflow to NaN far out.

zuko switches off the argument checks of `torch.distributions` for the whole process.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
from torch import Tensor, nn
from zuko import distributions, flows, lazy, mixtures, transforms
from zuko.flows.spline import CircularRQSTransform

from experts.wrapped import WrappedFlow
from poe.registry import register

KINDS: dict[str, type[Any]] = {
    "bpf": flows.BPF,
    "gmm": mixtures.GMM,
    "maf": flows.MAF,
    "naf": flows.NAF,
    "ncsf": flows.NCSF,
    "nice": flows.NICE,
    "nsf": flows.NSF,
    "realnvp": flows.RealNVP,
}
# univariate maps whose log-derivative is bounded, whatever their parameters, and maps that keep
# volumes
_BOUNDED_SLOPE = (
    transforms.MonotonicAffineTransform,
    transforms.MonotonicRQSTransform,
    transforms.AdditiveTransform,
)
_VOLUME = (transforms.PermutationTransform, transforms.RotationTransform)


@register("zuko")
class Zuko(WrappedFlow):
    """A flow or mixture of zuko as a density, trained, or built from plain arguments.

    >>> import poe
    >>> flow = poe.create("zuko", kind="nsf", event_shape=(2,), transforms=2, hidden_features=(16,))
    >>> flow.sample(5).shape
    torch.Size([5, 2])

    Arguments are those of `experts.wrapped.WrappedFlow`; `architecture` holds `kind`, one of
    `KINDS`, and the arguments of that class. `bounded` is known of affine and rational-quadratic
    transformations. The support of circular splines (NCSF) is [-π, π]^n.

    References: Papamakarios et al. 2021, Normalizing flows for probabilistic modeling and
    inference, JMLR 22.
    """

    LIBRARY = "zuko"

    @staticmethod
    def build(
        features: int, *, context: int = 0, kind: str | None = None, **architecture: Any
    ) -> nn.Module:
        """A new flow of zuko, of one of `KINDS`; lists are accepted where zuko takes tuples."""
        if kind not in KINDS:
            raise ValueError(
                f"no flow of zuko is of kind {kind!r}; choose kind= one of {', '.join(KINDS)}"
            )
        options = {k: tuple(v) if isinstance(v, list) else v for k, v in architecture.items()}
        return KINDS[kind](features, context, **options)

    @staticmethod
    def _features(flow: Any, context_shape: torch.Size | None) -> torch.Size | None:
        if not isinstance(flow, lazy.LazyDistribution):
            raise TypeError(
                "Zuko takes a lazy distribution of zuko, such as zuko.flows.NSF(2), not "
                f"{type(flow).__name__}"
            )
        like = next((t for t in flow.parameters() if t.is_floating_point()), torch.empty(()))
        context = None if context_shape is None else like.new_zeros(context_shape)
        try:
            with torch.no_grad():
                return torch.Size(flow(context).event_shape)
        except Exception as error:
            shape = None if context_shape is None else tuple(context_shape)
            takes = "without a context" if shape is None else f"of a context of shape {shape}"
            raise TypeError(
                f"the flow of zuko gives no distribution {takes} ({type(error).__name__}: "
                f"{error}); a conditional flow needs the shape of its context, context_shape=..., "
                "and .given(context) before it is used"
            ) from error

    def _own_support(self, flow: Any) -> Any:
        return (-math.pi, math.pi) if isinstance(flow, flows.NCSF) else None

    def _log_prob(self, rows: Tensor, context: Tensor | None) -> Tensor:
        return self.flow(context).log_prob(rows)

    def _draw(self, n: int, context: Tensor | None) -> Tensor:
        return self.flow(context).sample((n,))

    def _encode(self, rows: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        u, log_det = self.flow(context).transform.call_and_ladj(rows)
        return u, log_det.reshape(len(rows), -1).sum(1)

    def _decode(self, rows: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        x, log_det = self.flow(context).transform.inv.call_and_ladj(rows)
        return x, log_det.reshape(len(rows), -1).sum(1)

    def _invert(self, rows: Tensor, context: Tensor | None) -> Tensor:
        return self.flow(context).transform.inv(rows)

    def _gaussian(self, context: Tensor | None) -> tuple[Tensor, Tensor] | None:
        flow = self.flow(context)
        base = flow.base if isinstance(flow, distributions.NormalizingFlow) else None
        if not isinstance(base, distributions.DiagNormal):
            return None
        return base.base_dist.loc, base.base_dist.scale

    @property
    def bounded(self) -> bool | None:
        """As stated, or True where the base is bounded and every transformation has a bounded
        log-derivative; else unknown."""
        if self._known_bounded is not None or not isinstance(self.flow, lazy.Flow):
            return self._known_bounded
        base, known = self.flow.base, (distributions.DiagNormal, distributions.BoxUniform)
        simple = isinstance(base, lazy.UnconditionalDistribution) and base.f in known
        return True if simple and _bounds_volume(self.flow.transform) else None


def _bounds_volume(transform: nn.Module) -> bool:
    """Whether log|det| of a lazy transformation is bounded over all x, by its kind alone."""
    match transform:
        case lazy.LazyComposedTransform():
            return all(map(_bounds_volume, transform.transforms))
        case lazy.UnconditionalTransform():
            return transform.f in _VOLUME
        case (
            flows.MaskedAutoregressiveTransform()
            | flows.GeneralCouplingTransform()
            | flows.ElementWiseTransform()
        ):
            univariate = transform.univariate
            if isinstance(univariate, functools.partial):
                univariate = univariate.func
            return univariate in _BOUNDED_SLOPE or univariate is CircularRQSTransform
        case _:
            return False
