"""Noise-conditional energies: one network that knows the data at every level of noise, and
concepts.

| module | what it holds |
|------------|-----------------------------------------------------------------------------|
| `layers` | convolutional networks that denoise, guide and classify pictures |
| `network` | `ConceptNetwork`: these as one network, for all levels and concepts |
| `energy` | `NoiseConditional`: its energy at one level, with or without a concept |
| `guidance` | gradients and weights by which reverse diffusion draws compositions |
| `losses` | what the network is fitted by |

At noise σ the data are x = x₀ + σ ε, ε ~ N(0, 1) in each of n coordinates, and the energy stands
for their density p_σ(x | c) given a concept c, or none. Without one it is the squared distance to a
denoised point,

    E(x; σ) = ‖x - D(x, σ)‖² / 2σ² + (n/2) log 2πσ²,
    D = loc + spread · f((x - loc) / √(σ² + spread²), log σ),

f a network whose output is bounded, so that E is bounded below and grows as |x|² / 2σ²: proper at
every level. D is fitted to x₀ by least squares (`denoising`), which makes it E[x₀ | x], and by
Tweedie's formula

    ∇log p_σ(x) = (D - x) / σ²,
    -∇E(x) = (D - x) / σ² + Jᵀ(x - D) / σ²,     J = ∂D/∂x = Cov[x₀ | x] / σ².

The two agree where one x₀ explains x: J is then the projection on directions along the data, to
which x - D is orthogonal. So E is -log p_σ at the lowest level, the target, and above it reverse
diffusion follows the score (`scored`). An energy fitted so that its own gradient is the score
reaches as low a loss on noised data and draws worse: D leads back to the data from wherever drawing
errs, but that gradient leads to whatever D does not change. The density of a concept follows by
Bayes' rule from a classifier of noised data,

    E(x; σ, c) = E(x; σ) - log p(c | x; σ) + log p(c),

so that a concept lowers the energy by log 1/p(c) at most, however far x is from all data, and Z is
the same for all concepts. Two networks of concepts, each with errors of its own in D, would differ
by their errors where neither has seen data, and a product of powers magnifies that. The score of a
concept is learned as D is, by what it adds to it (`concept_denoising`):

    ∇log p_σ(x | c) = (D + Δ_c - x) / σ²,     D + Δ_c = E[x₀ | x, c],
    Δ_c = (1 - p(c | x; σ)) spread · h(features of f, log σ, c),

where spread · h stands for E[x₀ | x, c] - E[x₀ | x, not c], and a concept that x certainly has adds
nothing. A classifier may recognise all concepts and still have a poor gradient: of the squared
error of D that E[x₀ | x, c] saves, it saved a fifth on the zoo's pictures (`shapes`), and Δ_c four
fifths (tests/benchmarks/bench_guidance.py). Particles follow D + Δ_c and are weighed by
p(c | x; σ), whose errors on the way cancel. A product of k concepts costs one call of f, one of the
classifier, and k of h, which is small.

References: Vincent 2011, Neural Computation 23(7) (denoising score matching); Song & Ermon 2019,
NeurIPS (noise-conditional scores); Du et al. 2023, ICML (reduce, reuse, recycle: energies that
compose); Efron 2011, J. Am. Stat. Assoc. 106 (Tweedie's formula); Karras et al. 2022, NeurIPS
(scales of inputs and weights of levels); Dhariwal & Nichol 2021, NeurIPS (classifiers of noised
pictures).
"""

from experts.noise.energy import NoiseConditional
from experts.noise.losses import concept_denoising, concept_matching, denoising
from experts.noise.network import ConceptNetwork

__all__ = [
    "ConceptNetwork",
    "NoiseConditional",
    "concept_denoising",
    "concept_matching",
    "denoising",
]
