"""Prepare PASCAL Context; what it takes: python datasets/prepare_context.py --help."""

from __future__ import annotations

import sys

from alignzeg.data.preparation.command import prepare
from alignzeg.data.preparation.context import RECIPE

if __name__ == "__main__":
    sys.exit(prepare(RECIPE))
