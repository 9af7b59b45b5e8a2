"""Prepare PASCAL VOC 2012 and SBD; what it takes: python datasets/prepare_voc2012.py --help."""

from __future__ import annotations

import sys

from alignzeg.data.preparation.command import prepare
from alignzeg.data.preparation.voc import RECIPE

if __name__ == "__main__":
    sys.exit(prepare(RECIPE))
