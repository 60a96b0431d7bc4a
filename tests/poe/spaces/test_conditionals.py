from __future__ import annotations

import pytest
import torch

import poe
from experts import RBM, Bernoulli, Ising
from poe.smc.discrete import Independent
from poe.spaces.conditionals import Conditionals, opaque
from poe.spaces.path import Geometric
from poe.spaces.points import points

CPU = torch.device("cpu")
FIELD, CHAIN = Bernoulli(logits=torch.linspace(-1.0, 1.0, 4)), Ising((4,), 0.7, bits=True)
MASK = torch.tensor([True, False, False, True])
COMPOSITIONS = {
    "product": FIELD & CHAIN**0.5,
    "shift": poe.shift(FIELD & CHAIN, 2.0),
    "contrast": poe.contrast(FIELD, CHAIN, 0.3),
    "fill": (FIELD & CHAIN) @ poe.fill(torch.tensor([1.0, 0.0, 0.0, 0.0]), MASK),
    "part": poe.on(Bernoulli(logits=torch.tensor([0.4, -2.0])), [2, 0], (4,)) & CHAIN,
    "path": Geometric(Independent.even(CHAIN), CHAIN, gradients=False).level(torch.tensor(0.3)),
}


@pytest.mark.parametrize("name", COMPOSITIONS)
def test_log_odds_are_differences_of_energies(name: str) -> None:
    """Against the energy at both values of each site."""
    energy = COMPOSITIONS[name]
    conditionals = Conditionals(energy)
    n = energy.event_shape.numel()
    x = torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * n)
    odds = conditionals.logits(x, torch.arange(n))
    for site in range(n):
        lower, upper = x.clone(), x.clone()
        lower[:, site], upper[:, site] = 0, 1
        with torch.no_grad():
            assert torch.allclose(odds[:, site], energy(lower) - energy(upper), atol=1e-5)


def test_sites_of_a_block_do_not_change_each_others_conditionals() -> None:
    blocks = Conditionals(FIELD & CHAIN).blocks(CPU)
    assert sorted(torch.cat(blocks).tolist()) == list(range(4)) and len(blocks) == 2
    x = points(CHAIN)
    for block in blocks:
        other = x.clone()
        other[:, block] = 1 - other[:, block]
        conditionals = Conditionals(FIELD & CHAIN)
        assert torch.allclose(conditionals.logits(x, block), conditionals.logits(other, block))


def test_hidden_units_belong_to_an_expert_and_not_to_its_powers() -> None:
    machine = RBM(torch.ones(4, 3))
    assert Conditionals(machine & FIELD).hidden == 3
    assert Conditionals(machine**2 & FIELD).hidden == 0


def test_an_energy_that_states_its_conditionals_is_not_opaque() -> None:
    assert opaque(CHAIN) is None and opaque(RBM(torch.ones(4, 3))) is None
