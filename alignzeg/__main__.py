"""`alignzeg NAME ...`, and equally `python -m alignzeg NAME ...`."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import warnings
from collections.abc import Sequence
from typing import Any

from alignzeg import __version__
from alignzeg.arguments import OneLineParser, check_pairs, did_you_mean
from alignzeg.commands import COMMANDS, guarded, refuse
from alignzeg.progress import escape_unprintable, say_loading


def usage() -> str:
    """The help text."""
    lines = [f"  {name:15}{what}" for name, what in COMMANDS.items()]
    return "\n".join(
        [
            "usage: alignzeg COMMAND ...",
            "",
            *lines,
            "",
            "alignzeg COMMAND --help says more and shows an example; --version.",
            "",
            "example:",
            "  alignzeg train --config-file configs/zeroshapes/alignzeg.yaml SEED 1",
            "",
        ]
    )


def load(name: str) -> Any:
    """The module of a command."""
    return importlib.import_module(f"alignzeg.commands.{name.replace('-', '_')}")


def main(argv: Sequence[str] | None = None) -> int:
    """Hands the words after the program's name, by default those of this process, to the command.

    Returns:
        The command's exit code; 2 after an error of the user, such as an unknown command.
    """
    escape_unprintable()
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:1] in (["-h"], ["--help"]):
        sys.stdout.write(usage())
        return 0
    if words[:1] in (["-V"], ["--version"]):
        sys.stdout.write(f"alignzeg {__version__}\n")
        return 0
    if not words or words[0] not in COMMANDS:
        kind = "option" if words and words[0].startswith("-") else "command"
        problem = f"unknown {kind} {words[0]!r}" if words else "no command given"
        hint = did_you_mean(words[0], [*COMMANDS, "--help", "--version"]) if words else ""
        return refuse(f"{problem}; {hint}it can be one of {sorted(COMMANDS)}")
    # Of fvcore, with a PyTorch that is newer than it.
    warnings.filterwarnings("ignore", r"`torch\.jit\.script` is deprecated", FutureWarning)
    command = load(words[0])
    try:
        args = read_words(command.parser(), words[1:])
    except ValueError as error:
        return refuse(str(error))
    except SystemExit:  # --help
        return 0
    say_loading()
    return guarded(
        lambda: command.main(args),
        debug=args.debug,
        resumable=getattr(command, "RESUMABLE", False),
    )


def read_words(parser: OneLineParser, words: Sequence[str]) -> argparse.Namespace:
    """Parses the words after a command; --debug may stand anywhere among them.

    Raises:
        ValueError: on a wrong word.
        SystemExit: after --help.
    """
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    # KEY VALUE pairs once stood behind --opts.
    rest = [word for word in words if word not in ("--debug", "--opts")]
    # Options may stand behind the words that such an argument takes.
    free = any(action.nargs == "*" for action in parser._actions)
    args = parser.parse_intermixed_args(rest) if free else parser.parse_args(rest)
    check_pairs(getattr(args, "opts", ()))
    args.debug = "--debug" in words or bool(os.environ.get("ALIGNZEG_DEBUG"))
    return args


if __name__ == "__main__":
    sys.exit(main())
