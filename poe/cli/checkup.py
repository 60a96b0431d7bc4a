"""`python -m poe check MODULE:FACTORY`: a user's own expert against the laws that every expert
obeys."""

from __future__ import annotations

import argparse
import importlib
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from poe import registry
from poe.algebra.energy import Energy
from poe.cli.base import Command, Failure, add_seed, emit, whole


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "factory",
        metavar="MODULE:FACTORY",
        help="a function or class that takes no arguments and gives an expert",
    )
    parser.add_argument(
        "-n",
        "--draws",
        type=whole(100),
        default=4000,
        help="of the statistical laws (default: %(default)s)",
    )
    add_seed(parser)


def _run(arguments: argparse.Namespace) -> int:
    from poe.testing import LawError, check_expert  # brings scipy, which no other command needs

    factory = _factory(arguments.factory)

    def make() -> Energy:
        try:
            return registry.as_energy(factory())
        except Exception as error:
            raise Failure(f"{arguments.factory}() failed: {_where(error)}") from error

    make()  # a factory that fails breaks no law: another exit status
    try:
        report = check_expert(make, draws=arguments.draws, seed=arguments.seed)
    except LawError as error:
        facts = {"factory": arguments.factory, "passed": False, "broken": str(error)}
        emit(str(error), facts, arguments.json)
        return 1
    facts = {"holds": report.checked, "skipped": report.skipped}
    facts = {"factory": arguments.factory, "passed": True} | facts
    emit(str(report), facts, arguments.json)
    return 0


def _factory(text: str) -> Callable[[], Any]:
    module, sign, attribute = text.partition(":")
    if not (sign and module and attribute):
        raise Failure(f"MODULE:FACTORY is needed, such as mypackage.experts:make, not {text!r}")
    sys.path.insert(0, "")  # modules of the working directory, as `python -m` finds them
    try:
        found: Any = importlib.import_module(module)
        for word in attribute.split("."):
            found = getattr(found, word)
    except Exception as error:
        raise Failure(f"cannot import {text}: {_where(error)}") from error
    if isinstance(found, Energy) or not callable(found):
        raise Failure(
            f"{text} is a {type(found).__name__}, not a function or class that builds an expert"
        )
    return found


def _where(error: BaseException) -> str:
    """An error of the user's own code in one line, with the last place outside this library."""
    frames = [
        frame for frame in traceback.extract_tb(error.__traceback__) if not _is_ours(frame.filename)
    ]
    place = f"{frames[-1].filename}:{frames[-1].lineno}: " if frames else ""
    if isinstance(error, SyntaxError):
        place = f"{error.filename}:{error.lineno}: "
        return f"{place}SyntaxError: {error.msg}"
    return f"{place}{type(error).__name__}: {error}"


def _is_ours(file: str) -> bool:
    return file.startswith((str(Path(__file__).parent), "<frozen")) or "importlib" in file


COMMAND = Command(
    "check", "check an expert of yours against the laws that every expert obeys", _arguments, _run
)
