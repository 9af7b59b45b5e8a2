"""Prepare MSRC-21; what it takes: python datasets/prepare_msrc21.py --help."""

from __future__ import annotations

import sys

from alignzeg.data.preparation.command import prepare
from alignzeg.data.preparation.msrc import RECIPE

if __name__ == "__main__":
    sys.exit(prepare(RECIPE))
