"""U-Nets of diffusers as experts: `poe.as_energy(unet, scheduler=...)` reads what the network
predicts, and at which noise, from the scheduler that it was trained with. diffusers itself is not
imported.

| scheduler states | predicts | schedule |
|------------------------------------------|-----------------------------------|--------------------------------------------|
| `prediction_type` and `alphas_cumprod` | "epsilon": noise; "sample": | that table of α², t its index |
| | denoised; "v_prediction": velocity | |
| `shift`, as flow matching does | velocity | flow, t from 0 to `num_train_timesteps` |

Any other model is wrapped by hand: `Denoiser(lambda u, t: model(u, t).sample, event_shape,
schedule=..., predicts=...)`.
"""  # noqa: E501

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from experts.denoiser import Denoiser
from experts.noise_schedule import NoiseSchedule

PREDICTS = {"epsilon": "noise", "sample": "denoised", "v_prediction": "velocity"}


class UNet(nn.Module):
    """A U-Net of diffusers as (u, t) -> prediction, and with a context (u, t, c): the label of a
    class, or embeddings of a text."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model: Any = model

    def forward(self, u: Tensor, t: Tensor, context: Any = None) -> Tensor:
        # (n, *event), (n) -> (n, *event)
        classes, name = self.model.config.get("num_class_embeds"), type(self.model).__name__
        if context is None and classes is not None:
            raise ValueError(
                f"this {name} has {classes} classes and needs one: bind it by .given(0)"
            )
        if context is None:
            return self.model(u, t).sample
        if classes is not None and (
            isinstance(context, str) or (isinstance(context, int) and not 0 <= context < classes)
        ):
            raise ValueError(f"the classes of this {name} are 0 to {classes - 1}, not {context!r}")
        if isinstance(context, Tensor) and context.is_floating_point():
            return self.model(u, t, encoder_hidden_states=context).sample
        labels = (
            context
            if isinstance(context, Tensor)
            else torch.full((len(u),), int(context), device=u.device)
        )
        return self.model(u, t, class_labels=labels).sample


def from_diffusers(
    model: Any, *, scheduler: Any, event_shape: Sequence[int] | None = None, **options: Any
) -> Denoiser:
    """A U-Net with the scheduler that it was trained with, as a `Denoiser`; `options` are its
    `energy`, `sigma`, `bounded` and `name`.

    The event is (channels, height, width) as the model's configuration states it, or `event_shape`.
    A model of classes, or one that attends to a text, takes a context: `.given(label)`, or
    `.given(embeddings)` of shape (tokens, width).

    Raises ValueError for a scheduler that states no known prediction or schedule, or a model that
    does not state its size.
    """
    config, stated = dict(model.config), dict(scheduler.config)
    if event_shape is None:
        size = config.get("sample_size")
        if size is None:
            raise ValueError(
                "this model does not state the size of its images: give event_shape=(channels, "
                "height, width)"
            )
        event_shape = (config["in_channels"], *((size, size) if isinstance(size, int) else size))
    predicts, schedule = _read(scheduler, stated)
    conditional = (
        config.get("num_class_embeds") is not None or config.get("cross_attention_dim") is not None
    )
    return Denoiser(
        UNet(model),
        event_shape,
        schedule=schedule,
        predicts=predicts,
        conditional=conditional,
        **options,
    )


def _read(scheduler: Any, stated: dict[str, Any]) -> tuple[str, NoiseSchedule]:
    """The prediction and the schedule that a scheduler states."""
    kind = stated.get("prediction_type")
    if kind in PREDICTS and "sigma_data" not in stated:
        table = torch.as_tensor(scheduler.alphas_cumprod)
        table = table[table > 0]  # 0 is pure noise, at infinite σ
        return PREDICTS[kind], NoiseSchedule.discrete(table)
    if kind is None and "shift" in stated:
        flow, steps = NoiseSchedule.flow(), stated["num_train_timesteps"]
        return "velocity", replace(flow, time=lambda sigma: steps * flow.time(sigma))
    raise ValueError(
        f"{type(scheduler).__name__} states the prediction {kind!r}; supported are "
        f"{', '.join(map(repr, PREDICTS))} with a table of alphas_cumprod, and flow matching; wrap "
        "the model by hand: Denoiser(lambda u, t: model(u, t).sample, event_shape, "
        "schedule=NoiseSchedule..., predicts=...)"
    )
