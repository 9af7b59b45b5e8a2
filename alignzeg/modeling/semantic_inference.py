"""Proposals to a label map: class probabilities times masks, in stripes with the argmax inside.

The usual order upsamples all Q masks, multiplies by all K classes and takes the argmax of a
(K, H, W) map, which at 1024 x 1024 pixels and 847 classes needs 7 GB. Here a stripe of output rows
goes all the way to labels before the next one starts, so that memory depends neither on K nor on
the size of the image. Per pixel the classes are contiguous: an argmax over the last axis is
several times faster than one over the first.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

Size = tuple[int, int]
Taps = tuple[Tensor, Tensor, Tensor]
# Rows of the output and, for each candidate, its scores of the stripe's pixels, (p, K) each.
_Stripe = tuple[slice, Iterator[Iterator[Tensor]]]

# On a CPU, temporaries that stay in the cache are up to twice as fast as larger ones.
_CPU_BYTES = 4 * 2**20


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
        class_probs: (Q, K) in [0, 1], without the background.
        mask_logits: (Q, h, w) of the padded image, usually at stride 4.
        padded_size: height and width in pixels that (h, w) covers.
        image_size: height and width of the image inside the padding, at its top left.
        output_size: height and width of the answer.
        memory_mib: what the temporaries of one stripe may take, MiB. At least one row is done at
            a time, also where that needs more.
        mode: "exact", or "fast": the product at the size of the logits, then the classes
            interpolated straight to the output. It differs in 1 to 2 % of the pixels, at edges.
        reject_below: pixels whose best score is lower get the highest number of the dtype.
        confidence: (Ho, Wo) floats that become the best score of each pixel, 0 or more.

    Returns:
        (Ho, Wo) label map on the device of the logits, uint8, or uint16 where K > 255. In "exact"
        mode it equals the plain formula except where the best two scores of a pixel differ by
        less than 1e-6, where rounding decides. Equal scores: the lower class.

    Raises:
        ValueError: if shapes do not fit, a size is not positive, or the mode is unknown.
    """
    rest = (memory_mib, mode, reject_below, confidence)
    stripes = label_stripes([class_probs], mask_logits, padded_size, image_size, output_size, *rest)
    dtype = torch.uint16 if class_probs.shape[1] > 255 else torch.uint8
    labels = torch.empty(output_size, dtype=dtype, device=mask_logits.device)
    for rows, (answer,) in stripes:
        labels[rows] = answer.to(dtype)
    return labels


def label_stripes(
    candidates: Sequence[Tensor],
    mask_logits: Tensor,
    padded_size: Size,
    image_size: Size,
    output_size: Size,
    memory_mib: float,
    mode: str = "exact",
    reject_below: float = 0.0,
    confidence: Tensor | None = None,
) -> Iterator[tuple[slice, Iterator[Tensor]]]:
    """`semantic_inference` for several class probabilities of the same masks, stripe by stripe.

    The masks of a stripe are upsampled once, whatever the number of candidates.

    Args:
        candidates: n times (Q, K), at least one; all others as in `semantic_inference`.
        mask_logits: see there.
        padded_size: see there.
        image_size: see there.
        output_size: see there.
        memory_mib: see there.
        mode: see there.
        reject_below: see there.
        confidence: see there; of the last candidate.

    Returns:
        Rows and, one for each candidate, their labels (rows, Wo) int32, to the bit those of
        `semantic_inference`; to be used up before the next rows are asked for.

    Raises:
        ValueError: as `semantic_inference`, or if the candidates differ in shape.
    """
    if len({probs.shape for probs in candidates}) != 1:
        shapes = [tuple(probs.shape) for probs in candidates]
        raise ValueError(f"expected class_probs of one shape (Q, K); got {shapes}")
    _check(candidates[0], mask_logits, padded_size, image_size, output_size, memory_mib, mode)
    geometry = Geometry(mask_logits.shape[-2:], padded_size, image_size, output_size)
    # Half of the memory for the masks of a stripe, half for the scores of some of its pixels.
    half = int(memory_mib * 2**20 / 2)
    half = min(half, _CPU_BYTES) if mask_logits.device.type == "cpu" else half
    reject_as = 65535 if candidates[0].shape[1] > 255 else 255

    def named(rows: slice, parts: Iterator[Tensor]) -> Tensor:
        labels, place = [], rows.start * output_size[1]
        for part in parts:
            labels.append(name_pixels(part, reject_below, reject_as))
            if confidence is not None:
                confidence.view(-1)[place : place + len(part)] = part.amax(-1)
            place += len(part)
        return torch.cat(labels).view(-1, output_size[1])

    stripes = _exact_stripes if mode == "exact" else _fast_stripes
    found = stripes([c.float() for c in candidates], mask_logits.float(), geometry, half)
    return ((rows, map(partial(named, rows), scored)) for rows, scored in found)


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


@dataclass(frozen=True)
class Geometry:
    """Sizes: of the grid, of the padded image that it covers, of the image in it, of the answer."""

    low: Sequence[int]
    padded: Size
    image: Size
    output: Size

    @property
    def resized(self) -> bool:
        """Whether the answer has another size than the image."""
        return self.image != self.output


def _source(index: Tensor, size_in: int, size_out: int) -> Tensor:
    """Where output positions lie in the input (align_corners=False), not below 0."""
    return ((index + 0.5) * (size_in / size_out) - 0.5).clamp_(min=0)


