"""The pretrained experts: they load, are frozen, and are what their cards say."""

from __future__ import annotations

import importlib.resources
import json
import math
import sys
from pathlib import Path

import pytest
import torch

import poe
from poe.algebra.capabilities import Samples, Sequential, Transport
from poe.io.storage import load

pytest.importorskip("sklearn")
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples"))
import digits

ZOO = importlib.resources.files("experts.zoo")
CONCEPTS = {"digits.even": digits.EVEN, "digits.loops": digits.LOOPS, "digits.high": digits.HIGH}


def card(name: str) -> dict:
    return json.loads(ZOO.joinpath(f"{name}.json").read_text())


def expert(name: str) -> poe.Energy:
    return load(Path(str(ZOO)) / f"{name}.safetensors")


@pytest.mark.parametrize("name", [*CONCEPTS, "digits.judge"])
def test_loads_frozen_and_small(name):
    energy = expert(name)
    assert energy.event_shape == (8, 8)
    assert energy.name == name
    assert energy.dtype == torch.float32
    assert not energy.training
    assert sum(p.numel() for p in energy.parameters()) == card(name)["parameters"]
    assert Path(str(ZOO), f"{name}.safetensors").stat().st_size < 900_000
    x = torch.randn(3, 2, 8, 8)
    value, gradient = energy.value_and_grad(x)
    assert value.shape == (3, 2)
    assert gradient.isfinite().all()


@pytest.mark.parametrize("name", CONCEPTS)
def test_double_precision_is_refused_by_name(name):
    x = torch.zeros(2, 8, 8, dtype=torch.float64)
    for call in (expert(name), (expert(name) ** 0.5).value_and_grad):
        with pytest.raises(TypeError, match=f"{name} works in torch.float32, x is torch.float64"):
            call(x)


@pytest.mark.parametrize(("name", "concept"), CONCEPTS.items())
def test_log_likelihood_is_the_recorded_one(name, concept):
    facts = card(name)
    assert facts["digits"] == list(concept)
    value = digits.log_likelihood(expert(name), concept, facts.get("log_z", 0.0))
    assert value == pytest.approx(facts["test_log_likelihood"], abs=0.01)


@pytest.mark.parametrize(("name", "concept"), CONCEPTS.items())
def test_other_digits_are_less_likely(name, concept):
    others = [digit for digit in range(10) if digit not in concept]
    energy = expert(name)
    assert digits.log_likelihood(energy, concept) > digits.log_likelihood(energy, others) + 5


def test_capabilities():
    even, loops, high = (expert(name) for name in CONCEPTS)
    assert even.can(Transport)
    assert even.can(Samples)
    assert loops.can(Sequential)
    assert loops.can(Samples)
    assert not high.can(Samples)
    assert high.log_z is None
    assert high.proper
    assert all(energy.bounded for energy in (even, loops, high))
    assert ((even & loops & high) ** (1 / 3)).proper


def test_judge_is_as_accurate_as_recorded():
    x, y = digits.images("test")
    x = digits.dequantise(x, torch.Generator().manual_seed(1))
    share = (expert("digits.judge").predict(x) == y).float().mean().item()
    assert share == pytest.approx(card("digits.judge")["test_accuracy"], abs=0.005)
    assert share > 0.97


@pytest.mark.parametrize("name", ["digits.even", "digits.loops"])
def test_draws_are_judged_to_have_the_concept(name, generator):
    x = expert(name).sample(400, generator=generator)
    judged = expert("digits.judge").predict(x)
    share = torch.isin(judged, torch.tensor(CONCEPTS[name])).float().mean().item()
    assert share > 0.8
    assert all((judged == digit).float().mean() > 0.05 for digit in CONCEPTS[name])


def test_normaliser_of_high_by_its_own_base():
    """E = -log q + f, so log Z = log E_q exp(-f): draws of q estimate it anew."""
    high, facts = expert("digits.high"), card("digits.high")
    torch.manual_seed(3)
    x = high.base.sample(4_000)
    with torch.no_grad():
        weight = torch.exp(high.base(x) - high(x.reshape(-1, 8, 8))).double()
    error = (weight.std() / weight.mean() / math.sqrt(len(weight))).item()
    assert abs(weight.mean().log().item() - facts["log_z"]) < 5 * (
        error + facts["log_z_standard_error"]
    )
