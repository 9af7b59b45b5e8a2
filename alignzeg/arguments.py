"""The command lines of all commands: what is wrong with one is one line, like any other error."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import Any

# Environment variable in which a command gives its process id to the trainings that it starts, so
# that they save and end when it is gone.
PARENT = "ALIGNZEG_PARENT"


class OneLineParser(argparse.ArgumentParser):
    """A parser whose error is raised, for `alignzeg.engine.guarded` to report on one line."""

    def error(self, message: str) -> Any:
        """Raises the message.

        Raises:
            ValueError: always.
        """
        raise ValueError(f"{message}; see --help")


def resumable(run: Callable[[], object]) -> int:
    """Runs a command that goes on where it was stopped if it is given again.

    Returns:
        Exit code: 0; 1 if one of its runs failed (RuntimeError); 2 for wrong input (ValueError);
        130 for Ctrl-C. Each but 0 with one line of what happened.
    """
    try:
        run()
    except (ValueError, RuntimeError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 2 if isinstance(error, ValueError) else 1
    except KeyboardInterrupt:
        sys.stderr.write("stopped; run the same command to go on\n")
        return 130
    return 0
