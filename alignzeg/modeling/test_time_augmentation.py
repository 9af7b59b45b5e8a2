"""One image looked at several times: scales, flips and windows, folded into one label map.

A view is a part of the image at some scale, possibly mirrored, with the proposals found in it. A
pixel's score for a class is the mean over the views that cover it. As in `semantic_inference`,
stripes of output rows go all the way to labels, so memory depends on neither the size of the image
nor the classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product

import torch
from torch import Tensor

from alignzeg.modeling.interpolation import Positions, Size, interpolate, temporary_bytes
from alignzeg.modeling.semantic_inference import name_pixels

# A mask's logit where its view does not reach.
_OUTSIDE = -20.0


@dataclass(frozen=True)
class Frame:
    """Where a view lies.

    Attributes:
        scaled: height and width of the whole image at the view's scale.
        top: first row of the view in the scaled image.
        left: first column.
        size: height and width of the view.
        mirrored: whether left and right are exchanged.
    """

    scaled: Size
    top: int
    left: int
    size: Size
    mirrored: bool = False

    def cut(self, image: Tensor) -> Tensor:
        """The view's pixels (C, h, w) from the scaled image (C, H, W)."""
        height, width = self.size
        part = image[:, self.top : self.top + height, self.left : self.left + width]
        return part.flip(2) if self.mirrored else part


@dataclass(frozen=True)
class View:
    """The proposals that were found in a view.

    Attributes:
        frame: where it lies.
        class_probs: (Q, K) in [0, 1], without the background.
        mask_logits: (Q, h, w) of the padded view.
        padded: height and width in pixels that (h, w) covers.
    """

    frame: Frame
    class_probs: Tensor
    mask_logits: Tensor
    padded: Size

    @property
    def num_classes(self) -> int:
        """K."""
        return self.class_probs.shape[1]

    @property
    def grid(self) -> Tensor:
        """What is interpolated to pixels, (Q, h, w)."""
        return self.mask_logits.float()

    def scores(self, values: Tensor) -> Tensor:
        """(y, x, K) scores of pixels from the (Q, y, x) interpolated values of the grid."""
        return torch.einsum("qyx,qk->yxk", values.sigmoid(), self.class_probs.float())


@dataclass(frozen=True)
class PixelView:
    """The scores that a network without proposals gives the cells of a view.

    Attributes:
        frame: where it lies.
        cell_scores: (K, h, w) of the padded view.
        padded: height and width in pixels that (h, w) covers.
    """

    frame: Frame
    cell_scores: Tensor
    padded: Size

    @property
    def num_classes(self) -> int:
        """K."""
        return len(self.cell_scores)

    @property
    def grid(self) -> Tensor:
        """What is interpolated to pixels, (K, h, w)."""
        return self.cell_scores.float()

    def scores(self, values: Tensor) -> Tensor:
        """(y, x, K) scores of pixels from the (K, y, x) interpolated values of the grid."""
        return values.movedim(0, -1)


@dataclass(frozen=True)
class TestTimeAugmentation:
    """Which views of an image to take.

    Attributes:
        sides: shorter sides in pixels; empty takes the image as it comes.
        max_side: limit of the longer side; 0 is none.
        flip: whether to add the mirror image of every view.
        window: side of a square window in pixels; 0 looks at the whole image at once.
        stride: step between windows in pixels.

    Raises:
        ValueError: on a size that is not positive, or a stride that would leave gaps.
    """

    sides: tuple[int, ...] = ()
    max_side: int = 0
    flip: bool = False
    window: int = 0
    stride: int = 0
    __test__ = False  # of pytest, which takes it for a test

    def __post_init__(self) -> None:
        if any(side < 1 for side in self.sides) or self.window < 0:
            raise ValueError(
                f"sizes of views must be positive; TEST.AUG.MIN_SIZES is {list(self.sides)}, "
                f"ALIGNZEG.TEST.WINDOW {self.window}"
            )
        if self.window and not 0 < self.stride <= self.window:
            raise ValueError(
                f"ALIGNZEG.TEST.WINDOW_STRIDE is {self.stride}; it must be 1 to "
                f"ALIGNZEG.TEST.WINDOW {self.window}"
            )

    @property
    def single(self) -> bool:
        """Whether there is nothing but the image itself."""
        return not (self.sides or self.flip or self.window)

    def frames(self, size: Size) -> Iterator[Frame]:
        """All views of an image of this height and width, a scale's views in a row."""
        for side in self.sides or (min(size),):
            factor = side / min(size)
            if self.max_side:
                factor = min(factor, self.max_side / max(size))
            scaled = (max(1, round(size[0] * factor)), max(1, round(size[1] * factor)))
            tops, lefts = (self._starts(edge) for edge in scaled)
            window = self.window or max(scaled)
            part = (min(scaled[0], window), min(scaled[1], window))
            for top, left in product(tops, lefts):
                yield Frame(scaled, top, left, part)
                if self.flip:
                    yield Frame(scaled, top, left, part, mirrored=True)

    def _starts(self, edge: int) -> list[int]:
        """Where windows begin along an edge; the last one ends with the image."""
        last = max(0, edge - self.window) if self.window else 0
        return [*range(0, last, self.stride or 1), last]


