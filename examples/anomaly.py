"""Which pictures are strange? The likelihood ratio of two experts, no log Z needed:
`poe.anomaly_score(normal, x, background)`.

The normal expert is a restricted Boltzmann machine of binary 8x8 digits (`digits.rbm`); the
background has only the frequency of each pixel. Strange are digits whose pixels were scrambled;
and, for a machine that learned only the zeros, the other digits. AUROC is the probability
that a strange picture scores higher than a normal one. All pictures that are scored were held out.
"""

from __future__ import annotations

import os

import torch
from sklearn.datasets import load_digits
from sklearn.metrics import roc_auc_score
from torch import Tensor

import poe
from experts import RBM, Bernoulli
from poe.training import PersistentContrastiveDivergence

HELD = 360
STEPS = 100 if os.environ.get("POE_FAST") else 1500


def base_rates(x: Tensor) -> Bernoulli:  # (n, 8, 8)
    """Independent pixels, half a count added to each value."""
    rates = (x.sum(0) + 0.5) / (len(x) + 1)
    return Bernoulli(logits=rates.logit(), name="base_rates")


def learned(x: Tensor) -> RBM:  # (n, 8, 8)
    """A machine of ten hidden units, by persistent contrastive divergence."""
    generator = torch.Generator().manual_seed(0)
    machine = RBM.untrained((8, 8), 10, data=x, generator=generator)
    loss, optimiser = (
        PersistentContrastiveDivergence(100, generator=generator),
        torch.optim.Adam(machine.parameters(), 1e-2),
    )
    for _ in range(STEPS):
        optimiser.zero_grad()
        loss(machine, x[torch.randint(len(x), (64,), generator=generator)]).backward()
        optimiser.step()
    return machine.requires_grad_(False)


def auroc(normal: Tensor, strange: Tensor) -> float:
    truth = torch.cat([torch.zeros(len(normal)), torch.ones(len(strange))])
    return float(roc_auc_score(truth, torch.cat([normal, strange])))


def main() -> None:
    torch.set_num_threads(1)
    table = load_digits()
    x, label = (torch.tensor(table.images) >= 8).float(), torch.tensor(table.target)
    seen, held, of_seen, of_held = x[:-HELD], x[-HELD:], label[:-HELD], label[-HELD:]

    scrambled = torch.stack([row[torch.randperm(64)] for row in held.flatten(1)]).reshape(
        held.shape
    )
    machine, rates = poe.load("digits.rbm"), base_rates(seen)
    cases = {"digits against scrambled pixels": (machine, rates, held, scrambled)}
    zeros = learned(seen[of_seen == 0])
    cases["zeros against ones"] = (zeros, machine, held[of_held == 0], held[of_held == 1])
    cases["zeros against all other digits"] = (
        zeros,
        machine,
        held[of_held == 0],
        held[of_held != 0],
    )
    for name, (normal, background, usual, strange) in cases.items():
        ratio = auroc(*(poe.anomaly_score(normal, part, background) for part in (usual, strange)))
        with torch.no_grad():
            alone = auroc(normal(usual), normal(strange))
        print(f"{name}: AUROC {ratio:.3f} by the ratio, {alone:.3f} by the energy alone")


if __name__ == "__main__":
    main()
