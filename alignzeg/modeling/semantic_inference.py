"""Proposals to a label map: class probabilities times masks, in tiles with the argmax inside.

The usual order upsamples all Q masks, multiplies by all K classes and takes the argmax of a
(K, H, W) map, which at 1024 x 1024 pixels and 847 classes needs 7 GB. Here a tile of the answer
goes all the way to labels before the next one starts, so that memory hardly depends on K or on the
size of the image.

In most tiles few classes can win. A mask inside a tile lies between the sigmoid of the lowest and
of the highest logit around it, because interpolation is a weighted mean; so the score of each
class has a lower and an upper bound there, from two small products. Classes whose upper bound is
below the best lower bound are left out, and a tile with one class left needs no upsampling.

Source: branch and bound [ours].
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from alignzeg.modeling.interpolation import Geometry, Size, Taps, interpolate, interpolation_taps

# Side of a tile in pixels: about four cells of the usual grid, at which bounds are tight.
_TILE = 16
# What the bounds allow for rounding: a part of the score.
_ROUNDING = 1e-4
# On a CPU, temporaries that stay in the cache are up to twice as fast as larger ones.
_CPU_BYTES = 2 * 2**20


def semantic_inference(
    class_probs: Tensor,
    mask_logits: Tensor,
    padded_size: Size,
    image_size: Size,
    output_size: Size,
    memory_mib: float,
    mode: str = "exact",
    reject_below: float = 0.0,
    confidence: Tensor | None = None,
) -> Tensor:
    """Names every pixel: argmax over k of sum over q of class_probs[q, k] * sigmoid(mask q).

    The order of Detectron2: masks are upsampled bilinearly to the padded size and cropped to the
    image; where the output has another size, the class scores are resized bilinearly once more.
    A resize is linear, so the second one is done on the Q mask probabilities, before the product:
    the same scores up to rounding, without a map of K channels.

    Args:
        class_probs: (Q, K) 0 or more, without the background.
        mask_logits: (Q, h, w) of the padded image, usually at stride 4; finite.
        padded_size: height and width in pixels that (h, w) covers.
        image_size: height and width of the image inside the padding, at its top left.
        output_size: height and width of the answer.
        memory_mib: what the temporaries of the tiles may take, MiB. At least one tile is done at
            a time, also where that needs more.
        mode: "exact", or "fast": the product at the size of the logits, then the classes
            interpolated straight to the output. It differs in 1 to 2 % of the pixels, at edges.
        reject_below: pixels whose best score is lower get the highest number of the dtype.
        confidence: (Ho, Wo) floats that become the best score of each pixel, 0 or more.

    Returns:
        (Ho, Wo) label map on the device of the logits, uint8, or uint16 where K > 255. In "exact"
        mode it equals the plain formula except where the best two scores of a pixel differ by
        less than 1e-6, where rounding decides. Scores that are equal to the bit: the lower class.

    Raises:
        ValueError: if shapes do not fit, a size is not positive, or the mode is unknown.
    """
    sizes = (padded_size, image_size, output_size)
    _check(class_probs, mask_logits, *sizes, memory_mib, mode)
    dtype = torch.uint16 if class_probs.shape[1] > 255 else torch.uint8
    labels = torch.empty(output_size, dtype=dtype, device=mask_logits.device)
    geometry = Geometry((mask_logits.shape[1], mask_logits.shape[2]), *sizes)
    columns = _tile_columns(geometry, mode, mask_logits.device)
    scored = reject_below > 0 or confidence is not None
    tiles = _Tiles(class_probs.float(), columns, _tile_bytes(memory_mib, mask_logits), scored)
    for start in range(0, output_size[0], _TILE):
        rows = torch.arange(start, min(start + _TILE, output_size[0]), device=labels.device)
        top, bottom, steps = _row_steps(rows, geometry, mode)
        names, best = tiles.name(mask_logits[:, top:bottom].float(), steps)
        width = output_size[1]
        if reject_below > 0:
            names.masked_fill_(best < reject_below, torch.iinfo(dtype).max)
        labels[start : start + len(rows)] = names.flatten(0, 1)[:width].T.to(dtype)
        if confidence is not None:
            confidence[start : start + len(rows)] = best.flatten(0, 1)[:width].T
    return labels


def background_wins(class_probs: Tensor, mask_logits: Tensor, memory_mib: float) -> Tensor:
    """Where the background, which is never named, would beat every class.

    Args:
        class_probs: (Q, K+1) in [0, 1], background last, as `semantic_inference` would sum them up.
        mask_logits: (Q, h, w).
        memory_mib: as there.

    Returns:
        (h, w) bool, at the size of the logits.
    """
    size = (mask_logits.shape[1], mask_logits.shape[2])
    labels = semantic_inference(class_probs, mask_logits, size, size, size, memory_mib)
    # Torch knows too few operations on uint16.
    return labels.int() == class_probs.shape[1] - 1


def _check(
    probs: Tensor, logits: Tensor, padded: Size, image: Size, output: Size, mib: float, mode: str
) -> None:
    if probs.dim() != 2 or logits.dim() != 3 or probs.shape[0] != logits.shape[0]:
        raise ValueError(
            "expected class_probs (Q, K) and mask_logits (Q, h, w) of the same Q; "
            f"got {tuple(probs.shape)} and {tuple(logits.shape)}"
        )
    if 0 in probs.shape or 0 in logits.shape:
        raise ValueError(f"no proposals in {tuple(probs.shape)} and {tuple(logits.shape)}")
    if min(*padded, *image, *output) < 1 or image[0] > padded[0] or image[1] > padded[1]:
        raise ValueError(
            f"sizes must be positive and the image inside its padding; got padded {padded}, "
            f"image {image}, output {output}"
        )
    if mib <= 0:
        raise ValueError(f"memory_mib must be positive; got {mib}")
    if mode not in ("exact", "fast"):
        raise ValueError(f'mode must be "exact" or "fast"; got {mode!r}')


def _tile_bytes(memory_mib: float, logits: Tensor) -> int:
    """What the masks, and what the scores of the tiles of one turn may take."""
    half = int(memory_mib * 2**20 / 2)
    return min(half, _CPU_BYTES) if logits.device.type == "cpu" else half


@dataclass(frozen=True)
class _Columns:
    """How the n tiles of a stripe get their columns, the same for all stripes.

    Attributes:
        low: (n, L) columns of the grid around each tile.
        steps: (n, S, L), and in "exact" mode with a second resize also (n, T, S): weights of the
            interpolation from one set of columns to the next; the last has T.
        fast: whether the product is done at the columns of the grid.
    """

    low: Tensor
    steps: list[Tensor]
    fast: bool


def _tile_columns(geometry: Geometry, mode: str, device: torch.device) -> _Columns:
    width = geometry.output[1]
    # The last tile repeats the last column.
    columns = torch.arange(-(-width // _TILE) * _TILE, device=device).clamp(max=width - 1)
    columns, steps = columns.view(-1, _TILE), []
    if geometry.resized and mode == "exact":
        position = geometry.image_positions(columns, 1)
        columns, weights = _gather(interpolation_taps(position, geometry.image[1]))
        steps.append(weights)
    low, weights = _gather(interpolation_taps(_low(columns, geometry, mode, 1), geometry.low[1]))
    return _Columns(low, [weights, *steps], mode == "fast")


def _low(index: Tensor, geometry: Geometry, mode: str, axis: int) -> Tensor:
    """Where output (fast) or image positions (exact) lie in the grid."""
    if mode == "fast":
        index = geometry.image_positions(index, axis).clamp_(max=geometry.image[axis] - 1)
    return geometry.low_positions(index, axis)


def _gather(taps: Taps) -> tuple[Tensor, Tensor]:
    """The (n, S) positions that the taps (n, T) of each tile need, and weights (n, T, S)."""
    both = torch.cat(taps[:2], dim=1)
    ordered, order = both.sort(dim=1)
    rank = torch.zeros_like(ordered)
    rank[:, 1:] = (ordered.diff(dim=1) > 0).cumsum(1)
    needed = ordered[:, -1:].repeat(1, int(rank.max()) + 1).scatter_(1, rank, ordered)
    first, second = torch.empty_like(rank).scatter_(1, order, rank).chunk(2, dim=1)
    weights = taps[2].new_zeros(*first.shape, needed.shape[1])
    weights.scatter_add_(2, first[..., None], 1 - taps[2][..., None])
    weights.scatter_add_(2, second[..., None], taps[2][..., None])
    return needed, weights


def _row_steps(rows: Tensor, geometry: Geometry, mode: str) -> tuple[int, int, list[Taps]]:
    """Rows of the grid from, to, and the taps that lead from them to the rows of the output."""
    steps = []
    if geometry.resized and mode == "exact":
        taps = interpolation_taps(geometry.image_positions(rows, 0), geometry.image[0])
        # Strong reduction skips rows, so only those that count are upsampled.
        rows, places = torch.unique(torch.stack(taps[:2]), return_inverse=True)
        steps.append((places[0], places[1], taps[2]))
    first, second, weight = interpolation_taps(_low(rows, geometry, mode, 0), geometry.low[0])
    top, bottom = int(first[0]), int(second[-1]) + 1
    return top, bottom, [(first - top, second - top, weight), *steps]


@dataclass(frozen=True)
class _Tiles:
    """Names the pixels of the tiles of one stripe after the other.

    Attributes:
        probs: (Q, K).
        columns: where tiles lie.
        memory: bytes for the masks, and for the scores, of the tiles of one turn.
        scored: whether the best score of each pixel is wanted.
    """

    probs: Tensor
    columns: _Columns
    memory: int
    scored: bool

    def name(self, logits: Tensor, rows: list[Taps]) -> tuple[Tensor, Tensor]:
        """(Q, l, w) logits around the stripe to (n, T, R) int64 names and scores of its tiles."""
        # (w, l, Q): what follows is done for many masks at a time.
        logits = logits.permute(2, 1, 0).contiguous()
        possible = self._possible(logits)
        counts = possible.sum(1)
        size = (len(counts), _TILE, len(rows[-1][2]))
        names = possible.int().argmax(1).view(-1, 1, 1).repeat(1, *size[1:])
        best = self.probs.new_empty(size if self.scored else (1, 1, 1))
        for tiles, chosen in self._turns(possible, counts, len(rows[0][2])):
            scores = self._scores(logits, tiles, rows, self.probs.T[chosen].transpose(1, 2))
            highest, place = scores.max(-1) if self.scored else (None, scores.argmax(-1))
            names[tiles] = chosen.gather(1, place).view(-1, *size[1:])
            if highest is not None:
                best[tiles] = highest.view(-1, *size[1:])
        return names, best

    def _possible(self, logits: Tensor) -> Tensor:
        """(n, K) whether a class can win in a tile."""
        least = logits.amin(1)[self.columns.low].amin(1).sigmoid_()
        most = logits.amax(1)[self.columns.low].amax(1).sigmoid_()
        lower = torch.mm(least, self.probs).amax(1, keepdim=True)
        # NaN leaves no class out.
        return ~(torch.mm(most, self.probs) * (1 + _ROUNDING) < lower)

    def _turns(
        self, possible: Tensor, counts: Tensor, rows: int
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Tiles that are done together, (m,), and the classes that they choose from, (m, c)."""
        classes = torch.arange(possible.shape[1], device=possible.device)
        # Classes that can win come first, each group in ascending order.
        keys = classes.where(possible, classes + possible.shape[1])
        order = counts.argsort(descending=True)
        ordered = counts[order].tolist()
        if not self.scored:
            ordered = [count for count in ordered if count > 1]
        queries, width = len(self.probs), max(step.shape[1] for step in self.columns.steps)
        start = 0
        while start < len(ordered):
            most = ordered[start]
            pixel_bytes = 4 * max(2 * queries, most)
            stop = start + max(1, self.memory // (pixel_bytes * rows * width))
            tiles = order[start : min(stop, len(ordered))]
            chosen = keys[tiles].topk(most, dim=1, largest=False).values % possible.shape[1]
            yield tiles, chosen
            start = stop

    def _scores(self, logits: Tensor, tiles: Tensor, rows: list[Taps], probs: Tensor) -> Tensor:
        """(m, P, c) scores of the pixels of m tiles; `probs` is (m, Q, c)."""
        low = self.columns.low[tiles]
        values = logits.index_select(0, low.flatten()).view(*low.shape, *logits.shape[1:])
        if self.columns.fast:
            values = _product(values.sigmoid_(), probs)
        for step, (taps, weights) in enumerate(zip(rows, self.columns.steps, strict=True)):
            values = interpolate(values, taps, 2)
            flat = torch.bmm(weights[tiles], values.flatten(2))
            values = flat.view(*flat.shape[:2], *values.shape[2:])
            if step == 0 and not self.columns.fast:
                values.sigmoid_()
        values = values if self.columns.fast else _product(values, probs)
        return values.flatten(1, 2)


def _product(masks: Tensor, probs: Tensor) -> Tensor:
    """(m, T, R, Q) masks times (m, Q, c) probabilities: (m, T, R, c)."""
    found = torch.bmm(masks.flatten(1, 2), probs)
    return found.view(*masks.shape[:3], probs.shape[2])


def name_pixels(scores: Tensor, below: float, reject_as: int) -> Tensor:
    """(P, K) scores to (P,) int32 labels."""
    if below <= 0:
        return scores.argmax(-1).int()
    best, label = scores.max(-1)
    return label.int().masked_fill_(best < below, reject_as)
