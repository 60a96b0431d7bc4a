"""Products of language models: the global product, enumerated over all short texts, against
sequential Monte Carlo and against the product that is normalised word by word."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import poe
from experts import NGram, Vocabulary
from poe.spaces import points

VOCABULARY = Vocabulary(("<s>", "a", "b", "c", "</s>", "<pad>"), bos=0, eos=4, pad=5)
LENGTH = 5
RARE = 1e-6


def ngram(seed: int) -> NGram:
    k, g = len(VOCABULARY), torch.Generator().manual_seed(seed)
    return NGram(
        1.5 * torch.randn(k + 1, k + 1, k, generator=g), LENGTH, VOCABULARY, name=f"ngram{seed}"
    )


def gpt2(seed: int) -> poe.Energy:
    transformers = pytest.importorskip("transformers")
    options = {
        "vocab_size": 6,
        "n_positions": 12,
        "n_embd": 16,
        "n_layer": 2,
        "n_head": 2,
        "initializer_range": 0.6,
    }
    torch.manual_seed(seed)
    model = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(**options, bos_token_id=0, eos_token_id=4)
    )
    return poe.as_energy(
        model, length=LENGTH, vocabulary=VOCABULARY.tokens, pad=5, name=f"gpt{seed}"
    )


def number(x: Tensor) -> Tensor:  # (n, LENGTH) -> (n)
    return (x.double() @ (6.0 ** torch.arange(LENGTH - 1, -1, -1)).double()).long()


@pytest.mark.parametrize(
    "make",
    [
        lambda: ngram(0) & ngram(1),
        lambda: ngram(0) ** 0.5 & ngram(2) ** 1.5,
        lambda: gpt2(0) & ngram(1),
        lambda: gpt2(0) & gpt2(1),
    ],
    ids=["two tables", "powers", "transformer and table", "two transformers"],
)
def test_the_global_product_is_drawn_and_not_the_local_one(make) -> None:
    target = make()
    states = points(target)
    with torch.no_grad():
        energies = target(states).double()
    log_z = (-energies).logsumexp(0)
    law = (-energies - log_z).exp()
    draws = poe.sample(target, 4000, method="sequential", seed=1)
    assert draws.trusted and draws.log_z is not None
    assert abs(draws.log_z.value - float(log_z)) < 4.5 * draws.log_z.standard_error

    size = min(4000.0, draws.diagnostics.ess_bulk)
    bound = 0.5 * float((law * (1 - law) / size).sqrt().sum()) + math.sqrt(
        math.log(1 / RARE) / (2 * size)
    )
    found = torch.bincount(number(draws.x), minlength=6**LENGTH).double() / 4000
    assert 0.5 * float((found - law).abs().sum()) < bound

    local = torch.zeros(len(states), dtype=torch.float64)
    for t in range(LENGTH):
        with torch.no_grad():
            logits = sum(
                term.power * term.energy.next_logits(states[:, :t]).double()
                for term in target.terms
            )
        # +inf - inf at words that no factor allows: they have no weight under the product either
        q = (
            torch.where(logits.isnan(), -math.inf, logits)
            .log_softmax(-1)
            .nan_to_num(-math.inf, neginf=-math.inf)
        )
        local += q.gather(-1, states[:, t : t + 1].long()).squeeze(-1)
    words = local.exp()
    assert float(words.sum()) == pytest.approx(1, abs=1e-5)
    assert 0.5 * float((words - law).abs().sum()) > 0.05  # they are two laws
    local_draws = torch.multinomial(
        words, 4000, replacement=True, generator=torch.Generator().manual_seed(0)
    )
    wrong = torch.bincount(number(states[local_draws]), minlength=6**LENGTH).double() / 4000
    assert 0.5 * float((wrong - law).abs().sum()) > 0.5 * float((found - law).abs().sum()) + 0.02
