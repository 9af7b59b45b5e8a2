"""The background class."""

from __future__ import annotations

import math

import pytest
import torch
from helpers import unit

from alignzeg.modeling.classifiers import CosineClassifier


def test_background_is_the_logsumexp_of_its_prototypes():
    torch.manual_seed(0)
    classifier = CosineClassifier(embed_dim=6, logit_scale=7.0, num_background=3, adapter_dim=0)
    embeds, text = unit(4, 6), unit(2, 6)
    scores = classifier.score(embeds, text)
    for i in range(4):
        want = math.log(sum(math.exp(7.0 * float(embeds[i] @ b)) for b in classifier.background))
        assert scores[i, 2].item() == pytest.approx(want, rel=1e-5)
        assert scores[i, 1].item() == pytest.approx(7.0 * float(embeds[i] @ text[1]), rel=1e-4)
