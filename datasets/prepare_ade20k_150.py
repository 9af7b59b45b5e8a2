"""Prepare ADE20K with 150 classes; what it takes: python datasets/prepare_ade20k_150.py --help."""

from __future__ import annotations

import sys

from alignzeg.data.preparation.ade20k import RECIPE_150
from alignzeg.data.preparation.command import prepare

if __name__ == "__main__":
    sys.exit(prepare(RECIPE_150))
