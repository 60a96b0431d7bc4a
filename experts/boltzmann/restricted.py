"""What restricted Boltzmann machines have in common, whatever their visible units are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from experts.boltzmann.machine import Machine, unit_vector
from experts.families import parameters as param
from poe.algebra import support as sets
from poe.spaces.sites import toss


class Restricted(Machine):
    """Hidden bits h_j, independent given the visible units, with log-odds c_j + (vᵀW)_j; `hidden`
    counts them."""

    weights: Tensor
    hidden_bias: Tensor

    def __init__(
        self,
        weights: Any,
        hidden_bias: Any,
        *,
        event_shape: Sequence[int] | None,
        support: sets.Constraint,
        learnable: bool,
        name: str | None,
        **visible: Any,
    ) -> None:
        values, shape = _checked(weights, event_shape, hidden_bias, **visible)
        super().__init__(
            values,
            {"event_shape": list(shape)},
            event_shape=shape,
            support=support,
            blocks=[torch.arange(shape.numel())],
            learnable=learnable,
            name=name,
        )

    @property
    def hidden(self) -> int:
        """How many hidden units there are."""
        return self.weights.shape[1]

    @property
    def uniforms(self) -> tuple[int, ...]:
        """How many numbers `sample_block` takes: one for each hidden unit, then one for each
        visible one."""
        return (self.hidden + self.event_shape.numel(),)

    def draw_hidden(self, x: Tensor, uniforms: Tensor) -> Tensor:
        # (*batch, *event), (*batch, H) -> (*batch, H)
        """h given v: h_j = 1 where its uniform is below 1/(1 + exp(-c_j - (vᵀW)_j))."""
        with torch.no_grad():
            inputs = self._inputs(x)
            return toss(inputs, uniforms, inputs.dtype)

    def _inputs(self, v: Tensor) -> Tensor:  # (*batch, *event) -> (*batch, H)
        return linear(self._floats(self._flat(v)), self.weights.T, self.hidden_bias)

    def _split(self, uniforms: Tensor) -> tuple[Tensor, Tensor]:
        if uniforms.shape[-1] != self.uniforms[0]:
            raise ValueError(
                f"{self} takes {self.uniforms[0]} uniforms a draw, hidden units first, not "
                f"{uniforms.shape[-1]}"
            )
        return uniforms[..., : self.hidden], uniforms[..., self.hidden :]


def _checked(
    weights: Any, event_shape: Sequence[int] | None, hidden_bias: Any, **others: Any
) -> tuple[dict[str, Tensor], torch.Size]:
    """Weights (n, H), hidden biases (H) and vectors (n), and the event shape."""
    values = param.tensors(weights=weights, hidden_bias=hidden_bias, **others)
    if values["weights"].ndim != 2:
        raise ValueError(
            "weights join visible to hidden units, (n, H); got shape "
            f"{tuple(values['weights'].shape)}"
        )
    n, hidden = values["weights"].shape
    shape = torch.Size([n] if event_shape is None else event_shape)
    if shape.numel() != n:
        raise ValueError(
            f"events of shape {tuple(shape)} are {shape.numel()} numbers, and the weights have {n} "
            "rows"
        )
    for key in values.keys() - {"weights"}:
        values[key] = unit_vector(key, values[key], hidden if key == "hidden_bias" else n)
    return values, shape
