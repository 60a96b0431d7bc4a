"""The laws of experts; probabilities against back-off by hand, and against sums over all words; a
product against enumeration."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import pocketsphinx
import pytest
import torch
from poe_pocketsphinx import Reader, Trigram, english

import poe
from poe.testing import check_expert

WORDS = ("the", "end", "of", "day", "was")
ARPA = r"""\data\
ngram 1=5
ngram 2=4
ngram 3=2

\1-grams:
-0.5 </s>
-99 <s> -0.3
-0.6 a -0.2
-0.7 b -0.1
-0.8 c -0.4

\2-grams:
-0.2 <s> a -0.25
-0.3 a b -0.15
-0.4 b c
-0.35 b </s>

\3-grams:
-0.1 <s> a b
-0.05 a b </s>

\end\
"""


def test_obeys_the_laws_of_experts() -> None:
    report = check_expert(lambda: Trigram(WORDS, 3))
    wanted = {"normalisation", "draws match the density", "batch invariance", "save and load"}
    assert wanted <= set(report.checked)


@pytest.mark.parametrize(
    ("text", "log10"),
    [
        ("a", -0.6),
        ("<s> a", -0.2),  # a bigram
        ("<s> a b", -0.1),  # a trigram
        ("a b </s>", -0.05),
        ("a b c", -0.15 - 0.4),  # back-off of (a, b), and a bigram
        ("a b a", -0.15 - 0.1 - 0.6),  # twice back
        ("b c a", 0.0 - 0.4 - 0.6),  # (b, c) has no weight of its own
        ("b a c", -0.2 - 0.8),  # (b, a) is not there
    ],
)
def test_probabilities_of_a_small_model_are_those_of_back_off_by_hand(
    text, log10, tmp_path
) -> None:
    path = tmp_path / "small.arpa"
    path.write_text(ARPA)
    *history, word = text.split()
    # three numbers at most are added, each rounded to a whole multiple of 1e-4 nats
    assert Reader(path).log_prob(word, history) == pytest.approx(log10 * math.log(10), abs=3.1e-4)


def known_words() -> list[str]:
    lines = Path(pocketsphinx.get_model_path("en-us/cmudict-en-us.dict")).read_text().splitlines()
    words = [line.split()[0] for line in lines]
    return [word for word in words if "(" not in word and english().log_prob(word) > -math.inf]


@pytest.mark.parametrize(
    "history", [[], ["<s>"], ["<s>", "the"], ["end", "of"], ["of", "end"], ["the", "sea"]]
)
def test_the_english_model_sums_to_one_over_all_its_words(history) -> None:
    logs = torch.tensor(
        [english().log_prob(word, history) for word in [*known_words(), "</s>"]],
        dtype=torch.float64,
    )
    assert logs.exp().sum().item() == pytest.approx(1, abs=1e-3)  # the file holds rounded numbers
    assert abs((logs * 1.01).exp().sum().item() - 1) > 0.01  # units 1 % too large would be seen


def test_factors_are_those_of_the_library_renormalised_over_the_words() -> None:
    expert = Trigram(WORDS, 4).double()
    end = len(WORDS)
    reader, tokens = english(), (*WORDS, "</s>")

    def factor(word: str, *history: str) -> float:
        return reader.log_prob(word, history) - math.log(
            sum(math.exp(reader.log_prob(w, history)) for w in tokens)
        )

    cut = (
        factor("the", "<s>")
        + factor("end", "<s>", "the")
        + factor("of", "the", "end")
        + factor("the", "end", "of")
    )
    ended = factor("the", "<s>") + factor("end", "<s>", "the") + factor("</s>", "the", "end")
    found = expert.log_prob(torch.tensor([[0, 1, 2, 0], [0, 1, end, end], [0, 1, end, 0]]))
    assert found[:2].tolist() == pytest.approx([cut, ended], abs=1e-5)
    assert found[2] == -math.inf  # nothing after the end
    assert expert.texts(torch.tensor([[0, 1, 2, 0], [0, 1, end, end]])) == [
        "the end of the",
        "the end",
    ]


def test_a_product_is_drawn_by_its_global_law() -> None:
    expert, n = Trigram(WORDS, 3), 4000
    once = poe.as_energy(
        lambda x: 2.0 * (x.sort(-1).values.diff() == 0).sum(-1),
        event_shape=(3,),
        support=expert.support,
    )
    target = expert & once
    draws = poe.sample(target, n, method="sequential", seed=0)
    x = torch.tensor(list(itertools.product(range(len(WORDS) + 1), repeat=3)))
    p = (-target(x).double()).softmax(0)
    code = (len(WORDS) + 1) ** torch.arange(2, -1, -1)
    seen = torch.bincount((draws.x.long() * code).sum(-1), minlength=len(x)).double() / n
    # the mean of the distance, and the deviation that McDiarmid's inequality allows once in 1e6
    size = min(n, draws.diagnostics.ess_bulk)
    bound = 0.5 * (2 * p * (1 - p) / (math.pi * size)).sqrt().sum() + math.sqrt(
        math.log(1e6) / (2 * size)
    )
    assert 0.5 * (seen - p).abs().sum() < bound
    local = (-expert(x).double()).softmax(0)  # without the factor: must be told apart
    assert 0.5 * (seen - local).abs().sum() > bound
    assert draws.log_z is not None
    exact = (-target(x).double()).logsumexp(0).item()
    assert abs(draws.log_z.value - exact) < 5 * draws.log_z.standard_error


def test_is_found_by_name_and_comes_back_from_a_file(tmp_path) -> None:
    expert = poe.create("pocketsphinx-trigram", words=list(WORDS), length=4)
    path = tmp_path / "english.safetensors"
    poe.save(expert, path)
    x = expert.sample(20, generator=torch.Generator().manual_seed(0))
    assert torch.equal(poe.load(path)(x), expert(x))
    with pytest.raises(ValueError, match="saved with the model 00000000"):
        Trigram.from_config(words=list(WORDS), length=4, model="00000000")


@pytest.mark.parametrize("word", ["The", "zzzq", "<s>"])
def test_unknown_words_are_refused(word) -> None:
    with pytest.raises(ValueError, match="is no word of en-us.lm.bin"):
        Trigram(["the", word], 3)
    with pytest.raises(ValueError, match="names one twice"):
        Trigram(["the", "the"], 3)
