"""From the grid of the mask logits to the pixels of an answer, bilinearly, in Detectron2's order.

The grid covers the padded image; the image lies at its top left; the answer may have another size
than the image, which is a second resize.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

Size = tuple[int, int]
Taps = tuple[Tensor, Tensor, Tensor]


# Few large operations are what other devices than a CPU are good at.
_MORE_MEMORY = 16


def temporary_bytes(memory_mib: float, device: torch.device) -> int:
    """What the temporaries of a label map may take there: the MiB of a CPU, 16 times elsewhere."""
    return int(memory_mib * 2**20) * (1 if device.type == "cpu" else _MORE_MEMORY)


@dataclass(frozen=True)
class Positions:
    """Where pixels lie in another grid, as exact fractions.

    Whole numbers keep them exact on every device; a Mac's GPU has no float64.

    Attributes:
        over: int64 numerators, of any shape.
        under: the denominator of all.
    """

    over: Tensor
    under: int = 1

    @property
    def dtype(self) -> torch.dtype:
        """Of the numerators."""
        return self.over.dtype

    @property
    def device(self) -> torch.device:
        """Of the numerators."""
        return self.over.device

    def clamped(self, most: int) -> Positions:
        """Not below 0 and not above `most`."""
        return Positions(self.over.clamp(0, most * self.under), self.under)

    def source(self, size_in: int, size_out: int) -> Positions:
        """Where positions of an output lie in its input (align_corners=False), not below 0."""
        # (p + 1/2) size_in / size_out - 1/2
        over = (2 * self.over + self.under) * size_in - self.under * size_out
        return Positions(over.clamp_(min=0), 2 * self.under * size_out)

    def taps(self, size: int) -> Taps:
        """The two neighbours of each position among `size`, and the weight of the second."""
        first = self.over.div(self.under, rounding_mode="floor").clamp_(max=size - 1)
        second = (first + 1).clamp_(max=size - 1)
        rest = (self.over - first * self.under).clamp_(0, self.under)
        return first, second, rest.float() / self.under


@dataclass(frozen=True)
class Geometry:
    """Sizes: of the grid, of the padded image that it covers, of the image in it, of the answer."""

    low: Size
    padded: Size
    image: Size
    output: Size

    @property
    def resized(self) -> bool:
        """Whether the answer has another size than the image."""
        return self.image != self.output

    def image_positions(self, index: Tensor, axis: int) -> Positions:
        """Where output rows (axis 0) or columns (axis 1) lie in the image."""
        return Positions(index).source(self.image[axis], self.output[axis])

    def low_positions(self, index: Tensor, axis: int) -> Positions:
        """Where rows (axis 0) or columns (axis 1) of the image lie in the grid."""
        return Positions(index).source(self.low[axis], self.padded[axis])

    def direct_positions(self, index: Tensor, axis: int) -> Positions:
        """Where output rows (axis 0) or columns (axis 1) lie in the grid, in one step."""
        inside = self.image_positions(index, axis).clamped(self.image[axis] - 1)
        return inside.source(self.low[axis], self.padded[axis])


def interpolate(values: Tensor, taps: Taps, dim: int) -> Tensor:
    """Interpolates along one dimension at the given taps."""
    first, second, weight = taps
    shape = [1] * values.dim()
    shape[dim] = -1
    start = values.index_select(dim, first)
    return start.lerp_(values.index_select(dim, second), weight.view(shape))


def output_rows(values: Tensor, rows: Tensor, geometry: Geometry, masks: bool = True) -> Tensor:
    """(Q, h, w) values at some rows of the output, (Q, len(rows), Wo); of masks, probabilities."""
    if not geometry.resized:
        return _image_rows(values, rows, geometry, masks)
    height = geometry.image[0]
    first, second, weight = geometry.image_positions(rows, 0).taps(height)
    needed = torch.cat([first, second])
    place = torch.arange(len(needed), device=needed.device)
    if values.device.type == "cpu":
        # Each row once; other devices would have to wait for their number.
        needed, place = torch.unique(needed, return_inverse=True)
    found = _image_rows(values, needed, geometry, masks)
    found = interpolate(found, (place[: len(rows)], place[len(rows) :], weight), 1)
    return _widen(found, geometry.output[1])


def _image_rows(values: Tensor, rows: Tensor, geometry: Geometry, masks: bool) -> Tensor:
    """See `output_rows`, at some rows of the image: (Q, len(rows), W)."""
    taps = geometry.low_positions(rows, 0).taps(values.shape[-2])
    wide = _widen(interpolate(values, taps, 1), geometry.padded[1])
    return (wide.sigmoid_() if masks else wide)[..., : geometry.image[1]]


def _widen(values: Tensor, width: int) -> Tensor:
    """(Q, n, w) -> (Q, n, width), interpolated along the rows."""
    if values.shape[-1] == width:
        return values
    size = (values.shape[-2], width)
    return F.interpolate(values[None], size, mode="bilinear", align_corners=False)[0]
