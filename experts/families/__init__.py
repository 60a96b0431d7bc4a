"""Exponential families: log p(x) = Σ <η, T(x)> - A(η) + log h(x), in nats.

| expert | support | T(x) | η | in the family as long as |
|-------------|-------------|-------------------|--------------------------|---------------------------------|
| Normal | R^n | x, -x xᵀ/2 | Λμ, Λ = Σ⁻¹ | Λ is positive definite |
| Exponential | [0, ∞) | x | -rate | rate > 0 |
| Gamma | [0, ∞) | log x, x | concentration - 1, -rate | concentration, rate > 0 |
| Beta | [0, 1] | log x, log(1 - x) | a - 1, b - 1 | a, b > 0 |
| Dirichlet | simplex | log x | concentration - 1 | concentration > 0 |
| Bernoulli | {0, 1} | x | logit | always |
| Categorical | {0...K-1} | one-hot x | logits | some category remains |
| VonMises | [-π, π] | cos x, sin x | κ cos μ, κ sin μ | always |
| Poisson | {0, 1, ...} | x | log rate; h = 1/x! | the powers sum to 1 |

A product of powers of one family adds natural parameters, η = Σ wᵢηᵢ, and its log Z is A(η) - Σ
wᵢA(ηᵢ). One rule does that for all of them; where the sum leaves the natural domain the product has
infinite mass (`poe.algebra.closed_forms.Improper`). A closed form is a snapshot: it does not follow
parameters that are trained afterwards.

Coordinates of an event are independent but for a Normal with full covariance and for a Dirichlet.
Parameters are buffers; they are trained where the caller gives an `nn.Parameter` or asks for
`learnable=True`, and the training code must keep them inside their domain. Draws are made
in float64 from the generator, rounded to the expert's precision, and never rounded onto an end of
the support where the density may be infinite.
"""

from experts.families.base import ExponentialFamily, Natural
from experts.families.beta import Beta, Dirichlet
from experts.families.discrete import Bernoulli, Categorical, Poisson
from experts.families.gamma import Exponential, Gamma
from experts.families.normal import Normal
from experts.families.rules import merge
from experts.families.von_mises import VonMises

__all__ = [
    "Bernoulli",
    "Beta",
    "Categorical",
    "Dirichlet",
    "Exponential",
    "ExponentialFamily",
    "Gamma",
    "Natural",
    "Normal",
    "Poisson",
    "VonMises",
    "merge",
]
