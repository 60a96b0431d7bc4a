"""Two distributions of torch, multiplied: a Gaussian measurement of a quantity with heavy tails."""

import torch

import poe

prior = poe.as_energy(torch.distributions.StudentT(torch.full((2,), 2.0)))
measured = poe.as_energy(torch.distributions.Normal(torch.tensor([1.0, 4.0]), 1.0))
draws = poe.sample(prior & measured, 1000, seed=0)
print(draws.report(), "\nmean", draws.x.mean(0))
