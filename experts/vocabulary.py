"""What the numbers of a text stand for."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True)
class Vocabulary:
    """What token numbers stand for: `tokens[i]` is number i. `bos`, `eos` and `pad` are numbers
    too, or None.

    Two vocabularies are equal where their tokens, `eos` and `pad` are; `bos` is not part of
    an event. With an `eos` and no `pad`, `eos` is repeated. Raises ValueError where tokens are not
    distinct, or a special token is not the number of one.

    >>> letters = Vocabulary(("a", "b", "."), eos=2)
    >>> letters.events(["ab", "bbb"], length=3)
    tensor([[0, 1, 2],
            [1, 1, 1]])
    >>> letters.texts(torch.tensor([[0, 1, 2]]))
    ['ab']
    """

    tokens: tuple[str, ...]
    bos: int | None = field(default=None, compare=False)
    eos: int | None = None
    pad: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "tokens", tuple(self.tokens))
        object.__setattr__(self, "pad", self.eos if self.pad is None else self.pad)
        if len(set(self.tokens)) < len(self.tokens):
            raise ValueError(f"the tokens of a vocabulary must be distinct; {self} has one twice")
        for role, number in (("bos", self.bos), ("eos", self.eos), ("pad", self.pad)):
            if number is not None and not 0 <= number < len(self.tokens):
                raise ValueError(
                    f"{role} must be the number of a token of {self}, 0 to "
                    f"{len(self.tokens) - 1}, not {number!r}"
                )

    def __len__(self) -> int:
        return len(self.tokens)

    def __str__(self) -> str:
        return (
            f"a vocabulary of {len(self)} tokens ({self.fingerprint}), eos={self.eos}, "
            f"pad={self.pad}"
        )

    @cached_property
    def fingerprint(self) -> str:
        """Eight digits that tell vocabularies apart in messages: the start of the SHA-256 of the
        tokens."""
        return hashlib.sha256(json.dumps(self.tokens).encode()).hexdigest()[:8]

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {token: number for number, token in enumerate(self.tokens)}

    def events(self, texts: Iterable[Sequence[str | int]], length: int) -> Tensor:  # -> (n, length)
        """Texts, each a sequence of tokens or their numbers without `bos` and `eos`, as events:
        ended, padded, and cut to `length`.

        Raises ValueError where a token is unknown, or a text is short and there is no `eos` to end
        it.
        """
        rows = []
        for text in texts:
            row = [self._numbers.get(t, -1) if isinstance(t, str) else int(t) for t in text]
            row = row[:length]
            for token, number in zip(text, row, strict=False):
                if not 0 <= number < len(self):
                    raise ValueError(f"{token!r} is not a token of {self}")
            if len(row) < length and self.eos is None:
                raise ValueError(
                    f"a text of {len(row)} tokens is shorter than {length}, and {self} has no eos "
                    "to end it"
                )
            rows.append([*row, self.eos, *[self.pad] * length][:length])
        return torch.tensor(rows, dtype=torch.long).reshape(-1, length)

    def texts(self, x: Tensor) -> list[str]:  # (n, length) -> n texts
        """Tokens up to `eos`, joined."""
        rows = (row[: row.index(self.eos)] if self.eos in row else row for row in x.tolist())
        return ["".join(self.tokens[number] for number in row) for row in rows]


def as_vocabulary(tokens: Vocabulary | Sequence[str]) -> Vocabulary:
    """The vocabulary itself, or one of these tokens without special ones."""
    return tokens if isinstance(tokens, Vocabulary) else Vocabulary(tuple(tokens))
