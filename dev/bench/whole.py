"""Rows of whole models: a training step, an image, and from files to the confusion matrix."""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from detectron2.data import DatasetMapper
from detectron2.evaluation import SemSegEvaluator
from PIL import Image
from torch import Tensor, nn

from alignzeg.data.labels import get_vocabulary
from alignzeg.data.mapper import ZeroShotMapper
from alignzeg.evaluation import ZeroShotEvaluator
from alignzeg.structures import Vocabulary
from bench import files
from bench.label_map import all_equal
from bench.measure import Row, Sides, timed
from bench.models import batch, normalized, ours
from bench.peers import mask2former, maskformer, semantic_fpn

SEEN, ALL = 156, 171


def train_step(
    method: str, peer: str, size: int, quick: bool, vlm: bool = False, points: bool = True
) -> Sides:
    """Forward, backward and a step of AdamW, on two images, of ours and of a peer."""
    size = 64 if quick else size
    data = batch(size)
    grid = () if points else ("ALIGNZEG.LOSS.NUM_POINTS", "0")
    model = ours(method, quick, vlm, grid).train()
    theirs = {
        "maskformer": partial(maskformer, SEEN, quick, auxiliary=True),
        "maskformer_final_loss": partial(maskformer, SEEN, quick),
        "mask2former": partial(mask2former, SEEN, quick),
    }[peer]().train()
    targets = [item["targets"] for item in data]
    given = {
        "mask_labels": [target.masks.float() for target in targets],
        "class_labels": [target.labels for target in targets],
        "pixel_mask": torch.ones(len(data), size, size, dtype=torch.int64),
        "output_hidden_states": peer == "maskformer",
    }

    def stepper(net: nn.Module, loss: Any) -> Any:
        optimizer = torch.optim.AdamW([p for p in net.parameters() if p.requires_grad], lr=1e-5)

        def step() -> float:
            optimizer.zero_grad(set_to_none=True)
            total = loss()
            total.backward()
            optimizer.step()
            return float(total.detach())

        return step

    def their_loss() -> Tensor:
        pixels = normalized([item["image"] for item in data])
        return theirs(pixel_values=pixels, **given).loss.sum()

    return {
        "ours": stepper(model, lambda: sum(model(data).values())),
        "peer": stepper(theirs, their_loss),
    }


def finite(ours: float, peer: float) -> str:
    """Both losses are numbers; they are sums of other terms."""
    if not all(torch.tensor(value).isfinite() for value in (ours, peer)):
        raise AssertionError(f"losses are {ours} and {peer}")
    return f"losses {ours:.2f} and {peer:.2f}"


def inference(method: str, peer: str, quick: bool, vlm: bool = False) -> Sides:
    """An image of 640 x 480 to its label map among 171 names."""
    height, width = (64, 96) if quick else (480, 640)
    rng = torch.Generator().manual_seed(4)
    image = torch.randint(0, 256, (3, height, width), generator=rng, dtype=torch.uint8)
    vocabulary = Vocabulary(tuple(f"thing {i}" for i in range(ALL)), (True,) * ALL)
    model = ours(method, quick, vlm).eval()
    item = {"image": image, "vocabulary": vocabulary, "height": height, "width": width}
    theirs = label_map_of(peer, quick)

    @torch.no_grad()
    def our_map() -> Tensor:
        return model([item])[0]["sem_seg"]

    return {"ours": our_map, "peer": lambda: theirs(image, (height, width))}


def label_map_of(peer: str, quick: bool) -> Any:
    """A function from an image and the wanted size to the label map of a peer."""
    if peer == "semantic_fpn":
        fpn = semantic_fpn(ALL, quick).eval()

        @torch.no_grad()
        def by_fpn(image: Tensor, size: tuple[int, int]) -> Tensor:
            item = {"image": image, "height": size[0], "width": size[1]}
            return fpn([item])[0]["sem_seg"].argmax(0)

        return by_fpn
    from transformers import MaskFormerImageProcessor

    theirs = maskformer(ALL, quick).eval()
    processor = MaskFormerImageProcessor()

    @torch.no_grad()
    def by_maskformer(image: Tensor, size: tuple[int, int]) -> Tensor:
        output = theirs(pixel_values=normalized([image]))
        return processor.post_process_semantic_segmentation(output, [size])[0]

    return by_maskformer


def same_size(ours: Tensor, peer: Tensor) -> str:
    """Both are label maps of the image's size; the weights are random, so their labels differ."""
    if ours.shape != peer.shape:
        raise AssertionError(f"{tuple(ours.shape)} and {tuple(peer.shape)}")
    return "random weights: other labels"


def label_array(file_name: str, dtype: type) -> np.ndarray:
    """What SemSegEvaluator reads; its own function needs a NumPy below 2."""
    return np.asarray(Image.open(file_name)).astype(dtype)


