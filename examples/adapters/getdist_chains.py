"""A chain of GetDist on one parameter, and another survey's measurement of it: what they say
together."""

import getdist
import numpy as np

import poe
from experts import Normal

samples = np.random.default_rng(0).normal(67.4, 0.5, (500, 1))
chain = getdist.MCSamples(samples=samples, names=["H0"])
draws = poe.sample(poe.as_energy(chain, copies=1) & Normal([69.8], [1.7]), 1000, seed=0)
print(draws.report(), "\nmean", draws.x.mean().item(), "sd", draws.x.std().item())
