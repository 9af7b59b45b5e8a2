"""Prepare ADE20K with 847 classes; what it takes: python datasets/prepare_ade20k_847.py --help."""

from __future__ import annotations

import sys

from alignzeg.data.preparation.ade20k import RECIPE_847
from alignzeg.data.preparation.command import prepare

if __name__ == "__main__":
    sys.exit(prepare(RECIPE_847))
