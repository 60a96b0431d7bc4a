"""Two nflows checkpoints of your own, from state_dicts to draws of their product: the three imports
and the lines of `compose`.

    p(x) ∝ p_left(x) · p_right(x)

The rest of this script makes two checkpoints in place of yours.
"""

from __future__ import annotations

import os
from pathlib import Path

import torch
from nflows.flows import SimpleRealNVP

import poe

OUT = Path("out")


def compose() -> None:
    flows = [SimpleRealNVP(2, 16, 4, 1) for _ in range(2)]  # as you built them
    for flow, path in zip(flows, ["out/left.pt", "out/right.pt"], strict=True):
        flow.load_state_dict(torch.load(path))
    left, right = map(poe.as_energy, flows)
    draws = poe.sample(left & right, 1000, seed=0)
    print(draws.report())


def train(path: Path, centre: float, steps: int) -> None:
    """A flow fitted to a crescent around (centre, 0), saved as a state_dict."""
    flow = SimpleRealNVP(2, 16, num_layers=4, num_blocks_per_layer=1)
    optimizer = torch.optim.Adam(flow.parameters(), 5e-3)
    for _ in range(steps):
        angle = 0.8 * torch.randn(256)
        x = torch.stack([centre + angle.cos(), 1.5 * angle.sin()], -1) + 0.3 * torch.randn(256, 2)
        loss = -flow.log_prob(x).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    torch.save(flow.state_dict(), path)


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    OUT.mkdir(exist_ok=True)
    for name, centre in (("left", -1.0), ("right", 0.0)):
        train(OUT / f"{name}.pt", centre, 50 if os.environ.get("POE_FAST") else 500)
    compose()


if __name__ == "__main__":
    main()
