#!/usr/bin/env python
"""`alignzeg train` as a script, for torchrun, srun and those who know Detectron2.

python tools/train_net.py --config-file configs/zeroshapes/alignzeg.yaml [KEY VALUE ...]
"""

from __future__ import annotations

# The command line is read before anything heavy is imported.
__alignzeg_late__ = True

import sys

from alignzeg.__main__ import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
