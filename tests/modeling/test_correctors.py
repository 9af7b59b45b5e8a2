"""The bias correction and the ensemble by hand."""

from __future__ import annotations

import math

import pytest
import torch
from helpers import unit

from alignzeg.modeling.correctors import ConstantShift, LeaveOutIndicator, UnseenIndicator
from alignzeg.modeling.layers import (
    geometric_ensemble,
)


def indicator(mode: str) -> UnseenIndicator:
    return UnseenIndicator(
        embed_dim=4,
        logit_scale=5.0,
        hidden_dim=3,
        top_cosines=2,
        threshold=0.6,
        gamma=3.0,
        mode=mode,
    )


def test_correction_by_hand():
    scores = torch.tensor([[2.0, 1.0, 0.5], [2.0, 1.0, 0.5]])
    unseen = torch.tensor([False, True])
    logits = torch.tensor([math.log(3), 0.0])  # probabilities 0.75 and 0.5
    hard = indicator("hard").correct(scores, logits, unseen)
    assert hard.tolist() == [[-1.0, 1.0, 0.5], [2.0, 1.0, 0.5]]
    soft = indicator("soft").correct(scores, logits, unseen)
    torch.testing.assert_close(soft, torch.tensor([[-0.25, 1.0, 0.5], [0.5, 1.0, 0.5]]))
    shifted = ConstantShift(gamma=1.5).correct(scores, None, unseen)
    assert shifted.tolist() == [[0.5, 1.0, 0.5], [0.5, 1.0, 0.5]]


def test_indicator_reads_what_it_says():
    torch.manual_seed(0)
    part = indicator("hard")
    embed, seen = unit(1, 4).requires_grad_(), unit(3, 4)
    cosines = (embed @ seen.T)[0]
    probs = (5.0 * cosines).softmax(dim=0)
    entropy = -(probs * probs.log()).sum() / math.log(3)
    order = cosines.sort(descending=True).values[:2]
    want = part.mlp(torch.cat([embed[0], order, entropy[None]]))
    got = part.indicate(embed, unit(1, 4), seen)
    torch.testing.assert_close(got, want)
    got.sum().backward()
    assert embed.grad is None  # the indicator must not shape the embedding


def test_leaving_names_out_makes_the_examples():
    """With one name left out at a time, each draw knows whose proposals have no name."""
    torch.manual_seed(0)
    parts = {"embed_dim": 0, "logit_scale": 5.0, "hidden_dim": 3, "top_cosines": 2}
    parts |= {"threshold": 0.5, "gamma": 1.0, "mode": "soft"}
    part = LeaveOutIndicator(left_out=0.34, **parts)
    regions, text, labels = unit(4, 6), unit(3, 6), torch.tensor([0, 1, 2, 2])
    logits, unseen = part.examples(unit(4, 6), regions, labels, text, None)
    assert len(logits) % 4 == 0
    seen_draws = set()
    for got, hidden in zip(logits.split(4), unseen.split(4), strict=True):
        (gone,) = labels[hidden].unique().tolist()
        seen_draws.add(gone)
        assert hidden.tolist() == (labels == gone).tolist()
        rest = text[[k for k in range(3) if k != gone]]
        want = part.indicate(regions, regions, rest)
        cosines = (regions @ rest.T).sort(dim=1, descending=True).values
        probs = (5.0 * cosines).softmax(dim=1)
        entropy = -(probs * probs.log()).sum(dim=1, keepdim=True) / math.log(2)
        torch.testing.assert_close(want, part.mlp(torch.cat([cosines, entropy], 1))[:, 0])
        # The names come in another order: rounding of the entropy may differ.
        torch.testing.assert_close(got, want)
    assert len(seen_draws) > 1
    with pytest.raises(ValueError, match="LEFT_OUT must be above 0 and below 1; got 1.0"):
        LeaveOutIndicator(left_out=1.0, **parts)


def test_ensemble_exponents():
    probs, frozen = torch.tensor([0.25, 0.5]), torch.tensor([0.64, 0.09])
    mixed = geometric_ensemble(probs, frozen, torch.tensor([0.0, 0.5]))
    torch.testing.assert_close(mixed, torch.tensor([0.25, math.sqrt(0.5 * 0.09)]))
    kept = geometric_ensemble(probs, frozen, torch.tensor([0.0, 0.5]), normalized=True)
    torch.testing.assert_close(kept, 0.75 * mixed / mixed.sum())
    nothing = geometric_ensemble(probs * 0, frozen * 0, torch.tensor([0.0, 0.5]), normalized=True)
    assert nothing.tolist() == [0.0, 0.0]
