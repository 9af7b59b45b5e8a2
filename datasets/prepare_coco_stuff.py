"""Prepare COCO-Stuff 164K; what it takes: python datasets/prepare_coco_stuff.py --help."""

from __future__ import annotations

import sys

from alignzeg.data.preparation.coco_stuff import RECIPE
from alignzeg.data.preparation.command import prepare

if __name__ == "__main__":
    sys.exit(prepare(RECIPE))
