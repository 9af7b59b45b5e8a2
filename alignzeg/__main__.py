"""`python -m alignzeg COMMAND`: the commands that need no file of the repository."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Sequence

from alignzeg import __version__, command_lines
from alignzeg.arguments import OneLineParser, did_you_mean

# Command -> module whose `main(argv) -> exit code` carries it out, and what it does. What it takes
# is the function of its name in `alignzeg.command_lines`.
COMMANDS = {
    "audit": ("alignzeg.audit", "prove that no unseen label or name reaches a loss"),
    "compare": ("alignzeg.compare", "name the first divergence of a run from another"),
    "doctor": ("alignzeg.doctor", "check versions, devices, CLIP weights and data sets"),
    "export": ("alignzeg.export", "write the weights of a checkpoint as safetensors"),
    "predict": ("alignzeg.inference", "segment images into any classes"),
    "replay": (
        "alignzeg.engine.failures.replay",
        "make a failed training step again, from its bundle",
    ),
    "significance": ("alignzeg.significance", "intervals and paired tests of evaluations"),
    "vocabulary": ("alignzeg.vocabulary", "warn of duplicate, close, long or clashing class names"),
}
USER_ERROR = 2


def usage() -> str:
    """The help text."""
    lines = [f"  {name:14}{what}" for name, (_, what) in COMMANDS.items()]
    return "\n".join(
        [
            "usage: python -m alignzeg COMMAND ...",
            "",
            *lines,
            "",
            "COMMAND --help says more; COMMAND ... --debug shows the traceback of an error; "
            "--version.",
            "Training is python tools/train_net.py.",
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
    if words[:1] in (["-V"], ["--version"]):
        sys.stdout.write(f"alignzeg {__version__}\n")
        return 0
    if not words or words[0] not in COMMANDS:
        kind = "option" if words and words[0].startswith("-") else "command"
        problem = f"unknown {kind} {words[0]!r}" if words else "no command given"
        hint = did_you_mean(words[0], [*COMMANDS, "--help", "--version"]) if words else ""
        return _refuse(f"{problem}; {hint}it can be one of {sorted(COMMANDS)}")
    name, rest = words[0], [word for word in words[1:] if word != "--debug"]
    debug = "--debug" in words[1:] or bool(os.environ.get("ALIGNZEG_DEBUG"))
    try:
        _check_words(getattr(command_lines, name)(), rest)
    except ValueError as error:
        return _refuse(str(error))
    except SystemExit:  # --help
        return 0
    return _run(COMMANDS[name][0], rest, debug)


def _check_words(parser: OneLineParser, words: Sequence[str]) -> None:
    if any(action.nargs == "*" for action in parser._actions):
        parser.parse_intermixed_args(words)
    else:
        parser.parse_args(words)


def _run(module: str, words: Sequence[str], debug: bool) -> int:
    """Carries out a command whose words are in order; imported late, as that takes seconds."""
    code = 0

    def run() -> None:
        nonlocal code
        command: Callable[[Sequence[str]], int] = importlib.import_module(module).main
        code = command(words)

    try:
        from alignzeg.engine.processes.launch import guarded
    except ImportError as error:
        if module != COMMANDS["doctor"][0]:
            return _refuse(str(error))
        run()
        return code
    return guarded(run, debug=debug) or code


def _refuse(problem: str) -> int:
    sys.stderr.write(f"error: {' '.join(problem.split())}\n")
    return USER_ERROR


if __name__ == "__main__":
    sys.exit(main())