def merge_views(
    views: Sequence[View | PixelView],
    output_size: Size,
    memory_mib: float,
    reject_below: float = 0.0,
    confidence: Tensor | None = None,
) -> Tensor:
    """Names every pixel: argmax of the mean, over the views that cover it, of their scores.

    The grid of a view is interpolated bilinearly straight to the output's pixels. For one view of
    the whole image at the size of the output that is what `semantic_inference` does.

    Args:
        views: of one image, with the same K; together they cover it.
        output_size: height and width of the answer.
        memory_mib: as in `semantic_inference`, of one stripe; at least one row is done.
        reject_below: pixels whose best score is lower get the highest number of the dtype.
        confidence: (Ho, Wo) floats that become the best score of each pixel, 0 or more.

    Returns:
        (Ho, Wo) label map on the device of the logits, uint8, or uint16 where K > 255.

    Raises:
        ValueError: if there is no view, their classes differ, or a pixel lies in none of them.
    """
    counts = {view.num_classes for view in views}
    if len(counts) != 1:
        raise ValueError(f"expected views with one number of classes; got {sorted(counts)}")
    classes = counts.pop()
    device = views[0].grid.device
    height, width = output_size
    wide = classes > 255
    labels = torch.empty(output_size, dtype=torch.uint16 if wide else torch.uint8, device=device)
    queries = max(len(view.grid) for view in views)
    # Scores of a row, those that a view adds, and its masks before and after the columns.
    row_bytes = 4 * width * (2 * classes + 3 * queries)
    step = max(1, min(height, temporary_bytes(memory_mib, device) // row_bytes))
    for start in range(0, height, step):
        rows = torch.arange(start, min(height, start + step), device=device)
        scores = torch.zeros(len(rows), width, classes, device=device)
        cover = torch.zeros(len(rows), width, 1, device=device)
        for view in views:
            _add(view, rows, output_size, scores, cover)
        if not cover.all():
            raise ValueError("the views leave a part of the image uncovered")
        means = (scores / cover).view(-1, classes)
        answer = name_pixels(means, reject_below, 65535 if wide else 255)
        if confidence is not None:
            confidence[start : start + len(rows)] = means.amax(-1).view(-1, width)
        labels[start : start + len(rows)] = answer.view(-1, width).to(labels.dtype)
    return labels


def whole_masks(views: Sequence[View], stride: int) -> Tensor:
    """The masks of several views, each on the grid of the whole image at their scale.

    Views are of one scale; a cell of the grid has `stride` pixels, as in their own masks.

    Returns:
        (sum of Q, h, w) logits, very low where a view does not reach.
    """
    return torch.cat([_on_whole_grid(view, stride) for view in views])


def _on_whole_grid(view: View, stride: int) -> Tensor:
    height, width = view.frame.scaled
    grid = (-(-height // stride), -(-width // stride))
    if view.frame.size == view.frame.scaled and not view.frame.mirrored:
        return view.mask_logits[:, : grid[0], : grid[1]]
    covered = (grid[0] * stride, grid[1] * stride)
    placed = replace(view, frame=replace(view.frame, scaled=covered))
    low, device = view.mask_logits.shape[-2:], view.mask_logits.device
    y, inside_y = _positions(torch.arange(grid[0], device=device), placed, grid, 0)
    x, inside_x = _positions(torch.arange(grid[1], device=device), placed, grid, 1)
    masks = interpolate(view.mask_logits, y.taps(low[0]), 1)
    masks = interpolate(masks, x.taps(low[1]), 2)
    return masks.masked_fill(~(inside_y[:, None] & inside_x), _OUTSIDE)


def _add(view: View | PixelView, rows: Tensor, output: Size, scores: Tensor, cover: Tensor) -> None:
    """Adds a view's scores to those of a stripe, (n, W, K), and counts the pixels it covers."""
    columns = torch.arange(output[1], device=rows.device)
    y, inside_y = _positions(rows, view, output, 0)
    x, inside_x = _positions(columns, view, output, 1)
    if not (inside_y.any() and inside_x.any()):
        return
    values = view.grid
    low = values.shape[-2:]
    values = interpolate(values, Positions(y.over[inside_y], y.under).taps(low[0]), 1)
    across = Positions(x.over[inside_x], x.under)
    found = view.scores(interpolate(values, across.taps(low[1]), 2))
    first_y, first_x = int(inside_y.nonzero()[0]), int(inside_x.nonzero()[0])
    area = (slice(first_y, first_y + len(found)), slice(first_x, first_x + found.shape[1]))
    scores[area] += found
    cover[area] += 1


def _positions(
    index: Tensor, view: View | PixelView, output: Size, axis: int
) -> tuple[Positions, Tensor]:
    """Where output rows (axis 0) or columns (1) lie in the view's logits, and whether they do."""
    frame = view.frame
    edge, start = frame.size[axis], (frame.top, frame.left)[axis]
    # (index + 1/2) scaled / output - start, in parts of 2 output.
    under = 2 * output[axis]
    over = (2 * index + 1) * frame.scaled[axis] - start * under
    inside = (over >= 0) & (over < edge * under)
    if axis == 1 and frame.mirrored:
        over = edge * under - over
    pixel = Positions(2 * over - under, 2 * under).clamped(edge - 1)
    return pixel.source(view.grid.shape[-2:][axis], view.padded[axis]), inside
