"""Deep Boltzmann machines: the variational bound, pretraining and joint training against
enumeration; the machine in the zoo."""

from __future__ import annotations

import importlib.resources
import json
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

import poe
from experts import DBM, RBM
from experts.pretraining import Doubled, MeanFieldLikelihood, _joined, pretrain
from poe.io.storage import load
from poe.spaces import points
from poe.training.losses import PersistentContrastiveDivergence

F64 = torch.float64


def t(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def binary(n: int) -> Tensor:  # (2^n, n)
    return points(RBM(torch.zeros(n, 1, dtype=F64)))


def deep(scale: float = 1.0) -> DBM:
    """5 visible units and hidden layers of 4, 3 and 2."""
    return DBM(
        [scale * t(5, 4), scale * t(4, 3, seed=1), scale * t(3, 2, seed=2)],
        [t(5), t(4), t(3), t(2)],
        learnable=True,
    )


def log_p(machine: DBM, v: Tensor) -> Tensor:  # (n, n_0) -> (n)
    """log p(v), by the sum over all hidden units and the sum over all units."""
    n, hidden = machine.sizes[0], sum(machine.sizes[1:])
    h = binary(hidden).to(v)
    with torch.no_grad():
        own = -machine(
            torch.cat([v.unsqueeze(1).expand(-1, len(h), -1), h.expand(len(v), -1, -1)], -1)
        )
        everything = torch.cat(
            [binary(n).to(v).unsqueeze(1).expand(-1, len(h), -1), h.expand(2**n, -1, -1)], -1
        )
        return own.logsumexp(1) - (-machine(everything)).flatten().logsumexp(0)


def clusters(n: int = 1_000, d: int = 6) -> Tensor:  # (n, d)
    """Bits near to one of three patterns, each bit wrong in one case of ten."""
    generator = torch.Generator().manual_seed(4)
    patterns = torch.tensor(
        [[1, 1, 1, 0, 0, 0], [0, 0, 1, 1, 1, 0], [1, 0, 0, 0, 1, 1]], dtype=F64
    )[:, :d]
    x = patterns[torch.randint(3, (n,), generator=generator)]
    wrong = torch.rand(n, d, generator=generator) < 0.1
    return torch.where(wrong, 1 - x, x)


# ---------------------------------------------------------------- the bound


@pytest.mark.parametrize("scale", [0.3, 1.0, 3.0])
def test_the_bound_lies_below_the_likelihood(scale: float) -> None:
    machine, v = deep(scale), binary(5)
    with torch.no_grad():
        gap = log_p(machine, v) - machine.lower_bound(v)
    assert float(gap.min()) > -1e-9
    # a factorial law is not the posterior: the bound is none of the likelihood itself
    assert float(gap.max()) > 1e-3
    if scale == 0.3:
        assert float(gap.max()) < 0.1


def test_the_gap_is_the_divergence_of_the_factorial_law() -> None:
    """log p(v) - bound = Σ_h q(h) log(q(h) / p(h | v)), with q and p(h | v) by enumeration."""
    machine, v = deep(), binary(5)
    means, h = torch.cat(machine.mean_field(v), -1), binary(9)
    with torch.no_grad():
        log_q = (h * means.unsqueeze(1).log() + (1 - h) * (1 - means.unsqueeze(1)).log()).sum(-1)
        log_posterior = (
            -machine(
                torch.cat([v.unsqueeze(1).expand(-1, len(h), -1), h.expand(len(v), -1, -1)], -1)
            )
        ).log_softmax(1)
        divergence = (log_q.exp() * (log_q - log_posterior)).sum(1)
        torch.testing.assert_close(
            log_p(machine, v) - machine.lower_bound(v), divergence, rtol=1e-8, atol=1e-8
        )


def test_each_round_raises_the_bound_to_a_fixed_point() -> None:
    machine, v = deep(2.0), binary(5)
    rounds = [machine.mean_field(v, iterations=k, tolerance=0) for k in range(30)]
    with torch.no_grad():
        bounds = torch.stack([-machine.free_energy(v, means) for means in rounds])
    assert float((bounds[1:] - bounds[:-1]).min()) > -1e-12
    assert float((bounds[-1] - bounds[0]).max()) > 0.01
    a, b, c = machine.mean_field(v, iterations=1_000, tolerance=1e-13)
    with torch.no_grad():
        (w0, w1, w2), (_, b1, b2, b3) = machine.weights, machine.biases
        torch.testing.assert_close(a, (v @ w0 + b @ w1.T + b1).sigmoid(), rtol=0, atol=1e-10)
        torch.testing.assert_close(b, (a @ w1 + c @ w2.T + b2).sigmoid(), rtol=0, atol=1e-10)
        torch.testing.assert_close(c, (b @ w2 + b3).sigmoid(), rtol=0, atol=1e-10)


def test_one_hidden_layer_is_exact() -> None:
    rbm = RBM(t(4, 3), t(4), t(3))
    v = binary(4)
    means = rbm.joint.mean_field(v)
    torch.testing.assert_close(means[0], (v @ rbm.weights + rbm.hidden_bias).sigmoid())
    torch.testing.assert_close(rbm.joint.free_energy(v), rbm(v))
    torch.testing.assert_close(rbm.joint.lower_bound(v), (-rbm(v)).log_softmax(0))


def test_a_given_normaliser_is_used_and_none_is_refused() -> None:
    machine, large = deep(), DBM([torch.zeros(40, 30), torch.zeros(30, 40)])
    v = binary(5)[:3]
    torch.testing.assert_close(
        machine.lower_bound(v, poe.Estimate(2.0, 0.1)), -machine.free_energy(v) - 2.0
    )
    with pytest.raises(ValueError, match="give log_z=poe.log_z"):
        large.lower_bound(torch.zeros(40))
    assert float(large.lower_bound(torch.zeros(40), 110 * math.log(2))) == pytest.approx(
        -40 * math.log(2), rel=1e-6
    )
    with pytest.raises(ValueError, match="bits, 0 or 1"):
        machine.lower_bound(torch.full((5,), 0.5))
    with pytest.raises(ValueError, match=r"dbm takes visible units of shape .*5\), not \(3, 4\)"):
        machine.mean_field(torch.zeros(3, 4))


# ---------------------------------------------------------------- pretraining


@pytest.mark.parametrize(("below", "above"), [(1, 1), (2, 1), (1, 2), (2, 2)])
def test_copies_are_a_machine_with_tied_weights(below: int, above: int) -> None:
    weights, b, c = t(3, 2), t(3), t(2)
    layer = Doubled(weights.clone(), b.clone(), c.clone(), below=below, above=above)
    plain = RBM(weights.repeat(below, above), b.repeat(below), c.repeat(above))
    x = binary(3 * below)
    torch.testing.assert_close(layer(x).detach(), plain(x))
    uniforms = torch.rand(
        len(x), plain.uniforms[0], generator=torch.Generator().manual_seed(0), dtype=F64
    )
    assert layer.uniforms == plain.uniforms
    assert torch.equal(layer.sample_block(x, 0, uniforms), plain.sample_block(x, 0, uniforms))


def test_layers_are_joined_at_the_mean_of_their_log_odds() -> None:
    """A unit between two layers has the mean of its log-odds in the machine below, where it takes
    the input from there twice, and in the machine above."""
    layers = [
        Doubled(t(3, 4), t(3), t(4), below=2),
        Doubled(t(4, 2, seed=1), t(4, seed=2), t(2, seed=2), below=2, above=2),
        Doubled(t(2, 2, seed=3), t(2, seed=4), t(2, seed=5), above=2),
    ]
    machine, x = _joined(layers), binary(11)
    layer = machine.layers(x)
    with torch.no_grad():
        logits = machine.layers(machine.site_logits(x, torch.arange(11)))
        torch.testing.assert_close(
            logits[0], layer[1] @ layers[0].weights.T + layers[0].visible_bias
        )
        torch.testing.assert_close(logits[3], layer[2] @ layers[2].weights + layers[2].hidden_bias)
        for k in (1, 2):
            below = 2 * layer[k - 1] @ layers[k - 1].weights + layers[k - 1].hidden_bias
            above = 2 * layer[k + 1] @ layers[k].weights.T + layers[k].visible_bias
            torch.testing.assert_close(logits[k], (below + above) / 2)
    assert _joined(layers[:1]).sizes == (3, 4)


@pytest.mark.slow
def test_training_raises_the_exact_likelihood(generator: torch.Generator) -> None:
    data = clusters()
    rates = data.mean(0)
    # of independent bits
    alone = float((rates * rates.log() + (1 - rates) * (1 - rates).log()).sum())
    machine = pretrain(data, [4, 3], epochs=5, batch=50, rate=0.1, generator=generator)
    assert machine.sizes == (6, 4, 3) and all(p.requires_grad for p in machine.parameters())
    first, bound = (
        float(log_p(machine, data).mean()),
        float(machine.lower_bound(data).detach().mean()),
    )
    assert first > alone + 0.3
    loss = MeanFieldLikelihood(PersistentContrastiveDivergence(500, generator=generator))
    optimiser = torch.optim.Adam(machine.parameters(), 0.02)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: 1 - step / 800)
    for _ in range(800):
        optimiser.zero_grad()
        loss(machine, data).backward()
        optimiser.step()
        schedule.step()
    last = float(log_p(machine, data).mean())
    assert last > first + 0.1 and float(machine.lower_bound(data).detach().mean()) > bound + 0.1
    _, counts = data.unique(dim=0, return_counts=True)
    p = counts.double() / len(data)
    best = float((p * p.log()).sum())  # no law has a higher likelihood than the table of the data
    assert best - 0.1 < last < best


