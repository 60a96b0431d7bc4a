"""Language models as densities over texts of bounded length: Hugging Face causal models, and
n-grams that can be enumerated.

An event is a text, (length,) token numbers (torch.long). With the vocabulary's special tokens
`bos`, `eos` and `pad`:

- A text starts after `bos`, which no event contains (unless it is the same token as `eos`).
- `eos` ends it, and is part of the event. After it stands `pad` alone, with probability 1; any
  other token there has energy +inf.
- Before `eos` no `pad` stands. So the probabilities of a model are normalised over all tokens but
  `bos` and `pad`, `eos` always kept.
- A text that has not ended after `length` tokens is cut: the event is its first `length` tokens,
  and its probability that of all texts which start so. Hence p sums to 1 over all events, whatever
  the length.
- Without `eos` no text ends, and every event is cut.

Probabilities are computed in float32 at least, also where a model has half precision. Events of two
experts mean the same only if their vocabularies are equal: `&`, `|` and `-` refuse others.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from experts.sequential import Autoregressive, log_probabilities, next_step
from experts.vocabulary import Vocabulary, as_vocabulary
from poe.registry import register
from poe.spaces.sites import vectors


class Text(Autoregressive):
    """Texts of a vocabulary under the policy above; a subclass gives the logits of the next token.

    Arguments:
        length: of an event, in tokens.
        vocabulary: the tokens, with those that start, end and fill a text.
    """

    _point_dtype: torch.dtype = torch.long
    allowed: Tensor
    filler: Tensor

    def __init__(self, length: int, vocabulary: Vocabulary, *, name: str | None = None) -> None:
        super().__init__((length,), len(vocabulary), name=name)
        self._vocabulary = vocabulary
        tokens = range(len(vocabulary))
        allowed = [i == vocabulary.eos or i not in (vocabulary.bos, vocabulary.pad) for i in tokens]
        filler = torch.tensor([i == vocabulary.pad for i in tokens])
        self.register_buffer("allowed", torch.tensor(allowed), persistent=False)
        self.register_buffer("filler", filler, persistent=False)

    @property
    def vocabulary(self) -> Vocabulary:
        """The tokens; experts whose vocabularies differ do not compose."""
        return self._vocabulary

    @abstractmethod
    def _tokens(self, prefix: Tensor, start: int) -> Tensor:
        # (*batch, t) -> (*batch, t + 1 - start, K)
        """Logits of the tokens at steps start, ..., t of texts that have not ended."""

    def _conditionals(self, prefix: Tensor, start: int) -> Tensor:
        # (*batch, t) -> (*batch, t + 1 - start, K)
        logs = log_probabilities(self._tokens(prefix, start).masked_fill(~self.allowed, -torch.inf))
        if self.vocabulary.eos is None:
            return logs
        ended = F.pad((prefix == self.vocabulary.eos).cumsum(-1) > 0, (1, 0))
        ended = ended[..., start:].unsqueeze(-1)
        logs = logs.masked_fill(ended & ~self.filler, -torch.inf)
        return logs.masked_fill(ended & self.filler, 0)

    def _values(self, x: Tensor) -> Tensor:
        return vectors(x, 1).long()


@register("ngram")
class NGram(Text):
    """A token depends on the `order - 1` before it: p(x_t | x_{t-order+1}, ..., x_{t-1}) ∝
    exp(logits[context, x_t]).

    Arguments:
        logits: (K + 1, ..., K + 1, K) with order - 1 axes of contexts, of K tokens. Number K in a
            context stands for what is before the text; -inf excludes a token. Learned where it is
            an `nn.Parameter`.
        length: of an event, in tokens.
        vocabulary: K distinct tokens, or a `Vocabulary` that also says which of them end and fill a
            text.

    Raises ValueError where the shape does not fit the vocabulary, or a context leaves no token.

    >>> model = NGram.fitted(["abba", "ab"], 2, Vocabulary(("a", "b", "."), eos=2), length=6)
    >>> model.vocabulary.texts(model.sample(1, generator=torch.Generator().manual_seed(1)))
    ['ababba']
    """

    logits: Tensor

    def __init__(
        self,
        logits: Tensor,
        length: int,
        vocabulary: Vocabulary | Sequence[str],
        *,
        name: str | None = None,
    ) -> None:
        vocabulary = as_vocabulary(vocabulary)
        super().__init__(length, vocabulary, name=name)
        k = len(vocabulary)
        if logits.ndim < 1 or logits.shape != (k + 1,) * (logits.ndim - 1) + (k,):
            raise ValueError(
                f"an n-gram of {vocabulary} takes logits of shape ({k + 1}, ..., {k + 1}, {k}), n "
                f"- 1 axes of contexts first, not {tuple(logits.shape)}"
            )
        best = logits.detach().masked_fill(~self.allowed, -torch.inf).amax(-1)
        if not bool(best.isfinite().all()):
            raise ValueError("a context of these logits leaves no token to follow it, or holds NaN")
        if isinstance(logits, nn.Parameter):
            self.register_parameter("logits", logits)
        else:
            self.register_buffer("logits", logits)
        self.eval()

    @classmethod
    def fitted(
        cls,
        texts: Iterable[Sequence[str | int]],
        order: int,
        vocabulary: Vocabulary | Sequence[str],
        *,
        length: int,
        smoothing: float = 0.1,
        name: str | None = None,
    ) -> NGram:
        """p(token | context) = (count + smoothing) / (total + smoothing · tokens allowed), of
        counts over whole texts.

        Texts are sequences of tokens or their numbers, without `bos` and `eos`; each ends with
        `eos` where there is one. Raises ValueError unless smoothing is positive.
        """
        if not smoothing > 0:
            raise ValueError(
                f"smoothing must be positive, not {smoothing}: unseen contexts need a probability"
            )
        vocabulary = as_vocabulary(vocabulary)
        k, ends = len(vocabulary), vocabulary.eos is not None
        counts = torch.full((k + 1,) * (order - 1) + (k,), float(smoothing), dtype=torch.float64)
        for text in texts:
            row = vocabulary.events([text], len(text) + ends)[0].tolist()
            padded = [k] * (order - 1) + row
            for t in range(len(row)):
                counts[tuple(padded[t : t + order])] += 1
        return cls(counts.log().float(), length, vocabulary, name=name)

    def _tokens(self, prefix: Tensor, start: int) -> Tensor:
        memory = self.logits.ndim - 1
        padded = F.pad(prefix.long(), (memory, 0), value=len(self.vocabulary))
        steps = prefix.shape[-1] + 1 - start
        if not memory:
            return self.logits.expand(*prefix.shape[:-1], steps, -1)
        context = padded.unfold(-1, memory, 1)[..., start:, :]  # (*batch, steps, memory)
        return self.logits[context.unbind(-1)]

    def config(self) -> dict[str, Any]:
        v = self.vocabulary
        return {
            "order": self.logits.ndim,
            "length": self.event_shape[0],
            "tokens": list(v.tokens),
            "special": {"bos": v.bos, "eos": v.eos, "pad": v.pad},
            "learnable": isinstance(self.logits, nn.Parameter),
        }

    @classmethod
    def from_config(
        cls,
        *,
        order: int,
        length: int,
        tokens: list[str],
        special: dict[str, int | None],
        learnable: bool = False,
    ) -> NGram:
        """A uniform n-gram of this shape, to be filled by `load_state_dict`."""
        k = len(tokens)
        logits = torch.zeros((k + 1,) * (order - 1) + (k,))
        logits = nn.Parameter(logits) if learnable else logits
        return cls(logits, length, Vocabulary(tuple(tokens), **special))


@register("language-model")
class LanguageModel(Text):
    """A causal language model: tokens (n, t), `bos` first, -> logits of the next token (n, t, K or
    more).

    Logits of numbers beyond the vocabulary, to which some models are padded, are dropped before
    probabilities are normalised.

    Arguments:
        model: tokens -> logits, or an object that holds them as `.logits`, as Hugging Face models
            return; `poe.as_energy(model, length=..., tokenizer=...)` wraps one of these. An
            `nn.Module` is put in eval mode and kept there.
        length: of an event, in tokens.
        vocabulary: the K tokens and the special ones; `bos` is needed.

    It holds code, so it cannot be saved. There is no cache of past steps: drawing takes `length`
    passes over a growing text. Raises ValueError without a `bos`.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        length: int,
        vocabulary: Vocabulary,
        *,
        name: str | None = None,
    ) -> None:
        super().__init__(length, vocabulary, name=name)
        if vocabulary.bos is None:
            raise ValueError(
                f"{vocabulary} has no bos, and a language model needs a token that starts the "
                "text: give bos="
            )
        self.model, self.bos = model, vocabulary.bos
        self.eval()

    def _tokens(self, prefix: Tensor, start: int) -> Tensor:
        return next_step(self._logits, prefix, self.bos, self.levels)[..., start:, :]

    def _logits(self, tokens: Tensor) -> Tensor:  # (n, t) -> (n, t, K)
        out = self.model(tokens)
        return (out if isinstance(out, Tensor) else out.logits)[..., : self.levels]

    def config(self) -> dict[str, Any]:
        raise TypeError(
            f"{self} wraps a model, which a file cannot hold: save it in its own format and wrap "
            "it again"
        )


