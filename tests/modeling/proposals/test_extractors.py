"""Refinement, seeds and affinity of the proposals."""

from __future__ import annotations

import pytest
import torch
from detectron2.layers import ShapeSpec

from alignzeg.modeling.layers import (
    proposal_weights,
)
from alignzeg.modeling.proposals import (
    MutuallyRefinedExtractor,
    PlainExtractor,
    VLMAffinityExtractor,
)


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
