"""MADE, PixelCNN and Causal against enumeration, exact triangularity and their own conditionals."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import experts
import poe
from experts import MADE, Causal, NGram, PixelCNN
from poe.algebra.capabilities import Samples, Sequential
from poe.spaces import points
from poe.testing import check_expert

F64 = torch.float64


def shaken(expert, scale: float = 1.0):
    """Weights far from those of an untrained network, so that conditionals visibly depend on what
    was before."""
    g = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in expert.parameters():
            spread = scale / max(1, parameter[0].numel()) ** 0.5 if parameter.ndim > 1 else 0.3
            parameter.copy_(spread * torch.randn(parameter.shape, generator=g))
    return expert


class Recurrent(nn.Module):
    """A small causal model: tokens (n, t) -> logits (n, t, levels)."""

    def __init__(self, levels: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(levels + 1, 8)
        self.cell = nn.GRU(8, 8, batch_first=True)
        self.out = nn.Linear(8, levels)

    def forward(self, tokens):
        return self.out(self.cell(self.embed(tokens))[0])


def made(shape=(3, 3), **options):
    return shaken(MADE(shape, **{"hidden": 24, **options}), 2.0)


def pixelcnn(shape=(3, 3), **options):
    return shaken(PixelCNN(shape, **{"channels": 6, "layers": 3, **options}), 2.0)


def causal(shape=(3, 3), levels=2):
    return Causal(shaken(Recurrent(levels), 2.0), shape, levels, bos=levels)


def ngram():
    g = torch.Generator().manual_seed(4)
    return NGram(torch.randn(3, 3, 2, generator=g), 9, ["0", "1"])


BINARY = {
    "made": made,
    "made, another order": lambda: made(order=[4, 0, 8, 1, 7, 2, 6, 3, 5]),
    "made, one layer": lambda: made(layers=1, dropout=0.5),
    "pixelcnn": pixelcnn,
    "pixelcnn, kernel 5": lambda: pixelcnn(kernel=5, layers=2, dropout=0.3),
    "causal": causal,
    "ngram": ngram,
}
MANY = {
    "made, three values": lambda: made((2, 3), levels=3, order=[3, 1, 5, 0, 4, 2]),
    "pixelcnn, three channels": lambda: pixelcnn((3, 2, 2), channels=7),
    "pixelcnn, two channels of three values": lambda: pixelcnn((2, 1, 3), levels=3),
    "causal, four values": lambda: causal(5, 4),
}


@pytest.mark.parametrize("make", BINARY.values(), ids=BINARY.keys())
def test_sums_to_one_over_binary_pictures(make):
    expert = make().double()
    states = points(expert)
    assert len(states) == 512
    total = expert.log_prob(states).exp().sum()
    assert total.item() == pytest.approx(1, abs=1e-6)
    assert expert.log_prob(states).std() > 0.5  # and not because all conditionals are even


@pytest.mark.parametrize("make", [*BINARY.values(), *MANY.values()], ids=[*BINARY, *MANY])
def test_obeys_the_laws_of_experts(make):
    report = check_expert(make)
    assert {"normalisation", "draws match the density", "batch invariance", "eval mode"} <= set(
        report.checked
    )
    assert ("save and load" in report.skipped) == report.expert.startswith("causal")


@pytest.mark.parametrize("make", [*BINARY.values(), *MANY.values()], ids=[*BINARY, *MANY])
def test_next_logits_multiply_to_the_density(make):
    expert = make().double()
    assert expert.can(Sequential)
    assert expert.can(Samples)
    assert expert.bounded
    x = expert.sample((2, 3), generator=torch.Generator().manual_seed(1))
    values = x.flatten(2)[..., expert.order]
    total = torch.zeros(2, 3, dtype=F64)
    for t in range(values.shape[-1]):
        logs = expert.next_logits(values[..., :t])
        assert logs.shape == (2, 3, expert.levels)
        assert torch.allclose(logs.exp().sum(-1), torch.ones(2, 3, dtype=F64))
        total += logs.gather(-1, values[..., t, None].long()).squeeze(-1)
    assert torch.allclose(total, expert.log_prob(x))
    with pytest.raises(ValueError, match="no position after the last"):
        expert.next_logits(values)


def assert_triangular(expert, x):
    """∂(conditional of position i)/∂(value j) is 0 for all j >= i along the order, and not 0 for
    all j < i."""
    jacobian = torch.autograd.functional.jacobian(
        lambda x: expert._conditionals(x[:-1], 0)[..., 0], x
    )
    n = len(x)
    assert (jacobian.triu() == 0).all()
    assert (jacobian[torch.ones(n, n).tril(-1).bool()] != 0).all()


@pytest.mark.parametrize("kernel", [3, 5])
@pytest.mark.parametrize("levels", [2, 256])
@pytest.mark.parametrize("shape", [(5, 5), (4, 6), (3, 2, 3)])
def test_pixelcnn_sees_every_earlier_value_and_no_other(shape, levels, kernel):
    layers = -(-max(shape[-2:]) // (kernel // 2))
    expert = pixelcnn(shape, levels=levels, kernel=kernel, layers=layers, channels=6).double()
    x = torch.randint(
        levels, expert.event_shape, generator=torch.Generator().manual_seed(0)
    ).double()
    assert_triangular(expert, x.flatten()[expert.order])


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_made_sees_every_earlier_value_and_no_other(layers):
    expert = made((2, 4), layers=layers, order=[3, 0, 5, 7, 1, 4, 2, 6]).double()
    assert_triangular(expert, torch.ones(8, dtype=F64))


def test_a_blind_spot_would_be_seen():
    """Negative control: without the vertical stack, a pixel depends on its own row alone."""
    expert = pixelcnn((3, 3)).double()
    for block in expert.blocks:
        nn.init.zeros_(block.across.weight)
    with pytest.raises(AssertionError):
        assert_triangular(expert, torch.ones(9, dtype=F64))


def test_a_look_ahead_would_be_seen():
    """Negative control: a first layer that sees the pixel itself."""
    expert = pixelcnn((3, 3)).double()
    expert.blocks[0].right.mask.fill_(True)
    with pytest.raises(AssertionError):
        assert_triangular(expert, torch.ones(9, dtype=F64))


def test_reads_pictures_row_by_row_and_channels_within_a_pixel():
    assert PixelCNN((2, 2, 2), channels=4).order.tolist() == [0, 4, 1, 5, 2, 6, 3, 7]
    assert PixelCNN((2, 3), channels=4).order.tolist() == list(range(6))


def test_pictures_of_256_levels_have_a_normalised_pixel():
    expert = pixelcnn((2, 2), levels=256, layers=2)
    assert points(pixelcnn((1, 1), levels=256, layers=1)).dtype == torch.long
    x = expert.sample(7, generator=torch.Generator().manual_seed(0))
    assert x.dtype == torch.long
    assert expert.next_logits(x.flatten(1)[:, :3]).exp().sum(-1).allclose(torch.ones(7))
    assert (
        pixelcnn((1, 1), levels=256, layers=1)
        .log_prob(torch.arange(256).reshape(-1, 1, 1))
        .exp()
        .sum()
        .allclose(torch.ones(()))
    )


@pytest.mark.parametrize("make", [made, pixelcnn])
def test_binary_energies_have_gradients(make):
    expert = make().double()
    x = torch.randint(2, (2, 3, 3), generator=torch.Generator().manual_seed(0)).double()
    assert torch.autograd.gradcheck(expert.log_prob, x.requires_grad_())
    energy, gradient = expert.value_and_grad(x.detach())
    assert torch.allclose(energy, expert(x))
    assert gradient.abs().min() > 0


def test_dropout_is_random_in_training_mode_alone():
    expert = made(dropout=0.5)
    x = torch.ones(3, 3)
    with expert.training_mode():
        assert expert.training
        assert expert(x) != expert(x)
    assert not expert.train().training
    assert expert(x) == expert(x)


def test_causal_agrees_with_its_model_and_checks_its_shape():
    model = shaken(Recurrent(3), 2.0)
    expert = Causal(model, 4, 3, bos=3)
    x = torch.tensor([2, 0, 1, 1])
    expected = model(torch.tensor([[3, 2, 0, 1]]))[0].log_softmax(-1)[range(4), x].sum()
    assert torch.allclose(expert.log_prob(x), expected)
    with pytest.raises(ValueError, match=r"logits of shape \(1, 4, 3\).*returned \(1, 4, 5\)"):
        Causal(lambda tokens: torch.zeros(*tokens.shape, 5), 4, 3, bos=0)(x)
    with pytest.raises(TypeError, match="takes a callable"):
        Causal(3, 4, 3, bos=0)  # type: ignore[arg-type]


def test_products_of_binary_experts_compose():
    g = torch.Generator().manual_seed(0)
    product = (
        made() & pixelcnn() ** 0.5 & experts.Bernoulli(torch.rand(3, 3, generator=g) * 0.8 + 0.1)
    )
    assert product.proper
    draws = poe.sample(product, 200, seed=0)
    assert draws.x.shape == (200, 3, 3)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: MADE((2, 2), order=[0, 1, 1, 2]), "each of the 4 positions"),
        (lambda: MADE((2,), levels=1), "two or more values"),
        (lambda: PixelCNN((4,)), "takes events"),
        (lambda: PixelCNN((4, 4), kernel=4), "an odd kernel"),
        (lambda: PixelCNN((8, 4, 4), channels=4), "at least C channels"),
    ],
)
def test_nonsense_is_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize("name", ["made", "discrete-made", "pixelcnn"])
def test_registered(name):
    assert isinstance(
        poe.create(name, event_shape=(3, 3)), PixelCNN if name == "pixelcnn" else MADE
    )
