"""ICC profiles made by hand, and what they mean by formula."""

from __future__ import annotations

import struct

import numpy as np

# Columns are XYZ of red, green and blue, adapted to D50.
_ADOBE = np.array(
    [[0.60974, 0.20528, 0.14919], [0.31111, 0.62567, 0.06322], [0.01947, 0.06087, 0.74457]]
)
_SRGB = np.array(
    [[0.43607, 0.38515, 0.14307], [0.22249, 0.71687, 0.06061], [0.01392, 0.09708, 0.71410]]
)
_GAMMA = 563 / 256


def _file(kind: bytes, space: bytes, pcs: bytes, tags: dict[bytes, bytes]) -> bytes:
    text = b"desc" + struct.pack(">II", 0, 2) + b"x\0" + bytes(80)
    tags = {b"desc": text, b"wtpt": _xyz((0.9642, 1, 0.8249)), **tags}
    at, table, data = 132 + 12 * len(tags), b"", b""
    for name, content in tags.items():
        table += name + struct.pack(">II", at + len(data), len(content))
        data += content + bytes(-len(content) % 4)
    head = struct.pack(">I4sI4s4s4s", at + len(data), b"lcms", 0x02100000, kind, space, pcs)
    head += bytes(12) + b"acsp" + bytes(28) + struct.pack(">iii", 63190, 65536, 54061)
    return head + bytes(128 - len(head)) + struct.pack(">I", len(tags)) + table + data


def _xyz(values) -> bytes:
    return b"XYZ " + bytes(4) + b"".join(struct.pack(">i", round(v * 65536)) for v in values)


def matrix_profile(matrix=_ADOBE, gamma: float = _GAMMA, grey: bool = False) -> bytes:
    """A display's profile of primaries and one gamma."""
    curve = b"curv" + struct.pack(">IIH", 0, 1, round(gamma * 256)) + bytes(2)
    if grey:
        return _file(b"mntr", b"GRAY", b"XYZ ", {b"kTRC": curve})
    tags = {name: _xyz(matrix[:, i]) for i, name in enumerate((b"rXYZ", b"gXYZ", b"bXYZ"))}
    tags |= dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), curve)
    return _file(b"mntr", b"RGB ", b"XYZ ", tags)


def cmyk_profile(black: float) -> bytes:
    """A printer's profile whose ink of any kind leaves grey of this L*."""
    grid = np.full((2, 2, 2, 2, 3), 128, np.uint8)
    grid[..., 0] = round(black * 2.55)
    grid[0, 0, 0, 0, 0] = 255
    line = bytes(range(256))
    one = struct.pack(">9i", *(65536 * (i % 4 == 0) for i in range(9)))
    table = b"mft1" + bytes(4) + bytes([4, 3, 2, 0]) + one + line * 4 + grid.tobytes() + line * 3
    return _file(b"prtr", b"CMYK", b"Lab ", {b"A2B0": table})


ADOBE_RGB = matrix_profile()


def to_srgb_by_hand(values: np.ndarray) -> np.ndarray:
    """8-bit Adobe RGB as 8-bit sRGB."""
    linear = (values / 255) ** _GAMMA @ (np.linalg.inv(_SRGB) @ _ADOBE).T
    linear = linear.clip(0, 1)
    curved = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return np.round(255 * curved).astype(int)
