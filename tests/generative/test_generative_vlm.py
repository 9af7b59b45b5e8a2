"""Pixel features that end with the frozen VLM's embedding, and a generator that knows that."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from detectron2.structures import ImageList
from helpers import CONFIGS, K4

from alignzeg.engine import setup_config
from alignzeg.engine.training.trainer import Trainer
from alignzeg.modeling.generator import GMMNGenerator

RECURSIVE = CONFIGS / "zeroshapes" / "transductive_recursive.yaml"
WITH_VLM = [
    *K4,
    "SOLVER.MAX_ITER",
    "2000",
    "ALIGNZEG.GENERATOR.VLM_NORM",
    "3.0",
    "ALIGNZEG.GENERATOR.SKIP",
    "2.0",
]


@pytest.fixture
def model(zeroshapes, tiny_opts):
    cfg = setup_config(RECURSIVE, [*tiny_opts, *WITH_VLM])
    return Trainer.build_model(cfg).eval()


def test_features_end_with_the_vlms_embedding_of_the_unpadded_image(model):
    image = torch.rand(3, 96, 64) * 255
    with torch.no_grad():
        pixels = model.pixels(model.pad([image]))
        dense = F.normalize(model.vlm.embed_dense(image[None]), dim=1)
    width = model.vlm.embed_dim
    assert pixels.shape[1] == model.branch.channels == model.branch.classifier.in_features
    lengths = pixels[:, -width:].norm(dim=1)
    torch.testing.assert_close(lengths, torch.full_like(lengths, 3.0))
    # The mean direction over the image is that of the VLM itself, at another resolution.
    ours, theirs = pixels[0, -width:].mean(dim=(1, 2)), dense[0].mean(dim=(1, 2))
    assert F.cosine_similarity(ours, theirs, dim=0) > 0.99


def test_padding_changes_no_embedding(model):
    image = torch.rand(3, 64, 64) * 255
    padded = torch.zeros(1, 3, 128, 128)
    padded[0, :, :64, :64] = image
    alone = model.embeds(ImageList(image[None], [(64, 64)]), (16, 16))
    inside = model.embeds(ImageList(padded, [(64, 64)]), (32, 32))
    torch.testing.assert_close(inside[:, :, :16, :16], alone)
    torch.testing.assert_close(inside[:, :, 16:, :16], alone[:, :, -1:].expand(-1, -1, 16, -1))


def test_the_decoder_alone_is_what_the_pixel_network_gives(model):
    images = model.pad([torch.rand(3, 64, 64) * 255])
    with torch.no_grad():
        decoded = model.branch(model.backbone(model.normalizer(images.tensor)))
        pixels = model.pixels(images)
    assert torch.equal(pixels[:, : decoded.shape[1]], decoded)


def test_the_vlm_is_not_trained_and_not_saved(model):
    assert not [name for name, part in model.named_parameters() if name.startswith("vlm.")]
    assert not [name for name in model.state_dict() if name.startswith("vlm.")]


def test_the_skip_adds_the_semantic_vector_to_the_last_channels():
    generator = GMMNGenerator(semantic_dim=3, feature_dim=5, hidden_dim=4, dropout=0.0, skip=2.0)
    for part in generator.layers.parameters():
        torch.nn.init.zeros_(part)
    made = generator(torch.tensor([[1.0, -2.0, 3.0]]), 2)
    assert made.tolist() == [[[0.0, 0.0, 2.0, -4.0, 6.0]] * 2]
    made.sum().backward()
    assert generator.skip.grad.item() == 2 * (1 - 2 + 3)


def test_without_a_skip_there_is_none():
    generator = GMMNGenerator(semantic_dim=3, feature_dim=2, hidden_dim=4, dropout=0.0)
    assert "skip" not in dict(generator.named_parameters())
    with pytest.raises(ValueError, match="semantic vectors of 3 channels do not fit features of 2"):
        GMMNGenerator(semantic_dim=3, feature_dim=2, hidden_dim=4, dropout=0.0, skip=1.0)


def test_a_skip_to_features_without_the_vlm_is_refused(zeroshapes, tiny_opts):
    opts = [*tiny_opts, *K4, "SOLVER.MAX_ITER", "2000", "ALIGNZEG.GENERATOR.SKIP", "2.0"]
    with pytest.raises(ValueError, match=r"SKIP is 2.0.*VLM_NORM above 0, or SKIP to 0"):
        Trainer.build_model(setup_config(RECURSIVE, opts))
