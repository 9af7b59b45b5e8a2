"""Proposals in a file: what is read is what was written, and other files are refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from alignzeg.evaluation.cached_proposals import CachedImage, ProposalFile, origin, save_proposals
from alignzeg.structures import Outputs, Proposals


def image(seed: int, indicator: bool = True) -> CachedImage:
    generator = torch.Generator().manual_seed(seed)
    embeds, regions, masks, scores, unseen = (
        torch.randn(1, 3, *shape, generator=generator) for shape in ((5,), (5,), (4, 6), (8,), ())
    )
    outputs = Outputs(
        proposals=(Proposals(embeds, masks),),
        embeds=embeds + 1,
        region_embeds=regions,
        class_logits=scores,
        unseen_logits=unseen if indicator else None,
    )
    truth = np.random.default_rng(seed).integers(0, 255, (9, 7 + seed)).astype(np.uint8)
    return CachedImage(outputs, truth, (16, 24), (15, 21))


def test_what_is_read_is_what_was_written(tmp_path: Path):
    images = [image(0), image(1), image(2, indicator=False)]
    save_proposals(tmp_path / "a.proposals", iter(images), {"weights": "abc"})
    found = ProposalFile(tmp_path / "a.proposals")
    assert [path.name for path in tmp_path.iterdir()] == ["a.proposals"]
    assert found.made_of == {"weights": "abc"} and len(found) == len(list(found)) == 3
    for ours, theirs in zip(images, found, strict=True):
        for key in ("embeds", "region_embeds", "class_logits"):
            assert torch.equal(getattr(ours.outputs, key), getattr(theirs.outputs, key))
        proposals = (ours.outputs.proposals[-1], theirs.outputs.proposals[-1])
        assert torch.equal(*(one.mask_logits for one in proposals))
        assert np.array_equal(ours.truth, theirs.truth) and ours.truth.dtype == theirs.truth.dtype
        assert (theirs.padded_size, theirs.image_size) == ((16, 24), (15, 21))
    assert torch.equal(found[1].outputs.unseen_logits, images[1].outputs.unseen_logits)
    assert found[2].outputs.unseen_logits is None
    with pytest.raises(IndexError):
        found[3]


def test_no_file_is_left_where_an_image_fails(tmp_path: Path):
    def images():
        yield image(0)
        raise ValueError("the second image")

    (tmp_path / "a.proposals").write_bytes(b"what was there")
    with pytest.raises(ValueError, match="the second image"):
        save_proposals(tmp_path / "a.proposals", images(), {})
    assert (tmp_path / "a.proposals").read_bytes() == b"what was there"
    assert len(list(tmp_path.iterdir())) == 1


def test_other_files_are_refused(tmp_path: Path):
    save_proposals(tmp_path / "whole", [image(0)], {})
    content = (tmp_path / "whole").read_bytes()
    (tmp_path / "cut").write_bytes(content[: len(content) // 2])
    (tmp_path / "text").write_text("hello")
    np.savez(tmp_path / "arrays.npz", a=np.zeros(3))
    for name in ("cut", "text", "arrays.npz", "missing"):
        with pytest.raises(ValueError, match=f"{name}' is no file of cached proposals"):
            ProposalFile(tmp_path / name)
    spoilt = bytearray(content)
    place = content.index(b"class_logits") + 200
    spoilt[place] ^= 255
    (tmp_path / "spoilt").write_bytes(spoilt)
    with pytest.raises(ValueError, match="is damaged at image 0 .*; delete it"):
        ProposalFile(tmp_path / "spoilt")[0]


def test_what_proposals_follow_from(tiny_cfg, tmp_path: Path):
    weights = tmp_path / "model.pth"
    weights.write_bytes(b"1")
    first = origin(tiny_cfg, weights, "zeroshapes_val")
    for key, value in (("ALIGNZEG.CORRECTOR.GAMMA", 9.0), ("OUTPUT_DIR", "elsewhere")):
        other = tiny_cfg.clone()
        other.merge_from_list([key, value])
        assert origin(other, weights, "zeroshapes_val") == first
    other.merge_from_list(["INPUT.MIN_SIZE_TEST", 96])
    assert origin(other, weights, "zeroshapes_val")["config"] != first["config"]
    assert origin(tiny_cfg, weights, "zeroshapes_train")["data"] != first["data"]
    weights.write_bytes(b"2")
    assert origin(tiny_cfg, weights, "zeroshapes_val")["weights"] != first["weights"]
