"""Commands of `python -m poe` on expressions: show, sample, logz; and what all commands share."""

from __future__ import annotations

import argparse
import io
import json
import math
import os
import re
import sys
import warnings
from collections import ChainMap
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

import poe
from poe.algebra import outline
from poe.algebra.energy import Energy
from poe.algebra.errors import ImproperWarning
from poe.diagnostics.draws import Draws
from poe.io import zoo
from poe.io.container import write_atomically
from poe.io.syntax import ExpressionError
from poe.plotting import figures as plotting
from poe.sampling.partition import METHODS as ESTIMATORS
from poe.sampling.partition import EstimateWarning
from poe.sampling.planning import METHODS, drawing

PICTURES = (".png", ".pdf", ".svg")
FORMATS = (*PICTURES, ".npz", ".safetensors")
UNTRUSTED = 3  # the status of draws that were made and are not trusted


class Failure(Exception):
    """What ends a command: a message, the exit status, and the column of an expression."""

    def __init__(self, message: str, status: int = 2, column: int | None = None) -> None:
        super().__init__(message)
        self.status, self.column = status, column


@dataclass(frozen=True)
class Command:
    """One word of the command line: what it takes, and a function that does it and returns the exit
    status."""

    name: str
    help: str
    arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]
    aliases: tuple[str, ...] = ()


def emit(text: str, facts: dict[str, Any], as_json: bool) -> None:
    """One report on standard output. JSON knows no NaN and no infinity: both are null."""
    print(json.dumps(_plain(facts), allow_nan=False) if as_json else text)


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


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


# ---------------------------------------------------------------- expressions


def _expression_arguments(parser: argparse.ArgumentParser) -> None:
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


def _energy(arguments: argparse.Namespace) -> Energy:
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
                raise Failure(
                    f"--expert {name}= is given twice: give each expert a name of its own"
                )
            bound[name] = poe.load(path)
            bound[name].name = name
        return poe.parse(text, ChainMap(bound, zoo.Zoo()))  # type: ignore[arg-type]
    except ExpressionError as error:
        raise Failure(str(error), column=error.column) from error
    except ValueError as error:
        raise Failure(str(error)) from error


# ---------------------------------------------------------------- show, sample, logz


def _show(arguments: argparse.Namespace) -> int:
    energy = _energy(arguments)
    tree = outline.outline(energy)
    methods, plan = drawing(energy)
    facts = outline.words(energy)
    width = max(map(len, facts))
    lines = [str(energy), ""] + [
        f"{title.ljust(width)}  {_indented(text, width + 2)}" for title, text in facts.items()
    ]
    report = {
        "expression": str(energy),
        **outline.facts(energy),
        "methods": methods,
        "plan": plan,
        "tree": _branch(tree),
    }
    emit("\n".join([*lines, "", *outline.lines(tree)]), report, arguments.json)
    return 0


def _indented(text: str, margin: int) -> str:
    return ("\n" + " " * margin).join(text.splitlines())


def _branch(node: outline.Node) -> dict[str, Any]:
    return {
        "role": node.role,
        "expression": node.text,
        "kind": node.kind,
        **node.facts,
        "parts": [_branch(p) for p in node.parts],
    }


def _sample_arguments(parser: argparse.ArgumentParser) -> None:
    _expression_arguments(parser)
    parser.add_argument(
        "-n", "--draws", type=whole(1), default=1000, help="how many draws (default: %(default)s)"
    )
    parser.add_argument(
        "--seed",
        type=whole(0),
        default=0,
        help="of all randomness: same seed, same draws (default: %(default)s)",
    )
    parser.add_argument(
        "--method", choices=METHODS, help="how to draw; by default as `poe show` plans it"
    )
    parser.add_argument(
        "--out",
        metavar="FILE",
        type=_output,
        action="append",
        default=[],
        help=f"a file for the draws: a picture ({', '.join(PICTURES)}), arrays (.npz), or all with "
        "the evidence (.safetensors, read by poe.Draws.load); repeatable",
    )


def _output(text: str) -> Path:
    path = Path(text)
    if path.suffix.lower() not in FORMATS:
        raise argparse.ArgumentTypeError(f"{text!r} does not end in one of {', '.join(FORMATS)}")
    if not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"there is no directory {str(path.parent)!r}")
    if path.is_dir():
        raise argparse.ArgumentTypeError(f"{text!r} is a directory")
    return path


def _place(path: str | Path) -> str:
    """The file itself, links followed; a text that names none as it stands."""
    return os.path.realpath(path) if os.path.exists(path) else os.path.abspath(path)


