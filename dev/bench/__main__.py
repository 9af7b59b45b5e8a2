"""Starts the benchmark: python dev/bench."""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    # The folder that holds the package, in place of the package itself.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)
    from bench.run import main

    sys.exit(main())
