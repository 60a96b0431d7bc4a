r"""Experts with latent variables: variational autoencoders, whose energy is a bound, and generators
with their discriminator.

Both draw pictures by the same map, `Generator`: with u = (z, ε) standard normal over R^(m + n),

    x = g(u) = mean(z) + scale ∘ ε,        p_g(x) = ∫ N(z; 0, 1) N(x; mean(z), diag(scale²)) dz,

mean a network (`Decoder`), scale one positive number a pixel. An energy on pictures becomes one on
u, `energy @ model.generator`, and

    model.prior & energy @ model.generator        has pictures g(u) of density p_g(x) exp(-E(x)) / Z

exactly, whatever the network: a constraint or a classifier on what a generator draws, without its
density.

| expert | on | energy in nats | draws |
|-----------------|----------|-------------------------------------------------------------|----------------------------------|
| `VAE` | pictures | -log 1/K Σₖ p(x, zₖ)/q(zₖ|x): bounds -log p_g(x) | exact, by the decoder |
| `GAN` | u | ½‖u‖² - logit D(g(u)) + const | from N(0, 1), weighed |
| `Discriminator` | pictures | -logit D(x): p_data / p_g where D is optimal | none: a factor |

References: Kingma & Welling 2014, ICLR (VAE); Burda, Grosse & Salakhutdinov 2016, ICLR
(importance-weighted bound); Nowozin 2018, ICLR (jackknife of it); Goodfellow et al. 2014, NeurIPS
(GAN); Che et al. 2020, NeurIPS (drawing in the latent space of a GAN).
"""

from experts.latent.decoder import Decoder, Generator
from experts.latent.gan import GAN, Discriminator
from experts.latent.vae import VAE

__all__ = ["GAN", "VAE", "Decoder", "Discriminator", "Generator"]