def test_the_joint_loss_has_the_gradient_of_the_bound(generator: torch.Generator) -> None:
    """With many steps of the chains it is that of -mean bound, which finite differences of the
    bound give by enumeration."""
    machine, v = deep(0.5), clusters(40, 5)
    loss = MeanFieldLikelihood(
        PersistentContrastiveDivergence(20_000, k=30, generator=generator),
        iterations=500,
        tolerance=1e-12,
    )
    loss(machine, v).backward()
    x = points(machine)
    with torch.no_grad():
        p = (-machine(x)).softmax(0)
    worst, count = 0.0, sum(q.numel() for q in machine.parameters())
    for parameter in machine.parameters():
        for index in range(parameter.numel()):
            flat, eps, values = parameter.data.view(-1), 1e-5, []
            for sign in (1, -1):
                flat[index] += sign * eps
                with torch.no_grad():
                    values.append(
                        float(
                            machine.free_energy(
                                v, machine.mean_field(v, iterations=500, tolerance=1e-12)
                            ).mean()
                        )
                    )
                    values[-1] += float((-machine(x)).logsumexp(0))
                flat[index] -= sign * eps
            exact = (values[0] - values[1]) / (2 * eps)
            # ∂E/∂θ is minus a bit or a product of two: its variance is that of a coin
            chance = _share(machine, x, p, parameter, index)
            error = math.sqrt(max(chance * (1 - chance), 1e-12) / 20_000)
            worst = max(worst, abs(float(parameter.grad.view(-1)[index]) - exact) / error)  # type: ignore[union-attr]
    assert count == 52 and worst < 4.5  # 52 tests at a family-wise level of 4e-4


