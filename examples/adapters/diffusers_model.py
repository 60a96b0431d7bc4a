"""A U-Net of diffusers, trained here for seconds on bars, and the half of a picture that was seen:
draws down the levels of noise."""

import os

import torch
from diffusers import DDPMScheduler, UNet2DModel

import poe
from experts import Normal

torch.manual_seed(0)
blocks = {
    "down_block_types": ("DownBlock2D",) * 2,
    "up_block_types": ("UpBlock2D",) * 2,
    "block_out_channels": (16, 32),
}
unet = UNet2DModel(8, 1, 1, layers_per_block=1, norm_num_groups=8, **blocks)
scheduler, optimiser = DDPMScheduler(), torch.optim.Adam(unet.parameters(), 2e-3)
for _ in range(30 if os.environ.get("POE_FAST") else 600):
    bars = -torch.ones(64, 1, 8, 8)
    bars[torch.arange(64), 0, torch.randint(8, (64,))] = 1  # one bright row of eight
    t, noise = torch.randint(1000, (64,)), torch.randn(64, 1, 8, 8)
    loss = (unet(scheduler.add_noise(bars, noise, t), t).sample - noise).square().mean()
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()

pictures = poe.as_energy(unet.eval().requires_grad_(False), scheduler=scheduler, name="pictures")
lower = poe.on(
    Normal(-torch.ones(32), 0.3 * torch.ones(32)), range(32, 64), (1, 8, 8)
)  # the lower half was seen: dark
target, sigma, x = pictures & lower, 20.0, 20 * torch.randn(16, 1, 8, 8)
while sigma > 0.1:
    sigma *= 0.8
    spread = torch.cat([torch.full((32,), sigma), torch.full((32,), (sigma**-2 + 0.3**-2) ** -0.5)])
    kernel = poe.LineIntegral(0.2, scale=spread)
    state = kernel.init(target.at(sigma), x)
    for _ in range(2 if os.environ.get("POE_FAST") else 20):
        state, info = kernel.step(target.at(sigma), state, kernel.noise(state))
    x = state.x
print(f"acceptance at the last level {info.acceptance.mean():.2f}")
print("brightest row of each picture:", x[:, 0].mean(-1).argmax(-1).tolist())
