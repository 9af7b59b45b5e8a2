"""Closed forms and hand-computed cases for the model's parts."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from detectron2.layers import ShapeSpec

from alignzeg.modeling.classifiers import CosineClassifier
from alignzeg.modeling.correctors import ConstantShift, LeaveOutIndicator, UnseenIndicator
from alignzeg.modeling.layers import (
    AttentionBlock,
    geometric_ensemble,
    mask_quality,
    pointwise_by_onednn,
    proposal_weights,
    sine_position,
    with_foreground_share,
)
from alignzeg.modeling.proposals import (
    MutuallyRefinedExtractor,
    PlainExtractor,
    VLMAffinityExtractor,
)
from alignzeg.modeling.proposals.plain import outside
from alignzeg.modeling.synthesizers import ManifoldMixup


def unit(*shape: int) -> torch.Tensor:
    return F.normalize(torch.randn(*shape), dim=-1)


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


def test_outside_never_blocks_everything():
    logits = torch.full((1, 2, 4, 4), -1.0)
    logits[0, 0, :2, :2] = 5.0
    blocked = outside(logits, (2, 2))
    assert blocked[0, 0].tolist() == [False, True, True, True]
    assert not blocked[0, 1].any()


def test_background_is_the_logsumexp_of_its_prototypes():
    torch.manual_seed(0)
    classifier = CosineClassifier(embed_dim=6, logit_scale=7.0, num_background=3, adapter_dim=0)
    embeds, text = unit(4, 6), unit(2, 6)
    scores = classifier.score(embeds, text)
    for i in range(4):
        want = math.log(sum(math.exp(7.0 * float(embeds[i] @ b)) for b in classifier.background))
        assert scores[i, 2].item() == pytest.approx(want, rel=1e-5)
        assert scores[i, 1].item() == pytest.approx(7.0 * float(embeds[i] @ text[1]), rel=1e-4)


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
    part = LeaveOutIndicator(
        left_out=0.34,
        embed_dim=0,
        logit_scale=5.0,
        hidden_dim=3,
        top_cosines=2,
        threshold=0.5,
        gamma=1.0,
        mode="soft",
    )
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
        LeaveOutIndicator(
            left_out=1.0,
            embed_dim=0,
            logit_scale=5.0,
            hidden_dim=3,
            top_cosines=2,
            threshold=0.5,
            gamma=1.0,
            mode="soft",
        )


def test_ensemble_exponents():
    probs, frozen = torch.tensor([0.25, 0.5]), torch.tensor([0.64, 0.09])
    mixed = geometric_ensemble(probs, frozen, torch.tensor([0.0, 0.5]))
    torch.testing.assert_close(mixed, torch.tensor([0.25, math.sqrt(0.5 * 0.09)]))
    kept = geometric_ensemble(probs, frozen, torch.tensor([0.0, 0.5]), normalized=True)
    torch.testing.assert_close(kept, 0.75 * mixed / mixed.sum())
    nothing = geometric_ensemble(probs * 0, frozen * 0, torch.tensor([0.0, 0.5]), normalized=True)
    assert nothing.tolist() == [0.0, 0.0]


def test_switched_off_refinement_is_the_plain_extractor():
    shapes = {f"p{i}": ShapeSpec(channels=4, stride=2**i) for i in range(2, 6)}
    sizes = {"num_queries": 4, "hidden_dim": 8, "layers": 3, "heads": 2, "ffn_dim": 8}
    features = {k: torch.randn(1, 4, 64 // s.stride, 64 // s.stride) for k, s in shapes.items()}
    dense = torch.randn(1, 5, 8, 8)

    def masks(extractor: type, dense: torch.Tensor, **switches: bool) -> torch.Tensor:
        torch.manual_seed(3)
        part = extractor(input_shape=shapes, **sizes, **switches)
        return part(features, dense)[-1].mask_logits

    def refined(dense: torch.Tensor, on: str = "") -> torch.Tensor:
        names = ("use_vlm", "refine_features")
        switches = {name: name == on for name in names} | {"dense_dim": 5}
        return masks(MutuallyRefinedExtractor, dense, **switches)

    plain = masks(PlainExtractor, dense)
    assert torch.equal(plain, refined(dense + 1))
    assert not torch.allclose(refined(dense, "use_vlm"), refined(dense + 1, "use_vlm"))
    assert not torch.allclose(plain, refined(dense, "refine_features"))


def test_seeds_need_a_square_grid():
    with pytest.raises(ValueError, match="square number such as 36, 64 or 100; got 10"):
        refiner(num_queries=10)


def test_copies_share_one_vote():
    masks = torch.full((5, 2, 4), -1.0)
    masks[0, 0] = 1.0
    masks[1, 0] = 1.0  # a copy of the first
    masks[2, 0, :3] = 1.0  # IoU 3/4 with both
    masks[3, 1, 0] = 1.0  # alone; the last is empty, and alone too
    weighted_probs = proposal_weights(masks, 0.5)
    copies, part = 1 / (1 + 1 + 0.75), 1 / (1 + 0.75 + 0.75)
    torch.testing.assert_close(weighted_probs, torch.tensor([copies, copies, part, 1.0, 1.0]))
    torch.testing.assert_close(proposal_weights(masks, 0.8)[2], torch.tensor(1.0))
    assert (proposal_weights(masks, 1.01) == 1).all()


def refiner(**changes) -> VLMAffinityExtractor:
    shapes = {f"p{i}": ShapeSpec(channels=4, stride=2**i) for i in range(2, 6)}
    values = {
        "input_shape": shapes,
        "num_queries": 4,
        "hidden_dim": 8,
        "layers": 1,
        "heads": 2,
        "ffn_dim": 8,
        "dense_dim": 5,
        "use_vlm": True,
        "refine_features": True,
    }
    return VLMAffinityExtractor(**(values | changes))


def test_what_looks_alike_to_the_vlm_is_drawn_into_one_mask():
    """With the learned part silenced, a query's mask is the region of its point, exactly."""
    torch.manual_seed(0)
    part = refiner()
    with torch.no_grad():
        for weights in part.mask_embed[-1].parameters():
            weights.zero_()
    features = {f"p{i}": torch.randn(1, 4, 64 // 2**i, 64 // 2**i) for i in range(2, 6)}
    # Three regions of one VLM feature each: left half, upper and lower right quarter.
    region = torch.zeros(16, 16, dtype=torch.long)
    region[:8, 8:], region[8:, 8:] = 1, 2
    dense = torch.eye(3, 5)[region].permute(2, 0, 1)[None]
    (proposals,) = part(features, dense)
    points = [region[4, 4], region[4, 12], region[12, 4], region[12, 12]]
    for mask, own in zip(proposals.mask_logits[0] > 0, points, strict=True):
        assert torch.equal(mask, region == own)


def test_affinity_needs_the_vlm():
    with pytest.raises(ValueError, match="needs EXTRACTOR.USE_VLM; turn it on"):
        refiner(use_vlm=False)


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
