"""`python -m poe logz`: log Z of an expression, with its standard error."""

from __future__ import annotations

import argparse
import warnings

import poe
from poe.algebra.energy import Energy, Estimate
from poe.algebra.errors import ImproperWarning
from poe.cli import expressions
from poe.cli.base import UNTRUSTED, Command, Failure, add_seed, emit, tell, whole
from poe.sampling.estimation import EstimateWarning
from poe.sampling.log_partition import ESTIMATORS


def _arguments(parser: argparse.ArgumentParser) -> None:
    expressions.arguments(parser)
    parser.add_argument(
        "-n",
        "--draws",
        type=whole(32),
        help="particles in all (default: as many as the method needs)",
    )
    add_seed(parser)
    parser.add_argument(
        "--method",
        choices=ESTIMATORS,
        help="how to estimate (default: the first method that applies)",
    )


def _run(arguments: argparse.Namespace) -> int:
    energy = expressions.energy(arguments)
    tell(f"estimating log Z of {energy}")
    estimate, doubts = _estimated(energy, arguments)
    if energy.proper is None:
        tell(
            f"warning: it is unknown whether {energy} has finite mass; if it has not, this number "
            "has no meaning"
        )
    facts = {
        "expression": str(energy),
        "log_z": estimate._asdict(),
        "proper": energy.proper,
        "warnings": doubts,
        "trusted": not doubts,
    }
    lines = [f"log Z of {energy}: {estimate}", *(f"NOT TRUSTED: {doubt}" for doubt in doubts)]
    emit("\n".join(lines), facts, arguments.json)
    return UNTRUSTED if doubts else 0


def _estimated(energy: Energy, arguments: argparse.Namespace) -> tuple[Estimate, list[str]]:
    """The estimate, and the reasons not to trust it."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", EstimateWarning)
        warnings.simplefilter("ignore", ImproperWarning)  # the command warns by itself
        try:
            estimate = poe.log_z(
                energy,
                draws=arguments.draws,
                method=arguments.method,
                seed=arguments.seed,
            )
        except (ValueError, TypeError) as error:
            raise Failure(str(error), 1) from error
    doubts = [str(w.message) for w in caught if issubclass(w.category, EstimateWarning)]
    return estimate, doubts


COMMAND = Command(
    "logz",
    "estimate log Z of an expression in nats, exact where that is possible",
    _arguments,
    _run,
)