def _share(machine: DBM, x: Tensor, p: Tensor, parameter: Tensor, index: int) -> float:
    """How likely the bit is, or the pair of bits, that a parameter multiplies."""
    layers = machine.layers(x)
    for k, weights in enumerate(machine.weights):
        if weights is parameter:
            i, j = divmod(index, weights.shape[1])
            return float(p @ (layers[k][:, i] * layers[k + 1][:, j]))
    k = next(k for k in range(len(layers)) if getattr(machine, f"bias_{k}") is parameter)
    return float(p @ layers[k][:, index])


def test_mistakes_are_named() -> None:
    for data in (
        torch.zeros(0, 3),
        torch.zeros(3),
        torch.full((2, 3), 1.5),
        torch.zeros(2, 3, dtype=torch.long),
    ):
        with pytest.raises(ValueError, match="bits or their probabilities"):
            pretrain(data, [2])
    with pytest.raises(ValueError, match=r"such as \[500, 1000\], not \[\]"):
        pretrain(torch.zeros(2, 3), [])
    with pytest.raises(ValueError, match=r"a batch is \(n, 5\)"):
        MeanFieldLikelihood(PersistentContrastiveDivergence())(deep(), torch.zeros(0, 5))


# ---------------------------------------------------------------- the zoo


def test_the_machine_in_the_zoo_is_as_good_as_recorded() -> None:
    """Its log Z anew, by a sum over all states of the hidden layer in plain numbers, with its card
    and the aim of -19.2 nats."""
    datasets = pytest.importorskip("sklearn.datasets")
    folder = Path(str(importlib.resources.files("experts.zoo")))
    machine, card = (
        load(folder / "digits.rbm.safetensors"),
        json.loads((folder / "digits.rbm.json").read_text()),
    )
    assert isinstance(machine, RBM)
    w, b, c = (
        value.detach().double()
        for value in (machine.weights, machine.visible_bias, machine.hidden_bias)
    )
    h = (torch.arange(1 << 20).unsqueeze(-1) >> torch.arange(20) & 1).double()
    log_z = torch.cat(
        [
            part @ c + torch.nn.functional.softplus(part @ w.T + b).sum(1)
            for part in h.split(1 << 15)
        ]
    ).logsumexp(0)
    x = (torch.tensor(datasets.load_digits().data) >= 8).double()
    log_likelihood = x @ b + torch.nn.functional.softplus(x @ w + c).sum(1) - log_z
    assert float(log_likelihood[:1437].mean()) == pytest.approx(
        card["train_log_likelihood"], abs=1e-3
    )
    assert float(log_likelihood[1437:].mean()) == pytest.approx(
        card["test_log_likelihood"], abs=1e-3
    )
    assert card["train_log_likelihood"] > -19.2
