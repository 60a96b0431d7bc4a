"""Train a deep Boltzmann machine, 784-500-1000, on Fashion-MNIST, and draw clothes. About a quarter
of an hour; with --fast, seconds.

The pictures are those of Debian's package dataset-fashion-mnist, 28x28 pixels, each 1 where its
grey level is .3 or more. The layers are learned one on top of the other first, then all together.
The pictures are the pixels' probabilities given the hidden units, at the ends of chains that start
at independent pixels, and of the chains of the training, which start at data. What is printed: the
variational bound of the log-likelihood of test pictures, by the log Z that annealed importance
sampling finds, with its error. That log Z is too small, and the bound too high, where the particles
miss modes, which their spread does not show. So another log Z is printed beside it, from annealing
back from the chains of the training: one that is too large, as far as these are draws of the
machine."""

from __future__ import annotations

import argparse
import gzip
from pathlib import Path

import torch
from digits import fast, setup
from torch import Tensor

import poe
from experts import DBM, Bernoulli
from experts.pretraining import MeanFieldLikelihood, pretrain
from poe.plotting.figures import rows
from poe.training import PersistentContrastiveDivergence

FOLDER = Path("/usr/share/datasets/fashion-mnist")
OUT = Path(__file__).resolve().parent.parent / "out"


def pictures(name: str) -> Tensor:  # -> (n, 784)
    """The bits of "train" or "t10k"; the file begins with 16 bytes of sizes."""
    content = gzip.decompress((FOLDER / f"{name}-images-idx3-ubyte.gz").read_bytes())
    levels = torch.frombuffer(bytearray(content[16:]), dtype=torch.uint8).reshape(-1, 784)
    return (levels >= 0.3 * 255).float()


def learn(machine: DBM, data: Tensor, epochs: int, rate: float = 0.005, batch: int = 100) -> Tensor:
    """All layers together, by the gradient of the variational bound; where the chains are in the
    end, (100, units)."""
    chains = PersistentContrastiveDivergence(chains=100, k=5)
    loss = MeanFieldLikelihood(chains)
    optimiser = torch.optim.SGD(machine.parameters(), rate, momentum=0.5, weight_decay=2e-4)
    steps = epochs * -(-len(data) // batch)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: 1 - step / steps)
    for epoch in range(epochs):
        for chosen in torch.randperm(len(data)).split(batch):
            value = loss(machine, data[chosen])
            optimiser.zero_grad()
            value.backward()
            optimiser.step()
            schedule.step()
        print(
            f"epoch {epoch + 1} of {epochs}: F(data) - E(chains) {value.item():.2f} nats",
            flush=True,
        )
    assert chains.points is not None
    return chains.points


def draw(machine: DBM, rates: Tensor) -> Tensor:  # (784) -> (64, units)
    """The ends of 64 chains of Gibbs sweeps from independent pixels."""
    v = rates.expand(64, -1).bernoulli()
    init = torch.cat([v, *(mean.bernoulli() for mean in machine.mean_field(v))], 1)
    return poe.sample(
        machine, 64, method="chains", kernel=poe.Gibbs(sweeps=20), init=init, seed=0
    ).x


def shown(machine: DBM, x: Tensor) -> Tensor:  # (n, units) -> (n, 28, 28)
    """Probabilities of the pixels given the hidden units."""
    return machine.site_logits(x, torch.arange(784)).sigmoid().reshape(-1, 28, 28)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--fast", action="store_true", help="a small machine and few pictures: shows that it runs"
    )
    small = parser.parse_args().fast or fast()
    if not FOLDER.exists():
        print(
            f"skipped: {FOLDER} is not there; on Debian, apt-get install dataset-fashion-mnist "
            "brings it"
        )
        return
    setup()
    data, test = pictures("train"), pictures("t10k")
    if small:
        data, test = data[:1000], test[:100]
    rates = data.mean(0).clamp(0.001, 0.999)
    machine = pretrain(data, [20, 10] if small else [500, 1000], epochs=1 if small else 3)
    chains = learn(machine, data, epochs=1 if small else 8)
    machine.requires_grad_(False)

    OUT.mkdir(exist_ok=True)
    blocks = {
        "Fashion-MNIST": data[:64].reshape(-1, 28, 28),
        "drawn, from independent pixels": shown(machine, draw(machine, rates)),
        "drawn by the chains of the training": shown(machine, chains[:64]),
    }
    rows(blocks, OUT / "clothes.png")
    print(f"pictures: {OUT / 'clothes.png'}")

    log_z = poe.log_z(machine, method="ais", draws=128, seed=0)
    base = Bernoulli(logits=torch.cat([rates.logit(), *machine.biases[1:]]))
    _, upper = poe.bracket(machine, chains, proposal=base, draws=32, seed=0)
    bound = machine.lower_bound(test, log_z)
    error = (bound.double().var() / len(bound)).sqrt().item()
    print(f"log Z by annealed importance sampling {log_z}; by annealing back at most {upper}")
    print(
        f"variational bound of log p(v) over {len(bound)} test pictures, in nats: "
        f"{bound.mean().item():.2f}"
    )
    print(
        f"standard errors {log_z.standard_error:.2f} by log Z and {error:.2f} by pictures; by the "
        "other log Z the bound is "
        f"{bound.mean().item() + log_z.value - upper.value:.2f}"
    )


if __name__ == "__main__":
    main()
