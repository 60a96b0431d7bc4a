"""Train `digits.loops`, an autoregressive density of the digits 0, 6, 8 and 9, by maximum likelihood. Under
half a minute."""

from __future__ import annotations

import math

from digits import LOOPS, SIGMA, epochs, fast, fit, images, log_likelihood, publish, setup

import poe
from experts import MixtureMADE
from poe.losses import MaximumLikelihood


def train(digits: tuple[int, ...], *, count: int, decay: float, dropout: float) -> MixtureMADE:
    """A MixtureMADE of these digits. A conditional is never narrower than the dequantisation noise."""
    x, _ = images("experts", digits)
    expert = MixtureMADE((8, 8), components=5, hidden=128, min_scale=SIGMA, dropout=dropout)
    loss = MaximumLikelihood()
    expert.train()
    steps = count * math.ceil(len(x) / 64)
    fit(expert, lambda batch: loss(expert, batch), epochs(x, count), steps=steps, rate=3e-3, decay=decay)
    return expert.eval()


def main() -> None:
    setup()
    expert: poe.Density = train(LOOPS, count=2 if fast() else 120, decay=0.1, dropout=0.3)
    publish(
        expert,
        "digits.loops",
        kind="autoregressive density (mixture-conditional MADE)",
        digits=list(LOOPS),
        test_log_likelihood=log_likelihood(expert, LOOPS),
        test_log_likelihood_of="mean log p(x) over the test images of these digits, 5 noises each, nats",
        trained_by="examples/train_loops.py",
    )


if __name__ == "__main__":
    main()
