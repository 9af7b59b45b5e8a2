"""Positions of pixels in another grid, beside exact fractions, and without float64."""

from __future__ import annotations

from fractions import Fraction
from math import floor

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from alignzeg.modeling.interpolation import Geometry, interpolate
from alignzeg.modeling.label_counts import count_labels
from alignzeg.modeling.semantic_inference import semantic_inference
from alignzeg.modeling.test_time_augmentation import Frame, View, merge_views

SIZES = [
    Geometry((8, 8), (32, 32), (30, 31), (60, 17)),
    Geometry((16, 24), (64, 96), (61, 95), (61, 95)),
    Geometry((3, 5), (1000, 999), (999, 998), (2048, 3001)),
]


def lies(position: Fraction, size_in: int, size_out: int) -> Fraction:
    """What align_corners=False means, in fractions."""
    return max(Fraction(0), (position + Fraction(1, 2)) * size_in / size_out - Fraction(1, 2))


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("axis", [0, 1])
def test_positions_are_exact(sizes: Geometry, axis: int) -> None:
    out, image = sizes.output[axis], sizes.image[axis]
    first, second, weight = sizes.direct_positions(torch.arange(out), axis).taps(sizes.low[axis])
    for index in range(out):
        inside = min(lies(Fraction(index), image, out), Fraction(image - 1))
        wanted = lies(inside, sizes.low[axis], sizes.padded[axis])
        place = min(floor(wanted), sizes.low[axis] - 1)
        assert int(first[index]) == place
        assert int(second[index]) == min(place + 1, sizes.low[axis] - 1)
        rest = min(wanted - place, Fraction(1))
        assert float(weight[index]) == pytest.approx(float(rest), abs=2e-7)


@pytest.mark.parametrize(("size_in", "size_out"), [(5, 13), (13, 5), (7, 7), (1, 9)])
def test_taps_interpolate_as_torch_does(size_in: int, size_out: int) -> None:
    values = torch.randn(3, size_in, 4)
    sizes = Geometry((size_in, 4), (size_out, 4), (size_out, 4), (size_out, 4))
    taps = sizes.low_positions(torch.arange(size_out), 0).taps(size_in)
    wanted = F.interpolate(values[None], (size_out, 4), mode="bilinear", align_corners=False)[0]
    torch.testing.assert_close(interpolate(values, taps, 1), wanted)


class NoFloat64(TorchDispatchMode):
    """A device that has no float64, such as a Mac's GPU."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        answer = func(*args, **(kwargs or {}))
        for value in answer if isinstance(answer, (tuple, list)) else (answer,):
            made = isinstance(value, torch.Tensor) and value.dtype == torch.float64
            assert not made, f"{func} made float64"
        return answer


def test_label_maps_need_no_float64() -> None:
    probs, logits = torch.rand(6, 5), torch.randn(6, 8, 8)
    sizes = ((32, 32), (30, 31), (60, 17))
    view = View(Frame((30, 31), 0, 0, (30, 31), mirrored=True), probs, logits, (32, 32))
    truth = torch.randint(0, 5, (60, 17), dtype=torch.uint8)
    with NoFloat64():
        for mode in ("exact", "fast"):
            semantic_inference(probs, logits, *sizes, memory_mib=1.0, mode=mode)
        merge_views([view], (60, 17), 1.0)
        count_labels(probs[None], logits, truth, (32, 32), (30, 31))