def interpolation_taps(position: Tensor, size: int) -> Taps:
    """The two neighbours of each position and the weight of the second."""
    first = position.floor().long().clamp_(max=size - 1)
    second = (first + 1).clamp_(max=size - 1)
    return first, second, (position - first).clamp_(0, 1).float()


def interpolate(values: Tensor, taps: Taps, dim: int) -> Tensor:
    """Interpolates along one dimension at the given taps."""
    first, second, weight = taps
    shape = [1] * values.dim()
    shape[dim] = -1
    start = values.index_select(dim, first)
    return start.lerp_(values.index_select(dim, second), weight.view(shape))


def _widen(values: Tensor, width: int) -> Tensor:
    """(Q, n, w) -> (Q, n, width), interpolated along the rows."""
    if values.shape[-1] == width:
        return values
    size = (values.shape[-2], width)
    return F.interpolate(values[None], size, mode="bilinear", align_corners=False)[0]


def _image_rows(values: Tensor, rows: Tensor, geometry: Geometry, masks: bool) -> Tensor:
    """See `output_rows`, at some rows of the image: (Q, len(rows), W)."""
    height, padded = values.shape[-2], geometry.padded
    narrow = interpolate(values, interpolation_taps(_source(rows, height, padded[0]), height), 1)
    wide = _widen(narrow, padded[1])
    return (wide.sigmoid_() if masks else wide)[..., : geometry.image[1]]


def _exact_stripes(
    candidates: Sequence[Tensor], logits: Tensor, geometry: Geometry, memory: int
) -> Iterator[_Stripe]:
    queries, classes = candidates[0].shape
    height, width = geometry.output
    # Bytes of one row's temporaries: logits and probabilities, and both again where resized.
    row_bytes = 4 * queries * (2 * geometry.padded[1] + (3 * width if geometry.resized else 0))
    if geometry.resized and geometry.image[0] > height:
        row_bytes *= 2
    step = max(1, min(height, memory // row_bytes))
    pixels = max(1, min(step * width, memory // (4 * classes)))
    buffer = candidates[0].new_empty(pixels, classes)

    def scores(masks: Tensor, probs: Tensor) -> Iterator[Tensor]:
        for part in masks.split(pixels, dim=1):
            yield torch.mm(part.t(), probs, out=buffer[: part.shape[1]])

    for start in range(0, height, step):
        stop = min(height, start + step)
        rows = torch.arange(start, stop, dtype=torch.float64, device=logits.device)
        masks = output_rows(logits, rows, geometry).reshape(queries, -1)
        yield slice(start, stop), map(partial(scores, masks), candidates)


def output_rows(values: Tensor, rows: Tensor, geometry: Geometry, masks: bool = True) -> Tensor:
    """(Q, h, w) values at some rows of the output, (Q, len(rows), Wo); of masks, probabilities."""
    if not geometry.resized:
        return _image_rows(values, rows, geometry, masks)
    height = geometry.image[0]
    first, second, weight = interpolation_taps(_source(rows, height, geometry.output[0]), height)
    # Strong reduction skips rows, so only those that count are upsampled.
    needed, place = torch.unique(torch.cat([first, second]), return_inverse=True)
    found = _image_rows(values, needed.double(), geometry, masks)
    found = interpolate(found, (place[: len(rows)], place[len(rows) :], weight), 1)
    return _widen(found, geometry.output[1])


def _fast_stripes(
    candidates: Sequence[Tensor], logits: Tensor, geometry: Geometry, memory: int
) -> Iterator[_Stripe]:
    queries, classes = candidates[0].shape
    height, width = geometry.output
    low_height, low_width = geometry.low
    step = max(1, min(height, memory // (4 * classes * (width + low_width))))
    device = logits.device
    columns = interpolation_taps(
        _low_positions(torch.arange(width, device=device), geometry, 1), low_width
    )

    def scores(masks: Tensor, taps: Taps, probs: Tensor) -> Iterator[Tensor]:
        low = torch.mm(masks.t(), probs).view(-1, low_width, classes)
        yield interpolate(interpolate(low, taps, 0), columns, 1).view(-1, classes)

    for start in range(0, height, step):
        stop = min(height, start + step)
        rows = torch.arange(start, stop, device=device)
        first, second, weight = interpolation_taps(_low_positions(rows, geometry, 0), low_height)
        top, bottom = int(first[0]), int(second[-1]) + 1
        masks = logits[:, top:bottom].sigmoid().reshape(queries, -1)
        taps = (first - top, second - top, weight)
        yield slice(start, stop), map(partial(scores, masks, taps), candidates)


def _low_positions(index: Tensor, geometry: Geometry, axis: int) -> Tensor:
    """Where output rows (axis 0) or columns (axis 1) lie in the logits."""
    image = geometry.image[axis]
    position = _source(index.double(), image, geometry.output[axis]).clamp_(max=image - 1)
    return _source(position, geometry.low[axis], geometry.padded[axis])


def name_pixels(scores: Tensor, below: float, reject_as: int) -> Tensor:
    """(P, K) scores to (P,) int32 labels."""
    if below <= 0:
        return scores.argmax(-1).int()
    best, label = scores.max(-1)
    return label.int().masked_fill_(best < below, reject_as)