def from_transformers(
    model: Any,
    *,
    length: int,
    tokenizer: Any = None,
    vocabulary: Vocabulary | Sequence[str] | None = None,
    bos: int | None = None,
    eos: int | None = None,
    pad: int | None = None,
    name: str | None = None,
) -> LanguageModel:
    """A Hugging Face causal model as a density over texts of `length` tokens; what
    `poe.as_energy(model, length=...)` calls.

    The tokens are those of the tokenizer, or of `vocabulary`. `bos`, `eos` and `pad` are token
    numbers; each that is not given is the vocabulary's, else the tokenizer's, else that of
    `model.config`, else: no bos is an error, no eos means that texts never end, and no pad that eos
    is repeated.

    Raises TypeError where the model is not causal or its tokens are unknown, ValueError where a
    special token is not one number.
    """
    config = model.config
    if getattr(config, "is_encoder_decoder", False) or not model.can_generate():
        raise TypeError(
            f"{type(model).__name__} does not predict a next token: a LanguageModel wraps causal "
            "models (...ForCausalLM)"
        )
    if vocabulary is None and tokenizer is None:
        raise TypeError(
            f"the tokens of {type(model).__name__} are unknown: give tokenizer=, or vocabulary= "
            "with the tokens in order; models of different vocabularies must not be composed"
        )
    special = {"bos": bos, "eos": eos, "pad": pad}
    for role, number in special.items():
        key = f"{role}_token_id"
        sources = ((vocabulary, role), (tokenizer, key), (config, key))
        found = [number, *(getattr(source, key, None) for source, key in sources)]
        special[role] = next((value for value in found if value is not None), None)
        if not isinstance(special[role], int | None):
            raise ValueError(
                f"{type(model).__name__} has several {role} tokens, {special[role]}: choose one "
                f"with {role}="
            )
    if isinstance(vocabulary, Vocabulary):
        vocabulary = vocabulary.tokens
    tokens = _tokens_of(tokenizer) if vocabulary is None else tuple(vocabulary)
    return LanguageModel(_HuggingFace(model), length, Vocabulary(tokens, **special), name=name)


def _tokens_of(tokenizer: Any) -> tuple[str, ...]:
    token_of = {number: token for token, number in tokenizer.get_vocab().items()}
    return tuple(token_of.get(number, f"<unused {number}>") for number in range(max(token_of) + 1))


class _HuggingFace(nn.Module):
    """A model of theirs as tokens -> logits: every token is attended to, those after `eos` have
    no effect; no cache is built."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor) -> Tensor:  # (n, t) -> (n, t, K or more)
        mask = torch.ones_like(tokens)
        return self.model(input_ids=tokens, attention_mask=mask, use_cache=False).logits
