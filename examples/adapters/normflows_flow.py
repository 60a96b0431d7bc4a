"""A flow of normflows, as its users write them, and a ring: draws that both find likely."""

import normflows as nf
import torch

import poe

torch.manual_seed(0)
layers = [
    nf.flows.AutoregressiveRationalQuadraticSpline(2, 1, 32) for _ in range(2)
]  # here untrained
flow = nf.NormalizingFlow(nf.distributions.DiagGaussian(2), layers)
ring = poe.as_energy(lambda x: 8 * (x.norm(dim=-1) - 1) ** 2, event_shape=(2,), bounded=True)
draws = poe.sample(poe.as_energy(flow) & ring, 500, seed=0)
print(draws.report())
