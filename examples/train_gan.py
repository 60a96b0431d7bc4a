"""Train `digits.gan`, a generator of all ten digits and its discriminator, adversarially. A few
minutes.

Generator and discriminator meet in the space of the zoo, with its noise in every pixel, so that
both distributions have densities. Then the generator is fixed, and the discriminator continues to
learn to distinguish its pictures from images until it no longer improves on held-out images: only
near its optimum is its logit the log of a density ratio, which corrects what the generator draws.
"""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from digits import SIGMA, dequantise, epochs, fast, images, publish, setup
from torch import Tensor
from torch.nn.functional import softplus
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import poe
from experts import GAN, Discriminator

LATENT, HIDDEN, JUDGE, AMPLITUDE = 16, (128, 128), (256, 128), 1.05
ROUNDS, MORE, HELD = (
    500,
    150,
    8,
)  # epochs of the contest, and of the discriminator alone; one image in HELD is not shown to it


def loss_of(critic: Discriminator, real: Tensor, drawn: Tensor) -> Tensor:
    # (n, 8, 8), (m, 8, 8) -> ()
    """Logistic loss, in nats for each pair of pictures; 2 log 2 where the two are
    indistinguishable."""
    return softplus(-critic.logit(real)).mean() + softplus(critic.logit(drawn)).mean()


def contest(gan: GAN, x: Tensor, rounds: int) -> None:
    """Alternate steps of both: the discriminator by the logistic loss, the generator by its
    non-saturating one, at falling rates. The decoder that stays is an average over its last
    steps."""
    critic, decoder = gan.discriminator, gan.decoder
    averaged = AveragedModel(decoder, multi_avg_fn=get_ema_multi_avg_fn(0.998))
    players = [
        torch.optim.Adam(part.parameters(), 1e-3, betas=(0.5, 0.99))
        for part in (decoder.network, critic)
    ]
    decays = [torch.optim.lr_scheduler.LinearLR(player, 1.0, 0.05, rounds) for player in players]
    for _ in range(rounds):
        for _, batch in epochs(x, 1):
            for player, optimiser in enumerate(players):
                optimiser.zero_grad()
                drawn = gan.generator(gan.prior.sample(len(batch)))
                loss = (
                    loss_of(critic, batch, drawn.detach())
                    if player
                    else softplus(-critic.logit(drawn)).mean()
                )
                loss.backward()
                optimiser.step()
            averaged.update_parameters(decoder)
        for decay in decays:
            decay.step()
    decoder.load_state_dict(averaged.module.state_dict())


def calibrate(gan: GAN, x: Tensor, count: int) -> float:
    """The discriminator against the fixed generator, of all epochs the one with the least loss on
    held-out images; returns that."""
    critic = gan.discriminator
    held, learned = x[::HELD], x[torch.arange(len(x)) % HELD != 0]
    optimiser = torch.optim.AdamW(critic.parameters(), 1e-3, weight_decay=0.1)
    shown = dequantise(held.repeat(10, 1, 1)), gan.decode(gan.prior.sample(10 * len(held)))
    best, kept = math.inf, copy.deepcopy(critic.state_dict())
    for _ in range(count):
        with critic.training_mode():
            for _, batch in epochs(learned, 1):
                optimiser.zero_grad()
                loss_of(critic, batch, gan.decode(gan.prior.sample(len(batch)))).backward()
                optimiser.step()
        with torch.no_grad():
            loss = loss_of(critic, *shown).item()
        if loss < best:
            best, kept = loss, copy.deepcopy(critic.state_dict())
    critic.load_state_dict(kept)
    return best


def judged(x: Tensor) -> tuple[float, float]:  # (n, 8, 8)
    """The share of pictures of which `digits.judge` is sure to 90 %, and the entropy of the digits
    in nats."""
    with torch.no_grad():
        p = poe.load("digits.judge").logits(x).softmax(-1)  # type: ignore[operator]
    digits = p.mean(0)
    return (p.amax(-1) >= 0.9).float().mean().item(), -(digits * digits.log()).sum().item()


def main() -> None:
    setup()
    x, _ = images("experts")
    arguments: dict[str, Any] = {
        "latent": LATENT,
        "hidden": HIDDEN,
        "judge": JUDGE,
        "amplitude": AMPLITUDE,
    }
    gan: GAN = poe.create("gan", picture_shape=(8, 8), scale=SIGMA, dropout=0.3, **arguments)
    with gan.training_mode():
        contest(gan, x, 2 if fast() else ROUNDS)
    loss = calibrate(gan, x, 2 if fast() else MORE)
    gan.requires_grad_(False)
    count = 200 if fast() else 4000
    alone = judged(gan.decode(gan.prior.sample(count, generator=torch.Generator().manual_seed(0))))
    draws = poe.sample(gan, count, seed=0)
    both = judged(gan.decode(draws.x))
    log_z = poe.log_z(gan, seed=0)
    print(draws.report())
    publish(
        gan,
        "digits.gan",
        kind=(
            f"generative adversarial network, energy over u = ({LATENT} latent numbers, 64 of "
            "noise)"
        ),
        digits=list(range(10)),
        log_z=log_z.value,
        log_z_standard_error=log_z.standard_error,
        log_z_by="importance sampling from the prior; 0 where the discriminator is optimal",
        held_out_loss=loss,
        held_out_loss_of=(
            "logistic loss of the discriminator, nats a pair; 1.386 where nothing is told apart"
        ),
        clear=both[0],
        clear_without_discriminator=alone[0],
        clear_of=f"share of {count} draws of which digits.judge is sure to 90 %",
        entropy=both[1],
        entropy_without_discriminator=alone[1],
        entropy_of="digits as judged, nats, log 10 = 2.303 at most",
        clear_of_test_images=judged(
            dequantise(images("test")[0], torch.Generator().manual_seed(1))
        )[0],
        trained_by="examples/train_gan.py",
    )


if __name__ == "__main__":
    main()
