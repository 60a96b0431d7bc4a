"""The lower half of a digit, drawn given its upper half: `expert @ poe.fill(x_known, mask)` is an
energy on the free pixels.

The expert is a restricted Boltzmann machine of binary 8x8 digits (`digits.rbm`). The number: how
much likelier the true lower half is under its completions than under the base rates of its pixels,
in nats a picture, by counting how often each pixel is on in the draws.
"""

from __future__ import annotations

import os
from pathlib import Path

import torch
from sklearn.datasets import load_digits

import poe

PICTURES, SHOWN = (4, 5) if os.environ.get("POE_FAST") else (40, 8)
DRAWS = 400
OUT = Path("out") / "inpaint.png"


def main() -> None:
    torch.set_num_threads(1)
    x = (torch.tensor(load_digits().images) >= 8).float()
    seen, held = x[:-360], x[-360:][:PICTURES]
    machine = poe.load("digits.rbm")
    mask = torch.zeros(8, 8, dtype=torch.bool)
    mask[:4] = True  # known
    rates = (seen.sum(0) + 0.5) / (len(seen) + 1)
    rows, gained = [], []
    for k, truth in enumerate(held):
        draws = poe.sample(
            machine @ poe.fill(truth, mask), DRAWS, seed=k
        )  # (n, 32): the free pixels, in reading order
        completed = truth.repeat(len(draws), 1, 1)
        completed[:, ~mask] = draws.x
        found = (draws.x.sum(0) + 0.5) / (len(draws) + 1)
        own, usual = (
            torch.distributions.Bernoulli(p).log_prob(truth[~mask]).sum()
            for p in (found, rates[~mask])
        )
        gained.append(float(own - usual))
        known = torch.where(mask, truth, 0.5)
        rows.append(
            torch.cat(
                [
                    truth[None],
                    known[None],
                    completed[:: DRAWS // SHOWN][:SHOWN],
                    completed.mean(0)[None],
                ]
            )
        )
    gain = torch.tensor(gained)
    error = float(gain.std()) / len(gain) ** 0.5
    print(
        f"true lower halves: {float(gain.mean()):.2f} ± {error:.2f} nats likelier under the "
        "completions than under base rates"
    )
    print(draws.report())

    from matplotlib import pyplot as plt  # an extra

    shown = rows[:8]
    figure, axes = plt.subplots(
        len(shown), len(shown[0]), figsize=(0.7 * len(shown[0]), 0.75 * len(shown)), squeeze=False
    )
    for line, pictures in zip(axes, shown, strict=True):
        for axis, image in zip(line, pictures, strict=True):
            axis.imshow(image, cmap="gray", vmin=0, vmax=1)
            axis.axis("off")
    for axis, title in (
        (axes[0][0], "truth"),
        (axes[0][1], "known"),
        (axes[0][2], "draws"),
        (axes[0][-1], "mean"),
    ):
        axis.set_title(title, fontsize=8)
    OUT.parent.mkdir(exist_ok=True)
    figure.savefig(OUT, dpi=150, bbox_inches="tight")
    print(f"{OUT} written")


if __name__ == "__main__":
    main()
