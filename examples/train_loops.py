"""Train `digits.loops`, an autoregressive density of the digits 0, 6, 8 and 9, by maximum
likelihood. Under a minute.

A masked network corrects the conditionals of a mixture with one Gaussian for each digit. A few
epochs are enough: with about six hundred images more would fit their noise, and an expert that is
to be divided by another one (`loops / high`) must not differ from it by accident where both have
learned the same digits."""

from __future__ import annotations

import math

from digits import (
    LOOPS,
    SIGMA,
    epochs,
    fast,
    fit,
    gaussians_by_digit,
    images,
    log_likelihood,
    publish,
    setup,
)

import poe
from experts import MixtureMADE
from poe.training import MaximumLikelihood


def main() -> None:
    setup()
    count = 2 if fast() else 20
    x, _ = images("experts", LOOPS)
    expert = MixtureMADE(
        (8, 8), components=len(LOOPS), hidden=64, min_scale=SIGMA, dropout=0.4, base=True
    )
    expert.fit_base(**gaussians_by_digit(LOOPS))
    loss = MaximumLikelihood()
    expert.train()
    steps = count * math.ceil(len(x) / 64)
    fit(
        expert,
        lambda batch: loss(expert, batch),
        epochs(x, count),
        steps=steps,
        rate=1e-3,
        decay=0.5,
    )
    density: poe.Density = expert.eval()
    publish(
        density,
        "digits.loops",
        kind="autoregressive density (mixture-conditional MADE on Gaussian conditionals)",
        digits=list(LOOPS),
        test_log_likelihood=log_likelihood(density, LOOPS),
        test_log_likelihood_of=(
            "mean log p(x) over the test images of these digits, 5 noises each (seed 1), nats"
        ),
        trained_by="examples/train_loops.py",
    )


if __name__ == "__main__":
    main()