def _sample(arguments: argparse.Namespace) -> int:
    if any(path.suffix.lower() in PICTURES for path in arguments.out):
        plotting.require()
    read = {
        _place(path) for path in (arguments.expression, *(path for _, path in arguments.expert))
    }
    for path in arguments.out:
        if _place(path) in read:
            raise Failure(f"{path} is read by this command: write the draws to another file")
    energy = _energy(arguments)
    tell(f"drawing {arguments.draws:,} of {energy}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ImproperWarning)  # the report says so
        try:
            draws = poe.sample(
                energy,
                arguments.draws,
                method=arguments.method,
                seed=arguments.seed,
                progress=sys.stderr.isatty(),
            )
        except (ValueError, TypeError) as error:
            raise Failure(str(error), 1) from error
    if draws.partial:
        raise KeyboardInterrupt
    for path in arguments.out:
        _write(draws, path)
        tell(f"{path} written")
    files = [str(path) for path in arguments.out]
    emit(
        draws.report(), {**_evidence(draws), "seed": arguments.seed, "files": files}, arguments.json
    )
    return 0 if draws.trusted else UNTRUSTED


def _write(draws: Draws, path: Path) -> None:
    """The draws in the format that the end of the path names, whole or not at all."""
    if path.suffix.lower() in PICTURES:
        draws.plot(path)
    elif path.suffix.lower() == ".npz":
        content = io.BytesIO()
        evidence = json.dumps(_plain(_evidence(draws)), allow_nan=False)
        tensors = {name: getattr(draws, name).detach().cpu() for name in ("x", "chains", "energy")}
        arrays = {
            name: (t.float() if t.dtype.itemsize < 4 and t.is_floating_point() else t).numpy()
            for name, t in tensors.items()
        }
        np.savez(content, **arrays, evidence=np.array(evidence))  # type: ignore[arg-type]
        write_atomically(path, content.getvalue())
    else:
        draws.save(path)


def _evidence(draws: Draws) -> dict[str, Any]:
    return {
        "expression": draws.expression,
        "draws": len(draws),
        "event_shape": list(draws.x.shape[1:]),
        "method": draws.method,
        "exact": draws.exact,
        "plan": draws.plan,
        "log_z": None if draws.log_z is None else draws.log_z._asdict(),
        "diagnostics": draws.diagnostics.asdict(),
        "warnings": list(draws.warnings),
        "conditions": draws.conditions,
        "trusted": draws.trusted,
        "verdict": draws.verdict,
        "agreement": None if draws.agreement is None else asdict(draws.agreement),
    }


def _logz_arguments(parser: argparse.ArgumentParser) -> None:
    _expression_arguments(parser)
    parser.add_argument(
        "-n",
        "--draws",
        type=whole(32),
        help="particles in all; by default as many as the way of estimating needs",
    )
    parser.add_argument(
        "--seed", type=whole(0), default=0, help="of all randomness (default: %(default)s)"
    )
    parser.add_argument(
        "--method",
        choices=ESTIMATORS,
        help="how to estimate; by default the first that applies, as measured",
    )


def _logz(arguments: argparse.Namespace) -> int:
    energy = _energy(arguments)
    tell(f"estimating log Z of {energy}")
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always", EstimateWarning)
        warnings.simplefilter("ignore", ImproperWarning)  # said below
        try:
            found = poe.log_z(
                energy,
                draws=arguments.draws,
                method=arguments.method,
                seed=arguments.seed,
                progress=sys.stderr.isatty(),
            )
        except (ValueError, TypeError) as error:
            raise Failure(str(error), 1) from error
    doubts = [
        str(warning.message) for warning in said if issubclass(warning.category, EstimateWarning)
    ]
    if energy.proper is None:
        tell(
            f"warning: nobody knows whether {energy} has finite mass; if it has not, this number "
            "means nothing"
        )
    facts = {
        "expression": str(energy),
        "log_z": found._asdict(),
        "proper": energy.proper,
        "warnings": doubts,
        "trusted": not doubts,
    }
    lines = [f"log Z of {energy}: {found}", *(f"NOT TRUSTED: {doubt}" for doubt in doubts)]
    emit("\n".join(lines), facts, arguments.json)
    return UNTRUSTED if doubts else 0


SHOW = Command(
    "show",
    "show an expression as a tree, with its facts and the plan to draw it",
    _expression_arguments,
    _show,
)
SAMPLE = Command(
    "sample",
    "draw from an expression, and report how far the draws can be trusted",
    _sample_arguments,
    _sample,
)
LOGZ = Command(
    "logz",
    "estimate log Z of an expression in nats, exact where that is possible",
    _logz_arguments,
    _logz,
)
