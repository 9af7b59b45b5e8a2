"""The whole model on a few scenes: what must not leak, and what must come out."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import build_model
from detectron2.utils.env import seed_all_rng
from helpers import CONFIGS
from PIL import Image

from alignzeg.data.catalog import register
from alignzeg.data.mapper import ZeroShotMapper
from alignzeg.data.zeroshapes import write_dataset
from alignzeg.engine import setup_config
from alignzeg.structures import Vocabulary

SMALL = [
    *("ALIGNZEG.EXTRACTOR.NUM_QUERIES", "9"),
    *("ALIGNZEG.EXTRACTOR.HIDDEN_DIM", "32"),
    *("ALIGNZEG.ENCODER.SMALL_CHANNELS", "[16, 24, 32, 40]"),
    *("MODEL.FPN.OUT_CHANNELS", "32"),
]


@pytest.fixture(scope="module")
def scenes(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("datasets")
    write_dataset(root, "train", 4, 128, 0)
    return root


@pytest.fixture
def cfg(scenes, monkeypatch, request) -> CfgNode:
    """A small model of the config that `inductive` names, AlignZeg's otherwise."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(scenes))
    name = getattr(request, "param", "alignzeg")
    return setup_config(CONFIGS / "zeroshapes" / f"{name}.yaml", SMALL)


# The methods that must not know an unseen name.
inductive = pytest.mark.parametrize("cfg", ["alignzeg", "cel", "alignzeg_cel"], indirect=True)


def train_losses(cfg: CfgNode, steps: int = 2) -> list[dict[str, float]]:
    """Losses of a few plain steps on the whole training set, everything seeded."""
    seed_all_rng(0)
    model = build_model(cfg).train()
    mapper = ZeroShotMapper(cfg, True)
    batch = [mapper(record) for record in DatasetCatalog.get(cfg.DATASETS.TRAIN[0])]
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.01)
    history = []
    for _ in range(steps):
        losses = model(batch)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
        history.append({name: loss.item() for name, loss in losses.items()})
    return history


def registered_copy(name: str, **changes) -> str:
    """zeroshapes under another name, with other classes or labels."""
    benchmark = MetadataCatalog.get("zeroshapes_train").benchmark
    copy = dataclasses.replace(benchmark, name=name, **changes)
    return next(n for n in register(copy) if n.endswith("_train"))


def forget(name: str) -> None:
    for split in ("train", "val", "calib"):
        if f"{name}_{split}" in DatasetCatalog.list():
            DatasetCatalog.remove(f"{name}_{split}")
            MetadataCatalog.remove(f"{name}_{split}")


@inductive
def test_unseen_names_never_enter_a_training_loss(cfg):
    vocabulary = MetadataCatalog.get("zeroshapes_train").vocabulary
    nonsense = tuple(
        name if seen else f"qwx {index}"
        for index, (name, seen) in enumerate(zip(vocabulary.names, vocabulary.seen, strict=True))
    )
    try:
        other = registered_copy("nonsense", vocabulary=Vocabulary(nonsense, vocabulary.seen))
        want = train_losses(cfg)
        cfg.DATASETS.TRAIN = (other,)
        assert train_losses(cfg) == want
    finally:
        forget("nonsense")


@inductive
def test_unseen_labels_never_enter_a_training_loss(cfg, scenes, tmp_path, monkeypatch):
    vocabulary = MetadataCatalog.get("zeroshapes_train").vocabulary
    want = train_losses(cfg)
    rng = np.random.default_rng(0)
    hidden = [*vocabulary.unseen_ids, 255]
    changed = 0
    (tmp_path / "zeroshapes").mkdir()
    (tmp_path / "zeroshapes" / "images").symlink_to(scenes / "zeroshapes" / "images")
    folder = tmp_path / "zeroshapes" / "annotations" / "train"
    folder.mkdir(parents=True)
    for path in sorted((scenes / "zeroshapes" / "annotations" / "train").glob("*.png")):
        label = np.asarray(Image.open(path)).copy()
        places = np.isin(label, hidden)
        label[places] = rng.choice(hidden, places.sum())
        changed += places.sum()
        Image.fromarray(label).save(folder / path.name)
    assert changed > 1000, "the scenes must hold unseen pixels for this test to mean something"
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    assert train_losses(cfg) == want


