from __future__ import annotations

import torch

from poe.kernels import Langevin
from poe.mcmc.shard import Shard
from tests.poe.targets import Gauss


def test_blocks_of_steps_are_thinned_as_single_ones_are() -> None:
    shard = Shard(Gauss(1.0), torch.Generator(), draws=8, thin=3)
    shard.start(Langevin(0.3), Langevin(0.3).init(Gauss(1.0), torch.zeros(2, 2)))
    at = 0
    for block in (10, 1, 2, 10, 1):
        numbers = torch.arange(
            at + 1.0, at + block + 1
        )  # the positions and energies are the numbers of the steps
        at += block
        shard.add(
            shard.state,
            numbers[:, None, None].expand(-1, 2, 2),
            numbers[:, None].expand(-1, 2),
            torch.ones(4),
        )
    kept = shard.saved()
    assert kept.x[:, 1, 1].tolist() == kept.energy[:, 0].tolist() == [3, 6, 9, 12, 15, 18, 21, 24]
    assert kept.sums.tolist() == [5.0] * 4
