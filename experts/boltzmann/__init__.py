"""Boltzmann machines: energies over bits, spins and colours whose log Z is a sum that may be worked
out, and whose blocks of coordinates are redrawn by Gibbs sampling.

| expert | event | E | log Z exact to |
|-------------|------------------|--------------------------------------------------------|---------------------------|
| RBM | visible bits | -b·v - Σ_j softplus(c_j + (vᵀW)_j) | 24 units of a layer |
| GaussianRBM | visible reals | Σ_i (v_i-b_i)²/2σ_i² - Σ_j softplus(c_j + (vᵀW)_j) | 24 hidden units |
| DBM | bits of all layers | -Σ_l b_l·x_l - Σ_l x_lᵀ W_l x_{l+1} | 24 units of the even or odd layers |
| Ising, Potts | spins, colours | pairs on a graph or a grid | grids of width 10 to 16, a million states |

Hidden units h are summed out, exp(-E(v)) = Σ_h exp(-E(v, h)); `RBM.joint` keeps them, as a `DBM`
of two layers. In nats; weights in nats per unit of v.
"""  # noqa: E501

from experts.boltzmann import products  # noqa: F401 (it registers closed forms)
from experts.boltzmann.dbm import DBM
from experts.boltzmann.gaussian import GaussianRBM
from experts.boltzmann.ising import Ising, Potts
from experts.boltzmann.rbm import RBM, from_sklearn

__all__ = ["DBM", "RBM", "GaussianRBM", "Ising", "Potts", "from_sklearn"]
