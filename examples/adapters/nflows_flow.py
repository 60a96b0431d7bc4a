"""A flow of nflows, conditional on an observation, times a measurement of the same two numbers."""

import torch
from nflows.distributions import StandardNormal
from nflows.flows import Flow
from nflows.transforms import MaskedAffineAutoregressiveTransform

import poe
from experts import Normal

torch.manual_seed(0)
flow = Flow(
    MaskedAffineAutoregressiveTransform(2, 16, context_features=1), StandardNormal([2])
)  # here untrained
posterior = poe.as_energy(flow, context_shape=(1,)).given(torch.tensor([0.8]))
draws = poe.sample(posterior & Normal(torch.ones(2), torch.ones(2)), 500, seed=0)
print(draws.report())
