"""`python -m alignzeg COMMAND`: the commands that need no file of the repository."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

# Command -> module whose `main(argv) -> exit code` carries it out, and what it does.
COMMANDS = {
    "doctor": ("alignzeg.doctor", "check versions, devices, CLIP weights and data sets"),
    "predict": ("alignzeg.inference", "segment pictures into any classes"),
}


def usage() -> str:
    """The help text."""
    lines = [f"  {name:10}{what}" for name, (_, what) in COMMANDS.items()]
    return "\n".join(
        ["usage: python -m alignzeg COMMAND ...", "", *lines, "", "COMMAND --help says more.", ""]
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Hands the words after the command to the command.

    Args:
        argv: words after the program's name; those of this process by default.

    Returns:
        The command's exit code; 2 without a command or with an unknown one.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:1] in (["-h"], ["--help"]):
        sys.stdout.write(usage())
        return 0
    if not words or words[0] not in COMMANDS:
        problem = f"unknown command {words[0]!r}" if words else "no command given"
        sys.stderr.write(f"error: {problem}; it can be one of {sorted(COMMANDS)}\n")
        return 2
    try:
        return importlib.import_module(COMMANDS[words[0]][0]).main(words[1:])
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        return 130


if __name__ == "__main__":
    sys.exit(main())
