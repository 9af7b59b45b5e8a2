"""The command lines of all commands: what is wrong with one is one line, like any other error.

Nothing heavy is imported here, so that --help and a wrong word are answered at once.
"""

from __future__ import annotations

import argparse
import difflib
import math
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

# Environment variable in which a command gives its process id to the trainings that it starts, so
# that they save and end when it is gone.
PARENT = "ALIGNZEG_PARENT"
# What begins the last paragraph of a command's help.
_EXAMPLE = "example:\n  "
# Bytes of a file's or folder's name at most.
_LONGEST_NAME = 255


class TrainingError(RuntimeError):
    """A training that a command has started failed; the message holds the end of its log."""


class OneLineParser(argparse.ArgumentParser):
    """A parser whose error is raised as ValueError, to be reported on one line."""

    _words: Sequence[str] = ()

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse's; keeps the words, for a hint at what was meant."""
        self._words = [str(word) for word in (sys.argv[1:] if args is None else args)]
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> Any:
        """Raises the message, with the options that unknown ones look like.

        Raises:
            ValueError: always.
        """
        flags = [word.partition("=")[0] for word in self._words if word.startswith("--")]
        unknown = [flag for flag in flags if not self._known(flag)]
        hints = [did_you_mean(flag, self._option_string_actions) for flag in unknown]
        if unknown and "unrecognized arguments" not in message:
            message = f"{message}; unknown option {unknown[0]}"
        # What lacks is told best by a line that has it.
        shown = example_of(self) if "are required" in message else ""
        example = f", or for example: {shown}" if shown else ""
        raise ValueError(f"{message}; {''.join(dict.fromkeys(hints))}see --help{example}")

    def _known(self, flag: str) -> bool:
        return any(option.startswith(flag) for option in self._option_string_actions)