def end_to_end(quick: bool, vlm: bool = False) -> Sides:
    """From files to the confusion matrix: read, resize, model, label map, count.

    The peer reads with Detectron2's DatasetMapper and counts with its SemSegEvaluator, around
    transformers' MaskFormer.
    """
    root = Path(tempfile.mkdtemp(prefix="bench-files-"))
    count, size = (1, (64, 96)) if quick else (2, (480, 640))
    name, records = files.dataset(root, count, size)
    vocabulary = get_vocabulary(name)
    model = ours("baseline", quick, vlm).eval()
    mapper = ZeroShotMapper(is_train=False, vocabularies={name: vocabulary}, augmentations=[])
    evaluator = ZeroShotEvaluator(name, vocabulary, recall=False)
    theirs = maskformer(ALL, quick).eval()
    their_mapper = DatasetMapper(is_train=False, augmentations=[], image_format="RGB")
    their_evaluator = SemSegEvaluator(name, distributed=False, sem_seg_loading_fn=label_array)

    @torch.no_grad()
    def our_matrix() -> Any:
        evaluator.reset()
        for record in records:
            item = mapper(record)
            evaluator.process([item], model([item]))
        return evaluator._matrix.sum()

    @torch.no_grad()
    def peer_matrix() -> Any:
        their_evaluator.reset()
        for record in records:
            item = their_mapper(record)
            output = theirs(pixel_values=normalized([item["image"]]))
            shape = (item["height"], item["width"])
            scores = torch.einsum(
                "qc,qhw->chw",
                output.class_queries_logits[0].softmax(-1)[:, :-1],
                output.masks_queries_logits[0].sigmoid(),
            )
            scores = F.interpolate(scores[None], shape, mode="bilinear", align_corners=False)
            their_evaluator.process([item], [{"sem_seg": scores[0]}])
        return their_evaluator._conf_matrix[:, :-1].sum()

    return {"ours": our_matrix, "peer": peer_matrix}


def counting(quick: bool) -> Sides:
    """Counting alone, of the same label map: Detectron2's evaluator takes it as scores."""
    root = Path(tempfile.mkdtemp(prefix="bench-files-"))
    size = (64, 96) if quick else (480, 640)
    name, records = files.dataset(root, 1, size)
    vocabulary = get_vocabulary(name)
    rng = torch.Generator().manual_seed(5)
    coarse = torch.randn(1, ALL, size[0] // 32, size[1] // 32, generator=rng)
    scores = F.interpolate(coarse, size, mode="bilinear")[0].contiguous()
    labels = scores.argmax(0).to(torch.uint8)
    evaluator = ZeroShotEvaluator(name, vocabulary, recall=False)
    their_evaluator = SemSegEvaluator(name, distributed=False, sem_seg_loading_fn=label_array)

    def our_matrix() -> Tensor:
        evaluator.reset()
        evaluator.process(records, [{"sem_seg": labels}])
        return torch.from_numpy(evaluator._matrix[:, :-1])

    def peer_matrix() -> Tensor:
        their_evaluator.reset()
        their_evaluator.process(records, [{"sem_seg": scores}])
        return torch.from_numpy(their_evaluator._conf_matrix[:-1, :-1].T.copy())

    return {"ours": our_matrix, "peer": peer_matrix}


def as_many_pixels(ours: Any, peer: Any) -> str:
    """Both counted every labelled pixel."""
    if int(ours) != int(peer):
        raise AssertionError(f"{ours} and {peer} pixels counted")
    return f"{int(ours)} pixels counted by each"


def _step_row(goal: float, what: str, method: str, peer: str, size: int, **options: Any) -> Row:
    what = f"training step, R50, 2 x {size}², {what}"
    build = partial(train_step, method, peer, size, **options)
    return Row(goal, what, timed, build, seconds=8 * size / 256, check=finite)


def _image_row(goal: float, what: str, method: str, peer: str, vlm: bool = False) -> Row:
    what = f"640 x 480 to a label map of 171 names, R50, {what}"
    build = partial(inference, method, peer, vlm=vlm)
    return Row(goal, what, timed, build, seconds=8, check=same_size, allocator=not vlm)


FORMER = "beside transformers' MaskFormer"
ROWS = {
    "whole/train_baseline": _step_row(
        1.2, f"baseline {FORMER}, auxiliary losses in both", "baseline", "maskformer", 512
    ),
    "whole/train_baseline_256": _step_row(
        1.2, f"baseline {FORMER}, auxiliary losses in both", "baseline", "maskformer", 256
    ),
    "whole/train_baseline_grid": _step_row(
        0, f"baseline, losses on the grid, {FORMER}", "baseline", "maskformer", 512, points=False
    ),
    "whole/train_baseline_final_loss": _step_row(
        1.0,
        f"baseline with auxiliary losses {FORMER} without",
        "baseline",
        "maskformer_final_loss",
        512,
    ),
    "whole/train_baseline_vlm": _step_row(
        0, f"baseline with ViT-B/16 {FORMER}", "baseline", "maskformer", 256, vlm=True
    ),
    "whole/train_refined": _step_row(
        2.0,
        "mutually refined beside transformers' Mask2Former",
        "alignzeg",
        "mask2former",
        512,
    ),
    "whole/train_refined_vlm": _step_row(
        0,
        "mutually refined with ViT-B/16 beside transformers' Mask2Former",
        "alignzeg",
        "mask2former",
        256,
        vlm=True,
    ),
    "whole/inference": _image_row(1.2, f"baseline {FORMER}", "baseline", "maskformer"),
    "whole/inference_vlm": _image_row(
        0, f"baseline with ViT-B/16 {FORMER}", "baseline", "maskformer", vlm=True
    ),
    "whole/inference_semantic_fpn": _image_row(
        0, "baseline beside Detectron2's SemanticSegmentor", "baseline", "semantic_fpn"
    ),
    "whole/counting": Row(
        0,
        "from a label map to the confusion matrix, beside Detectron2's SemSegEvaluator",
        timed,
        counting,
        seconds=3,
        check=all_equal,
    ),
    "whole/end_to_end": Row(
        1.5,
        "from files to the confusion matrix, beside Detectron2's mapper and evaluator around "
        "transformers' MaskFormer",
        timed,
        end_to_end,
        seconds=10,
        check=as_many_pixels,
    ),
    "whole/end_to_end_vlm": Row(
        0,
        "the same with ViT-B/16 on our side",
        timed,
        partial(end_to_end, vlm=True),
        seconds=10,
        check=as_many_pixels,
    ),
}
