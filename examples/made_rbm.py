"""The same digits through two models: an autoregressive one & a Boltzmann machine, half of each.

    target = (made & rbm) ** 0.5

Sequential Monte Carlo follows the order of the autoregressive factor, twisted by the machine; it
gives draws and log Z, and with that the likelihood of held-out digits under the product.
"""

from __future__ import annotations

import os
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import Tensor

import poe
from poe.plotting import figures

OUT = Path("out") / "made_rbm.png"


def main() -> None:
    torch.set_num_threads(1)
    held = (torch.tensor(load_digits().images)[-360:] >= 8).float()
    made, rbm = poe.load("digits.made"), poe.load("digits.rbm")
    target = (made & rbm) ** 0.5
    draws = poe.sample(target, 100 if os.environ.get("POE_FAST") else 1000, seed=0)
    print(draws.report())
    pictures: dict[str, Tensor] = {
        "made": made.sample(16),
        "rbm": rbm.sample(16),
        "(made & rbm) ** 0.5": draws.x[:16],
    }
    with torch.no_grad():
        for name, energy, log_z in (
            ("made", made, made.log_z),
            ("rbm", rbm, rbm.log_z),
            ("product", target, draws.log_z),
        ):
            nats = -(energy(held).mean() + float(log_z))
            print(
                f"{name:<8} {float(nats):.2f} ± {log_z.standard_error:.2f} nats a held-out picture "
                "(± by log Z)"
            )
    OUT.parent.mkdir(exist_ok=True)
    figures.rows(pictures, OUT, width=16)
    print(f"{OUT} written")


if __name__ == "__main__":
    main()
