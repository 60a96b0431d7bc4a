"""What all commands share: the record of a command, reports, messages and failures."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

UNTRUSTED = 3  # the exit status of draws, or of an estimate, that are not trusted


class Failure(Exception):
    """An error that ends a command: its message, the exit status, and the column in an
    expression."""

    def __init__(self, message: str, status: int = 2, column: int | None = None) -> None:
        super().__init__(message)
        self.status, self.column = status, column


@dataclass(frozen=True)
class Command:
    """One command: its arguments, and a function that runs it and returns the exit status."""

    name: str
    help: str
    arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]
    aliases: tuple[str, ...] = ()


def emit(text: str, facts: dict[str, Any], as_json: bool) -> None:
    """One report on standard output."""
    print(to_json(facts) if as_json else text)


def to_json(facts: dict[str, Any]) -> str:
    """JSON has no NaN and no infinity: both are null."""
    return json.dumps(_finite(facts), allow_nan=False)


def tell(text: str) -> None:
    """A line on standard error."""
    print(f"poe: {text}", file=sys.stderr, flush=True)


def whole(least: int) -> Callable[[str], int]:
    """Reads a whole number of at least `least`, for argparse."""

    def read(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(
                f"a whole number of at least {least} is needed, not {text!r}"
            )
        return int(text)

    return read


def add_seed(parser: argparse.ArgumentParser) -> None:
    """The argument `--seed`."""
    text = "of all randomness: same seed, same result (default: %(default)s)"
    parser.add_argument("--seed", type=whole(0), default=0, help=text)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
