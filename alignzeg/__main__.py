"""`python -m alignzeg COMMAND`: the commands that need no file of the repository."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence

# Command -> module whose `main(argv) -> exit code` carries it out, and what it does.
COMMANDS = {
    "audit": ("alignzeg.audit", "prove that no unseen label or name reaches a loss"),
    "compare": ("alignzeg.compare", "name the first divergence of a run from another"),
    "doctor": ("alignzeg.doctor", "check versions, devices, CLIP weights and data sets"),
    "export": ("alignzeg.export", "write the weights of a checkpoint as safetensors"),
    "predict": ("alignzeg.inference", "segment pictures into any classes"),
    "replay": (
        "alignzeg.engine.failures.replay",
        "make a failed training step again, from its bundle",
    ),
    "significance": ("alignzeg.significance", "intervals and paired tests of evaluations"),
    "vocabulary": ("alignzeg.vocabulary", "warn of duplicate, close, long or clashing class names"),
}


def usage() -> str:
    """The help text."""
    lines = [f"  {name:14}{what}" for name, (_, what) in COMMANDS.items()]
    return "\n".join(
        [
            "usage: python -m alignzeg COMMAND ...",
            "",
            *lines,
            "",
            "COMMAND --help says more; COMMAND ... --debug shows the traceback of an error.",
            "",
        ]
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Hands the words after the command to the command.

    Args:
        argv: words after the program's name; those of this process by default.

    Returns:
        The command's exit code; 2 after an error of the user, such as an unknown command.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:1] in (["-h"], ["--help"]):
        sys.stdout.write(usage())
        return 0
    if not words or words[0] not in COMMANDS:
        problem = f"unknown command {words[0]!r}" if words else "no command given"
        sys.stderr.write(f"error: {problem}; it can be one of {sorted(COMMANDS)}\n")
        return 2
    # Imported late, so that --help needs nothing heavy.
    from alignzeg.engine.processes.launch import guarded

    code = 0

    def run() -> None:
        nonlocal code
        rest = [word for word in words[1:] if word != "--debug"]
        code = importlib.import_module(COMMANDS[words[0]][0]).main(rest)

    debug = "--debug" in words[1:] or bool(os.environ.get("ALIGNZEG_DEBUG"))
    return guarded(run, debug=debug) or code


if __name__ == "__main__":
    sys.exit(main())
