"""A conditional flow of nflows at two observations, and the prior that both posteriors contain."""

import torch
from nflows.distributions import StandardNormal
from nflows.flows import Flow
from nflows.transforms import MaskedAffineAutoregressiveTransform

import poe
from experts import Normal

torch.manual_seed(0)
flow = Flow(MaskedAffineAutoregressiveTransform(2, 16, context_features=1), StandardNormal([2]))  # here untrained
posterior = poe.as_energy(flow, context_shape=(1,))
parts = [posterior.given(torch.tensor([seen])) for seen in (-0.3, 0.8)]
target = poe.combine(parts, prior=Normal(torch.zeros(2), 3 * torch.ones(2)))
print(poe.sample(target & Normal(torch.zeros(2), torch.ones(2)), 500, seed=0).report())
