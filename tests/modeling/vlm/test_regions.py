"""OpenClipVLM's regions against loops."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from clip_cases import some_image
from torch import Tensor

from alignzeg.modeling.vlm import OpenClipVLM
from alignzeg.modeling.vlm.regions import mask_guided_tokens, patches_inside


def naive_region(vlm: OpenClipVLM, image: Tensor, inside: Tensor) -> Tensor:
    """One region at a time: the transformer itself, with an attention mask over all tokens."""
    visual = vlm.clip.visual
    tokens = visual._embeds(vlm._prepared(image))
    blocks = visual.transformer.resblocks
    for block in blocks[: -vlm.region_blocks]:
        tokens = block(tokens)
    tokens = torch.cat([tokens[:, :1], tokens], dim=1)  # the copy, the class token, the patches
    size = tokens.shape[1]
    allowed = torch.ones(size, size, dtype=torch.bool)
    allowed[1:, 0] = False  # nobody sees the copy
    allowed[0, 1] = False  # the copy sees itself, not the original
    allowed[0, 2:] = inside
    bias = torch.zeros(size, size).masked_fill(~allowed, float("-inf"))
    for block in blocks[-vlm.region_blocks :]:
        tokens = block(tokens, attn_mask=bias)
    return F.normalize(visual.ln_post(tokens[:, 0]) @ visual.proj, dim=-1)


@pytest.mark.parametrize("blocks", [1, 2, 4])
def test_mask_guided_tokens_are_the_naive_loop(make_clip, blocks: int) -> None:
    vlm = make_clip(region_blocks=blocks)
    image, masks = some_image(), torch.randn(2, 6, 16, 16) - 1
    masks[0, 0] = -9.0
    masks[0, 0, 5, 9] = -8.0  # empty: its best patch
    inside = patches_inside(masks, (4, 4))
    assert inside[0, 0].nonzero().tolist() == [[1 * 4 + 2]]
    regions = vlm.embed_regions(image, masks)
    for b in range(2):
        for q in range(6):
            expected = naive_region(vlm, image[b : b + 1], inside[b, q])
            assert torch.allclose(regions[b, q], expected[0], atol=1e-5)


def test_patches_inside_counts_any_pixel() -> None:
    masks = torch.full((1, 1, 8, 8), -5.0)
    masks[0, 0, 3, 4] = 0.1
    assert patches_inside(masks, (2, 2)).tolist() == [[[False, True, False, False]]]
    coarse = torch.tensor([[[[5.0, -5.0], [-5.0, -5.0]]]])
    assert patches_inside(coarse, (4, 4)).sum() == 4, "masks coarser than the grid"


def test_regions_do_not_touch_each_other_or_the_patches(make_clip) -> None:
    vlm = make_clip()
    image, masks = some_image(), torch.randn(2, 6, 16, 16)
    encoded = vlm.encode_image(image)
    before = [state.clone() for state in encoded.states]
    together = vlm.embed_regions(encoded, masks)
    assert all(torch.equal(a, b) for a, b in zip(before, encoded.states, strict=True))
    alone = torch.cat([vlm.embed_regions(encoded, masks[:, q : q + 1]) for q in range(6)], dim=1)
    assert torch.allclose(together, alone, atol=1e-6)


def test_one_pass_serves_both(make_clip) -> None:
    vlm = make_clip()
    image, masks = some_image(40, 64), torch.randn(2, 3, 10, 16)
    encoded = vlm.encode_image(image)
    assert torch.equal(vlm.embed_dense(encoded), vlm.embed_dense(image))
    assert torch.equal(vlm.embed_regions(encoded, masks), vlm.embed_regions(image, masks))
    calls = []
    handle = vlm.clip.visual.conv1.register_forward_hook(lambda *_: calls.append(1))
    encoded = vlm.encode_image(image)
    vlm.embed_dense(encoded)
    vlm.embed_regions(encoded, masks)
    handle.remove()
    assert len(calls) == 1


def test_mask_pooling_is_the_naive_mean(make_clip) -> None:
    vlm = make_clip(regions="MaskPooling")
    image, masks = some_image(), torch.randn(2, 3, 16, 16) * 4
    masks[1, 2] = -40.0
    masks[1, 2, 0, 15] = -30.0
    dense = F.normalize(vlm.embed_dense(image), dim=1)
    regions = vlm.embed_regions(image, masks)
    for b in range(2):
        for q in range(3):
            shares = masks[b, q].sigmoid().reshape(4, 4, 4, 4).mean(dim=(1, 3))
            expected = F.normalize((dense[b] * shares).sum(dim=(1, 2)), dim=0)
            if (b, q) == (1, 2):
                expected = dense[b, :, 0, 3]
            assert torch.allclose(regions[b, q], expected, atol=1e-4)


def test_no_proposals(make_clip) -> None:
    assert make_clip().embed_regions(some_image(), torch.zeros(2, 0, 8, 8)).shape == (2, 0, 24)


def test_autocast_and_training_functions(make_clip) -> None:
    vlm = make_clip()
    image, masks = some_image(), torch.randn(2, 3, 16, 16)
    plain = vlm.embed_regions(image, masks)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = vlm.embed_regions(image, masks)
        text = vlm.embed_text(["cat"])
    assert (plain * mixed).sum(-1).min() > 0.99
    assert mixed.dtype == text.dtype == torch.float32
    states = vlm.encode_image(image).states
    inside = patches_inside(masks, (4, 4))
    query = states[0].clone().requires_grad_()
    mask_guided_tokens(vlm.clip.visual, (query, *states[1:]), inside).sum().backward()
    assert query.grad.abs().sum() > 0, "the same function trains the tiny CLIP"


@pytest.mark.parametrize(
    ("image", "masks"),
    [((2, 1, 32, 32), (2, 3, 8, 8)), ((2, 3, 32, 32), (1, 3, 8, 8)), ((2, 3, 32, 32), (2, 8, 8))],
)
def test_wrong_shapes_are_refused(make_clip, image: tuple, masks: tuple) -> None:
    with pytest.raises(ValueError, match=r"must be \("):
        make_clip().embed_regions(torch.zeros(image), torch.zeros(masks))
