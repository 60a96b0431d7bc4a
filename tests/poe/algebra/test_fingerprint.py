"""Every way in which a tensor changes is noticed."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from poe.algebra.fingerprint import Fingerprint


def module() -> nn.Linear:
    return nn.Linear(2, 2)


def test_unchanged_tensors_match() -> None:
    layer = module()
    seen = Fingerprint(layer.parameters(), compare=True)
    layer(torch.ones(2)).sum().backward()
    assert seen.matches(layer.parameters())
    assert not seen.matches([layer.weight])
    assert not copy.deepcopy(seen).matches(layer.parameters())


def assign(layer: nn.Linear) -> None:
    layer.weight.data = layer.weight.data.clone()


def replace(layer: nn.Linear) -> None:
    layer.weight = nn.Parameter(layer.weight.detach())


@torch.no_grad()
def write(layer: nn.Linear) -> None:
    layer.weight.add_(1)


def write_data(layer: nn.Linear) -> None:
    layer.weight.data.add_(1)


@pytest.mark.parametrize("change", [assign, replace, write, nn.Linear.double])
def test_a_change_is_noticed(change: Callable[[nn.Linear], object]) -> None:
    layer = module()
    seen = Fingerprint(layer.parameters())
    change(layer)
    assert not seen.matches(layer.parameters())


def test_a_change_of_data_is_noticed_where_numbers_are_compared() -> None:
    layer = module()
    seen = Fingerprint(layer.parameters(), compare=True)
    write_data(layer)
    assert not seen.matches(layer.parameters())


def test_freed_memory_is_not_taken_for_the_same() -> None:
    def fresh() -> Tensor:
        return torch.zeros(1000)

    seen = Fingerprint([fresh()])
    assert not any(seen.matches([fresh()]) for _ in range(20))
