"""Rows of the frozen VLM: embeddings of 100 regions, and of 171 names."""

from __future__ import annotations

import tempfile
import time
from functools import partial
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor

import alignzeg.modeling.vlm.model as vlm_model
from alignzeg.data.benchmark import read_split_file
from alignzeg.data.catalog import SPLIT_DIR
from alignzeg.modeling.vlm.model import OpenClipVLM
from bench.label_map import proposals
from bench.measure import Result, Row, Sides, timed
from bench.peers import random_clip

MODEL, CROP = "ViT-B-16-quickgelu", 224
TEMPLATE = "a photo of a {}."


def vlm(quick: bool, image_size: int = 0, cache_dir: str = "") -> OpenClipVLM:
    """ViT-B/16 with random weights; the shipped CLIP at toy size."""
    options: dict[str, Any] = {"image_size": image_size, "templates": (TEMPLATE,)}
    options["cache_dir"] = cache_dir or tempfile.mkdtemp(prefix="bench-text-")
    if quick:
        return OpenClipVLM(model_name="alignzeg-tiny", **options | {"image_size": 64})
    with random_clip():
        return OpenClipVLM(model_name=MODEL, **options)


@torch.no_grad()
def crops(model: OpenClipVLM, image: Tensor, masks: Tensor, batch: int = 25) -> Tensor:
    """(Q, D) unit-length embeddings of the masked boxes of (Q, H, W) masks, the usual way.

    Source: zsseg (arXiv 2112.14757) and OVSeg: cut the box, mask out the rest, resize to the
    tower's own square, encode each.
    """
    side = model.clip.visual.image_size
    side = side if isinstance(side, int) else side[0]
    mean = torch.tensor(model._preprocess["mean"]).view(1, 3, 1, 1)
    std = torch.tensor(model._preprocess["std"]).view(1, 3, 1, 1)
    cut = []
    for mask in masks:
        rows, columns = mask.any(1).nonzero()[:, 0], mask.any(0).nonzero()[:, 0]
        box = (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
        part = torch.where(mask[box], image[(0, slice(None), *box)], 127.0)[None]
        cut.append(F.interpolate(part, (side, side), mode="bilinear", align_corners=False))
    pixels = (torch.cat(cut) / 255 - mean) / std
    found = [model.clip.encode_image(part) for part in pixels.split(batch)]
    return F.normalize(torch.cat(found), dim=-1)


def regions(size: int, quick: bool) -> Sides:
    """One dense pass at `size` beside a pass for each of 100 crops."""
    size, count = (64, 6) if quick else (size, 100)
    model = vlm(quick, size)
    image = torch.rand(1, 3, size, size) * 255
    logits = proposals(3, size, count)[1]
    masks = F.interpolate(logits[None], (size, size), mode="bilinear")[0] > 0
    masks[:, 0, 0] = True  # none is empty

    def ours() -> Tensor:
        return model.embed_regions(model.encode_image(image), logits[None])[0]

    return {"ours": ours, "peer": lambda: crops(model, image, masks)}


def same_shape(ours: Tensor, peer: Tensor) -> str:
    """Both give a unit-length embedding of every region; they are other features."""
    if ours.shape != peer.shape or not torch.allclose(ours.norm(dim=1), torch.ones(len(ours))):
        raise AssertionError(f"{tuple(ours.shape)} and {tuple(peer.shape)}")
    return "a masked class token beside crops: other features of the same regions"


def names(quick: bool) -> list[str]:
    """The 171 names of COCO-Stuff."""
    found = list(read_split_file(SPLIT_DIR / "coco_stuff.json").vocabulary.names)
    return found[:5] if quick else found


def text(quick: bool) -> Sides:
    """Our prototypes of 171 names beside the text tower at its whole context."""
    model, words = vlm(quick), names(quick)

    @torch.no_grad()
    def ours() -> Tensor:
        return torch.stack([model._prototype(name) for name in words])

    @torch.no_grad()
    def peer() -> Tensor:
        tokens = model._tokenizer([TEMPLATE.replace("{}", name) for name in words])
        return F.normalize(model.clip.encode_text(tokens), dim=-1)

    return {"ours": ours, "peer": peer}


def close(ours: Tensor, peer: Tensor) -> str:
    """Prototypes are those of the whole context up to rounding."""
    worst = float((ours - peer).abs().max())
    if worst > 1e-5:
        raise AssertionError(f"prototypes differ by {worst}")
    return f"differ by at most {worst:.0e}"


def warm_text(name: str, row: Row, quick: bool) -> Result:
    """The same names once more, by another process as it were: read from disk, no tower is run."""
    del name, row
    words = names(quick)
    with tempfile.TemporaryDirectory() as folder:
        model, fresh = (vlm(quick, cache_dir=folder) for _ in range(2))
        start = time.perf_counter()
        cold = model.embed_text(words)
        cold_ms = 1e3 * (time.perf_counter() - start)
        with mock.patch.object(vlm_model, "encode_prompts", side_effect=AssertionError("ran")):
            start = time.perf_counter()
            warm = fresh.embed_text(words)
            warm_ms = 1e3 * (time.perf_counter() - start)
    if not torch.equal(cold, warm):
        raise AssertionError("prototypes from disk are others")
    note = "the text tower was not run; peer: ours when cold"
    return Result(warm_ms, cold_ms, cold_ms / warm_ms, note)


def _regions_row(goal: float, size: int) -> Row:
    what = f"100 regions through ViT-B/16 at {size}², beside 100 crops at {CROP}²"
    build = partial(regions, size)
    return Row(goal, what, timed, build, seconds=1, least=1, check=same_shape)


ROWS = {
    "regions/320": _regions_row(40, 320),
    "regions/640": _regions_row(7, 640),
    "text/cold": Row(
        6,
        "171 names through the text tower, beside the whole context of 77 tokens",
        timed,
        text,
        check=close,
    ),
    "text/warm": Row(6, "171 names whose prototypes are on disk", warm_text),
}
