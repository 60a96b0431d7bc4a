"""Train `digits.judge`, the classifier that judges draws; on images that no expert was trained on.
About half
a minute."""

from __future__ import annotations

import torch
from digits import SIGMA, dequantise, fast, images, publish, setup
from torch.nn import functional as F

import poe


def main() -> None:
    setup()
    x, y = images("judge")
    judge = poe.create("classifier", labels=list(range(10)), event_shape=(8, 8), dropout=0.4)
    network = judge.network.train()
    count = 2 if fast() else 250
    steps = count * -(-len(x) // 64)
    optimiser = torch.optim.AdamW(network.parameters(), 3e-3, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 3e-3, total_steps=steps + 1)
    for _ in range(count):
        for index in torch.randperm(len(x)).split(64):
            noise = SIGMA * (
                0.5 + torch.rand(len(index), 1, 1)
            )  # from half to one and a half times that of the space
            shifted = shift(x[index]) + noise * torch.randn(len(index), 8, 8)
            loss = F.cross_entropy(network(shifted), y[index], label_smoothing=0.02)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
    network.eval()
    share = {split: accuracy(judge, split) for split in ("test", "experts")}
    publish(
        judge,
        "digits.judge",
        kind="classifier (convolutional), to judge draws and nothing else",
        digits=list(range(10)),
        test_accuracy=share["test"],
        accuracy_on_experts_images=share["experts"],
        trained_by="examples/train_judge.py",
    )


def shift(x: torch.Tensor) -> torch.Tensor:  # (n, 8, 8) -> (n, 8, 8)
    """Half of the images moved by at most one pixel."""
    moved = F.pad(x, (1, 1, 1, 1), value=-1.0).unfold(1, 8, 1).unfold(2, 8, 1)  # (n, 3, 3, 8, 8)
    rows, columns = torch.randint(3, (2, len(x)))
    moved = moved[torch.arange(len(x)), rows, columns]
    return torch.where(torch.rand(len(x), 1, 1) < 0.5, moved, x)


def accuracy(judge: poe.Energy, split: str) -> float:
    x, y = images(split)
    x = dequantise(x, torch.Generator().manual_seed(1))
    return (judge.predict(x) == y).float().mean().item()  # type: ignore[operator]


if __name__ == "__main__":
    main()
