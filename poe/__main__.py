"""The command line: `python -m poe`, or `poe` where the package is installed. A command is one
entry of `COMMANDS`."""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
import warnings
from collections.abc import Sequence

import poe
from poe.cli import checkup, demo, inventory, logz, sample, show
from poe.cli.base import Failure, tell
from poe.io.container import StorageError

COMMANDS = (
    inventory.COMMAND,
    show.COMMAND,
    sample.COMMAND,
    logz.COMMAND,
    checkup.COMMAND,
    demo.COMMAND,
)

STATUS = """\
exit status:
  0    done
  1    the target cannot be drawn (improper, disjoint supports, no method applies), or an expert breaks a law
  2    a wrong command line, expression or file, or a missing library; an error in an expression shows its place
  3    draws or an estimate were made and are NOT TRUSTED; files are written nevertheless
  130  interrupted; no file is left half-written
  141  the reader of the output closed it

Reports go to standard output, as one JSON object with --json; progress, warnings and errors go to standard error.
"""  # noqa: E501


def parser() -> argparse.ArgumentParser:
    """The grammar of the command line."""
    layout = argparse.RawDescriptionHelpFormatter
    top = argparse.ArgumentParser(
        prog="poe", description="Products of experts.", epilog=STATUS, formatter_class=layout
    )
    top.add_argument("--version", action="version", version=f"%(prog)s {poe.__version__}")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in COMMANDS:
        sub = commands.add_parser(
            command.name,
            aliases=command.aliases,
            help=command.help,
            description=command.help[0].upper() + command.help[1:] + ".",
            epilog="Exit statuses are listed by `poe --help`.",
        )
        command.arguments(sub)
        sub.add_argument(
            "--json", action="store_true", help="report as one JSON object on standard output"
        )
        sub.set_defaults(run=command.run)
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of the command `poe`; returns the exit status. Raises SystemExit where argparse
    does, as for --help."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # a terminal that lacks a character still shows the rest
            stream.reconfigure(errors="backslashreplace")
    try:
        try:
            return _run(parser().parse_args(argv))
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # nothing more is written, not even at exit
        return 141


def _run(arguments: argparse.Namespace) -> int:
    try:
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_, **__: tell(f"warning: {message}")
            return arguments.run(arguments)
    except BrokenPipeError:
        raise
    except Failure as error:
        return _fail(str(error), error.status, error.column, arguments.json)
    except KeyboardInterrupt:
        return _fail("interrupted", 130, None, arguments.json)
    except OSError as error:
        place = f": {error.filename}" if error.filename else ""
        return _fail(f"{error.strerror or error}{place}", 2, None, arguments.json)
    except (ImportError, StorageError) as error:  # no library, or a damaged file of the zoo
        return _fail(str(error), 2, None, arguments.json)


def _fail(message: str, status: int, column: int | None, as_json: bool) -> int:
    tell(f"error: {message}")
    if as_json:
        print(json.dumps({"error": message, "status": status, "column": column}), flush=True)
    return status


if __name__ == "__main__":
    status = main()
    # Python remembers an interrupt raised inside `exec` of a text (dataclasses, namedtuples) after
    # it is handled, and would end by the signal instead of with this status; another `exec` of a
    # text clears that memory.
    exec("")
    sys.exit(status)
