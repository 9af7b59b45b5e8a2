"""Attention, positions, adapter, and masks by hand."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from helpers import unit

from alignzeg.modeling.classifiers import CosineClassifier
from alignzeg.modeling.layers import (
    AttentionBlock,
    mask_quality,
    pointwise_by_onednn,
    sine_position,
    with_foreground_share,
)
from alignzeg.modeling.proposals.plain import outside


def test_attention_block_equals_a_loop_over_queries():
    torch.manual_seed(0)
    block = AttentionBlock(8, 1, cross=True).double()
    x, keys = torch.randn(1, 3, 8).double(), torch.randn(1, 4, 8).double()
    blocked = torch.tensor([[[0, 1, 0, 1], [0, 0, 0, 0], [1, 1, 1, 0]]]).bool()
    got = block(x, keys, blocked=blocked)
    attention = block.attention
    weights = attention.in_proj_weight.chunk(3)
    biases = attention.in_proj_bias.chunk(3)
    key_states = block.key_norm(keys)[0]
    for i in range(3):
        query = weights[0] @ block.norm(x)[0, i] + biases[0]
        allowed = [j for j in range(4) if not blocked[0, i, j]]
        energies = torch.stack(
            [query @ (weights[1] @ key_states[j] + biases[1]) / math.sqrt(8) for j in allowed]
        )
        shares = energies.softmax(dim=0)
        mixed = sum(
            s * (weights[2] @ key_states[j] + biases[2])
            for s, j in zip(shares, allowed, strict=True)
        )
        want = x[0, i] + attention.out_proj(mixed)
        torch.testing.assert_close(got[0, i], want)


def test_kernels_of_one_place_give_the_same_by_another_algorithm():
    torch.manual_seed(0)
    for stride, padding, groups in ((1, 0, 1), (2, 0, 1), (1, 1, 1), (1, 0, 4)):
        model = torch.nn.Sequential(
            torch.nn.Conv2d(8, 12, 1, stride, padding, groups=groups), torch.nn.Conv2d(12, 4, 3)
        )
        image = torch.randn(2, 8, 9, 11, requires_grad=True)
        expected = model(image)
        inputs = (image, *model.parameters())
        gradients = torch.autograd.grad(expected.square().sum(), inputs)
        pointwise_by_onednn(model, torch.device("cpu"))
        assert [part.dilation for part in model] == [(1, 1), (1, 1)]
        model.to(memory_format=torch.channels_last)
        pointwise_by_onednn(model, torch.device("cpu"))
        assert [part.dilation for part in model] == [(2, 2), (1, 1)]
        found = model(image)
        torch.testing.assert_close(found, expected)
        for a, b in zip(torch.autograd.grad(found.square().sum(), inputs), gradients, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
        pointwise_by_onednn(model, torch.device("cuda"))
        assert model[0].dilation == (1, 1)


def test_sine_position_tells_every_cell_apart():
    position = sine_position(5, 7, 16)
    assert position.shape == (35, 16)
    assert torch.cdist(position, position).fill_diagonal_(1).min() > 0.05
    with pytest.raises(ValueError, match="multiples of 4; got 6"):
        sine_position(2, 2, 6)


def test_positions_made_in_inference_mode_serve_a_training():
    with torch.inference_mode():
        first = sine_position(11, 13, 8)
    weight = torch.ones(8, requires_grad=True)
    (weight * sine_position(11, 13, 8)).sum().backward()
    assert torch.allclose(weight.grad, first.sum(0))


def test_outside_never_blocks_everything():
    logits = torch.full((1, 2, 4, 4), -1.0)
    logits[0, 0, :2, :2] = 5.0
    blocked = outside(logits, (2, 2))
    assert blocked[0, 0].tolist() == [False, True, True, True]
    assert not blocked[0, 1].any()


def test_adapter_starts_as_the_identity():
    torch.manual_seed(0)
    embeds = unit(5, 6)
    sizes = {"embed_dim": 6, "logit_scale": 1.0, "adapter_dim": 4}
    classifier = CosineClassifier(num_background=1, **sizes)
    torch.testing.assert_close(classifier.embed(embeds, embeds), embeds)
    with pytest.raises(ValueError, match="at least 1; got 0"):
        CosineClassifier(num_background=0, **sizes)


def test_adapter_ratio_scales_what_the_adapter_adds():
    torch.manual_seed(0)
    embeds = unit(5, 6)
    sizes = {"embed_dim": 6, "logit_scale": 1.0, "num_background": 1, "adapter_dim": 4}
    classifier = CosineClassifier(adapter_ratio=0.25, **sizes)
    added = torch.tensor([0.0, 1.0, 0.0, 0.0, -2.0, 0.0])
    # The last layer's weights are zero at first, so that its bias is all the adapter adds.
    torch.nn.init.zeros_(classifier.adapter[-1][-1].weight)
    classifier.adapter[-1][-1].bias.data = added
    want = F.normalize(embeds + 0.25 * added, dim=-1)
    torch.testing.assert_close(classifier.embed(embeds, embeds), want)
    with pytest.raises(ValueError, match="ADAPTER_RATIO must be above 0; got 0"):
        CosineClassifier(adapter_ratio=0.0, **sizes)


def test_mask_quality_by_hand():
    probs = torch.tensor([[[0.9, 0.6], [0.2, 0.1]], [[0.3, 0.2], [0.1, 0.4]], [[1.0, 1.0]] * 2])
    quality = mask_quality(torch.logit(probs, eps=1e-7))
    torch.testing.assert_close(quality, torch.tensor([0.75, 0.4, 1.0]))


def test_the_foreground_gets_its_share_and_keeps_its_proportions():
    torch.manual_seed(0)
    scores = torch.randn(2, 3, 5) * 4
    shares = torch.tensor([[0.5, 0.99, 0.01], [1.0, 0.0, 0.7]])
    probs = with_foreground_share(scores, shares).softmax(-1)
    torch.testing.assert_close(probs[..., :-1].sum(-1), shares, atol=2e-6, rtol=0)
    inside = scores[..., :-1].softmax(-1)
    torch.testing.assert_close(probs[..., :-1], inside * shares[..., None], atol=2e-6, rtol=0)
