"""Two experiments on the same parameters: the neural posterior of one times the neural likelihood
of the other, so that the prior, which the posterior contains, counts once."""

import torch
from sbi.inference import DirectPosterior
from sbi.neural_nets import likelihood_nn, posterior_nn
from sbi.utils import BoxUniform

import poe

torch.manual_seed(0)
prior = BoxUniform(-2 * torch.ones(2), 2 * torch.ones(2))
theta = prior.sample((2000,))
x, y = (
    theta + 0.5 * torch.randn(2000, 2),
    theta.sum(1, keepdim=True) + 0.3 * torch.randn(2000, 1),
)  # simulations of both
npe, nle = posterior_nn("nsf", num_transforms=2)(theta, x), likelihood_nn("mdn")(theta, y)
optimiser = torch.optim.Adam([*npe.parameters(), *nle.parameters()], 5e-3)
for _ in range(150):  # or NPE(prior).append_simulations(theta, x).train(), and NLE
    optimiser.zero_grad()
    (npe.loss(theta, condition=x).mean() + nle.loss(y, condition=theta).mean()).backward()
    optimiser.step()
posterior = poe.as_energy(DirectPosterior(npe, prior)).given([0.5, -0.2])
likelihood = poe.create("sbi-likelihood", estimator=nle, context=[0.6], support=prior.support)
print(poe.sample(posterior & likelihood, 500, seed=0).report())
