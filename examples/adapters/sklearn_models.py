"""Measured flowers as a mixture of Gaussians, times a classifier: flowers that a forest takes for
one species."""

from sklearn.datasets import load_iris
from sklearn.ensemble import RandomForestClassifier
from sklearn.mixture import GaussianMixture

import poe

flowers = load_iris()
density = poe.as_energy(GaussianMixture(3, random_state=0).fit(flowers.data))
species = poe.as_energy(RandomForestClassifier(random_state=0).fit(flowers.data, flowers.target))
draws = poe.sample((density & species).given(2), 500, seed=0)
print(
    draws.report(),
    "\nmean",
    draws.x.mean(0),
    "of virginica",
    flowers.data[flowers.target == 2].mean(0),
)
