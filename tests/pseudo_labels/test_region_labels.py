"""Pseudo-labels: regions of hidden pixels and their names."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from detectron2.data import MetadataCatalog

from alignzeg.data.labels import get_vocabulary
from alignzeg.pseudo_labels import region_labels
from alignzeg.pseudo_labels.classes import find_classes
from alignzeg.pseudo_labels.region_labels import Thresholds, choose, name_probs, paint
from alignzeg.pseudo_labels.regions import proposal_regions, superpixel_regions


def test_superpixels_part_the_hidden_pixels_along_edges():
    image = np.full((120, 180, 3), 30, np.uint8)
    image[30:90, 60:120] = (220, 40, 40)
    image[30:90, 120:156] = (40, 40, 220)
    hidden = np.zeros((120, 180), dtype=bool)
    hidden[24:96, 54:162] = hidden[0:5, 0:5] = True
    regions = superpixel_regions(image, hidden, scale=100, min_area=30)
    assert regions.dtype == bool and not (regions & ~hidden).any()
    assert (regions.sum((1, 2)) >= 30).all()
    assert len(np.unique(regions.reshape(len(regions), -1), axis=0)) == len(regions)

    def iou(box):
        truth = np.zeros_like(hidden)
        truth[box] = True
        return max((r & truth).sum() / (r | truth).sum() for r in regions)

    # Both things, but for their blurred edges, and all; the corner of 25 pixels is too small.
    assert iou(np.s_[30:90, 60:120]) > 0.7 and iou(np.s_[30:90, 120:156]) > 0.7
    assert iou(np.s_[24:96, 54:162]) == 1
    assert not regions[:, :5, :5].any()
    assert superpixel_regions(image, np.zeros_like(hidden), 100, 30).shape == (0, 120, 180)


def test_proposals_are_cut_to_the_hidden_pixels_they_mostly_cover():
    logits = torch.full((4, 8, 8), -9.0)
    logits[0, :, :4] = 9  # half of it is hidden
    logits[1, 4:, 4:] = 9  # nothing is
    logits[2, :3, 1:3] = 9  # all of it is
    hidden = np.zeros((16, 16), dtype=bool)
    hidden[:8, :8] = True
    regions = proposal_regions(logits, hidden, min_share=0.5, min_area=1)
    assert len(regions) == 2
    assert np.array_equal(regions[0], hidden)
    assert regions[1].sum() == pytest.approx(24, abs=8) and not (regions[1] & ~hidden).any()
    assert len(proposal_regions(logits, hidden, 0.6, 1)) == 1
    assert len(proposal_regions(logits, hidden, 0.5, 40)) == 1
    assert proposal_regions(logits[:0], hidden, 0.5, 1).shape == (0, 16, 16)


class StubVLM:
    """Sees the mean colour of a region."""

    logit_scale = 8.0
    most = 0

    def encode_image(self, image):
        return image

    def embed_regions(self, image, mask_logits):
        self.most = max(self.most, mask_logits.numel())
        inside = (mask_logits > 0).float()
        sums = torch.einsum("bchw,bqhw->bqc", image, inside)
        return F.normalize(sums / inside.sum((2, 3))[..., None], dim=-1)


def test_names_are_a_softmax_of_scaled_cosines():
    image = torch.zeros(3, 4, 6)
    image[0, :, :3], image[1, :, 3:] = 200, 100
    regions = torch.zeros(2, 4, 6, dtype=torch.bool)
    regions[0, :, :3] = regions[1, :, 3:] = True
    probs = name_probs(StubVLM(), image, regions, torch.eye(3))
    right = np.exp(8) / (np.exp(8) + 2)
    assert probs[0, 0].item() == pytest.approx(right)
    assert probs[1, 1].item() == pytest.approx(right)


def test_many_regions_take_no_more_memory_than_few(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(region_labels, "_PIXELS_AT_ONCE", 100)
    image, regions = torch.rand(3, 6, 8), torch.rand(31, 6, 8) > 0.5
    part, whole = StubVLM(), StubVLM()
    probs = [name_probs(part, image, regions, torch.eye(3), mirror) for mirror in (False, True)]
    monkeypatch.undo()
    torch.testing.assert_close(probs[0], name_probs(whole, image, regions, torch.eye(3)))
    mirrored = name_probs(whole, image.flip(-1), regions.flip(-1), torch.eye(3))
    torch.testing.assert_close(probs[1], mirrored)
    assert part.most == 2 * 48 and whole.most == 31 * 48


def test_only_sure_and_wanted_names_are_given():
    probs = torch.tensor(
        [[0.1, 0.7, 0.2], [0.7, 0.1, 0.2], [0.05, 0.5, 0.45], [0.2, 0.4, 0.4], [0.1, 0.2, 0.7]]
    )
    wanted = torch.tensor([False, True, True])
    names, confidence = choose(probs, None, wanted, Thresholds(0.45, 0.1))
    assert names.tolist() == [1, -1, -1, -1, 2]
    torch.testing.assert_close(confidence, probs.max(1).values)
    mirrored = torch.tensor([[0.1, 0.6, 0.3]] * 5)
    names, confidence = choose(probs, mirrored, wanted, Thresholds(0.3, 0.0, flips=True))
    # The last is another one in the mirror; the second is a name that humans give.
    assert names.tolist() == [1, -1, 1, 1, -1]
    assert confidence[0].item() == pytest.approx(0.65)
    assert choose(torch.ones(1, 1), None, torch.ones(1).bool(), Thresholds())[0].tolist() == [0]
    for wrong in ({"confidence": 1.1}, {"margin": -0.1}, {"min_area": 0}):
        with pytest.raises(ValueError, match="need a confidence"):
            Thresholds(**wrong)


def test_the_surest_region_is_on_top():
    regions = np.zeros((3, 2, 4), dtype=bool)
    regions[0, :, :3] = regions[1, :, 2:] = regions[2] = True
    labels, sureness = paint(regions, np.array([5, 7, -1]), np.array([0.6, 0.9, 1.0]))
    assert labels.tolist() == [[5, 5, 7, 7]] * 2
    assert sureness.tolist() == [[0.6, 0.6, 0.9, 0.9]] * 2
    labels, sureness = paint(regions, np.array([5, -1, -1]), np.array([0.6, 0.9, 1.0]))
    assert labels.tolist() == [[5, 5, 5, -1]] * 2 and not sureness[:, 3].any()


def test_the_names_of_a_data_set_and_of_an_open_vocabulary(zeroshapes):
    vocabulary = get_vocabulary("zeroshapes_train")
    own = find_classes("zeroshapes_train", "", ())
    assert own.names == vocabulary.names and own.human == vocabulary.seen
    assert own.raw_ids == MetadataCatalog.get("zeroshapes_train").raw_ids
    held = find_classes("zeroshapes_train", "pseudo_unseen", ())
    assert len(held.names) == 33 and 0 < sum(not human for human in held.human) < 12
    words = ("zebra", "red star", "lion", "zebra", "grass")
    free = find_classes("zeroshapes_train", "", words)
    assert free.names == (*vocabulary.seen_part().names, "zebra", "red star", "lion")
    ids = dict(zip(free.names, free.raw_ids, strict=True))
    assert ids["red star"] == vocabulary.names.index("red star")
    assert {ids["zebra"], ids["lion"]} == {42, 43} and 255 not in free.raw_ids
    with pytest.raises(ValueError, match="name some with --words"):
        find_classes("coco_stuff171_train", "", ())
