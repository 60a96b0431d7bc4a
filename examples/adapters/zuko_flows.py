"""A flow of zuko, conditional on an observation, times a prior."""

import torch
import zuko

import poe
from experts import Normal

torch.manual_seed(0)
flow = zuko.flows.NSF(2, 1, transforms=2, hidden_features=(32,))  # p(x | c), here untrained
posterior = poe.as_energy(flow, context_shape=(1,)).given([0.5])
draws = poe.sample(posterior & Normal(torch.ones(2), torch.ones(2)), 500, seed=0)
print(draws.report())
