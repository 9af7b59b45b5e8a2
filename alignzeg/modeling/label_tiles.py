"""A label map in small tiles, with few classes in each: the fast way on a CPU.

A tile of the answer goes all the way to labels before the next one starts, so that memory hardly
depends on K or on the size of the image.

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

from alignzeg.modeling.interpolation import Geometry, Positions, Taps, interpolate

# Side of a tile in pixels: about four cells of the usual grid, at which bounds are tight.
_TILE = 16
# What the bounds allow for rounding: a part of the score.
_ROUNDING = 1e-4
# Temporaries that stay in the cache are up to twice as fast as larger ones.
_CACHE_BYTES = 2 * 2**20


def named_in_tiles(
    class_probs: Tensor, logits: Tensor, geometry: Geometry, memory: int, fast: bool, scored: bool
) -> Iterator[tuple[slice, Tensor, Tensor | None]]:
    """Names the pixels of one stripe of tiles after the other.

    Args:
        class_probs: (Q, K) float32.
        logits: (Q, h, w).
        geometry: the sizes.
        memory: bytes for the temporaries.
        fast: see `semantic_inference`.
        scored: whether best scores are wanted.

    Yields:
        Rows of the answer, their (R, Wo) int64 names and their (R, Wo) best scores or None.
    """
    height, width = geometry.output
    columns = _tile_columns(geometry, fast, logits.device)
    tiles = _Tiles(class_probs, columns, min(memory // 2, _CACHE_BYTES), scored)
    for start in range(0, height, _TILE):
        rows = torch.arange(start, min(start + _TILE, height), device=logits.device)
        top, bottom, steps = _row_steps(rows, geometry, fast)
        names, best = tiles.name(logits[:, top:bottom].float(), steps)
        scores = best.flatten(0, 1)[:width].T if scored else None
        yield slice(start, start + len(rows)), names.flatten(0, 1)[:width].T, scores


@dataclass(frozen=True)
class _Columns:
    """How the n tiles of a stripe get their columns, the same for all stripes.

    Attributes:
        low: (n, L) columns of the grid around each tile.
        steps: (n, S, L), and, with a second resize, unless fast, also (n, T, S): weights of the
            interpolation from one set of columns to the next; the last has T.
        fast: whether the product is done at the columns of the grid.
    """

    low: Tensor
    steps: list[Tensor]
    fast: bool


def _tile_columns(geometry: Geometry, fast: bool, device: torch.device) -> _Columns:
    width = geometry.output[1]
    # The last tile repeats the last column.
    columns = torch.arange(-(-width // _TILE) * _TILE, device=device).clamp(max=width - 1)
    columns, steps = columns.view(-1, _TILE), []
    if geometry.resized and not fast:
        position = geometry.image_positions(columns, 1)
        columns, weights = _gather(position.taps(geometry.image[1]))
        steps.append(weights)
    low, weights = _gather(_low(columns, geometry, fast, 1).taps(geometry.low[1]))
    return _Columns(low, [weights, *steps], fast)


def _low(index: Tensor, geometry: Geometry, fast: bool, axis: int) -> Positions:
    """Where output (fast) or image positions (exact) lie in the grid."""
    return (geometry.direct_positions if fast else geometry.low_positions)(index, axis)


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


def _row_steps(rows: Tensor, geometry: Geometry, fast: bool) -> tuple[int, int, list[Taps]]:
    """Rows of the grid from, to, and the taps that lead from them to the rows of the output."""
    steps = []
    if geometry.resized and not fast:
        taps = geometry.image_positions(rows, 0).taps(geometry.image[0])
        # Strong reduction skips rows, so only those that count are upsampled.
        rows, places = torch.unique(torch.stack(taps[:2]), return_inverse=True)
        steps.append((places[0], places[1], taps[2]))
    first, second, weight = _low(rows, geometry, fast, 0).taps(geometry.low[0])
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
