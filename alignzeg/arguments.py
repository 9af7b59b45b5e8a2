"""The command lines of all commands: what is wrong with one is one line, like any other error."""

from __future__ import annotations

import argparse
from typing import Any


class OneLineParser(argparse.ArgumentParser):
    """A parser whose error is raised, for `alignzeg.engine.guarded` to report on one line."""

    def error(self, message: str) -> Any:
        """Raises the message.

        Raises:
            ValueError: always.
        """
        raise ValueError(f"{message}; see --help")
