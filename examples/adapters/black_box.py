"""A likelihood that only numpy can evaluate, without a gradient, times a prior."""

import numpy as np
import torch

import poe
from experts import Normal

data = np.random.default_rng(0).poisson(4.0, size=20)
likelihood = poe.create(
    "black-box", log_prob=lambda x: (data * x - np.exp(x)).sum(-1), event_shape=(1,), bounded=True
)
draws = poe.sample(
    likelihood & Normal(torch.zeros(1), torch.ones(1)), 1000, kernel=poe.RandomWalk(), seed=0
)
print(draws.report())
