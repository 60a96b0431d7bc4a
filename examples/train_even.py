"""Train `digits.even`, an nflows flow of the digits 0, 2, 4, 6 and 8, by maximum likelihood. About
a minute.

Five hundred images are few for a flow, which then fits them too closely. So half of each batch are
draws of a mixture of Gaussians with full covariances that was fitted to the same images.
"""

from __future__ import annotations

import math

import torch
from digits import (
    EVEN,
    epochs,
    fast,
    fit,
    images,
    log_likelihood,
    mixture_of_gaussians,
    publish,
    repeated,
    setup,
)

import poe
from experts import Flow
from experts.neural import GaussianBase
from poe.training import MaximumLikelihood


def teacher(x: torch.Tensor, components: int, draws: int) -> torch.Tensor:
    # (n, 8, 8) -> (draws, 8, 8)
    """Draws of a mixture of Gaussians fitted to the images x."""
    base = GaussianBase(64, components)
    base.set(**mixture_of_gaussians(repeated(x, 4), components))
    return base.sample(draws).reshape(-1, 8, 8)


def main() -> None:
    setup()
    count = 2 if fast() else 150
    x, _ = images("experts", EVEN)
    pool = teacher(x, components=8, draws=20_000)
    expert: Flow = poe.create(
        "flow", kind="realnvp", event_shape=(8, 8), layers=6, hidden=96, dropout=0.1
    )
    expert.flow._transform._transforms[0].standardise(repeated(x, 20).flatten(1))
    likelihood = MaximumLikelihood()

    def loss(batch: torch.Tensor) -> torch.Tensor:
        drawn = pool[torch.randint(len(pool), (len(batch),))]
        return likelihood(expert, torch.cat([batch, drawn]))

    with expert.training_mode():
        fit(
            expert,
            loss,
            epochs(x, count),
            steps=count * math.ceil(len(x) / 64),
            rate=2e-3,
            decay=0.1,
        )
    publish(
        expert,
        "digits.even",
        kind="normalizing flow (nflows, affine couplings and learned linear mixing)",
        digits=list(EVEN),
        test_log_likelihood=log_likelihood(expert, EVEN),
        test_log_likelihood_of=(
            "mean log p(x) over the test images of these digits, 5 noises each, nats"
        ),
        trained_by="examples/train_even.py",
    )


if __name__ == "__main__":
    main()
