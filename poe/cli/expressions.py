"""Expressions on the command line: `EXPR`, `--expert NAME=FILE`, `--seed`."""

from __future__ import annotations

import argparse
import re
import sys
from collections import ChainMap
from pathlib import Path

import poe
from poe.algebra.energy import Energy
from poe.cli.base import Failure
from poe.io import zoo
from poe.io.syntax import ExpressionError


def arguments(parser: argparse.ArgumentParser) -> None:
    """What every command on an expression takes."""
    parser.add_argument(
        "expression",
        metavar="EXPR",
        help="an expression over the zoo's names, such as 'digits.even & digits.loops'; a file "
        "that poe.save wrote; or - to read an expression from standard input",
    )
    parser.add_argument(
        "--expert",
        metavar="NAME=FILE",
        type=_binding,
        action="append",
        default=[],
        help="a name for an expert in a file; repeatable",
    )


def _binding(text: str) -> tuple[str, str]:
    name, sign, path = text.partition("=")
    if not sign or not path or not re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", name):
        raise argparse.ArgumentTypeError(
            f"NAME=FILE is needed, such as mine=mine.safetensors, not {text!r}"
        )
    return name, path


def energy(arguments: argparse.Namespace) -> Energy:
    """The energy that the command line names. Raises Failure with status 2."""
    text = arguments.expression
    try:
        if text == "-":
            text = sys.stdin.read() if sys.stdin is not None else ""
        if text.endswith(zoo.SUFFIX) and Path(text).exists():
            return poe.load(text)
        bound = {}
        for name, path in arguments.expert:
            if name in bound:
                raise Failure(f"--expert {name}= is given twice: each expert needs its own name")
            bound[name] = poe.load(path)
            bound[name].name = name
        return poe.parse(text, ChainMap(bound, zoo.Zoo()))  # type: ignore[arg-type]
    except ExpressionError as error:
        raise Failure(str(error), column=error.column) from error
    except ValueError as error:
        raise Failure(str(error)) from error
