"""How long label files take to prepare, and how much of that is PNG coding.

python dev/bench/prepare.py                     1,000 VOC labels of 640 x 480, one process
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from alignzeg.data.preparation import voc
from alignzeg.data.preparation.formats import encode_png, read_index_image
from alignzeg.data.preparation.recipe import Task
from alignzeg.data.preparation.work import run_tasks


def draw(path: Path, rng: np.random.Generator, height: int, width: int) -> None:
    """Writes a palette PNG of a dozen irregular regions with the void border that VOC has."""
    coarse = rng.normal(size=(12, height // 32, width // 32)).astype(np.float32)
    fields = [cv2.resize(field, (width, height), interpolation=cv2.INTER_CUBIC) for field in coarse]
    regions = np.argmax(fields, axis=0)
    labels = rng.integers(0, 21, 12).astype(np.uint8)[regions]
    edge = cv2.morphologyEx(labels, cv2.MORPH_GRADIENT, np.ones((5, 5), np.uint8)) > 0
    image = Image.fromarray(np.where(edge, 255, labels).astype(np.uint8)).convert("L")
    image.putpalette(list(range(256)) * 3)
    image.save(path)


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--labels", type=int, default=1000)
    parser.add_argument("--size", type=int, nargs=2, default=(480, 640), help="height width")
    arguments = parser.parse_args()
    cv2.setNumThreads(1)
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        sources = [Path(folder) / f"{i}.png" for i in range(arguments.labels)]
        for path in sources:
            draw(path, rng, *arguments.size)
        tasks = [Task(f"{folder}/out/{path.name}", voc.convert, (str(path),)) for path in sources]
        start = time.process_time()
        run_tasks(tasks, workers=1, title="labels")
        whole = time.process_time() - start
        start = time.process_time()
        for path in sources:
            encode_png(read_index_image(str(path)))
        coding = time.process_time() - start
    sys.stdout.write(
        f"{arguments.labels} labels of {arguments.size[1]} x {arguments.size[0]}: "
        f"{whole:.2f} s of one core, {1000 * whole / arguments.labels:.2f} ms each; "
        f"decoding and encoding PNG alone: {coding:.2f} s, {100 * coding / whole:.0f} %\n"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
