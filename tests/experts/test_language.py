"""Language models: sums over all texts, the policy for bos, eos and pad, vocabularies, and a tiny
GPT-2 made from a config."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

import experts
import poe
from experts import LanguageModel, NGram, Vocabulary
from poe.algebra.capabilities import Samples, Sequential
from poe.spaces import points
from poe.testing import check_expert

F64 = torch.float64
WORDS = ("<s>", "a", "b", "c", "</s>", "<pad>")
PLAIN = Vocabulary(WORDS, bos=0, eos=4, pad=5)
POLICIES = {
    "all distinct": PLAIN,
    "eos fills": Vocabulary(WORDS[:5], bos=0, eos=4),
    "one token starts, ends and fills": Vocabulary(WORDS[:5], bos=4, eos=4),
    "bos fills": Vocabulary(WORDS[:5], bos=0, eos=4, pad=0),
    "no end": Vocabulary(WORDS[:4], bos=0),
    "no special token": Vocabulary(WORDS[1:4]),
}


def ngram(vocabulary=PLAIN, order=3, length=5, seed=0, dtype=torch.float32):
    k = len(vocabulary)
    g = torch.Generator().manual_seed(seed)
    return NGram(
        1.5 * torch.randn((k + 1,) * (order - 1) + (k,), generator=g, dtype=dtype),
        length,
        vocabulary,
        name=f"lm{seed}",
    )


def gpt2(size=6, seed=0):
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(
        vocab_size=size,
        n_positions=12,
        n_embd=16,
        n_layer=2,
        n_head=2,
        bos_token_id=0,
        eos_token_id=4,
        initializer_range=0.6,
    )
    torch.manual_seed(seed)
    return transformers.GPT2LMHeadModel(config)


def wrapped(length=4):
    return poe.as_energy(gpt2(), length=length, vocabulary=WORDS, pad=5)


@pytest.mark.parametrize("vocabulary", POLICIES.values(), ids=POLICIES.keys())
@pytest.mark.parametrize("order", [1, 2, 3])
def test_ngrams_sum_to_one_over_all_texts(vocabulary, order):
    expert = ngram(vocabulary, order, dtype=F64)
    x = points(expert)
    assert len(x) == len(vocabulary) ** 5
    assert expert.log_prob(x).exp().sum().item() == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("length", [1, 3, 5])
def test_gpt2_sums_to_one_over_all_texts(length):
    expert = wrapped(length)
    total = (-expert(points(expert)).double()).exp().sum()
    assert total.item() == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize(
    "make", [ngram, wrapped, lambda: ngram(POLICIES["no end"]), lambda: ngram(PLAIN, order=1)]
)
def test_obeys_the_laws_of_experts(make):
    report = check_expert(make)
    assert {"normalisation", "draws match the density", "batch invariance", "eval mode"} <= set(
        report.checked
    )
    assert ("save and load" in report.checked) == isinstance(make(), NGram)


@pytest.mark.parametrize("make", [ngram, wrapped])
def test_next_logits_are_normalised_and_multiply_to_the_density(make):
    expert = make()
    assert expert.can(Sequential)
    assert expert.can(Samples)
    x = expert.sample((2, 50), generator=torch.Generator().manual_seed(1))
    total = torch.zeros(2, 50)
    for t in range(x.shape[-1]):
        logs = expert.next_logits(x[..., :t])
        assert torch.allclose(logs.exp().sum(-1), torch.ones(2, 50))
        total += logs.gather(-1, x[..., t, None]).squeeze(-1)
    assert torch.allclose(total, expert.log_prob(x), atol=1e-5)


def test_a_bigram_by_hand():
    """Probabilities written down; bos and pad are left out of the normalisation, and after eos the
    text is sure."""
    k = len(WORDS)
    p = torch.zeros(k + 1, k, dtype=F64)
    p[:, 0] = p[:, 5] = 7.0  # must not matter
    p[6, 1:5] = torch.tensor([0.5, 0.2, 0.2, 0.1])
    p[1, 1:5] = torch.tensor([0.1, 0.6, 0.1, 0.2])
    p[2, 1:5] = torch.tensor([0.3, 0.3, 0.0, 0.4])
    p[[0, 3, 4, 5], 1:5] = 0.25
    expert = NGram(p.log(), 4, PLAIN)
    known = {
        (1, 2, 4, 5): 0.5 * 0.6 * 0.4,
        (4, 5, 5, 5): 0.1,
        (1, 1, 2, 1): 0.5 * 0.1 * 0.6 * 0.3,  # cut
        (2, 3, 4, 5): 0.0,
        (1, 4, 4, 5): 0.0,  # not pad after eos
        (1, 4, 5, 1): 0.0,
        (1, 5, 5, 5): 0.0,  # pad before eos
        (0, 1, 4, 5): 0.0,  # bos inside
    }
    found = expert.log_prob(torch.tensor(list(known))).exp()
    assert torch.allclose(found, torch.tensor(list(known.values()), dtype=F64), atol=1e-15)
    assert (expert(torch.tensor([1, 5, 5, 5])) == math.inf).all()


def test_gpt2_gives_what_the_model_says_and_right_padding_does_not_matter():
    model = gpt2().eval()
    expert = poe.as_energy(model, length=5, vocabulary=WORDS, pad=5)
    assert isinstance(expert, LanguageModel)
    with torch.no_grad():
        logits = model(torch.tensor([[0, 1, 3, 2]])).logits[0]
        logits[:, [0, 5]] = -math.inf
        expected = logits.log_softmax(-1)[range(4), [1, 3, 2, 4]].sum()
        assert torch.allclose(expert.log_prob(torch.tensor([1, 3, 2, 4, 5])), expected, atol=1e-5)
        longer = poe.as_energy(model, length=9, vocabulary=WORDS, pad=5)
        assert torch.allclose(
            longer.log_prob(torch.tensor([1, 3, 2, 4, 5, 5, 5, 5, 5])), expected, atol=1e-5
        )


def test_energies_of_a_batch_of_unequal_texts_are_those_of_its_rows():
    expert = wrapped(8)
    x = PLAIN.events(["", "a", "abc", "cab", "aaabbbccc"], length=8)
    assert torch.allclose(expert(x), torch.stack([expert(row) for row in x]), atol=1e-5)
    assert expert(x).isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_models_give_float32_log_probabilities(dtype):
    whole, half = wrapped(4), poe.as_energy(gpt2().to(dtype), length=4, vocabulary=WORDS, pad=5)
    x = whole.sample(20, generator=torch.Generator().manual_seed(0))
    assert half(x).dtype == torch.float32
    # half precision would be off by 1e-3
    assert half.next_logits(x[:, :2]).exp().sum(-1).sub(1).abs().max() < 1e-6
    assert torch.allclose(half(x), whole(x), atol=0.5)


def test_logits_beyond_the_vocabulary_are_dropped():
    padded = poe.as_energy(gpt2(size=8), length=3, vocabulary=WORDS, pad=5)
    assert (-padded(points(padded)).double()).exp().sum().item() == pytest.approx(1, abs=1e-6)


def test_special_tokens_come_from_arguments_then_tokenizer_then_model():
    class Tokenizer:
        bos_token_id, eos_token_id, pad_token_id = 1, 3, None

        def get_vocab(self):
            return {"x": 0, "<s>": 1, "y": 2, "</s>": 3, "z": 5}

    model = gpt2()
    assert poe.as_energy(model, length=3, tokenizer=Tokenizer(), pad=5).vocabulary == Vocabulary(
        ("x", "<s>", "y", "</s>", "<unused 4>", "z"), bos=1, eos=3, pad=5
    )
    assert poe.as_energy(model, length=3, vocabulary=WORDS).vocabulary == Vocabulary(
        WORDS, bos=0, eos=4, pad=4
    )
    with pytest.raises(TypeError, match="the tokens of GPT2LMHeadModel are unknown"):
        poe.as_energy(model, length=3)
    model.config.eos_token_id = [3, 4]
    with pytest.raises(ValueError, match=r"several eos tokens, \[3, 4\]: choose one with eos="):
        poe.as_energy(model, length=3, vocabulary=WORDS)
    model.config.bos_token_id = None
    with pytest.raises(ValueError, match="has no bos"):
        poe.as_energy(model, length=3, vocabulary=WORDS, eos=4)


def test_models_that_predict_no_next_token_are_refused():
    transformers = pytest.importorskip("transformers")
    small = {
        "vocab_size": 6,
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
    }
    model = transformers.BertForSequenceClassification(transformers.BertConfig(**small))
    with pytest.raises(TypeError, match="does not predict a next token"):
        poe.as_energy(model, length=3, vocabulary=WORDS)


def test_training_of_a_parent_leaves_a_language_model_as_it_is():
    expert = wrapped(4)
    x = PLAIN.events(["ab"], length=4)
    before = expert(x)
    torch.nn.ModuleList([expert]).train()
    assert torch.equal(expert(x), before)


# two words change places
OTHER = Vocabulary(("<s>", "a", "c", "b", "</s>", "<pad>"), bos=0, eos=4, pad=5)


@pytest.mark.parametrize(
    "compose",
    [
        lambda a, b: a & b,
        lambda a, b: a | b,
        lambda a, b: a - b,
        lambda a, b: a / b,
        lambda a, b: a**2 & ~b,
        lambda a, b: poe.mixture([a, b], weights=[0.5, 0.5]),
        lambda a, b: poe.combine([a, a], prior=b),
    ],
)
def test_different_vocabularies_do_not_compose(compose):
    same, other = ngram(seed=1), ngram(OTHER, seed=2)
    assert compose(ngram(), same).vocabulary == PLAIN
    with pytest.raises(
        ValueError, match=r"is over a vocabulary of 6 tokens \(\w{8}\).* over a vocabulary of 6"
    ):
        compose(same, other)
    with pytest.raises(ValueError, match="lm1.*lm2"):
        compose(same, other)
    with pytest.raises(ValueError, match="eos=3"):
        compose(same, ngram(Vocabulary(WORDS, eos=3, pad=5)))


def test_energies_that_say_nothing_compose_with_any_text():
    text = ngram()
    uniform = poe.create("categorical", logits=torch.zeros(5, 6))
    assert (text & uniform).vocabulary == PLAIN
    assert uniform.vocabulary is None
    # what stands at a place is the part's own affair
    on_part = poe.on(ngram(OTHER, length=3), [0, 1, 2], (5,))
    assert (text & on_part).vocabulary == PLAIN


def test_a_product_of_two_models_is_drawn_exactly():
    product = ngram(seed=1) & ngram(seed=2) ** 0.5
    draws = poe.sample(product, 4000, seed=0)
    x = points(product)
    p = (-product(x).double()).softmax(0)
    code = 6 ** torch.arange(5)
    seen = torch.bincount((draws.x.long() * code).sum(-1), minlength=6**5).double() / 4000
    expected = torch.zeros_like(seen).index_put(((x.long() * code).sum(-1),), p)
    distance = 0.5 * (seen - expected).abs().sum()
    bound = 0.5 * (2 * p * (1 - p) / (math.pi * 4000)).sqrt().sum() + math.sqrt(
        math.log(1e6) / (2 * 4000)
    )
    # the mean of the distance, and the deviation that McDiarmid's inequality allows once in 1e6
    assert distance < bound


def test_fitted_ngram_has_smoothed_frequencies():
    texts = ["abc", "ab", "b", ""]
    expert = NGram.fitted(texts, 2, PLAIN, length=4, smoothing=0.5)
    start = torch.tensor([2, 1, 0, 1]) + 0.5  # a, b, c, eos first
    after_b = torch.tensor([0, 0, 1, 2]) + 0.5
    for prefix, counts in ((torch.empty(0), start), (torch.tensor([1.0, 2.0]), after_b)):
        found = expert.next_logits(prefix).exp()
        assert torch.allclose(found[1:5], counts / counts.sum())
        assert found[[0, 5]].eq(0).all()
    trigram = NGram.fitted(texts, 3, PLAIN, length=4, smoothing=0.5)
    assert torch.allclose(
        trigram.next_logits(torch.tensor([1, 2])).exp()[1:5], torch.tensor([0.5, 0.5, 1.5, 1.5]) / 4
    )
    numbers = NGram.fitted([[1, 2, 3], [1, 2], [2], []], 2, PLAIN, length=4, smoothing=0.5)
    assert torch.equal(numbers.logits, expert.logits)
    with pytest.raises(ValueError, match="smoothing must be positive"):
        NGram.fitted(texts, 2, PLAIN, length=4, smoothing=0.0)


def test_vocabulary_reads_and_writes_texts():
    x = PLAIN.events(["ab", "", "cccc", "abcabc"], length=4)
    assert x.tolist() == [[1, 2, 4, 5], [4, 5, 5, 5], [3, 3, 3, 3], [1, 2, 3, 1]]
    assert PLAIN.texts(x) == ["ab", "", "cccc", "abca"]
    assert Vocabulary(WORDS, bos=3, eos=4, pad=5) == PLAIN  # bos is no part of an event
    assert PLAIN != OTHER
    with pytest.raises(ValueError, match="'z' is not a token"):
        PLAIN.events(["az"], length=3)
    with pytest.raises(ValueError, match="has no eos to end it"):
        Vocabulary(WORDS).events(["ab"], length=3)
    with pytest.raises(ValueError, match="has one twice"):
        Vocabulary(("a", "a"))
    with pytest.raises(ValueError, match="eos must be the number of a token"):
        Vocabulary(("a", "b"), eos=2)


def test_nonsense_tables_are_refused():
    with pytest.raises(ValueError, match=r"takes logits of shape \(7, ..., 7, 6\)"):
        NGram(torch.zeros(6, 6), 4, PLAIN)
    with pytest.raises(ValueError, match="leaves no token"):
        NGram(torch.full((7, 6), -math.inf), 4, PLAIN)
    with pytest.raises(TypeError, match="wraps a model"):
        LanguageModel(lambda tokens: torch.zeros(*tokens.shape, 6), 4, PLAIN).config()


def test_plain_functions_are_language_models_too():
    uniform = LanguageModel(lambda tokens: torch.zeros(*tokens.shape, 6), 3, PLAIN)
    for text in itertools.product((1, 2, 3), repeat=3):
        assert torch.allclose(uniform.log_prob(torch.tensor(text)), torch.tensor(-3 * math.log(4)))
    assert experts.LanguageModel is LanguageModel