class _Formatter(argparse.HelpFormatter):
    """Fills paragraphs, and leaves the example as it is written."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return text if text.startswith(_EXAMPLE) else super()._fill_text(text, width, indent)


def command_parser(name: str, description: str, example: str) -> OneLineParser:
    """The parser of `alignzeg NAME`, still without arguments; the example is a command line."""
    return OneLineParser(
        prog=f"alignzeg {name}",
        description=description,
        epilog=f"{_EXAMPLE}{example}",
        formatter_class=_Formatter,
    )


def example_of(parser: argparse.ArgumentParser) -> str:
    """The command line that the help of a `command_parser` shows."""
    return (parser.epilog or "").removeprefix(_EXAMPLE)


def add_config_file(parser: argparse.ArgumentParser, *, required: bool = False) -> None:
    """Adds --config-file."""
    parser.add_argument(
        "--config-file",
        default="",
        required=required,
        metavar="FILE",
        help="the YAML file of the config" + ("" if required else "; the defaults without one"),
    )


def add_opts(parser: argparse.ArgumentParser, *, alone: bool = True) -> None:
    """Adds the KEY VALUE pairs at the end of a command line.

    They are `alone` if no other words without a dash come before them. Options must then; otherwise
    they may stand anywhere.
    """
    parser.add_argument(
        "opts",
        nargs=argparse.REMAINDER if alone else "*",
        default=[],
        metavar="KEY VALUE",
        help="config keys and their values, such as SEED 1, which replace those of the config; "
        "they come last",
    )


def add_trust(parser: argparse.ArgumentParser) -> None:
    """Adds --plugins and --trust-code, for commands that take a config out of a checkpoint."""
    parser.add_argument(
        "--plugins",
        default="",
        metavar="FILES",
        help="Python files, separated by commas, that hold components of the checkpoint's model; "
        "those that it lists itself do not run",
    )
    parser.add_argument(
        "--trust-code",
        action="store_true",
        help="run the Python files that the checkpoint lists; read them before",
    )


def code_allowed(args: argparse.Namespace) -> dict[str, Any]:
    """What `add_trust` was told, as arguments of `Predictor` and all else that reads a config."""
    files = [word.strip() for word in args.plugins.split(",") if word.strip()]
    return {"plugins": files, "trust_code": args.trust_code}


def check_pairs(opts: Sequence[str]) -> None:
    """Refuses KEY VALUE pairs that are none.

    Raises:
        ValueError: on an option among them, or an odd number of words.
    """
    for word in opts:
        if word.startswith("--"):
            raise ValueError(
                f"{word} comes after the KEY VALUE pairs and would be ignored; put it before them"
            )
    if len(opts) % 2:
        raise ValueError(
            f"config options come in pairs KEY VALUE, but {len(opts)} words were given; "
            f"the last one is {opts[-1]!r}: give both, as in SEED 1, or leave it out"
        )


def did_you_mean(word: object, known: Iterable[str]) -> str:
    """`did you mean 'NAME'? ` for the name that is spelled most alike, or nothing.

    The word may be what a file holds in the place of one, such as a number.
    """
    names = {name.lower(): name for name in known}
    near = difflib.get_close_matches(str(word).lower(), names, n=1, cutoff=0.6)
    return f"did you mean {names[near[0]]!r}? " if near else ""


def number(kind: Callable[[str], Any], low: float, high: float = math.inf) -> Callable[[str], Any]:
    """The type of an option: an int or float (`kind`) in a range."""
    span = f"{low:g} or more" if math.isinf(high) else f"from {low:g} to {high:g}"

    def read(text: str) -> Any:
        try:
            value = kind(text)
            fits = low <= value <= high
        except ValueError:
            fits = False
        if not fits:
            what = "a whole number" if kind is int else "a number"
            raise argparse.ArgumentTypeError(f"{text!r} is not {what} {span}")
        return value

    return read


def require_folder(path: str | Path, option: str) -> Path:
    """Refuses a folder that cannot be made or written to; nothing is made.

    Raises:
        ValueError: naming the option, the folder and what is in its way.
    """
    if not str(path).strip():
        raise ValueError(f"{option} is {str(path)!r}; give the name of a folder")
    folder = Path(path).expanduser()
    _require_names(folder, str(path), option)
    place = folder.absolute()
    while not os.path.lexists(place):
        place = place.parent
    if not place.is_dir():
        raise ValueError(f"{option} is {str(path)!r}, but {place} is a file; give another folder")
    if not os.access(place, os.W_OK | os.X_OK):
        raise ValueError(
            f"{option} is {str(path)!r}, but {place} cannot be written to; give another folder"
        )
    return folder


def require_file_place(path: str | Path, option: str) -> Path:
    """Refuses a file that cannot be written, as its folder is missing or closed, or it is a folder.

    Raises:
        ValueError: naming the option, the file and what is in its way.
    """
    file = Path(path).expanduser()
    if file.is_dir():
        raise ValueError(f"{option} is {str(path)!r}, which is a folder; give a file")
    if os.path.lexists(file) and not file.is_file():
        # A file written aside and renamed would take the place of a device for everyone.
        raise ValueError(f"{option} is {str(path)!r}, which is no plain file; give another")
    _require_names(file, str(path), option)
    if not file.parent.is_dir():
        raise ValueError(f"{option} is {str(path)!r}, but there is no folder {str(file.parent)!r}")
    require_folder(file.parent, option)
    return file


def _require_names(path: Path, given: str, option: str) -> None:
    """Refuses what no file system takes as a name."""
    if "\0" in given:
        raise ValueError(f"{option} is {given!r}, which holds a zero character; leave it out")
    longest = max((len(os.fsencode(part)) for part in path.parts), default=0)
    if longest > _LONGEST_NAME:
        raise ValueError(
            f"{option} holds a name of {longest} bytes, {given[:20]!r}...; {_LONGEST_NAME} are "
            "the most: give a shorter one"
        )


def read_command_line(
    parser: argparse.ArgumentParser, argv: Sequence[str] | None = None
) -> argparse.Namespace:
    """Parses the command line of a script; a wrong word ends the process.

    Raises:
        SystemExit: 0 after --help, 2 after one line about a wrong word.
    """
    try:
        return parser.parse_args(argv)
    except ValueError as error:
        sys.stderr.write(f"error: {' '.join(str(error).split())}\n")
        raise SystemExit(2) from None
