"""Which proposals of many views are kept, and what is said of windows on a smaller copy."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from alignzeg.modeling import augmented_inference
from alignzeg.modeling.augmented_inference import cut_views, segment_augmented
from alignzeg.modeling.test_time_augmentation import TestTimeAugmentation
from alignzeg.structures import Vocabulary


class Looker:
    """Proposals of known probabilities in every window, in turn; what `segment_augmented` asks."""

    device = torch.device("cpu")
    size_divisibility = 32
    augmentation = TestTimeAugmentation(window=32, stride=32)
    inference_opts = {"memory_mib": 1.0, "reject_below": 0.0}  # noqa: RUF012

    def __init__(self) -> None:
        # Of two proposals in each of two windows, the surest two are one of each.
        self.probs = iter(torch.tensor([[[0.9, 0.1], [0.2, 0.8]], [[0.3, 0.7], [0.6, 0.4]]]))

    def outputs(self, images, vocabulary):
        logits = torch.full((1, 2, 8, 8), 5.0)
        logits[0, 1] = -5.0
        proposals = [SimpleNamespace(mask_logits=logits)]
        return SimpleNamespace(proposals=proposals, unseen_logits=torch.tensor([[1.0, 2.0]]))

    def class_probs(self, outputs, vocabulary):
        return next(self.probs)[None]

    def weighted_probs(self, probs, logits):
        return probs


def test_the_surest_proposals_of_all_windows_are_kept():
    item = {"image": torch.zeros(3, 32, 64)}
    answer = segment_augmented(Looker(), item, Vocabulary(("a",), (True,)))
    assert answer["class_probs"].tolist() == [[pytest.approx(0.9), pytest.approx(0.1)]] + [
        [pytest.approx(0.6), pytest.approx(0.4)]
    ]
    assert answer["unseen_probs"].tolist() == pytest.approx([1 / (1 + np.exp(-x)) for x in (1, 2)])
    left, right = answer["mask_logits"]
    assert (left[:, :8] == 5).all() and (left[:, 8:] == -20).all()
    assert (right[:, :8] == -20).all() and (right[:, 8:] == -5).all()


def test_windows_on_a_smaller_copy_are_said_once(caplog):
    augmented_inference._SAID.clear()
    for wanted in ((32, 64), (64, 128), (64, 128)):
        plan, image = TestTimeAugmentation(window=48, stride=32), torch.zeros(3, 32, 64)
        assert len(list(cut_views(plan, image, wanted, 32))) == 2
    (record,) = caplog.records
    assert "WINDOW 48" in record.getMessage()
    assert "here at 64 x 32 of 128 x 64 pixels, and cut that" in record.getMessage()