@inductive
def test_seen_labels_do_enter(cfg, scenes, tmp_path, monkeypatch):
    """The counterpart: the two tests above could pass on a model that learns nothing."""
    want = train_losses(cfg)
    (tmp_path / "zeroshapes").mkdir()
    (tmp_path / "zeroshapes" / "images").symlink_to(scenes / "zeroshapes" / "images")
    folder = tmp_path / "zeroshapes" / "annotations" / "train"
    folder.mkdir(parents=True)
    vocabulary = MetadataCatalog.get("zeroshapes_train").vocabulary
    for path in sorted((scenes / "zeroshapes" / "annotations" / "train").glob("*.png")):
        label = np.asarray(Image.open(path)).copy()
        present = [i for i in np.unique(label) if i in vocabulary.seen_ids]
        label[label == present[0]] = 255
        Image.fromarray(label).save(folder / path.name)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    assert train_losses(cfg) != want


OTHERS = ("pixel", "transductive")


@pytest.mark.parametrize(
    "name",
    sorted(
        p.stem
        for p in (CONFIGS / "zeroshapes").glob("*.yaml")
        if not any(o in p.stem for o in OTHERS)
    ),
)
def test_every_config_trains_and_segments(name, cfg):
    cfg = setup_config(CONFIGS / "zeroshapes" / f"{name}.yaml", SMALL)
    history = train_losses(cfg)
    assert all(np.isfinite(list(losses.values())).all() for losses in history)
    model = build_model(cfg).eval()
    vocabulary = MetadataCatalog.get("zeroshapes_train").vocabulary
    queries = cfg.ALIGNZEG.EXTRACTOR.NUM_QUERIES
    image = torch.randint(0, 256, (3, 70, 101), dtype=torch.uint8)
    with torch.no_grad():
        (out,) = model([{"image": image, "vocabulary": vocabulary, "height": 35, "width": 90}])
    assert out["sem_seg"].shape == (35, 90)
    assert out["sem_seg"].dtype == torch.uint8
    assert out["sem_seg"].max() < len(vocabulary)
    assert out["mask_logits"].shape == (queries, 18, 26)
    assert out["class_probs"].shape == (queries, len(vocabulary) + 1)
    assert out["class_probs"].min() >= 0
    assert out["background"].shape == (18, 26) and out["background"].dtype == torch.bool
    # The ensemble takes each class's mean with exponents of its own; without it, shares remain.
    model.ensemble = (0.0, 0.0)
    with torch.no_grad():
        (out,) = model([{"image": image, "vocabulary": vocabulary}])
    torch.testing.assert_close(out["class_probs"].sum(dim=1), torch.ones(queries))


def test_two_vocabularies_alternate(cfg):
    torch.manual_seed(0)
    model = build_model(cfg).eval()
    image = torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8)
    words = [
        Vocabulary(("red star", "grass"), (False, True)),
        Vocabulary(("brick", "blue ring", "green cross"), (True, True, True)),
    ]

    def answer(vocabulary: Vocabulary) -> torch.Tensor:
        with torch.no_grad():
            return model([{"image": image, "vocabulary": vocabulary}])[0]["class_probs"]

    first = [answer(v) for v in words]
    assert all(torch.equal(answer(v), p) for v, p in zip(words, first, strict=True))
    both = [{"image": image, "vocabulary": v} for v in words]
    with pytest.raises(ValueError, match="share one vocabulary"):
        model(both)


def test_batching_changes_no_mask(cfg):
    """An image is segmented the same way alone and beside others."""
    torch.manual_seed(0)
    model = build_model(cfg).eval()
    vocabulary = MetadataCatalog.get("zeroshapes_train").vocabulary
    small = {"image": torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8)}
    small["vocabulary"] = vocabulary
    twin = dict(small)
    with torch.no_grad():
        alone = model([small])[0]
        together = model([small, twin])[1]
    torch.testing.assert_close(alone["mask_logits"], together["mask_logits"], rtol=1e-3, atol=1e-4)


def test_checkpoint_holds_no_vlm(cfg):
    model = build_model(cfg).train()
    assert not [key for key in model.state_dict() if key.startswith("head.vlm.")]
    trained = {id(p) for p in model.parameters() if p.requires_grad}
    clip = model.vlm.clip
    assert not any(p.requires_grad or id(p) in trained for p in clip.parameters())
    assert not any(module.training for module in clip.modules())


def test_kernels_of_one_place_are_computed_by_onednn_where_channels_come_last(cfg):
    model = build_model(cfg)
    kernels = [part for part in model.modules() if isinstance(part, torch.nn.Conv2d)]
    assert {part.dilation for part in kernels} == {(1, 1)}
    model.to(memory_format=torch.channels_last)
    for part in kernels:
        assert part.dilation == ((2, 2) if part.kernel_size == (1, 1) else (1, 1))
