"""Synthetic features of virtual classes."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from alignzeg.modeling.synthesizers import ManifoldMixup


def test_mixup_stays_between_two_different_classes():
    torch.manual_seed(0)
    mixup = ManifoldMixup(alpha=1.0, mix_range=(0.3, 0.7), ratio=50.0)
    # Orthogonal features and prototypes: the mix can be read off the coordinates.
    labels = torch.tensor([0, 1, 2, 2])
    embeds, text = torch.eye(4), torch.eye(3, 5)
    made = mixup(embeds, labels, text)
    assert len(made.embeds) == 200
    for embed, prototype in zip(made.embeds, made.prototypes, strict=True):
        first, second = embed.nonzero().flatten().tolist()
        assert labels[first] != labels[second]
        share = embed[first] / (embed[first] + embed[second])
        assert 0.3 - 1e-6 <= share <= 0.7 + 1e-6
        torch.testing.assert_close(embed.sum(), torch.tensor(1.0))
        want = F.normalize(share * text[labels[first]] + (1 - share) * text[labels[second]], dim=0)
        torch.testing.assert_close(prototype, want)
    with pytest.raises(ValueError, match="RANGE"):
        ManifoldMixup(alpha=1.0, mix_range=(0.7, 0.3), ratio=1.0)
