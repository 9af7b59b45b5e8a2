"""What every kind of damaged input needs."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TRAIN, COMMAND = "train_net", "alignzeg"
# What a run needs to be over in a second.
SMALL: dict[str, Any] = {
    "SOLVER.IMS_PER_BATCH": 2,
    "SOLVER.MAX_ITER": 1,
    "SOLVER.WARMUP_ITERS": 0,
    "TEST.EVAL_PERIOD": 0,
    "ALIGNZEG.EXTRACTOR.NUM_QUERIES": 4,
    "ALIGNZEG.EXTRACTOR.HIDDEN_DIM": 16,
    "ALIGNZEG.EXTRACTOR.FFN_DIM": 16,
    "ALIGNZEG.EXTRACTOR.LAYERS": 1,
    "ALIGNZEG.EXTRACTOR.HEADS": 2,
    "ALIGNZEG.ENCODER.SMALL_CHANNELS": [8, 16, 24, 32],
    "MODEL.FPN.OUT_CHANNELS": 16,
    "OUTPUT_DIR": "output",
}
VALUES: tuple[Any, ...] = (
    *(0, 1, 2, 3, 7, -1, 1.5, -0.5, 1e-9, 1e30, 10**6, 10**12, 2**31, 2**63),
    *(float("nan"), float("inf"), True, False, None, "", " ", "x", "0", "-1", "nan", "None"),
    *("AlignZeg", "zeroshapes_train", "zeroshapes_val", "ü\u0000", "{}", "a" * 3000, "*.yaml"),
    *([], [0], [1, 2], [-1], ["x"], [[]], [None], [1.5, "x"], [0.7, 0.3], {}, {"A": 1}, (1, 2)),
)


@dataclass(frozen=True)
class Case:
    """One damaged input.

    Attributes:
        kind: config, classes, labels or checkpoint.
        what: what was done to it, for the report.
        program: TRAIN or COMMAND.
        argv: words after the program's name.
        data: DETECTRON2_DATASETS.
    """

    kind: str
    what: str
    program: str
    argv: tuple[str, ...]
    data: Path


@dataclass(frozen=True)
class Source:
    """Intact inputs to damage.

    Attributes:
        data: a data root.
        config: of zeroshapes.
        base: the same without data sets.
        checkpoint: of one step.
        image: to predict on.
    """

    data: Path
    config: Path
    base: Path
    checkpoint: Path
    image: Path


def nested(pairs: dict[str, Any]) -> dict[str, Any]:
    """{"A.B": 1} -> {"A": {"B": 1}}."""
    result: dict[str, Any] = {}
    for key, value in pairs.items():
        node = result
        *sections, leaf = key.split(".")
        for section in sections:
            node = node.setdefault(section, {})
        node[leaf] = value
    return result


def opts(pairs: dict[str, Any]) -> list[str]:
    """KEY VALUE words."""
    return [word for key, value in pairs.items() for word in (key, str(value))]


def damage_bytes(content: bytes, rng: random.Random) -> bytes:
    """Cuts, flips, repeats, drops or replaces a part of a file."""
    if not content:
        return b"\xff"
    data = bytearray(content)
    start = rng.randrange(len(data))
    length = min(len(data) - start, rng.choice((1, 4, 64, 4096)))
    action = rng.randrange(7)
    if action == 0:
        data = data[:start]
    elif action == 1:
        for _ in range(rng.choice((1, 3, 30))):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    elif action == 2:
        data[start : start + length] = rng.randbytes(length)
    elif action == 3:
        data[start : start + length] = bytes(length)
    elif action == 4:
        del data[start : start + length]
    elif action == 5:
        data[start:start] = data[start : start + length] * rng.choice((1, 50))
    else:
        data = bytearray(rng.choice((b"", b"\0" * 300, b"hello\n", rng.randbytes(200))))
    return bytes(data)
