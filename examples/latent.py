"""Two generators as experts: a variational autoencoder & a concept, and an adversarial generator
with and without its discriminator.

The autoencoder (`digits.vae`) knows all ten digits, and `digits.loops` those with a loop: 0, 6, 8
and 9. With power one half their product is what both agree on; with power one it is sharper, and
favours the digits that vary least.

The generator of `digits.gan` draws by itself from its prior; its energy includes the discriminator.
The quality of pictures is judged by `digits.judge`, a classifier trained on other images: a picture
is clear where it gives one digit 90 % or more.
"""

from __future__ import annotations

import os

import torch
from torch import Tensor

import poe

FAST = os.environ.get("POE_FAST") == "1"
DRAWS, PICTURES = (50, 500) if FAST else (200, 4000)


def clear(judge: poe.Energy, x: Tensor) -> str:  # (n, 8, 8)
    """The share of clear pictures with its standard error, and the entropy of the digits."""
    with torch.no_grad():
        p = judge.logits(x).softmax(-1)  # type: ignore[operator]
    share = (p.amax(-1) >= 0.9).float().mean().item()
    digits = p.mean(0)
    entropy = -(digits * digits.log()).sum().item()
    return (
        f"{100 * share:.1f} ± {100 * (share * (1 - share) / len(x)) ** 0.5:.1f} % clear, "
        f"{entropy:.2f} nats of digits (2.30 at most)"
    )


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    judge = poe.load("digits.judge")

    vae, loops = poe.load("digits.vae"), poe.load("digits.loops")
    pictures = {"vae": vae.sample(1000), "loops": loops.sample(1000)}
    for target in [(vae & loops) ** 0.5, vae & loops][: 1 if FAST else 2]:
        draws = poe.sample(target, DRAWS, seed=0, method="annealed")
        print(draws.report())
        pictures[str(target)] = draws.x
    for name, x in pictures.items():
        has = torch.isin(judge.predict(x), torch.tensor([0, 6, 8, 9])).float().mean().item()
        print(f"{100 * has:5.1f} % have a loop  {name}")

    gan = poe.load("digits.gan")
    draws = poe.sample(gan, PICTURES, seed=0)
    print(draws.report())
    print(f"without its discriminator  {clear(judge, gan.decode(gan.prior.sample(PICTURES)))}")
    print(f"with it                    {clear(judge, gan.decode(draws.x))}")


if __name__ == "__main__":
    main()
