"""Classifier energies against the softmax they stand for."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import poe
from experts import Classifier


def linear(labels, **arguments):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(4, 3)).double()
    return Classifier(network, labels=labels, event_shape=(2, 2), **arguments)


@pytest.mark.parametrize("labels", [0, [2], [0, 2]])
@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_energy_is_minus_log_probability(labels, temperature):
    expert = linear(labels, temperature=temperature)
    x = torch.randn(5, 3, 2, 2, dtype=torch.float64)
    logits = expert.network[1](x.flatten(2)) / temperature
    wanted = [labels] if isinstance(labels, int) else labels
    assert torch.allclose(expert(x), -logits.softmax(-1)[..., wanted].sum(-1).log())
    assert (expert(x) >= 0).all()
    assert expert.bounded
    assert expert.proper is None
    assert torch.autograd.gradcheck(expert, x[0].clone().requires_grad_())


def test_certain_classes_do_not_round_to_zero_gradient():
    expert = linear(0)
    with torch.no_grad():
        expert.network[1].bias.copy_(torch.tensor([60.0, 0, 0]))
    x = torch.zeros(1, 2, 2, dtype=torch.float64)
    assert expert(x).item() == pytest.approx(2 * torch.exp(torch.tensor(-60.0)).item(), rel=1e-6)


def test_any_class_will_do():
    x = torch.randn(3, 2, 2, dtype=torch.float64)
    assert torch.equal(linear([0, 1, 2])(x), torch.zeros(3, dtype=torch.float64))


def test_shapes_predictions_and_other_labels():
    expert = linear(0)
    x = torch.randn(6, 2, 2, dtype=torch.float64)
    assert expert(x[:0]).shape == (0,)
    assert expert(x[0]).shape == ()
    best = expert.predict(x)
    energies = torch.stack([expert.wants(k)(x) for k in range(3)], -1)
    assert torch.equal(energies.argmin(-1), best)
    assert torch.allclose(torch.exp(-energies).sum(-1), torch.ones(6, dtype=torch.float64))


def test_stays_in_eval_mode():
    expert = poe.create("classifier", labels=3, event_shape=(8, 8), dropout=0.9)
    expert.train()
    x = torch.randn(4, 8, 8)
    assert torch.equal(expert(x), expert(x))


def test_config_rebuilds_what_was_built_and_refuses_the_rest():
    expert = poe.create(
        "classifier", labels=[1, 2], event_shape=(1, 4, 6), classes=5, channels=(3, 4), hidden=2
    )
    again = Classifier.from_config(**expert.config())
    again.load_state_dict(expert.state_dict())
    x = torch.randn(4, 1, 4, 6)
    assert torch.equal(again(x), expert(x))
    assert expert.wants(4).config()["labels"] == [4]
    with pytest.raises(TypeError, match='poe.create\\("classifier"'):
        linear(0).config()


def test_nonsense_is_refused():
    x = torch.zeros(1, 2, 2, dtype=torch.float64)
    with pytest.raises(ValueError, match="network has 3 classes"):
        linear(3)(x)
    with pytest.raises(ValueError, match="several distinct ones"):
        linear([1, 1])
    with pytest.raises(ValueError, match="temperature must be positive"):
        linear(0, temperature=0.0)
    with pytest.raises(ValueError, match="pass a network of your own"):
        Classifier(labels=0, event_shape=(5,))
    with pytest.raises(ValueError, match="do not fill inputs"):
        linear(0, input_shape=(3,))
    with pytest.raises(TypeError, match="omit one of the two"):
        linear(0, classes=4)
