"""Which x are unlike what an expert was trained on, without log Z."""

from __future__ import annotations

import torch
from torch import Tensor

from poe.algebra.energy import Energy
from poe.algebra.frozen import frozen


def anomaly_score(energy: Energy, x: Tensor, background: Energy) -> Tensor:
    # x (*batch, *event) -> (*batch)
    """The log-likelihood ratio of a background to `energy`, which models normal points,
    E(x) - E_background(x), in nats up to a constant: the higher, the more unusual x is. It is the
    energy of `energy / background`.

    What makes every x likely or unlikely alike (few strokes, plain surfaces, short texts) counts in
    both experts and cancels, which the likelihood of one expert alone does not. Unknown constants
    log Z do not change the order of scores. A background may be the same model trained on
    everything or on noised data, or a cruder expert such as independent base rates.

    Scores are +inf where x lies outside the support of `energy`, and -inf where only the
    background excludes it; NaN where an expert fails.

    Raises TypeError where a part is no energy, ValueError where event shapes differ.
    Reference: Ren, Liu, Fertig, Snoek, Poplin, DePristo, Dillon and Lakshminarayanan 2019, NeurIPS
    (likelihood ratios); Bishop 1994, IEE Proc. Vision 141(4) (novelty by density).

    >>> import experts
    >>> normal, background = experts.Normal(0.0, 1.0), experts.Normal(0.0, 3.0)
    >>> anomaly_score(normal, torch.tensor([0.0, 3.0]), background)
    tensor([-1.0986,  2.9014])
    """
    for role, part in (("normal", energy), ("background", background)):
        if not isinstance(part, Energy):
            raise TypeError(
                f"the {role} expert is an energy, not a {type(part).__name__}: "
                "poe.as_energy(model) wraps a model"
            )
    if energy.event_shape != background.event_shape:
        raise ValueError(
            f"{energy} has events of shape {tuple(energy.event_shape)} and {background} of shape "
            f"{tuple(background.event_shape)}"
        )
    if x.shape[max(0, x.ndim - len(energy.event_shape)) :] != energy.event_shape:
        raise ValueError(
            f"points of shape {tuple(x.shape)} do not end in the event shape "
            f"{tuple(energy.event_shape)} of {energy}"
        )
    with torch.no_grad(), frozen(energy), frozen(background):
        ours, theirs = energy(x), background(x)
    return torch.where(ours == torch.inf, ours, ours - theirs)
