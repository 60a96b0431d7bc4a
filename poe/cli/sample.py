"""`python -m poe sample`: draws of an expression, their evidence, and files of them."""

from __future__ import annotations

import argparse
import io
import os
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

import poe
from poe.algebra.energy import Energy
from poe.algebra.errors import ImproperWarning
from poe.cli import expressions
from poe.cli.base import UNTRUSTED, Command, Failure, add_seed, emit, tell, to_json, whole
from poe.diagnostics.draws import Draws
from poe.io.container import write_atomically
from poe.plotting import figures
from poe.sampling.methods import METHODS

PICTURES = (".png", ".pdf", ".svg")
FORMATS = (*PICTURES, ".npz", ".safetensors")


def _arguments(parser: argparse.ArgumentParser) -> None:
    expressions.arguments(parser)
    parser.add_argument(
        "-n", "--draws", type=whole(1), default=1000, help="how many draws (default: %(default)s)"
    )
    add_seed(parser)
    parser.add_argument(
        "--method", choices=METHODS, help="how to draw (default: the plan of `poe show`)"
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
    """The path with links resolved; an absolute path where there is no such file."""
    return os.path.realpath(path) if os.path.exists(path) else os.path.abspath(path)


def _run(arguments: argparse.Namespace) -> int:
    _check_outputs(arguments)
    energy = expressions.energy(arguments)
    tell(f"drawing {arguments.draws:,} of {energy}")
    draws = _drawn(energy, arguments)
    if draws.partial:
        raise KeyboardInterrupt
    for path in arguments.out:
        _write(draws, path)
        tell(f"{path} written")
    files = [str(path) for path in arguments.out]
    report = {**_evidence(draws), "seed": arguments.seed, "files": files}
    emit(draws.report(), report, arguments.json)
    return 0 if draws.trusted else UNTRUSTED


def _check_outputs(arguments: argparse.Namespace) -> None:
    """Raises where matplotlib is missing for a picture, or an output would replace an input."""
    if any(path.suffix.lower() in PICTURES for path in arguments.out):
        figures.require()
    inputs = (arguments.expression, *(path for _, path in arguments.expert))
    read = {_place(path) for path in inputs}
    for path in arguments.out:
        if _place(path) in read:
            raise Failure(f"{path} is read by this command: write the draws to another file")


def _drawn(energy: Energy, arguments: argparse.Namespace) -> Draws:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ImproperWarning)  # the report says so
        try:
            return poe.sample(
                energy,
                arguments.draws,
                method=arguments.method,
                seed=arguments.seed,
            )
        except (ValueError, TypeError) as error:
            raise Failure(str(error), 1) from error


def _write(draws: Draws, path: Path) -> None:
    """The draws in the format that the end of the path names, whole or not at all."""
    if path.suffix.lower() in PICTURES:
        draws.plot(path)
    elif path.suffix.lower() == ".npz":
        write_atomically(path, _arrays(draws))
    else:
        draws.save(path)


def _arrays(draws: Draws) -> bytes:
    """The content of a .npz file. Numpy has no bfloat16, so small floats become float32."""
    content = io.BytesIO()
    tensors = {name: getattr(draws, name).detach().cpu() for name in ("x", "chains", "energy")}
    arrays: dict[str, Any] = {
        name: (t.float() if t.dtype.itemsize < 4 and t.is_floating_point() else t).numpy()
        for name, t in tensors.items()
    }
    np.savez(content, **arrays, evidence=np.array(to_json(_evidence(draws))))
    return content.getvalue()


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


COMMAND = Command(
    "sample",
    "draw from an expression, and report how far the draws can be trusted",
    _arguments,
    _run,
)
