"""Train `digits.rbm`, a restricted Boltzmann machine of 8x8 binary digits, by persistent
contrastive divergence. About a minute.

A pixel is 1 where its level is 8 or more. The first 1,437 images are learned, the last 360 held out
and looked at once. With 20 hidden units log Z is exact, by a sum over their 2^20 states, and so are
the log-likelihoods, which contrastive divergence does not use.
"""

from __future__ import annotations

import torch
from digits import fast, publish, setup
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

from experts import RBM
from poe.training import PersistentContrastiveDivergence

LEARNED, HIDDEN, RATE = 1437, 20, 1e-2


def binary_images() -> tuple[Tensor, Tensor]:  # -> (1437, 8, 8), (360, 8, 8)
    """The images that are learned, and those held out."""
    from sklearn.datasets import load_digits  # needed for training only

    bits = (torch.tensor(load_digits().images) >= 8).float()
    return bits[:LEARNED], bits[LEARNED:]


def mean_log_likelihood(machine: RBM, x: Tensor) -> float:  # (n, 8, 8)
    """Mean log p(x) in nats, exact."""
    assert machine.log_z is not None
    with torch.no_grad():
        return -float(machine(x).double().mean()) - machine.log_z.value


def main() -> None:
    setup()
    steps = 20 if fast() else 8000
    x, held_out = binary_images()
    machine = RBM.untrained((8, 8), HIDDEN, data=x, scale=0.05)
    pcd = PersistentContrastiveDivergence(chains=500, k=5)
    optimiser = torch.optim.Adam(machine.parameters(), RATE)
    schedule = LambdaLR(optimiser, lambda step: 1 - step / steps)
    for _ in range(steps):
        loss = pcd(machine, x)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    publish(
        machine,
        "digits.rbm",
        kind="restricted Boltzmann machine, 64 x 20",
        space="bits: level >= 8 of scikit-learn load_digits, 8x8",
        split="the first 1,437 images learned, the last 360 held out",
        train_log_likelihood=mean_log_likelihood(machine, x),
        test_log_likelihood=mean_log_likelihood(machine, held_out),
        test_log_likelihood_of="mean log p(x) over the images, log Z exact, nats",
        trained_by="examples/train_rbm.py",
    )


if __name__ == "__main__":
    main()
