"""Flows of normflows as densities: log p(x) = log b(u) + log|det du/dx| with u = f(x), in nats.

`NormFlow` takes a `NormalizingFlow`, a `ConditionalNormalizingFlow` (its context bound by
`.given`), or a `ClassCondFlow` (its class bound by `.given(label)`). Determinants are added up in
the flow's own precision; `Composite` layers add zeros of float32. `MaskedAffineFlow`
answers NaN where its scale overflows, far out. See `experts.wrapped` for the methods.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from normflows import core, flows
from normflows.distributions import base as bases
from normflows.nets import MLP
from torch import Tensor, nn

from experts.wrapped import WrappedFlow
from poe.registry import register

KINDS = ("rq-autoregressive", "rq-coupling", "realnvp", "maf")


@register("normflows")
class NormFlow(WrappedFlow):
    """A flow of normflows as a density, trained, or built from plain arguments.

    >>> import poe
    >>> flow = poe.create("normflows", kind="realnvp", event_shape=(2,), layers=2, hidden=16)
    >>> flow.sample(5).shape
    torch.Size([5, 2])

    Arguments are those of `experts.wrapped.WrappedFlow`; `architecture` holds `kind`, one of
    `KINDS`, `layers`, `hidden` and `blocks`. The base states the shape of an event; where it does
    not, `event_shape` is needed. A class-conditional flow takes `context_shape=()`, one label.

    Raises TypeError for a flow without an inverse, whose density cannot be evaluated, and for one
    whose ActNorm layers are not initialised: its first batch would change it.
    """

    LIBRARY = "normflows"

    @staticmethod
    def build(
        features: int,
        *,
        context: int = 0,
        kind: str | None = None,
        layers: int = 4,
        hidden: int = 64,
        blocks: int = 2,
    ) -> nn.Module:
        """A new flow with a standard normal base; a permutation stands between coupling layers."""
        if kind not in KINDS:
            raise ValueError(
                f"no flow of normflows is of kind {kind!r}; choose kind= one of {', '.join(KINDS)}"
            )
        if kind == "realnvp" and (features < 2 or context):
            raise ValueError(
                "affine couplings of normflows split their features in two and take no context: "
                "use kind='maf' or 'rq-autoregressive'"
            )
        sequence: list[nn.Module] = []
        for _ in range(layers):
            sequence.append(_layer(kind, features, hidden, blocks, context or None))
            if kind in ("realnvp", "maf"):
                swap = flows.Permute(features, mode="swap")
                sequence.append(_ContextFree(swap) if context else swap)
        base = bases.DiagGaussian(features, trainable=False)
        flow = core.ConditionalNormalizingFlow if context else core.NormalizingFlow
        return flow(base, sequence)

    @staticmethod
    def _features(flow: Any, context_shape: torch.Size | None) -> torch.Size | None:
        if not isinstance(flow, core.NormalizingFlow | core.ClassCondFlow):
            raise TypeError(
                "NormFlow takes a NormalizingFlow or a ClassCondFlow of normflows, not "
                f"{type(flow).__name__}"
            )
        if isinstance(flow, core.ConditionalNormalizingFlow) and context_shape is None:
            raise TypeError(
                "a ConditionalNormalizingFlow needs context_shape=..., and .given(context) before "
                "it is used"
            )
        if isinstance(flow, core.ClassCondFlow) and context_shape != ():
            raise TypeError(
                "a ClassCondFlow takes one label: give context_shape=(), and .given(label) before "
                "it is used"
            )
        norms = [(n, m) for n, m in flow.named_modules() if isinstance(m, flows.ActNorm)]
        raw = [n for n, m in norms if not m.data_dep_init_done > 0]
        if raw:
            raise TypeError(
                f"the ActNorm layers {', '.join(raw)} are not initialised, and the first batch "
                "would set them: call flow.log_prob(data) once before wrapping the flow"
            )
        stated = vars(flow.q0).get("shape", vars(flow.q0).get("dim"))
        if stated is None:
            return None
        return torch.Size([stated] if isinstance(stated, int) else stated)

    def _as_context(self, context: Any) -> Tensor:
        if isinstance(self.flow, core.ClassCondFlow):
            return torch.as_tensor(context, dtype=torch.long, device=self.device)
        return super()._as_context(context)

    def _log_prob(self, rows: Tensor, context: Tensor | None) -> Tensor:
        u, log_det = self._encode(rows, context)
        return log_det + self._with_context(self.flow.q0.log_prob, u, context, len(rows))

    def _draw(self, n: int, context: Tensor | None) -> Tensor:
        return self._with_context(self.flow.sample, n, context, n)[0]

    def _with_context(
        self, function: Callable[..., Any], argument: Any, context: Tensor | None, n: int
    ) -> Any:
        if context is None:
            return function(argument)
        rows = self._rows(context, n)
        by_class = isinstance(self.flow, core.ClassCondFlow)
        return function(argument, rows) if by_class else function(argument, context=rows)

    def _encode(self, rows: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        return self._follow([layer.inverse for layer in reversed(self.flow.flows)], rows, context)

    def _decode(self, rows: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        return self._follow(list(self.flow.flows), rows, context)

    def _gaussian(self, context: Tensor | None) -> tuple[Tensor, Tensor] | None:
        base = self.flow.q0
        if type(base) is bases.DiagGaussian and base.temperature is None:
            return base.loc, base.log_scale.exp()
        if type(base) is bases.ConditionalDiagGaussian:
            mean, log_scale = base.context_encoder(self._rows(context, 1)).chunk(2, -1)
            return mean, log_scale.exp()
        return None

    def _follow(
        self, maps: list[Callable[..., Any]], rows: Tensor, context: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        conditional = isinstance(self.flow, core.ConditionalNormalizingFlow)
        options = {"context": self._rows(context, len(rows))} if conditional else {}
        total = rows.new_zeros(len(rows))
        for step in maps:
            rows, log_det = step(rows, **options)
            total = total + log_det
        return rows, total

    @staticmethod
    def _rows(context: Tensor | None, n: int) -> Tensor | None:
        return None if context is None else context.expand(n, *context.shape)


def _layer(kind: str, features: int, hidden: int, blocks: int, context: int | None) -> nn.Module:
    if kind == "realnvp":
        kept = math.ceil(features / 2)
        network = MLP([kept, *[hidden] * blocks, 2 * (features - kept)], init_zeros=True)
        return flows.AffineCouplingBlock(network, scale_map="sigmoid")
    if kind == "maf":
        return flows.MaskedAffineAutoregressive(
            features, hidden, context_features=context, num_blocks=blocks
        )
    spline = flows.CoupledRationalQuadraticSpline
    if kind == "rq-autoregressive":
        spline = flows.AutoregressiveRationalQuadraticSpline
    return spline(features, blocks, hidden, num_context_channels=context)


class _ContextFree(flows.Flow):
    """A layer that leaves a context aside."""

    def __init__(self, flow: nn.Module) -> None:
        super().__init__()
        self.flow: Any = flow

    def forward(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self.flow(z)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self.flow.inverse(z)
