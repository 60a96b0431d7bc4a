"""What expressions cost, counted in calls, and that deep ones work at all."""

from __future__ import annotations

import copy
import functools
import operator
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
from torch import distributions as td

import poe
from experts import Gamma, Normal
from poe.algebra.contrast import Contrast
from poe.algebra.product import Product

ROOT = str(Path(poe.__file__).parents[1])
OURS = (f"{ROOT}/poe/", f"{ROOT}/experts/")
LEVELS = 500


def calls_of(function: Callable[[], Any]) -> Counter[str]:
    """How often each function of this repository is called."""
    found: Counter[str] = Counter()

    def count(frame: FrameType, event: str, argument: Any) -> None:
        if event == "call" and frame.f_code.co_filename.startswith(OURS):
            found[frame.f_code.co_name] += 1

    sys.setprofile(count)
    try:
        function()
    finally:
        sys.setprofile(None)
    return found


def test_a_sample_simplifies_once() -> None:
    energy = Normal(0.0, 1.0) & poe.as_energy(td.StudentT(5.0, 1.0, 2.0))
    poe.sample(energy, 200, seed=0)  # modules are imported, foreign experts probed
    energy = Normal(0.0, 1.0) & poe.as_energy(td.StudentT(5.0, 1.0, 2.0))
    found = calls_of(lambda: poe.sample(energy, 200, seed=0))
    assert found["simplify"] == 1
    assert found.total() <= 6000  # of these some 4,000 in the search for modes


def test_parts_are_evaluated_without_further_checks() -> None:
    energy = poe.product([Normal(float(i), 1.0) for i in range(8)])
    x = torch.zeros(5)
    energy(x)
    found = calls_of(lambda: energy(x))
    assert found["batch_shape"] == 1 and found["contains"] == 0


def test_a_chain_of_products_costs_a_constant_a_step() -> None:
    functions = [poe.as_energy(lambda x: x.square(), event_shape=()) for _ in range(128)]
    chain = functools.partial(functools.reduce, operator.and_, functions)
    whole = chain()
    assert isinstance(whole, Product) and whole.parts == tuple(functions)
    assert str(whole) == str(poe.product(functions))
    steps = [
        calls_of(lambda n=n: functools.reduce(operator.and_, functions[:n])) for n in (64, 128)
    ]
    assert steps[1].total() <= 2.1 * steps[0].total()


def test_hundreds_of_levels(tmp_path: Path) -> None:
    first = Normal(0.0, 1.0)
    unwanted = [Normal(float(i), 1.0) for i in range(LEVELS)]
    energy = functools.reduce(operator.sub, unwanted, first)
    x = torch.tensor([0.3, -2.0])
    wanted = first(x)
    for part in unwanted:
        wanted = wanted + torch.nn.functional.softplus(wanted - part(x))
    torch.testing.assert_close(energy(x), wanted)
    value, gradient = energy.value_and_grad(x)
    torch.testing.assert_close(value, wanted)
    assert gradient.isfinite().all()
    assert str(energy).count(" - ") == LEVELS
    assert energy.proper and energy.bounded
    energy.load_state_dict(copy.deepcopy(energy).state_dict())
    poe.save(energy, tmp_path / "deep.safetensors")
    again = poe.load(tmp_path / "deep.safetensors")
    assert str(again) == str(energy) and torch.equal(again(x), energy(x))


def test_a_named_contrast_stays_a_part() -> None:
    a, b, c = (Normal(float(i), 1.0, name=name) for i, name in enumerate("abc"))
    assert (a - b - c).parts == (a, b, c)
    assert (a - (b - c)).parts[0] is a
    difference = a - b
    difference.name = "difference"
    assert (difference - c).parts == (difference, c)
    assert str(difference - c) == "difference - c"


@pytest.mark.parametrize("gradient", [False, True])
def test_a_part_is_masked_where_its_whole_is_not(gradient: bool) -> None:
    """Each part of `|`, the right side of `-` and what stands below `@` may be asked outside its
    support."""
    gamma, normal, x = Gamma(0.9, 2.0), Normal(0.0, 1.0), torch.tensor(-1.0)
    log_p = td.Normal(0.0, 1.0).log_prob(x)

    def at(energy: poe.Energy) -> tuple[torch.Tensor, torch.Tensor]:
        if gradient:
            return energy.value_and_grad(x)
        y = x.clone().requires_grad_()
        value = energy(y)
        (slope,) = torch.autograd.grad(value, y)
        return value.detach(), slope

    for energy in (gamma | normal, normal - gamma):
        torch.testing.assert_close(at(energy), (-log_p, torch.tensor(-1.0)))
    value, slope = at((gamma @ torch.neg) & normal)
    y = torch.tensor(1.0, requires_grad=True)
    (below,) = torch.autograd.grad(gamma(y), y)
    torch.testing.assert_close(value, (gamma(y) - log_p).detach())
    torch.testing.assert_close(slope, -1.0 - below)
    assert at(gamma @ torch.abs & normal)[0].isfinite()
    assert (gamma & normal)(x) == torch.inf


class Whole(poe.Energy):
    """One number for the whole batch."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # (*batch) -> ()
        return x.sum()


def test_a_part_of_the_wrong_shape_is_named_where_it_would_broadcast() -> None:
    whole = Whole((), name="whole")
    energy = Normal(0.0, 1.0, name="fine") & whole
    with pytest.raises(ValueError, match=r"the energy whole returned shape \(\)"):
        energy(torch.zeros(3))
    with pytest.raises(ValueError, match=r"the energy whole returned shape \(\)"):
        (Normal(0.0, 1.0) - (energy | energy))(torch.zeros(3))


def test_what_was_combined_is_known_after_a_rebuild() -> None:
    prior, one, two = (
        Normal(0.0, s, name=name) for s, name in ((3.0, "p"), (1.0, "a"), (2.0, "b"))
    )
    energy = poe.combine([one, two], prior=prior)
    known = poe.algebra.combined(energy)
    assert known is not None and known.posteriors == (one, two)
    other = Normal(1.0, 1.0, name="c")
    parts = [other if part is one else part for part in energy.parts]
    kept = poe.algebra.combined(poe.shift(energy.rebuild(parts), 1.0))
    assert kept is not None and kept.posteriors == (other, two)
    assert poe.algebra.combined(copy.deepcopy(energy)) is not None


def test_strengths_stand_in_the_text_of_a_chain() -> None:
    a, b, c = (Normal(float(i), 1.0, name=name) for i, name in enumerate("abc"))
    energy = poe.contrast(a, b, strength=0.5) - c
    assert isinstance(energy, Contrast) and energy.strengths == (0.5, 1.0)
    assert str(energy) == "poe.contrast(a, b, strength=0.5) - c"
    assert str(energy.rebuild(energy.parts)) == str(energy)
