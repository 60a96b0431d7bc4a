"""English texts by the word trigrams that pocketsphinx carries, an expert for `poe`.

The C library answers p(w | v, u), v the word before w and u the one before v, backing off to
bigrams and single words (Katz 1987, IEEE Trans. ASSP 35(3)). It gives whole multiples of ln 1.0001:
`LogMath` turns them into nats. A context before the first word is `<s>`.
"""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pocketsphinx
import torch
from torch import Tensor
from torch.distributions import constraints

from experts import Vocabulary
from poe import Density

START, END = "<s>", "</s>"


class Reader:
    """A language model file of pocketsphinx: log-probabilities of words after words, in nats.

    Arguments:
        path: a file that pocketsphinx reads (ARPA text or its binary form); by default the English
            model of its wheel.
    """

    def __init__(self, path: str | Path | None = None) -> None:
        self.path = Path(
            pocketsphinx.get_model_path("en-us/en-us.lm.bin") if path is None else path
        )
        self._units = pocketsphinx.LogMath()
        self._model = pocketsphinx.NGramModel(
            pocketsphinx.Config(lm=None), self._units, str(self.path)
        )

    def log_prob(self, word: str, history: Sequence[str] = ()) -> float:
        """log p(word | history) in nats, the history's last word nearest; -inf for a word that the
        model does not know."""
        units = self._model.prob(
            [word, *reversed(history)]
        )  # pocketsphinx wants the word first, then backwards in time
        return -math.inf if units <= self._units.get_zero() else self._units.log_to_ln(units)

    @functools.cached_property
    def fingerprint(self) -> str:
        """Eight digits that tell models apart: the start of the SHA-256 of the file."""
        return hashlib.sha256(self.path.read_bytes()).hexdigest()[:8]


english = functools.cache(Reader)  # read once, by the first expert


class Trigram(Density):
    """Texts of chosen words, p(x) = Π_t p(x_t | x_{t-1}, x_{t-2}), each factor renormalised over
    the words and the end of the text.

    Each word is conditioned on being one of these words. That differs from the model conditioned on
    the whole text, which would weigh a context by the probability that what follows is among the
    words. Where the words are all of the model's, the two are the same.

    An event is (length,) numbers of words. `</s>` ends a text, and fills the remaining
    places with probability 1; a text without it is cut, with the probability of all texts that
    start with it.

    Arguments:
        words: distinct lower-case words that the model knows.
        length: of an event, in words.

    Raises ValueError where a word is unknown to the model, or given twice.
    """

    order: Tensor

    def __init__(self, words: Sequence[str], length: int, *, name: str | None = None) -> None:
        tokens = (*words, END)
        unknown = [word for word in words if english().log_prob(word) == -math.inf or word == START]
        if unknown:
            raise ValueError(
                f"{unknown[0]!r} is no word of {english().path.name}: leave it out, or write it in "
                "lower case"
            )
        self._words = Vocabulary(tokens, eos=len(words))
        super().__init__((length,), support=constraints.integer_interval(0, len(words)), name=name)
        self._rows: dict[tuple[int, int], Tensor] = {}
        self.register_buffer("order", torch.arange(length), persistent=False)

    @property
    def vocabulary(self) -> Vocabulary:
        """What the numbers stand for: poe refuses to compose experts whose vocabularies differ."""
        return self._words

    def texts(self, x: Tensor) -> list[str]:  # (n, length) -> n texts
        """Events as lines of words."""
        rows = (
            row[: row.index(len(self._words) - 1)] if len(self._words) - 1 in row else row
            for row in x.tolist()
        )
        return [" ".join(self._words.tokens[i] for i in row) for row in rows]

    # ---- a density that factorises along its order: poe.algebra.capabilities.Sequential

    def next_logits(self, prefix: Tensor) -> Tensor:  # (*batch, t) -> (*batch, words + 1)
        """Normalised log-probabilities of the next word, in nats."""
        k = len(self._words)  # as a word: before the text
        before = torch.nn.functional.pad(prefix.long(), (2, 0), value=k)[..., -2:]
        codes, where = (before[..., 0] * (k + 1) + before[..., 1]).unique(return_inverse=True)
        rows = torch.stack(
            [self._row(*divmod(code, k + 1)) for code in [*codes.tolist(), k * (k + 2)]]
        )
        return rows.to(prefix.device, self.dtype)[where]

    def log_prob(self, x: Tensor) -> Tensor:  # (*batch, length) -> (*batch)
        steps = [
            self.next_logits(x[..., :t]).gather(-1, x[..., t, None].long()).squeeze(-1)
            for t in range(x.shape[-1])
        ]
        return torch.stack(steps, -1).sum(-1)

    @torch.no_grad()
    def sample(
        self, n: int | tuple[int, ...], *, generator: torch.Generator | None = None
    ) -> Tensor:
        # -> (n, length)
        batch = (n,) if isinstance(n, int) else tuple(n)
        x = torch.empty(math.prod(batch), 0, dtype=torch.long, device=self.order.device)
        for _ in range(len(self.order) if len(x) else 0):
            x = torch.cat(
                [x, torch.multinomial(self.next_logits(x).exp(), 1, generator=generator)], -1
            )
        return x.reshape(*batch, -1) if len(x) else x.new_empty(*batch, len(self.order))

    def _row(self, further: int, nearer: int) -> Tensor:  # -> (words + 1)
        """log p(. | two words), remembered: the library is asked once for each context that
        occurs."""
        if (further, nearer) not in self._rows:
            tokens = (*self._words.tokens, START)
            if nearer == len(self._words) - 1:  # the text has ended
                row = torch.full((len(self._words),), -math.inf, dtype=torch.float64)
                row[-1] = 0
            else:
                history = [tokens[i] for i in (further, nearer)][
                    nearer == len(self._words) :
                ]  # <s> stands once
                row = torch.tensor(
                    [english().log_prob(word, history) for word in self._words.tokens],
                    dtype=torch.float64,
                )
                row = row.log_softmax(-1)
            self._rows[further, nearer] = row
        return self._rows[further, nearer]

    # ---- files: what poe.save writes, and what is made of it again

    def config(self) -> dict[str, Any]:
        words = list(self._words.tokens[:-1])
        return {"words": words, "length": self.event_shape[0], "model": english().fingerprint}

    @classmethod
    def from_config(cls, *, words: list[str], length: int, model: str) -> Trigram:
        """The same expert; raises ValueError where the installed pocketsphinx carries another model
        than when it was saved."""
        if model != english().fingerprint:
            raise ValueError(
                f"it was saved with the model {model}, and the pocketsphinx installed here carries "
                f"{english().fingerprint}"
            )
        return cls(words, length)
