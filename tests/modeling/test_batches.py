"""What an image is answered does not depend on the images beside it."""

from __future__ import annotations

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.utils.env import seed_all_rng
from helpers import CONFIGS
from torch import Tensor, nn

from alignzeg.engine import setup_config
from alignzeg.structures import Vocabulary

SMALL = [
    *("ALIGNZEG.EXTRACTOR.NUM_QUERIES", "9"),
    *("ALIGNZEG.EXTRACTOR.HIDDEN_DIM", "32"),
    *("ALIGNZEG.ENCODER.SMALL_CHANNELS", "[16, 24, 32, 40]"),
    *("MODEL.FPN.OUT_CHANNELS", "32"),
]
# Each architecture, and both ways to embed regions.
MODELS = {
    "alignzeg": [],
    "alignzeg_cel": [],
    "baseline": ["ALIGNZEG.VLM.REGIONS", "MaskPooling"],
    "pixel": [],
}


@pytest.fixture(scope="module", params=MODELS)
def model(request) -> nn.Module:
    seed_all_rng(0)
    cfg = setup_config(CONFIGS / "zeroshapes" / f"{request.param}.yaml", SMALL)
    cfg.merge_from_list(MODELS[request.param])
    return build_model(cfg).eval()


@torch.inference_mode()
def answers(model: nn.Module, images: list[Tensor]) -> list[dict[str, Tensor]]:
    vocabulary = Vocabulary(("grass", "brick", "red star", "blue ring"), (True, True, True, False))
    return model([{"image": image, "vocabulary": vocabulary} for image in images])


def test_alone_and_in_any_batch_to_the_bit(model) -> None:
    generator = torch.Generator().manual_seed(5)
    sizes = torch.randint(20, 150, (6, 2), generator=generator).tolist()
    images = [
        torch.randint(0, 256, (3, *size), dtype=torch.uint8, generator=generator) for size in sizes
    ]
    alone = [answers(model, [image])[0] for image in images]
    for _ in range(13):  # with four models more than 50 batches
        count = int(torch.randint(2, 5, (), generator=generator))
        chosen = torch.randperm(len(images), generator=generator)[:count].tolist()
        for place, together in zip(
            chosen, answers(model, [images[i] for i in chosen]), strict=True
        ):
            assert alone[place]["sem_seg"].shape == tuple(sizes[place])
            for key, value in alone[place].items():
                same = value is together[key] or torch.equal(value, together[key])
                assert same, f"{key} of image {place} in batch {chosen}"


def test_a_batch_of_two_vocabularies_is_refused(model) -> None:
    image = torch.zeros(3, 32, 32, dtype=torch.uint8)
    pair = [{"image": image, "vocabulary": Vocabulary((name,), (True,))} for name in ("a", "b")]
    with pytest.raises(ValueError, match="share one vocabulary"):
        model(pair)
